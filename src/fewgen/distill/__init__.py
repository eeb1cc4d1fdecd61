"""Few-shot distillation: a tiny classifier that learns one task from a strong teacher's soft labels."""

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
    "make_student",
    "meta_train",
    "predict_logits",
    "three_parts",
]
