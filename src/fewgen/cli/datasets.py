"""`fewgen datasets`: data sets that have a name.

Examples:
    # what is at hand
    fewgen datasets
"""

from __future__ import annotations

from fewgen.cli.command import Command


def datasets(*, data_dir: str | None = None) -> int:
    """List the data sets that have a name, where they are looked for, and their terms of use.

    Args:
        data_dir: folder of the data sets; the environment variable FEWGEN_DATA_DIR if left out.
    """
    from fewgen.data import datasets as found

    rows = [("name", "classes", "images", "size", "here", "terms", "where")]
    infos = found(data_dir)
    for info in infos:
        kind = "grey" if info.channels == 1 else "colour"
        here = "yes" if info.available else "--download" if info.downloadable else "no"
        size = f"{info.size} px {kind}"
        images = f"{info.n_train}+{info.n_test}"
        rows.append((info.name, str(info.classes), images, size, here, info.licence, info.where))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for info in infos:
        if info.origin:
            print(f"{info.name} is from {info.origin}.")
    print("\nA folder with one subfolder per class, or an .npz, works everywhere a name does.")
    return 0


COMMAND = Command(datasets, __doc__, run=lambda given: datasets(**given))
