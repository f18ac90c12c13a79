"""Small tokenizer.json files in the style of published models, made by the `tokenizers` library."""

import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, processors, trainers
from tokenizers import decoders as D
from tokenizers import models as M
from tokenizers import normalizers as N
from tokenizers import pre_tokenizers as P

TEXTS = [
    f"The {a} {b}, {i} times; isn't it?\n    def f(x):\n        return {i}\n\n中文和{a}、สวัสดี {b}"
    for i, (a, b) in enumerate((a, b) for a in ("quick", "naïve", "lazy") for b in ("fox", "dogs"))
]
PROBES = [
    "",
    " ",
    "The quick fox isn't lazy.",
    "  two  spaces,   and   12345 digits ",
    "a\n\n  b\t\r\n c\n\n\n\r\n\td",
    "\U0001f600\u200d\U0001f467 emoji \U0001f469\u200d\U0001f680!",
    "สวัสดีครับ ฝนตกหนัก",
    "中文和日本語、ハングル 한국어",
    "e\u0301 \u00e9 n\u0303 \ufb01 \u2167 \u1e9b\u0323",
    "NUL \x00 and \x01\x7f",
    "\ufeffx\u2028y\u0085z\u00a0\u3000",
    "I'M HERE, We'Ve It'S",
    "def f(x):\n        return  x  # 3.14",
    "\u2581 real \u2581\u2581a",
    "<0x41><0xE4>",
    "trailing\n",
]
# Texts with the special tokens of these files.
SPECIAL_PROBES = [
    "<|im_start|>user\nHi<|im_end|>\n",
    "a <|begin_of_text|> b<|eot_id|>c <|endoftext|>",
    "<s>[INST] x [/INST]</s> <unk><pad>",
    "<bos><start_of_turn>user\n\n\nx<end_of_turn>  <eos>",
    "<tool_call>{}</tool_call>",
    " <|end|>   x <|end|>",
]
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LOSSLESS = ("llama3", "smollm")  # the others normalise, or read U+2581 as a space
TEMPLATE = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"


def special(text: str, **flags) -> AddedToken:
    return AddedToken(text, **{"special": True, "normalized": False, **flags})


def byte_level(before, normalizer=None, **options) -> Tokenizer:
    """A BPE of bytes; before: the pre-tokenizer."""
    tokenizer = Tokenizer(M.BPE(**options))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer, tokenizer.decoder = before, D.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(P.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 5, trainer)
    return tokenizer


def split_by(pattern: str):
    bytes_ = P.ByteLevel(add_prefix_space=False, use_regex=False)
    return P.Sequence([P.Split(Regex(pattern), "isolated"), bytes_])


def with_bytes(specials: list[str], normalizer, before, decoder) -> Tokenizer:
    """A BPE of characters, with bytes for others, as SentencePiece's; specials begin its vocab."""
    learner = Tokenizer(M.BPE())
    learner.normalizer = N.Replace(" ", "\u2581")
    if before:
        learner.pre_tokenizer = before
    learner.train_from_iterator(TEXTS * 5, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    model = json.loads(learner.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    runs = ["\u2581\u2581", "\n\n"] if "<start_of_turn>" in specials else []
    new = [p for p in runs if p not in model["vocab"]]
    all_ = [*specials, *(f"<0x{b:02X}>" for b in range(256)), *new, *pieces]
    merges = [tuple(m) for m in model["merges"]]
    vocab = {p: i for i, p in enumerate(all_)}
    tokenizer = Tokenizer(
        M.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if normalizer:
        tokenizer.normalizer = normalizer
    if before:
        tokenizer.pre_tokenizer = before
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens([special(text) for text in specials])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in runs])
    return tokenizer


def begins_with(tokenizer: Tokenizer, bos: str) -> None:
    """Puts a bos before texts."""
    ids = [(bos, tokenizer.token_to_id(bos))]
    template = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos}:1 $B:1", ids)
    tokenizer.post_processor = (
        processors.Sequence([tokenizer.post_processor, template])
        if (tokenizer.post_processor)
        else template
    )


def spaced(strip: bool) -> D.Sequence:
    steps = [D.Replace("\u2581", " "), D.ByteFallback(), D.Fuse()]
    return D.Sequence([*steps, D.Strip(" ", 1, 0)] if strip else steps)


def llama3():
    t = byte_level(split_by(GPT4), ignore_merges=True)
    t.add_special_tokens(
        [special(f"<|{n}|>") for n in ("begin_of_text", "end_of_text", "start_header_id", "eot_id")]
    )
    begins_with(t, "<|begin_of_text|>")
    n = t.token_to_id("<|begin_of_text|>")
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    return (
        t,
        config,
        {"generation_config.json": {"bos_token_id": n, "eos_token_id": [n + 1, n + 3]}},
    )


def qwen():
    t = byte_level(split_by(GPT4.replace("{1,3}", "")), N.NFC())
    t.add_special_tokens([special(f"<|{n}|>") for n in ("endoftext", "im_start", "im_end")])
    t.add_tokens([AddedToken(x, normalized=False) for x in ("<tool_call>", "</tool_call>")])
    config = {
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": TEMPLATE,
        "unk_token": None,
    }
    return t, config, {}


def gemma():
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    before = P.Split(" ", "merged_with_previous")
    t = with_bytes(specials, N.Replace(" ", "\u2581"), before, spaced(strip=False))
    begins_with(t, "<bos>")
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return t, named, {}


def llama2():
    """Llama 2 and Phi-3 as first published: a space is put before the text and its parts."""
    normalizer = N.Sequence([N.Prepend("\u2581"), N.Replace(" ", "\u2581")])
    t = with_bytes(["<unk>", "<s>", "</s>"], normalizer, None, spaced(strip=True))
    t.add_special_tokens([special("<|end|>", rstrip=True), special("<|user|>", lstrip=True)])
    begins_with(t, "<s>")
    config = {"bos_token": {"content": "<s>", "__type": "AddedToken"}, "unk_token": "<unk>"}
    return t, {**config, "eos_token": "</s>", "pad_token": "<unk>"}, {}


def mistral():
    before = P.Metaspace("\u2581", "first", split=False)
    t = with_bytes(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], None, before, spaced(strip=True))
    begins_with(t, "<s>")
    return t, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, {}


def neox():
    t = byte_level(P.ByteLevel(add_prefix_space=False), N.NFC())
    t.add_special_tokens([special("<|endoftext|>"), special("<|padding|>")])
    t.add_tokens([AddedToken(" " * n, normalized=True) for n in range(8, 1, -1)])
    end = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return t, {**end, "add_prefix_space": False}, {}


def smollm():
    digits = P.Digits(individual_digits=True)
    t = byte_level(P.Sequence([digits, P.ByteLevel(add_prefix_space=False)]))
    t.add_special_tokens([special("<|endoftext|>"), special("<|im_end|>")])
    return t, {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}, {}


def unigram():
    t = Tokenizer(M.Unigram())
    t.normalizer = N.Sequence([N.NFKC(), N.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer, t.decoder = P.Metaspace("\u2581", "always"), D.Metaspace("\u2581", "always")
    t.train_from_iterator(
        TEXTS * 5,
        trainers.UnigramTrainer(
            vocab_size=150,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    ids = [(x, t.token_to_id(x)) for x in ("<s>", "</s>")]
    t.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B </s>", ids)
    t.add_tokens([AddedToken("[x]", single_word=True)])
    return t, {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}, {}


def wordpiece():
    """As of BERT, but for the normaliser: text keeps its case and accents."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "The", "qu", "##ick", "fox", "naïve", "<"]
    t = Tokenizer(M.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    t.normalizer, t.pre_tokenizer, t.decoder = N.NFC(), P.BertPreTokenizer(), D.WordPiece()
    t.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    t.add_special_tokens([special(text) for text in words[:4]])
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    return t, {**named, "pad_token": "[PAD]"}, {}


def wordlevel():
    words = ["<unk>", "</s>", "the", "The", "quick", "fox", ",", "isn", "<", ">", "s", "/"]
    t = Tokenizer(M.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    t.pre_tokenizer = P.WhitespaceSplit()
    t.add_special_tokens([special("</s>")])
    return t, {"eos_token": "</s>", "unk_token": "<unk>"}, {}


FAMILIES = {
    f.__name__: f
    for f in (llama3, qwen, gemma, llama2, mistral, neox, smollm, unigram, wordpiece, wordlevel)
}


def write(family: str, folder: pathlib.Path, **settings) -> pathlib.Path:
    """Writes the files of a family's tokenizer to a folder. settings: of tokenizer_config.json."""
    tokenizer, config, others = FAMILIES[family]()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config, **settings}
    for name, content in {"tokenizer_config.json": config, **others}.items():
        (folder / name).write_text(json.dumps(content, indent=2))
    return folder
