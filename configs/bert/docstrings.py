"""A small BERT pre-trained on docstrings: three minutes on two CPU cores.

The text is the docstrings of the standard library and the installed packages. After 2,500 steps
eval/valid/mlm_loss is 4.55 nats per masked token, from 8.35; mlm_accuracy 0.25, nsp_accuracy 0.70.
"""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()

    c.model = dict(
        name="bert",
        vocab_size=4096,
        max_len=128,
        d_model=128,
        n_layers=2,
        n_heads=4,
        d_ff=512,
        dropout=0.0,  # one or two epochs: nothing to forget
        attention_dropout=0.0,
        scan=False,  # few layers: unrolled is quicker on a CPU
    )
    c.task = dict(name="mlm_nsp", pairs="nsp", max_predictions=14)

    c.data = dict(
        name="text",
        sources=dict(docstrings=dict(kind="docstrings")),
        tokenizer=dict(kind="wordpiece", vocab_size=4096),
        seq_len=96,
        valid_fraction=0.03,  # as in finetune.py, whose test texts are then not seen here
        test_fraction=0.03,
    )

    c.optim.name = "adamw"
    c.optim.learning_rate = 2e-3
    c.optim.schedule = "linear"
    c.optim.warmup_steps = 150
    c.optim.b2 = 0.99
    c.optim.weight_decay = 0.01

    c.train.steps = 2500
    c.train.batch_size = 16

    c.checkpoint.every = 500
    c.log.every = 50
    c.evals = dict(valid=dict(kind="loss", every=500, batches=40))

    tiny = config.variants(variant, tiny=True)
    if tiny:  # under a minute, mostly for reading the text
        c.model.update(d_model=64, n_heads=2, d_ff=128)
        c.data.seq_len = 64
        c.train.steps = 20
        c.optim.warmup_steps = 5
        c.checkpoint.every = c.log.every = 10
        c.evals.valid.update(every=10, batches=2)
    return c
