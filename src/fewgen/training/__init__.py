"""The training loop: stages and phases in, a run folder out."""

from fewgen.fitting.schedules import constant, cosine, linear_warmup, make_schedule
from fewgen.fitting.seeds import derive_seed, make_rng
from fewgen.training.config import TrainConfig
from fewgen.training.loop import StageResult, Trainer, TrainResult
from fewgen.training.phases import Batch, Context, Phase, Pixels, Stage
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
    "constant",
    "cosine",
    "derive_seed",
    "linear_warmup",
    "make_rng",
    "make_sampler",
    "make_schedule",
]
