"""Compute normalized HSIC between hidden states, the score behind "mutual information peaks" (arXiv 2506.02867).

It is an index of dependence, and not mutual information. It grows with the scale of its inputs: two independent
Gaussian vectors score near 0 at standard deviation 0.5, and high at 100. So :func:`hsic_scores` always includes
controls: the activation norm, the reference answer of another problem, and the reference answer with its dimensions
shuffled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from steerdec.common.errors import AnalysisError

Floats = NDArray[np.float64]

SIGMA: Final = 50.0  # of the Gaussian kernel, in units of activation
EPSILON: Final = 1e-5
SHUFFLES: Final = 4  # of the reference answer's dimensions; the control is their mean


class HsicError(AnalysisError):
    """No score can be computed from these states; one line."""


@dataclass(frozen=True)
class HsicScores:
    """One score per position, each [n_positions]."""

    gold: Floats
    wrong_gold: Floats  # with the reference answer of another problem
    shuffled: Floats  # with the dimensions of the reference answer shuffled, mean over SHUFFLES
    norm: Floats  # Euclidean length of the state


def nhsic(x: ArrayLike, y: ArrayLike, *, sigma: float = SIGMA, epsilon: float = EPSILON) -> float:
    """Compute normalized HSIC tr(Rx Ry) of two vectors [d], whose dimensions are the samples.

    R = K (K + epsilon d I)^-1 with K the centered Gaussian kernel matrix [d, d], K_ij = exp(-(x_i - x_j)^2 / 2 sigma^2)
    (arXiv 2506.02867, after the HSIC bottleneck, arXiv 1908.01580). 0 for independent dimensions, up to d - 1.

    Raises:
        HsicError: these are not two finite vectors of one length.
    """
    a, b = _vector("x", x), _vector("y", y)
    if a.shape != b.shape:
        raise HsicError(f"x has {a.shape[0]} dimensions, y {b.shape[0]}; they need the same number")
    return float((_projection(a, sigma, epsilon) * _projection(b, sigma, epsilon)).sum())


def hsic_scores(
    states: ArrayLike | Tensor, gold: ArrayLike | Tensor, wrong_gold: ArrayLike | Tensor, *, seed: int
) -> HsicScores:
    """Score every state [n, d] against the state of the reference answer [d], with the three controls.

    Computed in float64 on the device of `states`, with one Cholesky factorization of [d, d] per position.

    Raises:
        HsicError: the shapes do not fit, or states are not finite.
    """
    x = torch.as_tensor(states).to(torch.float64)
    if x.ndim != 2:
        raise HsicError(f"states have shape {tuple(x.shape)}; [positions, dimensions] is needed")
    if not bool(torch.isfinite(x).all()):
        at = int(torch.nonzero(~torch.isfinite(x).all(dim=1))[0])
        raise HsicError(f"the hidden state at position {at} is not finite")
    d = x.shape[1]
    golds = [_vector(name, y).to(x.device) for name, y in (("gold", gold), ("wrong_gold", wrong_gold))]
    for name, y in zip(("gold", "wrong_gold"), golds, strict=True):
        if y.shape[0] != d:
            raise HsicError(f"{name} has {y.shape[0]} dimensions, the states {d}")
    rng = np.random.default_rng(seed)
    orders = [torch.as_tensor(rng.permutation(d), device=x.device) for _ in range(SHUFFLES)]
    right, wrong = (_projection(y, SIGMA, EPSILON) for y in golds)
    # R of shuffled dimensions is R with shuffled rows and columns, so no further factorization is needed
    shuffled = sum(right[order][:, order] for order in orders) / len(orders)
    against = torch.stack([right, wrong, torch.as_tensor(shuffled)]).flatten(1)
    scores = np.array([(against @ _projection(state, SIGMA, EPSILON).flatten()).cpu().numpy() for state in x])
    scores = scores.reshape(-1, 3)
    return HsicScores(scores[:, 0], scores[:, 1], scores[:, 2], x.norm(dim=1).cpu().numpy())


def peaks(scores: ArrayLike) -> NDArray[np.bool_]:
    """Mark the peaks in a sequence of scores: values above Q3 + 1.5 IQR (arXiv 2506.02867); [n]."""
    values = np.asarray(scores, dtype=np.float64)
    if not values.size:
        return np.zeros(0, dtype=np.bool_)
    low, high = np.quantile(values, [0.25, 0.75])
    found: NDArray[np.bool_] = values > high + 1.5 * (high - low)
    return found


def _vector(name: str, value: ArrayLike | Tensor | Sequence[float]) -> Tensor:
    vector = torch.as_tensor(value).to(torch.float64)
    if vector.ndim != 1 or vector.shape[0] < 2:
        raise HsicError(f"{name} has shape {tuple(vector.shape)}; a vector of at least two dimensions is needed")
    if not bool(torch.isfinite(vector).all()):
        raise HsicError(f"{name} is not finite")
    return vector


def _projection(x: Tensor, sigma: float, epsilon: float) -> Tensor:
    """Compute R = K (K + epsilon d I)^-1 = I - epsilon d (K + epsilon d I)^-1 of one vector [d]; [d, d], symmetric.

    The reference code centers K on one side only. The trace of a product of two R is the same, because I - 11'/d is a
    projection and can be moved around in the trace. Centering removes a constant, so K - 1 can replace K. Where
    activations are small compared with sigma, K is nearly 1 everywhere, and subtracting 1 later would leave only
    rounding.
    """
    d = x.shape[0]
    kernel = torch.expm1(-((x[:, None] - x[None, :]) ** 2) / (2 * sigma**2))
    mean = kernel.mean(dim=0)
    centred = kernel - mean[None, :] - mean[:, None] + mean.mean()
    ridge = epsilon * d
    centred.diagonal().add_(ridge)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(centred))
    projection = inverse.mul_(-ridge)
    projection.diagonal().add_(1.0)
    return projection
