"""Vector quantisation: replace latents by their nearest codes, and keep the codes useful.

Shapes: B batch, ... any positions (none for a vector latent, H, W for a map), G groups, T tables (G, or 1
if shared), K codebook_size, D codebook_dim, M vectors that one table quantises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.config.checks import at_least, below_one, choose
from fewgen.errors import ShapeError

# Upper bound for the elements of one distance matrix (M x K per table): 64 MiB in float32.
_CHUNK_ELEMENTS = 1 << 24
_LAPLACE = 1e-5
_LLOYD_STEPS = 5


@dataclass(frozen=True)
class Quantized:
    """What the codebook makes of a batch of latents.

    Attributes:
        codes: nearest codes, (B, ..., G*D); the gradient passes straight through to the latents.
        indices: which codes, int64 (B, ..., G) in [0, K).
        codebook_loss: scalar, pulls the selected codes to the latents; 0 with update="ema".
        commitment_loss: scalar, pulls the latents to their codes; already times commitment_weight.
        perplexity: detached scalar in [1, K], exp of the entropy of the codes used in the batch, mean
            over groups (over the one table if it is shared).
    """

    codes: Tensor
    indices: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    perplexity: Tensor


class Codebook(nn.Module):
    """A table of codes, optionally several groups of them (product quantisation).

    For latents z and codes e: k* = argmin_k |z - e_k|^2, codes = z + sg(e_k* - z), loss =
    |sg(z) - e_k*|^2 + commitment_weight |z - sg(e_k*)|^2. Both losses are summed over positions and
    dimensions and averaged over the batch, as all losses of this library.

    Training mode initialises the codes from the first batch, moves them (`update="ema"`), counts use and
    restarts dead codes. Evaluation mode changes nothing. All of it is state in buffers, and draws come
    from a stream made of `seed` and the step counter, so a resumed run continues bit for bit.

    Args:
        codebook_size: K, codes per table.
        codebook_dim: D, numbers per code.
        groups: G chunks of the latent, each quantised by itself.
        share: one table for all groups.
        update: "ema": codes follow the running mean of their latents; "gradient": codes are parameters
            and the codebook loss moves them.
        commitment_weight: factor of the commitment loss.
        decay: of the running means (ema only), in [0, 1).
        init: "data": from the first training batch; "uniform": U(-1/K, 1/K).
        restart_after: training steps without use after which a code moves to a latent that is badly
            served; 0 never. It may be changed at any time (0 while adapting to a task).
        seed: of the stream for initialisation and restarts.

    Source: van den Oord et al. 2017, arXiv:1711.00937, Eq. 1-3 and Appendix A.1 (ema).
    Differs: groups, initialisation from data and restarts are additions that the paper lacks; Laplace
        smoothing (1e-5) as in common practice.
    """

    codes: Tensor
    cluster_size: Tensor
    code_sum: Tensor
    idle_steps: Tensor
    steps: Tensor
    initialised: Tensor

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        groups: int = 1,
        share: bool = False,
        update: Literal["ema", "gradient"] = "ema",
        commitment_weight: float = 0.25,
        decay: float = 0.99,
        init: Literal["data", "uniform"] = "data",
        restart_after: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        at_least("codebook_size", codebook_size, 1)
        at_least("codebook_dim", codebook_dim, 1)
        at_least("groups", groups, 1)
        choose("Codebook update", update, ("ema", "gradient"))
        choose("Codebook init", init, ("data", "uniform"))
        below_one("Codebook decay", decay)
        at_least("restart_after", restart_after, 0)
        self.codebook_size = codebook_size
        self.codebook_dim = codebook_dim
        self.groups = groups
        self.share = share
        self.update = update
        self.commitment_weight = commitment_weight
        self.decay = decay
        self.init = init
        self.restart_after = restart_after
        self.seed = seed

        tables = 1 if share else groups
        start = torch.rand(tables, codebook_size, codebook_dim, generator=self._rng(-1))
        if not start.is_meta:  # arithmetic there makes torch load its compiler, a second of every command
            start = (2.0 * start - 1.0) / codebook_size
        if update == "gradient":
            self.codes = nn.Parameter(start)
        else:
            self.register_buffer("codes", start)
            self.register_buffer("cluster_size", torch.ones(tables, codebook_size))
            self.register_buffer("code_sum", start.clone())
        self.register_buffer("idle_steps", torch.zeros(tables, codebook_size, dtype=torch.long))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("initialised", torch.tensor(init == "uniform"))

    def forward(self, z: Tensor) -> Quantized:
        """Quantise latents to their nearest codes.

        Args:
            z: latents, (B, ..., G*D), channels last, float.

        Returns:
            `Quantized`.

        Raises:
            ShapeError: if the last dimension is not groups * codebook_dim.

        Source: van den Oord et al. 2017, arXiv:1711.00937, Eq. 1-3.
        """
        width = self.groups * self.codebook_dim
        if z.dim() < 2 or z.shape[-1] != width:
            raise ShapeError(
                f"The codebook got latents of shape {tuple(z.shape)}, but the last dimension must be "
                f"groups * codebook_dim = {self.groups} * {self.codebook_dim} = {width} (channels last)."
            )
        if z.numel() == 0:
            raise ShapeError(f"The codebook got an empty batch of latents, {tuple(z.shape)}.")
        # Distances and running means lose codes in half precision, so autocast stops here.
        with torch.autocast(device_type=z.device.type, enabled=False):
            latents = z.to(self.codes.dtype)
            z_TMD = self._to_tables(latents)
            vectors = z_TMD.detach()
            learning = self.training
            if learning and not bool(self.initialised):
                self._initialise(vectors)
            index_TM = self._nearest(vectors)
            counts_TK = self._count(index_TM)

            selected = self._from_tables(self._select(self.codes, index_TM), latents.shape)
            difference = latents - selected.detach()
            commitment_loss = self.commitment_weight * difference.square().flatten(1).sum(1).mean()
            if self.update == "gradient":
                codebook_loss = (latents.detach() - selected).square().flatten(1).sum(1).mean()
            else:
                codebook_loss = torch.zeros_like(commitment_loss)
            # z - z.detach() is exactly zero, so the values are exactly the codes; z + (e - z) is not.
            codes = selected.detach() + (latents - latents.detach())

            shares = counts_TK / counts_TK.sum(1, keepdim=True)
            perplexity = torch.exp(-torch.xlogy(shares, shares).sum(1)).mean()
            if learning:
                self._learn(vectors, index_TM, counts_TK)
        indices = self._from_tables(index_TM[:, :, None], torch.Size((*z.shape[:-1], self.groups)))
        return Quantized(codes.to(z.dtype), indices, codebook_loss, commitment_loss, perplexity)

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes of indices; in evaluation mode `lookup(quantized.indices)` equals `quantized.codes`.

        Args:
            indices: int64, (B, ..., G) in [0, K).

        Returns:
            Codes, (B, ..., G*D); with update="gradient" differentiable in the codes.

        Raises:
            ShapeError: if the last dimension is not `groups`, or an index is out of range.
        """
        if indices.dim() < 1 or indices.shape[-1] != self.groups:
            raise ShapeError(
                f"lookup got indices of shape {tuple(indices.shape)}; "
                f"the last dimension must be groups = {self.groups}."
            )
        if indices.numel():
            low, high = int(indices.min()), int(indices.max())
            if low < 0 or high >= self.codebook_size:
                raise ShapeError(
                    f"lookup got indices from {low} to {high}, but the codes are numbered "
                    f"0 to {self.codebook_size - 1}."
                )
        flat = indices.reshape(-1, self.groups)
        index_TM = flat.reshape(1, -1) if self.share else flat.T
        shape = (*indices.shape[:-1], self.groups * self.codebook_dim)
        return self._from_tables(self._select(self.codes, index_TM), torch.Size(shape))

    @torch.no_grad()
    def start_from(self, codes: Tensor) -> None:
        """Replace all codes by ones found elsewhere; the first batch will not initialise them again.

        Running means and counts of idle steps start anew.

        Args:
            codes: (K, D) for every table, or (T, K, D), finite.

        Raises:
            ShapeError: if the shape is another or a number is not finite.
        """
        if codes.shape not in (self.codes.shape, self.codes.shape[1:]):
            raise ShapeError(
                f"The codebook holds codes of shape {tuple(self.codes.shape)}, got {tuple(codes.shape)}; "
                f"give that shape, or {tuple(self.codes.shape[1:])} for every table."
            )
        if not bool(codes.isfinite().all()):
            raise ShapeError("The codes to start from hold NaN or infinity.")
        self._begin(codes)
        self.idle_steps.zero_()

    @torch.no_grad()
    def start_from_data(self, z: Tensor) -> None:
        """Replace all codes by ones that cover latents (B, ..., G*D), as the first training batch does."""
        self._initialise(self._to_tables(z.to(self.codes.dtype)))
        self.idle_steps.zero_()

    def _begin(self, codes: Tensor) -> None:
        """Take over codes, with new running means."""
        self.codes.copy_(codes)
        if self.update == "ema":
            self.cluster_size.fill_(1.0)
            self.code_sum.copy_(self.codes)
        self.initialised.fill_(True)

    # Between (B, ..., G*D) and one row of vectors per table.

    def _to_tables(self, z: Tensor) -> Tensor:
        if self.share:
            return z.reshape(1, -1, self.codebook_dim)
        return z.reshape(-1, self.groups, self.codebook_dim).transpose(0, 1)

    def _from_tables(self, x_TMD: Tensor, shape: torch.Size) -> Tensor:
        return x_TMD.reshape(shape) if self.share else x_TMD.transpose(0, 1).reshape(shape)

    def _select(self, codes_TKD: Tensor, index_TM: Tensor) -> Tensor:
        """Rows of each table, (T, M, D); the gradient reaches the selected rows only."""
        return functional.embedding(_rows(index_TM, codes_TKD.shape[1]), codes_TKD.flatten(0, 1))

    @torch.no_grad()
    def _nearest(self, z_TMD: Tensor, codes_TKD: Tensor | None = None) -> Tensor:
        """Index of the nearest code, (T, M); of equally near codes the first."""
        codes = self.codes if codes_TKD is None else codes_TKD
        # |z|^2 is the same for every code. Centring leaves the order alone but loses less to rounding.
        centre = codes.mean(1, keepdim=True)
        codes = codes - centre
        half_norms = 0.5 * codes.square().sum(2)[:, None, :]
        transposed = codes.transpose(1, 2)
        rows = max(1, _CHUNK_ELEMENTS // (codes.shape[0] * codes.shape[1]))
        chunks = [
            torch.baddbmm(half_norms, chunk - centre, transposed, alpha=-1.0).argmin(2)
            for chunk in z_TMD.split(rows, dim=1)
        ]
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)

    def _count(self, index_TM: Tensor) -> Tensor:
        """How many vectors chose each code, float (T, K)."""
        tables = index_TM.shape[0]
        rows = _rows(index_TM, self.codebook_size)
        counts = torch.bincount(rows.flatten(), minlength=tables * self.codebook_size)
        return counts.reshape(tables, self.codebook_size).to(self.codes.dtype)

    def _sum(self, z_TMD: Tensor, index_TM: Tensor) -> Tensor:
        """Sum of the vectors that chose each code, (T, K, D), in an order that does not vary."""
        if z_TMD.device.type == "cpu":
            tables, _, dim = z_TMD.shape
            out = z_TMD.new_zeros(tables * self.codebook_size, dim)
            out.index_add_(0, _rows(index_TM, self.codebook_size).flatten(), z_TMD.reshape(-1, dim))
            return out.reshape(tables, self.codebook_size, dim)
        # index_add on a GPU adds in a random order, which would break bit-exact resume.
        total = z_TMD.new_zeros(z_TMD.shape[0], self.codebook_size, z_TMD.shape[2])
        rows = max(1, _CHUNK_ELEMENTS // (z_TMD.shape[0] * self.codebook_size))
        for chunk, index in zip(z_TMD.split(rows, dim=1), index_TM.split(rows, dim=1), strict=True):
            one_hot = functional.one_hot(index, self.codebook_size).to(chunk.dtype)
            total += one_hot.transpose(1, 2) @ chunk
        return total

    # Training.

    def _rng(self, step: int) -> torch.Generator:
        """The stream of one step: nothing but seed and step has to be saved to resume it."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + step + 1) % (1 << 63))

    @torch.no_grad()
    def _initialise(self, z_TMD: Tensor) -> None:
        rng = self._rng(int(self.steps))
        codes = torch.stack([self._codes_from(z_MD, rng) for z_MD in z_TMD])
        if codes.isfinite().all():
            self._begin(_from_first_process(codes))

    def _codes_from(self, z_MD: Tensor, rng: torch.Generator) -> Tensor:
        """K codes that cover the vectors: k-means if there are enough, else every vector and scatter."""
        distinct = _distinct_rows(z_MD)
        n = len(distinct)
        if n >= self.codebook_size:
            codes = _spread_rows(distinct, self.codebook_size, rng)
            for _ in range(_LLOYD_STEPS):
                index_TM = self._nearest(z_MD[None], codes[None])
                counts = self._count(index_TM)[0, :, None]
                sums = self._sum(z_MD[None], index_TM)[0]
                codes = torch.where(counts > 0, sums / counts.clamp_min(1.0), codes)
            return codes
        extra = self.codebook_size - n
        rows = torch.randint(n, (extra,), generator=rng).to(distinct.device)
        noise = torch.randn(extra, self.codebook_dim, generator=rng).to(distinct)
        scale = 0.1 * (distinct.std() if distinct.numel() > 1 else distinct.abs().mean())
        return torch.cat([distinct, distinct[rows] + noise * scale.clamp_min(1e-3)])

    @torch.no_grad()
    def _learn(self, z_TMD: Tensor, index_TM: Tensor, counts_TK: Tensor) -> None:
        counts_TK = _sum_over_processes(counts_TK.clone())
        if self.update == "ema":
            sums_TKD = _sum_over_processes(self._sum(z_TMD, index_TM))
            # A NaN here would stay in the codes for good; the loss shows it and training stops there.
            if bool(sums_TKD.isfinite().all()):
                self.cluster_size.mul_(self.decay).add_(counts_TK, alpha=1.0 - self.decay)
                self.code_sum.mul_(self.decay).add_(sums_TKD, alpha=1.0 - self.decay)
                total = self.cluster_size.sum(1, keepdim=True)
                smoothed = (self.cluster_size + _LAPLACE) / (total + self.codebook_size * _LAPLACE) * total
                # An idle code stays where it is: both its means decay, and the smoothing would draw it to
                # the origin, where it would catch latents that nothing was trained on.
                means = self.code_sum / smoothed[:, :, None]
                self.codes.copy_(torch.where(counts_TK[:, :, None] > 0, means, self.codes))
        self.idle_steps.add_(1).masked_fill_(counts_TK > 0, 0)
        self.steps.add_(1)
        if self.restart_after and bool((self.idle_steps >= self.restart_after).any()):
            self._restart(z_TMD, index_TM, counts_TK)

    def _restart(self, z_TMD: Tensor, index_TM: Tensor, counts_TK: Tensor) -> None:
        """Move dead codes to latents that are badly served.

        Never more codes than there are distinct latents without a code of their own: ten class words in a
        codebook of 512 keep their ten codes instead of having them replaced every few steps.
        """
        rng = self._rng(int(self.steps))
        codes = self.codes.detach().clone()
        for table, z_MD in enumerate(z_TMD):
            dead = (self.idle_steps[table] >= self.restart_after).nonzero()[:, 0]
            if not len(dead):
                continue
            self.idle_steps[table, dead] = 0  # their next turn comes after another restart_after steps
            distinct = _distinct_rows(z_MD)
            n = min(len(dead), len(distinct) - int((counts_TK[table] > 0).sum()))
            if n < 1 or not bool(distinct.isfinite().all()):
                continue
            nearest = self._nearest(distinct[None], codes[table][None])[0]
            error = (distinct - codes[table][nearest]).square().sum(1)
            odds = (error + 1e-6 * error.mean() + 1e-12).cpu()
            chosen = torch.multinomial(odds, n, generator=rng).to(z_MD.device)
            codes[table, dead[:n]] = distinct[chosen]
        codes = _from_first_process(codes)
        moved = (codes != self.codes).any(2)
        self.codes.copy_(codes)
        if self.update == "ema":
            self.cluster_size.masked_fill_(moved, 1.0)
            self.code_sum.copy_(torch.where(moved[:, :, None], codes, self.code_sum))


def _rows(index_TM: Tensor, n_codes: int) -> Tensor:
    """Rows of indices in tables of `n_codes` that stand one below the other."""
    return index_TM + torch.arange(len(index_TM), device=index_TM.device)[:, None] * n_codes


def _distinct_rows(z_MD: Tensor) -> Tensor:
    """One row of each group of (nearly) equal rows, (n, D), in the order of first appearance.

    Rows count as equal within a thousandth of the spread: the same word leaves the same network with other
    last bits when it stands elsewhere in a batch.
    """
    step = 1e-3 * (z_MD.std() if z_MD.numel() > 1 else z_MD.abs().mean()).clamp_min(1e-12)
    groups, inverse = torch.unique((z_MD / step).round(), dim=0, return_inverse=True)
    position = torch.arange(len(z_MD), device=z_MD.device)
    first = torch.full((len(groups),), len(z_MD), device=z_MD.device)
    first.scatter_reduce_(0, inverse, position, reduce="amin")
    return z_MD[first.sort().values]


def _spread_rows(x_ND: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """Choose n rows far apart: each with odds as its squared distance to those before.

    Source: Arthur & Vassilvitskii 2007, "k-means++: the advantages of careful seeding", Sec. 2.2.
    Differs: drawn from a random part of the rows if there are more than 16 for each code.
    """
    order = torch.randperm(len(x_ND), generator=rng)[: 16 * n].to(x_ND.device)
    pool = x_ND[order]  # in random order, so the first row is a uniform draw
    chosen = [0]
    distance = torch.full((len(pool),), torch.inf, dtype=pool.dtype, device=pool.device)
    for _ in range(n - 1):
        distance = torch.minimum(distance, (pool - pool[chosen[-1]]).square().sum(1))
        # Rows are distinct, but their squared distances may still round to zero.
        odds = (distance + 1e-12 * distance.max() + 1e-30).cpu()
        chosen.append(int(torch.multinomial(odds, 1, generator=rng)))
    return pool[chosen]


def _several_processes() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _sum_over_processes(x: Tensor) -> Tensor:
    if _several_processes():
        torch.distributed.all_reduce(x)
    return x


def _from_first_process(x: Tensor) -> Tensor:
    """Every process sees other latents, so new codes are taken from one of them."""
    if _several_processes():
        torch.distributed.broadcast(x, src=0)
    return x
