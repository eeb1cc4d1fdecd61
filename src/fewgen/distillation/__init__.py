"""Few-shot distillation: a tiny classifier that learns one task from a strong teacher's soft labels.

`distilling.py`: the verb; `student_work.py`, `comparison_work.py`: its two uses; `students.py`, `teacher.py`,
`knowledge.py`: who learns from whom, and how. Nothing heavy is imported here.
"""
