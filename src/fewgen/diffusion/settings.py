"""Settings of specialisation, as dataclasses: what methods and commands let their users choose."""

from __future__ import annotations

from dataclasses import dataclass

from fewgen.config.checks import at_least, choose
from fewgen.diffusion.inversion import NULL_TEXT_SCHEDULES


@dataclass(frozen=True)
class TextualConfig:
    """The search for a word for each class.

    Attributes:
        steps: of the search.
        batch_size: images of each class in a step.
        lr: learning rate of Adam, constant.
        t_min: lowest time shown; low times carry what enlarging a small image left behind.
        weight_decay: decoupled; 0 is Adam.
        init_word: the word that the search starts from.
    """

    steps: int = 400
    batch_size: int = 8
    lr: float = 1e-2
    t_min: int = 250
    weight_decay: float = 0.0
    init_word: str = "object"

    def __post_init__(self) -> None:
        at_least("textual.steps", self.steps, 1)
        at_least("textual.batch_size", self.batch_size, 1)
        at_least("textual.lr", self.lr, 1e-8)
        at_least("textual.t_min", self.t_min, 0)
        at_least("textual.weight_decay", self.weight_decay, 0)


@dataclass(frozen=True)
class NullTextConfig:
    """The search for the null texts of each image.

    Attributes:
        inner_steps: most updates at each sampling step.
        lr: learning rate of Adam. Published is 0.01, for Stable Diffusion; on small models, where guidance
            is strong for what they know, it ends too early.
        tol: mean squared distance to the inverted path at which an image stops.
        schedule: "constant"; "published" lets lr fall and the tolerance rise over the sampling steps.
    """

    inner_steps: int = 10
    lr: float = 0.03
    tol: float = 1e-5
    schedule: str = "constant"

    def __post_init__(self) -> None:
        at_least("null_text.inner_steps", self.inner_steps, 0)
        at_least("null_text.lr", self.lr, 1e-8)
        at_least("null_text.tol", self.tol, 0)
        choose("null_text.schedule", self.schedule, NULL_TEXT_SCHEDULES)
