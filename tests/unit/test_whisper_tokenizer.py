"""Whisper's tokenizer: its ids by the files of a folder, and the files that an export writes."""

import json

import pytest

from bigjax.data import tokenizers
from bigjax.data.tokenizers import whisper
from bigjax.data.tokenizers.bpe import byte_characters
from bigjax.errors import UserError
from bigjax.infer import speech
from bigjax.interop import tokenizers as hf
from bigjax.interop.tokenizers import read

CODES = ("en", "zh", "de", "haw", "yue")
MERGES = ("t h", "Ġ t", "th e", "Ġ -", "Ġ '", "( (", "Ġ (", "â Ļ")


def write(folder, english=False, times=True, old=False, **settings):
    """The layout of published folders: text first, then the end, the start, languages, tasks and
    times. English-only ones have the end within the vocabulary."""
    pieces = [*byte_characters().values(), *(m.replace(" ", "") for m in MERGES)]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    if not english:
        vocab[""] = len(vocab)  # as in the published file
    speechless = "nocaptions" if old else "nospeech"
    names = ["endoftext", "startoftranscript", *CODES, "translate", "transcribe", "startoflm"]
    names += ["startofprev", speechless, "notimestamps"]
    names += [f"{0.02 * i:.2f}" for i in range(1501)] if times else []
    added = {f"<|{name}|>": len(vocab) + i for i, name in enumerate(names)}
    if english:
        vocab["<|endoftext|>"] = added.pop("<|endoftext|>")
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    text = "".join(f"{line}\n" for line in ("#version: 0.2", *MERGES))
    (folder / "merges.txt").write_text(text, encoding="utf-8")
    (folder / "added_tokens.json").write_text(json.dumps(added))
    if settings:
        (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def load(folder, english=False, **more):
    return whisper.load(write(folder, english, **more))


@pytest.mark.parametrize("english", [False, True])
def test_ids_by_the_files(english, tmp_path):
    tokenizer = load(tmp_path, english, is_multilingual=not english)
    end = 256 + len(MERGES) + (not english)
    assert tokenizer.eos_id == tokenizer.bos_id == tokenizer.pad_id == end
    assert tokenizer.languages == {code: end + 2 + i for i, code in enumerate(CODES)}
    after = end + 2 + len(CODES)
    translate, transcribe, _, previous, no_speech, no_times = range(after, after + 6)
    assert tokenizer.no_speech_id == no_speech and tokenizer.first_timestamp == no_times + 1
    assert tokenizer.special["<|startofprev|>"] == previous
    assert tokenizer.vocab_size == no_times + 1 + 1501
    assert tokenizer.seconds(no_times) is None and tokenizer.seconds(no_times + 1) == 0.0
    assert tokenizer.seconds(no_times + 1501) == 30.0
    assert tokenizer.seconds(no_times + 1502) is None
    if english:
        assert tokenizer.start() == [end + 1, no_times]
        assert tokenizer.start("en", timestamps=True) == [end + 1]
        for options in (("de",), ("en", "translate")):
            with pytest.raises(UserError, match="English only"):
                tokenizer.start(*options)
    else:
        assert tokenizer.start("de") == [end + 1, end + 4, transcribe, no_times]
        assert tokenizer.start("zh", "translate", timestamps=True) == [end + 1, end + 3, translate]
        for options in (("",), ("english",), ("en", "sing")):
            with pytest.raises(UserError, match="languages are en, zh, de, haw, yue, tasks"):
                tokenizer.start(*options)


def test_text_never_has_special_ids(tmp_path):
    tokenizer = load(tmp_path)
    text = "<|startoftranscript|><|en|> the <|0.00|><|endoftext|>"
    ids = tokenizer.encode(text)
    assert not {*ids.tolist()} & {*tokenizer.special.values()} and tokenizer.decode(ids) == text
    special = [tokenizer.eos_id, *tokenizer.start("en"), tokenizer.first_timestamp]
    assert tokenizer.decode([*special, *tokenizer.encode("the"), 10**6]) == "the"


def test_folders_without_times_have_them_after_the_last_token(tmp_path):
    with_times, without = load(tmp_path / "a"), load(tmp_path / "b", times=False)
    assert without.first_timestamp == with_times.first_timestamp
    assert without.vocab_size == with_times.vocab_size


def test_older_folders_name_no_speech_otherwise(tmp_path):
    assert load(tmp_path / "a").no_speech_id == load(tmp_path / "b", old=True).no_speech_id


def test_suppressed_ids(tmp_path):
    """Of signs that are one id, and the first of those of music; without a file that lists them."""
    tokenizer = load(tmp_path / "a")
    id_of = json.loads((tmp_path / "a" / "vocab.json").read_text(encoding="utf-8"))
    found = {*tokenizer.suppressed}
    signs = {id_of[x] for x in ("Ġ-", "Ġ'", "(", "((", "Ġ(", "#", "~", "âĻ", "Ġ")}
    names = ("startoftranscript", "translate", "transcribe", "startoflm", "startofprev", "nospeech")
    assert found == found & {*range(256 + len(MERGES))} | {
        tokenizer.special[f"<|{name}|>"] for name in names
    }
    assert signs <= found and not {id_of[x] for x in ("-", "'", "the", ",", ".", "?")} & found
    assert tokenizer.suppressed_first == tuple(sorted((id_of["Ġ"], tokenizer.eos_id)))
    given = load(tmp_path / "b", suppress_tokens=[5, 3, 10**6])
    assert given.suppressed == (3, 5)


def test_rules_follow_from_the_tokenizer(tmp_path):
    tokenizer = load(tmp_path)
    rules = speech.rules_of(tokenizer, timestamps=True)
    special = tokenizer.special
    assert (rules.start_id, rules.end_id) == (special["<|startoftranscript|>"], tokenizer.eos_id)
    assert rules.no_speech_id == special["<|nospeech|>"] and rules.timestamps
    assert rules.first_timestamp == special["<|0.00|>"] == rules.no_timestamps_id + 1
    assert rules.suppressed == tokenizer.suppressed and rules.max_first == 50


@pytest.mark.parametrize("english", [False, True])
def test_a_saved_tokenizer_is_the_same(english, tmp_path):
    tokenizer = load(tmp_path / "a", english, old=True, suppress_tokens=[7], is_multilingual=True)
    tokenizer.save(tmp_path / "b")
    again = tokenizers.load(tmp_path / "b")
    assert again.special == tokenizer.special and again.pieces == tokenizer.pieces
    assert again.suppressed == (7,) and again.multilingual
    assert again.fingerprint == tokenizer.fingerprint
    assert again.fingerprint != load(tmp_path / "c", english).fingerprint
    spec = dict(kind="whisper", path=str(tmp_path / "b"))
    assert tokenizers.named(spec).fingerprint == tokenizer.fingerprint


def test_kinds_and_files_of_hugging_face(tmp_path):
    """As published; as transformers 5 saves it, in one file; and as we write it."""
    tokenizer = load(tmp_path / "a", suppress_tokens=[7])
    published = read(tmp_path / "a")
    assert hf.kind(published) == "whisper" and not hf.derived(published)
    vocab = json.loads(published["vocab.json"])
    one = {
        "model": {"type": "BPE", "vocab": vocab, "merges": list(MERGES)},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "added_tokens": [{"content": t, "id": i} for t, i in tokenizer.special.items()],
    }
    files = {"tokenizer.json": json.dumps(one).encode()}
    files["generation_config.json"] = published["generation_config.json"]
    assert hf.kind(files) == "whisper"
    (tmp_path / "b").mkdir()
    for name, content in hf.derived(files).items():
        (tmp_path / "b" / name).write_bytes(content)
    again = whisper.load(tmp_path / "b")
    assert again.special == tokenizer.special and again.suppressed == (7,)
    assert again.encode("the (").tolist() == tokenizer.encode("the (").tolist()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "tokenizer.json").write_bytes(files["tokenizer.json"])
    for name in ("vocab.json", "merges.txt"):  # the special ones are in tokenizer.json alone
        (tmp_path / "c" / name).write_bytes(published[name])
    assert whisper.load(tmp_path / "c").special == tokenizer.special

    ids = dict(bos=tokenizer.bos_id, eos=tokenizer.eos_id, pad=tokenizer.pad_id)
    written = hf.written("whisper", tokenizer.files(), ids, 448)
    config = json.loads(written["tokenizer_config.json"])
    assert config["tokenizer_class"] == "WhisperTokenizer" and config["model_max_length"] == 448
    added = config["added_tokens_decoder"]
    special = {token["content"]: int(i) for i, token in added.items()}
    assert special == tokenizer.special
    times = sorted(int(i) for i, token in added.items() if not token["special"])
    assert times == [*range(tokenizer.first_timestamp, tokenizer.vocab_size)]
    assert json.loads(written["generation_config.json"]) == {"suppress_tokens": [7]}
    assert hf.kind(written) == "whisper"


@pytest.mark.parametrize("english", [False, True])
def test_settings_of_generation_by_the_tokens(english, tmp_path):
    """Without them transformers knows no language, no task and no times of an exported model."""
    tokenizer = load(tmp_path, english)
    tokenizer.multilingual = not english  # known by the ids of published vocabularies
    settings, special = tokenizer.generation_config(448), tokenizer.special
    assert settings["no_timestamps_token_id"] == special["<|notimestamps|>"]
    assert settings["suppress_tokens"] == [*tokenizer.suppressed]
    assert settings["max_length"] == 448 and settings["is_multilingual"] is not english
    assert ("lang_to_id" in settings) is not english
    if not english:
        assert settings["lang_to_id"]["<|de|>"] == tokenizer.languages["de"]
        assert settings["task_to_id"]["translate"] == special["<|translate|>"]
    again = load(tmp_path / "again", english, **settings)
    assert again.suppressed == tokenizer.suppressed and again.multilingual is not english
    assert again.generation_config(448) == settings


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("added_tokens.json", '{"<|endoftext|>": 265}', "it has no <|startoftranscript|>, "),
        ("added_tokens.json", '{"<|endoftext|>": 3}', "have the same id 3"),
        ("added_tokens.json", "[1]", "it must be a JSON object"),
        ("generation_config.json", "{", "is not JSON"),
    ],
)
def test_refused_folders(name, content, message, tmp_path):
    write(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        whisper.load(tmp_path)
