"""The sign-flip test: exact for paired arms, whatever the outcomes' distribution.

Shape letters: P prompts, K columns (clusters), F flips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cambium.evals.errors import GateBroken
from cambium.evals.statistics.multiplicity import benjamini_hochberg

_CHUNK = 2048


@dataclass(frozen=True, kw_only=True)
class SignFlips:
    """What the flips said of each column.

    Args:
        statistic: |sum| over root of the sum of squares, [K]; 0 where nothing differs.
        p_values: two-sided, [K]; `q_values` for reading them together (5 % false discoveries).
        family_wise: p-values of the largest statistic of all, [K], for blocking.
    """

    statistic: np.ndarray
    p_values: np.ndarray
    q_values: np.ndarray
    family_wise: np.ndarray
    num_flips: int


def sign_flip_test(differences: np.ndarray, *, num_flips: int, seed: int) -> SignFlips:
    """Tests each column of paired differences [P K] against exchangeable arms.

    If the arms are alike, swapping them for any prompt changes nothing: whole rows change sign
    together, so columns keep their dependence. The observed signs count as one flip, hence no
    p-value is below 1 / (num_flips + 1); take at least 5 K / q flips.

    Raises:
        GateBroken: a difference is not finite.
    Source: Fisher (1935); max-T, Westfall and Young (1993); p-values of random flips, Phipson
    and Smyth (2010).
    """
    d = _finite(differences)
    norms = np.sqrt((d.astype(np.float64) ** 2).sum(axis=0))
    scale = np.where(norms > 0, 1 / np.maximum(norms, 1e-12), 0.0)
    observed = np.abs(d.sum(axis=0, dtype=np.float64)) * scale
    generator = np.random.default_rng(seed)
    above = np.zeros(d.shape[1])
    highest_above = np.zeros(d.shape[1])
    # Sums in float32 differ in their last bits with the order; ties must count as ties.
    bar = observed - 1e-5
    for at in range(0, num_flips, _CHUNK):
        size = min(_CHUNK, num_flips - at)
        signs = generator.integers(0, 2, size=(size, len(d)), dtype=np.int8)
        flipped = np.abs((2 * signs.astype(np.float32) - 1) @ d) * scale
        above += (flipped >= bar).sum(axis=0)
        highest_above += (flipped.max(axis=1, initial=0.0)[:, None] >= bar).sum(axis=0)
    p_values = (1 + above) / (1 + num_flips)
    return SignFlips(
        statistic=observed,
        p_values=p_values,
        q_values=benjamini_hochberg(p_values),
        family_wise=(1 + highest_above) / (1 + num_flips),
        num_flips=num_flips,
    )


def sign_flip_omnibus(kernel: np.ndarray, *, num_flips: int, seed: int) -> float:
    """Returns the p-value that paired arms differ at all, from a kernel of differences [P P].

    `kernel[p, q]` is k(a_p, a_q) + k(b_p, b_q) - k(a_p, b_q) - k(b_p, a_q); swapping the arms of
    one prompt changes the sign of its row and column. The diagonal, which no swap changes, is
    left out.

    Raises:
        GateBroken: the kernel is not finite.
    Source: Gretton et al. (2012), the quadratic statistic, under sign flips of pairs.
    """
    h = _finite(kernel).copy()
    np.fill_diagonal(h, 0.0)
    observed = float(h.sum(dtype=np.float64))
    generator = np.random.default_rng(seed)
    above = 0
    for at in range(0, num_flips, _CHUNK):
        size = min(_CHUNK, num_flips - at)
        signs = 2 * generator.integers(0, 2, size=(size, len(h)), dtype=np.int8) - 1
        signs = signs.astype(np.float32)
        above += int((((signs @ h) * signs).sum(axis=1) >= observed - 1e-3).sum())
    return (1 + above) / (1 + num_flips)


def _finite(values: np.ndarray) -> np.ndarray:
    """Returns the numbers as float32; a NaN would compare as the strongest evidence there is."""
    found = np.asarray(values, dtype=np.float32)
    if not np.isfinite(found).all():
        raise GateBroken("a difference is not finite", mend="look at the measurement it came from")
    return found
