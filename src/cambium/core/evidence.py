"""What gates measure, the bar they are held to, and the verdict: values, never tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum


class Outcome(StrEnum):
    """A verdict is one of these; an error never counts as a look and never as a pass."""

    PASS = "pass"
    FAIL = "fail"
    ERROR = "error"
    MISSING = "missing"


@dataclass(frozen=True, kw_only=True)
class GateSpec:
    """The bar, declared and signed before anything is measured.

    A look passes when the lower confidence bound of the effect (candidate against parent,
    larger is better) exceeds `threshold`: 0 asks for a gain, a negative number is a
    non-inferiority margin.

    Args:
        name: a key of `cambium.evals.gates.GATES`.
        metric: the name of what is measured, with its unit.
        passes_required: looks in a row, each on fresh items, that must pass.
        max_looks: looks a proposal may take at all, at most 5.
        min_items, max_items: how many fresh items one look must and may use.
        confidence: one-sided, in (0.5, 1).
        waivable: k approvers may let a proposal pass without it, under their signatures.
    """

    name: str
    metric: str
    threshold: float
    passes_required: int = 2
    max_looks: int = 5
    min_items: int = 3
    max_items: int = 64
    confidence: float = 0.95
    required: bool = True
    waivable: bool = False

    @property
    def rule_alpha(self) -> float:
        """Returns how likely a change as bad as the threshold gets through all looks, at most."""
        return rule_passes(1 - self.confidence, passes_required=self.passes_required,
                           max_looks=self.max_looks)  # fmt: skip

    def to_json(self) -> dict[str, object]:
        """Returns the spec as it stands in policy and evidence."""
        return dict(self.__dict__)


def rule_passes(
    look_passes: float, *, passes_required: int, max_looks: int, look_ends: float = 0.0
) -> float:
    """Returns the probability of N passes in a row within M looks, unless one ends it, exactly."""
    runs, fails = [1.0] + [0.0] * passes_required, 1 - look_passes - look_ends
    for _ in range(max_looks):  # `runs` is by length of the present run; the last is done
        done = runs[-1] + runs[-2] * look_passes
        runs = [sum(runs[:-1]) * fails, *(r * look_passes for r in runs[:-2]), done]
    return runs[-1]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One look's result for one gate.

    Args:
        baseline, candidate: mean of the metric for parent and candidate.
        effect: mean paired difference, signed so that larger is better for the candidate.
        ci: two-sided interval of the effect; its lower end is the one-sided bound.
        mde: the smallest true effect this look would have seen with 80 % power.
        num_items: fresh items measured.
        items_digest: digest of the sorted item ids, so that a reused item shows.
        subject: digests of candidate and parent, evaluator and data set, and the seed.
        notes: what a reader should know (largest movements, violations found).
    """

    gate: str
    metric: str
    baseline: float
    candidate: float
    effect: float
    ci: tuple[float, float]
    mde: float
    num_items: int
    items_digest: str
    subject: dict[str, str | int] = field(default_factory=dict[str, str | int])
    notes: tuple[str, ...] = ()

    def is_finite(self) -> bool:
        """Returns whether every number can be judged."""
        numbers = (self.baseline, self.candidate, self.effect, *self.ci)
        return all(math.isfinite(n) for n in numbers)

    def to_json(self) -> dict[str, object]:
        """Returns the measurement as it stands in evidence."""
        record: dict[str, object] = dict(self.__dict__)
        record["ci"] = list(self.ci)
        record["notes"] = list(self.notes)
        record["mde"] = self.mde if math.isfinite(self.mde) else None
        return record


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a gate says of one look; `decisive` when harm itself was shown, not only doubt."""

    gate: str
    outcome: Outcome
    why: str
    decisive: bool = False
    measurement: Measurement | None = None

    def to_json(self) -> dict[str, object]:
        """Returns the verdict as it stands in evidence."""
        measured = self.measurement.to_json() if self.measurement else None
        return {**self.__dict__, "outcome": str(self.outcome), "measurement": measured}
