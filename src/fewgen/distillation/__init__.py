"""Few-shot distillation: a tiny classifier that learns one task from a strong teacher's soft labels."""

from __future__ import annotations

from fewgen.distillation.export import ExportRecord, export_onnx
from fewgen.distillation.knowledge import (
    DistillConfig,
    DistillHistory,
    accuracy,
    distill,
    distillation_loss,
    kd_loss,
    predict_logits,
    three_parts,
)
from fewgen.distillation.storing import load_student, save_student
from fewgen.distillation.students import STUDENTS, Conv4, ResNet12, Student, make_student
from fewgen.distillation.teacher import DinoBackbone, ProtoNet, Prototypes, meta_train

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
