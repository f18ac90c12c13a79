"""Generation: sampling, decoding, beam search; predictions of labelled tasks."""
