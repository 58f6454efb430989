"""What the looks of a release line may cost: the chance that a harmful change gets through."""

from __future__ import annotations

from collections.abc import Iterable

from cambium.lifecycle.proposal import Proposal
from cambium.trust.policy import Policy


def spent(proposals: Iterable[Proposal], policy: Policy) -> float:
    """Returns the alpha spent under this policy, which is the release line.

    Each series of looks costs once what the most lenient gate's rule may err: by the union bound
    no more than this many harmful changes are to be expected among all that passed.
    """
    series = sum(p.restarts + bool(p.looks) for p in proposals if p.policy_digest == policy.digest)
    return series * series_cost(policy)


def series_cost(policy: Policy) -> float:
    """Returns what one proposal's looks cost, however many are taken."""
    return max((spec.rule_alpha for spec in policy.gates), default=0.0)


def find_overdraft(proposals: Iterable[Proposal], policy: Policy) -> str:
    """Returns why no further series of looks may begin, or nothing."""
    used, cost, alpha = spent(proposals, policy), series_cost(policy), policy.ledger.alpha
    if used + cost <= alpha + 1e-12:
        return ""
    return (f"the alpha ledger is spent: {used:.4f} of {alpha:g}, a look costs {cost:.4f}; "
            "the root can begin a new release line with a new policy")  # fmt: skip
