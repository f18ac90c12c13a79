"""A run of seconds on prompts, for tests: set data.train."""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()
    c.model = dict(
        name="gpt", vocab_size=264, max_len=64, d_model=16, n_layers=2, n_heads=2, position="rotary"
    )
    c.task = dict(
        name="ppo" if variant == "ppo" else "grpo",
        rewards=dict(
            short=dict(kind="function", path="tiny_grpo:short"),
            letters=dict(kind="function", path="tiny_grpo:letters", weight=2.0),
        ),
        samples=2 if variant == "ppo" else 4,
        max_new_tokens=6,
        temperature=0.7,
        show_every=2,
    )
    c.data = dict(
        name="prompts",
        train="letters:sort",
        chat_template="plain",
        tokenizer=dict(kind="bytes"),
        seq_len=40,
        valid_fraction=0.1,
        test_fraction=0.0,
    )
    c.optim.learning_rate = 1e-2
    c.optim.schedule = "constant"
    c.train.steps = 4
    c.train.batch_size = 8
    c.checkpoint.every = 2
    c.log.every = 1
    c.log.tensorboard = False
    return c


def short(prompts, completions):
    """Higher for fewer bytes."""
    return [1 - len(text.encode()) / 10 for text in completions]


def letters(prompts, completions, **columns):
    """How many bytes are even, and a bit for each letter of the answer."""
    return [
        sum(b % 2 for b in text.encode()) / 6 + 0.1 * sum(c in text for c in answer)
        for text, answer in zip(completions, columns["answer"])
    ]
