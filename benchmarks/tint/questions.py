"""The tables: what is asked, and the rows that answer it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.ablation import Question
from benchmarks.tint.settings import DEFAULT, IMAGES, SHOTS, Row


@dataclass(frozen=True)
class Table(Question):
    """A question with the work that answers it.

    Attributes:
        data: the data sets on which it is asked.
        group: of `GROUPS`.
        shows: what a reader sees in it, a sentence or two.
        by_name: whether it is left out unless it is asked for by its key: it takes hours.
    """

    data: tuple[str, ...] = ()
    group: str = ""
    shows: str = ""
    by_name: bool = False

    @property
    def work(self) -> str:
        """What computes its cells, a key of `cells.FIGURES`; or theorem1."""
        return "memory" if self.key == "memory" else self.group


def _tint(**changes: Any) -> dict[str, Any]:
    return {"tint": changes}


def _null_text_rows() -> tuple[Row, ...]:
    rows = [Row("w = 1", settings=_tint(guidance_scale=1.0, null_text={"inner_steps": 0}))]
    for w in (3.0, 7.5):
        rows.append(
            Row(f"w = {w:g}, no null texts", settings=_tint(guidance_scale=w, null_text={"inner_steps": 0}))
        )
        for inner in (1, 3, 10, 30):
            rows += [
                Row(
                    f"w = {w:g}, {inner} x {lr:g}",
                    settings=_tint(guidance_scale=w, null_text={"inner_steps": inner, "lr": lr}),
                )
                for lr in (0.01, 0.03)
            ]
    return tuple(rows)


ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
MANY = 100
"""Supports of each class where there are many."""

FULL_T = _tint(textual={"t_min": 0})

TABLES = (
    Table(
        "null_text",
        "Reconstruction of supports: guidance, inner steps x learning rate",
        _null_text_rows(),
        IMAGES,
        group="inversion",
        shows="Real images of unseen classes, inverted and sampled again with guidance w. Error: mean "
        "squared difference of pixels in [-1, 1]. Factor: how many times larger the error of the same "
        "images is without null texts.",
    ),
    Table(
        "dequant",
        "Reconstruction of supports: noise before the inversion",
        tuple(Row(f"dequant_t = {t}", settings=_tint(dequant_t=t)) for t in (0, 19, 39)),
        IMAGES,
        group="inversion",
        shows="The same with default null texts, where the inversion starts from the image noised to a small "
        "time. The RMS of z_T should be about 1.",
    ),
    Table(
        "images",
        "Ways to make images",
        (
            Row("none: the word object", "object"),
            Row("textual inversion, all t", "textual_inversion", FULL_T),
            Row("textual inversion, limited t", "textual_inversion"),
            Row("TINT (with null texts)", "tint"),
            Row("DA-Fusion", "da_fusion"),
            Row("other real images", "real"),
        ),
        IMAGES,
        group="images",
        shows="Images of each task's classes against real ones, in features of a classifier that has never "
        "seen these classes. The last row is what real images reach.",
    ),
    Table(
        "alpha",
        "Share of fresh noise",
        tuple(Row(f"alpha = {a:g}", "tint", {"alpha": a}) for a in ALPHAS),
        IMAGES,
        group="images",
        shows="TINT from copies of the supports (alpha = 0) to images that share their class alone (1).",
    ),
    Table(
        "norm",
        "Norm of the blend, at alpha 0.5",
        (
            *(
                Row(mode, "tint", {"alpha": 0.5, **_tint(norm_mode=mode)})
                for mode in ("interp", "gaussian", "none")
            ),
            Row("interp, dequant_t = 19", "tint", {"alpha": 0.5, **_tint(dequant_t=19)}),
        ),
        IMAGES,
        group="images",
        shows="interp is the published norm; none leaves the sum of two latents, which is too short.",
    ),
    Table(
        "guidance",
        "Guidance",
        tuple(
            Row(f"{name}, w = {w:g}", kind, _tint(guidance_scale=w))
            for name, kind in (("textual inversion", "textual_inversion"), ("TINT", "tint"))
            for w in (1.0, 3.0, 7.5)
        ),
        IMAGES,
        group="images",
        shows="The same scale in inversion and sampling. At w = 1 null texts have no influence, and both "
        "ways are one.",
    ),
    Table(
        "students",
        "Students: where their images come from",
        (
            DEFAULT,
            Row("none (no synthetic images)", "none"),
            Row("augmentation, random weights", "augmentation"),
            Row("augmentation, prepared weights", "augmentation_pretrained"),
            Row("textual inversion, all t", "textual_inversion", FULL_T),
            Row("textual inversion, limited t", "textual_inversion"),
            Row("DA-Fusion", "da_fusion"),
            Row("hard labels", "hard_labels"),
            Row("teacher itself", "teacher"),
        ),
        IMAGES,
        "students",
        "Accuracy of a student after equal steps, supports, queries and first weights.",
    ),
    Table(
        "student_alpha",
        "Students: share of fresh noise",
        tuple(Row(f"alpha = {a:g}", "tint", {"alpha": a}) for a in ALPHAS),
        IMAGES,
        "students",
        "Students of TINT images, whose default is alpha = 1.",
    ),
    Table(
        "amount",
        "Students: synthetic images per class",
        (Row("0", "none"), *(Row(f"{n}", "tint", {"per_class": n}) for n in (50, 200, 500))),
        IMAGES,
        "students",
        "Students of more and more TINT images, after equal steps.",
    ),
    Table(
        "labels",
        "Students: who labels synthetic images",
        (
            Row("hard labels", "hard_labels"),
            Row("weak teacher", "tint", {"teacher": "weak"}),
            Row("strong teacher", "tint"),
            Row("weak teacher itself", "teacher", {"teacher": "weak"}),
            Row("strong teacher itself", "teacher"),
        ),
        IMAGES,
        "students",
        "Soft labels of a strong and of a weak teacher, which has seen few tasks and has few channels; base "
        "images have soft labels in every row, with hard labels those of the strong teacher.",
    ),
    Table(
        "student_steps",
        "Students: steps",
        tuple(
            Row(f"{name}, {n} steps", what, {"training": {"steps": n}}, f"TINT, {n} steps")
            for n in (300, 1000, 3000)
            for name, what in (("TINT", "tint"), ("none", "none"))
        ),
        IMAGES,
        "students",
        "With TINT images and without synthetic ones, after equal steps each. Differences are to TINT after "
        "as many steps.",
    ),
    Table(
        "many_supports",
        f"Students of {MANY} supports per class: share of fresh noise",
        (
            Row("no synthetic images", "none", {"shots": MANY}, "alpha = 1"),
            *(Row(f"alpha = {a:g}", "tint", {"shots": MANY, "alpha": a}, "alpha = 1") for a in ALPHAS),
        ),
        # A character has 20 drawings.
        tuple(data for data in IMAGES if data != "omniglot"),
        "students",
        f"The same where {MANY} real images of each class are at hand. Differences are to alpha = 1. Teacher "
        f"and student are prepared as for {SHOTS}.",
        by_name=True,
    ),
    Table(
        "theorem1",
        "Theorem 1: variance of a mean over episodes",
        tuple(
            Row(f"a = {a:g}, s = {s:g}, P = {p}, Q = {q}", settings={"a": a, "s": s, "p": p, "q": q})
            for a, s in ((0.87, 0.05), (0.6, 0.1))
            for p in (10, 120, 600)
            for q in (1, 25, 75, 600)
        ),
        ("simulation",),
        group="theorem1",
        shows="Accuracies of P episodes drawn from a Beta distribution of mean a and standard deviation s, Q "
        "queries each. Predicted: (a (1 - a) / Q + (1 - 1 / Q) s^2) / P. In standard errors: the "
        "difference of both in those of the simulation; within 2 for 95 % of all rows if the theorem holds. "
        "The estimate of s^2 is the mean of the planner's, from each simulated measurement.",
    ),
    Table(
        "cost",
        "Seconds per image",
        (Row("5 supports of each class"),),
        IMAGES,
        group="cost",
        shows="One task from its supports to its images on one thread, split as in the published table; what "
        "is learned once is shared by all images of the task.",
    ),
    Table(
        "memory",
        "Memory of null-text inversion",
        tuple(Row(f"{n} supports", settings={"supports": n, **_tint(batch=5)}) for n in (5, 25, 100)),
        IMAGES,
        group="cost",
        shows="Highest memory of a fresh process beyond what it held before, at an equal batch of 5. It must "
        "not grow with the supports beyond the null texts themselves, whose size is in the last column.",
    ),
)
GROUPS = tuple(dict.fromkeys(table.group for table in TABLES))
