"""The images of fixed seeds that a training draws to compare its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fewgen.runs.preparing import Prepared
    from fewgen.training.selection import Drawn


def checkpoint_images(prepared: Prepared) -> Callable[[], Drawn]:
    """Return what draws images with a method as it is, and compares them with the real ones."""
    from fewgen.evaluation.checkpoint import CheckpointJudge
    from fewgen.generation.request import GenerationRequest, image_seeds

    method = prepared.method
    judge = CheckpointJudge(prepared.train, prepared.held_out, method.knows_classes)

    def draw() -> Drawn:
        request = GenerationRequest(labels=judge.labels, seeds=image_seeds(0, len(judge.labels)))
        return judge(method.generate(request).images)

    return draw
