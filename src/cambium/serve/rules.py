"""The policy in force: read anew at every use, replaced as a whole."""

from __future__ import annotations

from cambium.serve.bounds import BARE_BUDGET
from cambium.serve.errors import PolicyMissing
from cambium.trust.policy import LearningBudget, Policy, TrafficBudget


class Rules:
    """What holds now; a state without a signed policy learns within the default bounds."""

    def __init__(self, policy: Policy | None) -> None:
        self.policy = policy

    @property
    def learning(self) -> LearningBudget:
        """Returns the bounds of learning."""
        return self.policy.learning if self.policy else BARE_BUDGET

    @property
    def traffic(self) -> TrafficBudget | None:
        """Returns what requests may teach; None without a signed policy."""
        return self.policy.traffic if self.policy else None

    @property
    def left_to_the_server(self) -> list[str]:
        """Returns the roles that the policy in force names nobody for, so that its key has them."""
        roles = ("evaluators", "attesters")
        return [name for name in roles if self.policy and getattr(self.policy, name) is None]

    def need(self) -> Policy:
        """Returns the signed policy.

        Raises:
            PolicyMissing: this state has none, so nothing can be held to a bar.
        """
        if self.policy is None:
            raise PolicyMissing(
                "this state has no signed policy, so nothing can be proposed, merged or revived",
                mend="stop the server and run `cambium init --state DIR`",
            )
        return self.policy
