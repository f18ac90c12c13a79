"""Small encoder-decoders for tests: a T5 on pairs of texts of a table, or :spans on hidden spans of
a text file; :lstm on such pairs; :whisper on recordings of a table."""

from bigjax import config


def get_config(variant=""):
    c = config.new_config()
    c.model = dict(
        name="t5", vocab_size=304, max_len=64, d_model=32, n_layers=2, n_heads=4, d_ff=64
    )
    c.model.update(relative_buckets=8, relative_distance=16, start_id=256)
    c.task = dict(name="seq2seq")
    c.data = dict(
        name="text_to_text",
        train="set me",
        tokenizer=dict(kind="bytes"),
        seq_len=48,
        target_len=24,
        valid_fraction=0.2,
        test_fraction=0.1,
    )
    c.optim.learning_rate = 5e-3
    c.optim.warmup_steps = 2
    c.train.steps = 30
    c.train.batch_size = 8
    c.checkpoint.every = 10
    c.log.every = 5
    c.log.tensorboard = False
    c.evals = dict(valid=dict(kind="loss", every=15))
    kind = config.variants(variant, spans="spans", lstm="lstm", whisper="whisper")
    if kind == "spans":
        c.model.start_id, c.task.name = 0, "span_corruption"
        c.data.name, c.data.packing = "text", False
        c.data.sources = dict(text=dict(kind="text", path="set me"))
        c.data.tokenizer = dict(kind="sentencepiece", vocab_size=280, sentinels=16)
        del c.data.train, c.data.target_len
    if kind == "lstm":
        c.model = dict(name="seq2seq", vocab_size=264, max_len=64, d_model=32, start_id=256)
        c.data.packing, c.optim.learning_rate = False, 1e-2
    if kind == "whisper":
        rate = dict(sample_rate=8000, max_seconds=0.5)
        sizes = dict(d_model=32, n_layers=2, n_heads=4, max_len=40)
        c.model = dict(name="whisper", vocab_size=264, start_id=256, **sizes, **rate)
        c.model.update(n_fft=64, hop=32, n_mels=8)
        c.task = dict(name="transcribe", ctc_weight=0.3, time_masks=1, time_width=20)
        c.data = dict(name="audio", train="set me", tokenizer=dict(kind="bytes"), **rate)
        c.data.update(seq_len=20, valid_fraction=0.2, test_fraction=0.1)
    return c
