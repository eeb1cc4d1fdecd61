"""How far a reconstruction is from what it should show."""

from __future__ import annotations

from torch import Tensor

from fewgen.errors import ShapeError


def same_shape(a: Tensor, b: Tensor, what: str) -> None:
    """Raise `ShapeError` unless both shapes are equal (broadcasting would hide a mistake)."""
    if a.shape != b.shape:
        raise ShapeError(f"{what} have shapes {tuple(a.shape)} and {tuple(b.shape)}; they must be equal.")


def squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """Squared error, summed over features and averaged over the batch.

    Args:
        x_hat: reconstruction, (B, ...), float.
        x: what it should be, same shape.

    Returns:
        A scalar, in squared units of `x`, per sample.

    Raises:
        ShapeError: if the shapes differ.

    Source: Kingma & Welling 2014, arXiv:1312.6114, Appendix C.2 (Gaussian decoder, unit variance).
    Differs: without the factor 1/2 and the additive constant of the log-likelihood.
    """
    same_shape(x_hat, x, "Reconstruction and target")
    return (x_hat - x).square().flatten(1).sum(1).mean()


def l1_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """Absolute error, summed over features and averaged over the batch.

    Args:
        x_hat: reconstruction, (B, ...), float.
        x: what it should be, same shape.

    Returns:
        A scalar, in units of `x`, per sample.

    Raises:
        ShapeError: if the shapes differ.

    Source: Schoenfeld et al. 2019, arXiv:1812.01784, public code (L1 reconstruction, summed).
    Differs: averaged over the batch; their code sums over it.
    """
    same_shape(x_hat, x, "Reconstruction and target")
    return (x_hat - x).abs().flatten(1).sum(1).mean()
