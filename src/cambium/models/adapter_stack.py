"""Many adapters side by side: one matrix of weights, one of gradients, one optimiser step.

Row g holds all weights of adapter g, so that clipping, learning rates and step counts per adapter
are a column vector each, and adapters come and go without touching the model. Smaller ranks and
missing modules are zeros, which stay zero under every step.
Shape letters: G adapters, P weights of one, R rank of the stack, I inputs, O outputs of a module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cambium.core.errors import DataError
from cambium.models.lora import LinearSite, Lora

RANKS = (4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where one module's A and B lie in a row."""

    start: int
    d_in: int
    d_out: int


class AdapterStack:
    """The weights of G adapters, fp32, and what passes compute with.

    Args:
        sites: the base's modules by path.
        dtype: of the copies that passes compute with.
        rank, paths: at least this rank and these modules, so that a recorded shape comes back.
    """

    def __init__(
        self,
        adapters: Sequence[Lora],
        sites: Mapping[str, LinearSite],
        *,
        dtype: torch.dtype,
        rank: int = 1,
        paths: Sequence[str] = (),
    ) -> None:
        self.adapters = list(adapters)
        self.rank = stack_rank(max(rank, *(lora.config.r for lora in adapters)))
        self._places: dict[str, _Place] = {}
        paths = sorted({*paths, *(path for lora in adapters for path in lora.a)})
        size = 0
        for path in paths:
            site = sites[path]
            self._places[path] = _Place(start=size, d_in=site.d_in, d_out=site.d_out)
            size += self.rank * (site.d_in + site.d_out)
        self.weights = torch.zeros(len(adapters), size)
        self.grad = torch.zeros(0)
        self._scaling = torch.tensor([[[lora.config.scaling]] for lora in adapters])
        for g, lora in enumerate(adapters):
            for path, a in lora.a.items():
                self._a(self.weights, path)[g, : lora.config.r] = a
                self._b(self.weights, path)[g, :, : lora.config.r] = lora.b[path]
        self._dtype = dtype
        self._halves: dict[str, tuple[Tensor, Tensor]] = {}
        self.refresh()

    @property
    def paths(self) -> tuple[str, ...]:
        """Returns the modules that some adapter of the stack changes."""
        return tuple(self._places)

    def refresh(self) -> None:
        """Takes the weights as they now are into the copies that passes compute with."""
        self._halves = {
            path: (
                self._a(self.weights, path).to(self._dtype),
                (self._b(self.weights, path) * self._scaling).to(self._dtype),
            )
            for path in self._places
        }

    def halves(self, path: str) -> tuple[Tensor, Tensor]:
        """Returns A [G R I] and the scaled B [G O R] of a module, in the passes' dtype."""
        return self._halves[path]

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        if self.grad.shape != self.weights.shape:
            self.grad = torch.zeros_like(self.weights)
        else:
            self.grad.zero_()

    def add_grad(self, path: str, owners: Tensor | None, a: Tensor, b: Tensor) -> None:
        """Adds gradients by the computed halves: a [K R I], b [K O R], of adapters `owners` [K].

        Without owners, chunk k is of adapter k.
        """
        to_a, to_b = self._a(self.grad, path), self._b(self.grad, path)
        if owners is None:
            to_a += a
            to_b += b * self._scaling
        else:
            to_a.index_add_(0, owners, a.float())
            to_b.index_add_(0, owners, b.float() * self._scaling[owners])

    def forget(self, g: int) -> None:
        """Makes adapter g change nothing: its B becomes zero, its A stays."""
        for path in self._places:
            self._b(self.weights, path)[g] = 0
        self.refresh()

    def to_lora(self, g: int) -> Lora:
        """Returns a copy of adapter g as it now is."""
        config, paths = self.adapters[g].config, self.adapters[g].a
        return Lora(
            config=config,
            a={p: self._a(self.weights, p)[g, : config.r].clone() for p in paths},
            b={p: self._b(self.weights, p)[g, :, : config.r].clone() for p in paths},
        )

    def compact(self, flat: Tensor, g: int) -> Tensor:
        """Returns row g of `flat` [G P] without the padding of its rank and modules, [own P]."""
        return torch.cat([part.flatten() for part in self._own_parts(flat, g)])

    def expand(self, own: Tensor, flat: Tensor, g: int) -> None:
        """Writes what `compact` returned into row g of `flat`.

        Raises:
            DataError: it is of another adapter.
        """
        parts = self._own_parts(flat, g)
        if own.shape != (sum(part.numel() for part in parts),):
            raise DataError("the optimiser state is of another adapter", mend="learn without it")
        for part, values in zip(parts, own.split([p.numel() for p in parts]), strict=True):
            part.copy_(values.view(part.shape))

    def _own_parts(self, flat: Tensor, g: int) -> list[Tensor]:
        lora = self.adapters[g]
        parts = []
        for path in sorted(lora.a):
            parts.append(self._a(flat, path)[g, : lora.config.r])
            parts.append(self._b(flat, path)[g, :, : lora.config.r])
        return parts

    def _a(self, flat: Tensor, path: str) -> Tensor:
        place = self._places[path]
        part = flat[:, place.start : place.start + self.rank * place.d_in]
        return part.unflatten(1, (self.rank, place.d_in))

    def _b(self, flat: Tensor, path: str) -> Tensor:
        place = self._places[path]
        start = place.start + self.rank * place.d_in
        part = flat[:, start : start + self.rank * place.d_out]
        return part.unflatten(1, (place.d_out, self.rank))


def stack_rank(rank: int) -> int:
    """Returns the rank that a stack pads adapters of up to `rank` to."""
    return next(r for r in RANKS if r >= rank)


class StackAdamW:
    """AdamW over a stack: each adapter its own learning rate, step count and clipping.

    An adapter's update is the one that `torch.optim.AdamW` without weight decay gives it alone.

    Args:
        lr: shape [G]; `max_grad_norm` likewise: gradients are clipped to this norm.

    Source: Loshchilov and Hutter (2019), algorithm 2.
    """

    def __init__(
        self,
        stack: AdapterStack,
        *,
        lr: Tensor,
        max_grad_norm: Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.stack = stack
        self.lr = lr
        self.max_grad_norm = max_grad_norm
        self.betas = betas
        self.eps = eps
        self.steps = torch.zeros(len(stack.weights))
        self.mean = torch.zeros_like(stack.weights)
        self.square = torch.zeros_like(stack.weights)

    def step(self, active: Tensor) -> Tensor:
        """Takes one step for the adapters that `active` [G] marks; returns gradient norms [G]."""
        stack, (beta1, beta2) = self.stack, self.betas
        norms = torch.linalg.vector_norm(stack.grad, dim=1)
        clip = (self.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
        rows = active.nonzero()[:, 0]
        whole = len(rows) == len(active)
        pick = slice(None) if whole else rows
        self.steps[pick] += 1
        grad = stack.grad[pick] * clip[pick, None]
        mean, square = self.mean[pick], self.square[pick]
        mean.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        count = self.steps[pick, None].double()
        bias1, bias2 = 1 - beta1**count, 1 - beta2**count
        size = (self.lr[pick, None].double() / bias1).float()
        spread = (square.sqrt() / bias2.sqrt().float()).add_(self.eps)
        update = mean.div(spread).mul_(size)
        if whole:
            stack.weights -= update
        else:
            self.mean[rows], self.square[rows] = mean, square
            stack.weights[rows] -= update
        stack.refresh()
        return norms
