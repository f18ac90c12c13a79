"""Checks LoRA adapters against the package peft, and freezes one of them for the tests.

    python tests/parity/check_peft.py [--write]

Needs peft and transformers. For small models of several families: an adapter that peft saved is
imported, its merged weights are those of peft's merge_and_unload, and an export of it gives the
same bytes; peft loads an adapter that bigjax exported, with the same merged weights. --write:
peft.npz, with the files of GPT-2 and its adapter, and the logits of peft.
"""

import dataclasses
import json
import pathlib
import sys
import tempfile

import jax
import numpy as np
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file
import torch
import transformers as hf

from bigjax import interop
from bigjax.interop import adapters
from bigjax.peft import lora
from bigjax.train import export_model, import_adapter

FROZEN = pathlib.Path(__file__).parent / "peft.npz"
TOKENS = [[1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4]]
SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
GPT2 = lambda: hf.GPT2LMHeadModel(
    hf.GPT2Config(
        vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0,
        eos_token_id=0,
    )
)  # fmt: skip
LLAMA = lambda: hf.LlamaForCausalLM(
    hf.LlamaConfig(vocab_size=40, max_position_embeddings=16, num_key_value_heads=1, **SMALL)
)
T5 = lambda: hf.T5ForConditionalGeneration(
    hf.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
        decoder_start_token_id=0,
    )
)  # fmt: skip
VIT = lambda: hf.ViTForImageClassification(
    hf.ViTConfig(image_size=8, patch_size=4, num_labels=3, **SMALL)
)
BERT = lambda: hf.BertForPreTraining(
    hf.BertConfig(vocab_size=40, max_position_embeddings=16, **SMALL)
)
# {name: (model, options of peft)}
CASES = {
    "gpt2": (GPT2, dict(target_modules=["c_attn"], fan_in_fan_out=True)),
    "gpt2 all": (GPT2, dict(target_modules=["c_attn", "c_proj", "c_fc"], use_rslora=True)),
    "llama": (LLAMA, dict(target_modules=["q_proj", "v_proj", "down_proj"])),
    "llama dora": (LLAMA, dict(target_modules=["q_proj", "v_proj"], use_dora=True)),
    "t5": (T5, dict(target_modules=["q", "v", "wo"])),
    "vit": (VIT, dict(target_modules=["q_proj", "fc2"])),
    "bert": (BERT, dict(target_modules=["query", "value"], lora_dropout=0.1)),
}
quiet = lambda text: None


def saved(make, options: dict, folder: pathlib.Path):
    """A model and an adapter of random numbers, saved in folder/base and folder/adapter."""
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(folder / "base")
    model = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, **options))
    for name, x in model.named_parameters():
        if "lora_" in name:
            x.data = x.data + 0.1 * torch.randn_like(x)
    model.save_pretrained(folder / "adapter")
    return model.eval()


def merged(model, folder: pathlib.Path) -> dict[str, np.ndarray]:
    model.merge_and_unload().save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def same_bytes(a: pathlib.Path, b: pathlib.Path) -> bool:
    return all((a / n).read_bytes() == (b / n).read_bytes() for n in FILES["adapter"])


def difference(a: dict, b: dict) -> float:
    assert set(a) <= set(b), sorted(set(a) - set(b))[:5]
    return max(np.abs(a[n] - b[n]).max() for n in a)


def check(name: str, root: pathlib.Path) -> None:
    make, options = CASES[name]
    model = saved(make, options, root)
    base = f"--config.peft.base={root / 'base'}"
    import_adapter.import_run(str(root / "adapter"), str(root / "run"), quiet, [base])
    export_model.export_adapter(str(root / "run"), str(root / "again"), log=quiet)
    equal = same_bytes(root / "adapter", root / "again")
    # bigjax's own files, without those of the import
    (root / "run" / adapters.ORIGIN).unlink()
    export_model.export_adapter(str(root / "run"), str(root / "own"), log=quiet)
    export_model.export_run(str(root / "run"), str(root / "ours"), log=quiet)
    theirs = merged(model, root / "theirs")
    ours = load_file(root / "ours" / "model.safetensors")
    loaded = PeftModel.from_pretrained(make().from_pretrained(root / "base"), root / "own")
    again = merged(loaded, root / "loaded")
    a, b = difference(ours, theirs), difference(ours, again)
    assert difference(ours, load_file(root / "base" / "model.safetensors")) > 1e-3
    print(f"{name:12s} bytes equal: {equal}; merged: {a:.1e} from peft, {b:.1e} of our files in it")
    assert equal and a < 1e-6 and b < 1e-6


def check_stacked(root: pathlib.Path) -> None:
    """Factors of parts of c_attn, and of another layer: stacked, with a rank of its own."""
    make = CASES["gpt2"][0]
    make().save_pretrained(root / "base")
    read = interop.read(str(root / "base"), "gpt", "")
    options = dataclasses.asdict(lora.Config(rank=2, alpha=3.0, rank_stabilized=True))
    base = {n: read.load(n) for n in read.names}
    rng, params = np.random.default_rng(0), {}
    for i in range(2):
        for name, ins, outs in (
            ("attention/query", (16,), (2, 8)),
            ("attention/value", (16,), (2, 8)),
            ("mlp/down", (64,), (16,)),
        ):
            path = f"stack/layer_{i}/{name}"
            a, b = rng.normal(size=(*ins, 2)), rng.normal(size=(2, *outs))
            params |= {f"{path}/{adapters.A}": a, f"{path}/{adapters.B}": b}
            delta = np.tensordot(a, b, 1) * lora.Config(**options).scale
            base[f"{path}/kernel"] = base[f"{path}/kernel"] + delta
    named = dict(family=read.family, architecture=read.architecture, model=read.model)
    adapters.write(root / "own", **named, task="causal_lm", base="", options=options, params=params)
    loaded = PeftModel.from_pretrained(make().from_pretrained(root / "base"), root / "own")
    theirs = merged(loaded, root / "theirs")
    entries = read.family.entries(read.architecture, read.model, 2)
    worst = difference({e.name: e.gather(base) for e in entries}, theirs)
    print(f"gpt2 stacked merged: {worst:.1e}")
    assert worst < 1e-5


def write(root: pathlib.Path) -> None:
    model = saved(*CASES["gpt2"], root)
    with torch.no_grad():
        logits = model(torch.tensor(TOKENS)).logits.numpy()
    names = [f"{d}/{n}" for d, files in FILES.items() for n in files]
    files = {n: np.frombuffer((root / n).read_bytes(), np.uint8) for n in names}
    np.savez_compressed(FROZEN, logits=logits, tokens=TOKENS, **files)
    print(f"Wrote {FROZEN}: {FROZEN.stat().st_size:,} bytes")


FILES = {
    "base": ("config.json", "model.safetensors"),
    "adapter": (adapters.CONFIG, adapters.WEIGHTS),
}


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            check(name, pathlib.Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        check_stacked(pathlib.Path(folder))
    if "--write" in sys.argv:
        with tempfile.TemporaryDirectory() as folder:
            write(pathlib.Path(folder))
    print(json.dumps({"checked": [*CASES]}))


if __name__ == "__main__":
    main()
