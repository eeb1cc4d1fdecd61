"""`adapt`: teach a trained run new classes from a few images, in seconds, and keep the old ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.config.call import accepts_config, renamed
from fewgen.config.keywords import refuse_ignored, writes_out
from fewgen.errors import ConfigError
from fewgen.runs.adapted import Adapted, adapt_run, take_in
from fewgen.runs.adapting import Given
from fewgen.runs.new_images import check_out, new_images, refuse_known, share_out
from fewgen.runs.run import Run, load_run

if TYPE_CHECKING:
    from fewgen.data import ImageSet

REPORT_NAME = "report.html"
CARD_NAME = "README.md"


@renamed(alpha="background")
@accepts_config
@writes_out
def adapt(
    run: str | Path | Run,
    *,
    images: str | Path | ImageSet | Sequence[str | Path | ImageSet],
    class_names: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    shots: int | None = None,
    steps: int | None = None,
    lr: float | None = None,
    part: str | None = None,
    phrases: Mapping[str, Any] | str | Path | None = None,
    text_path: str | None = None,
    replay: int | str = "auto",
    seed: int = 0,
    curve: bool = False,
    judge: bool = False,
    split: str = "train",
    fit: str = "crop",
    background: str = "error",
    convert: bool = False,
    value_range: Sequence[float] | None = None,
    data_dir: str | Path | None = None,
    download: bool = False,
    device: str = "auto",
    report: bool = True,
    progress: bool = True,
    config: str | Path | Mapping[str, Any] | None = None,
) -> Run:
    """Teach a trained run new classes from a few images each, in seconds.

    The run itself stays as it is; the new folder holds a copy that draws old and new classes. Images that
    the run draws of its old classes are mixed in, so that these are kept without their training images. A
    run of tage takes new classes in without training: steps, lr, part, replay, phrases, text_path, curve and
    judge are refused for it, and nothing is measured, since its old classes are drawn as before.

    Args:
        run: a run folder, or a model file.
        images: a folder with images of one new class, or a single image file, each with its --class-name;
            or a folder with one subfolder per new class; or a data set or .npz, of which --class-name
            chooses classes. Repeatable, in pairs with --class-name.
        class_names: names of the new classes, one for each --images, in the same order.
        out: the folder of the adapted run: new or empty.
        shots: images per new class to learn from, drawn by the seed; all of them if left out. The report
            measures on the others.
        steps: updates; 50, or what the run was meta-trained for, if left out.
        lr: learning rate of the updates; 0.001, or what the run was meta-trained for, if left out.
        part: which parameters move: all, decoder or heads; all, or what the run was meta-trained for, if
            left out.
        phrases: other words for a new class, such as {"croc": ["sandal", "clog"]}, or a YAML file.
        text_path: where the text encoder's file or folder is now, if it was moved.
        replay: images of old classes in each update, drawn by the run itself; auto takes as many as there
            are new images, 10 to 32. 0 turns it off: the old classes are then forgotten sooner.
        seed: of every draw.
        curve: also adapt with 1, 3, 5, 10 and 30 of the images, for a figure and a table in the report.
        judge: judge the draws by a classifier that is trained on the run's training images and the given
            ones of the new classes, and not by the models' own readers; takes longer, and needs these images.
        split: train or test, the part of a data set.
        fit: how other shapes become square: crop, pad or stretch.
        background: transparent images: error, or put them on white or black.
        convert: accept 16-bit and CMYK images and convert them.
        value_range: the values that become black and white, such as 0 4095 for camera data or 0 1 for masks;
            0 and the largest of their type if left out.
        data_dir: folder of the named data sets; the environment variable FEWGEN_DATA_DIR if left out.
        download: fetch a missing data set from its official address.
        device: auto (CUDA where there is one), cpu or cuda.
        report: measure what was won and lost, and write report.html.
        progress: say what is being done.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        The adapted run. Without `out` it lives in memory only.
    """
    from fewgen.data import ImageSet
    from fewgen.data.registry import Reading
    from fewgen.progress import ShownProgress

    if not report:
        wanted = {"curve": curve, "judge": judge}
        refuse_ignored("without the report", wanted, {"curve": False, "judge": False}, *wanted)
    of_training = {
        **{"steps": steps, "lr": lr, "part": part, "replay": replay},
        **{"phrases": phrases, "text_path": text_path, "curve": curve, "judge": judge},
    }
    given = Given.of(steps, lr, replay, seed, part)
    sources = [images] if isinstance(images, (str, Path, ImageSet)) else list(images)
    if not sources:
        raise ConfigError("No images are given. Name a folder of images with --images.")
    names = [class_names] if isinstance(class_names, str) else list(class_names or [])
    original = load_run(run, device)
    if out is not None:
        check_out(Path(out), original, sources)
    encodes = "encode_classes" in original.method.capabilities
    if encodes:
        usual = {**dict.fromkeys(of_training), "replay": "auto", "curve": False, "judge": False}
        why = f"with a run of {original.method.name}, which takes in new classes without training"
        refuse_ignored(why, of_training, usual, *of_training)
    else:
        original.method.require("adapt")
    refuse_known(names, original.class_names)
    reading = Reading(split, None, None, fit, background, convert, data_dir, download, value_range)
    found = new_images(sources, names, original.method.spec.shape, reading)
    refuse_known(found.class_names, original.class_names)
    used, rest = share_out(found, shots, seed)
    if encodes:
        return _kept(take_in(original, used, rest), out)
    shown = ShownProgress(progress)
    try:
        adapted = adapt_run(
            original,
            used,
            rest,
            given,
            phrases=phrases,
            text_path=text_path,
            data_dir=data_dir,
            download=download,
            report=report,
            curve=curve,
            judge=judge,
            progress=shown,
        )
    finally:
        shown.close()
    return _kept(adapted, out)


def _kept(adapted: Adapted, out: str | Path | None) -> Run:
    """Return an adapted run, written to `out` if that is given."""
    if out is None:
        return adapted.in_memory()
    return adapted.write(Path(out), _pages(adapted, Path(out)))


def _pages(adapted: Adapted, out: Path) -> dict[str, str]:
    """Return the card of an adapted run and, if it was measured, its report."""
    from fewgen.report.adaptation import render_adaptation
    from fewgen.report.card import render_adapted_card

    record, notes, citations = adapted.record, adapted.notes, adapted.citations
    pages = {CARD_NAME: render_adapted_card(adapted.method, record, out, notes, citations)}
    if adapted.measured is not None:
        pages[REPORT_NAME] = render_adaptation(adapted.measured, record, out, notes, citations)
    return pages
