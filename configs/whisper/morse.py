"""Morse code to text: a small Whisper reads words of docstrings that are keyed by a formula.

The keying drifts in speed between 30 and 40 words per minute, the tone has any pitch between 500
and 700 Hz and fades by up to 6 dB, and noise is 10 dB below it. In three minutes on two cores: a
character error rate of 3.1% on 380 phrases that were not trained on. WORKDIR/evals/look has
pictures of what the model attends to.
"""

from bigjax import config


def get_config(variant: str = ""):
    c = config.new_config()
    audio = dict(sample_rate=4000, max_seconds=3.072)
    c.model = dict(
        name="whisper",
        vocab_size=259,  # bytes
        start_id=256,
        n_fft=192,  # 48 ms
        hop=96,  # 24 ms, so that a position of the encoder is as long as a dot or two
        n_mels=6,  # wide bands: the tone is in one or two of them, whatever its pitch
        max_len=16,
        d_model=64,
        n_layers=2,
        n_decoder_layers=1,
        n_heads=8,
        **audio,
    )
    # Without CTC the model has to find letters and their order at once, and needs twice the steps.
    c.task = dict(name="transcribe", ctc_weight=0.5)
    c.data = dict(
        name="audio",
        train="morse:docstrings",
        tokenizer=dict(kind="bytes"),
        seq_len=16,
        morse=dict(words=2, wpm=(30.0, 40.0), tone=(500.0, 700.0), snr=10.0),
        valid_fraction=0.02,
        test_fraction=0.05,
        **audio,
    )
    c.optim.learning_rate, c.optim.warmup_steps, c.optim.weight_decay = 5e-3, 200, 0.0
    c.optim.schedule, c.optim.b2, c.optim.clip_norm = "cosine", 0.95, 1.0
    c.train.steps, c.train.batch_size = 5000, 16
    c.checkpoint.every, c.log.every = 2500, 100
    c.evals = dict(
        valid=dict(kind="loss", every=1000),
        test=dict(kind="generation", split="test", metrics=("cer", "exact_match"), every=5000),
        look=dict(kind="alignment", every=5000),
    )
    if config.variants(variant, tiny=True):
        c.train.steps, c.log.every, c.optim.warmup_steps = 20, 10, 5
        c.optim.learning_rate = 3e-3
        c.evals = dict(valid=dict(kind="loss", every=10))
    return c
