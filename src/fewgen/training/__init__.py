"""The training loop: stages and phases in, a run folder out."""

from fewgen.training.config import TrainConfig
from fewgen.training.loop import Trainer
from fewgen.training.phases import Batch, Context, Phase, Pixels, Stage
from fewgen.training.result import StageResult, TrainResult
from fewgen.training.sampler import Sampler, make_sampler

__all__ = [
    "Batch",
    "Context",
    "Phase",
    "Pixels",
    "Sampler",
    "Stage",
    "StageResult",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "make_sampler",
]
