"""Shows the images of a config as a model receives them: a sheet of training images with labels.

With all random changes of data.augment, and a second sheet after task.mixup and task.cutmix.
"""

from bigjax.arguments import Arguments, Command, Flag
from bigjax.errors import UserError
from bigjax.plural import plural

COMMAND = Command(
    flags=(
        Flag("output", "the picture: .png, .pdf or .svg", "look.png", "FILE"),
        Flag("n", "number of images", 64),
        Flag("split", "train, valid or test; the last two as evaluation shows them", "train"),
    ),
    config=True,
    workdirs=0,
    keys=("",),
)
_MOST = 1024


def run(arguments: Arguments) -> None:
    from bigjax import report
    from bigjax.report import sheet
    from bigjax.train import look, stages

    f = arguments.flags
    report.check_suffix(f.output, "--output")
    if not 1 <= f.n <= _MOST:
        raise UserError(f"--n is {f.n}; it must be from 1 to {_MOST:,}.")
    config, _ = arguments.config()
    stages.check(config)
    sheets = look.sheets(config, f.split, f.n)
    report.save(sheet.figure_of(sheets), f.output, "--output")
    n = len(sheets[0].images)
    mixed = ", and below after task.mixup and task.cutmix" * (len(sheets) > 1)
    print(f"Wrote {f.output}: {n:,} {plural(n, 'image')} of the {f.split} split{mixed}")
