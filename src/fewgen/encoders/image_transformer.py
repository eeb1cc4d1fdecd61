"""Features of DINO and CLIP image transformers, through transformers (extra `text`).

Weights come from a local folder or from the hub, as safetensors only; no code of a model is ever run.
Resizing and normalising are done here in plain torch: the processors of transformers want torchvision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.config.records import read_record
from fewgen.encoders.base import FrozenEncoder, as_colour
from fewgen.encoders.pretrained import load_whole, model_folder, optional_library
from fewgen.errors import CheckpointError, ConfigError, suggest
from fewgen.files import file_sha256

# What `model_type` in config.json may say; the second of CLIP is the image half alone.
_MODEL_TYPES = {
    "dino": ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit"),
    "clip": ("clip", "clip_vision_model"),
}
# Published folders to name in messages.
_EXAMPLES = {"dino": "facebook/dinov2-small", "clip": "openai/clip-vit-base-patch32"}
# These add position vectors of one fixed number of patches; the DINOv2 family interpolates them.
_FIXED_SIZE = ("vit", "clip", "clip_vision_model")


class TransformerFeatures(FrozenEncoder):
    """Image vectors of a vision transformer: the class token (DINO) or the projected image vector (CLIP).

    Args:
        kind: "dino" (ViT, DINOv2 and later: the class token after the last layer norm, as it is) or "clip"
            (projected, scaled to length 1).
        path: a local folder with config.json, preprocessor_config.json and safetensors weights, or a hub
            name (owner/model; downloads it).
        batch_size: images per forward pass.

    Raises:
        MissingDependencyError: transformers is not installed.
        ConfigError: no such folder or hub name, or an unknown kind.
        CheckpointError: a folder that lacks a part, holds another architecture, or cannot be read.

    Source: Oquab et al. 2023, arXiv:2304.07193 (DINOv2); Caron et al. 2021, arXiv:2104.14294 (DINO);
    Radford et al. 2021, arXiv:2103.00020, Sec. 2.4 (CLIP). Used in place of Inception: Stein et al. 2023,
    arXiv:2306.04675, Sec. 3.
    Differs from the models' own preparation: the whole image is resized to the input size (antialiased
    bicubic), nothing is cropped away, for the margins are to be judged, too.
    """

    def __init__(self, kind: Literal["dino", "clip"], path: str | Path, batch_size: int = 16) -> None:
        if kind not in _MODEL_TYPES:
            raise ConfigError(
                f'There is no transformer "{kind}".{suggest(kind, _MODEL_TYPES)} Choose dino or clip.'
            )
        transformers = optional_library("transformers", f"The image encoder {kind}")
        super().__init__(kind, batch_size)
        self.path = str(path)
        folder = _folder(kind, path)
        model_type = _model_type(kind, folder)
        preparation = _read_json(folder, "preprocessor_config.json")
        self.side = _input_side(preparation, folder)
        self._mean, self._std = (_three(preparation, key, folder) for key in ("image_mean", "image_std"))
        weights = weights_of(kind, folder)
        options: dict[str, Any] = {}
        if kind == "clip":
            maker = transformers.CLIPVisionModelWithProjection
        elif model_type == "vit":
            # Only the class token is used; published files lack the pooling layer.
            maker, options = transformers.ViTModel, {"add_pooling_layer": False}
        else:
            maker = transformers.AutoModel
        self._model = load_whole(transformers, maker, folder, f"{kind} model", **options)
        config = self._model.config
        self.dim = int(config.projection_dim if kind == "clip" else config.hidden_size)
        self._check_side(model_type, config, folder)
        self._about = {
            "model_type": model_type,
            "n_parameters": sum(p.numel() for p in self._model.parameters()),
            "sha256": {file.name: file_sha256(file) for file in weights},
        }

    def _check_side(self, model_type: str, config: Any, folder: Path) -> None:
        trained, patch = config.image_size, config.patch_size
        if model_type in _FIXED_SIZE and trained != self.side:
            raise CheckpointError(
                f"{folder}: preprocessor_config.json asks for {self.side} pixels, "
                f"but the model takes {trained}."
            )
        if self.side % patch:
            raise CheckpointError(
                f"{folder}: {self.side} pixels are not a multiple of the patch size {patch} of the model."
            )

    def prepare(self, images: Tensor) -> Tensor:
        """Return the model's input for images (N, 1 or 3, H, W) in [0, 255]: float32 (N, 3, side, side)."""
        x = images.to(torch.float32) / 255.0
        if tuple(x.shape[2:]) != (self.side, self.side):
            x = functional.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True)
            x = x.clamp_(0.0, 1.0)  # bicubic weights overshoot at edges
        mean, std = (x.new_tensor(v)[:, None, None] for v in (self._mean, self._std))
        return (as_colour(x) - mean) / std

    def to(self, device: torch.device | str) -> TransformerFeatures:
        """Compute on this device from now on."""
        self._model.to(device)
        return self

    @torch.no_grad()
    def vectors(self, images: Tensor) -> Tensor:
        """Return one vector per image (N, 1 or 3, H, W) in [0, 255], all in one pass, on their device."""
        return self.embed(images)

    def embed(self, images: Tensor) -> Tensor:
        """Return the same with gradient."""
        found = self._model(pixel_values=self.prepare(images))
        if self.name == "clip":
            return functional.normalize(found.image_embeds, dim=1)
        token: Tensor = found.last_hidden_state[:, 0]
        return token

    def record(self) -> dict[str, Any]:
        """Return name, model and digests of its weights, resizing and normalising."""
        return {
            "name": self.name,
            "model": Path(self.path).name if Path(self.path).is_dir() else self.path,
            "dim": self.dim,
            "resize": f"antialiased bicubic, to {self.side} x {self.side}",
            "mean": list(self._mean),
            "std": list(self._std),
            "scaled_to_length_1": self.name == "clip",
            **self._about,
        }


class DinoBackbone(nn.Module):
    """The class token of DINO's image transformer, trainable.

    Args:
        path: a local folder, or a hub name such as facebook/dino-vitb16 (downloads it).

    Raises:
        MissingDependencyError, ConfigError, CheckpointError: see `TransformerFeatures`.

    Source: Caron et al. 2021, arXiv:2104.14294; as a few-shot backbone: Hu et al. 2022, arXiv:2204.07305.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self._loaded = TransformerFeatures("dino", path)
        self.model: nn.Module = self._loaded._model
        self.dim = self._loaded.dim

    def features(self, x: Tensor) -> Tensor:
        """Return class tokens (B, dim) of images (B, 1 or 3, H, W) in [-1, 1], of any size."""
        found = self.model(pixel_values=self._loaded.prepare((x + 1.0) * 127.5))
        token: Tensor = found.last_hidden_state[:, 0]
        return token

    def about(self) -> dict[str, object]:
        """Return the name and what the loaded model was; JSON-ready."""
        return {"name": "dino", **{k: v for k, v in self._loaded.record().items() if k != "name"}}


def weights_of(kind: str, path: str | Path) -> list[Path]:
    """Return the weight files of a model, sorted.

    Raises:
        ConfigError: no such folder or hub name.
        CheckpointError: a folder without any.
    """
    folder = _folder(kind, path)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise CheckpointError(
            f"{folder} holds no safetensors weights, and no other kind is read. Convert the model, or "
            f"take one that has them, such as {_EXAMPLES[kind]}."
        )
    return weights


def _folder(kind: str, path: str | Path) -> Path:
    return model_folder(path, kind, _EXAMPLES[kind], ConfigError, "*.json", "model*.safetensors")


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).is_file():
        raise CheckpointError(f"{folder} lacks {name}. Give the whole folder of the model.")
    return read_record(folder / name, dict[str, Any], CheckpointError)


def _model_type(kind: str, folder: Path) -> str:
    found = _read_json(folder, "config.json").get("model_type")
    if found not in _MODEL_TYPES[kind]:
        other = next((k for k, types in _MODEL_TYPES.items() if found in types), None)
        advice = f'Use "{other}:" instead.' if other else f"Take one such as {_EXAMPLES[kind]}."
        raise CheckpointError(
            f'{folder} holds a model of type "{found}", but the features {kind} take '
            f"{', '.join(_MODEL_TYPES[kind])}. {advice}"
        )
    return str(found)


def _input_side(preparation: dict[str, Any], folder: Path) -> int:
    """Return the side of the model's square input: that of the crop if there is one, else of the resizing."""
    keys = ("crop_size", "size") if preparation.get("do_center_crop", True) else ("size",)
    for key in keys:
        value = preparation.get(key)
        if isinstance(value, dict):
            value = value.get("height", value.get("shortest_edge"))
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    raise CheckpointError(f"{folder / 'preprocessor_config.json'} gives no size in pixels.")


def _three(preparation: dict[str, Any], key: str, folder: Path) -> tuple[float, float, float]:
    value = preparation.get(key)
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not all(isinstance(v, (int, float)) for v in value)
        or (key == "image_std" and min(value) <= 0)
    ):
        raise CheckpointError(
            f'{folder / "preprocessor_config.json"}: "{key}" must be three numbers, found {value!r}.'
        )
    return float(value[0]), float(value[1]), float(value[2])
