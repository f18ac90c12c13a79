"""Resolved configs are those of tests/golden_configs: no default changes unnoticed."""

import json

import pytest

from bigjax import config
from tests.golden_configs import make


@pytest.mark.parametrize("path", config.config_files(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_config_resolves_to_its_golden_form(path):
    names = make.variants(path)
    assert "tiny" in names and config.first_docstring_line(path)
    changed = []
    for name in names:
        file = make.golden_file(path, name)
        golden = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        now = make.resolved(path, name)
        for key in sorted(golden.keys() | now.keys()):
            if golden.get(key, "absent") != now.get(key, "absent"):
                was, is_now = golden.get(key, "absent"), now.get(key, "absent")
                changed.append(f"{file.parent.name}/{file.stem}: {key} is {is_now!r}, was {was!r}")
    assert not changed, (
        f"{len(changed)} value(s) of resolved configs changed:\n  "
        + "\n  ".join(changed[:20])
        + f"\nIf that is intended, run `{make.COMMAND}`, look at the diff, and commit the files."
    )


def test_each_golden_file_has_its_config():
    files = {make.golden_file(p, v) for p in config.config_files() for v in make.variants(p)}
    stale = set(make.FOLDER.rglob("*.json")) - files
    assert not stale, f"No config has these variants: {stale}. Run `{make.COMMAND}`."
