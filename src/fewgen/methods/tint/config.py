"""Settings of TINT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from fewgen.config.checks import Count, check_fields, share
from fewgen.config.effects import ON, Acts, acts
from fewgen.diffusion.settings import SpecialiseConfig
from fewgen.errors import ConfigError


@dataclass(frozen=True)
class BaseModel:
    """What a trained model keeps of its base, so that it can be built without it.

    Attributes:
        kind: "small", whose weights lie in the model file, or "stable", which stays where it is.
        folder: where it was: a path, or a name on the hub.
        model_id: hash of its weights and configuration.
        image_shape: (C, H, W).
        latent_shape: (C, h, w).
        context_shape: (L, D).
        word_size: numbers of an input embedding.
        settings: of a small one.
    """

    kind: Literal["small", "stable"]
    folder: str
    model_id: str
    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    context_shape: tuple[int, int]
    word_size: int
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, "fitted")
        for shape in (self.image_shape, self.latent_shape, self.context_shape, (self.word_size,)):
            if min(shape) < 1:
                raise ConfigError(f"A base model has shapes of 1 and more, got {shape}.")


@dataclass(frozen=True)
class TintConfig(SpecialiseConfig):
    """Settings of TINT: those of specialising a model, and these.

    Attributes:
        base: the model to specialise: a run of the method diffusion, a Stable Diffusion folder, or the name
            of one on the hub (owner/model).
        invert: find the latents of the images; without, words alone are learned, and alpha must be 1.
        correct: find null texts, without which guidance drifts away from the images.
        alpha: of generation: 0 gives the images back, 1 only shares their class; "uniform" draws it.
        precision: of Stable Diffusion: "float16", "float32", or "auto": half on a GPU.
        attention_slicing: of Stable Diffusion: less memory, more time.
        fitted: written by training; leave it out.
        supports: written by training, images of each class; leave it out.
    """

    section: ClassVar[str] = ""
    effects: ClassVar[tuple[Acts, ...]] = (
        acts("correct dequant_t norm_mode", {"invert": ON}),
        acts("null_text", {"invert": ON, "correct": ON}),
        # A word is searched for in the precision of the model, and kept as it is at the last step.
        acts("--training.ema_decay --training.validate_every --training.precision --checkpoint"),
    )

    batch: Count = 64
    base: str | None = None
    invert: bool = True
    correct: bool = True
    alpha: float | str = 1.0
    precision: Literal["auto", "float16", "float32"] = "auto"
    attention_slicing: bool = False
    fitted: BaseModel | None = None
    supports: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alpha(self.alpha)
        if not self.invert and self.alpha != 1:
            raise ConfigError(
                f"alpha {self.alpha} needs inverted latents. Set invert to true, or alpha to 1."
            )
        if self.supports and (self.fitted is None or min(self.supports) < 1):
            raise ConfigError("supports is written by training. Leave it out.")


def check_alpha(alpha: float | str) -> None:
    """Raise `ConfigError` unless alpha is a number in [0, 1] or "uniform"."""
    if isinstance(alpha, str):
        if alpha != "uniform":
            raise ConfigError(f'alpha must be a number in [0, 1] or "uniform", got "{alpha}".')
    elif isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise ConfigError(f'alpha must be a number in [0, 1] or "uniform", got {alpha!r}.')
    else:
        share("alpha", alpha)
