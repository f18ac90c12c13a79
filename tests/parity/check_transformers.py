"""Checks bigjax.interop against Hugging Face transformers itself. Run by hand:

    python tests/parity/check_transformers.py [NAME ...]     # needs PyTorch, transformers, bigjax

Tiny random models of every supported architecture, saved by transformers with a tokenizer, are
imported into a work folder and exported again. For each it checks that
    outputs  bigjax's outputs equal those of transformers
    back     the export has the same files, byte for byte (config.json too)
    new      without the record of its origin, the export opens in transformers, with the same
             outputs and the same token ids
    shards   an export in shards has the files that transformers writes
Last run with torch 2.13.0, transformers 5.23.0, safetensors 0.8.0: outputs differ by 2e-6 at most,
bfloat16 and float16 weights computed in float32 on both sides; all files are equal.
"""

import filecmp
import json
import pathlib
import sys
import tempfile

import absl.logging
import jax
import numpy as np
import torch
import transformers

from bigjax import data, interop
from bigjax.data.tokenizers.bpe import ByteLevelBpe, byte_characters
from bigjax.data.tokenizers.sentencepiece import train_sentencepiece
from bigjax.data.tokenizers.wordpiece import train_wordpiece
from bigjax.interop.origin import ORIGIN
from bigjax.models import bert, gpt
from bigjax.train import export_model, import_model

BAR = 1e-5
TEXTS = [f"the quick brown fox jumps over the lazy dog, {i} times; isn't it?" for i in range(300)]
PROBE = ["the quick fox", " two  spaces, don't", "über 12 dogs"]
SHARD = 20_000  # bytes
BERT = dict(
    vocab_size=140,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=40,
    initializer_range=0.3,
)
GPT2 = dict(
    vocab_size=261,
    n_positions=40,
    n_embd=32,
    n_layer=2,
    n_head=4,
    bos_token_id=258,
    eos_token_id=258,
    initializer_range=0.3,
)
LLAMA = dict(
    vocab_size=400,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=40,
    initializer_range=0.3,
)
THETA = dict(rope_parameters=dict(rope_type="default", rope_theta=5e5))
NAMES = {0: "good", 1: "bad", 2: "ugly"}
# name: (class, config, dtype)
CASES = {
    "pretraining": ("BertForPreTraining", BERT, "float32"),
    "maskedlm": ("BertForMaskedLM", {**BERT, "hidden_act": "gelu_new"}, "float32"),
    "bert": ("BertModel", BERT, "float32"),
    "classify": ("BertForSequenceClassification", {**BERT, "id2label": NAMES}, "float32"),
    "regress": ("BertForSequenceClassification", {**BERT, "num_labels": 1}, "float32"),
    "tag": ("BertForTokenClassification", {**BERT, "id2label": NAMES}, "float32"),
    "answer": ("BertForQuestionAnswering", {**BERT, "hidden_act": "relu"}, "float32"),
    "gpt2": ("GPT2LMHeadModel", GPT2, "float32"),
    "gpt2-half": ("GPT2LMHeadModel", {**GPT2, "n_inner": 40}, "float16"),
    "gpt2-untied": ("GPT2LMHeadModel", {**GPT2, "tie_word_embeddings": False}, "float32"),
    "gpt2-body": ("GPT2Model", GPT2, "float32"),
    "llama": ("LlamaForCausalLM", LLAMA, "float32"),
    "llama-bfloat16": ("LlamaForCausalLM", {**LLAMA, **THETA}, "bfloat16"),
    "llama-tied": (
        "LlamaForCausalLM",
        {**LLAMA, "tie_word_embeddings": True, "head_dim": 12},
        "float32",
    ),
}


def write_tokenizer(kind: str, folder: pathlib.Path) -> None:
    """Trains a tokenizer, which transformers opens and saves."""
    if kind == "bert":
        tokenizer = train_wordpiece(TEXTS, BERT["vocab_size"])
    elif kind == "llama":
        tokenizer = train_sentencepiece(TEXTS, 320)
    else:
        vocab = [*byte_characters().values(), "th", "Ġt", "<|endoftext|>"]
        tokenizer = ByteLevelBpe(
            json.dumps({piece: i for i, piece in enumerate(vocab)}).encode(),
            "#version: 0.2\nt h\nĠ t\n".encode(),
        )
    own = folder.with_name(folder.name + "-own")
    tokenizer.save(own)
    ids = dict(bos=tokenizer.bos_id, eos=tokenizer.eos_id, pad=tokenizer.pad_id)
    files = interop.tokenizers.written(tokenizer.kind, interop.tokenizers.read(own), ids, 40)
    for name, content in files.items():
        (own / name).write_bytes(content)
    (own / "config.json").write_text(json.dumps({"model_type": kind}))
    transformers.AutoTokenizer.from_pretrained(own).save_pretrained(folder)
    if kind == "llama":  # as published models have it; transformers 5 drops it
        (folder / "tokenizer.model").write_bytes((own / "tokenizer.model").read_bytes())


def theirs(folder: pathlib.Path, name: str) -> list[np.ndarray]:
    """The outputs of the model in a folder for fixed tokens, in float32."""
    model, info = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    tokens, types = inputs()
    more = dict(token_type_ids=torch.from_numpy(types)) if name.startswith("Bert") else {}
    with torch.no_grad():
        out = model.eval()(torch.from_numpy(tokens), **more)
    keys = (
        "prediction_logits",
        "seq_relationship_logits",
        "logits",
        "start_logits",
        "end_logits",
        "last_hidden_state",
    )
    return [out[k].float().numpy() for k in keys if k in out]


def inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(0, 140, (2, 17)), np.repeat([[0] * 9 + [1] * 8], 2, 0)


def ours(folder: pathlib.Path) -> list[np.ndarray]:
    """The same outputs of bigjax's model, or [] for a class whose output it does not have."""
    imported = interop.read(folder)
    tree: dict = {}
    for name in imported.names:
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = imported.load(name).astype(np.float32)
    fields = {k: v for k, v in imported.model.items() if k != "name"}
    tokens, types = inputs()
    if imported.family.name != "bert":
        model = gpt.Model(gpt.Config(**fields, scan=False))
        return (
            [model.apply({"params": tree}, tokens).logits]
            if "Head" in imported.architecture or imported.family.name == "llama"
            else []
        )
    heads = {
        "BertForPreTraining": ("mlm", "nsp"),
        "BertForMaskedLM": ("mlm",),
        "BertForSequenceClassification": ("classifier",),
        "BertModel": (),
        "BertForTokenClassification": ("tagger",),
        "BertForQuestionAnswering": ("span",),
    }
    n = len(imported.task.get("labels", (0, 1)))
    out = bert.Model(bert.Config(**fields, scan=False), heads[imported.architecture], n).apply(
        {"params": tree}, tokens, types
    )
    if "span" in out.heads:
        return [out.heads["span"][..., 0], out.heads["span"][..., 1]]
    logits = [] if out.linear is None else [out.logits]
    return logits + [y[:, 0] if h in ("nsp", "classifier") else y for h, y in out.heads.items()]


def difference(a: list, b: list) -> float:
    assert len(a) == len(b) and all(x.shape == y.shape for x, y in zip(a, b))
    return max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in zip(a, b))


def same_files(a: pathlib.Path, b: pathlib.Path) -> None:
    names = sorted(p.name for p in a.iterdir())
    assert names == sorted(p.name for p in b.iterdir()), (names, list(b.iterdir()))
    different = [n for n in names if not filecmp.cmp(a / n, b / n, shallow=False)]
    assert not different, different


def check(case: str, root: pathlib.Path) -> None:
    name, config, dtype = CASES[case]
    cls = getattr(transformers, name)
    torch.manual_seed(3)
    model = cls(cls.config_class(**config)).to(getattr(torch, dtype))
    for p in model.parameters():  # norms and biases too
        with torch.no_grad():
            p.add_(0.1 * torch.randn(p.shape).to(p.dtype))
    source, quiet = root / "source", lambda text: None
    model.save_pretrained(source)
    write_tokenizer(model.config.model_type, source)
    expected, outputs = theirs(source, name), ours(source)
    error = f"{difference(outputs, expected):.1e}" if outputs else "-"
    assert not outputs or float(error) <= BAR, error

    import_model.import_run(source, root / "run", quiet)
    export_model.export_run(root / "run", root / "back", log=quiet)
    same_files(source, root / "back")
    model.save_pretrained(root / "shards", max_shard_size=SHARD)
    write_tokenizer(model.config.model_type, root / "shards")
    export_model.export_run(root / "run", root / "back-shards", log=quiet, max_shard_bytes=SHARD)
    same_files(root / "shards", root / "back-shards")
    import_model.import_run(root / "back-shards", root / "run-shards", quiet)

    (root / "run" / ORIGIN).unlink()
    export_model.export_run(root / "run", root / "new", log=quiet, dtype=dtype)
    saved = json.loads((root / "new" / "config.json").read_text())["architectures"][0]
    if saved == name:
        assert difference(theirs(root / "new", name), expected) == 0
    our_tokenizer = data.load_tokenizer(root / "run" / "tokenizer")
    for folder in (root / "new", root / "back"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        for text in PROBE:
            assert (
                tokenizer(text, add_special_tokens=False)["input_ids"]
                == our_tokenizer.encode(text).tolist()
            ), (folder, text)
    print(f"{case:<16} {name:<30} {dtype:<9} {error:<8} as new: {saved}")


def main(cases, check_case) -> None:
    """Calls check_case(case, an empty folder) with the command line's cases, all without any."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    absl.logging.set_verbosity(absl.logging.FATAL)  # Orbax
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_default_matmul_precision", "highest")
    for case in sys.argv[1:] or cases:
        with tempfile.TemporaryDirectory() as folder:
            check_case(case, pathlib.Path(folder))


if __name__ == "__main__":
    main(CASES, check)
