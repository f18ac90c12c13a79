"""Ahead-of-time compilation for a TPU pod: memory, FLOPs, communication and predicted time."""
