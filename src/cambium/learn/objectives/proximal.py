"""A quadratic penalty as a step of its own, which contracts whatever its strength.

Adam would normalise a penalty's gradient, and explicit steps of a strong penalty diverge; the
proximal step of (1/2) I (w - w0)^2 at rate lr is w <- (w + lr I w0) / (1 + lr I).

Source: Parikh and Boyd (2014), section 6.1.1 (the proximal operator of a quadratic).
"""

from __future__ import annotations

from torch import Tensor


def pull_back(weights: Tensor, anchor: Tensor, importance: Tensor, lr: Tensor) -> Tensor:
    """Returns the weights after the penalty's step; all shape [G P], `lr` shape [G 1]."""
    force = lr * importance
    return (weights + force * anchor) / (1 + force)


def normalised(importance: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Returns each row with mean 1, so that a strength means the same everywhere; zeros stay.

    Args:
        importance: shape [G P].
        sizes: of how many weights the mean is, shape [G 1], of all if None; past them a row is
            zero.
    """
    mean = importance.mean(dim=1, keepdim=True)
    if sizes is not None:
        mean = importance.sum(dim=1, keepdim=True) / sizes
    return importance / mean.clamp_min(1e-30)
