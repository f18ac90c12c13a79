"""Checks bigjax.interop against transformers' decoders. Run by hand:

    python tests/parity/check_decoders.py [NAME ...]      # needs PyTorch, transformers, bigjax

The models of make_decoders.py with random weights, saved by transformers in shards and half of them
in bfloat16, are imported and exported. For each it checks that
    outputs  bigjax's logits equal those of transformers
    back     the export of the import has the same files, byte for byte
    shards   so has an export into new shards
    new      exports with other weights, with a new config.json and with the original one, open in
             transformers with bigjax's logits
Last run with torch 2.13.0, transformers 5.24.0: logits differ by 3e-6 at most.
"""

import dataclasses
import pathlib

from check_transformers import difference, main, same_files
import jax.numpy as jnp
from make_decoders import CASES, VOCAB
import numpy as np
import torch
import transformers

from bigjax import interop
from bigjax.models import gpt
from bigjax.train import export_model, import_model

BAR = 1e-5
SHARD = 8_000  # bytes
TOKENS = np.random.default_rng(1).integers(0, VOCAB, (2, 17))


def theirs(folder: pathlib.Path, cls: str) -> list[np.ndarray]:
    """The logits of the model in a folder, in float32."""
    model, info = getattr(transformers, cls).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    with torch.no_grad():
        return [model.eval()(torch.from_numpy(TOKENS)).logits.numpy()]


def ours(model: dict, params: dict[str, np.ndarray]) -> list[np.ndarray]:
    tree: dict = {}
    for name, x in params.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jnp.asarray(x, jnp.float32)
    c = gpt.Config(**{k: v for k, v in model.items() if k != "name"}, scan=False)
    return [np.asarray(gpt.Model(c).apply({"params": tree}, TOKENS).logits)]


def check(case: str, root: pathlib.Path) -> None:
    cls, options = CASES[case]
    dtype = "bfloat16" if list(CASES).index(case) % 2 else "float32"
    torch.manual_seed(3)
    model_class = getattr(transformers, cls)
    model = model_class(model_class.config_class(**options)).to(getattr(torch, dtype))
    for p in model.parameters():  # norms and biases too
        with torch.no_grad():
            p.add_(0.2 * torch.randn(p.shape).to(p.dtype))
    source, quiet = root / "source", lambda text: None
    model.save_pretrained(source, max_shard_size=SHARD)
    imported = interop.read(source)
    params = {name: imported.load(name) for name in imported.names}
    errors = [difference(ours(imported.model, params), theirs(source, cls))]

    import_model.import_run(source, root / "run", quiet)
    export_model.export_run(root / "run", root / "back", log=quiet)
    export_model.export_run(root / "run", root / "shards", log=quiet, max_shard_bytes=SHARD)
    same_files(source, root / "back")
    if "NeoX" not in cls:  # whose tensors transformers 5 sorts by name
        same_files(source, root / "shards")

    rng = np.random.default_rng(4)
    params = {k: np.float32(x) + np.float32(rng.normal(0, 0.1, x.shape)) for k, x in params.items()}
    filled = gpt.Config(**{k: v for k, v in imported.model.items() if k != "name"})
    filled = {"name": "gpt", **dataclasses.asdict(filled)}
    for folder, config in (("new", None), ("again", imported.config)):
        interop.write(
            root / folder,
            family=imported.family,
            architecture=imported.architecture,
            model=filled,
            params=params,
            config=config,
            extra_config={f"{kind}_token_id": None for kind in imported.family.special_tokens},
        )
        errors.append(difference(theirs(root / folder, cls), ours(imported.model, params)))
    assert max(errors) <= BAR, errors
    print(f"{case:<20} {cls:<22} {dtype:<9}", *(f"{error:.1e}" for error in errors))


if __name__ == "__main__":
    main(CASES, check)
