"""Writes the compiled steps that tests/unit/test_plan.py reads. Needs `pip install -e '.[plan]'`,
for the last one `pip install -e '.[cuda]'`: where one is absent, its files are left as they are.

    python tests/golden/make_hlo.py

A small GPT on four chips, parameters cut over all: with its layers scanned, unrolled, cut by tensor
parallelism, with splash attention, and on GPUs, cut over two of four, with cuDNN's.
"""

import gzip
import importlib.util
import pathlib
import re
import sys

from bigjax.plan import chips

chips.before_jax()

from bigjax import config as config_lib  # noqa: E402
from bigjax import modules, tasks  # noqa: E402
from bigjax.layers.kernels.splash import SCOPE  # noqa: E402
from bigjax.parallel import mesh as mesh_lib  # noqa: E402
from bigjax.train import program as program_lib  # noqa: E402

HERE = pathlib.Path(__file__).parent
FORMS = {"libtpu": ("scanned", "unrolled", "tensor", "splash"), "jax_cuda12_plugin": ("h100",)}
MESHES = {"tensor": {"data": 1, "tensor": 4}, "h100": {"data": 2, "fsdp": 2}}
KERNELS = {"splash": "splash", "h100": "cudnn"}


def small(form: str):
    c = config_lib.new_config()
    with c.unlocked():
        c.model = dict(
            name="gpt",
            vocab_size=512,
            max_len=128,
            d_model=128,
            n_layers=3,
            n_heads=4 if form == "tensor" else 2,
            scan=form != "unrolled",
            dtype="bfloat16",
            attention=KERNELS.get(form, "einsum"),
        )
        c.data = dict(name="text", seq_len=128, packing=False)
        c.train.batch_size = 16
        c.mesh.update(MESHES.get(form, {"data": 1, "fsdp": 4}))
    modules.fill(c)
    return c


def _scope(metadata: re.Match) -> str:
    match = re.search(SCOPE + r"\d+", metadata[0])
    return f", metadata={{{match[0]}}}" if match else ""


def main() -> None:
    for form in (
        f for compiler, forms in FORMS.items() if importlib.util.find_spec(compiler) for f in forms
    ):
        c = small(form)
        mesh = mesh_lib.make_mesh(c.mesh, chips.devices("h100:4" if form == "h100" else "v5e:2x2"))
        task = tasks.build(c)
        program = program_lib.make(c, task, mesh)
        traced = program_lib.trace(program, c.train.batch_size, 0)
        text = traced.lower().compile().as_text()
        # Where in the source an operation comes from: half of the text, with this machine's paths.
        text = re.sub(r", metadata=\{[^}]*\}", _scope, text)
        text = re.sub(r"\nFileNames\n.*?\n(?=%)", "\n", text, flags=re.DOTALL)
        (HERE / f"hlo_{form}.txt.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
        print(form, len(text))


if __name__ == "__main__":
    sys.exit(main())
