"""Settings of specialisation, as dataclasses: what methods and commands let their users choose."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from fewgen.config.checks import Checked, Count, Rate, Weight, Whole
from fewgen.config.effects import ABOVE_0, Acts, acts
from fewgen.diffusion.blend import NormMode
from fewgen.errors import ConfigError

PROMPT = "a photo of an #object"
PLACEHOLDER = re.compile(r"(?<![\w#])#\w+")

PUBLISHED_DECAY = 100
"""With the published schedule, lr falls by 1/100 of its start at each step."""


@dataclass(frozen=True)
class TextualConfig(Checked):
    """The search for a word for each class.

    Attributes:
        steps: of the search.
        batch_size: images of each class in a step, drawn with replacement.
        lr: learning rate of Adam, constant.
        t_min: lowest time shown; low times carry what enlarging a small image left behind.
        weight_decay: decoupled; 0 is Adam.
        init_word: the word that the search starts from.
    """

    section: ClassVar[str] = "textual"

    steps: Count = 400
    batch_size: Count = 8
    lr: Rate = 1e-2
    t_min: Whole = 250
    weight_decay: Weight = 0.0
    init_word: str = "object"


@dataclass(frozen=True)
class NullTextConfig(Checked):
    """The search for the null texts of each image.

    Attributes:
        inner_steps: most updates at each sampling step; 0 leaves the embedding of the empty prompt.
        lr: learning rate of Adam, which starts anew at each sampling step. Published is 0.01, for Stable
            Diffusion; on small models, where guidance is strong for what they know, it ends too early.
        tol: mean squared distance to the inverted path at which an image stops.
        schedule: "constant"; "published": lr (1 - i/100) and tol + 2e-5 i at sampling step i.
    """

    section: ClassVar[str] = "null_text"
    effects: ClassVar[tuple[Acts, ...]] = (acts("lr tol schedule", {"inner_steps": ABOVE_0}),)

    inner_steps: Whole = 10
    lr: Rate = 0.03
    tol: Weight = 1e-5
    schedule: Literal["constant", "published"] = "constant"

    def check_steps(self, steps: int) -> None:
        """Raise `ConfigError` for more sampling steps than the schedule has."""
        if self.schedule == "published" and steps > PUBLISHED_DECAY:
            raise ConfigError(
                f"The published schedule ends at {PUBLISHED_DECAY} steps, got {steps}. Use schedule constant."
            )


@dataclass(frozen=True)
class SpecialiseConfig(Checked):
    """How a text-to-image model learns a class from its supports, and makes images of it.

    The published setting, for Stable Diffusion: steps 50, textual.steps 5000, textual.batch_size 1,
    textual.lr 0.001.

    Attributes:
        prompt: with one placeholder, a word that starts with "#" and stands for the class.
        guidance_scale: of the guidance, for the inversion and for sampling alike.
        steps: of sampling, likewise.
        textual: the word of each class.
        null_text: the null texts of each support.
        dequant_t: time to which supports are noised before they are inverted, which gives flat images
            latents with the norm of noise; 0 as published.
        norm_mode: norm of a blend: interp (published), gaussian or none.
        batch: most images computed at a time, which bounds the memory.
    """

    section: ClassVar[str] = "tint"

    prompt: str = PROMPT
    guidance_scale: Weight = 7.5
    steps: Count = 25
    textual: TextualConfig = field(default_factory=TextualConfig)
    null_text: NullTextConfig = field(default_factory=NullTextConfig)
    dequant_t: Whole = 0
    norm_mode: NormMode = "interp"
    batch: Count = 16

    def __post_init__(self) -> None:
        placeholder(self.prompt)
        super().__post_init__()
        self.null_text.check_steps(self.steps)

    def searched(self, corrected: bool) -> dict[str, Any]:
        """Return how a class was looked for, as a specialisation keeps it; JSON-ready."""
        return {
            "textual_inversion": asdict(self.textual),
            "null_text_inversion": asdict(self.null_text) if corrected else None,
            "dequant_t": self.dequant_t,
        }


def placeholder(prompt: str) -> str:
    """Return the one word of a prompt that starts with "#" and stands for the class.

    Raises:
        ConfigError: if there is none, or more than one.

    >>> placeholder("a photo of an #object")
    '#object'
    """
    words = PLACEHOLDER.findall(prompt)
    if len(words) != 1:
        raise ConfigError(
            f'The prompt "{prompt}" needs exactly one placeholder word that starts with "#", and has '
            f'{len(words)}. Write for example "{PROMPT}".'
        )
    return str(words[0])
