"""What a pass and an optimiser need of adapters in training, whatever their kind.

Shape letters: G adapters, P weights of one, K chunks, R rank, M modules, I inputs, O outputs,
N tokens, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from cambium.models.adapter import Adapter


class Stack(Protocol):
    """G adapters of one kind as one matrix of weights [G P] and one of gradients [G P], fp32.

    `virtual` stands before every sequence of a pass; where it is not empty, the pass hands the
    gradient of its input embeddings to `take`.
    """

    weights: Tensor
    grad: Tensor

    @property
    def paths(self) -> tuple[str, ...]:
        """Returns the modules that some adapter of the stack changes."""
        ...

    @property
    def virtual(self) -> Sequence[int]:
        """Returns the virtual tokens that stand before a sequence."""
        ...

    def halves(self, path: str) -> tuple[Tensor, Tensor]:
        """Returns A [G R I] and the scaled B [G O R] of one of `paths`."""
        ...

    def joint_halves(self, paths: tuple[str, ...]) -> tuple[Tensor, Tensor] | None:
        """Returns A [G MR I] and B [G O MR] of modules as one; None if none is changed."""
        ...

    def add_grad(self, paths: tuple[str, ...], owners: Tensor | None, a: Tensor, b: Tensor) -> None:
        """Adds gradients of what `joint_halves` gave, of adapters `owners` [K]."""
        ...

    def lay(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        """Returns the embeddings [N D] of `tokens` [N] with the virtual tokens' own in place."""
        ...

    def take(self, grad: Tensor, tokens: Tensor) -> None:
        """Adds the gradient of what `lay` gave [N D]."""
        ...

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        ...

    def refresh(self) -> None:
        """Takes the weights as they now are into what passes compute with."""
        ...

    def compact(self, flat: Tensor, g: int) -> Tensor:
        """Returns row g of `flat` [G P] without padding, as it is kept."""
        ...

    def expand(self, own: Tensor, flat: Tensor, g: int) -> None:
        """Writes what `compact` returned into row g of `flat`."""
        ...

    def to_adapter(self, g: int) -> Adapter:
        """Returns a copy of adapter g as it now is."""
        ...
