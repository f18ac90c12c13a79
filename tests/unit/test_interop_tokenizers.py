"""Tokenizer files of Hugging Face folders: which kind they are, and what is derived from them."""

import json

import pytest

from bigjax.errors import UserError
from bigjax.interop import tokenizers

GPT2_JSON = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    "normalizer": None,
    "added_tokens": [{"id": 3, "content": "<|endoftext|>"}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
}


def as_files(content: dict) -> dict[str, bytes]:
    return {"tokenizer.json": json.dumps(content).encode()}


def test_kinds_of_tokenizers(monkeypatch):
    assert tokenizers.kind({"vocab.txt": b""}) == "wordpiece"
    assert tokenizers.kind(as_files({"model": {"type": "WordPiece"}})) == "wordpiece"
    assert tokenizers.kind({"vocab.json": b"", "merges.txt": b""}) == "bpe"
    assert tokenizers.kind(as_files(GPT2_JSON)) == "bpe"
    assert tokenizers.kind({"tokenizer.model": b"", **as_files(GPT2_JSON)}) == "sentencepiece"
    with monkeypatch.context() as m:  # as if the library could read it
        m.setattr(tokenizers, "_refusal", lambda content: "")
        template = {"chat_template.jinja": b"x"}  # of special tokens that a simpler kind lacks
        assert tokenizers.kind({**as_files(GPT2_JSON), **template}) == "tokenizer_json"
        named = {"tokenizer_config.json": b'{"chat_template": "x"}'}
        assert tokenizers.kind({**as_files(GPT2_JSON), **named}) == "tokenizer_json"
        assert tokenizers.kind(as_files(GPT2_JSON)) == "bpe"
    assert tokenizers.kind({}) == "" and tokenizers.kind({"tokenizer_config.json": b"{}"}) == ""
    # That of Llama 3: byte-level too, but its own regex splits text into words.
    other = {**GPT2_JSON, "pre_tokenizer": {"type": "Sequence", "pretokenizers": []}}
    assert tokenizers.kind(as_files(other)) == ""
    # Those of Qwen and SmolLM have the files of GPT-2 beside it.
    own = {"vocab.json": b"{}", "merges.txt": b""}
    assert tokenizers.kind({**own, **as_files(GPT2_JSON)}) == "bpe"
    assert tokenizers.kind({**own, **as_files(other)}) == ""
    assert tokenizers.derived({**own, **as_files(other)}) == {}
    about = {"tokenizer_config.json": b'{"tokenizer_class": "Qwen2Tokenizer"}'}
    assert tokenizers.kind({**own, **about}) == ""


def test_vocabulary_and_merges_are_derived_from_tokenizer_json():
    made = tokenizers.derived(as_files(GPT2_JSON))
    assert json.loads(made["vocab.json"]) == {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}
    assert made["merges.txt"] == b"#version: 0.2\na b\n"
    old = {**GPT2_JSON, "model": {**GPT2_JSON["model"], "merges": ["a b"]}}
    assert tokenizers.derived(as_files(old)) == made
    assert tokenizers.derived({"vocab.txt": b""}) == {}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"added_tokens": ["<s>"]}, "found '<s>' in added_tokens"),
        ({"added_tokens": [{"id": 3}]}, "in added_tokens, which must be a list"),
        ({"added_tokens": [{"id": "3", "content": "<s>"}]}, "in added_tokens"),
        ({"added_tokens": {"<s>": 3}}, "in added_tokens"),
        ({"model": {"type": "BPE", "vocab": ["a"], "merges": []}}, "JSON object {piece: id}"),
        ({"model": {"type": "BPE", "vocab": {"a": "0"}, "merges": []}}, "piece 'a' is '0'"),
        ({"model": {"type": "BPE", "merges": []}}, "JSON object {piece: id}"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}}}, "the model's merges contain None"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [1]}}, "merges contain 1"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", 1]]}}, "merges contain"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": "a b"}}, "merges contain 'a b'"),
    ],
)
def test_a_damaged_tokenizer_json_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        tokenizers.derived(as_files({**GPT2_JSON, **changes}))


def test_an_export_refuses_damaged_tokenizer_files():
    ids = {"bos": 1, "eos": 1, "pad": 1}
    own = {"vocab.json": b'{"a": 0}', "merges.txt": b""}
    with pytest.raises(UserError, match="vocab.json has no piece with id 1"):
        tokenizers.written("bpe", own, ids, 8)
    with pytest.raises(UserError, match="vocab.json is not JSON"):
        tokenizers.written("bpe", {**own, "vocab.json": b"{"}, ids, 8)
    with pytest.raises(UserError, match="tokenizer_config.json is not JSON"):
        tokenizers.written("wordpiece", {"tokenizer_config.json": b"["}, ids, 8)
    with pytest.raises(UserError, match="tokenizer.json is not JSON"):
        tokenizers.kind({"tokenizer.json": b"[" * 100_000})
