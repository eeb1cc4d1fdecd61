"""A small class-conditional diffusion model, as the library diffusers makes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fewgen.comparison.budget import Budget
from fewgen.comparison.references.learning import Batches, by_parts, cut, descend, multiple_of_4
from fewgen.data.imageset import ImageSet, to_uint8
from fewgen.errors import MissingDependencyError
from fewgen.fitting.seeds import global_seed


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise MissingDependencyError(
            "The reference generator diffusion needs diffusers. Install it with: "
            "pip install 'fewgen[benchmark]', or leave diffusion out of --methods."
        ) from error
    return diffusers


class SmallDiffusion:
    """Class-conditional diffusion with a small `UNet2DModel` of diffusers; DDIM sampling.

    Source: Ho et al. 2020, arXiv:2006.11239; Nichol & Dhariwal 2021, arXiv:2102.09672 (cosine schedule);
    Song et al. 2021, arXiv:2010.02502 (DDIM); Salimans & Ho 2022, arXiv:2202.00512 (v-prediction).
    """

    name = "diffusion"

    def __init__(
        self, channels: tuple[int, ...] = (32, 64, 64), batch_size: int = 32, sample_steps: int = 50
    ) -> None:
        self.channels, self.batch_size, self.sample_steps = channels, batch_size, sample_steps

    def _scheduler(self, kind: str) -> Any:
        return getattr(_diffusers(), kind)(
            num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction",
            clip_sample=True,
        )  # fmt: skip

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Train for the whole budget.

        Raises:
            MissingDependencyError: diffusers is not installed.
        """
        _diffusers()
        budget.start()  # the import of diffusers takes seconds and is not training
        with global_seed(torch.device("cpu"), seed, self.name):
            return self._fit(train, budget, seed)

    def _fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        rng = torch.Generator().manual_seed(seed)
        self.size, self.shape = train.size, (train.channels, *multiple_of_4(train.size))
        network: Any = _diffusers().UNet2DModel(
            sample_size=self.shape[1:], in_channels=train.channels, out_channels=train.channels,
            block_out_channels=self.channels, layers_per_block=1, norm_num_groups=8, attention_head_dim=16,
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            num_class_embeds=train.n_classes,
        )  # fmt: skip
        scheduler = self._scheduler("DDPMScheduler")
        batches = Batches(train, self.batch_size, rng)

        def loss() -> Tensor:
            x, labels = batches()
            noise = torch.randn(x.shape, generator=rng)
            t = torch.randint(0, 1000, (len(x),), generator=rng)
            noisy = scheduler.add_noise(x, noise, t)
            found = network(noisy, t, class_labels=labels).sample
            return functional.mse_loss(found, scheduler.get_velocity(x, noise, t))

        about = descend(network, loss, budget, until=1.0, lr=1e-3, averaged=True)
        self.network = network
        return about | {"n_parameters": sum(p.numel() for p in network.parameters())}

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Denoise from pure noise in `sample_steps` DDIM steps, without guidance."""
        rng = torch.Generator().manual_seed(seed)

        def part(chunk: Tensor) -> Tensor:
            scheduler = self._scheduler("DDIMScheduler")
            scheduler.set_timesteps(self.sample_steps)
            x = torch.randn(len(chunk), *self.shape, generator=rng)
            for t in scheduler.timesteps:
                x = scheduler.step(self.network(x, t, class_labels=chunk).sample, t, x).prev_sample
            return to_uint8(cut(x, self.size).clamp(-1, 1))

        return by_parts(labels, part)
