"""Meta-learning: parameters from which a few images of a new class are enough.

`inner.py` adapts a copy of the parameters to one task, `gradients.py` says what the task teaches the
parameters that all tasks start from (MAML, FOMAML, Reptile), `stage.py` makes that a stage of the common
loop.
"""
