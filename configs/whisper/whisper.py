"""Whisper in five sizes (:size_tiny, :base, :small, :medium, :large) with the published recipe, for
a pod.

Recordings with texts are required: a folder, or a table with the columns `audio` and `text`; and
Whisper's tokenizer, a folder with its vocab.json, merges.txt and added_tokens.json. The paper
trains on 680,000 hours. Measured on the full size: nothing. Expected by `bigjax plan` for :small on
v5e:4x4: 2.6 of 15.75 GiB, 0.46 seconds per step, MFU 28.4%.
"""

# https://arxiv.org/abs/2212.04356, appendix F: 2^20 updates of 256 windows of 30 s, AdamW, a linear
# decay to 0 after 2,048 steps. Texts have no timestamps here, and no previous text before them.

from bigjax import config

RATES = {"size_tiny": 1.5e-3, "base": 1e-3, "small": 5e-4, "medium": 2.5e-4, "large": 1.75e-4}


def get_config(variant=""):
    c = config.new_config()
    size = "small" if variant in ("", "tiny") else variant
    rate = config.variants(size, **RATES, tiny=None)

    c.model = dict(
        name="whisper", preset=size.removeprefix("size_"), dtype="bfloat16", remat="full"
    )
    c.task = dict(name="transcribe", language="en")
    c.data = dict(
        name="audio",
        train="set data.train",
        tokenizer=dict(kind="whisper", path="set data.tokenizer.path"),
        max_bad=0.001,
    )

    c.optim.name = "adamw"
    c.optim.learning_rate = rate
    c.optim.schedule = "linear"
    c.optim.warmup_steps = 2048
    c.optim.b2 = 0.98
    c.optim.eps = 1e-6
    c.optim.weight_decay = 0.1
    c.optim.clip_norm = 1.0

    c.train.steps = 2**20
    c.train.batch_size = 256

    c.mesh.data = 1
    c.mesh.fsdp = -1

    c.checkpoint.every = 5000
    c.log.every = 100
    c.evals = dict(
        valid=dict(kind="loss", every=5000, batches=20),
        wer=dict(kind="generation", every=20_000, metrics=("wer", "cer"), normalize=True),
    )

    if variant == "tiny":  # under a minute, on Morse code
        rate = dict(sample_rate=4000, max_seconds=2.0)
        c.model = dict(name="whisper", vocab_size=259, start_id=256, n_fft=128, hop=64, n_mels=16)
        c.model.update(rate, max_len=16, d_model=64, n_layers=2, n_heads=4)
        c.task.language = ""
        c.data = dict(name="audio", tokenizer=dict(kind="bytes"), seq_len=16, **rate)
        c.data.morse = dict(words=1, wpm=(30.0, 50.0))
        c.optim.learning_rate, c.optim.warmup_steps = 2e-3, 5
        c.train.steps, c.train.batch_size, c.checkpoint.every, c.log.every = 20, 16, 10, 5
        c.mesh.update(data=-1, fsdp=1)
        c.evals = dict(valid=dict(kind="loss", every=10, batches=4))
    return c
