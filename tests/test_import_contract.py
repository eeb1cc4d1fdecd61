"""The order of the folders in pyproject.toml holds, and `lint-imports` sees an import that breaks it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("cli", "api", "runs", "data", "errors")
FIRST, SECOND = "A folder imports only what stands below it", "No circles inside a folder"


def contracts() -> str:
    """Return the part of pyproject.toml that `lint-imports` reads."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return text[text.index("[tool.importlinter]") : text.index("[tool.pytest")]


def lint(folder: Path) -> tuple[int, str]:
    """Return the exit code of `lint-imports` for a folder with pyproject.toml and src, and what it printed."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache", "--no-logo"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "src")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def house(tmp_path):
    """Return a folder with a tiny `fewgen` whose folders import downwards, and the contracts for it."""
    for folder in FOLDERS:
        (tmp_path / "src" / "fewgen" / folder).mkdir(parents=True)
        (tmp_path / "src" / "fewgen" / folder / "__init__.py").write_text("")
    (tmp_path / "src" / "fewgen" / "__init__.py").write_text("")
    # The floors that the tiny package lacks are optional there: a name in brackets.
    text = contracts()
    for line in text[text.index("layers = [") :].split("]")[0].splitlines()[1:]:
        for name in line.strip().strip('",').split(" | "):
            if name and name not in FOLDERS:
                text = text.replace(line, line.replace(name, f"({name})"), 1)
                line = line.replace(name, f"({name})")
    (tmp_path / "pyproject.toml").write_text(text)
    return tmp_path


def write(house: Path, **files: str) -> tuple[int, str]:
    for name, text in files.items():
        (house / "src" / "fewgen" / f"{name.replace('__', '/')}.py").write_text(text)
    return lint(house)


GOOD = {"api__verbs": "import fewgen.runs.run", "runs__run": "from fewgen.data import images"}


def test_imports_downwards_pass(house):
    code, shown = write(house, data__images="", **GOOD)
    assert code == 0, shown
    assert "2 kept, 0 broken" in shown


@pytest.mark.parametrize(
    ("files", "broken", "named"),
    [
        ({"data__images": "import fewgen.api.verbs"}, FIRST, "fewgen.data.images -> fewgen.api.verbs"),
        (
            {
                "data__images": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import fewgen.cli",
            },
            FIRST,
            "fewgen.data.images -> fewgen.cli",
        ),
        (
            {"data__images": "from fewgen.data import npz", "data__npz": "from fewgen.data import images"},
            SECOND,
            "images",
        ),
        ({"data__images": "", "cellar": ""}, FIRST, "cellar"),
    ],
    ids=["upward", "upward for types", "circle", "folder without a place"],
)
def test_planted_faults_are_seen(house, files, broken, named):
    code, shown = write(house, **GOOD, **files)
    assert code == 1, shown
    assert any(broken in line and line.endswith("BROKEN") for line in shown.splitlines()), shown
    assert named in shown


def test_our_own_imports_keep_the_contracts():
    code, shown = lint(ROOT)
    assert code == 0, shown
    assert "2 kept, 0 broken" in shown
    assert int(re.search(r"Analyzed (\d+) files", shown)[1]) > 100
