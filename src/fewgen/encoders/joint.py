"""A frozen pair of image and text encoder with a common space, which tells codebooks what images look like.

The text encoder reads a short text of which some words are vectors made elsewhere:
[start, "a photo of", m tokens, end]; that of lite (`joint_lite.py`) in its own templates.

Shapes: N images, B texts, m tokens, W numbers of a token (`token_width`), F numbers of a feature.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.data.augment import Augment
from fewgen.encoders.base import JointEncoder, UnknownWordError
from fewgen.encoders.classifier import working_size
from fewgen.encoders.pretrained import load_whole, optional_library, reading
from fewgen.errors import CheckpointError, ConfigError, ShapeError
from fewgen.fitting.fit import fit
from fewgen.fitting.optimizers import AdamW
from fewgen.fitting.schedules import cosine
from fewgen.fitting.seeds import global_seed, make_rng
from fewgen.losses.contrastive import supervised_contrastive
from fewgen.losses.stable import directions
from fewgen.nn.conv import ConvDown, map_size, n_halvings
from fewgen.nn.prior import CausalBlock

if TYPE_CHECKING:
    from fewgen.data.imageset import ImageSet

PROMPT = "a photo of"
_FORMS = ("{}", "a photo of {}", "a photo of a {}")
POSITIONS = 32
"""Longest text of the small text encoder, start and end included."""
TEMPERATURE = 0.1
_ROWS = 256
_TOKEN_RMS = 0.2
_CLIP_ROWS = 32


class TokenReader(JointEncoder, Protocol):
    """A joint encoder whose text half also reads vectors in place of words.

    Attributes:
        token_width: W, numbers of one token.
        token_rms: root mean square of the numbers of a word's token, the scale at which tokens should come.
        max_blocks: most tokens that fit between prompt and end.
    """

    token_width: int
    token_rms: float
    max_blocks: int

    def text_features(self, tokens: Tensor) -> Tensor:
        """Return features (B, F) of length 1 of a prompt and tokens (B, m, W); differentiable in them."""
        ...


def token_reader(encoder: JointEncoder) -> TokenReader:
    """Return a joint encoder that reads vectors in place of words.

    Raises:
        ConfigError: it reads words alone.
    """
    if not hasattr(encoder, "text_features"):
        name = encoder.record()["name"]
        raise ConfigError(
            f'The joint encoder "{name}" reads words alone; codes need small, lite or clip:FOLDER.'
        )
    return cast(TokenReader, encoder)


def check_tokens(tokens: Tensor, encoder: TokenReader) -> None:
    """Refuse tokens that a text encoder cannot read.

    Raises:
        ShapeError: if they are not (B, m, W).
        ConfigError: if there are more than fit.
    """
    if tokens.dim() != 3 or tokens.shape[2] != encoder.token_width or tokens.shape[1] < 1:
        raise ShapeError(
            f"The text encoder takes tokens (B, m, {encoder.token_width}), got {tuple(tokens.shape)}."
        )
    if tokens.shape[1] > encoder.max_blocks:
        raise ConfigError(
            f"init.blocks: {tokens.shape[1]} tokens do not fit into the text encoder, which has room for "
            f"{encoder.max_blocks} beside its prompt. Set --model.init.blocks to {encoder.max_blocks} or "
            "less."
        )


def similarities(encoder: JointEncoder, images: ImageSet) -> dict[str, Tensor]:
    """Return cosines that show whether images and words share a space.

    Args:
        encoder: any.
        images: of two classes or more; the part of a class name before a comma is its word.

    Returns:
        "image and its word" (N,), "two texts of one class" (three for each class) and "image and another
        word" (N (C - 1),), where C classes have images.
    """
    present = images.labels.unique()
    names = [images.class_names[i].split(",")[0] for i in present.tolist()]
    forms = torch.stack([encoder.encode_texts([form.format(name) for name in names]) for form in _FORMS])
    found = encoder.image_features(images.floats()).to(forms) @ forms[0].T
    own = images.labels[:, None] == present
    pairs = [(forms[i] * forms[j]).sum(1) for i in range(len(forms)) for j in range(i)]
    return {
        "image and its word": found[own],
        "two texts of one class": torch.cat(pairs),
        "image and another word": found[~own],
    }


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case.

    >>> words_of("a photo of T-shirt/top")
    ['a', 'photo', 'of', 't', 'shirt', 'top']
    """
    return re.findall(r"\w+", text.lower())


def pair_loss(images: Tensor, texts: Tensor, of_image: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """InfoNCE in both directions, where one text may belong to several images.

    With s_nu = images_n . texts_u / temperature and u(n) the text of image n, half the sum of
    - mean_n log softmax_u(s_n.)[u(n)] and - mean_u mean_{n: u(n) = u} log softmax_n(s_.u)[n].

    Args:
        images: features (N, F) of length 1.
        texts: features (U, F) of length 1 of distinct texts.
        of_image: int64 (N,) in [0, U); each text belongs to one image at least.
        temperature: > 0, without unit.

    Returns:
        A scalar >= 0 in nats.

    Source: Radford et al. 2021, arXiv:2103.00020, Fig. 3; several positives as in Khosla et al. 2020,
        arXiv:2004.11362, Eq. 2.
    Differs: equal texts of a batch count once; otherwise each would be a negative of its own copies.
    """
    scores = images @ texts.T / temperature
    by_image = functional.cross_entropy(scores, of_image)
    chosen = scores.log_softmax(0).gather(1, of_image[:, None])[:, 0]
    count = torch.bincount(of_image, minlength=len(texts)).clamp_min(1)
    by_text = -(chosen / count[of_image]).sum() / len(texts)
    return 0.5 * (by_image + by_text)


def small_size(height: int, width: int) -> tuple[int, int]:
    """Return the size at which the small image encoder sees images: long side at most 64, halved evenly.

    >>> small_size(28, 28), small_size(256, 448)
    ((28, 28), (36, 64))
    """
    size = working_size(height, width)
    factor = 2 ** n_halvings(*size)
    rows, columns = (max(8, factor * round(side / factor)) for side in size)
    return rows, columns


class SmallJointEncoder(nn.Module):
    """Two encoders trained on the training images themselves, in seconds; the stand-in for CLIP.

    The image encoder is a small convolutional network, the text encoder a causal transformer of two layers
    over the words of the captions. Positions after the longest caption stay as they were initialised.

    Args:
        shape: (C, H, W) of the images; they are seen with a long side of at most 64 pixels.
        words: the vocabulary.
        width: channels of the image encoder.
        dim: F.
        token_width: W.
        positions: longest text, start and end included.

    Source: Radford et al. 2021, arXiv:2103.00020, Sec. 2.3-2.5 (dual encoder).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        words: Sequence[str],
        width: int = 32,
        dim: int = 64,
        token_width: int = 64,
        positions: int = POSITIONS,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.size = small_size(*shape[1:])
        h, w = map_size(*self.size)
        self.image = nn.Sequential(
            ConvDown((shape[0], *self.size), width), nn.Flatten(), nn.Linear(width * h * w, dim)
        )
        prompt = words_of(PROMPT)
        names = ["<start>", "<end>", *dict.fromkeys([*prompt, *words])]
        self.vocabulary = {name: i for i, name in enumerate(names)}
        self.token = nn.Embedding(len(names), token_width)
        self.position = nn.Parameter(torch.randn(positions, token_width) * 0.1)
        nn.init.normal_(self.token.weight, std=_TOKEN_RMS)
        self.blocks = nn.ModuleList(CausalBlock(token_width, 4, dropout=0.0) for _ in range(2))
        self.norm = nn.LayerNorm(token_width)
        self.project = nn.Linear(token_width, dim, bias=False)
        self.token_width = token_width
        self.token_rms = _TOKEN_RMS
        self.max_blocks = positions - len(prompt) - 2
        self.history: list[float] = []

    def ids(self, text: str) -> list[int]:
        """Return start, the words, end; words beyond the last position are cut off."""
        words = words_of(text)[: len(self.position) - 2]
        return [0, *(self.vocabulary[word] for word in words), 1]

    def _read(self, embedded: Tensor, ends: Tensor) -> Tensor:
        """Features (B, F) at positions `ends` (B,) of token vectors (B, P, W)."""
        x = embedded + self.position[: embedded.shape[1]]
        for block in self.blocks:
            x = block(x)
        at_end = x[torch.arange(len(x), device=x.device), ends]
        return directions(self.project(self.norm(at_end)))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return features (len(texts), F) of length 1.

        Raises:
            UnknownWordError: for a word that no caption held.
        """
        unknown = {word: text for text in texts for word in words_of(text) if word not in self.vocabulary}
        if unknown:
            words = ", ".join(f'"{word}"' for word in unknown)
            raise UnknownWordError(f"No caption that was learned from holds {words}.", unknown.values())
        rows = [self.ids(text) for text in texts]
        longest = max(len(row) for row in rows)
        device = self.position.device
        # What fills short rows stands after the end, where a causal encoder does not see it.
        ids = torch.tensor([row + [1] * (longest - len(row)) for row in rows], device=device)
        return self._read(self.token(ids), torch.tensor([len(row) - 1 for row in rows], device=device))

    def text_features(self, tokens: Tensor) -> Tensor:
        """Return features (B, F) of length 1 of "a photo of" and tokens (B, m, W); differentiable in them.

        Raises:
            ShapeError: if the tokens are not (B, m, W).
            ConfigError: if they do not fit.
        """
        check_tokens(tokens, self)
        fixed = self.token(torch.tensor(self.ids(PROMPT), device=tokens.device)).expand(len(tokens), -1, -1)
        embedded = torch.cat([fixed[:, :-1], tokens.to(fixed.dtype), fixed[:, -1:]], dim=1)
        last = torch.full((len(tokens),), embedded.shape[1] - 1, device=tokens.device)
        return self._read(embedded, last)

    def encode_images(self, images: Tensor) -> Tensor:
        """Return features (N, F) of length 1 of images (N, C, H, W) in [-1, 1], with gradient."""
        return directions(self.image(self.shrink(images)))

    def shrink(self, images: Tensor) -> Tensor:
        """Return images (N, C, H, W) in [-1, 1] at the size at which the encoder sees them.

        Raises:
            ShapeError: if they are not of the shape that the encoder was made for.
        """
        size = tuple(images.shape[2:])
        if images.dim() != 4 or images.shape[1] != self.shape[0] or size not in (self.shape[1:], self.size):
            raise ShapeError(
                f"The image encoder takes images (N, {', '.join(map(str, self.shape))}), "
                f"got {tuple(images.shape)}."
            )
        if size == self.size:
            return images
        return functional.interpolate(images, self.size, mode="bicubic", antialias=True).clamp_(-1.0, 1.0)

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Return features (N, F) of length 1, without gradient, of float images (N, C, H, W) in [-1, 1]."""
        found = [self.encode_images(rows.to(self.position.device)) for rows in images.split(_ROWS)]
        return torch.cat(found)

    def record(self) -> dict[str, object]:
        """Return name, size and number of words."""
        n_parameters = sum(p.numel() for p in self.parameters())
        return {"name": "small", "n_parameters": n_parameters, "n_words": len(self.vocabulary)}

    @classmethod
    def fit(
        cls,
        images: ImageSet,
        steps: int = 300,
        seed: int = 0,
        device: torch.device | str = "cpu",
        batch_size: int = 64,
        lr: float = 2e-3,
        words: Sequence[str] = (),
    ) -> SmallJointEncoder:
        """Train both encoders on images and their captions, "a photo of CLASS NAME" where there are none.

        Two terms: `pair_loss` between images and captions, and, so that images of one class do not all get
        one feature, agreement of two augmented views of an image against all other images. With a
        single caption the first term says nothing and is left out: the image encoder learns from the second
        alone, and the text encoder stays a random function, which still tells sequences of tokens apart.

        Args:
            images: training images, one at least.
            steps: optimiser steps.
            seed: of weights, batches and augmentation. The same seed gives the same weights.
            device: where to train; the encoders stay there.
            batch_size: images per step.
            lr: largest learning rate.
            words: of the vocabulary, whether or not a caption has them.

        Returns:
            Encoders in evaluation mode with frozen parameters; `history` holds the loss of each step.

        Raises:
            ConfigError: if there are no images, or no steps.

        Source: Radford et al. 2021, arXiv:2103.00020 (captions); two views as in Chen et al. 2020,
            arXiv:2002.05709, Sec. 2.1.
        """
        if len(images) < 1 or steps < 1:
            raise ConfigError(
                f"A small joint encoder needs an image and a step, got {len(images)} and {steps}."
            )
        device = torch.device(device)
        captions = images.captions or tuple(
            f"{PROMPT} {images.class_names[i]}" for i in images.labels.tolist()
        )
        texts = sorted(set(captions))
        of_image = torch.tensor([texts.index(caption) for caption in captions]) if len(texts) > 1 else None
        words = sorted({word for text in texts for word in words_of(text)} | set(words))
        with global_seed(device, seed, "towers"):
            encoder = cls((images.channels, *images.size), words)
        encoder.to(device)
        rng = make_rng("cpu", seed, "towers", "batches")
        augment = Augment("light")
        moved = [{"params": list(encoder.parameters()), "lr": lr, "weight_decay": 0.01}]
        schedule = cosine(warmup=0.1)

        def figures(_: int) -> dict[str, Tensor]:
            chosen = torch.randint(len(images), (batch_size,), generator=rng)
            pixels = encoder.shrink(images.floats(chosen))
            views = augment(pixels.repeat(2, 1, 1, 1), rng).to(device)
            features = encoder.encode_images(views)
            loss = supervised_contrastive(features, chosen.repeat(2).to(device), 2.0 * TEMPERATURE)
            if of_image is not None:
                present, pairs = of_image[chosen].unique(return_inverse=True)
                found = encoder.encode_texts([texts[i] for i in present.tolist()])
                loss = loss + pair_loss(features, found, pairs.repeat(2).to(device))
            return {"loss": loss}

        rates = ([lr * schedule(step, steps)] for step in range(steps))
        fit(encoder, figures, AdamW(moved), rates, after=encoder.history.append)
        encoder.token_rms = float(encoder.token.weight.detach().square().mean().sqrt())
        return encoder.requires_grad_(False)


class ClipJointEncoder:
    """CLIP from a local folder, which is what the paper uses.

    Args:
        folder: with config.json, preprocessor_config.json, the tokenizer's files and safetensors weights.
        device: where it computes.

    Raises:
        MissingDependencyError: transformers is not installed.
        ConfigError: there is no such folder.
        CheckpointError: it lacks a part of CLIP.

    Source: Radford et al. 2021, arXiv:2103.00020, Sec. 2.4; tokens in place of words as in Zhou et al. 2022,
        arXiv:2109.01134, Sec. 3.2.
    Differs: images are resized as a whole, not cropped (`TransformerFeatures`).
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu") -> None:
        from fewgen.encoders.image_transformer import TransformerFeatures

        path = Path(folder).expanduser()
        if not path.is_dir():
            raise ConfigError(
                f"There is no folder {folder} with a CLIP model. Download one such as "
                "openai/clip-vit-base-patch32 and give its folder."
            )
        self._images = TransformerFeatures("clip", path).to(device)
        self._model, self._tokenizer, ids = _clip_text(path)
        self._model.to(device).requires_grad_(False)
        self._prefix, self._end = ids[:-1], ids[-1]
        words = self._model.get_input_embeddings().weight
        self.token_width = int(words.shape[1])
        self.token_rms = float(words.square().mean().sqrt())
        self.max_blocks = int(self._model.config.max_position_embeddings) - len(ids)
        self.device = torch.device(device)
        if self.max_blocks < 1:
            raise CheckpointError(f'{folder}: its text encoder has no room for tokens after "{PROMPT}".')

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the text encoder, all frozen."""
        return list(self._model.parameters())

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Return features (N, F) of length 1, without gradient, of float images (N, C, H, W) in [-1, 1]."""
        pixels = images.to(self.device).add(1.0).mul_(127.5)
        return torch.cat([self._images.vectors(rows) for rows in pixels.split(_CLIP_ROWS)])

    def encode_images(self, images: Tensor) -> Tensor:
        """Return the same with gradient, all in one pass."""
        return self._images.embed((images.to(self.device) + 1.0) * 127.5)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return features (len(texts), F) of length 1; text beyond the model's window is cut off."""
        longest = int(self._model.config.max_position_embeddings)
        found = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(self.device)
        inputs = {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}
        return directions(self._model(**inputs).text_embeds)

    def record(self) -> dict[str, object]:
        """Return what the image half says of the model, whose text half lies in the same files."""
        return self._images.record()

    def text_features(self, tokens: Tensor) -> Tensor:
        """Return features (B, F) of length 1 of "a photo of" and tokens (B, m, W); differentiable in them.

        Raises:
            ShapeError: if the tokens are not (B, m, W).
            ConfigError: if they do not fit.
        """
        check_tokens(tokens, self)
        n, first = tokens.shape[1], len(self._prefix)
        # The model takes ids alone; a word of the prompt holds the places of the tokens.
        ids = [*self._prefix, *[self._prefix[-1]] * n, self._end]
        ids_BP = torch.tensor(ids, device=self.device).expand(len(tokens), -1)

        def insert(_module: nn.Module, _inputs: Any, words: Tensor) -> Tensor:
            return torch.cat([words[:, :first], tokens.to(words.dtype), words[:, first + n :]], dim=1)

        hook = self._model.get_input_embeddings().register_forward_hook(insert)
        try:
            found = self._model(input_ids=ids_BP).text_embeds
        finally:
            hook.remove()
        return directions(found)


def _clip_text(folder: Path) -> tuple[Any, Any, list[int]]:
    """Return the text encoder of a CLIP folder, its tokenizer, and the ids of start, prompt and end."""
    transformers = optional_library("transformers", "The text encoder clip")
    what = "CLIP text encoder"
    model = load_whole(transformers, transformers.CLIPTextModelWithProjection, folder, what)
    with reading(transformers, folder, what, CheckpointError):
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        ids = [int(i) for i in tokenizer(PROMPT)["input_ids"]]
    # The model looks for the end by its id; old settings say 2 and mean the largest id of the text.
    eos = int(model.config.eos_token_id)
    if len(ids) < 3 or ids[-1] in ids[:-1] or (eos != ids[-1] and not (eos == 2 and ids[-1] == max(ids))):
        raise CheckpointError(
            f"{folder}: tokenizer and text encoder do not fit together: the text ends with token "
            f"{ids[-1] if ids else None}, but the encoder expects {eos}."
        )
    return model, tokenizer, ids
