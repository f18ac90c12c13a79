"""Checks the import and export of encoder-decoders against transformers itself. Run by hand:

    python tests/parity/check_seq2seq.py [NAME ...]     # needs PyTorch, transformers, bigjax

Tiny random models of T5, T5 1.1 and Marian, saved by transformers, are imported into a work folder
and exported again. For each it checks that
    outputs  bigjax's outputs equal those of transformers
    back     the export has the same files, byte for byte
    old      so it is with the copies and left-over tensors that older versions wrote
    bin      pytorch_model.bin is refused, with the way to convert it, which gives the same weights
    changed  the export of a run with other weights opens in transformers, with its outputs; without
             the record of its origin, too
    shards   an export in shards opens in transformers, with the same outputs
and of tokenizers, on docstrings of jax and transformers, that ids equal those of transformers
    t5       of spiece.model and of what transformers 5 saves of it, byte for byte both ways
    ours     of a SentencePiece model that bigjax trained, with and without sentinels, and of T5's
Last run with torch 2.15.0, transformers 5.24.0: outputs differ by 2e-6 at most, and all files are
equal, as are the ids of 5,287 docstrings, but for the order of equal pieces in runs of dashes or
zeros in two of them.
"""

import ast
import functools
import io
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.torch import load_file, save_file
import sentencepiece
import torch
import transformers

from bigjax import data, interop, modules
from bigjax.data.tokenizers.sentencepiece import SentencePiece, train_sentencepiece
from bigjax.errors import UserError
from bigjax.interop import tokenizers as hf_tokenizers
from bigjax.interop.origin import ORIGIN
from bigjax.models import t5
from bigjax.train import export_model, import_model
from bigjax.train import load as load_lib
from bigjax.train import workdir as workdir_lib
from bigjax.train.checkpoint import Checkpoints
from bigjax.train.state import State
from tests.parity.check_transformers import BAR, difference, main, same_files

SHARD = 20_000  # bytes
VOCAB = 400
T5 = dict(
    vocab_size=VOCAB,
    d_model=24,
    d_kv=10,
    d_ff=36,
    num_heads=3,
    num_layers=2,
    relative_attention_num_buckets=16,
    relative_attention_max_distance=20,
    decoder_start_token_id=0,
)
V1_1 = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
MARIAN = dict(
    vocab_size=VOCAB,
    d_model=24,
    encoder_layers=2,
    decoder_layers=1,
    encoder_attention_heads=3,
    decoder_attention_heads=3,
    encoder_ffn_dim=36,
    decoder_ffn_dim=36,
    activation_function="swish",
    scale_embedding=True,
    max_position_embeddings=40,
    pad_token_id=VOCAB - 1,
    eos_token_id=0,
    decoder_start_token_id=VOCAB - 1,
)
# config.json as transformers 4 wrote it, for published models
PUBLISHED = {"tie_word_embeddings": False, "n_positions": 512, "scale_decoder_outputs": None}
# name: (class, config, dtype, changes of config.json where None removes a key)
CASES = {
    "t5": ("T5ForConditionalGeneration", {**T5, "num_decoder_layers": 1}, "float32", {}),
    "t5-null": ("T5ForConditionalGeneration", T5, "bfloat16", {"num_decoder_layers": "null"}),
    "t5-gelu": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gelu"}, "float32", {}),
    "1.1": ("T5ForConditionalGeneration", V1_1, "float32", PUBLISHED),
    "1.1-saved": ("T5ForConditionalGeneration", V1_1, "float32", {}),
    "1.1-silu": (
        "T5ForConditionalGeneration",
        {**V1_1, "feed_forward_proj": "gated-silu"},
        "float16",
        PUBLISHED,
    ),
    "1.1-tied": ("T5ForConditionalGeneration", V1_1, "float32", {}),
    "start": ("T5ForConditionalGeneration", {**T5, "decoder_start_token_id": 2}, "float32", {}),
    "body": ("T5Model", T5, "float32", {}),
    "encoder": ("T5EncoderModel", T5, "float32", {}),
    "encoder-1.1": ("T5EncoderModel", V1_1, "float32", PUBLISHED),
    "marian": ("MarianMTModel", MARIAN, "float32", {}),
    "marian-half": (
        "MarianMTModel",
        {**MARIAN, "activation_function": "relu", "scale_embedding": False},
        "float16",
        {},
    ),
    "tokenizers": None,
}
# bigjax reads special tokens as text, and U+2581 as SentencePiece does: as a space
SPECIAL = re.compile("<(pad|unk|/?s|extra_id_[0-9]+)>|\u2581")
OLD = ("t5", "1.1", "1.1-saved", "encoder", "marian")  # cases that are checked in older forms too
LEFT_OVER = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    segments = (np.arange(17) < [[17], [9]]).astype(np.int32)
    ids = lambda n: rng.integers(3, VOCAB - 1, (2, n)).astype(np.int32)
    return dict(source=ids(17), segments=segments, inputs=ids(8))


def opened(folder: pathlib.Path, name: str):
    """The model in a folder, in float32."""
    model, info = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    ignored = {LEFT_OVER, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    assert not info["missing_keys"] and set(info["unexpected_keys"]) <= ignored, info
    return model.eval()


def theirs(folder: pathlib.Path, name: str) -> list[np.ndarray]:
    """Features of the source, and for the class that has them logits of the target."""
    model = opened(folder, name)
    x = {k: torch.from_numpy(v).long() for k, v in inputs().items()}
    source = dict(input_ids=x["source"], attention_mask=x["segments"])
    with torch.no_grad():
        if name == "T5EncoderModel":
            return [real(model(**source).last_hidden_state.numpy())]
        out = model(**source, decoder_input_ids=x["inputs"], use_cache=False)
    logits = [out.logits.numpy()] if "logits" in out else []
    return [real(out.encoder_last_hidden_state.numpy()), *logits]


def real(features: np.ndarray) -> np.ndarray:
    return features[inputs()["segments"] > 0]


@functools.cache
def computed(c: t5.Config):
    """params -> features and logits."""
    model, x = t5.Model(c), inputs()

    def compute(params):
        variables, source = {"params": params}, x["source"]
        features, _ = model.apply(variables, source, x["segments"], method="encode")
        out = model.apply(variables, source, x["inputs"], source_segments_BS=x["segments"])
        return features, out.logits

    to_float = lambda params: jax.tree_util.tree_map(lambda a: a.astype(jnp.float32), params)
    return jax.jit(lambda params: compute(to_float(params)))


def ours(workdir: pathlib.Path, name: str) -> list[np.ndarray]:
    """The same of the latest step of a run."""
    config = workdir_lib.read_config(workdir)
    loaded = load_lib.load(workdir, config, None, None)
    features, logits = computed(modules.options(config, "model"))(loaded.params)
    out = [real(np.asarray(features)), np.asarray(logits)]
    return out[: 1 if name in ("T5EncoderModel", "T5Model") else 2]


def make(case: str, folder: pathlib.Path):
    """Saves a random model, whose output layer is its own where published ones have one."""
    name, config, dtype, changes = CASES[case]
    cls = getattr(transformers, name)
    torch.manual_seed(3)
    model = cls(cls.config_class(**config))
    if name == "T5ForConditionalGeneration" and case.startswith("1.1") and case != "1.1-tied":
        model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCAB, 24))
    with torch.no_grad():
        for n, p in [*model.named_parameters(), *model.named_buffers()]:  # norms and biases too
            if "embed_positions" not in n and p.is_floating_point():
                p.add_(0.1 * torch.randn(p.shape))
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder)
    path = folder / "config.json"
    about = json.loads(path.read_text())
    for key, value in changes.items():
        about.pop(key, None)
        if value is not None:
            about[key] = None if value == "null" else value
    path.write_text(json.dumps(about, indent=2) + "\n")


def imported(source: pathlib.Path, run: pathlib.Path) -> list[str]:
    lines: list[str] = []
    import_model.import_run(source, run, lines.append)
    return lines


def exported(run: pathlib.Path, to: pathlib.Path, **options) -> pathlib.Path:
    export_model.export_run(run, to, log=lambda text: None, **options)
    return to


def check_old(source: pathlib.Path, root: pathlib.Path, name: str) -> None:
    """The names and copies of older versions, in safetensors and in a .bin file."""
    tensors = load_file(source / "model.safetensors")
    shared = next((n for n in ("shared.weight", "model.shared.weight") if n in tensors), None)
    sides = [s for s in ("encoder", "decoder") if any(f"{s}." in n for n in tensors)]
    shared = shared or f"{sides[0]}.embed_tokens.weight"
    prefix = "model." if "model" in shared else ""
    old = {**tensors, shared: tensors[shared]}
    old |= {f"{prefix}{side}.embed_tokens.weight": tensors[shared].clone() for side in sides}
    if name == "T5ForConditionalGeneration":
        old[LEFT_OVER] = torch.randn(16, 3)
    if name in ("T5ForConditionalGeneration", "MarianMTModel"):
        old.setdefault("lm_head.weight", tensors[shared].clone())
    about = (source / "config.json").read_bytes()
    if b'"scale_decoder_outputs": false' in about:  # its lm_head.weight says that it is untied
        old = {n: x for n, x in old.items() if n in tensors or n != "lm_head.weight"}
    folder = root / "old"
    folder.mkdir()
    (folder / "config.json").write_bytes(about)
    save_file(old, folder / "model.safetensors", {"format": "pt"})
    text = "\n".join(imported(folder, root / "run-old"))
    assert "unknown" not in text, text
    same_files(folder, exported(root / "run-old", root / "back-old"))
    assert difference(ours(root / "run-old", name), ours(root / "run", name)) == 0

    binary = root / "bin"
    binary.mkdir()
    (binary / "config.json").write_bytes(about)
    torch.save(old, binary / "pytorch_model.bin")
    try:
        interop.read(binary)
    except UserError as e:
        assert "pytorch_model.bin" in str(e) and "save_pretrained" in str(e)
    else:
        raise AssertionError("pytorch_model.bin was read")
    cls = getattr(transformers, name)
    cls.from_pretrained(binary).save_pretrained(root / "converted")
    imported(root / "converted", root / "run-bin")
    same = difference(ours(root / "run-bin", name), ours(root / "run", name))
    assert same == 0, same


def change(run: pathlib.Path) -> None:
    """Saves step 3 with other weights."""
    loaded = load_lib.load(run, workdir_lib.read_config(run), None, None)
    rng = np.random.default_rng(2)
    noise = lambda x: (np.asarray(x) + 0.05 * rng.normal(size=x.shape)).astype(x.dtype)
    params = jax.tree_util.tree_map(noise, jax.device_get(loaded.params))
    checkpoints = Checkpoints(run, keep=2)
    state = State(jnp.int32(3), params, (), {}, None, jnp.bool_(False))
    checkpoints.save(3, state, {"data": "", "early_stop": {}}, {})
    checkpoints.wait()
    checkpoints.close()


def check(case: str, root: pathlib.Path) -> None:
    if CASES[case] is None:
        return check_tokenizers(root)
    name, _, dtype, _ = CASES[case]
    source, run = root / "source", root / "run"
    make(case, source)
    lines = imported(source, run)
    drawn = "decoder/" in "".join(line for line in lines if "drawn from the seed" in line)
    assert drawn == (name == "T5EncoderModel"), lines
    expected = theirs(source, name)
    error = difference(ours(run, name), expected)
    assert error <= BAR, error
    same_files(source, exported(run, root / "back"))
    shards = exported(run, root / "shards", max_shard_bytes=SHARD)
    assert len([*shards.glob("*.safetensors")]) > 2
    assert difference(theirs(shards, name), expected) == 0
    if case in OLD:
        check_old(source, root, name)

    change(run)
    errors = []
    for what in ("changed", "new"):
        to = exported(run, root / what, dtype="float32")
        saved = json.loads((to / "config.json").read_text())["architectures"][0]
        assert saved == name or name in ("T5EncoderModel", "T5Model"), saved
        errors.append(difference(ours(run, saved), theirs(to, saved)))
        assert errors[-1] <= BAR, (what, errors)
        (run / ORIGIN).unlink(missing_ok=True)
    text = ", ".join(f"{x:.1e}" for x in errors)
    print(f"{case:<12} {name:<27} {dtype:<9} {error:.1e} changed, new: {text} as {saved}")


def docstrings() -> list[str]:
    """About three thousand texts."""
    texts = []
    for package in (jax, transformers):
        for path in sorted(pathlib.Path(package.__file__).parent.rglob("*.py"))[:300]:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
                    texts.append(ast.get_docstring(node) or "")
    return [text for text in texts if text and not SPECIAL.search(text)]


def train_t5(texts: list[str]) -> bytes:
    """A SentencePiece model with the settings of T5's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts for line in text.splitlines()),
        model_writer=model,
        vocab_size=2000,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=5,
    )
    return model.getvalue()


def same_ids(tokenizer, own, texts: list[str]) -> None:
    """With eos; and sentinels have the ids of those of T5. In a long run of one sign the same
    pieces may be in another order, which has the same score: in one text of a thousand."""
    ids = tokenizer(texts)["input_ids"]
    pairs = [(a, [*b, own.eos_id]) for a, b in zip(ids, own.encode_batch(texts))]
    differ = [t for t, (a, b) in zip(texts, pairs) if sorted(a) != sorted(b)]
    assert not differ, (len(differ), differ[0])
    assert sum(a != b for a, b in pairs) <= len(texts) / 1000
    names = [f"<extra_id_{i}>" for i in range(len(own.sentinel_ids))]
    assert tokenizer.convert_tokens_to_ids(names) == [*own.sentinel_ids]
    known = [i for i, x in enumerate(ids) if own.unk_id not in x]
    decoded = tokenizer.batch_decode([ids[i] for i in known], skip_special_tokens=True)
    differ = [(i, text) for i, text in zip(known, decoded) if text != own.decode(ids[i])]
    assert not differ, (len(differ), differ[0])


def check_tokenizers(root: pathlib.Path) -> None:
    texts = docstrings()
    unigram = train_t5(texts)
    source = root / "source"
    cls = transformers.T5ForConditionalGeneration
    cls(transformers.T5Config(**{**T5, "vocab_size": 2128})).save_pretrained(source)
    (source / "spiece.model").write_bytes(unigram)
    about = dict(tokenizer_class="T5Tokenizer", extra_ids=100, eos_token="</s>", pad_token="<pad>")
    (source / "tokenizer_config.json").write_text(json.dumps(about))
    saved = root / "saved"
    opened(source, cls.__name__).save_pretrained(saved)
    transformers.T5Tokenizer.from_pretrained(source).save_pretrained(saved)
    assert not (saved / "spiece.model").exists()
    for folder in (source, saved):
        run = root / f"run-{folder.name}"
        imported(folder, run)
        same_files(folder, exported(run, root / f"back-{folder.name}"))
        own = data.load_tokenizer(run / "tokenizer")
        assert own.vocab_size == 2100 and own.sentinel_ids[0] == 2099, own.vocab_size
        for loader in (transformers.AutoTokenizer, transformers.T5Tokenizer):
            same_ids(loader.from_pretrained(folder), own, texts)
    (run / ORIGIN).unlink()
    new = exported(run, root / "new")
    same_ids(transformers.T5Tokenizer.from_pretrained(new), own, texts)

    trained = train_sentencepiece(texts, 2000)._model
    for family in ("t5", "marian"):
        for i, (model, n) in enumerate([(trained, 0), (trained, 100), (unigram, 0), (unigram, 10)]):
            own = SentencePiece(model, sentinels=n)
            folder = root / f"{family}-{i}"
            folder.mkdir()
            ids = dict(bos=own.bos_id, eos=own.eos_id, pad=own.pad_id)
            files = {"tokenizer.model": model}
            files = hf_tokenizers.written("sentencepiece", files, ids, 512, n, True)
            for name, content in files.items():
                (folder / name).write_bytes(content)
            (folder / "config.json").write_text(json.dumps({"model_type": family}))
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            same_ids(tokenizer, own, texts)
            assert tokenizer.pad_token_id == own.pad_id and tokenizer.eos_token_id == own.eos_id
            print(f"{family} {n} sentinels: {type(tokenizer).__name__}")
    print(f"tokenizers   equal ids for {len(texts):,} docstrings")


if __name__ == "__main__":
    main(CASES, check)
