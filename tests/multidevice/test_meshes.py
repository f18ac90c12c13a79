"""Every mesh gives the numbers of one device."""

import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from bigjax import data, tasks
from bigjax.errors import UserError
from bigjax.parallel import mesh as mesh_lib
from bigjax.parallel import sharding
from bigjax.train import program as program_lib
from bigjax.train.step import unpack
from bigjax.trees import named_leaves
from tests import helpers

MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 1, 4), (2, 4, 1), (1, 2, 2, 2), (1, 2, 4), (2, 2, 2)]
SLOW = [m for m in MESHES[1:] if m != (1, 2, 2, 2)]  # others train on the axis data by default


def sizes(data_, fsdp, tensor, sequence=1):
    return dict(data=data_, fsdp=fsdp, sequence=sequence, tensor=tensor)


def set_optimizer(c, name):
    c.optim.name = name
    if name == "adafactor":  # Optax factors matrices from 128 x 128
        c.model.d_model = 128


def train(c, mesh_sizes, corpus, steps=10):
    """(losses, parameters by name, state) after a few steps on a mesh."""
    n = int(np.prod(mesh_sizes))
    mesh = mesh_lib.make_mesh(sizes(*mesh_sizes), jax.devices()[:n])
    with jax.set_mesh(mesh):
        task = tasks.build(c)
        program = program_lib.make(c, task, mesh)
        state = program.init()
        batches = corpus.split("train", batch_size=c.train.batch_size, seed=c.seed)
        losses = []
        for i in range(steps):
            batch = sharding.put_batch(
                mesh, batches.batch_at(i), slice(0, c.train.batch_size), c.train.batch_size
            )
            state, metrics = program.step(state, None, batch)
            losses.append(unpack(jax.device_get(metrics))["loss"])
    return losses, named_leaves(jax.device_get(state.params)), state


@pytest.fixture(scope="module")
def corpus(corpus_file, cache_dir, request):
    c = helpers.load_config("tests/tiny.py")
    with c.unlocked():
        c.data.sources.text.path = corpus_file
        c.data.cache_dir = cache_dir
    return data.load_text(c.data, log=lambda text: None)


@pytest.fixture(scope="module")
def one_device(corpus, corpus_file):
    results = {}

    def trained(name):
        if name not in results:
            c = helpers.load_config("tests/tiny.py")
            with c.unlocked():
                set_optimizer(c, name)
            results[name] = train(c, (1, 1, 1), corpus)
        return results[name]

    return trained


def assert_same(trained, expected):
    np.testing.assert_allclose(trained[0], expected[0], rtol=2e-5)
    for name, x in expected[1].items():
        np.testing.assert_allclose(trained[1][name], x, atol=2e-4, err_msg=name)


@pytest.mark.parametrize(
    "mesh_sizes",
    [pytest.param(m, marks=pytest.mark.slow if m in SLOW else ()) for m in MESHES[1:]],
    ids=str,
)
def test_loss_and_parameters_after_ten_steps(tiny, corpus, one_device, mesh_sizes):
    trained = train(tiny, mesh_sizes, corpus)
    assert_same(trained, one_device("adamw"))
    losses = trained[0]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adafactor", "lamb", "sgd"])
def test_optimizers_on_a_mesh(tiny, corpus, one_device, name):
    with tiny.unlocked():
        set_optimizer(tiny, name)
    trained = train(tiny, (2, 2, 2), corpus)
    assert_same(trained, one_device(name))
    if name == "adafactor":  # moments of matrices are really factored
        moments = named_leaves(trained[2].opt_state)
        assert {x.shape for k, x in moments.items() if "v_row/embed" in k} == {(128,)}


@pytest.fixture(scope="module")
def on_eight_devices(corpus):
    """A run without dropout on a mesh of (2, 2, 2)."""
    c = helpers.load_config("tests/tiny.py")
    with c.unlocked():
        c.model.dropout, c.train.ema = 0.0, 0.9
    return train(c, (2, 2, 2), corpus)


def test_parameters_and_moments_are_sharded_by_the_table(on_eight_devices):
    _, _, state = on_eight_devices
    query = state.params["stack"]["layers"]["attention"]["query"]["kernel"]
    assert query.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert query.addressable_shards[0].data.size * 4 == query.size
    moments = [
        x
        for name, x in named_leaves(state.opt_state).items()
        if name.endswith("attention/query/kernel")
    ]
    assert len(moments) == 2 and all(m.sharding == query.sharding for m in moments)


def test_factored_moments_keep_the_sharding_of_their_dimensions():
    mesh = mesh_lib.make_mesh(sizes(2, 2, 2))
    shape = jax.ShapeDtypeStruct((4, 8, 6), "float32")
    param_sharding = jax.sharding.NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor"))
    state = {
        "v_row": {"w": jax.ShapeDtypeStruct((4, 8), "float32")},
        "v_col": {"w": jax.ShapeDtypeStruct((4, 6), "float32")},
        "count": jax.ShapeDtypeStruct((), "int32"),
    }
    specs = jax.tree.map(
        lambda s: s.spec, sharding.of_opt_state(mesh, state, {"w": shape}, {"w": param_sharding})
    )
    assert specs["v_row"]["w"] == PartitionSpec(None, "fsdp")
    assert specs["v_col"]["w"] == PartitionSpec(None, "tensor")
    assert specs["count"] == PartitionSpec()


def test_parameters_are_cast_before_they_are_gathered_and_their_gradients_scattered():
    mesh, names = mesh_lib.make_mesh(sizes(1, 4, 2)), ("embed", "mlp")
    with jax.set_mesh(mesh):
        step = jax.make_jaxpr(
            jax.grad(lambda w: sharding.gathered(w, names, "bfloat16").sum().astype("float32"))
        )(np.zeros((8, 4), np.float32))
    constraints = [
        (str(e.outvars[0].aval.dtype), e.params["sharding"].spec)
        for e in helpers.equations(step.jaxpr)
        if e.primitive.name == "sharding_constraint"
    ]
    sharded, gathered = PartitionSpec("fsdp", "tensor"), PartitionSpec(None, "tensor")
    assert constraints == [("bfloat16", sharded), ("bfloat16", gathered), ("bfloat16", sharded)]


def test_accumulation_equals_the_large_batch(tiny, corpus, on_eight_devices):
    with tiny.unlocked():
        tiny.model.dropout, tiny.train.ema, tiny.train.accumulate = 0.0, 0.9, 2
    assert_same(train(tiny, (2, 2, 2), corpus), on_eight_devices)


def test_an_optimizer_state_in_host_memory(tiny, corpus, one_device):
    with tiny.unlocked():
        tiny.optim.offload = True
    trained = train(tiny, (1, 4, 2), corpus)
    assert_same(trained, one_device("adamw"))
    kinds = lambda tree: {x.sharding.memory_kind for x in jax.tree_util.tree_leaves(tree) if x.ndim}
    state = trained[2]
    assert kinds(state.opt_state) == {"pinned_host"} and kinds(state.params) == {"device"}


def test_an_axis_may_share_a_dimension_of_the_torus(monkeypatch):
    """Such as a mesh of 4 x 8 x 2 x 8 on 8x8x8 chips: jax needs allow_split_physical_axes."""
    real, calls = mesh_lib.mesh_utils.create_device_mesh, []

    def create(shape, devices, allow_split_physical_axes=False):
        calls.append(allow_split_physical_axes)
        if not allow_split_physical_axes:
            raise NotImplementedError
        return real(shape, devices)

    monkeypatch.setattr(mesh_lib.mesh_utils, "create_device_mesh", create)
    assert mesh_lib.make_mesh(sizes(2, 2, 2)).shape["fsdp"] == 2 and calls == [False, True]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: mesh_lib.make_mesh(sizes(3, 1, 1)), ["data=3", "= 3", "8 cpu"]),
        (lambda: mesh_lib.make_mesh(sizes(-1, 3, 1)), ["3", "does not divide", "8 cpu"]),
        (lambda: mesh_lib.make_mesh(sizes(-1, -1, 1)), ["at most one"]),
        (
            lambda: mesh_lib.check_batch(mesh_lib.make_mesh(sizes(4, 2, 1)), 12),
            ["12", "8", "data=4"],
        ),
        (lambda: mesh_lib.check_batch(mesh_lib.make_mesh(sizes(4, 2, 1)), 24, 2), ["24", "16"]),
        (
            lambda: sharding.spec(
                mesh_lib.make_mesh(sizes(1, 1, 8)), (100, 16), ("vocab", "embed"), "x"
            ),
            ["vocab", "100 = 12 x 8 + 4", "mesh.tensor"],
        ),
    ],
)
def test_a_layout_that_does_not_divide_is_refused_with_the_arithmetic(call, words):
    with pytest.raises(UserError) as e:
        call()
    assert all(w in str(e.value) for w in words), e.value


def test_cpu_devices_follow_the_cores_and_the_batch(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(6))
    assert mesh_lib.cpu_devices(sizes(-1, 1, 1), 12) == 6
    assert mesh_lib.cpu_devices(sizes(-1, 1, 1), 8) == 4
    assert mesh_lib.cpu_devices(sizes(-1, 2, 1), 8) == 4
    assert mesh_lib.cpu_devices(sizes(2, 2, 2), 8) == 8
    assert mesh_lib.cpu_devices(sizes(-1, 1, 1), 7) == 1


@pytest.mark.parametrize("mesh_sizes", [(4, 2, 1), (1, 2, 4), (1, 1, 8)], ids=str)
def test_each_device_gets_its_own_rows(monkeypatch, mesh_sizes):
    """In any order of devices in the mesh, as on a pod."""
    shape = [sizes(*mesh_sizes)[axis] for axis in mesh_lib.AXES]
    devices = np.array(jax.devices())[[0, 5, 2, 7, 4, 1, 6, 3]].reshape(shape)
    mesh = jax.sharding.Mesh(devices, mesh_lib.AXES)
    batch = np.arange(16 * 3).reshape(16, 3).astype(np.int32)
    rows = sharding.local_rows(mesh, 16)
    assert rows == slice(0, 16)
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # uses the code for many hosts
    x = sharding.put_batch(mesh, {"x": batch[rows]}, rows, 16)["x"]
    assert x.sharding == sharding.of_batch(mesh)
    np.testing.assert_array_equal(x, batch)
