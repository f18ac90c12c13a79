"""Writes the golden resolved configs: every key of each config and variant in configs/.

    python tests/golden_configs/make.py

One file per config and variant, {dotted key: value}. tests/unit/test_golden_configs.py compares, so
that a changed default shows in review.
"""

import json
import pathlib
import shutil
from unittest import mock

from bigjax import config
from bigjax.arguments import Arguments

FOLDER = pathlib.Path(__file__).parent
COMMAND = "python tests/golden_configs/make.py"


def variants(path: pathlib.Path) -> list[str]:
    """The variants of a config file: '' and those that it passes to config.variants."""
    names: dict[str, None] = {}
    original = config.variants

    def recorded(variant, **choices):
        names.update(dict.fromkeys(choices))
        return original(variant, **choices)

    with mock.patch.object(config, "variants", recorded):
        config.load_file(str(path))
    return ["", *names]


def golden_file(path: pathlib.Path, variant: str) -> pathlib.Path:
    name = path.relative_to(config.ROOT / "configs").with_suffix("")
    return FOLDER / name / f"{variant or 'default'}.json"


def resolved(path: pathlib.Path, variant: str) -> dict:
    """{dotted key: value} of a config as a run uses it, with `~` for the home folder, and `.` for
    the one with configs/."""
    spec = f"{path}:{variant}" if variant else str(path)
    c, _ = Arguments([f"--config={spec}"]).config()
    config.check_values(c)
    home, root = str(pathlib.Path.home()), str(config.ROOT)
    short = lambda text: text.replace(root, ".", 1).replace(home, "~", 1)
    leaves = {
        key: short(value) if isinstance(value, str) else value
        for key, value in config.sorted_leaves(c)
    }
    return json.loads(json.dumps(leaves))  # tuples as lists


def main() -> None:
    for folder in filter(pathlib.Path.is_dir, FOLDER.iterdir()):
        shutil.rmtree(folder)
    for path in config.config_files():
        for variant in variants(path):
            file = golden_file(path, variant)
            file.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(resolved(path, variant), indent=1, sort_keys=True)
            file.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
