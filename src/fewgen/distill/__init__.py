"""Few-shot distillation: a tiny classifier that learns one task from a strong teacher's soft labels."""

from __future__ import annotations

import sys
import types
from typing import Any

from fewgen.distill.export import ExportRecord, export_onnx
from fewgen.distill.knowledge import (
    DistillConfig,
    DistillHistory,
    accuracy,
    distill,
    distillation_loss,
    kd_loss,
    predict_logits,
    three_parts,
)
from fewgen.distill.storing import load_student, save_student
from fewgen.distill.students import STUDENTS, Conv4, ResNet12, Student, make_student
from fewgen.distill.teacher import DinoBackbone, ProtoNet, Prototypes, meta_train

__all__ = [
    "STUDENTS",
    "Conv4",
    "DinoBackbone",
    "DistillConfig",
    "DistillHistory",
    "ExportRecord",
    "ProtoNet",
    "Prototypes",
    "ResNet12",
    "Student",
    "accuracy",
    "distill",
    "distillation_loss",
    "export_onnx",
    "kd_loss",
    "load_student",
    "make_student",
    "meta_train",
    "predict_logits",
    "save_student",
    "three_parts",
]


class _CallableModule(types.ModuleType):
    """`fewgen.distill` is this package and, as design has it, the function of the same name."""

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Make a tiny classifier, or compare; see `fewgen.api.distill`."""
        from fewgen import api

        return api.distill(*args, **keywords)


# Python sets the attribute `fewgen.distill` to this package whenever any part of it is imported, which would
# hide a plain function of that name.
sys.modules[__name__].__class__ = _CallableModule
