"""Lines of code, without blanks, comments and docstrings: `python -m benchmarks lines [FOLDER]`."""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
SKIPPED = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def count_lines(source: str) -> int:
    r"""Return the number of lines of a Python file that hold code.

    >>> count_lines('x = 1  # one\n\n# a comment\ndef f():\n    "What f does."\n    return x\n')
    3
    """
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            docstrings.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SKIPPED:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def count_folders(folder: Path) -> Counter[str]:
    """Return the lines of code of each folder and file directly below a folder, the largest first."""
    counted: Counter[str] = Counter()
    for path in folder.rglob("*.py"):
        counted[path.relative_to(folder).parts[0]] += count_lines(path.read_text(encoding="utf-8"))
    return Counter(dict(counted.most_common()))


def main(arguments: list[str]) -> int:
    """Print the total and each folder."""
    folder = Path(arguments[0]) if arguments else ROOT / "src" / "fewgen"
    counted = count_folders(folder)
    for name, lines in {"total": sum(counted.values()), **counted}.items():
        print(f"{lines:7,d}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
