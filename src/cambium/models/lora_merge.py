"""Merge arithmetic on the update itself: many adapters as one of a smaller rank, and what is lost.

Adding factors would add cross terms B_i A_j that nobody trained, and averaging one update written
in two gauges destroys it. So the updates are laid side by side, which is exact, and only then cut:
QR of the stacked factors, SVD of the small core, the largest singular values kept.
Shape letters: R the sum of ranks, r the rank that is kept, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cambium.core.errors import DataError
from cambium.models.lora import MAX_RANK, Lora, LoraConfig, concatenated


@dataclass(frozen=True, kw_only=True)
class Merged:
    """One adapter of rank r, scale 1.

    Args:
        tail_energy: by module, the share of the squared Frobenius norm of the whole update that
            was cut off, 0 to 1.
    """

    lora: Lora
    tail_energy: Mapping[str, float]

    @property
    def relative_error(self) -> float:
        """Returns the largest relative error of a module's update, in Frobenius norm."""
        return max((share**0.5 for share in self.tail_energy.values()), default=0.0)


def merged(adapters: Sequence[Lora], *, rank: int, weights: Sequence[float] = ()) -> Merged:
    """Returns the best adapter of `rank` for the weighted sum of all updates, by module.

    The same bytes whatever gauge the adapters are written in, up to rounding; the order of
    `adapters` does not matter either. Where their ranks add up to `rank` or less, nothing is lost.

    Args:
        weights: factors on the updates; all 1 if empty.

    Raises:
        DataError: no adapters, a rank outside 1 to 64, or other than one weight for each.

    Source: Eckart and Young (1936); the QR step is Golub and Van Loan (2013), section 5.4.
    """
    if not adapters or not 1 <= rank <= MAX_RANK or (weights and len(weights) != len(adapters)):
        raise DataError(
            f"{len(adapters)} adapters with {len(weights)} weights cannot become rank {rank}",
            mend=f"give adapters, a weight for each or none, and a rank of 1 to {MAX_RANK}",
        )
    scaled = [
        Lora(config=x.config, a=x.a, b={p: w * b for p, b in x.b.items()})
        for x, w in zip(adapters, weights or [1.0] * len(adapters), strict=True)
    ]
    whole = concatenated(scaled)
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    lost: dict[str, float] = {}
    for path in whole.a:
        a[path], b[path], lost[path] = _cut(whole.a[path], whole.b[path], rank)
    targets = whole.config.target_modules
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)
    return Merged(lora=Lora(config=config, a=a, b=b), tail_energy=lost)


def _cut(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Returns factors of the best rank-r approximation of B A, and the share of energy lost."""
    left, over = torch.linalg.qr(b.double())
    right, under = torch.linalg.qr(a.double().T)
    u, sizes, v = torch.linalg.svd(over @ under.T, full_matrices=False)
    kept = min(rank, len(sizes))
    root = sizes[:kept].sqrt()
    new_b = torch.zeros(b.shape[0], rank, dtype=torch.float64)
    new_a = torch.zeros(rank, a.shape[1], dtype=torch.float64)
    new_b[:, :kept] = left @ u[:, :kept] * root
    new_a[:kept] = root[:, None] * (v[:kept] @ right.T)
    # One gauge for one update: a singular pair's sign is free, so the largest entry is positive.
    for i in range(kept):
        if new_a[i, new_a[i].abs().argmax()] < 0:
            new_a[i], new_b[:, i] = -new_a[i], -new_b[:, i]
    energy = sizes.square()
    total = float(energy.sum())
    return new_a.float(), new_b.float(), float(energy[kept:].sum()) / total if total else 0.0
