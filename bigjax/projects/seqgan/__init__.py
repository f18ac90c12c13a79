"""SeqGAN (https://arxiv.org/abs/1609.05473): its oracle experiment, and headlines from articles."""
