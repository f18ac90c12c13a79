"""A sheet of what a task's model makes of images, such as the reconstructions of masked ones."""

import dataclasses

import jax

from bigjax.bounds import at_least
from bigjax.errors import UserError
from bigjax.evals import Context
from bigjax.parallel import sharding
from bigjax.report import pyplot, write_figure


@dataclasses.dataclass(frozen=True)
class Config:
    split: str = "valid"
    n: int = 8  # images

    RANGES = {"n": at_least(1)}


def build(name: str, options: Config, context: Context):
    """Writes WORKDIR/evals/NAME/step_STEP.png: a column for each image, a row for each picture of
    Task.pictures. Has no metrics."""
    config, task = context.config, context.task
    if task.pictures is None:
        raise UserError(
            f"evals.{name}.kind='pictures' needs a task that makes pictures, such as "
            f"task.name='mae'; task.name is {config.task.name!r}."
        )
    batch_size = config.train.batch_size
    data = context.corpus.split(options.split, batch_size=batch_size, shuffle=False)
    run = jax.jit(task.pictures, out_shardings=sharding.replicated(context.mesh))

    def evaluate(params, extras, step: int) -> dict[str, float]:
        (batch,) = sharding.device_batches(context.mesh, data, batch_size, 1)
        pictures = jax.device_get(run(params, extras, context.frozen, batch))
        n = min(options.n, data.n_rows, batch_size)
        if jax.process_index() == 0:
            write = lambda folder: draw(folder / f"step_{step}.png", pictures, n, step)
            where = context.write(name, write)
            context.log(f"{name}, step {step}{where}")
        return {}

    evaluate.metrics = ()
    return evaluate


def draw(path, pictures, n: int, step: int) -> None:
    """The first n pictures [B, H, W, channels] of each field of a NamedTuple, as a row."""
    plt = pyplot()
    figure, axes = plt.subplots(
        len(pictures),
        n,
        figsize=(max(4.0, 1.2 * n), 1.3 * len(pictures) + 0.3),
        squeeze=False,
        layout="constrained",
    )
    for row, (name, images) in zip(axes, pictures._asdict().items()):
        for axis, image in zip(row, images):
            grey = image.shape[-1] == 1
            axis.imshow(image[..., 0] if grey else image, cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    figure.suptitle(f"step {step}")
    write_figure(figure, path, dpi=110)
