"""A transformer that predicts which codes belong together, from those that are known.

Shapes: B batch, L tokens (one for each layer whose style is edited), N codes, D numbers of a code, W width, P
numbers of a prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.errors import ShapeError
from fewgen.nn.prior import AttentionBlock

Injection = Literal["cross", "adaln", "token"]

READ_AS = 4
"""Tokens that a prompt is read as in cross-attention; with one there would be nothing to attend to."""


@dataclass(frozen=True)
class Predicted:
    """What the transformer says of each token.

    Attributes:
        logits: of the codes, (B, L, N).
        features: what it takes the code itself to be, (B, L, D).
    """

    logits: Tensor
    features: Tensor


class PromptedBlock(AttentionBlock):
    """A transformer block that also reads a prompt; without one it is the plain block.

    Args:
        width: W.
        n_heads: attention heads; divides W.
        prompt_dim: P.
        injection: "cross" (cross-attention after self-attention) or "adaln" (scale and shift of both
            layer norms).

    Source: our design; adaptive norms that start as identities as in Peebles & Xie 2023, arXiv:2212.09748.
    """

    def __init__(self, width: int, n_heads: int, prompt_dim: int, injection: Injection) -> None:
        super().__init__(width, n_heads, 0.0)
        self.injection = injection
        if injection == "cross":
            self.norm_prompt = nn.LayerNorm(width)
            self.query = nn.Linear(width, width)
            self.read_prompt = nn.Linear(prompt_dim, 2 * READ_AS * width)
            self.add_prompt = nn.Linear(width, width)
        else:
            self.add_prompt = nn.Linear(prompt_dim, 4 * width, bias=False)
        for parameter in self.add_prompt.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Map (B, S, W) to (B, S, W) with prompts (B, P); a row of zeros is none."""
        if prompt is None:
            plain: Tensor = super().forward(x)
            return plain
        scale1, shift1, scale2, shift2 = self._norms(prompt)
        q, k, v = self._split(self.norm1(x) * (1.0 + scale1) + shift1)
        x = self._add(x, functional.scaled_dot_product_attention(q, k, v))
        if self.injection == "cross":
            x = x + self._read(x, prompt)
        return x + self.drop(self.mlp(self.norm2(x) * (1.0 + scale2) + shift2))

    def _norms(self, prompt: Tensor) -> tuple[Tensor, ...]:
        if self.injection == "cross":
            return (prompt.new_zeros(1),) * 4
        found: Tensor = self.add_prompt(prompt)
        return found[:, None].chunk(4, 2)

    def _read(self, x: Tensor, prompt: Tensor) -> Tensor:
        b, s, w = x.shape
        of_head = (self.n_heads, w // self.n_heads)
        q = self.query(self.norm_prompt(x)).reshape(b, s, *of_head).transpose(1, 2)
        k, v = self.read_prompt(prompt).reshape(b, 2, READ_AS, *of_head).permute(1, 0, 3, 2, 4)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, w)
        given = (prompt != 0).any(1)[:, None, None]
        added: Tensor = self.add_prompt(attended) * given
        return added


class CodePredictor(nn.Module):
    """Masked code modelling: every token sees all others, the category, and a prompt where there is one.

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
        prompt_dim: P; 0 reads none.
        injection: how prompts are read: see `PromptedBlock`, or "token" (one more token, which is zeros
            without a prompt). All start as if there were none.

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
        prompt_dim: int = 0,
        injection: Injection = "cross",
    ) -> None:
        super().__init__()
        self.n_tokens, self.codebook_dim, self.tied = n_tokens, codebook_dim, tied
        self.prompt_dim = prompt_dim
        self.read = nn.Linear(codebook_dim, width)
        self.read_class = nn.Linear(class_dim, width)
        self.position = nn.Parameter(torch.randn(n_tokens, width) * 0.02)
        self.mask = nn.Parameter(torch.randn(width) * 0.02)
        self.in_blocks = bool(prompt_dim) and injection != "token"
        self.blocks = nn.ModuleList(
            PromptedBlock(width, n_heads, prompt_dim, injection)
            if self.in_blocks
            else AttentionBlock(width, n_heads, 0.0)
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Linear(width, codebook_dim)
        self.head = nn.Linear(width, codebook_dim if tied else codebook_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(n_tokens, codebook_size))
        self.read_prompt: nn.Linear | None = None
        if prompt_dim and injection == "token":
            self.read_prompt = nn.Linear(prompt_dim, width, bias=False)
            nn.init.zeros_(self.read_prompt.weight)

    def forward(
        self,
        tokens: Tensor,
        masked: Tensor,
        category: Tensor,
        codes: Tensor,
        prompt: Tensor | None = None,
    ) -> Predicted:
        """Predict the code of every token.

        Args:
            tokens: what is known, (B, L, D).
            masked: bool (B, L), the tokens that are hidden.
            category: (B, class_dim).
            codes: the table, (N, D), or (L, N, D) with one for each token.
            prompt: (B, P); a row of zeros, or None, is no prompt.

        Raises:
            ShapeError: there are more or fewer tokens, or prompts of another size.
        """
        if tuple(tokens.shape[1:]) != (self.n_tokens, self.codebook_dim) or masked.shape != tokens.shape[:2]:
            raise ShapeError(
                f"tokens must be (B, {self.n_tokens}, {self.codebook_dim}) with a mask (B, {self.n_tokens}), "
                f"got {tuple(tokens.shape)} and {tuple(masked.shape)}."
            )
        if prompt is not None and (not self.prompt_dim or prompt.shape != (len(tokens), self.prompt_dim)):
            raise ShapeError(f"Prompts must be (B, {self.prompt_dim}), got {tuple(prompt.shape)}.")
        h = torch.where(masked[:, :, None], self.mask, self.read(tokens)) + self.position
        h = torch.cat([self.read_class(category)[:, None], h], 1)
        if self.read_prompt is not None:
            none = h.new_zeros(len(h), 1, h.shape[2])
            h = torch.cat([none if prompt is None else self.read_prompt(prompt)[:, None], h], 1)
        for block in self.blocks:
            h = block(h, prompt) if self.in_blocks else block(h)
        h = self.norm(h[:, -self.n_tokens :])
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


def gumbel_codes(logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """Draw codes as rows with a single 1, (..., N), whose gradient is that of a softmax.

    Args:
        logits: (..., N).
        uniforms: numbers in [0, 1), (..., N).
        temperature: > 0, of the softmax; the draws do not depend on it.

    Source: Jang et al. 2017, arXiv:1611.01144, Sec. 2.2 (straight-through Gumbel-softmax).
    """
    gumbel = -(-uniforms.clamp(1e-7, 1.0 - 1e-7).log()).log()
    soft = torch.softmax((logits + gumbel) / temperature, dim=-1)
    hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return hard + (soft - soft.detach())


def cosine_share(progress: Tensor | float) -> Tensor:
    """Return the share of tokens that is masked, cos(pi / 2 * progress).

    Source: Chang et al. 2022, arXiv:2202.04200, Sec. 3.3.
    """
    return torch.cos(0.5 * math.pi * torch.as_tensor(progress))
