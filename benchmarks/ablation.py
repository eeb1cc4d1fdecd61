"""What ablations share: cells in JSON files that are computed once, tables of mean and spread, provenance.

A cell is one row of a table with one seed. Its file names what it is about under "asked"; a finished cell
that was asked something else is refused, so that no table mixes settings.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewgen.errors import ConfigError, FewgenError
from fewgen.files import read_json, write_json
from fewgen.runs.environment import COMMAND_VARIABLE, command_line

Column = tuple[str, str, float, int]
"""Heading, key among the figures of a cell, factor and decimals."""


@dataclass(frozen=True)
class Variant:
    """A row: what it is called, and how its model differs.

    Attributes:
        name: in the table.
        model: settings on top of those of the base.
        shots: images per class instead of the usual number.
    """

    name: str
    model: Mapping[str, Any] = field(default_factory=dict)
    shots: int | None = None


@dataclass(frozen=True)
class Question:
    """A table: what is asked, and its rows.

    Attributes:
        key: for `--only`.
        asks: heading.
        rows: in the order of the table.
    """

    key: str
    asks: str
    rows: tuple[Any, ...]


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings of which `second` wins."""
    result = dict(first)
    for key, value in second.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with one key each.

    >>> flat({"a": {"b": 1, "c": None}, "d": 2})
    {'a.b': 1, 'a.c': None, 'd': 2}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def different(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return "key old there, new now" for every key of `now` with another value `there`."""
    return [
        f"{key} {there.get(key)} there, {value} now" for key, value in now.items() if there.get(key) != value
    ]


def check_same(there: Mapping[str, Any], now: Mapping[str, Any], name: str, seed: int) -> None:
    """Refuse a finished cell that answers another question than the one asked now.

    Raises:
        ConfigError: the values of some keys of `now` differ; names them.
    """
    if problems := different(there, now):
        raise ConfigError(
            f'"{name}", seed {seed}, was computed with other settings ({"; ".join(problems)}). '
            "Choose another --out."
        )


# --------------------------------------------------------------------------------------------- cells


def cell_folder(about: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Return the name of a cell's folder: how it differs from the base in words, and a digest of it all.

    >>> cell_folder({"model.steps": 3, "data": "digits"}, {"model.steps": 4, "data": "digits"})
    'steps-3-5dffdb05'
    """
    differs = [f"{key.split('.', 1)[-1]} {value}" for key, value in about.items() if base.get(key) != value]
    words = re.sub(r"[^a-z0-9.+]+", "-", " ".join(differs).lower()).strip("-") or "base"
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
    return f"{words[:60].rstrip('-')}-{digest}"


@dataclass(frozen=True)
class Grid:
    """The cells of a command, each with a key that ends with its seed.

    Attributes:
        names: key -> row in the table, in the order in which cells are computed.
        paths: key -> file.
        asked: returns what a cell is about, JSON values.
    """

    names: Mapping[Any, str]
    paths: Mapping[Any, Path]
    asked: Callable[[Any], Mapping[str, Any]]

    def check(self) -> None:
        """Refuse finished cells that answer another question.

        Raises:
            ConfigError: names the first one and what differs.
        """
        for key, path in self.paths.items():
            if path.exists():
                now = json.loads(json.dumps(self.asked(key)))  # as it comes back from a file
                check_same(read_json(path)["asked"], now, self.names[key], key[-1])

    def missing(self, rows: Sequence[str] | None = None) -> list[Any]:
        """Return the keys of cells that are not there, of these rows only if any are named."""
        return [
            key
            for key, path in self.paths.items()
            if not path.exists() and (not rows or self.names[key] in rows)
        ]

    def finished(self) -> dict[Any, dict[str, Any]]:
        """Return key -> cell of those that are there."""
        return {key: read_json(path) for key, path in self.paths.items() if path.exists()}


def spread(work: Callable[..., Any], calls: Iterable[tuple[Any, ...]], jobs: int) -> list[Any]:
    """Return what `work` returns for the arguments of each call, several at a time.

    Args:
        work: a plain function, so that any joblib backend can run it anywhere. After the arguments of a call
            it gets the process and the command that started it all, for `finish_cell`.
        calls: plain values.
        jobs: processes; 1 runs here.
    """
    from joblib import Parallel, delayed

    command = os.getpid(), command_line()
    found: list[Any] = Parallel(n_jobs=jobs, batch_size=1, pre_dispatch=jobs)(
        delayed(work)(*call, command) for call in calls
    )
    return found


def finish_cell(
    compute: Callable[[], dict[str, Any]], label: str, path: Path, command: tuple[int, str]
) -> str | None:
    """Compute a cell and write its file; return what went wrong, or None.

    Args:
        compute: returns the cell.
        label: for messages.
        path: its file.
        command: process that started the benchmark, and its command, which other processes record.
    """
    if command[0] != os.getpid():
        os.environ[COMMAND_VARIABLE] = command[1]
    started = time.perf_counter()
    try:
        cell = compute()
    except (FewgenError, ImportError) as error:
        # The others are still worth computing.
        print(f"error: {label}: {error}", file=sys.stderr, flush=True)
        return f"{label}: {error}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, cell)
    print(f"{label}: {time.perf_counter() - started:.0f} s", flush=True)
    return None


def known(cells: Mapping[int, Mapping[str, Any]], key: str) -> dict[int, float]:
    """Return seed -> figure, without the cells that do not have it."""
    return {seed: c["figures"][key] for seed, c in cells.items() if c["figures"].get(key) is not None}


# --------------------------------------------------------------------------------------------- tables


def shown_columns(rows: Iterable[Mapping[int, Mapping[str, Any]]], columns: Sequence[Column]) -> list[Column]:
    """Return the columns that some row has, such as no agreement where no judge knows the classes; or all."""
    cells = list(rows)
    return [c for c in columns if any(known(own, c[1]) for own in cells)] or list(columns)


def figure_texts(cells: Mapping[int, Mapping[str, Any]], columns: Sequence[Column]) -> list[str]:
    """Return "mean ± standard deviation" over the seeds of a row, for each column."""
    return [
        mean_and_spread([factor * v for v in known(cells, key).values()], decimals)
        for _, key, factor, decimals in columns
    ]


def mean_and_spread(values: Sequence[float], decimals: int) -> str:
    """Return "mean ± standard deviation"; "-" without values.

    >>> mean_and_spread([1.0, 2.0], 1), mean_and_spread([3.0], 0), mean_and_spread([], 0)
    ('1.5 ± 0.7', '3', '-')
    """
    if not values:
        return "-"
    mean = math.fsum(values) / len(values)
    text = f"{mean:.{decimals}f}"
    if len(values) > 1:
        deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
        text += f" ± {deviation:.{decimals}f}"
    return text


def paired_change(own: Mapping[int, float], base: Mapping[int, float]) -> str:
    """Return the change against a base in %, seed by seed, and in how many seeds it points the same way.

    The mean of the ratios of each seed, not the ratio of the means: a seed with bad images all round would
    outweigh the others.

    Args:
        own: seed -> figure, lower is better.
        base: the same of what is compared with.

    Returns:
        "-12 % (3 of 3)": mean change, and seeds whose change has the sign of the mean, out of the seeds both
        have. "-" without any. "n/a" if a figure of the base is not positive, as unbiased estimates may be:
        there is no share of nothing.

    >>> paired_change({0: 80.0, 1: 110.0, 2: 9.0}, {0: 100.0, 1: 100.0, 5: 1.0})
    '-5 % (1 of 2)'
    >>> paired_change({0: 1.0}, {0: -0.1}), paired_change({0: 1.0}, {1: 1.0})
    ('n/a', '-')
    """
    seeds = sorted(own.keys() & base.keys())
    if not seeds:
        return "-"
    if any(base[seed] <= 0 for seed in seeds):
        return "n/a"
    changes = [own[seed] / base[seed] - 1 for seed in seeds]
    mean = math.fsum(changes) / len(changes)
    alike = sum(change * mean > 0 for change in changes)
    return f"{100 * mean:+.0f} % ({alike} of {len(seeds)})"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def made_by(
    environments: Sequence[Mapping[str, Any]], seconds: Sequence[float], did: str = "trained for"
) -> str:
    """Return the sentences on command, commit, versions and hardware of cells.

    Args:
        environments: of `fewgen.runs.environment`, at least one.
        seconds: processor seconds that each cell trained for.
        did: what it did in them.
    """
    commits = sorted({str(e["commit"])[:12] + ("+" if e["changed_files"] else "") for e in environments})
    first = environments[0]
    versions = ", ".join(f"{name} {v}" for name, v in first["versions"].items() if v)
    # Where the cells lie says nothing about the numbers, and the path of one machine helps nobody.
    command = re.sub(r" --(out|docs|data-dir) ('[^']*'|\S+)", "", str(first["command"]))
    command = re.sub(r" --base( [^-\s]\S*)+", "", command)
    return (
        f"Command: `{command}`. Commit {', '.join(commits)} (+: with changes). Python {first['python']}; "
        f"{versions}. {first['processor']}, {first['cores']} cores, {first['threads']} threads; a cell "
        f"{did} {min(seconds):.0f} to {max(seconds):.0f} processor seconds."
    )


def publish(
    grid: Grid,
    section: Callable[[dict[Any, dict[str, Any]]], str],
    docs: str,
    markers: tuple[str, str],
    title: str,
) -> int:
    """Print the tables of the finished cells and put them into a page; return 0, or 2 if that failed.

    Args:
        grid: of the cells.
        section: returns the Markdown of finished cells, by key.
        docs: file of the page; "" for none.
        markers: as `write_between`.
        title: of a page that has to be made.
    """
    cells = grid.finished()
    if not cells:
        print("There are no finished cells.", file=sys.stderr)
        return 2
    text = section(cells)
    print("\n" + text)
    if docs:
        try:
            write_between(Path(docs), text, markers, title)
        except FewgenError as error:
            return refuse(error)
    return 0


def write_between(
    path: Path, section: str, markers: tuple[str, str], title: str, heading: str = "Ablations"
) -> None:
    """Put the section between the markers of a page, which is made if it is missing.

    Args:
        path: the page; text outside the markers stays.
        section: Markdown.
        markers: lines that begin and end it.
        title: of a page that has to be made.
        heading: of a section that has to be made.

    Raises:
        ConfigError: the page holds one of the two markers only.
    """
    begin, end = markers
    block = f"{begin}\n{section}\n{end}\n"
    page = path.read_text(encoding="utf-8") if path.exists() else f"# {title}\n\n"
    if (begin in page) != (end in page):
        raise ConfigError(f'"{path}" holds one of the two markers of this table only. Put the other back.')
    if begin in page:
        before, rest = page.split(begin, 1)
        after = rest.split(end, 1)[1].lstrip("\n")
        page = before + block + ("\n" + after if after else "")
    else:
        page = page.rstrip("\n") + f"\n\n## {heading}\n\n" + block
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


# --------------------------------------------------------------------------------------------- command


def command_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """Return a parser for `python -m benchmarks NAME` whose help shows a module's docstring as it is."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_rows(parser: argparse.ArgumentParser, keys: Sequence[str], tables: str = "these tables only") -> None:
    """Add the options that choose tables and, within them, what is computed."""
    parser.add_argument("--only", nargs="+", default=None, choices=keys, help=tables)
    parser.add_argument(
        "--rows",
        nargs="+",
        default=None,
        help="compute rows with these names only; others keep what they have",
    )


def add_places(
    parser: argparse.ArgumentParser,
    out: str,
    docs: str | None,
    *,
    kept: str = "folder of the cells",
    page: str = 'page that gets the tables; "" for none',
) -> None:
    """Add the options that say where things lie, and the one that computes nothing."""
    add = parser.add_argument
    add("--out", default=out, help=kept)
    add("--docs", default=docs, help=page)
    add("--data-dir", default=None, help="folder of the data sets; by default FEWGEN_DATA_DIR")
    add("--table-only", action="store_true", help="print the tables of the finished cells")


def refuse(problem: object) -> int:
    """Say on standard error what is wrong; return the exit status."""
    print(f"error: {problem}", file=sys.stderr)
    return 2
