"""One flat pass through the base: its tokens, and the adapters on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cambium.models.base import BaseModel
from cambium.models.chunked_head import HeadLoss
from cambium.models.packing import Pack
from cambium.models.stack import Stack


@dataclass(frozen=True, kw_only=True)
class FlatPass:
    """A pass: the stack that is trained or read, and the frozen parents below it, if any."""

    pack: Pack
    stack: Stack
    parents: Stack | None = None

    def stacks(self) -> list[tuple[Stack, Tensor | None]]:
        """Returns the stacks with each chunk's adapter, None where chunk k is of adapter k."""
        pack, stack = self.pack, self.stack
        whole = pack.in_order and len(pack.owners) == len(stack.weights)
        found: list[tuple[Stack, Tensor | None]] = [(stack, None if whole else pack.owners)]
        if self.parents is not None:
            found.append((self.parents, pack.parents))
        return found


class Passes(Protocol):
    """The base's network over flat passes, frozen."""

    def __init__(self, base: BaseModel, dtype: torch.dtype) -> None: ...

    def losses(self, within: FlatPass, loss: HeadLoss) -> Tensor:
        """Returns the losses [M] of the pass's target positions, in order."""
        ...

    def learn(self, within: FlatPass, loss: HeadLoss) -> Tensor:
        """Returns the losses [M]; adds gradients to the pass's stack."""
        ...
