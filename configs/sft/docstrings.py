"""A small chat model that answers 'What does NAME do?': three minutes on two CPU cores.

It is trained from scratch. The questions are names of functions, classes and modules of the
installed packages; the answers are the first lines of their docstrings. After 1,000 steps
eval/valid/loss is 3.09 nats per learned token, from 7.64, and eval/test/rougeL 0.16.
`:tiny`, 20 steps: a validation loss of 6.41, in 28
seconds of CPU time.
"""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()

    c.model = dict(
        name="gpt",
        vocab_size=2048,
        max_len=128,
        d_model=128,
        n_layers=4,
        n_heads=4,
        d_ff=352,
        position="rotary",
        norm="rmsnorm",
        activation="swiglu",
        bias=False,
        scan=False,  # few layers: unrolled is faster on a CPU
    )

    c.task = dict(name="sft")

    c.data = dict(
        name="conversations",
        train="docstrings:questions",
        chat_template="plain",
        tokenizer=dict(kind="sentencepiece", vocab_size=2048),
        seq_len=128,
        truncate=True,
        valid_fraction=0.02,
        test_fraction=0.02,
    )

    c.optim.name = "adamw"
    c.optim.learning_rate = 4e-3
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 50
    c.optim.final_fraction = 0.1
    c.optim.b2 = 0.95
    c.optim.weight_decay = 0.1

    c.train.steps = 1000
    c.train.batch_size = 16

    c.checkpoint.every = 250
    c.log.every = 25
    c.evals = dict(
        valid=dict(kind="loss", every=250),
        test=dict(
            kind="generation", split="test", metrics=("rouge",), max_new_tokens=32, every=1000
        ),
        sample=dict(kind="sample", every=500, prompt="What does json.dumps do?", max_new_tokens=32),
    )

    tiny = config.variants(variant, tiny=True)
    if tiny:
        c.model.update(d_model=64, n_layers=2, n_heads=2, d_ff=128)
        c.train.steps = 20
        c.optim.warmup_steps = 5
        c.checkpoint.every = 10
        c.evals.valid.update(every=10, batches=2)
        c.evals.test.update(every=20, examples=8, max_new_tokens=8)
        c.evals.sample.update(every=20, max_new_tokens=16)
    return c
