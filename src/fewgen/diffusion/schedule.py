"""How much noise there is at each time, and the deterministic move between two times.

Times are integers 0 ... T - 1, 0 the cleanest. `abar_t` is the share of the signal's variance that is left:
z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewgen.errors import ConfigError, DataError, ShapeError

_END = -1
_MAX_BETA = 0.999


class NoiseSchedule:
    """The share of signal at every time of a diffusion, and what follows from it.

    Held as float64 on the processor: the numbers of one step come out as Python floats, so that a step costs
    one multiplication and one addition on whatever device and in whatever precision the latents have.

    Args:
        alphas_cumprod: abar (T,), strictly falling, in (0, 1).

    Raises:
        ShapeError: it is not one row of at least one number.
        ConfigError: it does not fall strictly inside (0, 1), for example because it ends in pure noise
            ("zero terminal SNR"), where noise no longer determines the image.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        if alphas_cumprod.ndim != 1 or len(alphas_cumprod) == 0:
            raise ShapeError(f"alphas_cumprod must have the shape (T,), got {tuple(alphas_cumprod.shape)}.")
        bars = alphas_cumprod.detach().to("cpu", torch.float64)
        inside = bool(((bars > 0) & (bars < 1)).all())
        if not inside or bool((bars.diff() >= 0).any()):
            raise ConfigError(
                f"alphas_cumprod must fall strictly inside (0, 1), got {bars[0]:g} ... {bars[-1]:g} with "
                f"extremes {bars.min():g} and {bars.max():g}. Use another noise schedule."
            )
        self.alphas_cumprod = bars
        self._bars: list[float] = bars.tolist()

    def __len__(self) -> int:
        return len(self._bars)

    @classmethod
    def from_betas(cls, betas: Tensor) -> NoiseSchedule:
        """Schedule from the variance (T,) that each time adds: abar_t = prod (1 - beta).

        Source: Ho et al. 2020, arXiv:2006.11239, Eq. 4.
        """
        return cls((1 - betas.detach().to("cpu", torch.float64)).cumprod(0))

    @classmethod
    def scaled_linear(
        cls, n_times: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> NoiseSchedule:
        """Square roots of beta on a straight line; the defaults are those of Stable Diffusion.

        Source: Rombach et al. 2022, arXiv:2112.10752 (public code, "scaled linear").
        """
        # The device is named, because a model may be built while torch's default device is "meta".
        ends = math.sqrt(beta_start), math.sqrt(beta_end)
        roots = torch.linspace(*ends, n_times, dtype=torch.float64, device="cpu")
        return cls.from_betas(roots**2)

    @classmethod
    def linear(cls, n_times: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """Beta on a straight line.

        Source: Ho et al. 2020, arXiv:2006.11239, Sec. 4.
        """
        return cls.from_betas(
            torch.linspace(beta_start, beta_end, n_times, dtype=torch.float64, device="cpu")
        )

    @classmethod
    def cosine(cls, n_times: int = 1000) -> NoiseSchedule:
        """Let abar follow a squared cosine; betas are cut at 0.999.

        Ends in nearly pure noise (abar 2e-9 at 1000 times), so that the first steps multiply errors of a
        predicted noise: meant for models that predict the velocity.

        Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17.
        """
        at = torch.arange(n_times + 1, dtype=torch.float64, device="cpu") / n_times
        bars = torch.cos((at + 0.008) / 1.008 * math.pi / 2) ** 2
        return cls.from_betas((1 - bars[1:] / bars[:-1]).clamp(max=_MAX_BETA))

    def timesteps(self, steps: int) -> list[int]:
        """Return the times that `steps` steps visit, falling; the last move from there goes to time 0.

        It starts at the noisiest time (50 of 1000: 999, 979, ..., 19).

        Raises:
            ConfigError: fewer than 1 step or more than there are times.

        Source: Lin et al. 2024, arXiv:2305.08891, Table 2 ("trailing").
        """
        total = len(self)
        if not 1 <= steps <= total:
            raise ConfigError(f"steps must be between 1 and {total}, got {steps}.")
        return [round(total * i / steps) - 1 for i in range(steps, 0, -1)]

    def bar(self, t: int | None) -> float:
        """Share of signal at one time; None or -1, the end of sampling, is time 0.

        Differs: abar of the end is that of time 0 and not 1, as in TINT's code, so that an image can be
            inverted from there.

        Raises:
            DataError: there is no such time.
        """
        if t is None or t == _END:
            t = 0
        if not 0 <= t < len(self):
            raise DataError(f"There is no time {t}: times are 0 ... {len(self) - 1}, or None for the end.")
        return self._bars[t]

    def move(self, z: Tensor, eps: Tensor, a: int | None, b: int | None) -> Tensor:
        """Latents (B, ...) at time `a` with noise `eps` (B, ...), taken to time `b` along that noise.

        Serves sampling (b < a) and inversion (b > a); with the same noise one undoes the other. Nothing is
        cut off at [-1, 1].

        Source: Song et al. 2021, arXiv:2010.02502, Eq. 12 with sigma = 0.

        >>> schedule = NoiseSchedule.scaled_linear()
        >>> z, eps = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
        >>> there = schedule.move(z, eps, 999, 500)
        >>> schedule.move(there, eps, 500, 999)
        tensor([[1., 1.]], dtype=torch.float64)
        """
        bar_a, bar_b = self.bar(a), self.bar(b)
        # sqrt(abar_b) (z - sqrt(1 - abar_a) eps) / sqrt(abar_a) + sqrt(1 - abar_b) eps, with z and eps apart.
        signal = math.sqrt(bar_b / bar_a)
        return signal * z + (math.sqrt(1 - bar_b) - signal * math.sqrt(1 - bar_a)) * eps

    def clean(self, z: Tensor, eps: Tensor, t: int | None) -> Tensor:
        """Image or latent (B, ...) that `z` at time `t` with noise `eps` comes from."""
        bar = self.bar(t)
        return (z - math.sqrt(1 - bar) * eps) / math.sqrt(bar)

    def add_noise(self, z0: Tensor, eps: Tensor, t: Tensor | int) -> Tensor:
        """Latents (B, ...) at the times `t` (one, or int64 (B,)): sqrt(abar) z0 + sqrt(1 - abar) eps.

        Source: Ho et al. 2020, arXiv:2006.11239, Eq. 4.
        """
        signal, noise = self._roots(t, z0)
        return signal * z0 + noise * eps

    def velocity(self, z0: Tensor, eps: Tensor, t: Tensor | int) -> Tensor:
        """Velocity sqrt(abar) eps - sqrt(1 - abar) z0, which some models predict in place of the noise.

        Source: Salimans & Ho 2022, arXiv:2202.00512, Sec. 4.
        """
        signal, noise = self._roots(t, z0)
        return signal * eps - noise * z0

    def noise_of_velocity(self, z: Tensor, v: Tensor, t: Tensor | int) -> Tensor:
        """Noise in latents `z` (B, ...) at the times `t` whose velocity is `v`."""
        signal, noise = self._roots(t, z)
        return signal * v + noise * z

    def _roots(self, t: Tensor | int, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar) and sqrt(1 - abar), shaped to multiply `like` (B, ...)."""
        times = torch.as_tensor(t, device="cpu")
        if times.ndim > 1 or (times.ndim == 1 and len(times) != len(like)):
            raise ShapeError(
                f"Times {tuple(times.shape)} do not fit {len(like)} latents: one, or one for each."
            )
        if times.dtype != torch.int64:
            raise DataError(f"Times are whole numbers (int64), got {times.dtype}.")
        if times.numel() and not 0 <= int(times.min()) <= int(times.max()) < len(self):
            raise DataError(f"Times must be in 0 ... {len(self) - 1}, got {times.tolist()[:8]}.")
        bars = self.alphas_cumprod[times].reshape(-1, *[1] * (like.ndim - 1))
        return bars.sqrt().to(like), (1 - bars).sqrt().to(like)
