"""Small models of TAGE."""

from __future__ import annotations

import torch
from tests.methods.sq_gan_tools import shapes

from fewgen.config import resolve
from fewgen.fitting.seeds import global_seed
from fewgen.methods.base import DataSpec
from fewgen.methods.tage import Tage, TageConfig
from fewgen.training.phases import Context, Pixels

# Everything that a test relies on is set here: the defaults are tuned for real data, and may move.
SMALL = {
    "network": {"w_dim": 8, "width": 4, "max_width": 8, "encoder_width": 4, "output": "tanh"},
    "autoencoder": {"steps": 4, "batch_size": 6, "perceptual_steps": 2, "augment": "none"},
    "age": {"rank": 3, "groups": [2, 1], "hidden": [8], "steps": 3, "batch_size": 6},
    "codebook": {"codebook_size": 12, "parts": 1, "steps": 3, "batch_size": 6},
    "predictor": {"width": 8, "layers": 1, "heads": 2, "steps": 3, "batch_size": 6},
    "layers": None,
}


def make(*changes, data=None, seed=0):
    """A fresh small model in evaluation mode, whose maps for codes are no identities."""
    data = shapes() if data is None else data
    with global_seed(torch.device("cpu"), seed):
        method = Tage(resolve(TageConfig, SMALL, *changes, where="model"), DataSpec.of(data))
    return method.eval()


def context_of(data, held_out=None):
    """What a hook is given."""
    cpu = torch.device("cpu")
    held = None if held_out is None else Pixels(held_out, cpu)
    rng = torch.Generator().manual_seed(3)
    return Context(0, 10, None, rng, Pixels(data, cpu), held, cpu)


def started(*changes, data=None):
    """A model with class means and codes from its training images, though nothing is trained."""
    data = shapes() if data is None else data
    method = make(*changes, data=data)
    method.perception.kind = "none"
    with torch.no_grad():  # the start of a generator draws all images alike
        method.autoencoder.w_avg += 0.3
    method._start_codebook(context_of(data))
    if method.directions is not None:
        method._fit_directions(context_of(data))
    return method
