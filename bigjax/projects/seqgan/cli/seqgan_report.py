"""Compares runs of SeqGAN's oracle experiment, in a table and a picture."""

from bigjax.arguments import Arguments, Command, Flag

COMMAND = Command(
    flags=(
        Flag(
            "out",
            ".png, .pdf, .svg; default: seqgan-report.png in the first folder",
            value="FILE",
        ),
    ),
    workdirs=2,
)


def run(arguments: Arguments) -> None:
    from bigjax.projects.seqgan import report

    print(report.draw(arguments.flags.workdir, arguments.flags.out))
