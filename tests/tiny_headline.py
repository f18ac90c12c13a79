"""A headline generator that trains in seconds on a small table, for tests: set data.train."""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()
    c.model = dict(
        name="seqgan.headline_model",
        vocab_size=160,
        max_len=10,
        article_len=24,
        d_model=16,
        n_heads=2,
        click_buckets=4,
        hot_per_example=4,
        discriminator_d_model=16,
        filter_widths=(1, 2),
        filters=(8, 8),
    )
    c.task = dict(
        name="seqgan.headline",
        mle_rounds=2,
        mle_updates=4,
        pretrain_updates=4,
        discriminator_updates=2,
        rollouts=0,
        hot_words=10,
    )
    c.data = dict(
        name="seqgan.headline_data",
        train="set me",
        tokenizer=dict(kind="wordpiece", vocab_size=110),
        seq_len=10,
        truncate=True,
        valid_fraction=0.2,
        test_fraction=0.1,
    )
    c.data.columns = dict(clicks="clicks", impressions="shown")
    c.optim.learning_rate = 1e-2
    c.train.steps = 4
    c.train.batch_size = 8
    c.checkpoint.every = 1
    c.checkpoint.keep = 10
    c.log.every = 1
    c.log.tensorboard = False
    c.evals = dict(
        valid=dict(kind="loss", every=2),
        written=dict(kind="seqgan.headlines_eval", every=4, batches=2),
    )
    if config.variants(variant, bert=True):
        c.model.update(encoder="bert", generator="gru", discriminator="lstm", n_layers=2)
    return c
