"""A chat model that learns to answer briefly: GRPO with a rule, from the run of a chat model.

    bigjax train --config=configs/grpo/brief.py --workdir=runs/brief --config.peft.base=dpo

The reward is 1 for an answer of three to seven words that ends with a period. The adapter is
trained over `peft.base`, a run or a Hugging Face folder, from which it may not go far.
docs/adapt.md has the runs before it: from there 60 steps, under two minutes on two CPU cores, raise
the mean reward from 0.42 to 0.92. `:tiny` trains a model from scratch to write small letters: 0.12
to 1.0 in 60 steps, 50 seconds of CPU time.
"""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()

    c.model = dict(name="gpt", preset="init_from", scan=False)  # of peft.base
    c.peft = dict(
        name="lora",
        base="runs/sft",
        rank=16,
        alpha=32.0,
        targets="stack/.*/(query|key|value|out|gate|up|down)$",  # all dense layers
        also="",
    )

    c.task = dict(
        name="grpo",
        rewards=dict(brief=dict(kind="function", path="brief:reward")),
        samples=8,
        max_new_tokens=32,
        beta=0.05,  # what it costs to move away from the base
    )

    c.data = dict(
        name="prompts",
        train="docstrings:questions",
        chat_template="plain",
        tokenizer=dict(kind="init_from"),
        seq_len=128,
        valid_fraction=0.02,
        test_fraction=0.02,
    )

    c.optim.name = "adamw"
    c.optim.learning_rate = 1e-3
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 5
    c.optim.weight_decay = 0.0

    c.train.steps = 60
    c.train.batch_size = 16

    c.checkpoint.every = 30
    c.log.every = 5
    c.evals = dict(
        sample=dict(kind="sample", every=30, prompt="What does json.dumps do?", max_new_tokens=32)
    )

    tiny = config.variants(variant, tiny=True)
    if tiny:  # every parameter, from scratch
        c.model = dict(name="gpt", vocab_size=264, max_len=256, d_model=64, n_layers=2, n_heads=4)
        c.model.update(position="rotary", norm="rmsnorm", activation="swiglu", bias=False)
        c.model.scan = False
        c.peft = dict(name="")
        c.task.update(max_new_tokens=6, beta=0.0)
        c.task.rewards = dict(letters=dict(kind="function", path="brief:letters"))
        c.data.update(tokenizer=dict(kind="bytes"), seq_len=256)
        c.optim.learning_rate, c.optim.schedule = 3e-3, "constant"
        c.train.batch_size = 8
        c.evals = {}
    return c


def reward(prompts, completions):
    """1 for a sentence of three to seven words that ends with a period."""
    return [float(3 <= len(text.split()) <= 7 and text.endswith(".")) for text in completions]


def letters(prompts, completions):
    """The share of 6 places of each completion that hold a small letter: 0.1 by chance."""
    return [sum("a" <= x <= "z" for x in text) / 6 for text in completions]
