"""The alignment monitors of lessons; what a parent prefers is asked once and remembered."""

from __future__ import annotations

import threading

from cambium.evals.alignment_pairs import AlignmentMonitor, parent_preferences
from cambium.models.lora import Lora
from cambium.models.training_model import TrainingModel
from cambium.serve.rules import Rules

# Whose preferences are remembered, so that a new adapter's first step does not wait for them.
MAX_PARENTS = 256


class StepMonitors:
    """Makes a monitor for each adapter; safe for threads."""

    def __init__(self, model: TrainingModel, *, rules: Rules) -> None:
        self.known: dict[tuple[int, str | None], tuple[float, ...]] = {}
        self._model = model
        self._rules = rules
        self._asking = threading.Lock()

    def make(self, revision: int, domain: str | None, parent: tuple[Lora, ...]) -> AlignmentMonitor:
        """Returns the monitor of an adapter on top of a revision's adapter for its domain."""
        key = (revision, domain)
        with self._asking:
            before = self.known.get(key)
            if before is None:
                if len(self.known) >= MAX_PARENTS:
                    self.known.clear()
                before = self.known[key] = parent_preferences(self._model, parent)
        margin = self._rules.learning.monitor_margin_nats
        return AlignmentMonitor(self._model.base, before, margin=margin)
