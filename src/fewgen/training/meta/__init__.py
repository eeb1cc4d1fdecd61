"""Meta-learning: parameters from which a few images of a new class are enough.

`inner.py` adapts a copy of the parameters to one task, `gradients.py` says what the task teaches the
parameters that all tasks start from (MAML, FOMAML, Reptile), `stage.py` makes that a stage of the common
loop.
"""

from fewgen.training.meta.gradients import (
    Part,
    Task,
    TaskGradient,
    maml_gradient,
    method_loss,
    reptile_gradient,
)
from fewgen.training.meta.inner import SGD, Adam, inner_loop, make_inner_optimizer, parameters_of
from fewgen.training.meta.settings import ALGORITHMS, MetaConfig, check_algorithm

__all__ = [
    "ALGORITHMS",
    "SGD",
    "Adam",
    "MetaConfig",
    "Part",
    "Task",
    "TaskGradient",
    "check_algorithm",
    "inner_loop",
    "make_inner_optimizer",
    "maml_gradient",
    "method_loss",
    "parameters_of",
    "reptile_gradient",
]
