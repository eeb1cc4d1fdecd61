"""`benchmark`: generators side by side, and what it would do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.clock import n_cores
from fewgen.config.call import accepts_config, build, call_settings, defaults_of, unwrapped
from fewgen.config.keywords import refuse_ignored
from fewgen.errors import DataError

if TYPE_CHECKING:
    from fewgen.comparison.cells import Evaluate
    from fewgen.comparison.grid import Grid, GridPlan
    from fewgen.data.registry import Reading

FORMAT = "fewgen-benchmark"
FORMAT_VERSION = 1


@dataclasses.dataclass
class BenchmarkResult:
    """What a benchmark found.

    Attributes:
        path: its folder, with benchmark.json, table.md, plot.png and benchmark.html.
        summary: generator -> figures, verdicts and usefulness over seeds.
        cells: every cell, as in its folder.
        failed: cells that could not be computed, with the reason.
        table: the table and its notes as Markdown.
    """

    path: Path
    summary: dict[str, dict[str, Any]]
    cells: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    table: str


@accepts_config
def benchmark(
    *,
    data: str | Path,
    out: str | Path | None = None,
    shots: int = 30,
    methods: Sequence[str] | None = None,
    budget_minutes: float = 5.0,
    seeds: int = 3,
    n: int = 3000,
    useful_draws: int = 10,
    features: str = "auto",
    holdout: int | str = "auto",
    size: int | None = None,
    channels: int | None = None,
    fit: str = "crop",
    background: str = "error",
    convert: bool = False,
    value_range: Sequence[float] | None = None,
    temperature: float = 1.0,
    clock: str = "wall",
    jobs: int | None = None,
    remeasure: bool = False,
    table_only: bool = False,
    data_dir: str | Path | None = None,
    download: bool = False,
    progress: bool = True,
    config: str | Path | Mapping[str, Any] | None = None,
) -> BenchmarkResult:
    """Compare generators on the same images, with the same training time and the same judge.

    Every generator and seed is a cell with a folder of its own. Seed s stands for the training images (shots
    drawn with seed s), for training and for generation. A cell that is finished is not computed again, so
    the same command continues a stopped benchmark and a longer list of methods or seeds extends it. A cell
    that fails does not stop the others.

    Cells run through joblib: with joblib.parallel_config(backend="dask") around the Python function, they
    run on a cluster that shares the folder.

    Args:
        data: named data set, a folder with one subfolder per class, or an .npz.
        out: folder of the benchmark, new or to continue; runs/benchmark/DATA-SHOTSshots-MINUTESmin if left
            out.
        shots: training images per class.
        methods: what to compare: copies, augmented_copies, pca_gaussian, class_pca_gaussian,
            conditional_vae, diffusion, spatial_codebook, METHOD:PRESET such as cada_vqvae:hybrid,
            run:FOLDER (a finished run) or file:PATH (images of another program); {seed} in a path stands for
            the seed. If left out: copies, augmented_copies, class_pca_gaussian, conditional_vae, diffusion,
            cada_vqvae:default and cada_vqvae:hybrid.
        budget_minutes: training time of each generator.
        seeds: number of seeds, from 0 on.
        n: images that each cell generates, equally many per class.
        useful_draws: paired trainings of a small classifier behind the usefulness of each cell; 0 leaves
            usefulness out, the slow part of measuring.
        features: where images are compared, as in fewgen evaluate; the same in all cells. auto is lite0 for
            photographs where it is installed, else a classifier of the training part.
        holdout: real images that are never learned from: auto takes the test part of the data, or a fifth
            of each class where there is none; a number sets so many of each class aside.
        size: side of the square images in pixels; the images' own if left out.
        channels: 1 for grey, 3 for colour; the images' own if left out.
        fit: how other shapes become square: crop, pad or stretch.
        background: transparent images: error, or put them on white or black.
        convert: accept 16-bit and CMYK images and convert them.
        value_range: the values that become black and white, such as 0 4095 for camera data or 0 1 for masks;
            0 and the largest of their type if left out.
        temperature: of generation with methods of fewgen.
        clock: what a minute of training is: wall, or cpu, of all cores, for a machine that others use too.
        jobs: cells computed at the same time, which share the processor's cores; 1 if left out. With more
            than one, training times are those of fewer cores.
        remeasure: measure again what was generated before, for example with other useful draws.
        table_only: only write table, plot and page of the cells that are finished.
        data_dir: folder of the named data sets; the environment variable FEWGEN_DATA_DIR if left out.
        download: fetch a missing data set from its official address.
        progress: say on standard error what is being done.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        Summary, cells, failures and table; the same lies in the folder.
    """
    from fewgen.data.registry import Reading

    request = BenchmarkRequest(
        data=data, out=out, shots=shots, methods=methods, budget_minutes=budget_minutes, seeds=seeds, n=n,
        useful_draws=useful_draws, features=features, holdout=holdout, temperature=temperature, clock=clock,
        jobs=jobs, remeasure=remeasure, table_only=table_only, progress=progress,
        reading=Reading("train", size, channels, fit, background, convert, data_dir, download, value_range),
    )  # fmt: skip
    return run_benchmark(request)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkRequest:
    """The keywords of `benchmark`, which says what each means."""

    data: str | Path
    out: str | Path | None
    shots: int
    methods: Sequence[str] | None
    budget_minutes: float
    seeds: int
    n: int
    useful_draws: int
    features: str
    holdout: int | str
    reading: Reading
    temperature: float
    clock: str
    jobs: int | None
    remeasure: bool
    table_only: bool
    progress: bool

    def grid(self) -> Grid:
        """Return settings, generators and folder that are asked for."""
        from fewgen.comparison.candidates import DEFAULT_METHODS, folder_name
        from fewgen.comparison.cells import Settings
        from fewgen.comparison.grid import Grid

        settings = Settings(
            data=str(self.data),
            shots=self.shots,
            minutes=float(self.budget_minutes),
            n=self.n,
            holdout=self.holdout,
            # Fetching comes once, before; numbers that were checked can be compared.
            reading=dataclasses.replace(
                self.reading, download=False, value_range=self.reading.form().value_range
            ),
            temperature=float(self.temperature),
            clock=self.clock,
            cores=n_cores(),
            useful_draws=self.useful_draws,
            features=self.features,
        )
        methods = DEFAULT_METHODS if self.methods is None else self.methods
        methods = (methods,) if isinstance(methods, str) else tuple(methods)
        name = f"{folder_name(Path(settings.data).name)}-{settings.shots}shots-{settings.minutes:g}min"
        out = Path(self.out or Path("runs") / "benchmark" / name)
        return Grid(settings, methods, self.seeds, out, self.jobs, self.remeasure)

    def refuse_idle(self) -> None:
        """Refuse what a table of finished cells has no use for."""
        if self.table_only:
            given = {**vars(self), "download": self.reading.download}
            refuse_ignored(
                "with --table-only", given, defaults_of(benchmark), "remeasure", "jobs", "download"
            )


def benchmark_request(**keywords: Any) -> BenchmarkRequest:
    """Return what the keywords of `benchmark` ask for."""
    from fewgen.data.registry import Reading

    settings = call_settings(unwrapped(benchmark), keywords)
    return build(BenchmarkRequest, settings, reading=build(Reading, settings))


def plan_benchmark(**keywords: Any) -> GridPlan | str:
    """Return what `benchmark` would do with the same keywords, with a rough time; writes nothing."""
    from fewgen.comparison.grid import plan_grid

    request = benchmark_request(**keywords)
    request.refuse_idle()
    if request.table_only:
        return f"A table of {len(_at_hand(request.grid()))} cells that are there; nothing is computed."
    return plan_grid(request.grid())


def _at_hand(grid: Grid) -> list[dict[str, Any]]:
    """Return the finished and the failed cells in the folder of a grid.

    Raises:
        DataError: there is none.
    """
    from fewgen.comparison import cells
    from fewgen.comparison.grid import failures, other_cells

    grid = dataclasses.replace(grid, remeasure=False)
    grid.check()
    wanted = grid.cells()
    found = [cells.read_cell(cell.folder) for cell in wanted if not cell.to_do]
    found += [*failures(wanted), *other_cells(grid.out, wanted)]
    if not found:
        raise DataError(
            f'There is no finished cell in "{grid.out}" yet. Run the same command without --table-only.'
        )
    return found


def run_benchmark(request: BenchmarkRequest, evaluate: Evaluate | None = None) -> BenchmarkResult:
    """Do what `benchmark` does.

    Args:
        request: all its keywords.
        evaluate: `evaluate_images`, or a stand-in for it.
    """
    from fewgen.comparison import cells
    from fewgen.comparison.grid import other_cells, plan_grid, run_grid
    from fewgen.folders import locked

    grid = request.grid()
    request.refuse_idle()
    with locked(grid.out):
        try:
            if request.table_only:
                return write_benchmark(grid, _at_hand(grid))
            if request.reading.download:
                request.reading.load(request.data)
            plan = plan_grid(grid)
            found = run_grid(plan, progress=request.progress, evaluate=evaluate)
            return write_benchmark(plan.grid, [*found, *other_cells(grid.out, plan.cells)])
        finally:
            cells.forget()


def _without(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def write_benchmark(grid: Grid, cells: Sequence[Mapping[str, Any]]) -> BenchmarkResult:
    """Write benchmark.json, table.md, plot.png and benchmark.html for these cells, and return the same."""
    from fewgen.comparison.cells import Cell
    from fewgen.comparison.page import render_benchmark
    from fewgen.comparison.plot import quality_against_copying
    from fewgen.comparison.summary import markdown, notes, summarise
    from fewgen.files import atomic_write, write_json, write_text
    from fewgen.runs.environment import environment
    from fewgen.version import __version__

    out, settings = grid.out, grid.settings
    failed = [dict(cell) for cell in cells if "error" in cell]
    finished = [dict(cell) for cell in cells if "evaluation" in cell]
    summary = summarise(finished)
    below = notes(finished, settings.shots)
    below += [f"Failed: {cell['generator']}, seed {cell['seed']}: {cell['error']}" for cell in failed]
    record = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fewgen": __version__,
        "environment": environment(),
        "settings": settings.of_images() | settings.of_measuring(),
        "seeds": sorted({cell["seed"] for cell in cells}),
        "summary": summary,
        "failed": failed,
        # The score of every single image stays in the folder of its cell.
        "cells": [cell | {"evaluation": _without(cell["evaluation"], "copy_scores")} for cell in finished],
    }
    table = markdown(summary, below)
    plot = quality_against_copying(summary)
    write_json(out / "benchmark.json", record)
    write_text(out / "table.md", table + "\n")
    if plot is not None:
        with atomic_write(out / "plot.png") as temporary:
            temporary.write_bytes(plot)
    first = {cell["generator"]: cell["seed"] for cell in reversed(finished)}
    pictures = {
        name: Cell(name, first[name], settings, out).folder / "grid.png" for name in summary if name in first
    }
    write_text(out / "benchmark.html", render_benchmark(record, below, plot, pictures))
    return BenchmarkResult(out, summary, finished, failed, table)
