"""Training: state, step, loop, hooks, checkpoints, metrics; `run.train` puts them together."""
