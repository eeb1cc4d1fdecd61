"""`fewgen distill`: a tiny classifier from a few images per class, or what makes it better.

Examples:
    # a classifier of your classes from a few images of each, taught by a pretrained encoder (extra knowledge)
    fewgen distill --novel photos --teacher lite2 --size 64 --shots 10 --out tiny
    # the same with unlabelled photographs, which help most
    fewgen distill --novel photos --teacher lite2 --size 64 --pool more_photos --out tiny
    # with images that a generator makes
    fewgen distill --novel photos --generator runs/diffusion --data tiny_imagenet32 --out tiny
    # an even smaller one, by a run of tint; the images beyond 5 measure it
    fewgen distill --novel photos --generator runs/tint --shots 5 --student-channels 16 --out tiny
    # what helps: all competitors on the same episodes; the same command resumes it
    fewgen distill --data tiny_imagenet32 --episodes 10 --compare --workers 2 --out distill.json
    # as many episodes as plus or minus one point needs
    fewgen distill --data omniglot --episodes auto --half-width 0.01 --training.flip false --out omniglot.json
"""

from __future__ import annotations

from typing import Any, Literal

from fewgen.cli.command import Argument, Command


def _run(given: dict[str, Any]) -> int:
    import sys

    import fewgen

    made = fewgen.distill(**given)
    for note in made.notes:
        print(f"note: {note}", file=sys.stderr)
    for line in (_student if made.record["kind"] == "student" else _comparison)(made):
        print(line)
    return 0


def _student(made: Any) -> list[str]:
    record = made.record
    student, found = record["student"], record["accuracy"]
    n = record["images"]
    words = {"synthetic": "synthetic ones", "mixtures": "mixtures of them", "pool": "unlabelled images"}
    more = [f"{n[name]} {text}" for name, text in words.items() if n.get(name)]
    kinds = " and ".join([f"{n['support']} of your images", *more])
    lines = [
        f"{made.path} is already finished; nothing trained."
        if made.was_finished
        else f"Learned {len(record['classes'])} classes from {kinds}: {made.path}"
    ]
    if found is not None:
        lines.append(
            f"Accuracy: {100 * found['student']:.1f} % of {found['n']} images that nothing learned from "
            f"(95 % interval {100 * found['low']:.1f} to {100 * found['high']:.1f})"
            + (f"; the teacher {100 * found['teacher']:.1f} %" if "teacher" in found else "")
        )
    read = record.get("training", {}).get("teacher", {}).get("synthetic")
    if read is not None:
        lines.append(f"The teacher reads {100 * read:.1f} % of the synthetic images as their class.")
    onnx = student["onnx"]
    files = [student["file"]] + ([] if onnx is None else [f"{onnx['file']} ({onnx['bytes'] / 1024:.0f} kB)"])
    see = "; see synthetic.png" if n["synthetic"] else ""
    lines.append(f"Student: {student['parameters']:,} parameters, {' and '.join(files)}{see}")
    return lines


def _comparison(made: Any) -> list[str]:
    from fewgen.distillation.protocol import table

    record = made.record
    n = record["n_episodes"]
    return [
        f"{n} episode{'' if n == 1 else 's'}, mean and 95 % interval in percent:",
        table(record),
        f"Written to {made.path}",
    ]


def _dry_run(given: dict[str, Any]) -> str:
    import sys

    from fewgen.distillation.distilling import plan_distillation

    if given.get("progress", True):
        print("Taking a few trial steps of each part ...", file=sys.stderr, flush=True)
    return f"{plan_distillation(**given)}\nNothing was written. Without --dry-run, the work starts."


COMMAND = Command(
    function="distill",
    page=__doc__,
    run=_run,
    special=(
        Argument("novel", "DIR"),
        Argument("generator", "RUN"),
        Argument("n_shot", "K"),
        Argument("queries", type=int | Literal["all"]),
        Argument("episodes", type=int | Literal["auto"]),
        Argument("competitors", how="many"),
        Argument("alpha", "A"),
        Argument("pool", "DIR"),
        Argument("joint_encoder", "NAME"),
        Argument("mixtures", "N"),
        Argument("teacher", "NAME"),
        Argument("teacher_channels", "C"),
        Argument("student_channels", "C"),
        Argument("turns", "WHEN"),
        Argument("generator_minutes", "M"),
    ),
    dry_run=_dry_run,
    dry_run_text="check everything, print what would be done and what is there already, and stop.",
)
