"""Few-shot distillation: a tiny classifier that learns one task from a strong teacher's soft labels.

`distilling.py`: the verb; `student_work.py`, `comparison_work.py`: its two uses; `students.py`, `teacher.py`,
`knowledge.py`: who learns from whom, and how.
"""

from __future__ import annotations

from fewgen.lazy import lazy_names

_NAMES = {
    "export": "ExportRecord export_onnx",
    "knowledge": "DistillConfig DistillHistory accuracy distill distillation_loss kd_loss predict_logits "
    "three_parts",
    "storing": "load_student save_student",
    "students": "STUDENTS Conv4 ResNet12 Student make_student",
    "teacher": "DinoBackbone ProtoNet Prototypes meta_train",
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names.split()}
__all__ = [*_HOMES]
__getattr__ = lazy_names(__name__, _HOMES)
