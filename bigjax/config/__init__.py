"""Configs: all keys with defaults, loading a file, overrides, checks, and the saved copy.

A config file is Python with `get_config(variant='')`. It starts from `new_config()` and sets keys;
an optional `complete(config, given)` sets those that follow from others, see files.load.
The sections `model`, `task`, `data` and each of `evals` name a module, whose
`Config` dataclass owns their other keys.
"""

from bigjax.config.checks import (
    build,
    check_keys,
    check_numbers,
    check_values,
    get,
    nearest,
    sorted_leaves,
)
from bigjax.config.files import (
    DEFAULT_CONFIG,
    ROOT,
    config_files,
    find_config,
    first_docstring_line,
    folder_of,
    load,
    load_file,
    projects,
    set_python_path,
    variants,
)
from bigjax.config.keys import (
    FIXED,
    FIXED_ZERO,
    NOT_COMPILED,
    OPEN_SECTIONS,
    STEP_KEYS,
    laptop_size,
    new_config,
)
from bigjax.config.override import expand_paths, override
from bigjax.config.text import describe, from_json, to_json

__all__ = [
    "DEFAULT_CONFIG",
    "FIXED",
    "FIXED_ZERO",
    "NOT_COMPILED",
    "OPEN_SECTIONS",
    "ROOT",
    "STEP_KEYS",
    "build",
    "check_keys",
    "check_numbers",
    "check_values",
    "config_files",
    "describe",
    "expand_paths",
    "find_config",
    "first_docstring_line",
    "folder_of",
    "from_json",
    "get",
    "laptop_size",
    "load",
    "load_file",
    "nearest",
    "new_config",
    "override",
    "projects",
    "set_python_path",
    "sorted_leaves",
    "to_json",
    "variants",
]
