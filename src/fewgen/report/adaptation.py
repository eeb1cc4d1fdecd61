"""What an adaptation to new classes won and lost: measured on draws, shown as one page.

New classes are read by the adapted model's own reader (`retrieve`), old ones by that of the run it was
adapted from; or both by a classifier that the model has nothing to do with. The page says which: a model's
own reader shares its faults.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewgen.errors import DataError
from fewgen.evaluate.agreement import Share, wilson_interval
from fewgen.evaluate.aligned import Retention, class_retention
from fewgen.report.citations import bibtex
from fewgen.report.page import figure, page, png, section, table, warning

if TYPE_CHECKING:
    from pathlib import Path

    from fewgen.api.run import Run
    from fewgen.data import ImageSet
    from fewgen.methods.base import Method

Reader = Callable[[Tensor], Tensor]
"""uint8 images (N, C, H, W) -> classes, int64 (N,)."""

SHOTS = (1, 3, 5, 10, 30)
SHOWN = 8
"""Images in a row of a picture."""

N_NEW = 64
"""Draws of each new class that are read; one group of the method's rows."""

N_OLD = 192
"""Draws of the old classes together, before and after."""

MAX_PER_OLD = 24
LEAST_VARIETY = 0.5
"""Share of the pixel variance within an old class below which its loss is warned of."""

LEAST_NEW_VARIETY = 0.1
"""The same for draws of a new class, relative to the images that were given."""

ENOUGH_DRAWS, ENOUGH_IMAGES = 8, 3
"""Draws, and given images, of a class from which on its own variance is compared."""

MAX_PICTURED = 10
MAX_QUERY = 100
"""Images of each new class that the loss is measured on."""

DRAW_SEED = 0

CLASSIFIER = "classifier"
OWN_READER = "the own reader of the run it was adapted from"


@dataclasses.dataclass
class Look:
    """How a model draws the new classes after some images of each.

    Attributes:
        shots: images per new class it learned from, of the class with most; 0: the words alone.
        drawn: `SHOWN` images of each new class, uint8 (n_new * SHOWN, C, H, W), class after class.
        read: new class -> share of `N_NEW` draws that are read as the class; empty without a reader.
        query_loss: of images that were not learned from; None if there are none.
        seconds: of the adaptation.
        variance: new class -> `pixel_variance` of its `N_NEW` draws.
        fewest: images of the class with fewest; None: as many as of every other.
    """

    shots: int
    drawn: Tensor
    read: dict[str, Share]
    query_loss: float | None
    seconds: float
    variance: dict[str, float] = dataclasses.field(default_factory=dict)
    fewest: int | None = None

    def overall(self) -> Share:
        """Return the share over all new classes. Raises DataError without a reader."""
        shares = self.read.values()
        return wilson_interval(sum(s.successes for s in shares), sum(s.n for s in shares))


@dataclasses.dataclass(frozen=True)
class Variety:
    """Pixel variance within classes, after relative to before; below 1 draws became more alike.

    Attributes:
        overall: of the mean over classes.
        per_class: of each class with enough draws whose draws differed before.
    """

    overall: float
    per_class: dict[str, float]

    def worst(self) -> str | None:
        """Return the class that lost most; None without any."""
        return min(self.per_class, key=self.per_class.__getitem__, default=None)


@dataclasses.dataclass
class Adaptation:
    """What is known of an adaptation.

    Attributes:
        original_name: the run that was adapted from.
        has_meaning: whether the new classes' vectors come from their words.
        used: images that were learned from.
        n_query: images that the loss was measured on.
        looks: before any image first, after all images last.
        retention: of the old classes; None if it is in `omitted`.
        independent: whether a judge that is not the model read the draws.
        old_shown: names of the old classes in the picture.
        before: their draws before, uint8 (len(old_shown) * SHOWN, C, H, W).
        after: the same draws after.
        variety: of the old classes; None if it is in `omitted`.
        new_variety: new class -> pixel variance of its draws relative to that of the given images.
        omitted: what is not known -> why.
    """

    original_name: str
    has_meaning: bool
    used: ImageSet
    n_query: int
    looks: list[Look]
    retention: Retention | None
    independent: bool
    old_shown: tuple[str, ...]
    before: Tensor
    after: Tensor
    variety: Variety | None
    new_variety: dict[str, float]
    omitted: dict[str, str]

    def figures(self) -> dict[str, Any]:
        """Return the figures as JSON-ready values."""
        looks = [
            {
                "shots": look.shots,
                "fewest": look.shots if look.fewest is None else look.fewest,
                "read": {name: dataclasses.asdict(share) for name, share in look.read.items()},
                "query_loss": look.query_loss,
                "seconds": round(look.seconds, 3),
            }
            for look in self.looks
        ]
        return {
            "looks": looks,
            "n_query": self.n_query,
            "retention": None if self.retention is None else self.retention.to_dict(),
            "cannot_tell": [] if self.retention is None else cannot_tell(self.retention),
            "judge": CLASSIFIER if self.independent else OWN_READER,
            "variety": None if self.variety is None else dataclasses.asdict(self.variety),
            "new_variety": dict(self.new_variety),
            "omitted": dict(self.omitted),
        }

    def warnings(self) -> list[str]:
        """Return what a user should look at, a sentence each."""
        found = []
        worst = None if self.variety is None else self.variety.worst()
        if self.variety is not None and worst is not None:
            least = self.variety.per_class[worst]
            if min(least, self.variety.overall) < LEAST_VARIETY:
                found.append(
                    f"draws of old classes became alike: they keep {self.variety.overall:.0%} of the pixel "
                    f'variance within a class, "{worst}" {least:.0%}. Lower --lr, or take fewer --steps.'
                )
        for name, ratio in self.new_variety.items():
            if ratio < LEAST_NEW_VARIETY:
                found.append(
                    f'draws hardly differ: those of "{name}" have {ratio:.0%} of the pixel variance of the '
                    "images that were given."
                )
        return found


def measure(
    original: Run,
    start: Method,
    method: Method,
    used: ImageSet,
    rest: ImageSet,
    *,
    seconds: float,
    again: Callable[[ImageSet], Method] | None = None,
    judge: Reader | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Adaptation:
    """Draw and read what a model gained and lost.

    Args:
        original: the run that was adapted from.
        start: its model with the new classes, before any image.
        method: after all of `used`.
        used: images that were learned from.
        rest: further images of the new classes, perhaps none; the loss is measured on them.
        seconds: that the adaptation took.
        again: adapts `start` to some of `used`, for the curve over shots; None: no curve.
        judge: reads classes, new ones after the old; None: the models' own readers do.
        progress: told the name of the part and the share that is done.
    """
    query = _at_most(rest, MAX_QUERY)
    fewest = int(used.counts().min())
    shots = [k for k in SHOTS if k < fewest]
    looks = shot_curve(start, used, query, shots, again, judge, progress)
    if progress is not None:
        progress("comparing", 0.0)
    n_used = int(used.counts().max())
    looks.append(_look(method, used.class_names, query, n_used, seconds, judge or read_by(method)))
    looks[-1].fewest = None if fewest == n_used else fewest
    omitted: dict[str, str] = {}
    if not looks[-1].read:
        omitted["read"] = (
            f'the method "{method.name}" does not read images as words; --judge trains a classifier'
        )
    if not len(query):
        omitted["query_loss"] = (
            "every image was learned from, so the loss on others is not known (--shots sets some aside)"
        )
    retention, old_shown, before, after, variety = _compare_old(original.method, method, judge, omitted)
    text = start.spec.text
    return Adaptation(
        original.path.name,
        text is not None and text.has_meaning,
        used,
        len(query),
        looks,
        retention,
        judge is not None,
        old_shown,
        before,
        after,
        variety,
        _new_variety(looks[-1], used, rest),
        omitted,
    )


def pixel_variance(images: Tensor) -> float:
    """Return the unbiased variance of each pixel over images, averaged over pixels; pixels in [0, 1].

    Args:
        images: uint8 (N, C, H, W).

    Raises:
        DataError: fewer than two images.

    >>> pixel_variance(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1))
    0.5
    """
    if len(images) < 2:
        raise DataError(f"The variance of images needs at least 2 of them, got {len(images)}.")
    return float(images.to(torch.float64).div(255.0).var(0).mean())


def class_variety(before: Tensor, after: Tensor, labels: Tensor, names: Sequence[str]) -> Variety:
    """Return how much of the pixel variance within classes is left.

    Args:
        before: uint8 (N, C, H, W), draws before.
        after: the same, after; row i is the same seed.
        labels: int64 (N,), classes of both.
        names: of all classes.

    Raises:
        DataError: no class has two draws that differ before.
    """
    each: dict[str, tuple[float, float]] = {}
    enough = {}
    for label, n in zip(*(x.tolist() for x in labels.unique(return_counts=True)), strict=True):
        if n < 2:
            continue
        rows = labels == label
        pair = each[names[label]] = pixel_variance(before[rows]), pixel_variance(after[rows])
        if n >= ENOUGH_DRAWS and pair[0] > 0:
            enough[names[label]] = pair[1] / pair[0]
    total = math.fsum(first for first, _ in each.values())
    if not total > 0:
        raise DataError("no old class has two draws that differ before, so there is no variety to keep")
    return Variety(math.fsum(then for _, then in each.values()) / total, enough)


def _new_variety(look: Look, used: ImageSet, rest: ImageSet) -> dict[str, float]:
    found = {}
    for label, name in enumerate(used.class_names):
        given = torch.cat([used.images[used.labels == label], rest.images[rest.labels == label]])
        variance = pixel_variance(given) if len(given) >= ENOUGH_IMAGES else 0.0
        if variance > 0:
            found[name] = look.variance[name] / variance
    return found


def cannot_tell(retention: Retention) -> list[str]:
    """Return the old classes whose draws the judge never read right before, so that none could be lost."""
    return [
        name
        for name, r in retention.per_class.items()
        if r.before.successes == 0 and name not in retention.won
    ]


def shot_curve(
    start: Method,
    support: ImageSet,
    query: ImageSet,
    shots: Sequence[int],
    again: Callable[[ImageSet], Method] | None,
    reader: Reader | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> list[Look]:
    """Return how a model draws new classes before the first image, and after some numbers of images.

    Args:
        start: the model with the new classes, before any image; stays as it is.
        support: images of the new classes to learn from; fewer shots are among more.
        query: further images of them, to measure the loss on; perhaps none.
        shots: images per class.
        again: adapts `start` to some of `support`; None: no curve.
        reader: images -> classes of the model; None: what was adapted reads its own draws.
        progress: told the name of the part and the share that is done.
    """
    names = support.class_names
    looks = [_look(start, names, query, 0, 0.0, reader or read_by(start))]
    for done, k in enumerate(shots if again is not None else ()):
        if progress is not None:
            progress(f"adapting to {k} image{'s' if k > 1 else ''}", done / len(shots))
        began = time.perf_counter()
        assert again is not None
        method = again(_first(support, k))
        seconds = time.perf_counter() - began
        looks.append(_look(method, names, query, k, seconds, reader or read_by(method)))
    return looks


def _at_most(images: ImageSet, n: int) -> ImageSet:
    rows = [(images.labels == label).nonzero().flatten()[:n] for label in range(images.n_classes)]
    return images.subset(torch.cat(rows))


def _first(images: ImageSet, k: int) -> ImageSet:
    """Return the first k images of each class, so that fewer shots are among more."""
    return _at_most(images, k)


def read_by(method: Method) -> Reader | None:
    """Return the reader of a method; None if it has none."""
    if "retrieve" not in method.capabilities:
        return None

    def read(images: Tensor) -> Tensor:
        parts = []
        with torch.no_grad():
            for chunk in images.split(256):
                x = chunk.to(method.device).to(torch.float32).div(127.5).sub(1.0)
                parts.append(method.retrieve(x).argmax(1).cpu())  # type: ignore[operator]
        return torch.cat(parts)

    return read


def _look(
    method: Method,
    names: Sequence[str],
    query: ImageSet,
    shots: int,
    seconds: float,
    reader: Reader | None,
) -> Look:
    from fewgen.generate import GenerationRequest

    n_old = method.spec.n_classes - len(names)
    labels = range(n_old, method.spec.n_classes)
    drawn = method.generate(GenerationRequest.per_class(labels, N_NEW, seed=DRAW_SEED))
    read = {}
    if reader is not None:
        right = reader(drawn.images) == drawn.labels
        for label, name in zip(labels, names, strict=True):
            of_class = right[drawn.labels == label]
            read[name] = wilson_interval(int(of_class.sum()), len(of_class))
    rows = drawn.images.unflatten(0, (len(names), N_NEW))
    shown = rows[:, :SHOWN].flatten(0, 1)
    variance = {name: pixel_variance(row) for name, row in zip(names, rows, strict=True)}
    return Look(shots, shown, read, _query_loss(method, query, n_old), seconds, variance)


@torch.no_grad()
def _query_loss(method: Method, query: ImageSet, n_old: int) -> float | None:
    from fewgen.training.seeds import make_rng

    if not len(query):
        return None
    rng = make_rng(method.device, DRAW_SEED, "query loss")
    x = query.floats().to(method.device)
    total = method.task_terms(x, (query.labels + n_old).to(method.device), None, rng).total()
    return float(total)


def _compare_old(
    original: Method, method: Method, judge: Reader | None, omitted: dict[str, str]
) -> tuple[Retention | None, tuple[str, ...], Tensor, Tensor, Variety | None]:
    from fewgen.data.imageset import evenly
    from fewgen.generate import GenerationRequest

    names = original.spec.class_names
    chosen = sorted(evenly(list(range(len(names))), N_OLD))
    per_class = max(1, min(MAX_PER_OLD, N_OLD // len(chosen)))
    request = GenerationRequest.per_class(chosen, per_class, seed=DRAW_SEED)
    before, after = original.generate(request), method.generate(request)
    reader = judge if judge is not None else read_by(original)
    retention = None
    if reader is None:
        omitted["retention"] = (
            f'the method "{original.name}" does not read images as words; --judge trains a classifier'
        )
    else:
        try:
            retention = class_retention(reader(before.images), reader(after.images), before.labels, names)
        except DataError as error:
            omitted["retention"] = str(error)
    variety = None
    try:
        variety = class_variety(before.images, after.images, before.labels, names)
    except DataError as error:
        omitted["variety"] = str(error)
    pictured = [chosen[i] for i in range(min(MAX_PICTURED, len(chosen)))]
    per_row = min(SHOWN, per_class)

    def rows(images: Tensor) -> Tensor:
        return images.unflatten(0, (len(chosen), per_class))[: len(pictured), :per_row].flatten(0, 1)

    return retention, tuple(names[i] for i in pictured), rows(before.images), rows(after.images), variety


# ------------------------------------------------------------------------------------------------ lines


def lines(figures: Mapping[str, Any]) -> list[str]:
    """Return what the figures of an adaptation say, a line per question.

    Args:
        figures: of `Adaptation.figures`.
    """
    said = []
    first, last = figures["looks"][0], figures["looks"][-1]
    for name, share in last["read"].items():
        then = first["read"][name]
        who = (
            "by a classifier of the training images and the new ones"
            if figures["judge"] == CLASSIFIER
            else "by the model itself, which flatters it; --judge asks a classifier"
        )
        said.append(
            f'"{name}": {share["successes"]} of {share["n"]} draws are read as it '
            f"({then['successes']} before the first image), {who}"
        )
    retention = figures["retention"]
    if retention is not None:
        overall = retention["overall"]
        change = (
            f"old classes: {overall['before']['value']:.0%} -> {overall['after']['value']:.0%} of "
            f"{overall['before']['n']} draws are read right by {_judge_name(figures['judge'])}"
        )
        unknown = figures["cannot_tell"]
        named = [f"{what} {', '.join(retention[what])}" for what in ("lost", "won") if retention.get(what)]
        named += [f"cannot tell for {', '.join(unknown)} (never read right before)"] if unknown else []
        said.append(change + (f"; {'; '.join(named)}" if named else ""))
    variety = figures["variety"]
    if variety is not None:
        found = Variety(**variety)
        worst = found.worst()
        least = "" if worst is None else f' (least: "{worst}", {found.per_class[worst]:.0%})'
        said.append(f"variety of old classes: {found.overall:.0%} of the variance within a class{least}")
    return said


def _judge_name(judge: str) -> str:
    return "a classifier of the training images and the new ones" if judge == CLASSIFIER else judge


# ------------------------------------------------------------------------------------------------ the page


def render_adaptation(
    found: Adaptation,
    record: Mapping[str, Any],
    out: Path,
    notes: Sequence[str] = (),
    citations: Sequence[str] = (),
) -> str:
    """Return the page: one file, no scripts, nothing from outside, all text escaped.

    Args:
        found: what was measured.
        record: what was done; `extra["adapted"]` of the model file.
        out: the folder of the adapted run, as it was given.
        notes: what a reader should know.
        citations: keys of `citations.BIBTEX`.
    """
    from fewgen import __version__

    sections = [
        ("The new class" if found.used.n_classes == 1 else "The new classes", lambda: _pictures(found)),
        ("In figures", lambda: _curve(found)),
        ("The old classes", lambda: _old(found)),
        ("Left out", lambda: _omitted(found)),
        ("Use it", lambda: _commands(found, out)),
        ("Cite", lambda: f"<pre>{escape(bibtex(citations))}</pre>\n" if citations else ""),
    ]
    head = _head(found, record) + "".join(warning(note) for note in notes)
    body = head + "".join(section(title, make) for title, make in sections)
    versions = f"fewgen {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return page(out.name, f"<h1>{escape(out.name)}</h1>\n{body}", versions)


def _head(found: Adaptation, record: Mapping[str, Any]) -> str:
    counts = found.used.counts().tolist()
    learned = ", ".join(
        f"{name} ({count} image{'s' if count > 1 else ''})"
        for name, count in zip(found.used.class_names, counts, strict=True)
    )
    replay = f"{record['replay']} draws of old classes beside the new images" if record["replay"] else "none"
    facts = [
        ("adapted from", found.original_name),
        ("new", learned),
        ("updates", f"{record['steps']}, learning rate {record['lr']:g}, parameters: {record['part']}"),
        ("replay", replay),
        ("time", f"{record['seconds']:.1f} s"),
    ]
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    return f"<dl>{items}</dl>\n"


def _pictures(found: Adaptation) -> str:
    from fewgen.generate.pictures import grid

    parts = []
    for row, name in enumerate(found.used.class_names):
        real = found.used.images[found.used.labels == row][:SHOWN]
        blank = torch.full((SHOWN - len(real), *real.shape[1:]), 255, dtype=torch.uint8)
        rows, labels = [real, blank], ["learned from"]
        for look in found.looks:
            rows.append(look.drawn[row * SHOWN : (row + 1) * SHOWN])
            labels.append(shots_name(look.shots, look.fewest))
        picture = grid(torch.cat(rows), SHOWN, labels)
        caption = f'"{name}": images that were learned from, then draws, each row with the same seeds.'
        parts.append(figure(png(picture), f"images and draws of {name}", caption, pixels=True))
    if not found.has_meaning:
        parts.append(NO_MEANING)
    return "".join(parts)


NO_MEANING = (
    '<p class="soft">The class vectors carry no meaning (onehot): the draws before the first image '
    "come from an arbitrary vector and say nothing about the class.</p>\n"
)


def shots_name(k: int, fewest: int | None = None) -> str:
    """Return what a model has seen of each new class, in words; `fewest` where classes differ."""
    if fewest is not None and fewest < k:
        return f"{fewest} to {k} images"
    return "the word alone" if k == 0 else f"{k} image{'s' if k > 1 else ''}"


def _curve(found: Adaptation) -> str:
    who = (
        f"share of {N_NEW} draws that a small classifier reads as the class, with its 95 % interval. It was "
        "trained on the run's training images and on the given ones of the new classes, and knows nothing of "
        "the model. "
        if found.independent
        else f"share of {N_NEW} draws that the adapted model itself reads as the class, with its 95 % "
        "interval. It is the model's own reader, not an independent judge (--judge asks a classifier): it "
        "flatters the model, and may take for the class what no person would. "
    )
    note = f'<p class="soft">Read as: {who}'
    if found.n_query:
        note += f"Loss: the objective on {found.n_query} images that were not learned from. "
    for name, ratio in found.new_variety.items():
        note += escape(f"Draws of {name} have {ratio:.0%} of the pixel variance of the images given. ")
    note += "Each row starts from the run that was adapted.</p>\n"
    return look_table(found.looks, found.used.class_names) + note


def look_table(
    looks: Sequence[Look], names: Sequence[str], together: bool = False, more: Sequence[Sequence[str]] = ()
) -> str:
    """Return a row per look: shares of the draws that are read right, loss, seconds.

    Args:
        looks: of `shot_curve`.
        names: of the new classes.
        together: with a column for all new classes at once.
        more: further rows, each with a cell per column.
    """
    read = [name for name in names if name in looks[-1].read]
    together = together and len(read) > 1
    with_loss = looks[-1].query_loss is not None
    head = ["after", *(["read right"] if together else []), *(f"read as {name}" for name in read)]
    head += ["loss on other images"] if with_loss else []
    rows = []
    for look in looks:
        row = [shots_name(look.shots, look.fewest), *([share_text(look.overall())] if together else [])]
        row += [share_text(look.read[name]) for name in read]
        row += [f"{look.query_loss:.4g}"] if look.query_loss is not None else []
        rows.append([*row, f"{look.seconds:.1f}"])
    return table([*head, "seconds"], [*rows, *more])


def share_text(share: Share) -> str:
    """Return a share with its interval, in words."""
    return f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"


def _old(found: Adaptation) -> str:
    from fewgen.generate.pictures import grid

    n = len(found.before) // len(found.old_shown)
    rows, labels = [], []
    for i, name in enumerate(found.old_shown):
        rows += [found.before[i * n : (i + 1) * n], found.after[i * n : (i + 1) * n]]
        labels += [name, "  after"]
    picture = grid(torch.cat(rows), n, labels)
    caption = "Draws of old classes before, and below them the same seeds after the adaptation."
    html = figure(png(picture), "old classes before and after", caption, pixels=True) + _variety(found)
    if found.retention is None:
        return html
    overall = found.retention.overall
    who = (
        "a small classifier that was trained on the run's training images and on the given ones of the new "
        "classes, and knows nothing of the model"
        if found.independent
        else f"{OWN_READER}, which is not an independent judge (--judge asks a classifier)"
    )
    named = [
        f"{what}: {', '.join(classes)}"
        for what, classes in (("Lost", found.retention.lost), ("Won", found.retention.won))
        if classes
    ]
    unknown = cannot_tell(found.retention)
    verdict = ". ".join(named) or "No class lost or won more than chance explains"
    if unknown:
        verdict += f". Cannot tell for {', '.join(unknown)}: their draws were never read right before"
    text = (
        f"Read right before {share_text(overall.before)}, after {share_text(overall.after)}; change "
        f"{100 * overall.change.value:+.0f} points ({100 * overall.change.low:+.0f} to "
        f"{100 * overall.change.high:+.0f}). {verdict}. Judged by {who}. 95 % intervals."
    )
    per_class = [
        (
            name,
            share_text(r.before),
            share_text(r.after),
            str(r.n_lost),
            str(r.n_won),
            "cannot tell" if name in unknown else f"{r.p_adjusted:.2g}",
        )
        for name, r in found.retention.per_class.items()
    ]
    head = ("class", "before", "after", "draws lost", "draws won", "p, all classes together")
    return f"<p>{escape(text)}</p>\n" + html + table(head, per_class)


def _variety(found: Adaptation) -> str:
    if found.variety is None:
        return ""
    text = (
        f"Variety: after the adaptation, {found.variety.overall:.0%} of the pixel variance within a class is "
        "left (draws of the same seeds)"
    )
    each = [f"{name} {ratio:.0%}" for name, ratio in found.variety.per_class.items()]
    return f"<p>{escape(text + (': ' + ', '.join(each) if each else ''))}.</p>\n"


def _omitted(found: Adaptation) -> str:
    rows = [(name.replace("_", " "), reason) for name, reason in found.omitted.items()]
    return table(("figure", "why it is left out"), rows) if rows else ""


def _commands(found: Adaptation, out: Path) -> str:
    run, name = shlex.quote(str(out)), shlex.quote(found.used.class_names[0])
    commands = (
        f"fewgen generate {run} --class-name {name} -n 64 --out images.npz\n"
        f"fewgen adapt {run} --images DIR --class-name ANOTHER --out NEW_RUN"
    )
    return f"<pre>{escape(commands)}</pre>\n"
