"""Writes the compiled steps that tests/unit/test_plan.py reads. Needs `pip install -e '.[plan]'`.

    python tests/golden/make_hlo.py

A small GPT on four chips, parameters cut over all; with its layers scanned, unrolled, and cut by
tensor parallelism.
"""

import gzip
import pathlib
import re
import sys

from bigjax.plan import chips

chips.before_jax()

import jax  # noqa: E402

from bigjax import config as config_lib, tasks  # noqa: E402
from bigjax.parallel import mesh as mesh_lib, sharding  # noqa: E402
from bigjax.train import program as program_lib  # noqa: E402

HERE = pathlib.Path(__file__).parent
FORMS = {"scanned": {}, "unrolled": {"scan": False}, "tensor": {}}


def small(form: str):
    c = config_lib.new_config()
    with c.unlocked():
        c.model = dict(name="gpt", vocab_size=512, max_len=128, d_model=128, n_layers=3, n_heads=2,
                       dtype="bfloat16", **FORMS[form])
        c.data.seq_len, c.data.packing, c.train.batch_size = 128, False, 16
        c.mesh.data, c.mesh.fsdp, c.mesh.tensor = (1, 1, 4) if form == "tensor" else (1, 4, 1)
        if form == "tensor":
            c.model.n_heads = 4
    return c


def main() -> None:
    for form in FORMS:
        c = small(form)
        mesh = mesh_lib.make_mesh(c.mesh, chips.devices("v5e:2x2"))
        task = tasks.build(c)
        program = program_lib.make(c, task, mesh)
        place = sharding.of_batch(mesh)
        batch = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
                 for k, x in task.batch_shapes(c.train.batch_size, 0).items()}
        with jax.set_mesh(mesh):
            text = program.step.lower(program.abstract, None, batch).compile().as_text()
        text = re.sub(r", metadata=\{[^}]*\}", "", text)  # half of it
        (HERE / f"hlo_{form}.txt.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
        print(form, len(text))


if __name__ == "__main__":
    sys.exit(main())
