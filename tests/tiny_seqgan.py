"""SeqGAN in seconds, for tests: two rounds of each phase; `:rounds` has no evaluations."""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()
    c.model = dict(
        name="seqgan.model",
        vocab_size=30,
        max_len=4,
        d_model=8,
        discriminator_d_model=8,
        filter_widths=(1, 2, 3),
        filters=(4, 4, 4),
    )
    c.task = dict(
        name="seqgan.oracle",
        mle_rounds=2,
        mle_updates=4,
        discriminator_rounds=2,
        pretrain_updates=3,
        generator_updates=2,
        discriminator_updates=4,
        rollouts=4,
    )
    c.data = dict(
        name="seqgan.oracle_data",
        d_model=8,
        sequences=200,
        seq_len=4,
    )
    c.optim.learning_rate = 1e-2
    c.optim.schedule = "constant"
    c.train.steps = 6
    c.train.batch_size = 16
    c.checkpoint.every = 1
    c.log.every = 1
    c.log.tensorboard = False
    if not config.variants(variant, rounds=True):
        c.evals = dict(oracle=dict(kind="seqgan.oracle_eval", every=2, batches=1, split="test"))
    return c
