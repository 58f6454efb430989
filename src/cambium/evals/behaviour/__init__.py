"""The behavioural diff: what a model says now that it did not say before, found without labels."""

from __future__ import annotations

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
    "ClusterChange",
    "PromptBank",
    "behaviour_diff",
    "prompt_bank",
]
