"""The sides of a benchmark, each in its own process, run in turns.

Two libraries in one process would share thread pools and an allocator. Here each side is the same
script started again with `--side=NAME`; it waits on its stdin, repeats its work once for each line,
and answers with the seconds that took. Only one side runs at a time. All sides start with the same
settings of the allocator (bigjax/cpu.py).
"""

from collections.abc import Callable, Sequence
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from bigjax import cpu  # imports no jax


class Side:
    """A running side. `about`: what it reported when it was ready.

    Calling it repeats its work on `task` (any line of text) and returns its answer: seconds, and
    whatever else it measures.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, *sys.argv, f"--side={name}"],
            env=os.environ | cpu.environment(),  # as `bigjax` starts itself
            text=True,
            bufsize=1,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.about = self._answer()

    def __call__(self, task: str = "") -> dict:
        self._process.stdin.write(task + "\n")
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with code {self._process.wait()}: see its error above.")
        return json.loads(line)

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *error) -> None:
        self._process.stdin.close()  # it reads the end of its input, and ends
        self._process.wait()


def serve(about: dict, repeat: Callable[[str], dict | None]) -> None:
    """A side's process: reports `about`, then times `repeat(task)` for each line that it reads.

    What `repeat` returns is added to the answer.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not be read as an answer
    print(json.dumps(about), file=answers)
    for line in sys.stdin:
        start = time.perf_counter()
        more = repeat(line.strip())
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, **(more or {})}), file=answers)


def serve_training(c, make_batch: Callable[[], dict], what: str) -> None:
    """Our side of a training benchmark: the steps of config c, on one batch on its devices.

    To be called before jax is imported. what: reported in addition to versions and devices. Frozen
    parts have random numbers. A task is the number of steps, 1 by default; answers have the
    device's peak_bytes, None on a CPU. c.init_from: a folder with the initial parameters, '' for
    random ones.
    """
    cpu.keep_freed_memory()  # as bigjax/main.py does
    import jax

    from bigjax import modules, tasks
    from bigjax.parallel import mesh as mesh_lib
    from bigjax.parallel import sharding
    from bigjax.train import frozen as frozen_lib
    from bigjax.train import program as program_lib
    from bigjax.train.step import unpack
    from bigjax.trees import count

    modules.fill(c)
    n = c.train.batch_size
    mesh = mesh_lib.start(c.mesh, n)
    device = mesh.devices.flat[0]
    program = program_lib.make(c, tasks.build(c), mesh)
    state = _first_state(c, program)
    parameters = count(state.params)
    frozen = {}  # random numbers: the speed does not depend on them
    for name, shapes in frozen_lib.shapes(program.task, mesh).items():
        shardings = jax.tree.map(lambda x: x.sharding, shapes)
        init = jax.jit(program.task.frozen[name].init, out_shardings=shardings)
        frozen[name] = init(jax.random.key(0))
    trained = (state.params, state.params, state.opt_state)  # with the gradients
    trained_bytes = sum(x.nbytes for x in jax.tree.leaves(trained))
    batch = sharding.put_batch(mesh, make_batch(), slice(0, n), n)

    def repeat(task: str) -> dict:
        nonlocal state
        for _ in range(int(task or 1)):
            state, metrics = program.step(state, frozen, batch)
        jax.block_until_ready((state, metrics))
        memory = device.memory_stats() or {}
        loss = unpack(jax.device_get(metrics))["loss"]
        return {"loss": loss, "peak_bytes": memory.get("peak_bytes_in_use")}

    losses = [repeat("")["loss"] for _ in range(2)]  # the first compiles
    layers = ""
    if "attention" in c.model:
        how = "scanned" if c.model.scan else "unrolled"
        layers = f", attention {c.model.attention}, {how} layers"
    serve(
        {
            "parameters": parameters,
            "loss": losses[0],
            "losses": losses,
            "device": device.device_kind,
            "trained_bytes": trained_bytes,
            "saved_bytes": trained_bytes - sum(x.nbytes for x in jax.tree.leaves(state.params)),
            "what": f"bigjax, jax {jax.__version__}, {mesh.size} x {device.device_kind}{layers}"
            f"{what}",
        },
        repeat,
    )


def _first_state(c, program):
    """A state at step 0: with random parameters, or those of c.init_from."""
    from bigjax.train import first_state, init_from

    state = program.init()
    if not c.init_from:
        return state
    variables = {**state.params, **state.extras}
    with tempfile.TemporaryDirectory() as cache:  # for a tokenizer, which is not needed
        source = init_from.open_source(c.init_from, cache, c.model.name)
        loaded = init_from.initialise(variables, source, c.init_reset, lambda line: None)
    params, extras = ({k: loaded[k] for k in tree} for tree in (state.params, state.extras))
    return first_state.replaced(state, params, extras, program.shardings)


def use_adamw(
    c, learning_rate: float, b1: float, b2: float, weight_decay: float, clip_norm: float
) -> None:
    """Sets AdamW at a constant learning rate in config c, as torch.optim.AdamW has it."""
    c.optim.update(
        name="adamw",
        learning_rate=learning_rate,
        schedule="constant",
        b1=b1,
        b2=b2,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
    )


def random_tokens(batch: int, context: int, vocabulary: int) -> tuple:
    """Random tokens and what follows each, int [batch, context]: the speed does not depend on
    them."""
    import numpy as np

    tokens = np.random.default_rng(0).integers(0, vocabulary, (batch, context + 1))
    return tokens[:, :-1], tokens[:, 1:]


def text_batch(inputs, targets) -> dict:
    """A batch of tokens [B, T] as from bigjax.data, without packing."""
    import numpy as np

    B, T = inputs.shape
    return {
        "inputs": inputs.astype(np.int32),
        "targets": targets.astype(np.int32),
        "weights": np.ones((B, T), np.float32),
        "target_bytes": np.full(B, T, np.int32),
    }


def take_turns(
    sides: Sequence[Side], rounds: int, task: str = "", warm: bool = False
) -> dict[str, list[float]]:
    """Seconds of every round by side; the order alternates, so that drift cancels.

    warm: each turn begins with a repetition that is not timed. A virtual machine may have taken
    back the memory that a side freed before it waited, which no steadily running program sees.
    """
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for i in range(rounds):
        for side in sides[::-1] if i % 2 else sides:
            if warm:
                side(task)
            seconds[side.name].append(side(task)["seconds"])
    return seconds


def speeds(amount: float, seconds: Sequence[float]) -> tuple[float, str]:
    """The median of amount / seconds, and a text with the slowest and the fastest."""
    median = amount / statistics.median(seconds)
    return median, (
        f"{median:10,.1f} (of {len(seconds)}: {amount / max(seconds):,.1f} to "
        f"{amount / min(seconds):,.1f})"
    )


def load() -> str:
    """A line about other load on the machine, which slows the sides unequally."""
    return f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.2f} before the start"
