"""Many tests at once: q-values for reading, e-BH for blocking on dependent evidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def benjamini_hochberg(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns q-values in the order given: rejecting q <= a keeps the false share below a.

    Source: Benjamini and Hochberg (1995); holds under positive dependence, (2001).
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[::-1]
    scaled = p[order] * len(p) / np.arange(len(p), 0, -1)
    q = np.empty_like(p)
    q[order] = np.minimum.accumulate(np.minimum(scaled, 1.0))
    return q


def e_bh(e_values: Sequence[float] | np.ndarray, *, alpha: float) -> np.ndarray:
    """Returns which hypotheses are rejected, [n] bool, whatever their dependence.

    The k largest are rejected, k being the largest with the k-th of them at least n / (alpha k).

    What is no number is no evidence.

    Source: Wang and Ramdas (2022).
    """
    e = np.nan_to_num(np.asarray(e_values, dtype=np.float64), nan=0.0)
    ordered = np.sort(e)[::-1]
    ranks = np.arange(1, len(e) + 1)
    held = np.nonzero(ordered * ranks * alpha >= len(e))[0]
    if not len(held):
        return np.zeros(len(e), dtype=bool)
    return e >= ordered[held[-1]]
