"""The frozen network that compares images beside their pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewgen.losses.attributes import feature_error
from fewgen.methods.tage.config import AutoencoderConfig

if TYPE_CHECKING:
    from fewgen.training.phases import Context


class Perception:
    """What a frozen network sees of images. No module: models do not keep it.

    Args:
        config: which network.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        self.kind = config.perceptual if config.perceptual_weight else "none"
        self.steps = config.perceptual_steps
        self._network: Any = None

    @property
    def looks(self) -> bool:
        """Whether there is such a network."""
        return self.kind != "none"

    def prepare(self, context: Context) -> None:
        """Read the network, or train it on the training images; once for all stages of a process."""
        if not self.looks or self._network is not None:
            return
        if self.kind == "lite0":
            from fewgen.encoders.named import make_image_encoder

            encoder: Any = make_image_encoder(f"lite0:{max(64, *context.train.source.size)}")
            encoder.network.requires_grad_(False).to(context.device)
            self._network = encoder.maps
            return
        from fewgen.encoders.classifier import ClassifierFeatures, ClassifierSettings
        from fewgen.evaluation.perceptual import FeaturePyramid

        source, seed = context.train.source, context.seed
        if source.n_classes < 2:
            self.kind = "none"
            return
        context.note("training the network that compares images")

        def trained(steps: int) -> ClassifierFeatures:
            settings = ClassifierSettings(steps=steps, batch_size=64, width=32, pool_first=True, seed=seed)
            return ClassifierFeatures.of(source, settings=settings, use_cache=False)

        with torch.enable_grad():  # hooks of stages have none
            found = context.shortened(self.steps, trained)
        found.network.requires_grad_(False).to(context.device)
        self._network = FeaturePyramid(found).maps

    def error(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Return `feature_error` of images (B, C, H, W) in [-1, 1]; gradients reach the first ones."""
        with torch.no_grad():
            target = self._maps(wanted)
        return feature_error(self._maps(found), target)

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps = self._network(x)
        return list(maps.values()) if isinstance(maps, dict) else maps
