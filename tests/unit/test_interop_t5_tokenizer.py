"""Tokenizer files of T5: the sentinels that they name, tokenizer.json alone, and ours as such."""

import base64
import io
import json
import random

from etils import epath
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from bigjax import cli
from bigjax.data.tokenizers import load
from bigjax.data.tokenizers import sentencepiece as own_module
from bigjax.errors import UserError
from bigjax.interop import tokenizers
from bigjax.train import import_model, init_from
from bigjax.train import workdir as workdir_lib
from tests.unit.test_interop import write_folder
from tests.unit.test_interop_t5 import stored

PIECES = 34  # the frozen references have 61 tokens
T5_IDS = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
WORDS = "the tensor of a net has rates and stores; one reader sees ten or more trees".split()
NAMES = [f"<extra_id_{i}>" for i in range(100)]


def texts() -> list[str]:
    rng = random.Random(1)
    plain = [" ".join(rng.choices(WORDS, k=8)) for _ in range(200)]
    odd = [
        "",
        " ",
        " two  spaces\n and\ta tab ",
        "ﬁne Ünïcode ½ ①",
        "中文 😀 unknown",
        "</s> <extra_id_0>",
    ]
    return plain + odd


def train(vocab_size: int, **options) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts()[:200]),
        model_writer=model,
        vocab_size=vocab_size,
        num_threads=1,
        minloglevel=5,
        **options,
    )
    return model.getvalue()


@pytest.fixture(scope="session")
def spiece() -> bytes:
    """A SentencePiece model with T5's settings."""
    return train(PIECES, **T5_IDS)


def as_json(model: bytes, n_sentinels: int, new: bool = True) -> dict:
    """The tokenizer.json of a model as transformers 5 writes it; not new: version 4."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    vocab = [(p.piece, p.score) for p in proto.pieces]
    vocab += [(name, 0.0) for name in NAMES[:n_sentinels][::-1]]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2))
    charsmap = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    space = pre_tokenizers.Metaspace(prepend_scheme="always")
    if new:
        tokenizer.normalizer = charsmap
        before = [pre_tokenizers.WhitespaceSplit(), space]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(before)
    else:
        from tokenizers import Regex

        steps = [charsmap, normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), "▁")]
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Sequence(steps), space
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", *NAMES[:n_sentinels]])
    return json.loads(tokenizer.to_str())


def as_files(content: dict, **more) -> dict[str, bytes]:
    return {name: json.dumps(x).encode() for name, x in {"tokenizer.json": content, **more}.items()}


def opened(files: dict[str, bytes], folder) -> own_module.SentencePiece:
    """The tokenizer that an import makes of files."""
    assert tokenizers.kind(files) == "sentencepiece"
    for name, content in (tokenizers.derived(files) or files).items():
        (folder / name).write_bytes(content)
    return own_module.load(epath.Path(folder))


def config(**keys) -> bytes:
    return json.dumps(keys).encode()


@pytest.mark.parametrize(
    "about, n",
    [
        ({}, 100),
        ({"tokenizer_config.json": config(tokenizer_class="T5TokenizerFast")}, 100),
        ({"tokenizer_config.json": config(tokenizer_class="T5Tokenizer", extra_ids=7)}, 7),
        ({"tokenizer_config.json": config(extra_ids=0)}, 0),
        ({"tokenizer_config.json": config(additional_special_tokens=NAMES[:3])}, 3),
        ({"special_tokens_map.json": config(additional_special_tokens=["x", *NAMES[:4]])}, 4),
        (
            {
                "tokenizer_config.json": config(
                    extra_ids=2, extra_special_tokens=[{"content": name} for name in NAMES[:2]]
                )
            },
            2,
        ),
        ({"tokenizer_config.json": config(tokenizer_class="AlbertTokenizer")}, 0),
    ],
)
def test_sentinels_that_the_files_name(tmp_path, spiece, about, n):
    tokenizer = opened({"spiece.model": spiece, **about}, tmp_path)
    assert tokenizer.vocab_size == PIECES + n
    assert [*tokenizer.sentinel_ids] == [*range(PIECES + n - 1, PIECES - 1, -1)]
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2)
    reference = sentencepiece.SentencePieceProcessor(model_proto=spiece)
    for text in texts():
        assert tokenizer.encode(text).tolist() == reference.encode(text)


@pytest.mark.parametrize(
    "about, message",
    [
        ({"extra_ids": 3, "additional_special_tokens": NAMES[:2]}, "extra_ids is 3, and.* 2 names"),
        ({"additional_special_tokens": NAMES[1:3]}, "2 names from <extra_id_1>"),
        ({"extra_ids": "100"}, "extra_ids is '100'"),
        ({"extra_ids": -1}, "extra_ids is -1"),
    ],
)
def test_contradicting_sentinels_are_refused(spiece, about, message):
    files = {"spiece.model": spiece, "tokenizer_config.json": config(**about)}
    with pytest.raises(UserError, match=message):
        tokenizers.derived(files)


@pytest.mark.parametrize("new", [True, False], ids=["transformers-5", "transformers-4"])
def test_the_model_is_built_again_from_tokenizer_json(tmp_path, spiece, new):
    content = as_json(spiece, 10, new)
    tokenizer = opened(as_files(content), tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_proto=spiece)
    theirs = Tokenizer.from_str(json.dumps(content))
    assert [*tokenizer.sentinel_ids] == [*range(PIECES + 9, PIECES - 1, -1)]
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2)
    for text in texts():
        ids = tokenizer.encode(text).tolist()
        assert ids == reference.encode(text)
        if 2 not in ids:  # unknown; SentencePiece writes it as a sign of its own
            assert tokenizer.decode(ids) == reference.decode(ids)
        if "<" not in text:  # a tokenizer of transformers reads special tokens in text as such
            assert ids == theirs.encode(text).ids, text


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["model"].update(byte_fallback=True),
        lambda c: c["model"].update(type="BPE"),
        lambda c: c.update(pre_tokenizer=None),
        lambda c: c.update(pre_tokenizer={"type": "Metaspace", "prepend_scheme": "always"}),
        lambda c: c["pre_tokenizer"]["pretokenizers"][1].update(prepend_scheme="never"),
        lambda c: c["pre_tokenizer"]["pretokenizers"].append({"type": "Digits"}),
        lambda c: c.update(normalizer={"type": "Lowercase"}),
        lambda c: c["added_tokens"].append({"id": 5, "content": "x", "special": False}),
    ],
)
def test_another_tokenizer_json_is_not_that_of_t5(spiece, change):
    content = as_json(spiece, 10)
    assert tokenizers.kind(as_files(content)) == "sentencepiece"
    change(content)
    assert tokenizers.kind(as_files(content)) in ("tokenizer_json", "")
    assert tokenizers.derived(as_files(content)) == {}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["model"]["vocab"].append(["x"]), r"vocab contains \['x'\]"),
        (lambda c: c["model"].update(vocab={"a": 1}), "vocab contains"),
        (
            lambda c: c["model"]["vocab"].append(["x", -1.0]),
            "sentinels <extra_id_...> do not follow",
        ),
        (lambda c: c["model"].update(unk_id=None), "unk_id is None"),
        (lambda c: c["normalizer"].update(precompiled_charsmap="@"), "is not base64"),
    ],
)
def test_a_damaged_tokenizer_json_is_refused(spiece, change, message):
    content = as_json(spiece, 10)
    change(content)
    with pytest.raises(UserError, match=message):
        tokenizers.derived(as_files(content))


def test_sentinels_of_tokenizer_json_and_its_config_have_to_agree(spiece):
    about = {"tokenizer_config.json": {"extra_ids": 100}}
    with pytest.raises(UserError, match="has 10 sentinels.*tokenizer_config.json 100"):
        tokenizers.derived(as_files(as_json(spiece, 10), **about))


def written(model: bytes, n: int) -> dict[str, bytes]:
    own = own_module.SentencePiece(model, sentinels=n)
    ids = dict(bos=own.bos_id, eos=own.eos_id, pad=own.pad_id)
    return tokenizers.written("sentencepiece", {"tokenizer.model": model}, ids, 64, n, ends=True)


@pytest.mark.parametrize("n", [0, 10])
def test_the_files_of_an_exported_tokenizer(tmp_path, spiece, n):
    files = written(spiece, n)
    about = json.loads(files["tokenizer_config.json"])
    assert set(files) == {"spiece.model", "tokenizer_config.json"}
    assert about["tokenizer_class"] == "T5Tokenizer" and about["extra_ids"] == n
    assert "bos_token" not in about and about["pad_token"] == "<pad>"
    assert len(opened(files, tmp_path).sentinel_ids) == n

    trained = own_module.train_sentencepiece(texts()[:200], 270)._model
    files = written(trained, n)
    about = json.loads(files["tokenizer_config.json"])
    assert set(files) == {"tokenizer.model", "tokenizer_config.json"}
    assert about["tokenizer_class"] == "LlamaTokenizer"  # T5Tokenizer has no BPE
    assert about["add_eos_token"] and not about["add_bos_token"] and not about["add_prefix_space"]
    assert about.get("additional_special_tokens", []) == NAMES[:n][::-1]
    (tmp_path / "bpe").mkdir()
    again = opened(files, tmp_path / "bpe")
    assert len(again.sentinel_ids) == n and again.lossless


def test_a_model_that_no_class_reads_is_not_written(spiece):
    assert written(train(PIECES), 0) == {}  # unk has the id 0
    assert written(train(PIECES, **T5_IDS, add_dummy_prefix=False), 0) == {}
    assert written(spiece, 0)


def test_a_folder_of_t5_is_imported_with_its_tokenizer(tmp_path, spiece):
    about, theirs = stored("t5")
    folder = write_folder(tmp_path / "in", about, theirs)
    (folder / "spiece.model").write_bytes(spiece)
    (folder / "tokenizer_config.json").write_bytes(config(extra_ids=27))
    import_model.import_run(folder, tmp_path / "run", lambda text: None)
    tokenizer = load(tmp_path / "run" / "tokenizer")
    assert tokenizer.vocab_size == 61 and tokenizer.sentinel_ids[0] == 60
    (folder / "tokenizer_config.json").write_bytes(config(extra_ids=28))
    with pytest.raises(UserError, match="has 62 tokens, but its model only 61"):
        import_model.import_run(folder, tmp_path / "more", lambda text: None)


def test_a_folder_without_a_tokenizer_is_imported_with_that_of_the_config(tmp_path, spiece):
    folder = write_folder(tmp_path / "in", *stored("t5"))
    (tmp_path / "own.model").write_bytes(spiece)
    run, lines = tmp_path / "run", []
    flags = [
        f"--config.data.tokenizer.path={tmp_path}/own.model",
        "--config.data.tokenizer.kind=sentencepiece",
        "--config.data.tokenizer.sentinels=27",
    ]
    import_model.import_run(folder, run, lines.append, flags)
    assert not any("no tokenizer" in line for line in lines), lines
    (tmp_path / "own.model").unlink()
    tokenizer, saved = load(run / "tokenizer"), workdir_lib.read_config(str(run)).data.tokenizer
    assert (tokenizer.vocab_size, tokenizer.sentinel_ids[0]) == (61, 60)
    assert (saved.kind, saved.path, saved.sentinels) == (
        "sentencepiece",
        str(run / "tokenizer"),
        27,
    )
    assert init_from.open_source(str(run), "").tokenizer_kind == "sentencepiece"
    (tmp_path / "own.model").write_bytes(spiece)
    flags[-1] = "--config.data.tokenizer.sentinels=28"
    with pytest.raises(UserError, match=r"own.model\) has 62 tokens, but the model of .* only 61"):
        import_model.import_run(folder, tmp_path / "more", lines.append, flags)
    assert not (tmp_path / "more").exists()


def test_a_folder_imported_without_a_tokenizer_says_how_to_give_one(tmp_path):
    folder = write_folder(tmp_path / "in", *stored("t5"))
    run, lines = tmp_path / "run", []
    import_model.import_run(folder, run, lines.append)
    assert any("import again" in line and "tokenizer.kind=KIND" in line for line in lines), lines
    assert init_from.open_source(str(run), "").tokenizer_kind == ""
    for command in (["eval"], ["generate", "--prompt=a"]):
        with pytest.raises(UserError, match="has no tokenizer: .* import it again"):
            cli.run([*command, f"--workdir={run}"])


def test_files_of_marian_are_kept_and_named(tmp_path):
    about, theirs = stored("marian")
    folder = write_folder(tmp_path / "in", about, theirs)
    for name in ("source.spm", "target.spm", "vocab.json"):
        (folder / name).write_bytes(base64.b64encode(name.encode()))
    lines: list[str] = []
    import_model.import_run(folder, tmp_path / "run", lines.append)
    assert any("source.spm" in line and "data.tokenizer.kind" in line for line in lines), lines
    kept = tmp_path / "run" / "tokenizer" / "huggingface"
    assert {p.name for p in kept.iterdir()} == {"source.spm", "target.spm", "vocab.json"}
