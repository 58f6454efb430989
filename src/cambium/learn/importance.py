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

# What the names of its rows begin with, in an optimiser's state.
IMPORTANCE = "importance."


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
        # Past its own weights a row is padded to the widest's: no mean may depend on neighbours.
        self._sizes = torch.tensor([[float(x.num_parameters())] for x in stack.adapters])
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
        pull = self._ewc[rows] * normalised(self.fisher[rows], self._sizes[rows])
        pull += self._si[rows] * normalised(self.si[rows], self._sizes[rows])
        rates = lr[rows, None].float()
        stack.weights[rows] = pull_back(after, self.anchor[rows], pull, rates)
        stack.refresh()

    def end_task(self, g: int, fisher: Tensor | None, *, decay: float) -> None:
        """Books adapter g's path as importance, adds its Fisher diagonal, and moves the anchor.

        Args:
            fisher: as `ewc.fisher` returns it, shape [own P], or None.
        """
        stack = self._stack
        path, now, anchor, old = (
            stack.compact(flat, g) for flat in (self.path, stack.weights, self.anchor, self.si)
        )
        stack.expand(old + si.importance(path, now - anchor), self.si, g)
        self.path[g].zero_()
        if fisher is not None:
            before = stack.compact(self.fisher, g)
            stack.expand(ewc.online_fisher(before, fisher, decay=decay), self.fisher, g)
        self.anchor[g] = stack.weights[g]

    def rows(self, g: int) -> tuple[Tensor, ...]:
        """Returns all that is kept of adapter g, as views."""
        return self.path[g], self.si[g], self.fisher[g], self.anchor[g]

    def save(self, g: int) -> dict[str, Tensor]:
        """Returns adapter g's rows, by the names under which `load` finds them."""
        flats = {"path": self.path, "si": self.si, "fisher": self.fisher, "anchor": self.anchor}
        return {f"{IMPORTANCE}{k}": self._stack.compact(v, g) for k, v in flats.items()}

    def load(self, g: int, state: Mapping[str, Tensor]) -> None:
        """Takes up what `save` returned, if the state holds it.

        Raises:
            DataError: it is of another adapter.
        """
        for name in ("path", "si", "fisher", "anchor"):
            found = state.get(f"{IMPORTANCE}{name}")
            if found is not None:
                self._stack.expand(found, getattr(self, name), g)
