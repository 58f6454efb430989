"""Many adapters side by side: one matrix of weights, one of gradients, one optimiser step.

Row g holds all weights of adapter g, every A before every B, so that clipping, learning rates and
step counts per adapter are a column vector each, what passes compute with is made in two strokes,
and adapters come and go without touching the model. Smaller ranks and missing modules are zeros,
which stay zero under every step.
Shape letters: G adapters, P weights of one, R rank of the stack, I inputs, O outputs of a module,
M modules that read the same inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from cambium.core.errors import DataError
from cambium.models.lora import LinearSite, Lora
from cambium.models.stack import Stack

RANKS = (4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where one module's A [R I] and B [O R] lie in a row."""

    a: slice
    b: slice
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
        wanted = {*paths, *(path for lora in adapters for path in lora.a)}
        # As the base orders them: modules that read the same inputs lie side by side.
        paths = [path for path in sites if path in wanted]
        self._num_a = self.rank * sum(sites[path].d_in for path in paths)
        self._places = dict(zip(paths, _places([sites[p] for p in paths], self.rank), strict=True))
        size = self._num_a + self.rank * sum(sites[path].d_out for path in paths)
        self.weights = torch.zeros(len(adapters), size)
        self.grad = torch.zeros(0)
        self._scaling = torch.tensor([[lora.config.scaling] for lora in adapters])
        for g, lora in enumerate(adapters):
            for path, a in lora.a.items():
                self._a(self.weights, path)[g, : lora.config.r] = a
                self._b(self.weights, path)[g, :, : lora.config.r] = lora.b[path]
        self._dtype = dtype
        self._sites = sites
        self.refresh()

    @property
    def paths(self) -> tuple[str, ...]:
        """Returns the modules that some adapter of the stack changes."""
        return tuple(self._places)

    def refresh(self) -> None:
        """Takes the weights as they now are into what passes compute with."""
        self._all_a = self.weights[:, : self._num_a].to(self._dtype)  # fp32: the weights themselves
        self._all_b = (self.weights[:, self._num_a :] * self._scaling).to(self._dtype)
        self._joined: dict[tuple[str, ...], tuple[Tensor, Tensor] | None] = {}

    @property
    def virtual(self) -> Sequence[int]:
        """Returns nothing: no token stands before a sequence."""
        return ()

    def lay(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        """Returns the embeddings as they are."""
        return embedded

    def take(self, grad: Tensor, tokens: Tensor) -> None:
        """Does nothing: the embeddings are the base's."""

    def halves(self, path: str) -> tuple[Tensor, Tensor]:
        """Returns A [G R I] and the scaled B [G O R] of a module, in the passes' dtype."""
        place, cut = self._places[path], self._num_a
        a = self._all_a[:, place.a]
        b = self._all_b[:, place.b.start - cut : place.b.stop - cut]
        return a.unflatten(1, (self.rank, place.d_in)), b.unflatten(1, (place.d_out, self.rank))

    def joint_halves(self, paths: tuple[str, ...]) -> tuple[Tensor, Tensor] | None:
        """Returns A and the scaled B of modules that read the same inputs, as if they were one.

        Returns:
            A [G MR I], one below the other, and B [G O MR], blocks along its diagonal, O the
            outputs of all; None if no adapter changes any of them.
        """
        if paths not in self._joined:
            own = {path: self.halves(path) for path in paths if path in self._places}
            self._joined[paths] = self._join(paths, own) if own else None
        return self._joined[paths]

    def _join(
        self, paths: tuple[str, ...], own: Mapping[str, tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        if len(paths) == 1:
            return own[paths[0]]
        outputs = sum(self._sites[path].d_out for path in paths)
        wide = torch.zeros(len(self.weights), outputs, len(own) * self.rank, dtype=self._dtype)
        for path, rows, columns in self._blocks(paths):
            wide[:, rows, columns] = own[path][1]
        return self._joint_a(self._all_a, paths), wide

    def _joint_a(self, flat: Tensor, paths: tuple[str, ...]) -> Tensor:
        """Returns the A of modules side by side, shape [G MR I], a view of `flat`."""
        places = [self._places[path] for path in paths if path in self._places]
        part = flat[:, places[0].a.start : places[-1].a.stop]
        return part.unflatten(1, (len(places) * self.rank, places[0].d_in))

    def _blocks(self, paths: tuple[str, ...]) -> Iterator[tuple[str, slice, slice]]:
        """Yields each adapted module with the rows and columns of its block in a joint B."""
        row = column = 0
        for path in paths:
            end = row + self._sites[path].d_out
            if path in self._places:
                yield path, slice(row, end), slice(column, column + self.rank)
                column += self.rank
            row = end

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        if self.grad.shape != self.weights.shape:
            self.grad = torch.zeros_like(self.weights)
        else:
            self.grad.zero_()

    def add_grad(self, paths: tuple[str, ...], owners: Tensor | None, a: Tensor, b: Tensor) -> None:
        """Adds gradients by what `joint_halves` gave, of adapters `owners` [K].

        Args:
            owners: without them, chunk k is of adapter k.
            a: shape [K MR I]; `b` [K O MR], of which only the blocks count.
        """
        to_a = self._joint_a(self.grad, paths)
        if owners is None:
            to_a += a
        else:
            to_a.index_add_(0, owners, a.float())
        for path, rows, columns in self._blocks(paths):
            to_b, own = self._b(self.grad, path), b[:, rows, columns]
            if owners is None:
                to_b.addcmul_(own.to(to_b.dtype), self._scaling[:, :, None])
            else:
                to_b.index_add_(0, owners, own.float() * self._scaling[owners, :, None])

    def to_adapter(self, g: int) -> Lora:
        """Returns a copy of adapter g as it now is."""
        config, left = self.adapters[g].config, self.compact(self.weights, g)
        a, b = dict[str, Tensor](), dict[str, Tensor]()
        for path in sorted(self.adapters[g].a):
            site = self._sites[path]
            sizes = [config.r * site.d_in, config.r * site.d_out]
            own_a, own_b, left = left.split([*sizes, len(left) - sum(sizes)])
            a[path], b[path] = own_a.view(config.r, -1), own_b.view(-1, config.r)
        return Lora(config=config, a=a, b=b)

    def compact(self, flat: Tensor, g: int) -> Tensor:
        """Returns row g of `flat` [G P] without the padding of its rank and modules, [own P]."""
        return flat[g].index_select(0, self._own(g))

    def expand(self, own: Tensor, flat: Tensor, g: int) -> None:
        """Writes what `compact` returned into row g of `flat`.

        Raises:
            DataError: it is of another adapter.
        """
        places = self._own(g)
        if own.shape != places.shape:
            raise DataError("the optimiser state is of another adapter", mend="learn without it")
        flat[g].index_copy_(0, places, own)

    def _own(self, g: int) -> Tensor:
        """Returns where adapter g's own weights lie in a row: by path, A before B."""
        lora = self.adapters[g]
        sites = tuple(self._sites[path] for path in self._places)
        return _own_places(sites, self.rank, lora.config.r, tuple(sorted(lora.a)))

    def _a(self, flat: Tensor, path: str) -> Tensor:
        place = self._places[path]
        return flat[:, place.a].unflatten(1, (self.rank, place.d_in))

    def _b(self, flat: Tensor, path: str) -> Tensor:
        place = self._places[path]
        return flat[:, place.b].unflatten(1, (place.d_out, self.rank))


def _places(sites: Sequence[LinearSite], rank: int) -> list[_Place]:
    found: list[_Place] = []
    at_a, at_b = 0, rank * sum(site.d_in for site in sites)
    for site in sites:
        end_a, end_b = at_a + rank * site.d_in, at_b + rank * site.d_out
        found.append(
            _Place(a=slice(at_a, end_a), b=slice(at_b, end_b), d_in=site.d_in, d_out=site.d_out)
        )
        at_a, at_b = end_a, end_b
    return found


@lru_cache(maxsize=64)
def _own_places(sites: tuple[LinearSite, ...], rank: int, r: int, paths: tuple[str, ...]) -> Tensor:
    """Returns where the A and then the B of rank `r` of each of `paths` lie in a row of a stack."""
    places = dict(zip((site.path for site in sites), _places(sites, rank), strict=True))
    row = torch.arange(rank * sum(site.d_in + site.d_out for site in sites))
    parts: list[Tensor] = []
    for path in paths:
        place = places[path]
        parts.append(row[place.a].view(rank, place.d_in)[:r].flatten())
        parts.append(row[place.b].view(place.d_out, rank)[:, :r].flatten())
    return torch.cat(parts) if parts else row[:0]


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
        stack: Stack,
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
        # What the kernel divides gradients by.
        shrink = ((norms + 1e-6) / self.max_grad_norm).clamp(min=1.0)
        self.steps[active] += 1
        for g in active.nonzero()[:, 0].tolist():
            torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]
                [stack.weights[g]], [stack.grad[g]], [self.mean[g]], [self.square[g]], [],
                [self.steps[g]], lr=float(self.lr[g]), beta1=beta1, beta2=beta2,
                weight_decay=0.0, eps=self.eps, amsgrad=False, maximize=False,
                grad_scale=shrink[g],
            )  # fmt: skip
        stack.refresh()
        return norms
