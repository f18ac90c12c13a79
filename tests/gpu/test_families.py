"""Training steps of every family on a GPU follow those of the CPU in float32."""

import jax
import pytest

from tests import families
from tests.families import mesh_of, train
from tests.gpu import on_both

# The allowed relative difference from the CPU in float32, of losses and of the gradient's norm.
# In bfloat16 the losses of the language models differ by 3e-4 on a CPU too; generators draw some
# other tokens, and then have another reward. In float32 products are not those of TensorFloat-32.
TOLERANCES = {"float32": (1e-4, 1e-3), "bfloat16": (2e-3, 0.05)}
DRAWN = {"float32": (1e-3, 1e-2), "bfloat16": (0.05, 0.2)}


@pytest.fixture(scope="module")
def make(corpus_file, cache_dir, tmp_path_factory):
    return families.Families(corpus_file, cache_dir, tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def expected(make):
    """family -> metrics of each step in float32 on the CPU."""
    results = {}

    def trained(family):
        if family not in results:
            c, batches = make(family, "float32")
            with c.unlocked():  # a sixth of the time to compile
                c.train.compiler_options = {"xla_backend_optimization_level": 0}
            results[family] = train((c, batches), mesh_of(jax.devices("cpu")))
        return results[family]

    return trained


@pytest.mark.parametrize(
    "platform, family, dtype",
    on_both(
        [(family, dtype) for family in families.FILES for dtype in TOLERANCES],
        quick=[("labelled", "float32")],
    ),
)
def test_steps_follow_those_of_the_cpu(platform, family, dtype, device, make, expected, tmp_path):
    """And training that resumes from a checkpoint gives the same bits."""
    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        history = train(make(family, dtype), mesh_of([device]), tmp_path)
    tolerances = (DRAWN if family in families.ADVERSARIAL else TOLERANCES)[dtype]
    check_follows(history, expected(family), tolerances)


def check_follows(history, expected, tolerances) -> None:
    compared = set()
    for i, (metrics, wanted) in enumerate(zip(history, expected, strict=True)):
        assert metrics.keys() == wanted.keys()
        for name, value in wanted.items():
            if name.endswith(("loss", "grad_norm")):
                rel = tolerances[name.endswith("norm")]
                assert metrics[name] == pytest.approx(value, rel=rel), (i, name)
                compared.add(name)
    assert any(name.endswith("loss") for name in compared)


def test_other_numbers_are_noticed():
    wanted = [{"loss": 2.0, "grad_norm": 0.5, "learning_rate": 0.1}] * 2
    check_follows([{**m, "learning_rate": 0.2} for m in wanted], wanted, (1e-4, 1e-3))
    for name, factor in (("loss", 1.0002), ("grad_norm", 1.002), ("loss", float("nan"))):
        history = [wanted[0], {**wanted[1], name: wanted[1][name] * factor}]
        with pytest.raises(AssertionError, match=name):
            check_follows(history, wanted, (1e-4, 1e-3))
    with pytest.raises(ValueError):
        check_follows(wanted[:1], wanted, (1e-4, 1e-3))
