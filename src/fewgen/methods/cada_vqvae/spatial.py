"""The second level of the `hybrid` preset: image detail as a map of codes, drawn by a conditioned prior.

Twenty numbers fix what an image shows and roughly how; they cannot hold its seams and prints. Here a
VQ-VAE turns an image into a small map of codes, and a prior draws such a map given what the aligned latent
decodes to, so that the word decides the picture and the codes draw it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewgen.losses.reconstruction import squared_error, ssim_error
from fewgen.losses.terms import LossTerms
from fewgen.methods.cada_vqvae.config import SpatialConfig
from fewgen.nn.codebook import Codebook, Quantized
from fewgen.nn.conv import ConvDown, ConvUp, map_size
from fewgen.nn.prior import CodePrior
from fewgen.nn.vae import check_images


class Tokenizer(nn.Module):
    """A VQ-VAE over a map: image to indices (B, P, G) and back.

    Args:
        shape: (C, H, W).
        config: of the second level.

    Source: van den Oord et al. 2017, arXiv:1711.00937, Sec. 3.
    Differs: several codes per position, a map of 7 or 8 pixels a side, squared error plus SSIM.
    """

    def __init__(self, shape: tuple[int, int, int], config: SpatialConfig) -> None:
        super().__init__()
        self.shape, self.config = shape, config
        self.map = map_size(shape[1], shape[2])
        width = config.groups * config.codebook_dim
        self.down = ConvDown(shape, config.width, config.n_blocks)
        self.to_codes = nn.Conv2d(config.width, width, 1)
        self.codebook = Codebook(
            config.codebook_size,
            config.codebook_dim,
            groups=config.groups,
            commitment_weight=config.commitment_weight,
        )
        self.from_codes = nn.Conv2d(width, config.width, 3, padding=1)
        self.up = ConvUp(shape, config.width, config.n_blocks)

    @property
    def n_positions(self) -> int:
        """P, positions of the map."""
        return self.map[0] * self.map[1]

    def quantize(self, x: Tensor) -> Quantized:
        """Return the codes of images (B, C, H, W) in [-1, 1]; positions in raster order."""
        check_images(x, self.shape)
        return self.codebook(self.to_codes(self.down(x)).flatten(2).transpose(1, 2))

    def indices(self, x: Tensor) -> Tensor:
        """Return int64 (B, P, G) of images (B, C, H, W) in [-1, 1]."""
        return self.quantize(x).indices

    def draw(self, codes: Tensor) -> Tensor:
        """Return intensities in [0, 1], (B, C, H, W), of code vectors (B, P, G*D)."""
        h = codes.transpose(1, 2).unflatten(2, self.map)
        return torch.sigmoid(self.up(self.from_codes(h)))

    def decode(self, indices: Tensor) -> Tensor:
        """Return intensities in [0, 1], (B, C, H, W), of indices (B, P, G)."""
        return self.draw(self.codebook.lookup(indices))

    def loss(self, x: Tensor) -> LossTerms:
        """Return the terms for images in [-1, 1]; image terms count as if an image had 784 numbers."""
        target = 0.5 * (x + 1.0)
        quantized = self.quantize(x)
        drawn = self.draw(quantized.codes)
        values = {
            "image": squared_error(drawn, target) / target[0].numel(),
            "codebook": (quantized.codebook_loss + quantized.commitment_loss) / self.n_positions,
        }
        weights = {"image": 1.0, "codebook": 0.1}
        if self.config.ssim:
            values["ssim"] = ssim_error(drawn, target)
            weights["ssim"] = self.config.ssim / 784
        return LossTerms(values, weights, {"perplexity": quantized.perplexity})


class ConditionedPrior(nn.Module):
    """p(codes | z): what the latent decodes to, and the latent itself, steer the prior over codes.

    In training, the condition's latent is moved towards a random one of its class by a share `noise` that
    the prior is told. So it meets latents like those it will be given when generating, and learns how
    far to trust them.

    Args:
        shape: (C, H, W).
        latent_size: L.
        config: of the second level.
        n_positions: P.

    Source: noise on the condition, with its level given: Ho et al. 2021, arXiv:2106.15282, Sec. 3
        (cascaded diffusion models).
    Differs: the noise is on the latent, in units of its class, and the second level is autoregressive.
    """

    def __init__(
        self, shape: tuple[int, int, int], latent_size: int, config: SpatialConfig, n_positions: int
    ) -> None:
        super().__init__()
        width = config.prior_width
        self.look = ConvDown(shape, width // 2, 1)
        self.look_out = nn.Conv2d(width // 2, width, 1)
        self.latent = nn.Sequential(nn.Linear(latent_size + 1, width), nn.GELU(), nn.Linear(width, width))
        self.codes = CodePrior(
            n_positions,
            config.codebook_size,
            config.codebook_dim,
            config.groups,
            width,
            config.prior_layers,
            config.prior_heads,
            config.prior_dropout,
        )

    def condition(self, coarse: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """Return (B, P, W).

        Args:
            coarse: what z decodes to, (B, C, H, W) in [-1, 1].
            z: latents, (B, L).
            noise: share of noise in z, (B,) in [0, 1].
        """
        seen = self.look_out(self.look(coarse)).flatten(2).transpose(1, 2)
        told: Tensor = self.latent(torch.cat([z, noise[:, None]], dim=1))
        return seen + told[:, None]
