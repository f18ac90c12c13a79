"""Mistakes in a user's own task, model or data are named, without frames of bigjax and jax."""

import dataclasses
import re
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from bigjax import evals, main, tasks
from bigjax.errors import UserError
from bigjax.layers import params as params_lib
from bigjax.layers.basic import Dense, Embed
from bigjax.models import ModelOutput
from bigjax.parallel import mesh
from bigjax.tasks import _checks, causal_lm
from bigjax.train import program, stages
from tests import helpers

ZERO, PAIR = jnp.zeros(()), (jnp.zeros(()), jnp.ones(()))
ARGUMENTS = ({}, {}, {}, {}, None, True)


def built(build):
    """The Task that a module with this `build` makes."""
    config = ConfigDict({"task": {"name": "my_lab.own"}, "peft": {"name": ""}})
    return tasks._built(SimpleNamespace(build=build), config, None)


def with_loss(result):
    return tasks.Task(
        init=lambda rng: {"params": {}},
        axes={"params": {}},
        loss=lambda params, extras, frozen, batch, rng, train: result,
        load_data=lambda log, tokenizer=None, splits=None: None,
        batch_shapes=lambda batch_size, step: {},
    )


@pytest.mark.parametrize(
    "result, found",
    [
        (ZERO, "float32[]"),
        ((ZERO, ({}, {})), "(float32[], ({}, {}))"),
        (((jnp.zeros(8), ZERO), ({}, {})), "((float32[8], float32[]), ({}, {}))"),
        ((PAIR, {"a": PAIR, "b": PAIR}), "'a': (float32[], float32[])"),
        ((PAIR, ({"a": ZERO}, {})), "{'a': float32[]}"),
        ((PAIR, ({"a": "high"}, {})), "{'a': 'high'}"),
        ((PAIR, ({"a": (jnp.zeros(8), ZERO)}, {})), "{'a': (float32[8], float32[])}"),
        ((PAIR, ({}, None)), "({}, None)"),
    ],
)
def test_a_loss_of_another_form_is_refused(result, found):
    with pytest.raises(UserError) as e:
        built(lambda config, options: with_loss(result)).loss(*ARGUMENTS)
    assert "config.task.name='my_lab.own': loss returned" in str(e.value)
    assert found in str(e.value) and "((loss_sum, weight_sum), (metrics, extras))" in str(e.value)


@pytest.mark.parametrize("name", ["loss", "grad_norm", "two words"])
def test_a_metric_has_a_name_of_its_own(name):
    with pytest.raises(UserError, match=f"a metric named '{name}'"):
        built(lambda config, options: with_loss((PAIR, ({name: PAIR}, {})))).loss(*ARGUMENTS)


def test_a_loss_is_returned_as_it_came():
    result = (PAIR, ({"accuracy": PAIR}, {"batch_stats": {}}))
    assert built(lambda config, options: with_loss(result)).loss(*ARGUMENTS) is result


def test_reserved_names_are_those_that_a_step_reports():
    task = helpers.task(
        lambda rng: {"params": {"kernel": jnp.ones(2)}},
        lambda params, *rest: (((params["kernel"] ** 2).sum(), jnp.ones(())), ({}, {})),
        {"kernel": (None,)},
        batch_shapes=lambda n, step: {"x": jax.ShapeDtypeStruct((n,), jnp.float32)},
    )
    c = helpers.load_config("tests/tiny.py")
    compiled = program.make(c, task, mesh.make_mesh({"data": 1}, jax.devices()[:1]))
    (names,) = jax.eval_shape(compiled.step, compiled.abstract, {}, {"x": jnp.ones(8)})[1]
    assert {*names.split()} == {*_checks.STEP_METRICS}


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda config: None, "build has the parameters (config)"),
        (lambda config, options: None, "build returned None"),
        (
            lambda config, options: dataclasses.replace(
                with_loss(None), loss=lambda params, extras, frozen, batch, rng: None
            ),
            "loss has the parameters (params, extras, frozen, batch, rng), but bigjax calls it "
            "with (params, extras, frozen, batch, rng, train)",
        ),
        (
            lambda config, options: dataclasses.replace(with_loss(None), load_data=lambda: None),
            "load_data has the parameters ()",
        ),
    ],
)
def test_functions_with_other_parameters_are_refused(build, words):
    with pytest.raises(UserError, match=re.escape(f"'my_lab.own': {words}")):
        built(build)


@pytest.mark.parametrize(
    "variables, axes, words",
    [
        ({"w": ZERO}, {"w": ()}, "Task.init returned ['w']"),
        ({"params": {"w": ZERO}}, {}, "Task.init has params/w, but Task.axes does not"),
        ({"params": {}}, {"params": {"w": ()}}, "Task.axes has params/w, but Task.init does not"),
    ],
)
def test_variables_and_their_axes_belong_together(variables, axes, words):
    with pytest.raises(UserError, match=re.escape(words)):
        _checks.check_variables(SimpleNamespace(axes=axes), variables)


def test_data_of_another_type_are_refused():
    with pytest.raises(UserError, match="load_data returned None, which has no 'split'"):
        stages.load_data(with_loss(None), print)


def test_an_evaluator_of_another_form_is_refused(monkeypatch):
    def evaluator(build):
        monkeypatch.setattr(evals.modules, "of", lambda *section: SimpleNamespace(build=build))
        monkeypatch.setattr(evals.modules, "options", lambda *section: None)
        config = SimpleNamespace(evals={"own": SimpleNamespace(kind="my_lab.own")})
        return evals.build("own", SimpleNamespace(config=config))

    with pytest.raises(UserError, match=r"build has the parameters \(name\)"):
        evaluator(lambda name: None)
    with pytest.raises(UserError, match="kind='my_lab.own': build returned None"):
        evaluator(lambda name, options, context: None)
    with pytest.raises(UserError, match=r"its evaluator has the parameters \(params\)"):
        evaluator(lambda name, options, context: lambda params: {})
    for result, found in ((None, "None"), ({"mae": np.zeros(2)}, "{'mae': float64.2.}")):
        evaluate = evaluator(lambda name, options, context: lambda params, extras, step: result)
        with pytest.raises(UserError, match=f"its evaluator returned {found}"):
            evaluate({}, {}, 0)
    result = {"mae": jnp.ones(())}
    metrics = evaluate({}, {}, 0)
    assert metrics == {"mae": 1.0} and isinstance(metrics["mae"], float)


class Family:
    """A model of tokens without `scan` and FLOPs; `returns`: what its Model makes of logits."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        vocab_size: int = 8
        max_len: int = 4

    def __init__(self, returns=ModelOutput):
        class Model(nn.Module):
            config: Family.Config

            @nn.compact
            def __call__(self, tokens, positions=None, segments=None, rng=None):
                embed = Embed(8, 4, name="embed")
                return returns(embed.output(nn.Dense(4)(embed(tokens))))

        self.Model, self.decoder = Model, None


def causal(monkeypatch, family, options):
    c = SimpleNamespace(
        task=SimpleNamespace(name="causal_lm"),
        model=SimpleNamespace(name="my_lab.own"),
        data=SimpleNamespace(seq_len=4, packing=False),
    )
    own = {"model": family, "data": SimpleNamespace(load_text=None)}
    monkeypatch.setattr(tasks.modules, "of", lambda config, section: own[section])
    monkeypatch.setattr(tasks.modules, "options", lambda config, section: options)
    task = causal_lm.build(c, causal_lm.Config())
    row = np.zeros((2, 4), np.int32)
    batch = dict(inputs=row, targets=row, weights=row + 1.0, target_bytes=row[:, 0])
    params = lambda: task.init(jax.random.key(0))["params"]
    return task, lambda: task.loss(params(), {}, {}, batch, None, True)


def test_a_family_without_scan_and_flops(monkeypatch):
    task, loss = causal(monkeypatch, Family(), Family.Config())
    total, weight = jax.eval_shape(loss)[0]
    assert total.shape == weight.shape == () and task.flops_per_example == 0


@pytest.mark.parametrize(
    "returns, found",
    [
        (lambda linear: linear.product(), "returned float32[2, 4, 8]"),
        (lambda linear: ModelOutput(), "returned ModelOutput without `linear`"),
    ],
)
def test_a_model_returns_its_output_layer(monkeypatch, returns, found):
    _, loss = causal(monkeypatch, Family(returns), Family.Config())
    with pytest.raises(UserError, match=re.escape(found)):
        jax.eval_shape(loss)


def test_what_a_family_lacks_is_named(monkeypatch):
    family = Family()
    with pytest.raises(UserError, match="does not define Config.vocab_size"):
        causal(monkeypatch, family, SimpleNamespace(max_len=8))
    family.Model.__call__ = lambda self, tokens: None
    with pytest.raises(UserError, match=r"Model.__call__ has the parameters \(tokens\)"):
        causal(monkeypatch, family, Family.Config())
    del family.decoder
    with pytest.raises(UserError, match="needs a family that defines Model and decoder"):
        causal(monkeypatch, family, Family.Config())


def test_axes_of_a_parameter_are_as_many_as_its_dimensions():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self):
            return params_lib.param(self, "w", nn.initializers.zeros, (2, 3), ("mlp",))

    with pytest.raises(
        UserError, match=r"parameter w has 2 dimensions, \(2, 3\), but 1 axis names"
    ):
        jax.eval_shape(Layer().init, jax.random.key(0))
    with pytest.raises(UserError, match="Dense.features is 16; it must be a tuple"):
        jax.eval_shape(Dense(16, ("embed",), ("mlp",)).init, jax.random.key(0), jnp.ones((2, 3)))


def test_an_exception_of_own_code_is_shown_without_other_frames(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_TRACEBACK_FILTERING", "auto")
    path = tmp_path / "own.py"
    path.write_text(
        "import jax\ndef f(x):\n    return x + [1, 2][5]\ndef run():\n    jax.jit(f)(1)\n"
    )
    names: dict = {}
    exec(compile(path.read_text(), path, "exec"), names)

    def failure():
        try:
            names["run"]()
        except IndexError as e:
            return main._own_code_failure(_without_test(e))

    text = str(failure())
    assert text.startswith("Your own code raised IndexError:\n")
    assert re.findall(r'File "(.*?)", line (\d+)', text) == [(str(path), "5"), (str(path), "3")]
    assert "IndexError: list index out of range\n" in text and "For simplicity" not in text
    monkeypatch.setenv("JAX_TRACEBACK_FILTERING", "off")
    assert failure() is None


def test_other_exceptions_keep_their_traceback():
    try:
        jnp.zeros(2) + jnp.zeros(3)
    except TypeError as e:
        assert main._own_code_failure(_without_test(e)) is None


def _without_test(error):
    """The error as main sees it: without the frame of this file."""
    return error.with_traceback(error.__traceback__.tb_next)
