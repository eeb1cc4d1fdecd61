"""Converted weights of StyleGAN2 and pSp in the place of an autoencoder that is trained."""

from __future__ import annotations

from pathlib import Path

import torch

from fewgen.errors import CheckpointError, ConfigError, ProblemList
from fewgen.methods.tage.config import NetworkConfig, TageConfig
from fewgen.methods.tage.parts import StyleAutoencoder
from fewgen.nn import psp_weights, stylegan_weights
from fewgen.nn.style_encoder import GradualStyleEncoder
from fewgen.nn.stylegan import channels_per_map


def weight_files(config: TageConfig) -> dict[str, tuple[str, str]]:
    """Return the files that settings name: use -> kind and path."""
    given = {"generator": ("stylegan2", config.generator), "encoder": ("psp", config.encoder)}
    return {use: (kind, str(Path(file).expanduser())) for use, (kind, file) in given.items() if file}


def about_weights(config: TageConfig) -> str:
    """Return what is done with the files that settings name, a line; "" without any."""
    if config.encoder is not None:
        return (
            f"generator and encoder are those of {Path(str(config.generator)).name} and "
            f"{Path(config.encoder).name}, and stay as they are: the stage autoencoder is left out."
        )
    if config.generator is not None:
        name = Path(config.generator).name
        return f"the generator is that of {name}, and stays as it is: the encoder is trained for it."
    return ""


def read_weights(autoencoder: StyleAutoencoder, config: TageConfig, shape: tuple[int, int, int]) -> None:
    """Fill a style autoencoder from the files that settings name.

    The average style is the encoder's, to which its offsets were learned, or else the generator's.

    Args:
        autoencoder: of these settings.
        config: names the files.
        shape: (C, H, W) of an image.

    Raises:
        ConfigError: the networks of a file are not those of the settings; it says which to give.
        CheckpointError: a file is missing, damaged or no safetensors file; tensors are missing, unknown, of
            another shape or not finite; or no file has an average style.

    Source: Karras et al. 2020, arXiv:1912.04958; Richardson et al. 2021, arXiv:2008.00951, whose encoder is
        trained for a generator that stays as it is.
    """
    files = {use: path for use, (_, path) in weight_files(config).items()}
    averages = []
    if "generator" in files:
        check_generator(files["generator"], config.network, shape)
        averages.append(stylegan_weights.load_stylegan2(files["generator"], synthesis=autoencoder.synthesis))
    if "encoder" in files:
        check_encoder(files["encoder"], config.network, autoencoder.n_layers)
        assert isinstance(autoencoder.encoder, GradualStyleEncoder)
        averages.append(psp_weights.load_psp(files["encoder"], autoencoder.encoder))
    found = [average for average in averages if average is not None]
    if averages and not found:
        names = " or ".join(f'"{path}"' for path in files.values())
        raise CheckpointError(
            f"There is no average style in {names}: the encoder gives offsets to it. Write w_avg of the "
            "mapping network (G_ema.mapping.w_avg; latent_avg of pSp) to the file, too."
        )
    if found:
        with torch.no_grad():
            autoencoder.w_avg.copy_(found[-1])


def check_generator(path: str, network: NetworkConfig, shape: tuple[int, int, int]) -> None:
    """Refuse a file whose generator is not that of the settings, from its header alone.

    Raises:
        ConfigError: it lists the settings to give.
        CheckpointError: the file is missing or holds no generator.
    """
    found = stylegan_weights.shapes_of(path).generator
    if found is None:
        raise CheckpointError(f'"{path}" holds a discriminator, but no generator.')
    wanted = _Wanted(f'The generator in "{path}" is not the one of the settings')
    if found.shape != shape:
        channels, height, width = found.shape
        side = f"--size {height}" if height == width else f"images of {height} x {width} pixels"
        wanted.add(
            f"it draws images of {channels} x {height} x {width} (channels, height, width), and the "
            f"data's are {' x '.join(map(str, shape))}. Give {side} and --channels {channels}, or another "
            "generator."
        )
    wanted.compare("w_dim", network.w_dim, found.w_dim)
    n = len(found.width) - 1
    if found.width != channels_per_map(n, network.width, network.max_width):
        base, most = found.width[-1], found.width[0]
        if found.width == channels_per_map(n, base, most):
            wanted.compare("width", network.width, base)
            wanted.compare("max_width", network.max_width, most)
        else:
            shown = ", ".join(map(str, found.width))
            wanted.add(
                f"its maps have {shown} channels, from the smallest; fewgen has networks whose channels "
                "double from the largest map on, up to a limit. This file cannot be read."
            )
    wanted.compare("start", network.start, "const")
    wanted.compare("output", network.output, "linear")
    wanted.raise_if_any()


def check_encoder(path: str, network: NetworkConfig, n_layers: int) -> None:
    """Refuse a file whose encoder is not that of the settings, from its header alone.

    Raises:
        ConfigError: it lists the settings to give.
        CheckpointError: the file is missing or holds no encoder.
    """
    found = psp_weights.shapes_of(path)
    wanted = _Wanted(f'The encoder in "{path}" is not the one of the settings')
    if found.n_layers != n_layers:
        wanted.add(
            f"it gives {found.n_layers} styles, and the generator takes {n_layers}. Give the encoder that "
            "was trained for this generator."
        )
    wanted.compare("encoder", network.encoder, "gradual")
    wanted.compare("w_dim", network.w_dim, found.w_dim)
    wanted.compare("encoder_width", network.encoder_width, found.width)
    wanted.compare("encoder_side", network.encoder_side, found.side)
    wanted.raise_if_any()


class _Wanted(ProblemList):
    """Settings that have to be others."""

    def __init__(self, headline: str) -> None:
        super().__init__(headline, ConfigError)

    def compare(self, name: str, now: object, there: object) -> None:
        """Note a setting of the networks that is not what a file has."""
        if now != there:
            self.add(
                f"network.{name} is {now}, and the file needs {there}. Give --model.network.{name} {there}."
            )
