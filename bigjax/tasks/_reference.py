"""The model that a task compares the trained one with, a frozen part: see tasks.Frozen."""

from bigjax.errors import UserError
from bigjax.tasks import Frozen


def reference_part(config, reference: str, init, axes, needed: str, others: str) -> Frozen:
    """The frozen part of task.reference: a folder; or, if that is empty, the base of config.peft
    without a copy, or init_from.

    needed: what needs it, others: how to do without, for messages. Raises UserError if there is
    none, and for an adapter that is trained further, of which the base is not the start.
    """
    own = config.model.name if "." in config.model.name else ""
    if reference:
        return Frozen(init, axes, reference, own)
    if config.peft.name and config.init_from not in ("", config.peft.base):
        raise UserError(
            f"{needed} needs a reference, and config.init_from={config.init_from!r} starts from an "
            "adapter: the base of config.peft is not the model before training. Merge the adapter "
            f"(bigjax export --workdir={config.init_from} --to=FOLDER) and train a new one with "
            "config.peft.base=FOLDER and config.init_from='', or set task.reference."
        )
    if not (config.peft.name or config.init_from):
        raise UserError(
            f"{needed} needs a reference, the model that the trained one is compared with. Set "
            "init_from to the model to start from, which is then the reference too; or "
            f"task.reference to a run's or a Hugging Face folder; {others}"
        )
    return Frozen(init, axes, "" if config.peft.name else config.init_from, own)
