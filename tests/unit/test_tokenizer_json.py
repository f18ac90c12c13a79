"""data.tokenizer.kind="tokenizer_json": files in the style of published models."""

import filecmp
import json
import shutil
import types

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models

from bigjax.data import load_tokenizer, tokenizers
from bigjax.data.tokenizers import tokenizer_json
from bigjax.data.tokenizers.sentencepiece import train_sentencepiece
from bigjax.errors import UserError
from bigjax.infer import texts
from bigjax.infer.generate import Options
from bigjax.interop import tokenizers as hf
from bigjax.interop.origin import ORIGIN
from bigjax.train import export_model, import_model
from bigjax.train import load as load_lib
from bigjax.train import workdir as workdir_lib
from tests.published_tokenizers import FAMILIES, LOSSLESS, PROBES, SPECIAL_PROBES, TEMPLATE, write
from tests.unit.test_data_tokenizer import WEIRD
from tests.unit.test_infer_texts import Written
from tests.unit.test_interop import stored, write_folder

# The pieces of leading_ids, bos, eos, pad and unk.
ROLES = {
    "llama3": (["<|begin_of_text|>"], "<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>", None),
    "qwen": ([], "<|im_end|>", "<|im_end|>", "<|endoftext|>", None),
    "gemma": (["<bos>"], "<bos>", "<eos>", "<pad>", "<unk>"),
    "llama2": (["<s>"], "<s>", "</s>", "<unk>", "<unk>"),
    "mistral": (["<s>"], "<s>", "</s>", "</s>", "<unk>"),
    "neox": ([], "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", None),
    "smollm": ([], "<|endoftext|>", "<|im_end|>", "<|im_end|>", None),
    "unigram": (["<s>"], "<s>", "</s>", "<pad>", "<unk>"),
    "wordpiece": (["[CLS]"], "[CLS]", "[SEP]", "[PAD]", "[UNK]"),
    "wordlevel": ([], "</s>", "</s>", "</s>", "<unk>"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {family: write(family, root / family) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request, folders):
    return types.SimpleNamespace(
        name=request.param,
        folder=folders[request.param],
        tokenizer=tokenizer_json.load(folders[request.param]),
        rust=Tokenizer.from_file(str(folders[request.param] / "tokenizer.json")),
    )


def changed(folder, to, file="tokenizer.json", **changes):
    """A copy of a folder with other values in one of its files."""
    shutil.copytree(folder, to)
    path = to / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))
    return to


def test_special_tokens_and_what_comes_before_a_text(family):
    t, text_of = family.tokenizer, family.rust.id_to_token
    roles = [None if i is None else text_of(i) for i in (t.bos_id, t.eos_id, t.pad_id, t.unk_id)]
    assert ([text_of(i) for i in t.leading_ids], *roles) == ROLES[family.name]
    decoder = types.SimpleNamespace(continues=True)
    (prompt,) = texts.prompt_ids(t, ["The fox"], decoder)
    assert prompt == [*t.leading_ids, *t.encode("The fox").tolist()]
    whole = family.rust.encode("The fox").ids
    assert prompt == whole[: len(prompt)] and set(whole[len(prompt) :]) <= {t.eos_id}


def test_ids_are_those_of_the_library_and_special_tokens_are_text(family):
    t = family.tokenizer
    special = {*t.special.values()} - {t.unk_id}
    for text, ids in zip(PROBES, t.encode_batch(PROBES)):
        assert ids.dtype == np.int32
        assert ids.tolist() == family.rust.encode(text, add_special_tokens=False).ids
        np.testing.assert_array_equal(ids, t.encode_with_specials(text))
    family.rust.add_special_tokens(["<unk>"] * (family.name == "wordlevel"))  # named by a file
    for text in SPECIAL_PROBES:
        assert not special & {*t.encode(text).tolist()}, text
        parsed = t.encode_with_specials(text)
        assert parsed.dtype == np.int32
        assert parsed.tolist() == family.rust.encode(text, add_special_tokens=False).ids
    for text, i in t.special.items():
        assert t.encode_with_specials(text).tolist() == [i] and t.pieces[i] == b""
        assert i not in t.encode(f"a{text}b {text}").tolist() or i == t.unk_id


def test_texts_are_restored(family):
    t = family.tokenizer
    assert t.lossless is (family.name in LOSSLESS)
    for text in PROBES + SPECIAL_PROBES + WEIRD:
        ids = t.encode(text)
        decoded = t.decode([*t.leading_ids, *ids, t.eos_id, 10**6, -1])
        if t.lossless:
            assert decoded == text and t.token_bytes[ids].sum() == len(text.encode())
        elif t.unk_id not in ids:
            assert decoded == family.rust.decode(ids.tolist())
        if t.lossless or family.name == "gemma" and "\u2581" not in text:
            assert decoded == text
    with pytest.raises(UserError, match=r"\\ud800.*lone surrogate"):
        t.encode_with_specials("fine \ud800")
    assert t.encode_batch([]) == [] and t.encode("").tolist() == []


def test_added_tokens_without_special_meaning_are_parts_of_texts(folders, tmp_path):
    qwen, gemma = (tokenizer_json.load(folders[name]) for name in ("qwen", "gemma"))
    (i,) = qwen.encode("<tool_call>").tolist()
    assert qwen.pieces[i] == b"<tool_call>" and "<tool_call>" not in qwen.special
    rust = Tokenizer.from_file(str(folders["qwen"] / "tokenizer.json"))
    rust.add_tokens([AddedToken("<é>", normalized=False)])  # which the library decodes as a byte
    folder = shutil.copytree(folders["qwen"], tmp_path / "new")
    rust.save(str(folder / "tokenizer.json"))
    new = tokenizer_json.load(folder)
    assert new.encode("a<é>")[-1] == qwen.vocab_size and new.decode(new.encode("a<é>")) == "a<é>"
    assert gemma.decode(gemma.encode("a\n\nb")) == "a\n\nb"
    assert b"\n\n" in [gemma.pieces[i] for i in gemma.encode("a\n\nb")]


def test_saved_and_loaded(family, tmp_path):
    t = tokenizers.named({"kind": "tokenizer_json", "path": str(family.folder)}, lambda text: None)
    t.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (again.kind, again.fingerprint) == ("tokenizer_json", t.fingerprint)
    assert again.pieces == t.pieces and again.leading_ids == t.leading_ids
    by_file = tokenizer_json.load(family.folder / "tokenizer.json")
    assert by_file.fingerprint == t.fingerprint
    other = changed(family.folder, tmp_path / "other", version="1.0 ")
    content = json.loads((other / "tokenizer.json").read_text()) | {"version": "1.0"}
    (other / "tokenizer.json").write_text(json.dumps(content))  # the same, written otherwise
    assert tokenizer_json.load(other).fingerprint != t.fingerprint


def test_a_tokenizer_that_loses_text_says_so(folders):
    lines = []
    for name in ("qwen", "llama3"):
        tokenizers.named({"kind": "tokenizer_json", "path": str(folders[name])}, lines.append)
    assert len(lines) == 1 and "qwen does not keep every text" in lines[0]


def test_padding_truncation_and_dropout_of_the_file_are_ignored(folders, tmp_path):
    rust = Tokenizer.from_file(str(folders["llama3"] / "tokenizer.json"))
    rust.enable_truncation(3)
    rust.enable_padding(length=9)
    rust.model.dropout = 0.9
    folder = shutil.copytree(folders["llama3"], tmp_path / "new")
    rust.save(str(folder / "tokenizer.json"))
    t, plain = tokenizer_json.load(folder), tokenizer_json.load(folders["llama3"])
    for a, b in zip(t.encode_batch(PROBES), plain.encode_batch(PROBES)):
        np.testing.assert_array_equal(a, b)


def test_pieces_of_a_stream_never_split_a_character(folders):
    for name in ("llama3", "gemma", "llama2"):
        t, text = tokenizer_json.load(folders[name]), "a 中文 \U0001f600 e\u0301x"
        ids = t.encode(text).tolist()
        written = Written([ids], 1)
        (prompt,) = texts.prompt_ids(t, ["The"], types.SimpleNamespace(continues=True))
        pieces = [piece for _, piece in texts.stream(written, t, [prompt], Options())]
        expected = t.decode([*prompt, *ids]).removeprefix("The")
        assert "".join(pieces) == expected and expected.strip() == text and len(pieces) > 8
        assert not any("\ufffd" in piece for piece in pieces)
        assert t.decode(t.encode("\U0001f600")[:-1]).strip("\ufffd") == ""


def test_where_special_tokens_are_named(folders, tmp_path):
    source = folders["llama3"]
    end = json.loads((source / "tokenizer.json").read_text())["added_tokens"][1]
    named = lambda to, **files: tokenizer_json.load(rewritten(source, tmp_path / to, files))
    t = named("map", **{"special_tokens_map.json": {"eos_token": {"content": end["content"]}}})
    assert t.eos_id == t.bos_id == t.pad_id == end["id"]
    ids = {"eos_token_id": [end["id"], 3], "pad_token_id": end["id"] + 1}
    t = named("generation", **{"generation_config.json": ids})
    assert (t.eos_id, t.bos_id, t.pad_id) == (end["id"], end["id"], end["id"] + 1)
    config = {"model_type": "x", "text_config": {"eos_token_id": end["id"]}}
    t = named("config", **{"config.json": config})
    assert t.eos_id == end["id"]
    t.kind = "tokenizer_json"
    t.save(tmp_path / "saved")  # without a config.json
    assert load_tokenizer(tmp_path / "saved").fingerprint == t.fingerprint
    # A token of the model's vocabulary becomes special by its name, one of another file is added.
    more = {str(end["id"] + 3): {"content": "<new>", "special": True}}
    settings = {"eos_token": "<new>", "mask_token": "the", "added_tokens_decoder": more}
    t = named("added", **{"tokenizer_config.json": settings})
    assert t.eos_id == end["id"] + 3 and "<new>" in t.special


def rewritten(source, to, files):
    """tokenizer.json of a folder, and other files."""
    to.mkdir()
    shutil.copy(source / "tokenizer.json", to)
    for name, content in files.items():
        (to / name).write_text(json.dumps(content))
    return to


BAD = {
    "no eos": ({}, "no file names the token that ends a text. Add a tokenizer_config.json"),
    "unknown eos": (
        {"tokenizer_config.json": {"eos_token": "<end>"}},
        "eos_token is '<end>', which tokenizer.json lacks",
    ),
    "outside": (
        {"generation_config.json": {"eos_token_id": 9999}},
        "eos_token_id is 9999, but tokenizer.json has 333 tokens",
    ),
    "settings": ({"tokenizer_config.json": []}, r"tokenizer_config.json holds \[\]"),
    "decoder": (
        {"tokenizer_config.json": {"added_tokens_decoder": {"x": {"content": "<s>"}}}},
        "in added_tokens_decoder, which must be like",
    ),
    "decoder's id": (
        {"tokenizer_config.json": {"added_tokens_decoder": {"900": {"content": "<new>"}}}},
        "'<new>' has the id 900, but the library gives it 333",
    ),
    "json": ({"tokenizer.json": "["}, "tokenizer.json is not JSON"),
    "type": (
        {"tokenizer.json": {"model": {"type": "Tree"}, "added_tokens": []}},
        r"the library `tokenizers` does not read tokenizer.json \(.*ModelUntagged",
    ),
    "added": (
        {"tokenizer.json": {"added_tokens": [{"id": "x", "content": "<s>"}]}},
        "does not read|in added_tokens, which must be a list",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_files_are_refused(folders, tmp_path, case):
    files, message = BAD[case]
    folder = rewritten(folders["llama3"], tmp_path / "x", files)
    if files.get("tokenizer.json") == "[":
        (folder / "tokenizer.json").write_text("[")
    with pytest.raises(UserError, match=message) as e:
        tokenizer_json.load(folder)
    assert str(folder) in str(e.value)


def test_an_id_that_the_library_would_not_give_is_refused(folders, tmp_path):
    content = json.loads((folders["llama3"] / "tokenizer.json").read_text())
    content["added_tokens"][-1]["id"] += 5
    folder = changed(folders["llama3"], tmp_path / "x", added_tokens=content["added_tokens"])
    with pytest.raises(UserError, match=r"'<\|eot_id\|>' has the id 337, but .* gives it 332"):
        tokenizer_json.load(folder)


def test_a_missing_file_or_path(tmp_path):
    spec = {"kind": "tokenizer_json", "path": ""}
    with pytest.raises(UserError, match="data.tokenizer.path is empty. Set it to a folder"):
        tokenizers.named(spec)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(UserError, match="tokenizer.json does not exist"):
            tokenizers.named({**spec, "path": str(path)})


def test_a_text_that_the_model_cannot_encode(tmp_path):
    rust = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="?"))
    rust.add_special_tokens([AddedToken("</s>", special=True)])
    rust.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(UserError, match="cannot encode a text .*unk|UNK"):
        tokenizer_json.load(tmp_path).encode("b")


def test_chat_templates(folders, tmp_path):
    assert tokenizer_json.load(folders["qwen"]).chat_templates == {"default": TEMPLATE}
    assert tokenizer_json.load(folders["llama3"]).chat_templates == {}
    several = [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]
    folder = changed(
        folders["qwen"], tmp_path / "x", "tokenizer_config.json", chat_template=several
    )
    assert tokenizer_json.load(folder).chat_templates == {"default": "a", "rag": "b"}
    (folder / "chat_template.jinja").write_text("c é")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("d")
    t = tokenizers.named({"kind": "tokenizer_json", "path": str(folder)}, lambda text: None)
    assert t.chat_templates == {"default": "c é", "rag": "b", "tools": "d"}
    t.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").chat_templates == t.chat_templates
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match="chat_template.jinja is not UTF-8"):
        tokenizer_json.load(folder)


# --- Import and export -------------------------------------------------------------------------


def files_of(folder):
    return hf.read(folder)


def test_kinds_of_folders(folders):
    """Kinds that do exactly what tokenizer.json says come first."""
    for folder in folders.values():
        assert hf.kind(files_of(folder)) == "tokenizer_json"
    qwen = files_of(folders["qwen"])  # published with files of the names of GPT-2's
    assert hf.kind({**qwen, "vocab.json": b"{}", "merges.txt": b""}) == "tokenizer_json"
    gpt2 = json.loads(qwen["tokenizer.json"]) | {"normalizer": None}
    gpt2["pre_tokenizer"] = {
        **{"type": "ByteLevel", "add_prefix_space": False},
        **{"trim_offsets": True, "use_regex": True},
    }
    as_files = lambda content, **settings: {
        "tokenizer.json": json.dumps(content).encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
        "vocab.json": b"{}",
        "merges.txt": b"",
    }
    assert hf.kind(as_files(gpt2)) == "tokenizer_json"  # <tool_call> is text
    gpt2["added_tokens"] = [token for token in gpt2["added_tokens"] if token["special"]]
    assert hf.kind(as_files(gpt2)) == hf.kind(as_files(gpt2, eos_token="<|endoftext|>")) == "bpe"
    assert hf.kind(as_files(gpt2, eos_token="<|im_end|>")) == "tokenizer_json"
    unknown = {**gpt2, "pre_tokenizer": {"type": "New"}}
    only = {"tokenizer.json": json.dumps(unknown).encode()}
    assert hf.kind(only) == "" and "does not read this tokenizer.json (" in hf.unread(only)
    assert hf.kind(as_files(unknown)) == ""  # GPT-2's words may be other ones


def test_kind_of_a_sentencepiece_model_with_more_tokens(folders):
    n = 270
    model = train_sentencepiece(["a b c d e f"] * 9, n)._model
    content = json.loads(files_of(folders["llama2"])["tokenizer.json"])
    vocab = {"<unk>": 0} | {f"p{i}": i for i in range(1, n)}
    content["model"] |= {"vocab": vocab, "merges": []}
    content["post_processor"] = None
    first = content["added_tokens"][0]

    def kind(*tokens, eos="</s>"):
        added = [first, *({**first, "id": n, "content": t, "special": x} for t, x in tokens)]
        return hf.kind(
            {
                "tokenizer.model": model,
                "tokenizer.json": json.dumps({**content, "added_tokens": added}).encode(),
                "tokenizer_config.json": json.dumps({"eos_token": eos}).encode(),
            }
        )

    assert kind() == kind(("<pad>", True)) == kind(("<extra_id_0>", False)) == "sentencepiece"
    assert kind(("<|end|>", True), eos="<|end|>") == "tokenizer_json"  # as of Phi-3
    assert kind(("<tool>", False)) == "tokenizer_json"


def llama(folder, family, tmp_path, vocab_size=448):
    """A folder of a Llama with a tokenizer, and more rows than tokens."""
    config, tensors, _ = stored("LlamaForCausalLM")
    wide = {
        name: np.resize(x, (vocab_size, x.shape[1]))
        if name in ("model.embed_tokens.weight", "lm_head.weight")
        else x
        for name, x in tensors.items()
    }
    source = shutil.copytree(folder, tmp_path / family)
    ids = {"bos_token_id": None, "eos_token_id": 5}
    return write_folder(source, {**config, **ids, "vocab_size": vocab_size}, wide)


def assert_same_files(a, b):
    names = sorted(str(p.relative_to(a)) for p in a.rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(b)) for p in b.rglob("*") if p.is_file())
    assert not [n for n in names if not filecmp.cmp(a / n, b / n, shallow=False)]


@pytest.mark.usefixtures("one_device")
def test_an_imported_folder_is_exported_unchanged(folders, tmp_path):
    source = llama(folders["qwen"], "qwen", tmp_path)
    (source / "chat_template.jinja").write_text("c")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("d")
    lines = []
    import_model.import_run(source, tmp_path / "run", lines.append)
    assert not any("other files" in line for line in lines)
    config = workdir_lib.read_config(tmp_path / "run")
    assert config.data.tokenizer.kind == "tokenizer_json"
    t = load_tokenizer(tmp_path / "run" / "tokenizer")
    assert t.chat_templates == {"default": "c", "tools": "d"} and t.leading_ids == ()
    assert t.fingerprint == tokenizer_json.load(source).fingerprint
    export_model.export_run(tmp_path / "run", tmp_path / "out", log=lines.append)
    assert_same_files(source, tmp_path / "out")

    # Without the record of its origin, as after training.
    (tmp_path / "run" / ORIGIN).unlink()
    export_model.export_run(tmp_path / "run", tmp_path / "new", log=lines.append)
    new = tokenizer_json.load(tmp_path / "new")
    assert new.fingerprint == t.fingerprint and new.chat_templates == t.chat_templates
    settings = json.loads((tmp_path / "new" / "tokenizer_config.json").read_text())
    assert settings["bos_token"] is None and settings["eos_token"] == "<|im_end|>"
    name = "tokenizer.json"
    assert (tmp_path / "new" / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.usefixtures("one_device")
def test_ids_that_only_the_models_config_names(folders, tmp_path):
    source = llama(folders["llama3"], "llama3", tmp_path)
    (source / "tokenizer_config.json").unlink()
    (source / "generation_config.json").write_text('{"do_sample": true}')
    import_model.import_run(source, tmp_path / "run", lambda text: None)
    t = load_tokenizer(tmp_path / "run" / "tokenizer")
    assert t.eos_id == 5 and len(t.leading_ids) == 1
    export_model.export_run(tmp_path / "run", tmp_path / "out", log=lambda text: None)
    assert_same_files(source, tmp_path / "out")
    loaded = load_lib.load(tmp_path / "run", workdir_lib.read_config(tmp_path / "run"), None, None)
    assert loaded.step == 0


@pytest.mark.usefixtures("one_device")
def test_an_import_by_tokenizer_json_although_another_kind_does(folders, tmp_path):
    """As of a Gemma with tokenizer.model, whose chat templates need special tokens in texts."""
    source = llama(folders["mistral"], "mistral", tmp_path)
    model = train_sentencepiece(["a b c d e f"] * 9, 270)._model
    (source / "tokenizer.model").write_bytes(model)
    for run, kind in (("a", "sentencepiece"), ("b", "tokenizer_json")):
        flags = [f"--config.data.tokenizer.kind={kind}"] * (kind == "tokenizer_json")
        import_model.import_run(source, tmp_path / run, lambda text: None, flags)
        assert workdir_lib.read_config(tmp_path / run).data.tokenizer.kind == kind
        t = load_tokenizer(tmp_path / run / "tokenizer")
        assert t.kind == kind and (t.vocab_size == 270) is (run == "a")
        export_model.export_run(tmp_path / run, tmp_path / f"{run}-out", log=lambda text: None)
        assert_same_files(source, tmp_path / f"{run}-out")
    (source / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="kind=tokenizer_json would have no effect"):
        import_model.import_run(source, tmp_path / "c", lambda text: None, flags)


@pytest.mark.usefixtures("one_device")
def test_an_import_that_cannot_work_names_the_folder(folders, tmp_path):
    source = llama(folders["llama3"], "llama3", tmp_path, vocab_size=320)
    with pytest.raises(UserError, match="has 333 tokens, but its model only 320"):
        import_model.import_run(source, tmp_path / "run", lambda text: None)
    (source / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    with pytest.raises(UserError, match="eos_token is '<end>'") as e:
        import_model.import_run(source, tmp_path / "run", lambda text: None)
    assert str(source) in str(e.value) and ".tmp" not in str(e.value)
