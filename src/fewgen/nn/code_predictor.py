"""A transformer that predicts which codes belong together, from those that are known.

Shapes: B batch, L tokens (one for each layer whose style is edited), N codes, D numbers of a code, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewgen.errors import ShapeError
from fewgen.nn.prior import AttentionBlock


@dataclass(frozen=True)
class Predicted:
    """What the transformer says of each token.

    Attributes:
        logits: of the codes, (B, L, N).
        features: what it takes the code itself to be, (B, L, D).
    """

    logits: Tensor
    features: Tensor


class CodePredictor(nn.Module):
    """Masked code modelling: every token sees all others, and the category.

    Args:
        n_tokens: L.
        codebook_size: N.
        codebook_dim: D.
        class_dim: numbers that describe the category.
        width: W.
        n_layers: transformer blocks.
        n_heads: attention heads; divides W.
        tied: logits are products of a query and each code, over sqrt(D), so that codes that were seldom seen
            get sensible ones; else a linear head gives them. Both have a bias for each token and code.

    Source: Zhou et al. 2022, arXiv:2206.11253 (CodeFormer: code indices from features, cross-entropy and
        squared error); Chang et al. 2022, arXiv:2202.04200 (MaskGIT: masks, and confidence); TAGE,
        arXiv:2410.17855, says that a transformer predicts the codes, and no more.
    Differs: our design throughout, since TAGE's is not published. The query has a projection of its own: the
        squared error takes `features` to the mean of what is possible, which tells codes apart no more.
    """

    def __init__(
        self,
        n_tokens: int,
        codebook_size: int,
        codebook_dim: int,
        class_dim: int,
        width: int = 128,
        n_layers: int = 3,
        n_heads: int = 4,
        tied: bool = True,
    ) -> None:
        super().__init__()
        self.n_tokens, self.codebook_dim, self.tied = n_tokens, codebook_dim, tied
        self.read = nn.Linear(codebook_dim, width)
        self.read_class = nn.Linear(class_dim, width)
        self.position = nn.Parameter(torch.randn(n_tokens, width) * 0.02)
        self.mask = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(AttentionBlock(width, n_heads, 0.0) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Linear(width, codebook_dim)
        self.head = nn.Linear(width, codebook_dim if tied else codebook_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(n_tokens, codebook_size))

    def forward(self, tokens: Tensor, masked: Tensor, category: Tensor, codes: Tensor) -> Predicted:
        """Predict the code of every token.

        Args:
            tokens: what is known, (B, L, D).
            masked: bool (B, L), the tokens that are hidden.
            category: (B, class_dim).
            codes: the table, (N, D), or (L, N, D) with one for each token.

        Raises:
            ShapeError: there are more or fewer tokens.
        """
        if tuple(tokens.shape[1:]) != (self.n_tokens, self.codebook_dim) or masked.shape != tokens.shape[:2]:
            raise ShapeError(
                f"tokens must be (B, {self.n_tokens}, {self.codebook_dim}) with a mask (B, {self.n_tokens}), "
                f"got {tuple(tokens.shape)} and {tuple(masked.shape)}."
            )
        h = torch.where(masked[:, :, None], self.mask, self.read(tokens)) + self.position
        h = torch.cat([self.read_class(category)[:, None], h], 1)
        for block in self.blocks:
            h = block(h)
        h = self.norm(h[:, 1:])
        logits = self.head(h)
        if self.tied:
            table = codes if codes.ndim == 3 else codes[None]
            logits = torch.matmul(logits[:, :, None], table.transpose(1, 2)[None])[:, :, 0]
            logits = logits / math.sqrt(self.codebook_dim)
        return Predicted(logits + self.bias, self.feature(h))

    @torch.no_grad()
    def start(self, counts: Tensor) -> None:
        """Start from how often each token is each code, (L, N), whatever else is known."""
        shares = (counts.double() + 1.0) / (counts.sum(1, keepdim=True) + counts.shape[1])
        self.bias.copy_(shares.log() - shares.log().mean(1, keepdim=True))


def sample_codes(
    logits: Tensor, uniforms: Tensor, temperature: float = 1.0, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Draw codes among the likeliest ones that together have probability `top_p`.

    Args:
        logits: (..., N).
        uniforms: numbers in [0, 1), (...), one for each draw.
        temperature: divides the logits; 0 takes the likeliest code.
        top_p: in (0, 1].

    Returns:
        Codes int64 (...), and the probability of each before the cut, (...).

    Source: Holtzman et al. 2020, arXiv:1904.09751, Sec. 3.1 (top-p).
    """
    sharp = torch.softmax(logits.double() / max(temperature, 1e-6), dim=-1)
    ordered, order = sharp.sort(dim=-1, descending=True, stable=True)
    if temperature == 0:
        rank = torch.zeros_like(order[..., :1])
    else:
        before = ordered.cumsum(-1) - ordered
        kept = torch.where(before < top_p, ordered, torch.zeros_like(ordered))
        cumulative = kept.cumsum(-1)
        draw = uniforms.double()[..., None] * cumulative[..., -1:]
        rank = torch.searchsorted(cumulative, draw, right=True)
        rank = torch.minimum(rank, (kept > 0).sum(-1, keepdim=True) - 1)
    return order.gather(-1, rank)[..., 0], ordered.gather(-1, rank)[..., 0].float()


def cosine_share(progress: Tensor | float) -> Tensor:
    """Return the share of tokens that is masked, cos(pi / 2 * progress).

    Source: Chang et al. 2022, arXiv:2202.04200, Sec. 3.3.
    """
    return torch.cos(0.5 * math.pi * torch.as_tensor(progress))
