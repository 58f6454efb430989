"""Synaptic intelligence: importance from the path that learning took, at no extra pass.

Every step adds -g * (change of the weight), g being the gradient of the task's loss alone, before
clipping and before any penalty. At the end of a task that path, negative parts left out, is divided
by the squared way from the task's start plus xi. AdamW's steps at small rates give squared ways of
1e-8 and below, so xi is a share of their own mean; a fixed 0.1 would make all importance vanish.

Source: Zenke et al. (2017), eqs. 3 to 5.
"""

from __future__ import annotations

from torch import Tensor


def along_path(path: Tensor, grad: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Returns the path integral after one more step; all of one shape."""
    return path - grad * (after - before)


def importance(path: Tensor, way: Tensor, *, kappa: float = 1e-3) -> Tensor:
    """Returns what one task adds to the importance; `way` is end minus start of its weights."""
    squared = way.square()
    xi = kappa * squared.mean()
    return path.clamp_min(0) / (squared + xi).clamp_min(1e-30)
