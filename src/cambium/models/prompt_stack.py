"""A soft prompt in training: its weights and gradients as an optimiser takes them.

Shape letters: P virtual tokens, D d_model, N tokens of a pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cambium.models.adapter import virtual_tokens
from cambium.models.soft_prompt import SoftPrompt, with_prompts


class PromptStack:
    """One soft prompt, its weights as a matrix [1 P*D]; no module of the base is changed.

    One only: a pass is filled by tokens of one adapter, since prompts are trained by consolidation
    alone, which has one candidate.
    """

    paths: tuple[str, ...] = ()

    def __init__(self, prompt: SoftPrompt) -> None:
        self._shape = prompt.prompt.shape
        self.virtual = virtual_tokens([prompt])
        self.weights = prompt.prompt.flatten()[None].clone()
        self.grad = torch.zeros_like(self.weights)

    def halves(self, path: str) -> tuple[Tensor, Tensor]:
        """Raises KeyError: there are no `paths`."""
        raise KeyError(path)

    def joint_halves(self, paths: tuple[str, ...]) -> None:
        """Returns None: no module is changed."""

    def add_grad(self, paths: tuple[str, ...], owners: Tensor | None, a: Tensor, b: Tensor) -> None:
        """Raises KeyError: there are no `paths`."""
        raise KeyError(paths)

    def lay(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        """Returns the embeddings [N D] of `tokens` [N] with the virtual tokens' own in place."""
        return with_prompts(embedded[None], tokens[None], self.weights.view(self._shape))[0]

    def take(self, grad: Tensor, tokens: Tensor) -> None:
        """Adds the gradient of what `lay` gave [N D]."""
        places = (tokens < 0).nonzero()[:, 0]
        self.grad.view(self._shape).index_add_(0, -1 - tokens[places], grad[places].float())

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        self.grad.zero_()

    def refresh(self) -> None:
        """Does nothing: passes compute with the weights themselves."""

    def compact(self, flat: Tensor, g: int) -> Tensor:
        """Returns row g of `flat` [1 P*D]: there is no padding."""
        return flat[g].clone()

    def expand(self, own: Tensor, flat: Tensor, g: int) -> None:
        """Writes what `compact` returned into row g of `flat`."""
        flat[g] = own

    def to_adapter(self, g: int) -> SoftPrompt:
        """Returns a copy of the prompt as it now is."""
        return SoftPrompt(prompt=self.weights[g].view(self._shape).clone())
