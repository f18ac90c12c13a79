"""Runs training steps of a config on the first device, and prints the peak of its memory.

    python -m tests.gpu.peak --config=FILE [--config.KEY=VALUE ...]

The config is that of `bigjax plan`: no data are read, and all tokens are 0. It imports no other
module of tests/, whose conftest.py would choose the CPU.
"""

import json
import sys

import jax
import jax.numpy as jnp

from bigjax import tasks
from bigjax.arguments import Arguments
from bigjax.cli import plan as plan_cli
from bigjax.parallel import mesh as mesh_lib
from bigjax.parallel import sharding
from bigjax.train import program as program_lib
from bigjax.train import stages
from bigjax.train.step import unpack

STEPS = 3


def main(argv: list[str]) -> dict:
    """peak_bytes: counted by the device's allocator; a CPU has none, and XLA's own figure for the
    step stands in. loss: of the last step."""
    config, _ = Arguments(argv, plan_cli.COMMAND).config()
    config, _ = stages.resolve(config, read_data=False)
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
    rows = config.train.batch_size
    with jax.set_mesh(mesh):
        program = program_lib.make(config, tasks.build(config), mesh)
        state = program.init()
        shapes = program.task.batch_shapes(rows, 0)
        batch = jax.tree.map(lambda x: jnp.full(x.shape, x.dtype == "float32", x.dtype), shapes)
        batch = sharding.put_batch(mesh, jax.device_get(batch), slice(0, rows), rows)
        for _ in range(STEPS):
            state, metrics = program.step(state, None, batch)
        loss = unpack(jax.device_get(metrics))["loss"]
    counted = mesh.devices.flat[0].memory_stats()
    if counted:
        peak = counted["peak_bytes_in_use"]
    else:
        peak = program_lib.trace(program, rows, 0).lower().compile().memory_analysis()
        peak = peak.peak_memory_in_bytes
    return {"platform": mesh.devices.flat[0].platform, "peak_bytes": peak, "loss": loss}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
