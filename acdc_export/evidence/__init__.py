"""What can be said of a sparse half and its twin in an engine, measured: parity, accuracy, latency; and the gates."""
