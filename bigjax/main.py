"""The `bigjax` command: reads flags and dispatches."""

import os
import sys

from bigjax import cpu

cpu.keep_freed_memory()  # before jax is imported

from bigjax import cloud, commands  # noqa: E402
from bigjax.errors import RunError, UserError  # noqa: E402


def main(argv: list[str]) -> int:
    """Runs one command. 0: done; 2: bad input; 75: failed, but the same command may go on when it
    is given again; 1: anything else."""
    try:
        return commands.run(argv)
    except (UserError, RunError) as e:
        error = e
    except (Exception, KeyboardInterrupt) as e:
        error = cloud.failure(e) if isinstance(e, Exception) else None
        if error is None:
            _tell_hosts(f"{type(e).__name__}: {e}", 1, e)
            raise
    _tell_hosts(str(error), error.exit_code)
    print(f"bigjax: {error}", file=sys.stderr)
    return error.exit_code


def _tell_hosts(text: str, code: int, unexpected: BaseException | None = None) -> None:
    """Ends the run on all hosts, if it has more than this one."""
    hosts = sys.modules.get("bigjax.parallel.hosts")  # jax is slow to import, just to say this
    if hosts:
        hosts.fail(text, code, unexpected)


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
