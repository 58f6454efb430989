"""What moved where, between any two models of one shape: module by module and layer by layer.

On one base nothing is formed: the update is the adapters' factors side by side, and its singular
values are those of the small core between two QRs. Two checkpoints are subtracted as they stand.
Shape letters: R the sum of ranks, I inputs, O outputs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import svds
from torch import Tensor

from cambium.core.errors import DataError
from cambium.models.adapter import Adapter
from cambium.models.base import BaseModel
from cambium.models.lora import Lora, concatenated
from cambium.models.prompt_diff import prompt_changes

# What a default adapter could hold of a change; the rest is its tail.
TAIL_RANK = 8
_LAYER = re.compile(r".*?\.\d+(?=\.)")


@dataclass(frozen=True, kw_only=True)
class WeightChange:
    """How one module's weight W moved.

    Args:
        delta_norm, spectral: Frobenius norm and largest singular value of the change; `relative`
            and `relative_spectral` the same, divided by W's own.
        effective_rank: exp of the entropy of the singular values' shares; 0 if nothing moved.
        tail_energy: share of the squared norm outside the `TAIL_RANK` largest singular values.

    Source: Roy and Vetterli (2007) for the effective rank.
    """

    module: str
    delta_norm: float
    relative: float
    spectral: float
    relative_spectral: float
    effective_rank: float
    tail_energy: float


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A model as weights: a base and the adapters on it, summed."""

    base: BaseModel
    adapters: tuple[Adapter, ...] = ()


def weight_changes(before: Weights, after: Weights) -> list[WeightChange]:
    """Returns how each module that either model touches moved, by path; unmoved ones too.

    Raises:
        DataError: the models have other modules, or modules of other sizes.
    """
    if before.base.digest == after.base.digest:
        return _of_adapters(before, after)
    if before.base.sites != after.base.sites:
        raise DataError("the two models have modules of other names or sizes",
                        mend="compare models of one architecture")  # fmt: skip
    norms = _norms(before.base)
    old, new = _updates(before), _updates(after)
    changes = []
    for path, site in sorted(before.base.sites.items()):
        whole = [m.base.model.get_parameter(f"{path}.weight").double() for m in (before, after)]
        was, now = (w.T if site.transposed else w for w in whole)
        delta = now - was + new.get(path, 0.0) - old.get(path, 0.0)
        changes.append(_change(path, torch.linalg.svdvals(delta), norms[path]))
    return changes


def weights_record(before: Weights, after: Weights) -> dict[str, Any]:
    """Returns the changes as they stand in answers: by module, by layer, by virtual token.

    Raises:
        DataError: as `weight_changes`.
    """
    changes = weight_changes(before, after)
    return {
        "available": True,
        "tail_rank": TAIL_RANK,
        "modules": [asdict(change) for change in changes],
        "layers": _layers(changes, _norms(before.base)),
        "prompt": [
            asdict(change) for change in prompt_changes(after.base, before.adapters, after.adapters)
        ],
    }


def weights_by_domain(
    base: BaseModel,
    before: Mapping[str, tuple[Adapter, ...]],
    after: Mapping[str, tuple[Adapter, ...]],
) -> list[dict[str, Any]]:
    """Returns a record for each domain that either model has adapters for, on one base.

    Args:
        before, after: adapters by domain, and under "" those that act on everything else.
    """
    parts = []
    for domain in sorted(before.keys() | after.keys()):
        old, new = before.get(domain, before[""]), after.get(domain, after[""])
        if old or new:
            pair = Weights(base=base, adapters=old), Weights(base=base, adapters=new)
            parts.append({"domain": domain or None, **weights_record(*pair)})
    return parts


def _of_adapters(before: Weights, after: Weights) -> list[WeightChange]:
    away = [replace(x, b={p: -half for p, half in x.b.items()}) for x in _loras(before)]
    parts = [*_loras(after), *away]
    if not parts:
        return []
    whole = concatenated(parts)
    norms = _norms(before.base)
    return [_change(path, _sizes(whole.a[path], whole.b[path]), norms[path]) for path in whole.a]


def _loras(model: Weights) -> list[Lora]:
    """Returns the adapters that change modules; a soft prompt changes none."""
    return [one for one in model.adapters if isinstance(one, Lora)]


def _sizes(a: Tensor, b: Tensor) -> Tensor:
    """Returns the singular values of B A, from A [R I] and B [O R]."""
    over, under = (torch.linalg.qr(half, mode="r")[1] for half in (b.double(), a.double().T))
    return torch.linalg.svdvals(over @ under.T)


def _updates(model: Weights) -> dict[str, Tensor]:
    """Returns each module's whole update [O I]."""
    if not _loras(model):
        return {}
    whole = concatenated(_loras(model))
    return {path: whole.b[path].double() @ a.double() for path, a in whole.a.items()}


def _change(path: str, sizes: Tensor, norms: tuple[float, float]) -> WeightChange:
    energy = sizes.square()
    total, spectral = float(energy.sum()), float(sizes.max())
    shares = sizes[sizes > 0] / sizes.sum()
    rank = math.exp(-float((shares * shares.log()).sum())) if total else 0.0
    return WeightChange(
        module=path,
        delta_norm=math.sqrt(total),
        relative=math.sqrt(total) / norms[0],
        spectral=spectral,
        relative_spectral=spectral / norms[1],
        effective_rank=rank,
        tail_energy=float(energy.sort(descending=True)[0][TAIL_RANK:].sum()) / total
        if total
        else 0.0,
    )


@lru_cache(maxsize=2)
def _norms(base: BaseModel) -> dict[str, tuple[float, float]]:
    """Returns by module the Frobenius norm and the largest singular value of the base's weight."""
    found = {}
    for path in base.sites:
        weight = base.model.get_parameter(f"{path}.weight").detach().double().numpy()
        start = np.ones(min(weight.shape))
        largest: Any = svds(weight, k=1, v0=start, return_singular_vectors=False)
        found[path] = (float(np.linalg.norm(weight)), float(largest[0]))
    return found


def _layers(
    changes: Sequence[WeightChange], norms: dict[str, tuple[float, float]]
) -> list[dict[str, Any]]:
    """Returns by layer the norm of all its changes, and that divided by its weights' own."""
    totals: dict[str, list[float]] = {}
    for change in changes:
        found = _LAYER.match(change.module)
        own = totals.setdefault(found[0] if found else change.module, [0.0, 0.0])
        own[0] += change.delta_norm**2
        own[1] += norms[change.module][0] ** 2
    return [
        {"layer": layer, "delta_norm": math.sqrt(moved), "relative": math.sqrt(moved / weight)}
        for layer, (moved, weight) in totals.items()
    ]
