"""`fewgen datasets`: data sets that have a name."""

from __future__ import annotations

from typing import Any

from fewgen.cli.command import Argument, Command


def _run(given: dict[str, Any]) -> int:
    from fewgen.data import datasets

    rows = [("name", "classes", "images", "size", "here", "terms", "where")]
    for info in datasets(given.get("data_dir")):
        kind = "grey" if info.channels == 1 else "colour"
        here = "yes" if info.available else "--download" if info.downloadable else "no"
        size = f"{info.size} px {kind}"
        images = f"{info.n_train}+{info.n_test}"
        rows.append((info.name, str(info.classes), images, size, here, info.licence, info.where))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\nA folder with one subfolder per class, or an .npz, works everywhere a name does.")
    return 0


COMMAND = Command(
    name="datasets",
    summary="list the data sets that have a name, and which are there",
    description="List the data sets that have a name, where they are looked for, and their terms of use.",
    arguments=(Argument("data_dir", metavar="DIR"),),
    examples=(("fewgen datasets", "what is at hand"),),
    help_texts=(
        ("data_dir", "folder of the data sets; the environment variable FEWGEN_DATA_DIR if left out."),
    ),
    run=_run,
)
