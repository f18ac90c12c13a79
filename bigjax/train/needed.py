"""The FLOPs that a training step still needs if some parameters are frozen."""

import math

import jax
import jax.extend
from jax.interpreters import partial_eval

from bigjax import tasks
from bigjax.layers.kernels import KERNELS
from bigjax.parallel import mesh as mesh_lib
from bigjax.tasks import Task
from bigjax.trees import merge, partition


def share(config, mesh, params, trained) -> float:
    """FLOPs of matrix products and convolutions of the loss and its gradients for the `trained`
    parameters, over those with all parameters trained; with config.peft over those of a training of
    its base.

    params: ShapeDtypeStructs; trained: a tree of bools. What model.remat recomputes does not count.
    It does not depend on the attention kernel.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if "remat" in config.model:
            config.model.remat = "none"
        if config.model.get("attention") in ("auto", *KERNELS):  # others hide their FLOPs
            weights_dropped = config.model.get("attention_dropout", 0.0)
            config.model.attention = "einsum" if weights_dropped else "blocked"
    task = plain = tasks.build(config)
    if config.peft.name:
        with config.unlocked():  # a task may need a model to compare with: its shapes are enough
            config.init_from = config.init_from or config.peft.base
            config.peft = {"name": ""}
        plain = tasks.build(config)
    of_plain = jax.eval_shape(plain.init, jax.eval_shape(jax.random.key, 0))["params"]
    everything = jax.tree_util.tree_map(lambda _: True, of_plain)
    with jax.set_mesh(mesh_lib.make_mesh({}, mesh.devices.flat[:1])):  # without sharding
        some = _flops(task, config, params, trained)
        all_ = _flops(plain, config, of_plain, everything)
    return some / all_ if all_ else 1.0


def _flops(task: Task, config, params, trained) -> float:
    parts, fixed = partition(params, trained)
    key = jax.eval_shape(jax.random.key, 0)  # no array: the devices of a plan compute nothing
    variables = jax.eval_shape(task.init, key)
    extras = {name: x for name, x in variables.items() if name != "params"}
    frozen = {name: jax.eval_shape(f.init, key) for name, f in task.frozen.items()}
    batch = task.batch_shapes(config.train.batch_size, 0)

    def gradients(parts, fixed, extras, frozen, batch, rng):
        def loss(parts):
            return task.loss(merge(parts, fixed), extras, frozen, batch, rng, True)[0][0]

        return jax.value_and_grad(loss)(parts)

    jaxpr = jax.make_jaxpr(gradients)(parts, fixed, extras, frozen, batch, key).jaxpr
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(used)


def _count(jaxpr) -> float:
    total = 0.0
    for e in jaxpr.eqns:
        if e.primitive.name == "dot_general":
            (contracted, _), _ = e.params["dimension_numbers"]
            sizes = [e.invars[0].aval.shape[i] for i in contracted]
            total += 2.0 * math.prod(e.outvars[0].aval.shape) * math.prod(sizes)
        elif e.primitive.name == "conv_general_dilated":
            filters = e.invars[1].aval.shape
            outputs = filters[e.params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * math.prod(e.outvars[0].aval.shape) * math.prod(filters) / outputs
        else:
            inner = jax.extend.core.jaxprs_in_params(e.params)
            times = e.params["length"] if e.primitive.name == "scan" else 1
            total += times * sum(_count(x) for x in inner)
    return total
