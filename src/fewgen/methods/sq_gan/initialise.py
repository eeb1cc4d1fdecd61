"""What the codes are before adversarial training.

Shapes: B batch, Z numbers of the latent, D numbers of a style (or of a latent, where these are quantised), s
pieces of d numbers, K codes, T tables of them (1, or s with a codebook per position), L layers with
tables of their own (1 but for W+), F numbers of a feature.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.encoders.base import JointEncoder
from fewgen.encoders.joint import TokenReader, token_reader
from fewgen.encoders.named import make_joint_encoder
from fewgen.errors import ConfigError, DataError, ShapeError
from fewgen.losses.terms import LossTerms
from fewgen.losses.transport import cosine_cost, marginal_error, sinkhorn
from fewgen.methods.sq_gan.config import InitConfig
from fewgen.methods.sq_gan.quantizer import StyleQuantizer
from fewgen.training.phases import Batch, Context, Phase, Pixels, Stage

LATENTS = 1024
"""Latents whose styles say where codes are needed."""
ROWS_PER_CODE = 64
"""Pieces per code that k-means looks at; more are subsampled."""
_ROWS = 256


class StyleMethod(Protocol):
    """What a method must have for its codes to be initialised."""

    @property
    def config(self) -> Any:
        """Its settings, `SqGanConfig`."""

    @property
    def mapping(self) -> nn.Module:
        """From latents to styles."""

    @property
    def quantizer(self) -> StyleQuantizer | None:
        """Of the styles."""

    def styles(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return the continuous styles of latents (B, Z) and labels (B,)."""


class CodeTokenizer(nn.Module):
    """Turns the codes of a style into a few tokens for a text encoder.

    The s codes are cut into `blocks` runs, filled up with zeros at the end, and one perceptron, the same for
    all, makes a token of each. Which run it was, the text encoder knows from the position.

    Args:
        pieces: s, codes of a style.
        code_dim: d, numbers of a code.
        blocks: tokens, at most s.
        token_width: numbers of a token.
        scale: root mean square of the numbers of a token, that of words.

    Raises:
        ConfigError: if there are more tokens than codes.

    Source: Wang et al. 2025, arXiv:2503.24282 (codes enter the text encoder through a perceptron).
    Differs: blocks of codes, because 128 codes are more than a text encoder can read; tokens have the length
        of words, so that they neither drown the positions nor drown in them.
    """

    def __init__(self, pieces: int, code_dim: int, blocks: int, token_width: int, scale: float = 1.0) -> None:
        super().__init__()
        if not 1 <= blocks <= pieces:
            raise ConfigError(
                f"init.blocks is {blocks}, but a style has {pieces} codes to make tokens of. "
                f"Use 1 to {pieces}."
            )
        self.pieces, self.code_dim, self.blocks, self.scale = pieces, code_dim, blocks, scale
        numbers = -(-pieces // blocks) * code_dim
        hidden = min(512, 16 * numbers)
        self.layers = nn.Sequential(nn.Linear(numbers, hidden), nn.GELU(), nn.Linear(hidden, token_width))

    def forward(self, codes: Tensor) -> Tensor:
        """Map the codes of styles (B, s d) to tokens (B, blocks, token_width).

        Raises:
            ShapeError: if there are not s codes.
        """
        width = self.pieces * self.code_dim
        if codes.dim() != 2 or codes.shape[1] != width:
            raise ShapeError(f"The tokeniser takes codes (B, {width}), got {tuple(codes.shape)}.")
        numbers = -(-self.pieces // self.blocks) * self.code_dim
        filled = functional.pad(codes, (0, self.blocks * numbers - width))
        tokens = self.layers(filled.reshape(len(codes), self.blocks, numbers))
        return self.scale * functional.layer_norm(tokens, tokens.shape[-1:])


class TokenizerCarrier(nn.Module):
    """The phase's weighting: it adds the terms up, and carries the tokeniser.

    So the loop moves and saves the tokeniser with the stage, and forgets it afterwards.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer: CodeTokenizer | None = None

    def forward(self, terms: LossTerms) -> Tensor:
        """Return the sum of the terms."""
        return terms.total()


def continuous(method: StyleMethod, z: Tensor, labels: Tensor) -> Tensor:
    """Return what is given to the quantiser for latents (B, Z) and labels (B,): (B, D), or (B, L, D) for W+.

    With W+ all layers follow one style here, as they do without style mixing.
    """
    quantizer = the_quantizer(method)
    if quantizer.config.space == "z":
        return z
    styles = method.styles(z, labels)
    return styles if quantizer.layers == 1 else styles[:, None].expand(-1, quantizer.layers, -1)


def raw_codes(quantizer: StyleQuantizer, indices: Tensor) -> Tensor:
    """Return codes one after the other, (B, L s d), of indices (B, s) or (B, L, s); not mapped afterwards."""
    if quantizer.layers == 1:
        return quantizer.tables()[0].lookup(indices)
    pairs = zip(quantizer.tables(), indices.unbind(1), strict=True)
    return torch.cat([table.lookup(part) for table, part in pairs], 1)


def the_quantizer(method: StyleMethod) -> StyleQuantizer:
    """Return the quantiser of a method.

    Raises:
        ConfigError: if it has none.
    """
    if method.quantizer is None:
        raise ConfigError("There are no codes to initialise: the method has no quantizer.")
    return method.quantizer


def transport_stage(method: StyleMethod, config: InitConfig) -> Stage:
    """Return the stage "codes": mapping network, codes and a tokeniser learn to speak of the training images.

    Minimises L_sq + L_uf + L_ot. L_ot is the cost of transporting the text features of the codes of random
    latents into the features of images; the encoders stay as they are. Codes start from k-means on styles.

    Args:
        method: its mapping and quantizer are moved.
        config: encoders, steps, batch size, tokens, and the transport's own settings.

    Raises:
        ConfigError: if the method has no quantiser, or if there are more tokens than codes.

    Source: Wang et al. 2025, arXiv:2503.24282 (codebook initialisation, CBI).
    Differs: L_ot reaches the codes themselves, too, and not only the mapping network by the straight-through
        gradient; the part of L_sq that moves styles is weighted down, because at its full weight styles
        shrink towards each other and codes fall out of use; both sides are centred; batch size, steps,
        learning rate and regularisation are ours.
    """
    quantizer = the_quantizer(method)
    pieces = quantizer.pieces * quantizer.layers
    CodeTokenizer(pieces, quantizer.config.code_dim, config.blocks, 1)  # refuses impossible sizes early
    carrier = TokenizerCarrier()
    encoder: TokenReader
    features: Tensor

    def start(context: Context) -> None:
        nonlocal encoder, features
        context.note("preparing the image and text encoders")
        encoder = token_reader(encoder_of(config, context))
        if config.blocks > encoder.max_blocks:
            raise ConfigError(
                f"init.blocks is {config.blocks}, but the text encoder has room for "
                f"{encoder.max_blocks} tokens."
            )
        features = image_features(encoder, context.train)
        quantizer.set_codes(make_codes("kmeans", method, context.train.source.n_classes, None, context.rng))
        tokenizer = CodeTokenizer(
            pieces, quantizer.config.code_dim, config.blocks, encoder.token_width, encoder.token_rms
        )
        carrier.tokenizer = tokenizer.to(context.device)

    def loss(batch: Batch, context: Context) -> LossTerms:
        assert carrier.tokenizer is not None
        shape = (len(batch), method.config.network.z_dim)
        z = torch.randn(shape, generator=context.rng, device=context.device)
        styles = continuous(method, z, batch.labels)
        found = quantizer(styles)
        w = quantizer.prepare(styles).flatten(1)
        # Exactly the codes; the gradient goes to them and, straight through, to what they replace.
        codes = raw_codes(quantizer, found.indices) + (w - w.detach())
        texts = encoder.text_features(carrier.tokenizer(codes))
        cost = cosine_cost(texts, features[batch.indices], config.center)
        plan = sinkhorn(cost.detach(), config.epsilon, config.iterations)
        return LossTerms(
            {
                "quantisation": found.codebook_loss,
                "commitment": found.commitment_loss,
                "uniformity": quantizer.uniformity(context.rng),
                "transport": (plan * cost).sum(),
            },
            {"uniformity": quantizer.config.uniformity, "commitment": config.commitment},
            {"perplexity": found.perplexity, "marginal_error": marginal_error(plan)},
        )

    return Stage(
        "codes",
        [Phase("transport", [method.mapping, quantizer], loss, lr=config.lr, weighting=carrier)],
        steps=config.steps,
        batch_size=config.batch_size,
        on_start=start,
        ema_decay=0.0,
        summary="codes learn to speak of the training images",
    )


def encoder_of(config: InitConfig, context: Context) -> JointEncoder:
    """Return the pair of encoders that the settings name, from the random numbers of a hook."""
    seed = _seed(context.rng)

    def made(steps: int) -> JointEncoder:
        return make_joint_encoder(config.foundation, context.train.source, steps, seed, context.device)

    if config.foundation != "small":  # the others are not trained
        return made(config.foundation_steps)
    found: JointEncoder = context.shortened(config.foundation_steps, made)
    return found


@torch.no_grad()
def image_features(encoder: JointEncoder, train: Pixels) -> Tensor:
    """Return features (N, F) of all training images, on their device."""
    return torch.cat([encoder.image_features(b.images).to(train.device) for b in train.batches(_ROWS)])


def starting_codes(method: StyleMethod, config: InitConfig, context: Context) -> Tensor:
    """Return codes to start from, for `on_start` of a stage; see `make_codes`.

    Args:
        method: with a quantiser.
        config: which; "transport" means those that the transport starts from.
        context: of the hook.
    """
    kind = "kmeans" if config.kind == "transport" else config.kind
    features = image_features(encoder_of(config, context), context.train) if kind == "features" else None
    return make_codes(kind, method, context.train.source.n_classes, features, context.rng)


@torch.no_grad()
def make_codes(
    kind: str, method: StyleMethod, n_classes: int, features: Tensor | None, rng: torch.Generator
) -> Tensor:
    """Return codes to start from.

    Args:
        kind: "random" (normal, as large as the styles), "kmeans" (on pieces of the styles of 1,024 latents,
            classes evenly) or "features" (on pieces of the images' principal components, made as large as
            the styles).
        method: with a quantiser.
        n_classes: of the training images.
        features: (N, F) of the training images; for "features".
        rng: of latents and draws, on the device of the method.

    Returns:
        (K, d), or (T, K, d) with a codebook per position. With W+, (L, T, K, d): each layer has draws of its
        own, since tables that start alike and see the same styles would stay alike.

    Raises:
        ConfigError: for another kind, or "features" without features.
        DataError: if images or features are too few for principal components of one code.

    Source: Wang et al. 2025, arXiv:2503.24282, start from features of images without their transport.
    Differs: all of it is ours; the three serve as what the transport is compared with.
    """
    quantizer = the_quantizer(method)
    if kind not in ("random", "kmeans", "features"):
        raise ConfigError(f'Codes start as "random", "kmeans" or "features", got "{kind}".')
    table = quantizer.tables()[0].codes
    (tables, n_codes, d), device = table.shape, table.device
    z = torch.randn((LATENTS, method.config.network.z_dim), generator=rng, device=rng.device).to(device)
    labels = torch.arange(LATENTS, device=device) % n_classes
    styles = continuous(method, z, labels)
    pieces = _by_table(quantizer.prepare(styles if quantizer.layers == 1 else styles[:, 0]), tables, d)
    rms = pieces.square().mean((1, 2), keepdim=True).sqrt()
    if kind == "features":
        if features is None:
            raise ConfigError('Codes from "features" need the features of the training images.')
        pieces = _component_pieces(features.to(rms), quantizer.width, tables, d)

    def drawn() -> Tensor:
        if kind == "random":
            return rms * torch.randn((tables, n_codes, d), generator=rng, device=rng.device).to(rms)
        codes = torch.stack([_centres(rows, n_codes, rng) for rows in pieces])
        if kind == "features":
            # After clustering: centres stand for far pieces more often than these occur.
            codes = codes * (rms / codes.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-12))
        return codes

    if quantizer.layers > 1:
        return torch.stack([drawn() for _ in range(quantizer.layers)])
    return drawn()[0] if tables == 1 else drawn()


def _by_table(w: Tensor, tables: int, d: int) -> Tensor:
    """Pieces (T, M, d) of rows (N, D): each position for its own table, or all for one."""
    pieces = w.reshape(len(w), -1, d)
    return pieces.transpose(0, 1) if tables > 1 else pieces.reshape(1, -1, d)


def _component_pieces(features: Tensor, width: int, tables: int, d: int) -> Tensor:
    """Pieces (T, M, d) of the leading principal components of features (N, F).

    With fewer components than a style has numbers, later positions repeat earlier ones.
    """
    x = features.double() - features.double().mean(0)
    n = min(width, len(x) - 1, x.shape[1]) // d * d
    if n < d:
        raise DataError(
            f"Codes of {d} numbers need {d + 1} images and {d} features, got {len(x)} and {x.shape[1]}. "
            'Use init.kind "kmeans".'
        )
    _, _, axes = torch.linalg.svd(x, full_matrices=False)
    axes = axes[:n]
    # An axis has no direction of its own: its largest number shall be positive.
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    scores = (x @ (axes * largest.sign()).T).to(features)
    pieces = _by_table(scores, tables, d)
    return pieces if tables == 1 else pieces[torch.arange(tables, device=pieces.device) % len(pieces)]


def _centres(pieces: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """Centres (n, d) of clusters of pieces (M, d); with fewer different ones, these and scatter."""
    limit = ROWS_PER_CODE * n
    if len(pieces) > limit:
        order = torch.randperm(len(pieces), generator=rng, device=rng.device)
        pieces = pieces[order[:limit].to(pieces.device)]
    distinct = pieces.unique(dim=0)
    if len(distinct) <= n:
        extra = n - len(distinct)
        rows = torch.randint(len(distinct), (extra,), generator=rng, device=rng.device).to(pieces.device)
        noise = torch.randn((extra, pieces.shape[1]), generator=rng, device=rng.device).to(pieces)
        scale = 0.1 * pieces.square().mean().sqrt().clamp_min(1e-2)
        return torch.cat([distinct, distinct[rows] + scale * noise])
    from sklearn.cluster import KMeans

    found = KMeans(n, n_init=1, max_iter=50, random_state=_seed(rng)).fit(pieces.double().cpu().numpy())
    return torch.as_tensor(found.cluster_centers_).to(pieces)


def _seed(rng: torch.Generator) -> int:
    """Draw a seed for what cannot use a `torch.Generator`."""
    return int(torch.randint(2**31 - 1, (), generator=rng, device=rng.device))
