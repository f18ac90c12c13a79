"""Fine-tune an encoder on labelled text: two minutes on two CPU cores.

By default it classifies which of nine libraries a docstring is from: eval/test/accuracy is 0.81
from a run of docstrings.py and 0.75 from scratch (logistic regression on words and pairs of words
has 0.86; benchmarks/bert_finetune.py compares the three). Set init_from to a run or to a Hugging
Face folder, and data.train to a file of your own:

    bigjax train --config=configs/bert/finetune.py --workdir=runs/mine \\
        --config.init_from=runs/bert-docstrings --config.data.train=reviews.tsv \\
        --config.data.columns.text=sentence --config.data.columns.label=label
"""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()

    c.init_from = "runs/bert-docstrings"
    c.model = dict(name="bert", preset="init_from", dropout=0.1, attention_dropout=0.0)
    c.data = dict(
        name="labelled",
        tokenizer=dict(kind="init_from"),
        train="docstrings:library",
        seq_len=96,
        truncate=True,
        packing=True,  # several examples per row, so that little is padding
        valid_fraction=0.03,
        test_fraction=0.03,
    )
    c.task = dict(name="classify")

    c.optim.name = "adamw"
    c.optim.learning_rate = 1.5e-3  # for a small model; 2e-5 to 5e-5 for base and large
    c.optim.schedule = "linear"
    c.optim.warmup_steps = 60
    c.optim.weight_decay = 0.01
    c.optim.layer_decay = 1.0  # below 1: lower layers learn more slowly
    c.optim.freeze = ""  # such as 'embed|stack/layer_0/'

    c.train.steps = 1200
    c.train.batch_size = 16  # rows of seq_len tokens

    c.checkpoint.every = 300
    c.checkpoint.best = "eval/valid/loss"  # which every task has; for --step=best
    c.log.every = 20
    c.evals = dict(
        valid=dict(kind="metrics", every=300),
        test=dict(kind="metrics", every=1200, split="test"),
    )

    choice = config.variants(variant, tiny="tiny", pairs="pairs")
    if choice == "pairs":  # do a title and a body belong together?
        c.data.train = "docstrings:title"
        c.data.columns = dict(pair="pair")
    if choice == "tiny":  # under a minute, from scratch, mostly for reading the text
        c.init_from = ""
        c.model = dict(name="bert", vocab_size=2048, max_len=64, d_model=64, n_layers=2, n_heads=2)
        c.data.tokenizer = dict(kind="wordpiece", vocab_size=2048)
        c.data.seq_len = 64
        c.train.steps = 20
        c.optim.warmup_steps = 5
        c.checkpoint.every = c.log.every = 10
        c.evals.valid.every, c.evals.test.every = 10, 20
    return c
