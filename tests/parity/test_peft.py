"""LoRA adapters of the package peft (see check_peft.py): its logits, bytes, and what is refused."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from bigjax import interop, main
from bigjax.errors import UserError
from bigjax.interop import adapters
from bigjax.models import gpt
from bigjax.peft import lora
from bigjax.train import load as load_lib
from bigjax.train import workdir as workdir_lib
from tests.conftest import on_one_device

FROZEN = dict(np.load(pathlib.Path(__file__).parent / "peft.npz"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, compiled_programs):
    """With `base`, `adapter`, and `run`, the imported adapter."""
    root = tmp_path_factory.mktemp("peft")
    for name, content in FROZEN.items():
        if "/" in name:
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(content.tobytes())
    with on_one_device(compiled_programs):
        assert import_(root / "adapter", root / "run", root / "base") == 0
    return root


def import_(source, workdir, base) -> int:
    flags = [f"--from={source}", f"--workdir={workdir}", f"--config.peft.base={base}"]
    return main.main(["import", *flags])


def test_an_imported_adapter_computes_the_same(folder):
    config = workdir_lib.read_config(folder / "run")
    assert config.peft.rank == 2 and config.peft.alpha == 4.0
    loaded = load_lib.load(str(folder / "run"), config, None, None)
    model = gpt.Model(loaded.task.model_config)
    logits = model.apply(loaded.variables, FROZEN["tokens"]).logits
    np.testing.assert_allclose(logits, FROZEN["logits"], atol=1e-5)


def test_its_export_has_the_same_bytes(folder, tmp_path):
    flags = [f"--workdir={folder / 'run'}", f"--to={tmp_path / 'again'}", "--adapter"]
    assert main.main(["export", *flags]) == 0
    for name in (adapters.CONFIG, adapters.WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == FROZEN[f"adapter/{name}"].tobytes(), name


def test_factors_of_parts_of_a_fused_layer_are_stacked(folder, tmp_path):
    """They come back as one pair of twice the rank, with the same product and the same bytes."""
    base = interop.read(str(folder / "base"), "gpt", "")
    options = dataclasses.asdict(lora.Config(rank=2, alpha=3.0))
    rng, params, deltas = np.random.default_rng(0), {}, {}
    for i in range(2):
        for name in ("query", "value"):
            path = f"stack/layer_{i}/attention/{name}"
            a, b = rng.normal(size=(16, 2)), rng.normal(size=(2, 2, 8))
            params |= {f"{path}/{adapters.A}": a, f"{path}/{adapters.B}": b}
            deltas[path] = 1.5 * np.tensordot(a, b, 1)
    of = dict(family=base.family, architecture=base.architecture, model=base.model)
    more = dict(task="causal_lm", base="somewhere")
    adapters.write(tmp_path / "a", **of, **more, options=options, params=params)
    config = json.loads((tmp_path / "a" / adapters.CONFIG).read_text())
    assert config["target_modules"] == ["c_attn"] and config["fan_in_fan_out"]
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (4, 6, {})
    again = adapters.read(tmp_path / "a", **of)
    scale = again.options["alpha"] / again.options["rank"]
    for path in again.layers:
        product = again.params[f"{path}/{adapters.A}"] @ again.params[f"{path}/{adapters.B}"]
        want = deltas.get(path, np.zeros((16, 16)))
        np.testing.assert_allclose(scale * product, want.reshape(16, 16), atol=1e-5)
    options |= again.options
    adapters.write(tmp_path / "b", **of, **more, options=options, params=again.params)
    for name in (adapters.CONFIG, adapters.WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(modules_to_save=["lm_head"]), r"no counterpart of modules_to_save=\['lm_head'\]"),
        (dict(rank_pattern={"c_attn": 4}), "rank_pattern"),
        (dict(bias="all"), "bias='all'"),
        (dict(init_lora_weights="pissa"), "init_lora_weights='pissa'"),
        (dict(peft_type="IA3"), "peft_type is 'IA3'"),
        (dict(r=3), "must be .3, 16.*another base"),
    ],
)
def test_what_has_no_place_is_named(folder, tmp_path, change, message):
    base = interop.read(str(folder / "base"), "gpt", "")
    for name in (adapters.CONFIG, adapters.WEIGHTS):
        (tmp_path / name).write_bytes(FROZEN[f"adapter/{name}"].tobytes())
    config = json.loads((tmp_path / adapters.CONFIG).read_text())
    (tmp_path / adapters.CONFIG).write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=message):
        adapters.read(tmp_path, base.family, base.architecture, base.model)


def test_commands_that_cannot_be_meant_are_refused(folder, tmp_path, capsys):
    flags = [f"--from={folder / 'adapter'}", f"--workdir={tmp_path / 'run'}"]
    assert main.main(["import", *flags]) == 2
    assert "is an adapter without its base" in capsys.readouterr().err
    with pytest.raises(UserError, match="no place for 1 parameters of this run: head/kernel"):
        base = interop.read(str(folder / "base"), "gpt", "")
        given = adapters.read(folder / "adapter", base.family, base.architecture, base.model)
        adapters.write(
            tmp_path / "own",
            family=base.family,
            architecture=base.architecture,
            model=base.model,
            task="causal_lm",
            base="",
            options=given.options,
            params={**given.params, "head/kernel": np.zeros((2, 2))},
        )
