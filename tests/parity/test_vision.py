"""ViT, DINOv2 with registers, BiT and ResNet against transformers (make_vision.py).

Tensors are read as an import reads them, gradients and statistics too, so a tensor in the wrong
place or order shows as another number.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from bigjax import interop, losses, modules
from bigjax.models.images import resized_grid
from bigjax.trees import named_leaves

HERE = pathlib.Path(__file__).parent
CASES = ("vit", "dinov2", "bit", "resnet")


def tree_of(folder: pathlib.Path, config: dict, tensors: dict) -> tuple[interop.Imported, dict]:
    """(what an import reads, {collection: tree}) of a folder with these tensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    imported = interop.read(folder)
    assert not imported.missing and not imported.unknown
    tree: dict = {"params": {}}
    for name in imported.names:
        *parents, last = (name if name.startswith("batch_stats/") else f"params/{name}").split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = imported.load(name)
    return imported, tree


class Reference:
    """A frozen model in our form: variables and gradients, and our model of any dtype."""

    def __init__(self, name: str, folder: pathlib.Path):
        with np.load(HERE / f"{name}.npz") as f:
            self.arrays = dict(f)
        config = json.loads(str(self.arrays["config"]))
        part = lambda kind: {
            k.removeprefix(kind): x for k, x in self.arrays.items() if k.startswith(kind)
        }
        params = part("params/")
        imported, self.variables = tree_of(folder / "params", config, params)
        self.grads = tree_of(folder / "grads", config, part("grads/"))[1]["params"]
        after = {**params, **part("after/")}
        self.after = tree_of(folder / "after", config, after)[1].get("batch_stats", {})
        own = dict(mean=(0.5,), std=(0.5,), image_size=self.arrays["images"].shape[1])
        self.fields = {k: v for k, v in {**imported.model, **own}.items() if k != "name"}
        self.family = modules.find("models", imported.model["name"], "model.name", "")

    def model(self, **options):
        scan = {"scan": False} if "d_model" in self.fields else {}
        return self.family.Model(self.family.Config(**{**self.fields, **scan, **options}), 3)

    def step(self, **options):
        """(loss, gradients, statistics after it) of a training step."""
        model, mutable = self.model(**options), [k for k in self.variables if k != "params"]
        targets = jax.nn.one_hot(self.arrays["labels"], 3)

        def loss(params):
            variables = {**self.variables, "params": params}
            out, extras = model.apply(variables, self.arrays["images"], mutable=mutable)
            total, weight = losses.soft_cross_entropy(out.logits, targets, jnp.ones(len(targets)))
            return total / weight, extras

        (value, extras), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            self.variables["params"]
        )
        return value, grads, extras.get("batch_stats", {})


@pytest.fixture(scope="module", params=CASES)
def reference(request, tmp_path_factory):
    return Reference(request.param, tmp_path_factory.mktemp(request.param))


def assert_close(got: dict, want: dict, bar: float) -> None:
    """Each array apart by at most bar, relative to its largest number, or to a thousandth of the
    largest of all: the gradient of a key's bias is 0, but for rounding."""
    got, want = named_leaves(got), named_leaves(want)
    assert got.keys() == want.keys() and got
    largest = {name: np.abs(x).max() for name, x in want.items()}
    for name, x in got.items():
        scale = max(largest[name], 1e-3 * max(largest.values()))
        error = np.abs(np.asarray(x, np.float32) - want[name]).max() / scale
        assert error <= bar, (name, error)


def test_outputs(reference):
    out = jax.jit(reference.model().apply)(reference.variables, reference.arrays["images"])
    assert_close({"logits": out.logits}, {"logits": reference.arrays["logits"]}, 1e-5)


def test_a_training_step(reference):
    """Loss, gradients of every parameter, and statistics: the variance is the unbiased one."""
    loss, grads, after = reference.step()
    np.testing.assert_allclose(loss, reference.arrays["loss"], rtol=1e-5)
    assert_close(grads, reference.grads, 1e-4)
    if reference.after:
        assert_close(after, reference.after, 1e-5)


def test_bfloat16(reference):
    """In bfloat16 outputs are apart by at most 3% of the largest."""
    model = reference.model(dtype="bfloat16")
    out = jax.jit(model.apply)(reference.variables, reference.arrays["images"])
    assert out.logits.dtype == jnp.float32
    assert_close({"logits": out.logits}, {"logits": reference.arrays["logits"]}, 0.03)


def test_positions_of_other_grids():
    """As torch resizes them, up and down."""
    with np.load(HERE / "positions.npz") as f:
        sizes = sorted({name.split("/")[0] for name in f})
        assert {"14_24", "37_16", "4_7", "7_4"} < set(sizes)
        for size in sizes:
            before, after = map(int, size.split("_"))
            got = resized_grid(f[f"{size}/in"].reshape(before**2, 2), before, after)
            want = f[f"{size}/out"].reshape(after**2, 2)
            np.testing.assert_allclose(got, want, atol=1e-5, err_msg=size)
