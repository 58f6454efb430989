"""The behavioural diff: what a model says now that it did not say before, found without labels."""

from __future__ import annotations

from cambium.evals.behaviour.choices import (
    ChoiceDiff,
    ChoiceItem,
    bank_digest,
    choice_bank,
    choice_diff,
    choice_shares,
)
from cambium.evals.behaviour.diff import (
    BehaviourConfig,
    BehaviourDiff,
    ClusterChange,
    behaviour_diff,
)
from cambium.evals.behaviour.prompts import PromptBank, prompt_bank

__all__ = [
    "BehaviourConfig",
    "BehaviourDiff",
    "ChoiceDiff",
    "ChoiceItem",
    "ClusterChange",
    "PromptBank",
    "bank_digest",
    "behaviour_diff",
    "choice_bank",
    "choice_diff",
    "choice_shares",
    "prompt_bank",
]
