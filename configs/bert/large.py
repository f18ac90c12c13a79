"""BERT large as published, phase 1 (128 tokens) and :phase2 (512), for a pod.

Text of your own is required. Measured on the full size: nothing.
`:tiny`, 20 steps on the docstrings of installed packages: validation loss 7.31 nats from 8.31, in
about 50 seconds of CPU time.
"""

# Batch, steps, schedule and masking as published (https://arxiv.org/abs/1810.04805, appendix
# A.2, and its code): a million steps with one linear decay, 900,000 of 128 tokens and then 100,000
# of 512. Here the second phase is a separate run, so Adam's moments are re-initialised.

from bigjax import config

PHASES = {  # tokens, masked tokens per row, peak learning rate, final fraction, warm-up, steps
    "phase1": (128, 20, 1e-4, 0.1, 10_000, 900_000),
    "phase2": (512, 80, 1e-5, 0.0, 0, 100_000),
}


def get_config(variant=""):
    c = config.new_config()
    choice = config.variants(variant or "phase1", tiny="phase1", phase1="phase1", phase2="phase2")
    seq_len, max_predictions, learning_rate, final_fraction, warmup_steps, steps = PHASES[choice]

    if choice == "phase2":
        c.init_from = "runs/bert-large-phase1"  # parameters only; needs the same tokenizer
    c.model = dict(
        name="bert",
        preset="large",
        dropout=0.1,
        attention_dropout=0.1,
        dtype="bfloat16",
        remat="dots",
    )
    c.task = dict(name="mlm_nsp", pairs="nsp", max_predictions=max_predictions)

    c.data = dict(
        name="text",
        sources=dict(text=dict(kind="jsonl", path="set data.sources.text.path")),
        tokenizer=dict(
            kind="wordpiece",
            path="set data.tokenizer.path",  # BERT's uncased vocab.txt
        ),
        seq_len=seq_len,
    )

    c.optim.name = "adamw"
    c.optim.learning_rate = learning_rate
    c.optim.schedule = "linear"
    c.optim.warmup_steps = warmup_steps
    c.optim.final_fraction = final_fraction
    c.optim.eps = 1e-6
    c.optim.weight_decay = 0.01
    c.optim.clip_norm = 1.0

    c.train.steps = steps
    c.train.batch_size = 256

    c.mesh.data = -1
    c.mesh.fsdp = 1

    c.checkpoint.every = 5000
    c.log.every = 100
    c.evals = dict(valid=dict(kind="loss", every=5000, batches=20))

    if variant == "tiny":
        config.laptop_size(c, dict(kind="wordpiece", vocab_size=2048), vocab_size=2048)
        c.task.max_predictions = 8
        c.optim.learning_rate = 3e-3  # for a small model
    return c
