"""Checks data.tokenizer.kind="tokenizer_json" against transformers. Run by hand:

    python tests/parity/check_tokenizers.py [CASE ...]     # needs PyTorch, transformers, bigjax

Small tokenizer.json files in the style of published models (tests/published_tokenizers.py) are read
by both. For each it checks that
    text      ids of texts are equal; the text of a special token is text, as with
              split_special_tokens=True
    specials  encode_with_specials gives the ids of transformers
    before    leading_ids are what transformers puts before a text, and eos, bos and pad are equal
              where transformers has them
    decoded   texts of ids are equal
    export    the files that `bigjax export` writes for a run open in transformers with the same ids
    model     a random Llama that is saved with it, of more rows than tokens, is imported, continues
              prompts with the same tokens as in transformers, and is exported byte for byte
Last run with torch 2.15.0, transformers 5.24.0, tokenizers 0.23.3: all are equal.
"""

import json
import pathlib
import shutil

import torch
import transformers

from bigjax.data import tokenizers
from bigjax.data.tokenizers import tokenizer_json
from bigjax.infer import texts
from bigjax.infer.generate import Generator, Options
from bigjax.interop import tokenizers as hf_tokenizers
from bigjax.models import gpt
from bigjax.train import export_model, import_model
from bigjax.train import load as load_lib
from bigjax.train import workdir as workdir_lib
from tests.parity.check_transformers import main, same_files
from tests.published_tokenizers import FAMILIES, PROBES, SPECIAL_PROBES, write

CASES = {family: (family, "PreTrainedTokenizerFast") for family in FAMILIES} | {
    "pythia": ("neox", "GPTNeoXTokenizer"),  # classes of transformers that build their own
    "qwen 2": ("qwen", "Qwen2Tokenizer"),
    "gemma 2": ("gemma", "GemmaTokenizer"),
    "deepseek": ("llama3", "LlamaTokenizerFast"),
}


def plain(theirs, text: str, **more) -> list[int]:
    return theirs(text, add_special_tokens=False, **more)["input_ids"]


def compare(ours, theirs, is_text: bool, named: set[str]) -> None:
    """is_text: whether the library itself can read special tokens as text. named: those of 'bos',
    'eos' and 'pad' that tokenizer_config.json names."""
    for text in PROBES:
        ids = ours.encode(text).tolist()
        assert ids == plain(theirs, text) == ours.encode_with_specials(text).tolist(), text
        whole = theirs(text)["input_ids"]
        assert whole[: len(ours.leading_ids)] == [*ours.leading_ids], (text, whole)
        after = whole[len(ours.leading_ids) + len(ids) :]
        assert whole[len(ours.leading_ids) :] == ids + after and after in ([], [ours.eos_id]), text
        if ours._joins and ours.unk_id not in ids:  # which bigjax leaves out
            decoded = theirs.decode(ids, clean_up_tokenization_spaces=False)
            assert ours.decode(ids) == decoded, (ours.decode(ids), decoded)
    special = {*ours.special.values()} - {ours.unk_id}
    for text in SPECIAL_PROBES:
        assert ours.encode_with_specials(text).tolist() == plain(theirs, text), text
        ids = ours.encode(text).tolist()
        assert not special & {*ids}, text
        if is_text:
            assert ids == plain(theirs, text, split_special_tokens=True), text
    for role in ("bos", "eos", "pad"):
        if role in named:
            assert getattr(theirs, f"{role}_token_id") == getattr(ours, f"{role}_id"), role


def check(case: str, root: pathlib.Path) -> None:
    family, class_ = CASES[case]
    source = write(family, root / "source", tokenizer_class=class_)
    ours = tokenizer_json.load(source)
    ours.kind = "tokenizer_json"
    settings = json.loads((source / "tokenizer_config.json").read_text())
    more = not ours._spelled, {r for r in ("bos", "eos", "pad") if settings.get(f"{r}_token")}
    assert "eos" in more[1] or family == "wordpiece"  # whose eos is its sep
    compare(ours, transformers.AutoTokenizer.from_pretrained(source), *more)
    ours.save(root / "saved")
    again = tokenizers.load(root / "saved")
    assert again.fingerprint == ours.fingerprint
    ids = {role: getattr(ours, f"{role}_id") for role in ("bos", "eos", "pad")}
    files = hf_tokenizers.written(ours.kind, hf_tokenizers.read(root / "saved"), ids, 99)
    (root / "export").mkdir()
    for name, content in files.items():
        (root / "export" / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(root / "export")
    compare(ours, theirs, *more)
    assert tokenizer_json.load(root / "export").fingerprint == ours.fingerprint
    assert theirs.model_max_length == 99
    assert settings.get("chat_template") == theirs.chat_template
    check_model(source, root)
    print(f"{case}: {type(theirs).__name__} of {ours.vocab_size} ids, {len(PROBES)} texts")


def check_model(source: pathlib.Path, root: pathlib.Path) -> None:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=448,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, key, getattr(tokenizer, key))
    model.generation_config.eos_token_id = tokenizer.eos_token_id or tokenizer.sep_token_id
    model.save_pretrained(root / "model")
    for path in source.iterdir():
        if path.name != "generation_config.json":
            shutil.copy(path, root / "model")
    import_model.import_run(root / "model", root / "run", lambda text: None)
    loaded = load_lib.load(root / "run", workdir_lib.read_config(root / "run"), None, None)
    generator = Generator(gpt.decoder(loaded.task.model_config), loaded.variables)
    ours = tokenizers.load(root / "run" / "tokenizer")
    options = Options(12, temperature=0, eos_id=ours.eos_id)
    for prompt in ("The quick fox", "中文 a", "  two"):
        inputs = tokenizer(prompt, return_tensors="pt")
        n = inputs["input_ids"].shape[1]
        if inputs["input_ids"][0, -1] == ours.eos_id:  # such as of Unigram here
            inputs, n = {k: x[:, :-1] for k, x in inputs.items()}, n - 1
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, n:].tolist()
        (ids,) = texts.prompt_ids(ours, [prompt], generator.decoder)
        (chunk,) = generator.stream([ids], options, at_once=12)
        assert chunk.tokens[0][chunk.real[0]].tolist() == [i for i in out if i != ours.eos_id]
    export_model.export_run(root / "run", root / "back", log=lambda text: None)
    same_files(root / "model", root / "back")


if __name__ == "__main__":
    main(CASES, check)
