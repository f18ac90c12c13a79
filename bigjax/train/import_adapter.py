"""`bigjax import` of a LoRA adapter of peft: a run at step 0 with config.peft, on the given base.

An export of step 0 with --adapter gives the original files back, byte for byte.
"""

from collections.abc import Callable, Sequence
import dataclasses
import json
import pathlib
import re
import shutil
from typing import Any

from etils import epath
import jax
import numpy as np

from bigjax import config as config_lib
from bigjax import interop, modules, tasks
from bigjax.data.files import cache_dir
from bigjax.errors import UserError
from bigjax.interop import adapters
from bigjax.parallel import mesh as mesh_lib
from bigjax.peft import is_stacked, nested, normal_path
from bigjax.train import frozen, import_model
from bigjax.train import workdir as workdir_lib
from bigjax.trees import count, layer_names, named_leaves

_BASE = "--config.peft.base="


def import_run(
    source: str,
    workdir: str,
    log: Callable[[str], None] = print,
    overrides: Sequence[str] = (),
) -> None:
    """Creates the work folder of a run at step 0 from the folder of an adapter.

    overrides: --config.KEY=VALUE for the new run's config, peft.base among them. Raises UserError,
    and leaves no folder, for an adapter that bigjax does not support or that does not belong to the
    base, and a workdir that is not empty.
    """
    mesh_lib.check_settings()
    bases = [o.removeprefix(_BASE) for o in overrides if o.startswith(_BASE)]
    if not bases:
        raise UserError(
            f"{source} is an adapter without its base. Give the model that it was trained on, a "
            f"run's work folder or a Hugging Face folder: {_BASE}FOLDER."
        )
    base, rest = bases[-1], [o for o in overrides if not o.startswith(_BASE)]
    c = config_lib.new_config()
    config_lib.set_python_path(c, pathlib.Path.cwd())
    imported = None
    if interop.is_huggingface(base):
        imported = interop.read(base, c.model.name, c.python_path)
        config, overridden = import_model.config_of(c, imported, rest)
    else:
        config = workdir_lib.read_config(base).unlock()
        config.update(init_from="", init_reset="", resume_from="")
        config_lib.override(config, rest, modules.filled(config), modules.types(config))
        overridden = {}
    model = {"name": config.model.name, **dataclasses.asdict(modules.options(config, "model"))}
    family = interop.family_of(model, config.python_path)
    with config.unlocked():  # on any devices
        config.mesh.update(data=-1, fsdp=1, sequence=1, tensor=1)
        config.peft = {"name": ""}
    mesh = mesh_lib.start(config.mesh, None)
    of_base = jax.eval_shape(tasks.build(config).init, jax.random.key(0))["params"]
    architecture = family.architecture_of(named_leaves(of_base))
    adapter = adapters.read(source, family, architecture, model)
    chosen = sorted({normal_path(layer) for layer in adapter.layers})
    with config.unlocked():
        targets = f"^({'|'.join(map(re.escape, chosen))})$"
        config.peft = {"name": "lora", "base": base, "also": "", "targets": targets}
        config.peft.update(adapter.options)
        modules.fill(config)
    task = tasks.build(config)
    with interop.new_folder(workdir) as folder:
        if imported:
            import_model.import_tokenizer(
                imported, config, folder / "tokenizer", workdir, overridden, log
            )
        elif (own := pathlib.Path(base).expanduser() / "tokenizer").is_dir():
            shutil.copytree(own, folder / "tokenizer")
        parts = frozen.load(task, mesh, cache_dir(config), log, config.python_path)
        params = _params(task, adapter, source)
        (folder / adapters.ORIGIN).write_text(
            json.dumps({"config": adapter.config, "header": adapter.header}), encoding="utf-8"
        )
        workdir_lib.write_config(epath.Path(folder), config)
        import_model.save(folder, {"params": params}, config, frozen=parts.fingerprints)
    log(
        f"Wrote {workdir}: an adapter of {count(params):,} parameters as step 0, for "
        f"{', '.join(chosen)} of {base}"
    )


def _params(task: Any, adapter: adapters.Adapter, source: str) -> dict:
    """The task's parameters as host arrays."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    if len(shapes) > 1:
        raise UserError(
            f"{source}: an adapter of a model with {', '.join(k for k in shapes if k != 'params')} "
            "beside its parameters cannot be imported."
        )
    out = {}
    for name, x in named_leaves(shapes["params"]).items():
        absent = [n for n in layer_names(name, x) if n not in adapter.params]
        if absent:
            raise UserError(
                f"{source} adapts some layers of a stack only: it has no {absent[0]}. bigjax "
                "adapts a kind of layer in all of them (layers_to_transform has no counterpart)."
            )
        layers = [adapter.params[n] for n in layer_names(name, x)]
        stacked = np.stack(layers) if is_stacked(name) else layers[0]
        out[name] = stacked.reshape(x.shape)
    return nested(out)
