"""One file a scheme, named in target.toml. Each offers `run(model, calibration, keep, weight_bits)`, which quantizes
the model in place."""
