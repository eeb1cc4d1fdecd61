"""The one object behind which every text-to-image diffusion model looks the same."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fewgen.diffusion.schedule import NoiseSchedule
from fewgen.errors import ConfigError, DataError, ShapeError, TextError

_SHOWN = 8


class TextToImage(nn.Module):
    """A diffusion model with a text tower, and for latent diffusion an autoencoder.

    A model says how words become numbers (`_word_ids`, `_framed`, `_table`, `_context`), how images become
    latents (`encode`, `decode`) and what noise it sees (`eps`); the rest is here and equal for all.

    Latents keep their own precision: a network in half precision computes a step's noise, and the sum over
    the steps stays float32.

    Attributes:
        latent_shape: (C, h, w) of a latent.
        image_shape: (C, H, W) of an image.
        context_shape: (L, D), length and width of an embedded prompt.
        schedule: the noise at every time.
    """

    latent_shape: tuple[int, int, int]
    image_shape: tuple[int, int, int]
    context_shape: tuple[int, int]
    schedule: NoiseSchedule

    @property
    def model_id(self) -> str:
        """Hash of weights and configuration: what a specialisation belongs to."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Tensor:
        """Latents z_0 (B, *latent_shape) of images (B, *image_shape) in [-1, 1], without chance or gradient.

        Raises:
            ShapeError: the images have another shape.
        """
        raise NotImplementedError

    def decode(self, z0: Tensor) -> Tensor:
        """Images (B, *image_shape) in [-1, 1] of latents (B, *latent_shape), without gradient.

        Raises:
            ShapeError: the latents have another shape.
        """
        raise NotImplementedError

    def eps(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Noise (B, *latent_shape) that the model sees in latents `z` at the times `t` int64 (B,).

        Args:
            z: latents (B, *latent_shape).
            t: times.
            context: embedded prompts (B, L, D).
        """
        raise NotImplementedError

    def _word_ids(self, text: str) -> list[int]:
        """Rows of the word table for a text without placeholders, and without start and end."""
        raise NotImplementedError

    def _framed(self, ids: list[int]) -> list[int]:
        """A prompt's rows with start, end and padding, L of them; longer ones come out longer."""
        raise NotImplementedError

    def _table(self) -> Tensor:
        """Input embeddings of the words (n_words, D_in)."""
        raise NotImplementedError

    def _context(self, ids: Tensor, rows: Tensor) -> Tensor:
        """Context (B, L, D) of ids (B, L), where an id of n_words + i stands for `rows[i]`."""
        raise NotImplementedError

    def tokens(self, prompts: Sequence[str], overrides: Mapping[str, Tensor] | None = None) -> Tensor:
        """Row of the word table for each place of each prompt, int64 (B, L).

        Args:
            prompts: texts; "" is the null prompt.
            overrides: placeholder word -> embedding (D_in,) or (n, D_in), which takes n places. The rows
                of all placeholders, in order, count as rows after the last of the table.

        Raises:
            TextError: a prompt is too long, or a small model does not know a word.
            ConfigError: no prompt contains one of the placeholders.
            ShapeError: an embedding has another width.
        """
        if isinstance(prompts, str):
            prompts = [prompts]
        overrides = overrides or {}
        n_words, width = self._table().shape
        places: dict[str, list[int]] = {}
        taken = n_words
        for word, embedding in overrides.items():
            if embedding.ndim not in (1, 2) or embedding.shape[-1] != width or not embedding.numel():
                raise ShapeError(
                    f'The embedding of "{word}" has the shape {tuple(embedding.shape)}; this model needs '
                    f"({width},) or (n, {width})."
                )
            rows = 1 if embedding.ndim == 1 else len(embedding)
            places[word] = list(range(taken, taken + rows))
            taken += rows
        unused = set(overrides)
        ids: list[list[int]] = []
        for prompt in prompts:
            row: list[int] = []
            for piece, is_placeholder in split_prompt(prompt, overrides):
                row += places[piece] if is_placeholder else self._word_ids(piece)
                if is_placeholder:
                    unused.discard(piece)
            framed = self._framed(row)
            if len(framed) != self.context_shape[0]:
                raise TextError(
                    f'The prompt "{prompt}" takes {len(framed)} places; this model has '
                    f"{self.context_shape[0]}. Shorten it."
                )
            ids.append(framed)
        if unused:
            raise ConfigError(
                f'No prompt contains the placeholder "{min(unused)}": {_quoted(prompts)}. '
                "Write it as a word of its own."
            )
        device = self._table().device
        return torch.tensor(ids, dtype=torch.int64, device=device).reshape(-1, self.context_shape[0])

    def embed(self, prompts: Sequence[str], overrides: Mapping[str, Tensor] | None = None) -> Tensor:
        """Context (B, L, D) of prompts, differentiable in the overrides.

        Args:
            prompts: texts; "" is the null prompt.
            overrides: placeholder word -> input embedding (D_in,) or (n, D_in).

        Raises:
            TextError, ConfigError, ShapeError: see `tokens`.

        Source: Gal et al. 2022, arXiv:2208.01618, Sec. 3 (a new word is a new input embedding).
        """
        table = self._table()
        given = [rows.reshape(-1, rows.shape[-1]) for rows in (overrides or {}).values()]
        ids = self.tokens(prompts, overrides)
        rows = torch.cat(given).to(table) if given else table.new_zeros(0, table.shape[1])
        return self._context(ids, rows)

    @property
    def word_size(self) -> int:
        """Numbers of a word's input embedding, D_in."""
        return self._table().shape[1]

    def word_embedding(self, word: str) -> Tensor:
        """Input embedding (D_in,) of a word that is one token, for example to start a new one from.

        Raises:
            ConfigError: the word is several tokens, or unknown.
        """
        try:
            ids = self._word_ids(word)
        except TextError as error:
            raise ConfigError(f'There is no embedding to start from: {error} Try "object".') from error
        if len(ids) != 1:
            raise ConfigError(f'"{word}" is {len(ids)} tokens of this model, 1 is needed. Try "object".')
        return self._table()[ids[0]].detach().clone()

    def guided(
        self, z: Tensor, t: Tensor, cond: Tensor, uncond: Tensor | None, guidance_scale: float
    ) -> Tensor:
        """Noise with classifier-free guidance, from one call of 2B rows.

        That is eps_u + guidance_scale (eps_c - eps_u).

        With guidance_scale 1 this is the conditional prediction, and `uncond` is not looked at.

        Args:
            z: latents (B, *latent_shape).
            t: times int64 (B,).
            cond: context (B, L, D), or (1, L, D) for all.
            uncond: context without the condition, of the same shapes.
            guidance_scale: strength of the guidance; 7.5 is customary.

        Raises:
            ConfigError: a guidance scale other than 1 without `uncond`.
            ShapeError: a context that fits neither one row nor all.

        Source: Ho & Salimans 2022, arXiv:2207.12598, Eq. 6, with guidance_scale = 1 + w.
        """
        cond = self._for_rows(cond, len(z))
        if guidance_scale == 1:
            return self.eps(z, t, cond)
        if uncond is None:
            raise ConfigError(f'Guidance {guidance_scale:g} needs an unconditional context: embed([""]).')
        both = torch.cat([self._for_rows(uncond, len(z)), cond])
        eps_u, eps_c = self.eps(torch.cat([z, z]), torch.cat([t, t]), both).chunk(2)
        return eps_u + guidance_scale * (eps_c - eps_u)

    @torch.no_grad()
    def sample(
        self,
        z_T: Tensor,
        cond: Tensor,
        uncond: Tensor | Sequence[Tensor] | None,
        guidance_scale: float,
        steps: int,
    ) -> Tensor:
        """Denoise deterministically; returns z_0 (B, *latent_shape).

        Args:
            z_T: starting latents (B, *latent_shape), N(0, 1).
            cond: context (B, L, D) or (1, L, D).
            uncond: context without the condition for all steps; or one for each step, in the order of the
                steps (a sequence, or (steps, B, L, D)); None with guidance_scale 1.
            guidance_scale: strength of the guidance.
            steps: number of steps.

        Raises:
            ConfigError: a wrong number of steps or of unconditional contexts.
            ShapeError: latents or contexts of another shape.
            DataError: the model gave numbers that are not finite.

        Source: Song et al. 2021, arXiv:2010.02502, Eq. 12.
        """
        times = self.schedule.timesteps(steps)
        each = self._per_step(uncond, steps)
        check_shape("Latents", z_T, self.latent_shape)
        z = z_T
        for i, t in enumerate(times):
            rows = torch.full((len(z),), t, dtype=torch.int64, device=z.device)
            eps = self.guided(z, rows, cond, each[i], guidance_scale)
            z = self.schedule.move(z, eps, t, times[i + 1] if i + 1 < steps else None)
        if not bool(torch.isfinite(z).all()):
            raise DataError(
                f"Sampling gave numbers that are not finite (guidance {guidance_scale:g}, {steps} steps). "
                "Lower the guidance, or use another precision."
            )
        return z

    def _per_step(self, uncond: Tensor | Sequence[Tensor] | None, steps: int) -> Sequence[Tensor | None]:
        if uncond is None or (isinstance(uncond, Tensor) and uncond.ndim == 3):
            return [uncond] * steps
        if len(uncond) != steps:
            raise ConfigError(
                f"There are unconditional contexts for {len(uncond)} steps, but {steps} steps are taken. "
                "Sample with the number of steps that they were made for."
            )
        return list(uncond)

    def _for_rows(self, context: Tensor, rows: int) -> Tensor:
        """`context` (B, L, D) or (1, L, D) for exactly `rows` rows."""
        check_shape("Contexts", context, self.context_shape)
        if len(context) not in (1, rows):
            raise ShapeError(f"{len(context)} contexts do not fit {rows} latents: give 1, or one for each.")
        return context.expand(rows, -1, -1)


def check_shape(what: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise `ShapeError` unless `x` is (B, *shape)."""
    if tuple(x.shape[1:]) != tuple(shape) or x.ndim != len(shape) + 1:
        needed = ", ".join(str(n) for n in shape)
        raise ShapeError(f"{what} must have the shape (B, {needed}), got {tuple(x.shape)}.")


def split_prompt(prompt: str, placeholders: Iterable[str]) -> list[tuple[str, bool]]:
    """Pieces of a prompt in order, each with whether it is a placeholder; a longer placeholder wins.

    A placeholder counts only as a word of its own.

    >>> split_prompt("a photo of an #object, #objects", ["#object"])
    [('a photo of an', False), ('#object', True), (', #objects', False)]
    """
    words = sorted(placeholders, key=len, reverse=True)
    if any(not word or word != word.strip() for word in words):
        raise ConfigError(f"A placeholder is a word without spaces around it, got {_quoted(words)}.")
    if not words:
        pieces = [prompt]
    else:
        pattern = "|".join(re.escape(word) for word in words)
        pieces = re.split(rf"(?<![\w#])({pattern})(?!\w)", prompt)
    # re.split puts what it found at the odd places.
    found = [(piece.strip(), i % 2 == 1) for i, piece in enumerate(pieces)]
    return [(piece, is_placeholder) for piece, is_placeholder in found if piece]


def content_hash(parts: Iterable[tuple[str, bytes | Tensor]]) -> str:
    """Sha256 over named texts and tensors, whatever their order; device and strides do not matter."""
    digests: list[bytes] = []
    for name, value in parts:
        digest = hashlib.sha256(name.encode() + b"\0")
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}\0".encode())
            # Bytes through uint8, because numpy does not know bfloat16.
            value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        digest.update(value)
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _quoted(texts: Sequence[str]) -> str:
    shown = ", ".join(f'"{text}"' for text in texts[:_SHOWN])
    return shown + (f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else "")
