"""Rollouts: before a step the model completes the prompts of its batch, and the completions are
rewarded (tasks.Rollouts). The step is then a function of the state and the completed batch."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigjax import json_text, modules
from bigjax.errors import UserError
from bigjax.infer.rollout import Sampled, sample_until
from bigjax.layers.params import unrolled
from bigjax.models import Decoder, prefix_context
from bigjax.parallel import hosts, sharding
from bigjax.parallel.mesh import AXES, BATCH_AXES
from bigjax.train import rewards as rewards_lib
from bigjax.train.loop import Interrupted
from bigjax.train.state import split

_KEY = (
    2**32 - 1
)  # folded into the seed's key; steps, which the other keys of a run use, are smaller
_SHOWN = 4  # prompts of a step in samples.jsonl


class Completed(NamedTuple):
    """What was sampled in a step, on the host: the rows of this process.

    rows: of the data, one for each prompt. texts, rewards: of each prompt and sample.
    """

    rows: list[dict[str, Any]]
    texts: list[list[str]]
    rewards: np.ndarray  # float32 [B, G, R]


class Rollouts:
    """Completes the batches of a run.

    error: what ended the run, None unless a reward failed. kept: {step: its complete batch} of the
    last two steps, as the metrics of a step arrive one step late.
    """

    def __init__(self, run: Any, start: int, write: Callable[[int, list[str]], None]) -> None:
        """run: a train.run.Run after step `start`. write(step, lines): to samples.jsonl.

        Raises UserError for a model that cannot write, and as rewards.build does.
        """
        task, self._run, self._write = run.program.task, run, write
        self._options, self._mesh, self._step = task.rollouts, run.program.mesh, start
        self.error: Exception | None = None
        self.kept: dict[int, dict] = {}
        self._data = run.corpus.rows("train")
        self._columns = sorted({name for row in self._data for name in row["columns"]})
        self._sample = make_sampler(run.config, task, self._mesh, run.corpus)
        self._scorers = rewards_lib.build(self._options.rewards, self._columns, run.config)

    def __call__(self, state: Any, batch: dict) -> dict:
        """The complete batch of the next step. Raises loop.Interrupted if a reward fails."""
        step, size = self._step, self._run.config.train.batch_size
        frozen = self._run.frozen.arrays
        sampled = self._sample(state.params, state.extras, frozen, batch, np.uint32(step))
        rows = sharding.local_rows(self._mesh, size)
        completed = self._rewarded(batch, sampled, rows, step + 1)
        scores = sharding.put_batch(self._mesh, {"rewards": completed.rewards}, rows, size)
        batch = {**batch, **sampled, **scores}
        self._show(step + 1, completed)
        self.kept = {step: batch, **{k: b for k, b in self.kept.items() if k == step - 1}}
        self._step += 1
        return batch

    def _rewarded(self, batch: dict, sampled: dict, rows: slice, step: int) -> Completed:
        """The texts of this process's rows with their rewards. All processes stop together."""
        examples, tokens, mask = (
            _on_host(x, rows) for x in (batch["example"], sampled["completion"], sampled["mask"])
        )
        chosen, message, scores = [self._data[i] for i in examples], "", None
        texts = [
            [self._text(ids[real > 0]) for ids, real in zip(*of_prompt)]
            for of_prompt in zip(tokens, mask)
        ]
        try:
            scores = self._scores(chosen, texts, step)
        except UserError as e:
            self.error, message = e, str(e)
        failed = [i for i, text in enumerate(hosts.gather(message)) if text]
        if failed and not self.error:
            self.error = rewards_lib.BadReward(
                f"A reward failed on process {failed[0]} at step {step}; its own output says why."
            )
        if self.error:
            raise Interrupted
        assert scores is not None
        return Completed(chosen, texts, scores)

    def _scores(self, rows: list[dict], texts: list[list[str]], step: int) -> np.ndarray:
        n = self._options.samples
        repeat = lambda values: [value for value in values for _ in range(n)]
        columns = {c: repeat(row["columns"].get(c) for row in rows) for c in self._columns}
        prompts = repeat(row["prompt"] for row in rows)
        flat = [text for of_prompt in texts for text in of_prompt]
        scores = rewards_lib.score(self._scorers, prompts, flat, columns, step)
        return scores.reshape(len(rows), n, -1)

    def _text(self, ids: np.ndarray) -> str:
        """Without the end token; an answer in a conversation without the white space around it."""
        ends = self._run.corpus.end_ids
        text = self._run.corpus.tokenizer.decode([i for i in ids.tolist() if i not in ends])
        return text.strip() if self._run.corpus.template else text

    def _show(self, step: int, completed: Completed) -> None:
        every, names = self._options.show_every, [*self._options.rewards]
        if not every or not (step == 1 or step % every == 0):
            return
        lines = [
            json_text.dumps(
                {
                    "step": step,
                    "prompt": row["prompt"],
                    "completions": texts,
                    "rewards": {n: scores[:, i].tolist() for i, n in enumerate(names)},
                },
                ensure_ascii=False,
            )
            for row, texts, scores in zip(
                completed.rows[:_SHOWN], completed.texts, completed.rewards
            )
        ]
        self._write(step, lines)
        row, text, score = completed.rows[0], completed.texts[0][0], completed.rewards[0, 0]
        shown = "  ".join(f"{name} {x:.3g}" for name, x in zip(names, score))
        prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        self._run.progress.log(f"step {step}  {_brief(prompt)} -> {_brief(text)}  {shown}")


def make_sampler(config: Any, task: Any, mesh: Any, corpus: Any) -> Callable[..., dict]:
    """sample(params, extras, frozen, batch, step) -> the arrays of tasks.Rollouts but the rewards.

    Parameters are gathered over fsdp once, before the loop over tokens: the sampler runs on a mesh
    whose axis `data` has the devices of both. Those that are sharded over `tensor` stay so.
    """
    family = modules.of(config, "model")
    decoder = task.decoder(family.decoder(task.model_config))
    _check_decoder(decoder, config)
    whole = _without_fsdp(mesh)
    r, pad_id, ends = task.rollouts, corpus.tokenizer.pad_id, tuple(corpus.end_ids)

    def sample(params, extras, frozen, batch, step):
        variables = unrolled(task.variables(params, extras, frozen))
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), _KEY), step)
        sampled = completions(decoder, variables, batch, key, r, ends, pad_id)
        by_prompt = lambda x: x.reshape(-1, r.samples, r.max_new_tokens)
        return {
            "completion": by_prompt(sampled.tokens),
            "mask": by_prompt(sampled.mask),
            "sampler_log_probs": by_prompt(sampled.log_probs),
            "ended": sampled.ended.reshape(-1, r.samples),
        }

    run = jax.jit(sample, out_shardings=sharding.of_batch(whole))
    if whole is mesh:
        return run
    gather = jax.jit(lambda trees: trees, out_shardings=_gathered(task, mesh))

    def on_whole(params, extras, frozen, batch, step):
        trees = _moved(gather((params, extras, frozen)), whole)
        with jax.set_mesh(whole):
            return _moved(run(*trees, _moved(batch, whole), step), mesh)

    return on_whole


def completions(
    decoder: Decoder,
    variables: Any,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    options: Any,
    end_ids: tuple[int, ...],
    pad_id: int,
) -> Sampled:
    """options.samples completions of each prompt of a batch, those of a prompt after each other.

    options: tasks.Rollouts. Each prompt is read once.
    """
    prompt, lengths = batch["prompt"], batch["prompt_length"]
    last = jnp.take_along_axis(prompt, lengths[:, None] - 1, axis=1)[:, 0]
    slots = prompt.shape[1] + options.max_new_tokens
    state = decoder.begin(variables, {"tokens": prompt, "lengths": lengths - 1}, slots)

    def repeated(x):
        x = jnp.broadcast_to(x[:, None], (len(x), options.samples, *x.shape[1:]))
        x = x.reshape(-1, *x.shape[2:])
        return sharding.constrain(x, "batch", *[None] * (x.ndim - 1))

    state, last = jax.tree_util.tree_map(repeated, (state, last))
    return sample_until(
        decoder,
        variables,
        state,
        last,
        key,
        options.max_new_tokens,
        end_ids=end_ids,
        pad_id=pad_id,
        temperature=options.temperature,
    )


def _check_decoder(decoder: Decoder, config: Any) -> None:
    if decoder.context is not prefix_context:
        raise UserError(
            f"config.task.name={config.task.name!r} needs a model that continues a prompt, such as "
            f"model.name='gpt'; model.name is {config.model.name!r}."
        )
    if config.data.seq_len > decoder.max_len:
        raise UserError(
            f"data.seq_len={config.data.seq_len} is longer than {decoder.limit}={decoder.max_len}, "
            "the longest text that this model writes. Lower data.seq_len."
        )


def _without_fsdp(mesh):
    """The mesh with the devices of fsdp in `data`; the rows of a batch are on the same devices."""
    data, fsdp, *others = (mesh.shape[a] for a in AXES)
    if fsdp == 1:
        return mesh
    devices = mesh.devices.reshape(data * fsdp, 1, *others)
    return jax.sharding.Mesh(devices, AXES, axis_types=mesh.axis_types)


assert AXES[:2] == BATCH_AXES  # `_without_fsdp` joins them


def _gathered(task: Any, mesh) -> tuple:
    """The shardings of (params, extras, frozen) without fsdp."""

    def of(init, axes):
        shapes = jax.eval_shape(init, jax.eval_shape(jax.random.key, 0))
        return jax.tree_util.tree_map(without, sharding.of_params(mesh, shapes, axes))

    def without(at_rest):
        kept = (tuple(a for a in sharding.mesh_axes(p) if a != "fsdp") for p in at_rest.spec)
        return jax.sharding.NamedSharding(
            mesh, jax.sharding.PartitionSpec(*(k or None for k in kept))
        )

    params, extras = split(of(task.init, task.axes))
    return params, extras, {name: of(part.init, part.axes) for name, part in task.frozen.items()}


def _moved(tree: Any, mesh) -> Any:
    """The same arrays as those of another mesh of the same devices, without copies."""

    def leaf(x):
        at = jax.sharding.NamedSharding(mesh, x.sharding.spec)
        shards = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, at, shards)

    return jax.tree_util.tree_map(leaf, tree)


def _on_host(x: jax.Array, rows: slice) -> np.ndarray:
    """The rows of a batch's array that this process has, of all that `local_rows` names; those
    between them, which other processes have, are those of the first one."""
    if x.is_fully_addressable:
        return np.asarray(x)[rows]
    out = None
    for shard in x.addressable_shards:
        start, stop, _ = shard.index[0].indices(len(x))
        part = np.asarray(shard.data)
        if out is None:
            out = np.tile(part[:1], (rows.stop - rows.start, *[1] * (part.ndim - 1)))
        out[start - rows.start : stop - rows.start] = part
    assert out is not None
    return out


def _brief(text: str) -> str:
    line = repr(text)
    return line if len(line) <= 80 else f"{line[:77]}..."
