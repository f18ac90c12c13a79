"""The Transformer of 2017, :base and :big, for translation, with the published recipe, for a pod.

Pairs of sentences of your own are required, with columns `source` and `target` (data.columns),
such as WMT 2014's. Published for English to German: BLEU 27.3 (:base) and 28.4 (:big), with a beam
of 4 and a length penalty of 0.6 (of ((5 + length) / 6), which favours length a little less than
ours of the length alone), averages of the last checkpoints. Measured on the full size:
nothing. Expected by `bigjax plan` for :big on v5e:4x4: 2.2 of 15.75 GiB, 0.029 seconds per step,
MFU 35.6%, or 25.2% if no communication overlaps with computation; with four times the batch
(--config.train.batch_size=384) 6.8 GiB, 0.101 seconds, MFU 41.0%, or 36.5%.
"""

# https://arxiv.org/abs/1706.03762, sections 5 and 6.1, table 3. Batches hold about 25,000 source
# tokens and 25,000 target tokens: here 96 packed rows of 256 each.

from bigjax import config

SIZES = {"base": (512, 100_000), "big": (1024, 300_000)}  # d_model, steps


def get_config(variant=""):
    c = config.new_config()
    size = "base" if variant in ("", "tiny") else variant
    d_model, steps = config.variants(size, **SIZES, tiny=None)

    c.model = dict(
        name="t5",
        preset=f"transformer-{size}",
        vocab_size=37120,  # 37,000, padded to divide over devices
        max_len=256,
        dtype="bfloat16",
    )
    c.task = dict(name="seq2seq", label_smoothing=0.1)
    c.data = dict(
        name="text_to_text",
        train="set data.train",
        tokenizer=dict(kind="sentencepiece", vocab_size=37000),
        seq_len=256,
        target_len=256,
        truncate=True,
    )

    c.optim.name = "adamw"
    c.optim.learning_rate = (d_model * 4000) ** -0.5
    c.optim.schedule = "rsqrt"
    c.optim.warmup_steps = 4000
    c.optim.b2 = 0.98
    c.optim.eps = 1e-9
    c.optim.weight_decay, c.optim.clip_norm = 0.0, 0.0

    c.train.steps = steps
    c.train.batch_size = 96

    c.mesh.data = 1
    c.mesh.fsdp = -1

    c.checkpoint.every = 1500
    c.log.every = 100
    c.evals = dict(
        valid=dict(kind="loss", every=1500),
        bleu=dict(kind="generation", every=10_000, examples=512, beam=4, length_penalty=0.6),
    )

    if variant == "tiny":  # under a minute, on docstrings
        c.model.update(vocab_size=2048, max_len=64, d_model=64, n_layers=2, n_heads=2, d_ff=128)
        c.model.update(head_dim=32, dtype="float32", dropout=0.0)
        c.data.train, c.data.tokenizer.vocab_size = "docstrings:summary", 2048
        c.data.seq_len, c.data.target_len = 64, 32
        c.optim.learning_rate, c.optim.warmup_steps = 3e-3, 5
        c.mesh.update(data=-1, fsdp=1)
        c.train.steps, c.train.batch_size, c.checkpoint.every, c.log.every = 20, 16, 10, 5
        c.evals = dict(valid=dict(kind="loss", every=10, batches=4))
    return c
