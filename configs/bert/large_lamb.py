"""BERT large with LAMB and batches of 65,536 rows, for a large pod.

8,600 steps in total, phase 1 (128 tokens) and :phase2 (512). Text of your own is required. Measured
on the full size: nothing. Expected by `bigjax plan` for :phase2 on v5e:16x16: 9.59 of 15.75 GiB,
2.56 seconds per step, MFU 25.9%.
"""

# The two batch sizes and the numbers of steps are those of "training BERT in 76 minutes"
# (https://arxiv.org/abs/1904.00962): 65,536 rows of 128 tokens, then :phase2 with 32,768 of 512
# and its own warm-up. Learning rates and warm-ups are those of NVIDIA's published reproduction
# (DeepLearningExamples, BERT), whose decay is a square root where this one is linear.

from bigjax import config

PHASES = {  # tokens, masked tokens per row, peak rate, warm-up, steps, batch, micro-batches
    "phase1": (128, 20, 6e-3, 2_000, 7_038, 65_536, 2),
    "phase2": (512, 80, 4e-3, 200, 1_563, 32_768, 4),
}  # micro-batches that fit 256 chips of v5e, by `bigjax plan`


def get_config(variant=""):
    c = config.new_config()
    choice = config.variants(variant or "phase1", tiny="phase1", phase1="phase1", phase2="phase2")
    seq_len, max_predictions, learning_rate, warmup_steps, steps, *batch = PHASES[choice]

    if choice == "phase2":
        c.init_from = "runs/bert-large-lamb-phase1"  # parameters only; needs the same tokenizer
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

    c.optim.name = "lamb"
    c.optim.learning_rate = learning_rate
    c.optim.schedule = "linear"
    c.optim.warmup_steps = warmup_steps
    c.optim.eps = 1e-6
    c.optim.weight_decay = 0.01
    c.optim.clip_norm = 1.0

    c.train.steps = steps
    c.train.batch_size, c.train.accumulate = batch

    c.mesh.data = 1
    c.mesh.fsdp = -1

    c.checkpoint.every = 500
    c.log.every = 10
    c.evals = dict(valid=dict(kind="loss", every=500, batches=20))

    if variant == "tiny":
        config.laptop_size(c, dict(kind="wordpiece", vocab_size=2048), vocab_size=2048)
        c.task.max_predictions = 8
        c.optim.learning_rate = 3e-2  # for a small model
    return c
