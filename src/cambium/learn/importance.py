"""What mattered to an adapter's weights so far, and the pull back to where they then were.

EWC's and SI's state of all adapters of a stack. It is part of an adapter's optimiser state and
travels with it, so that learning that goes on tomorrow protects what was learned today. Both
importances are brought to mean 1 before their strengths apply, since they measure the same thing
on different scales; a strength is per unit of that mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cambium.learn.objectives import ewc, si
from cambium.learn.objectives.proximal import normalised, pull_back
from cambium.models.adapter_stack import AdapterStack


class Importances:
    """Rows [G P] beside a stack's weights.

    Args:
        ewc_strengths, si_strengths: of each adapter, shape [G]; 0 leaves it free.
    """

    def __init__(
        self, stack: AdapterStack, *, ewc_strengths: Sequence[float], si_strengths: Sequence[float]
    ) -> None:
        self._stack = stack
        self._ewc = torch.tensor(ewc_strengths)[:, None]
        self._si = torch.tensor(si_strengths)[:, None]
        self.path, self.si, self.fisher = (torch.zeros_like(stack.weights) for _ in range(3))
        self.anchor = stack.weights.clone()

    def step(self, grad: Tensor, before: Tensor, lr: Tensor, active: Tensor) -> None:
        """Takes up a step that was made and pulls the weights back.

        Args:
            grad: of the task's loss alone, unclipped; `before` the weights before the step.
            lr: shape [G]; `active` [G] marks the adapters that made the step.
        """
        stack, rows = self._stack, active.nonzero()[:, 0]
        after = stack.weights[rows]
        self.path[rows] = si.along_path(self.path[rows], grad[rows], before[rows], after)
        pull = self._ewc[rows] * normalised(self.fisher[rows])
        pull += self._si[rows] * normalised(self.si[rows])
        rates = lr[rows, None].float()
        stack.weights[rows] = pull_back(after, self.anchor[rows], pull, rates)
        stack.refresh()

    def end_task(self, g: int, fisher: Tensor | None, *, decay: float) -> None:
        """Books adapter g's path as importance, adds its Fisher diagonal, and moves the anchor.

        Args:
            fisher: as `ewc.fisher` returns it, shape [own P], or None.
        """
        now = self._stack.weights[g]
        self.si[g] += si.importance(self.path[g], now - self.anchor[g])
        self.path[g].zero_()
        if fisher is not None:
            row = torch.zeros_like(self.fisher)
            self._stack.expand(fisher, row, g)
            self.fisher[g] = ewc.online_fisher(self.fisher[g], row[g], decay=decay)
        self.anchor[g] = now

    def save(self, g: int) -> dict[str, Tensor]:
        """Returns adapter g's rows, by the names under which `load` finds them."""
        flats = {"path": self.path, "si": self.si, "fisher": self.fisher, "anchor": self.anchor}
        return {f"importance.{k}": self._stack.compact(v, g) for k, v in flats.items()}

    def load(self, g: int, state: Mapping[str, Tensor]) -> None:
        """Takes up what `save` returned, if the state holds it.

        Raises:
            DataError: it is of another adapter.
        """
        for name in ("path", "si", "fisher", "anchor"):
            found = state.get(f"importance.{name}")
            if found is not None:
                self._stack.expand(found, getattr(self, name), g)
