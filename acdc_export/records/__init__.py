"""What is written down and read back, as frozen dataclasses: pure data, which knows nothing of how it is shown."""
