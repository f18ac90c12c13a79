"""How fast encoder-decoders are on this machine's CPU: bigjax against transformers.

    python benchmarks/seq2seq_cpu.py [--json] [--rounds 5] [--jobs train,decode,encode]

train: a training step of T5 small (forward, backward, clipping, AdamW) on 8 pairs of 128 and 64
tokens that are already in memory, without dropout. decode: a beam search with 4 beams for 8 sources
of 128 tokens, 64 new tokens each, as no text ends before. encode: the encoder of Whisper tiny on
log-mel features of one window of 30 seconds. All in float32, with random parameters; those of
`train` are the same on both sides, so that the losses of the first two steps have to agree, which
is checked.

Ours is what `bigjax train`, `bigjax generate` and `bigjax transcribe` run: `train` on two meshes,
the default, a device for each core, and one device with XLA's threads (mesh.data=1); the others on
one device. Theirs is T5ForConditionalGeneration and the encoder of WhisperModel of transformers on
PyTorch, with PyTorch's own number of threads, eager, and for `train` and `encode` also with
torch.compile, which needs a C++ compiler and is skipped without one. The fastest of each counts.
All have the allocator's settings of bigjax/cpu.py. Needs `pip install -e '.[bench]'`.
"""

import argparse
import contextlib
import json
import math
import shutil
import sys
import tempfile

import sides

BATCH, SOURCE, TARGET, VOCABULARY = 8, 128, 64, 32_100
BEAMS, NEW = 4, 64
LEARNING_RATE, B1, B2, WEIGHT_DECAY, CLIP_NORM = 1e-4, 0.9, 0.999, 0.01, 1.0
OURS, THEIRS = ("ours", "ours_threads"), ("eager", "compiled")
FORMS = {  # of each job
    "train": (*THEIRS, *OURS),
    "decode": ("eager", "ours_threads"),
    "encode": (*THEIRS, "ours_threads"),
}
AMOUNTS = {  # of a repetition
    "train": (BATCH * (SOURCE + TARGET), "tokens/s"),
    "decode": (BATCH * NEW, "tokens/s"),
    "encode": (30.0, "seconds of audio/s"),
}
BARS = {"train": 1.1, "decode": 2.0, "encode": 1.0}
TOLERANCES = 1e-4, 2e-3  # of the losses before the first update, and after it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each side")
    parser.add_argument("--jobs", default=",".join(FORMS), help="of train, decode, encode")
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # of the initial parameters
    parser.add_argument("--side", help=argparse.SUPPRESS)  # JOB.FORM
    args = parser.parse_args()
    if args.side:
        job, form = args.side.split(".")
        ours = {"train": our_training, "decode": our_decoding, "encode": our_encoding}
        return ours[job](form, args.folder) if form in OURS else theirs(job, form, args.folder)
    print(sides.load())
    results = {job: _compare(job, args.rounds) for job in args.jobs.split(",")}
    for job, result in results.items():
        print(f"{job:7s} ratio {result['ratio']:.3f} (bar {BARS[job]})")
    if args.json:
        first = min(results.values(), key=lambda result: result["ratio"])
        print(json.dumps({"name": "seq2seq_cpu", **first, "jobs": results}))


def _compare(job: str, rounds: int) -> dict:
    """Speeds of both sides, and their ratio."""
    forms = [form for form in FORMS[job] if form != "compiled" or shutil.which("g++")]
    with tempfile.TemporaryDirectory() as folder:
        sys.argv.append(f"--folder={folder}")  # for the sides
        with contextlib.ExitStack() as stack:
            running = [stack.enter_context(sides.Side(f"{job}.{form}")) for form in forms]
            sys.argv.pop()
            _check([side.about for side in running])
            for side in running:
                print(f"{side.name:20s} {side.about['what']}")
            sides.take_turns(running, 1)  # allocators need a repetition to warm up
            seconds = sides.take_turns(running, rounds, warm=True)
    amount, unit = AMOUNTS[job]
    speed = {}
    for name in seconds:
        speed[name], text = sides.speeds(amount, seconds[name])
        print(f"{name:20s} {text} {unit}")
    best_of = lambda names: max(speed[f"{job}.{name}"] for name in names if name in forms)
    best = {"ours": best_of(OURS), "theirs": best_of(THEIRS)}
    return {**best, "ratio": best["ours"] / best["theirs"], "unit": f"{unit}, {job}"}


def _check(abouts: list[dict]) -> None:
    """All sides must do the same work."""
    if len({about["parameters"] for about in abouts}) > 1:
        raise SystemExit(f"The models differ: {abouts}")
    for about in abouts:
        losses = zip(about.get("losses", ()), abouts[0].get("losses", ()), TOLERANCES)
        for own, first, tolerance in losses:
            if not math.isclose(own, first, rel_tol=tolerance):
                raise SystemExit(f"The losses of the first two steps differ: {abouts}")


def _pairs():
    """Random sources and targets: the speed does not depend on them."""
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.integers(2, VOCABULARY, (BATCH, SOURCE)), rng.integers(
        2, VOCABULARY, (BATCH, TARGET)
    )


def our_training(form: str, folder: str) -> None:
    from bigjax import config

    def batch():
        import numpy as np

        source, targets = (x.astype(np.int32) for x in _pairs())
        positions = lambda x: np.broadcast_to(np.arange(x.shape[1], dtype=np.int32), x.shape)
        return {
            "source": source,
            "source_segment_ids": np.ones_like(source),
            "source_positions": positions(source),
            "targets": targets,
            "segment_ids": np.ones_like(targets),
            "positions": positions(targets),
            "weights": np.ones(targets.shape, np.float32),
        }

    c = config.new_config()
    rates = dict(dropout=0.0, attention_dropout=0.0, mlp_dropout=0.0)
    c.model = dict(name="t5", preset="small", **rates)
    c.task = dict(name="seq2seq")
    c.data = dict(name="text_to_text", seq_len=SOURCE, target_len=TARGET, packing=False)
    sides.use_adamw(c, LEARNING_RATE, B1, B2, WEIGHT_DECAY, CLIP_NORM)
    c.train.batch_size, c.init_from = BATCH, folder
    if form == "ours_threads":
        c.mesh.data = 1
    sides.serve_training(c, batch, "")


def our_decoding(form: str, folder: str) -> None:
    del form, folder
    from bigjax import cpu

    cpu.keep_freed_memory()  # as bigjax/main.py does, before jax is imported
    import jax
    import jax.numpy as jnp

    from bigjax.infer import batch
    from bigjax.models import t5
    from bigjax.trees import count

    c, one = t5.Config(**t5.PRESETS["small"], scan=False), jnp.zeros((1, 1), jnp.int32)
    variables = jax.jit(t5.Model(c).init)(jax.random.key(0), one, one)
    decoder, sources = t5.decoder(c), _pairs()[0].tolist()
    options = batch.Search(width=BEAMS)

    def repeat(_: str) -> None:
        texts = batch.search(decoder, variables, sources, NEW, options, end_id=-1, pad_id=0)
        assert [len(best.ids) for best, *_ in texts] == [NEW] * BATCH

    repeat("")
    what = f"bigjax, jax {jax.__version__}, 1 device"
    sides.serve({"parameters": count(variables), "what": what}, repeat)


def our_encoding(form: str, folder: str) -> None:
    del form, folder
    from bigjax import cpu

    cpu.keep_freed_memory()  # as our other sides
    import jax
    import jax.numpy as jnp

    from bigjax.models import whisper
    from bigjax.trees import count

    c = whisper.Config(**whisper.PRESETS["tiny"], scan=False)
    mel = jax.random.normal(jax.random.key(0), (1, 2 * c.n_positions, c.n_mels))
    model = whisper.Model(c)
    variables = jax.jit(model.init)(jax.random.key(0), mel, jnp.zeros((1, 1), jnp.int32))
    encode = jax.jit(lambda variables, mel: model.apply(variables, mel, method="encode")[0])

    def repeat(_: str) -> None:
        encode(variables, mel).block_until_ready()

    repeat("")
    parameters = count(variables["params"]["encoder"])
    what = f"bigjax, jax {jax.__version__}, 1 device, attention {c.attention}"
    sides.serve({"parameters": parameters, "what": what}, repeat)


def theirs(job: str, form: str, folder: str) -> None:
    from bigjax import cpu  # imports no jax

    cpu.keep_freed_memory()  # as our side
    import torch
    import transformers

    torch.manual_seed(0)
    about: dict = {}
    if job == "encode":
        config = transformers.WhisperConfig(
            d_model=384,
            encoder_layers=4,
            encoder_attention_heads=6,
            encoder_ffn_dim=1536,
            max_source_positions=1500,
        )
        model = transformers.WhisperModel(config).eval().encoder
        mel = torch.randn(1, 80, 3000)
    else:
        model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(dropout_rate=0.0, decoder_start_token_id=0)
        )
        source, targets = (torch.from_numpy(x) for x in _pairs())
    about["parameters"] = sum(p.numel() for p in model.parameters())
    run = torch.compile(model) if form == "compiled" else model
    if job == "train":
        model.train()
        if form == "eager":
            model.save_pretrained(folder)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, betas=(B1, B2), weight_decay=WEIGHT_DECAY
        )

    def train(_: str) -> dict:
        optimizer.zero_grad(set_to_none=True)
        loss = run(input_ids=source, labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        return {"loss": loss.item()}

    def decode(_: str) -> None:
        options = dict(
            num_beams=BEAMS, do_sample=False, eos_token_id=None, decoder_start_token_id=0
        )
        lengths = dict(max_new_tokens=NEW, min_new_tokens=NEW, early_stopping="never")
        with torch.no_grad():
            out = model.eval().generate(source, **options, **lengths)
        assert out.shape == (BATCH, NEW + 1)

    def encode(_: str) -> None:
        with torch.no_grad():
            run(mel)

    repeat = {"train": train, "decode": decode, "encode": encode}[job]
    first = [repeat("") for _ in range(2)]
    if job == "train":
        about["losses"] = [x["loss"] for x in first]
    attention = model.config._attn_implementation
    what = f"transformers {transformers.__version__}, torch {torch.__version__}, {attention} "
    about["what"] = what + f"attention, {torch.get_num_threads()} threads"
    sides.serve(about, repeat)


if __name__ == "__main__":
    main()
