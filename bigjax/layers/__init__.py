"""Building blocks. Modules name the logical axes of their parameters; see parallel/sharding.py."""
