"""The counter of lines of code."""

from __future__ import annotations

from benchmarks.__main__ import main
from benchmarks.lines import count_folders, count_lines

SOURCE = '''"""A module
of two lines."""

import os  # for x

# a comment


class A:
    """One line."""

    text = """a string
    that is code"""

    def f(
        self,
    ):
        """Several

        lines.
        """
        return os.path.join("a", "b")
'''


def test_only_code_counts():
    assert count_lines(SOURCE) == 8
    assert count_lines('"""Only words."""\n') == 0
    assert count_lines("") == 0
    assert count_lines("x = 1\n'not a docstring'\n") == 2


def test_by_folder(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.py").write_text(SOURCE)
    (tmp_path / "c.py").write_text("x = 1\n")
    assert list(count_folders(tmp_path).items()) == [("a", 8), ("c.py", 1)]
    assert main(["lines", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "      9  total\n      8  a\n      1  c.py\n"
