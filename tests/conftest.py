"""Eight virtual CPU devices for all tests, and quick compilation, set before jax is imported;
`pytest -m gpu` uses the machine's GPU instead."""

from importlib import metadata
import os

from packaging.version import Version

os.environ["JAX_PLATFORMS"] = "cpu"
# Compilation dominates; it takes six times as long with optimization, and a quarter longer if it is
# split over several cores, as pytest uses all. No persistent cache except in `one_device`: programs
# with collectives that were loaded from a cache can deadlock on a CPU.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_cpu_parallel_codegen_split_count=1"
)
# From 0.11.1 on jaxlib has only these emitters, and an unknown XLA flag aborts the process.
if Version(metadata.version("jaxlib")) < Version("0.11.1"):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import contextlib  # noqa: E402
import gc  # noqa: E402
import random  # noqa: E402
import signal  # noqa: E402

import pytest  # noqa: E402

from tests import newest  # noqa: E402

# On a GPU: the same kernels in each start, and sums in the same order (docs/pods.md).
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"

# Tracing makes many long-lived objects: collecting garbage would take a twentieth of the time.
gc.set_threshold(100_000, 50, 100)

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a background job; children inherit this
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """For `pytest -m gpu`: jax chooses its devices, and starts only when tests are collected."""
    if config.option.markexpr == "gpu":
        os.environ["JAX_PLATFORMS"] = ""
        os.environ["XLA_FLAGS"] = DETERMINISTIC
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # tests start runs of their own
        import jax

        jax.config.update("jax_platforms", None)


def pytest_collection_modifyitems(items):
    for item in items:
        if newest.is_newest(item.nodeid) and not item.get_closest_marker("slow"):
            item.add_marker("newest")


WORDS = (
    "the a shape array of tokens model step loss value returns and is in to with from each "
    "batch axis data mesh device key layer head"
).split()


def write_text(path, n_documents: int, seed: int = 0) -> None:
    """Documents of words in a learnable order, separated by blank lines."""
    rng = random.Random(seed)
    with open(path, "w", encoding="utf-8") as f:
        for _ in range(n_documents):
            start = rng.randrange(len(WORDS))
            words = [WORDS[(start + 3 * i + rng.randrange(2)) % len(WORDS)] for i in range(400)]
            f.write(" ".join(words) + ".\n\n")


def write_table(path, n, seed=0, labels=("left", "right")):
    """A table of texts from the first or the second half of WORDS, labelled by that half."""
    rng, half = random.Random(seed), len(WORDS) // 2
    with open(path, "w", encoding="utf-8") as f:
        f.write("id\ttext\tlabel\n")
        for i in range(n):
            k = rng.randrange(2)
            text = " ".join(rng.choices(WORDS[k * half : (k + 1) * half], k=rng.randrange(3, 12)))
            f.write(f"{i}\t{text}\t{labels[k]}\n")
    return str(path)


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory):
    """A text file of 60 documents, about 120 kB."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    write_text(path, 60)
    return str(path)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_flags(corpus_file, cache_dir):
    """Flags for a run of tests/tiny.py on the session's text."""
    return [
        f"--config={os.path.join(os.path.dirname(__file__), 'tiny.py')}",
        f"--config.data.sources.text.path={corpus_file}",
        f"--config.data.cache_dir={cache_dir}",
    ]


@pytest.fixture(scope="session")
def compiled_programs(tmp_path_factory):
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module", autouse=True)
def no_mesh_of_other_tests():
    """A run makes its mesh that of the process. The tests of each file start without one, in any
    order of the files."""
    import jax
    import numpy as np

    with jax.set_mesh(jax.sharding.Mesh(np.empty((), dtype=object), ())):
        yield


@contextlib.contextmanager
def on_one_device(compiled_programs):
    """Runs in this process use a mesh of one device and this folder of compiled programs."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    cached = {
        "jax_compilation_cache_dir": compiled_programs,
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    before = {name: getattr(jax.config, name) for name in cached}
    devices = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as m, jax.set_mesh(jax.make_mesh((1,), "x", devices=devices)):
        m.setattr(jax, "devices", lambda *_: devices)
        for name, value in cached.items():
            jax.config.update(name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()  # otherwise the folder stays in use


@pytest.fixture(scope="module")
def one_device(compiled_programs):
    """For tests that do not depend on the mesh: with eight devices a step mostly waits."""
    with on_one_device(compiled_programs):
        yield


@pytest.fixture
def fewer_docstrings(monkeypatch):
    """Reads only every eighth file: reading all takes longer than training. The slow
    test_default_run reads all."""
    from bigjax.data import docstrings

    files = docstrings.python_files()[::8]
    monkeypatch.setattr(docstrings, "python_files", lambda: files)


@pytest.fixture
def tiny(corpus_file, cache_dir):
    """The config of tests/tiny.py on the session's text: bytes, 2 layers, seconds to train."""
    from tests import helpers

    c = helpers.load_config("tests/tiny.py")
    with c.unlocked():
        c.data.sources.text.path = corpus_file
        c.data.cache_dir = cache_dir
    return c


@pytest.fixture(scope="session")
def scripts_repository(tmp_path_factory):
    from tests import fake_cloud

    return fake_cloud.make_repository(tmp_path_factory.mktemp("a repository"))


@pytest.fixture
def cloud(scripts_repository, tmp_path):
    """For the tests of tpu_scripts/: settings and a fake gcloud."""
    from tests import fake_cloud

    c = fake_cloud.Cloud(scripts_repository, tmp_path)
    yield c
    c.end()
