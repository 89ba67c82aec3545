"""One file a pass, named in target.toml. Each offers `run(model, *, batch_size)`, which changes the model in place."""
