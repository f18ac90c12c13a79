"""A chat model that learns which of two answers to 'What does NAME do?' is better.

    bigjax train --config=configs/sft/docstrings.py --workdir=runs/sft
    bigjax train --config=configs/dpo/docstrings.py --workdir=runs/dpo

The better answer is the first line of NAME's docstring; the worse one that of another function, or
the right one with its words in another order. DPO, with runs/sft as the start and the reference, in
about 3 minutes on two cores: the better answer has the larger reward in 0.856 of 382 held-out
pairs, after half of the steps. `:kto` learns from rated answers instead, half of them right: 0.846
of the same pairs. `:orpo` learns from pairs without a reference; `:reward` trains a reward model:
0.767 after 60 steps. `:tiny`, from scratch: ORPO, in 12 seconds of CPU time.
"""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()
    kind = config.variants(variant, kto="kto", orpo="orpo", reward="reward", tiny="tiny")

    c.init_from = "runs/sft"
    c.model = dict(name="gpt", preset="init_from", scan=False)
    c.task = dict(name="preference", loss="sigmoid", beta=0.1, nll_weight=0.2)

    c.data = dict(
        name="preferences",
        train="docstrings:questions",
        chat_template="plain",
        tokenizer=dict(kind="init_from"),
        seq_len=96,
        truncate=True,
        valid_fraction=0.02,
        test_fraction=0.02,
    )

    c.optim.name = "adamw"
    c.optim.learning_rate = 1e-3
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 20
    c.optim.final_fraction = 0.1
    c.optim.b2 = 0.95

    c.train.steps = 250
    c.train.batch_size = 16

    c.checkpoint.every = 125
    c.log.every = 25
    c.evals = dict(
        valid=dict(kind="loss", every=125),
        sample=dict(kind="sample", every=250, prompt="What does json.dumps do?", max_new_tokens=32),
    )

    if kind == "kto":
        c.task = dict(name="preference", loss="kto", beta=0.1)
        c.train.batch_size = 24
    if kind in ("orpo", "tiny"):
        c.task = dict(name="preference", loss="orpo", beta=0.5)
    if kind == "reward":
        c.task = dict(name="reward", center=0.01)
        del c.evals.sample
    if kind == "tiny":
        c.init_from = ""
        c.model = dict(
            name="gpt",
            vocab_size=1024,
            max_len=128,
            d_model=64,
            n_layers=2,
            n_heads=2,
            position="rotary",
            norm="rmsnorm",
            bias=False,
            scan=False,
        )
        c.data.tokenizer = dict(kind="sentencepiece", vocab_size=1024)
        c.optim.learning_rate = 4e-3
        c.train.steps = 20
        c.train.batch_size = 8
        c.optim.warmup_steps = 5
        c.checkpoint.every = 10
        c.evals.valid.update(every=10, batches=2)
        c.evals.sample.update(every=20, max_new_tokens=16)
    return c
