"""Generation: sampling from logits and decoding with a cache."""
