"""Passes, one file each, named in target.toml. Each has `run(model, *, batch_size)`, which works in place."""
