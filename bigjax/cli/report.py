"""Draws the curves of one or more runs."""

from bigjax.arguments import Arguments, Command, Flag

COMMAND = Command(
    flags=(Flag("out", ".png, .pdf, .svg; default: report.png in the first folder", value="FILE"),),
    workdirs=2,
)


def run(arguments: Arguments) -> None:
    from bigjax import report

    print(report.draw(arguments.flags.workdir, arguments.flags.out))
