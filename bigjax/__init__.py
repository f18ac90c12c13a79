"""bigjax: large models in JAX and Flax, TPU first. Start at README.md."""

__version__ = "0.1.0"
