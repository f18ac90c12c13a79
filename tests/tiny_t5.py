"""A small encoder-decoder for tests: pairs of texts of a table, or hidden spans of a text file."""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()
    c.model = dict(
        name="t5", vocab_size=304, max_len=64, d_model=32, n_layers=2, n_heads=4, d_ff=64
    )
    c.model.update(relative_buckets=8, relative_distance=16, start_id=256)
    c.task = dict(name="seq2seq")
    c.data = dict(
        name="text_to_text",
        train="set me",
        tokenizer=dict(kind="bytes"),
        seq_len=48,
        target_len=24,
        valid_fraction=0.2,
        test_fraction=0.1,
    )
    c.optim.learning_rate = 5e-3
    c.optim.warmup_steps = 2
    c.train.steps = 30
    c.train.batch_size = 8
    c.checkpoint.every = 10
    c.log.every = 5
    c.log.tensorboard = False
    c.evals = dict(valid=dict(kind="loss", every=15))
    if config.variants(variant, spans=True):
        c.model.start_id, c.task.name = 0, "span_corruption"
        c.data.name, c.data.packing = "text", False
        c.data.sources = dict(text=dict(kind="text", path="set me"))
        c.data.tokenizer = dict(kind="sentencepiece", vocab_size=280, sentinels=16)
        del c.data.train, c.data.target_len
    return c
