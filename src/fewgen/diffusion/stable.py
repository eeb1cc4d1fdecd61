"""Stable Diffusion from a local folder, as diffusers writes it, behind the pipeline object."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.config.records import read_record
from fewgen.diffusion.pipeline import TextToImage, check_shape, content_hash
from fewgen.diffusion.schedule import NoiseSchedule
from fewgen.encoders.pretrained import optional_library, quiet
from fewgen.errors import CheckpointError, FewgenError, ProblemList
from fewgen.files import file_sha256
from fewgen.tensor_files import read_tensor_header

_WEIGHTS = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_CONFIGS = {
    "text_encoder": "config.json",
    "unet": "config.json",
    "vae": "config.json",
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
}
# Of a repository on the hub; it also holds pickles, halves, and parts that are not needed.
_FETCHED = (
    "model_index.json",
    *(f"{part}/{config}" for part, config in _CONFIGS.items()),
    *(f"{part}/{stem}*.safetensors" for part, stem in _WEIGHTS.items()),
    "*.safetensors.index.json",
    "tokenizer/*",
)
_LEFT_OUT = ("*.fp16.*", "*.fp16-*", "*.non_ema.*", "safety_checker/*")
# What a library notes about itself when it saves; the same model saved again is the same model.
_NOTES = ("transformers_version", "torch_dtype", "dtype", "name_or_path")


class StableDiffusion(TextToImage):
    """Stable Diffusion 1 or 2, frozen; made by `load_stable_diffusion`.

    The text tower stays float32 whatever the precision of the rest: it is small, and textual inversion
    takes gradients through it.

    Args:
        text_encoder: transformers' `CLIPTextModel`.
        tokenizer: its tokenizer.
        unet: diffusers' `UNet2DConditionModel`.
        vae: diffusers' `AutoencoderKL`.
        schedule: noise at every time.
        prediction: "epsilon" or "v_prediction".
        model_id: hash of the folder's content.

    Source: Rombach et al. 2022, arXiv:2112.10752.
    Differs: images are encoded to the mean of the posterior, without a draw.
    """

    def __init__(
        self,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        vae: Any,
        schedule: NoiseSchedule,
        prediction: str,
        model_id: str,
    ) -> None:
        super().__init__()
        self.text_encoder, self.unet, self.vae = text_encoder, unet, vae
        self.schedule, self.prediction = schedule, prediction
        self._tokenizer, self._model_id = tokenizer, model_id
        size = unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        up = 2 ** (len(vae.config.block_out_channels) - 1)
        self.latent_shape = (vae.config.latent_channels, height, width)
        self.image_shape = (vae.config.in_channels, height * up, width * up)
        text = text_encoder.config
        self.context_shape = (
            min(int(tokenizer.model_max_length), int(text.max_position_embeddings)),
            int(text.hidden_size),
        )
        self.requires_grad_(False).eval()

    def place(self, device: torch.device | str, dtype: torch.dtype) -> None:
        """Move the model; denoiser and autoencoder change their precision, the text tower stays float32."""
        self.text_encoder.to(device, torch.float32)
        for part in (self.unet, self.vae):
            # Not diffusers' own `to`, which warns at every call, whatever the model.
            nn.Module.to(part, device, dtype)

    @property
    def model_id(self) -> str:
        """Hash of weights, configuration and vocabulary; the precision does not enter."""
        return self._model_id

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Latents float32 (B, *latent_shape) of images (B, 3, H, W) in [-1, 1]: scaled posterior means."""
        check_shape("Images", x, self.image_shape)
        mean: Tensor = self.vae.encode(x.to(self.vae.dtype)).latent_dist.mode()
        return mean.float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, z0: Tensor) -> Tensor:
        """Images float32 (B, 3, H, W), cut off at [-1, 1], of latents (B, *latent_shape)."""
        check_shape("Latents", z0, self.latent_shape)
        x: Tensor = self.vae.decode((z0 / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        return x.float().clamp(-1, 1)

    def eps(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Noise (B, *latent_shape), in the precision of `z`, at the times `t` int64 (B,)."""
        check_shape("Latents", z, self.latent_shape)
        check_shape("Contexts", context, self.context_shape)
        half = self.unet.dtype
        found: Tensor = self.unet(z.to(half), t, encoder_hidden_states=context.to(half)).sample
        found = found.to(z.dtype)
        return self.schedule.noise_of_velocity(z, found, t) if self.prediction == "v_prediction" else found

    def _word_ids(self, text: str) -> list[int]:
        return [int(i) for i in self._tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _framed(self, ids: list[int]) -> list[int]:
        tokenizer = self._tokenizer
        row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        return row + [tokenizer.pad_token_id] * (self.context_shape[0] - len(row))

    def _table(self) -> Tensor:
        return self.text_encoder.get_input_embeddings().weight

    def _context(self, ids: Tensor, rows: Tensor) -> Tensor:
        """Context through CLIP's own code, with the placeholders' rows slipped into its word embeddings.

        The table (49408 rows) is neither copied nor given a gradient.
        """
        n_words = len(self._table())
        places = ids >= n_words
        # CLIP refuses rows that its table lacks; what it looks up in their place is replaced.
        known = ids.masked_fill(places, 0)

        def replace(_module: Any, _inputs: Any, found: Tensor) -> Tensor:
            if not len(rows):
                return found
            given = functional.embedding((ids - n_words).clamp_min(0), rows)
            return torch.where(places[:, :, None], given.to(found.dtype), found)

        handle = self.text_encoder.get_input_embeddings().register_forward_hook(replace)
        try:
            context: Tensor = self.text_encoder(input_ids=known).last_hidden_state
        finally:
            handle.remove()
        return context


def is_hub_name(name: str) -> bool:
    """Tell whether a text can be a name on the hub (owner/model), and not only a path.

    >>> is_hub_name("someone/stable-diffusion"), is_hub_name("/models/sd"), is_hub_name("sd")
    (True, False, False)
    """
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def fetch_stable_diffusion(name: str, *, download: bool = True) -> Path:
    """Return the folder of a Stable Diffusion of the hub, which is downloaded unless it is in the cache.

    Safetensors, configurations and vocabulary alone are fetched; no pickles, no code.

    Args:
        name: owner/model.
        download: False looks into the cache alone.

    Raises:
        CheckpointError: it is not there, or cannot be fetched.
        MissingDependencyError: diffusers is not installed.
    """
    hub = optional_library("huggingface_hub", "A model from the hub", "diffusion")
    try:
        found = hub.snapshot_download(
            name,
            allow_patterns=list(_FETCHED),
            ignore_patterns=list(_LEFT_OUT),
            local_files_only=not download,
        )
    except Exception as error:  # every transport of the hub has its own exceptions
        raise CheckpointError(
            f'There is no folder "{name}", and the model could not be '
            f"{'fetched from the hub' if download else 'found in the cache of the hub'} under that name "
            f"({type(error).__name__}). Check the name and the connection, or give a local folder."
        ) from error
    return Path(found)


def load_stable_diffusion(
    folder: str | os.PathLike[str], *, attention_slicing: bool = False
) -> StableDiffusion:
    """Load Stable Diffusion from a folder written by `diffusers`, in float32 on the processor.

    Reads `text_encoder`, `tokenizer`, `unet`, `vae` and `scheduler`; other parts (safety checker, feature
    extractor) are left alone. Only safetensors are read, nothing is fetched, and no code of the folder runs.

    Args:
        folder: the model's folder.
        attention_slicing: computes attention in slices: slower, with less memory.

    Raises:
        CheckpointError: all missing and damaged parts at once; or parts that do not fit together.
        MissingDependencyError: diffusers or transformers is not installed.
    """
    diffusers = optional_library("diffusers", "Stable Diffusion", "diffusion")
    transformers = optional_library("transformers", "Stable Diffusion", "diffusion")
    place = Path(folder).expanduser()
    configs = _check_files(place)
    schedule, prediction = _read_scheduler(place / "scheduler" / _CONFIGS["scheduler"], configs["scheduler"])
    _check_fit(place, configs)
    with quiet(transformers), quiet(diffusers):
        with _readable(place / "tokenizer"):
            kind = getattr(transformers, "CLIPTokenizerFast", transformers.CLIPTokenizer)
            tokenizer = kind.from_pretrained(str(place / "tokenizer"), local_files_only=True)
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                if not isinstance(getattr(tokenizer, name), int):
                    raise ValueError(f"it has no {name}")
        text_encoder = _load(transformers.CLIPTextModel, place / "text_encoder")
        unet = _load(diffusers.UNet2DConditionModel, place / "unet")
        vae = _load(diffusers.AutoencoderKL, place / "vae")
    if attention_slicing:
        unet.set_attention_slice("auto")
    model_id = _folder_id(place, configs)
    model = StableDiffusion(text_encoder, tokenizer, unet, vae, schedule, prediction, model_id)
    model.place("cpu", torch.float32)
    return model


def _check_files(place: Path) -> dict[str, dict[str, Any]]:
    """Return the configurations, after checking that every part is there and its weights are whole."""
    if not place.is_dir():
        raise CheckpointError(f'There is no folder "{place}" with Stable Diffusion in it.')
    problems = ProblemList(f'"{place}" is not a complete Stable Diffusion', CheckpointError)
    configs: dict[str, dict[str, Any]] = {}
    for part, config in _CONFIGS.items():
        if not (place / part).is_dir():
            problems.add(f"the folder {part} is missing")
            continue
        try:
            configs[part] = read_record(place / part / config, dict[str, Any], CheckpointError)
        except FewgenError as error:
            problems.add(f"{part}: {error}")
        if part in _WEIGHTS:
            for problem in _check_weights(place / part, _WEIGHTS[part]):
                problems.add(f"{part}: {problem}")
    if (place / "tokenizer").is_dir() and not _vocabulary(place):
        problems.add(
            "tokenizer: tokenizer.json is missing, and so are vocab.json and merges.txt in its place"
        )
    problems.raise_if_any()
    return configs


def _check_weights(part: Path, stem: str) -> Iterator[str]:
    files = _weight_files(part, stem)
    for file in files:
        try:
            read_tensor_header(file)
        except CheckpointError as error:
            yield str(error)
    if not files:
        halves = sorted(file.name for file in part.glob(f"{stem}.*.safetensors"))
        pickles = sorted(file.name for pattern in ("*.bin", "*.ckpt", "*.pt") for file in part.glob(pattern))
        hint = ""
        if halves:
            hint = f"; {halves[0]} is there: give it this name"
        elif pickles:
            hint = f"; {pickles[0]} is a pickle, which can run code: convert it to safetensors"
        yield f"{stem}.safetensors is missing{hint}"


def _weight_files(part: Path, stem: str) -> list[Path]:
    """One file, or the parts of a large one."""
    whole = part / f"{stem}.safetensors"
    return [whole] if whole.is_file() else sorted(part.glob(f"{stem}-*-of-*.safetensors"))


def _vocabulary(place: Path) -> list[Path]:
    """The files of the tokenizer's vocabulary; none if they are not complete."""
    found = ([place / "tokenizer" / name for name in names] for names in _TOKENIZER_FILES)
    return next((files for files in found if all(file.is_file() for file in files)), [])


def _read_scheduler(file: Path, config: dict[str, Any]) -> tuple[NoiseSchedule, str]:
    """Noise schedule and kind of prediction; how diffusers would step plays no part.

    Differs: float64, where diffusers multiplies up float32.
    """
    prediction = str(config.get("prediction_type", "epsilon"))
    if prediction not in ("epsilon", "v_prediction"):
        raise CheckpointError(f'"{file}": the prediction_type "{prediction}" is not epsilon or v_prediction.')
    if config.get("rescale_betas_zero_snr"):
        raise CheckpointError(
            f'"{file}": rescale_betas_zero_snr ends in pure noise, which cannot be inverted.'
        )
    kind = config.get("beta_schedule", "linear")
    try:
        n = int(config.get("num_train_timesteps", 1000))
        ends = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
        if config.get("trained_betas") is not None:
            return NoiseSchedule.from_betas(
                torch.tensor(config["trained_betas"], dtype=torch.float64)
            ), prediction
        if kind == "scaled_linear":
            return NoiseSchedule.scaled_linear(n, *ends), prediction
        if kind == "linear":
            return NoiseSchedule.linear(n, *ends), prediction
        if kind == "squaredcos_cap_v2":
            return NoiseSchedule.cosine(n), prediction
    except (FewgenError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f'"{file}" gives no noise schedule: {error}') from error
    raise CheckpointError(
        f'"{file}": the beta_schedule "{kind}" is not linear, scaled_linear or squaredcos_cap_v2.'
    )


def _check_fit(place: Path, configs: dict[str, dict[str, Any]]) -> None:
    """Raise `CheckpointError` unless the parts belong together."""
    problems = ProblemList(f'"{place}" is not Stable Diffusion 1 or 2', CheckpointError)
    unet, vae, text = configs["unet"], configs["vae"], configs["text_encoder"]
    if unet.get("addition_embed_type") is not None or unet.get("class_embed_type") is not None:
        problems.add("its unet needs more than an embedded prompt (SDXL or an upscaler)")
    latent, seen = vae.get("latent_channels", 4), unet.get("in_channels", 4)
    if latent != seen:
        problems.add(f"its unet takes {seen} channels, its vae has {latent} (an inpainting model has more)")
    width, wanted = text.get("hidden_size", 512), unet.get("cross_attention_dim", 1280)
    if width != wanted:
        problems.add(f"its unet looks at words of width {wanted}, its text_encoder gives {width}")
    size = unet.get("sample_size")
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    if not all(type(side) is int and side > 0 for side in sides):
        problems.add(f"its unet does not say its sample_size ({size})")
    scale = vae.get("scaling_factor", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
        problems.add(f"its vae has the scaling_factor {scale}")
    for name in ("shift_factor", "latents_mean", "latents_std"):
        if vae.get(name) not in (None, 0):
            problems.add(f"its vae has a {name}, which only later models have")
    problems.raise_if_any()


def _load(kind: Any, part: Path) -> Any:
    """A part from its folder, with every one of its weights taken from there."""
    with _readable(part):
        model, info = kind.from_pretrained(
            str(part), local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    # Both libraries would fill a missing weight with random numbers and only warn.
    missing = sorted(str(name) for name in info["missing_keys"])
    if missing:
        raise CheckpointError(
            f'"{part}" lacks {len(missing)} weights, the first is "{missing[0]}". Copy or download it again.'
        )
    for name, value in model.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f'"{part}": the weight "{name}" is not finite. Copy or download it again.')
    return model


@contextlib.contextmanager
def _readable(part: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # diffusers, transformers and safetensors each have their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f'"{part}" cannot be read: {reason}') from error


def _folder_id(place: Path, configs: dict[str, dict[str, Any]]) -> str:
    """Hash of the weights' files, the configurations without notes, and the vocabulary."""
    parts: list[tuple[str, bytes]] = []
    for part, config in configs.items():
        kept = {
            name: value for name, value in config.items() if not name.startswith("_") and name not in _NOTES
        }
        parts.append((f"{part}/config", json.dumps(kept, sort_keys=True).encode()))
    files = [file for part, stem in _WEIGHTS.items() for file in _weight_files(place / part, stem)]
    for file in files + _vocabulary(place):
        parts.append((file.relative_to(place).as_posix(), bytes.fromhex(file_sha256(file))))
    return content_hash(parts)
