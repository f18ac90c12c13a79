"""A small model that sorts four letters, taught by a rule: reward 1 for a right answer, else 0.

First `:taught`, supervised, for 50 steps and 18 seconds of CPU time: 13% of the held-out questions
are answered right, and 6% where answers are sampled. Then this config from there: the mean reward
of sampled answers is 0.5 at step 50, 0.93 at step 90 and 0.98 at step 150, in 70 seconds of CPU
time; all held-out questions are answered right. `:tiny` starts from scratch and is rewarded for
small letters alone: from 0.1 to 1.0 in 60 steps, 30 seconds of CPU time.
"""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()

    c.model = dict(
        name="gpt",
        vocab_size=264,
        max_len=64,
        d_model=64,
        n_layers=2,
        n_heads=4,
        d_ff=176,
        position="rotary",
        norm="rmsnorm",
        activation="swiglu",
        bias=False,
        scan=False,  # few layers: unrolled is faster on a CPU
    )
    data = dict(
        train="letters:sort",
        chat_template="plain",
        tokenizer=dict(kind="bytes"),
        valid_fraction=0.1,
        test_fraction=0.0,
    )

    c.optim.name = "adamw"
    c.optim.b2 = 0.99
    c.optim.schedule = "constant"
    c.optim.warmup_steps = 10

    kind = config.variants(variant, taught="taught", tiny="tiny")
    if kind == "taught":
        c.task = dict(name="sft")
        c.data = dict(name="conversations", seq_len=64, packing=False, **data)
        c.optim.learning_rate = 3e-3
        c.train.steps, c.train.batch_size = 50, 64
        c.checkpoint.every = 25
        c.evals = dict(
            valid=dict(kind="generation", every=50, metrics=("exact_match",), max_new_tokens=6)
        )
        return c

    c.task = dict(
        name="grpo",
        rewards=dict(sorted=dict(kind="function", path="sort:is_sorted")),
        samples=16,
        max_new_tokens=6,
        show_every=10,
    )
    c.data = dict(name="prompts", seq_len=34, **data)
    c.init_from = "runs/sort-taught"
    c.optim.learning_rate = 1e-3
    c.train.steps, c.train.batch_size = 150, 32
    c.checkpoint.every = 50
    c.log.every = 10
    c.evals = dict(
        valid=dict(kind="generation", every=50, metrics=("exact_match",), max_new_tokens=6)
    )
    if kind == "tiny":
        c.init_from = ""
        c.task.rewards = dict(letters=dict(kind="function", path="sort:letters"))
        c.optim.learning_rate = 3e-3
        c.train.steps, c.train.batch_size = 60, 8
        c.checkpoint.every = 30
        c.log.every = 5
        c.evals.valid.update(every=60, examples=8)
    return c


def is_sorted(prompts, completions, answer):
    """1 for each completion that is the right answer, a column of the data."""
    return [float(text == right) for text, right in zip(completions, answer)]


def letters(prompts, completions):
    """The share of 6 places of each completion that hold a small letter: 0.1 by chance."""
    return [sum("a" <= x <= "z" for x in text) / 6 for text in completions]
