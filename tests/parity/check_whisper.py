"""Checks Whisper's import, export and decoding against transformers itself. Run by hand:

    python tests/parity/check_whisper.py [NAME ...]     # needs PyTorch, transformers, bigjax

Tiny random models, saved by transformers with their feature extractor and tokenizer, are imported
into a work folder and exported again. For each it checks that
    outputs  bigjax's logits for audio equal those of transformers
    back     the export has the same files, byte for byte
    new      without the record of its origin, the export opens in transformers, with the same
             logits, features and token ids
    texts    greedy decoding by the published rules, with and without times, writes the same tokens
Last run of the first two with torch 2.13.0, transformers 5.24.0: logits differ by 4.1e-7 at most;
all files and texts are equal.
"""

import json
import pathlib

import jax
import numpy as np
import torch
import transformers

from bigjax import data, interop
from bigjax.data.tokenizers import whisper as tokenizer_lib
from bigjax.infer import speech
from bigjax.infer.generate import Generator, Options
from bigjax.interop import tokenizers as hf_tokenizers
from bigjax.interop import whisper as table
from bigjax.interop.mapping import Architecture
from bigjax.interop.origin import ORIGIN
from bigjax.models import whisper
from bigjax.train import export_model, import_model
from tests.parity.check_transformers import BAR, PROBE, difference, main, same_files
from tests.unit.test_interop_whisper import NAME
from tests.unit.test_whisper_tokenizer import write as write_vocabulary

SECONDS, NEW = 1, 24
# name: (dtype, whether English-only, mel bands)
CASES = {
    "multilingual": ("float32", False, 16),
    "english": ("float32", True, 20),
    "bfloat16": ("bfloat16", False, 16),
    "float16": ("float16", True, 16),
}


def audio() -> np.ndarray:
    rng, time = np.random.default_rng(1), np.arange(SECONDS * 16_000) / 16_000
    tones = [np.sin(2 * np.pi * f * time * (1 + time)) for f in (200, 330, 1234)]
    return (5000 * sum(tones) + rng.normal(0, 200, time.shape)).astype(np.int16)


def make(case: str, folder: pathlib.Path):
    """(model, feature extractor, tokenizer of transformers, ours), saved in the folder."""
    dtype, english, n_mels = CASES[case]
    own = write_vocabulary(folder.with_name("vocabulary"), english, is_multilingual=not english)
    tokenizer = tokenizer_lib.load(own)
    ids = {role: getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad")}
    for name, content in hf_tokenizers.written("whisper", tokenizer.files(), ids, 60).items():
        (own / name).write_bytes(content)
    (own / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    theirs = transformers.AutoTokenizer.from_pretrained(own)
    sizes = dict(d_model=24, encoder_layers=2, decoder_layers=2, max_target_positions=60)
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_attention_heads": 3, f"{side}_ffn_dim": 36}
    config = transformers.WhisperConfig(
        vocab_size=tokenizer.vocab_size,
        num_mel_bins=n_mels,
        max_source_positions=50 * SECONDS,
        decoder_start_token_id=tokenizer.special["<|startoftranscript|>"],
        begin_suppress_tokens=None,
        init_std=0.2,
        **{f"{role}_token_id": i for role, i in ids.items()},
        **sizes,
    )
    torch.manual_seed(3)
    model = transformers.WhisperForConditionalGeneration(config).to(getattr(torch, dtype))
    with torch.no_grad():
        for p in model.parameters():  # norms and biases too
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape).to(p.dtype))
    languages = {f"<|{code}|>": i for code, i in tokenizer.languages.items()}
    tasks = {name: tokenizer.special[f"<|{name}|>"] for name in ("translate", "transcribe")}
    settings = dict(
        _from_model_config=False,
        is_multilingual=not english,
        no_timestamps_token_id=tokenizer.special["<|notimestamps|>"],
        max_initial_timestamp_index=50,
        suppress_tokens=[*tokenizer.suppressed],
        begin_suppress_tokens=[*tokenizer.suppressed_first],
        return_timestamps=False,
        **({} if english else dict(lang_to_id=languages, task_to_id=tasks)),
    )
    for key, value in settings.items():
        setattr(model.generation_config, key, value)
    model.save_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor(n_mels, chunk_length=SECONDS)
    extractor.save_pretrained(folder)
    theirs.save_pretrained(folder)
    return model, extractor, tokenizer


def logits(folder: pathlib.Path, tokens: np.ndarray) -> np.ndarray:
    model, info = transformers.WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    with torch.no_grad():
        out = model.eval()(mel(folder), decoder_input_ids=torch.from_numpy(tokens))
    return out.logits.numpy()


def mel(folder: pathlib.Path) -> torch.Tensor:
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    samples = audio().astype(np.float32) / 32768
    return extractor(samples, sampling_rate=16_000, return_tensors="pt").input_features


def ours(folder: pathlib.Path) -> tuple:
    imported = interop.read(folder)
    tree: dict = {}
    for name in imported.names:
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = imported.load(name).astype(np.float32)
    fields = {k: v for k, v in imported.model.items() if k != "name"}
    return whisper.Config(**fields, scan=False), {"params": tree}


def compare_texts(folder: pathlib.Path, tokenizer, c, variables) -> int:
    """The number of tokens of greedy texts, after checking that they are equal."""
    model = transformers.WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    count = 0
    for timestamps in (False, True):
        options = dict(language="de", task="translate") if tokenizer.multilingual else {}
        expected = model.generate(
            mel(folder), return_timestamps=timestamps, num_beams=1, max_new_tokens=NEW, **options
        )[0].tolist()
        start = tokenizer.start(*options.values(), timestamps=timestamps)
        ruled = speech.ruled(whisper.decoder(c), speech.rules_of(tokenizer, timestamps=timestamps))
        greedy = Options(max_new_tokens=NEW, temperature=0.0, eos_id=tokenizer.eos_id)
        (found,) = Generator(ruled, variables)([(audio(), start)], greedy)
        if expected[: len(start)] == start:
            expected = expected[len(start) :]
        expected = [i for i in expected if i != tokenizer.eos_id]
        if timestamps:  # transformers leaves out what follows the last time
            assert len(expected) > NEW // 2
            found = found[: len(expected)]
        assert found == expected, (timestamps, found, expected)
        count += len(found)
    return count


def check(case: str, root: pathlib.Path) -> None:
    task = Architecture((), {"name": "tests.unit.test_interop_whisper.Speech"})
    table.FAMILY.architectures[NAME] = task  # has the model, and needs no data
    source, quiet = root / "source", lambda text: None
    _, _, tokenizer = make(case, source)
    c, variables = ours(source)
    tokens = np.array([[c.start_id, 5, 9, 300, c.start_id]])
    expected = logits(source, tokens)
    features = whisper.features(c, audio()[None])
    found = jax.jit(whisper.Model(c).apply)(variables, features, tokens).logits
    error = difference([np.asarray(found)], [expected])
    assert error <= BAR, error

    import_model.import_run(source, root / "run", quiet)
    export_model.export_run(root / "run", root / "back", log=quiet)
    same_files(source, root / "back")

    (root / "run" / ORIGIN).unlink()
    export_model.export_run(root / "run", root / "new", log=quiet, dtype=CASES[case][0])
    assert np.array_equal(logits(root / "new", tokens), expected)
    assert torch.equal(mel(root / "new"), mel(source))
    own = data.load_tokenizer(root / "run" / "tokenizer")
    for folder in (root / "new", root / "back"):
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert type(theirs).__name__ == "WhisperTokenizer"
        assert all(theirs.convert_tokens_to_ids(t) == i for t, i in own.special.items())
        for text in PROBE:
            ids = theirs(text, add_special_tokens=False)["input_ids"]
            assert ids == own.encode(text).tolist() == tokenizer.encode(text).tolist()
    n = compare_texts(source, tokenizer, c, variables)
    print(f"{case:<16} {CASES[case][0]:<9} {error:.1e}, {n} tokens of texts")


if __name__ == "__main__":
    main(CASES, check)
