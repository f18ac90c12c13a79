"""Which arrays Orbax saves in parts, one from each device that has a copy.

ocp.type_handlers.ArrayHandler has an option for this, but a handler made by its public constructor
lacks the store of metadata that the registered one has.
"""

import jax
import orbax.checkpoint as ocp

from bigjax import private

USES = {"orbax.checkpoint:type_handlers.get_type_handler": "split_large_arrays"}
private.check("orbax-checkpoint", USES)


def split_large_arrays(min_bytes: int) -> None:
    """Splits an array between the devices that have a copy only if each part has `min_bytes`.

    Otherwise one of them saves it. By default Orbax splits every array, and each part of each shape
    is a program to compile: hundreds of them at the first save on eight devices.
    """
    handler = ocp.type_handlers.get_type_handler(jax.Array)
    handler._min_slice_bytes_for_replica_parallel = min_bytes
