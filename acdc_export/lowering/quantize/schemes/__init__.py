"""One file a scheme, named in target.toml. Each offers `run(model, calibration, keep, weight_bits)`, which quantizes
the model in place. One that quantizes more than what goes into layers offers `watched(model, keep)` as well, which
returns all that calibration has to watch for it."""
