"""Lists every config with the first line of its docstring."""

from bigjax import config as config_lib
from bigjax.arguments import Arguments, Command

COMMAND = Command(workdirs=0)


def run(arguments: Arguments) -> None:
    del arguments
    for path in config_lib.config_files():
        print(f"{path.relative_to(config_lib.ROOT)!s:<32} {config_lib.first_docstring_line(path)}")
