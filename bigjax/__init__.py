"""bigjax: large models in JAX and Flax, TPU first. Start at README.md."""

__version__ = "0.2.0.dev0"
