"""Ahead-of-time compilation for a TPU pod: memory, FLOPs, communication, predicted time."""
