"""The objectives by the name under which a call to learn asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cambium.learn.examples import Window
from cambium.learn.objectives import masked, passage
from cambium.learn.objectives.entropy import Entropy
from cambium.learn.objectives.masked import MaskedSpans
from cambium.learn.objectives.objective import Objective, ObjectiveConfig
from cambium.learn.objectives.passage import NextPassage
from cambium.learn.objectives.preference import Preference
from cambium.learn.objectives.prompt import PromptLikelihood
from cambium.learn.objectives.task import Task

OBJECTIVES: Mapping[str, Callable[[Sequence[Sequence[Window]], ObjectiveConfig], Objective]] = {
    "task": Task,
    "entropy": Entropy,
    "prompt": PromptLikelihood,
    "masked": MaskedSpans,
    "passage": NextPassage,
    "preference": Preference,
}
# Without labels: only ever into an ephemeral adapter, inside a trust region of each call.
UNLABELLED = frozenset({"entropy", "prompt", "masked", "passage"})
# Tokens that a window needs, where the loss asks for more than one to predict.
SHORTEST = {"masked": masked.MIN_TOKENS, "passage": passage.MIN_TOKENS}
# AdamW's rate where a call names none: with labels the one that the learning-rate recipe chose;
# without, the highest of a few at which eight steps on one text stayed within the trust region.
DEFAULT_RATES = {
    **dict.fromkeys(OBJECTIVES, 2e-3),
    **dict.fromkeys(UNLABELLED, 1e-3),
    "entropy": 5e-4,
}
