"""The objectives by the name under which a call to learn asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cambium.learn.examples import Window
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
# Without labels: only ever into an ephemeral adapter, inside a trust region.
UNLABELLED = frozenset({"entropy", "prompt", "masked", "passage"})
