"""Every command that a page names exists and parses: a number without its command cannot be checked."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest
from benchmarks.__main__ import NAMES

from fewgen.cli.main import COMMANDS, load_command
from fewgen.errors import FewgenError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(text):
    """Return the commands of code blocks for a shell and of code within sentences, each as its words."""
    fences = re.findall(r"```(\w*)\n(.*?)```", text, flags=re.DOTALL)
    shell = "\n".join(code for language, code in fences if language in ("", "bash", "sh", "console"))
    lines = shell.replace("\\\n", " ").splitlines()
    lines += re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = []
    for line in (" ".join(line.split()) for line in lines):
        start = re.match(r"(?:\S+/)?(?:(fewgen) |python -m (benchmarks)[ .])(.*)", line)
        if start and "..." not in line:
            found.append((start[1] or start[2], shlex.split(start[3], comments=True)))
    return found


class Parsed(Exception):
    """A benchmark has taken its words."""


def refused(program, words, monkeypatch):
    """Return why a command cannot be given; "" if it can."""
    name, *rest = words
    if program == "fewgen":
        if name in ("help", "--help", "--version", "--print_config"):
            return ""
        if name not in COMMANDS:
            return f"there is no command {name}"
        try:
            if rest and "--help" not in rest:
                load_command(name).parse(rest)
        except FewgenError as error:
            return str(error)
        return ""
    if name not in NAMES:
        return f"there is no benchmark {name}"
    parse = argparse.ArgumentParser.parse_args

    def only_parse(self, *arguments):
        parse(self, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    try:
        if rest:
            importlib.import_module(f"benchmarks.{name}").main(rest)
    except Parsed:
        return ""
    except SystemExit:
        return "it does not take these flags"
    finally:
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_exists(page, monkeypatch):
    found = commands(page.read_text(encoding="utf-8"))
    wrong = [
        f"{program} {shlex.join(words)}: {why}"
        for program, words in found
        if (why := refused(program, words, monkeypatch))
    ]
    assert wrong == []
    assert found or page.name not in ("README.md", "sqgan.md", "cada_vqvae.md", "verdicts.md"), (
        "none was seen"
    )


def test_negative_control_commands_that_are_gone_are_seen(monkeypatch):
    text = (
        "Command: `python -m benchmarks generation\n--minutes 30`, and `fewgen draw runs/a`.\n"
        "```bash\nfewgen train cada_vqvae --data digits \\\n    --shot 3 --out x  # few\n```\n"
        "```python\nfewgen.train(...)\n```\n`python -m benchmarks.lines` `python -m benchmarks verdicts --drawz 3`"
    )
    found = commands(text)
    assert [words[0] for _, words in found] == ["train", "generation", "draw", "lines", "verdicts"]
    assert [bool(refused(program, words, monkeypatch)) for program, words in found] == [
        True,
        True,
        True,
        False,
        True,
    ]
