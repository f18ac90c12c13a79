"""The `bigjax` command: reads flags and dispatches."""

import os
import sys

from bigjax import cpu

cpu.keep_freed_memory()  # before jax is imported

from bigjax import commands  # noqa: E402
from bigjax.errors import RunError, UserError  # noqa: E402


def main(argv: list[str]) -> int:
    """Runs one command. 0: done; 2: bad input; 1: anything else."""
    try:
        return commands.run(argv)
    except UserError as e:
        print(f"bigjax: {e}", file=sys.stderr)
        return 2
    except RunError as e:
        print(f"bigjax: {e}", file=sys.stderr)
        return 1


def cli() -> None:
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `bigjax config | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    cli()
