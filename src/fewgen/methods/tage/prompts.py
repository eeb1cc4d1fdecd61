"""Prompts of TAGE: what they are to the transformer, which one an image is learned with, whether they act.

Shapes: N images, n listed prompts, F numbers of a joint encoder's feature.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewgen.encoders.base import UnknownWordError
from fewgen.encoders.joint import SmallJointEncoder, words_of
from fewgen.encoders.named import make_joint_encoder
from fewgen.errors import ConfigError
from fewgen.evaluation.drawings import ATTRIBUTES, captions_of, every_caption, measured, promised
from fewgen.generation.request import GenerationRequest
from fewgen.losses.attributes import alignment_error, direction_error
from fewgen.losses.stable import directions
from fewgen.methods.tage.config import PromptsConfig, spelled

if TYPE_CHECKING:
    from fewgen.methods.base import Method
    from fewgen.training.phases import Context, Pixels

GROUP = 256
"""Images that are encoded together."""

END = 0.3
"""Temperature of the Gumbel-softmax at the end, as a share of that at the start."""


class Prompts(nn.Module):
    """The prompts of a run, and how like them another prompt is.

    A prompt is what its text adds to a neutral one, T(p) - T(p_0) scaled to length 1, and the transformer is
    told its cosines with those of the listed prompts: a linear map of the text feature, onto what the
    transformer has learned of. The neutral prompt is zeros, which is no prompt. The table of cosines belongs
    to the model, so listed prompts need no encoder afterwards. "small" belongs to it as a whole.

    Args:
        config: which prompts, which encoder.
        shape: (C, H, W) of an image.

    Raises:
        ConfigError: "small" cannot learn the word of a prompt.

    Source: TAGE, arXiv:2410.17855, says that CLIP's features of prompts enter the transformer, and images
        are aligned with prompts.
    Differs: all of it is our design, since the paper's prompts, losses and layers are not public.
    """

    table: Tensor

    def __init__(self, config: PromptsConfig, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.config, self.listed = config, config.listed
        self.register_buffer("table", torch.zeros(len(self.listed), len(self.listed)))
        self.encoder: SmallJointEncoder | None = None
        if config.encoder == "small":
            words = sorted({word for text in every_caption() for word in words_of(text)})
            self.encoder = SmallJointEncoder(shape, words).requires_grad_(False)
            unknown = [w for t in (config.without, *self.listed) for w in words_of(t) if w not in words]
            if unknown:
                raise ConfigError(
                    f'prompts.texts: the encoder "small" learns from captions with the words '
                    f'{", ".join(words)}, and not "{unknown[0]}". Use these, or another prompts.encoder.'
                )
        self._other: Any = None
        self._texts = torch.zeros(0)
        self._chosen: dict[str, Tensor] = {}
        self._asked: dict[str, Tensor] = {}

    @property
    def joint(self) -> Any:
        """The joint encoder; one that is no part of the model is read when it is needed first."""
        if self.encoder is not None:
            return self.encoder
        if self._other is None:
            self._other = make_joint_encoder(self.config.encoder, device=self.table.device)
        return self._other

    # ------------------------------------------------------------------------------------ training

    def prepare(self, context: Context) -> None:
        """Train or read the encoder, and choose a prompt for each image; once for a stage.

        An image is learned with the prompt that it is most like, compared with the other images of its
        class: an attribute that all of them share is no attribute. Each prompt's likeness counts in its own
        standard deviations, so that none is everybody's. An image that is like none of them has none.
        """
        train, config = context.train, self.config
        if self.encoder is not None:
            context.note("training the encoder of prompts")
            source = dataclasses.replace(train.source, captions=captions_of(train.source.images))
            words = tuple(self.encoder.vocabulary)[2:]

            def made(steps: int) -> SmallJointEncoder:
                return SmallJointEncoder.fit(source, steps, context.seed, context.device, words=words)

            with torch.enable_grad():  # hooks of stages have none
                found = context.shortened(config.encoder_steps, made)
            self.encoder.load_state_dict(found.state_dict())
        elif not hasattr(self.joint, "encode_images"):
            raise ConfigError(
                f'The encoder "{config.encoder}" of prompts says nothing of how images should change. Use '
                "small, lite or clip:FOLDER."
            )
        self._texts = self.joint.encode_texts([config.without, *self.listed]).to(self.table)
        wanted = self._directions()
        self.table.copy_(wanted @ wanted.T)
        self._asked = {}
        like, labels = self._features(train) @ wanted.T, train.labels
        counts = torch.bincount(labels, minlength=train.source.n_classes).clamp_min(1)
        means = torch.zeros(len(counts), len(wanted)).to(like).index_add_(0, labels, like) / counts[:, None]
        spread = (like - means[labels]).square().mean(0).sqrt().clamp_min(1e-6)
        self._chosen = {"train": _most((like - means[labels]) / spread)}
        if context.held_out is not None:
            other = self._features(context.held_out) @ wanted.T
            self._chosen["held_out"] = _most((other - means[context.held_out.labels]) / spread)

    def _directions(self) -> Tensor:
        return directions(self._texts[1:] - self._texts[0])

    def _features(self, pixels: Pixels) -> Tensor:
        parts = [self.joint.image_features(part.images) for part in pixels.batches(GROUP)]
        return torch.cat(parts).to(self.table)

    def rows(self, chosen: Tensor) -> Tensor:
        """Return what the transformer is told of listed prompts (N,), (N, n); of -1 zeros."""
        return torch.cat([self.table, torch.zeros_like(self.table[:1])])[chosen]

    def of_images(self, part: str, indices: Tensor, rng: torch.Generator) -> Tensor:
        """Return what is told of the prompts of images, (N, n); a share of them, `drop`, has none."""
        chosen = self._chosen[part][indices]
        dropped = torch.rand(len(chosen), generator=rng, device=rng.device) < self.config.drop
        return self.rows(torch.where(dropped.to(chosen.device), -1, chosen))

    def temperature(self, progress: float) -> float:
        """Return that of the Gumbel-softmax at a point of the stage, from 0 to 1."""
        return self.config.temperature * (1.0 + (END - 1.0) * progress)

    def error(self, found: Tensor, source: Tensor, chosen: Tensor) -> Tensor:
        """Return the prompt loss of images made from others with listed prompts.

        Args:
            found: images (N, C, H, W) in [-1, 1]; gradients reach them.
            source: the images that they were made from.
            chosen: int64 (N,), the prompts.
        """
        with torch.no_grad():
            before = self.joint.encode_images(source).to(found)
        after = self.joint.encode_images(found).to(found)
        text = self._texts[1:][chosen]
        if self.config.form == "directional":
            return direction_error(after, before, text, self._texts[:1].expand_as(text))
        return alignment_error(after, before, text, self.config.text_weight)

    # ------------------------------------------------------------------------------------ using it

    @torch.no_grad()
    def told(self, prompt: str) -> Tensor:
        """Return what the transformer is told of a prompt, (n,).

        Raises:
            ConfigError: it is empty or no text; or the encoder is another than that of the training.
            UnknownWordError: no caption had a word of it.
        """
        if not isinstance(prompt, str) or not spelled(prompt):
            raise ConfigError(f"prompt must be words, got {prompt!r}.")
        text = spelled(prompt)
        known = {spelled(listed): i for i, listed in enumerate(self.listed)}
        if text in known:
            return self.table[known[text]]
        if text not in self._asked:
            self._asked[text] = self._encoded(text)
        return self._asked[text]

    def _encoded(self, prompt: str) -> Tensor:
        learned = ", ".join(f'"{text}"' for text in self.listed)
        try:
            found = self.joint.encode_texts([self.config.without, *self.listed, prompt]).to(self.table)
        except UnknownWordError as error:
            raise UnknownWordError(f"{error} Prompts that were learned: {learned}.", error.texts) from None
        if self.encoder is not None and prompt not in every_caption():
            warnings.warn(
                f'No caption that was learned from reads "{prompt}", so what comes of it may be chance. '
                f"Prompts that were learned: {learned}.",
                stacklevel=2,
            )
        toward = directions(found[1:] - found[0])
        if not torch.allclose(toward[:-1] @ toward[:-1].T, self.table, atol=1e-2):
            raise ConfigError(
                f'The encoder "{self.config.encoder}" is not the one that this run was trained with, so '
                f'"{prompt}" would mean something else. Get the same weights, or use a prompt that was '
                f"learned: {learned}."
            )
        return toward[-1] @ toward[:-1].T


def _most(scores: Tensor) -> Tensor:
    """Return the largest of each row (N, n), int64 (N,); -1 where none is above 0."""
    best, chosen = scores.max(1)
    return torch.where(best > 1e-6, chosen, -1)


@dataclasses.dataclass(frozen=True)
class PromptAccuracy:
    """Whether drawings became what a prompt says, beside those of the same seeds without it.

    Attributes:
        attribute: what was measured.
        moved: share of images that moved to where the prompt says; no change counts half.
        shift: mean change to there, in standard deviations of the images without prompt within their class.
    """

    attribute: str
    moved: float
    shift: float


def prompt_accuracy(
    method: Method,
    labels: Sequence[int],
    n: int,
    prompts: Sequence[str] | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    **options: Any,
) -> dict[str, PromptAccuracy]:
    """Draw images with and without each prompt, and measure whether they moved to what it says.

    Args:
        method: a TAGE that learned prompts for drawings.
        labels: classes to draw.
        n: images of each.
        prompts: None: those of the run that promise thickness, size or slant.
        seed: of the images.
        temperature: of the draws.
        options: further ones of `sample_coded`.

    Returns:
        For each prompt how the attribute that it promises changed.

    Raises:
        ConfigError: the method learned no prompts, or none of them promises what can be measured.
    """
    own = getattr(method, "prompts", None)
    if prompts is None:
        prompts = [] if own is None else [text for text in own.listed if promised(text)]
    about = {prompt: promised(prompt) for prompt in prompts}
    if not about or None in about.values():
        raise ConfigError(
            f"Prompt accuracy is measured for prompts of {', '.join(ATTRIBUTES)} of drawings, got "
            f"{list(prompts) or 'none'}."
        )

    def drawn(own: dict[str, Any]) -> dict[str, Tensor]:
        request = GenerationRequest.per_class(labels, n, seed, temperature=temperature, options=own)
        return measured(method.generate(request).images)

    plain, found = drawn({k: value for k, value in options.items() if k != "guidance"}), {}
    for prompt, promise in about.items():
        assert promise is not None
        name, sign = promise
        change = sign * (drawn({**options, "prompt": prompt})[name] - plain[name])
        of_class = plain[name].reshape(len(labels), n)
        spread = (of_class - of_class.mean(1, keepdim=True)).square().mean().sqrt()
        moved = (change > 0).double() + 0.5 * (change == 0).double()
        found[prompt] = PromptAccuracy(
            name, float(moved.mean()), float(change.mean() / spread.clamp_min(1e-6))
        )
    return found
