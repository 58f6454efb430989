"""The language-model head and its loss, chunk by chunk, so that logits never exist as a whole.

Shape letters: M positions, D width of the model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HEAD_CHUNK = 256
# Below this a probability loses digits in fp32.
FAINT = 1e-30

# Takes fp32 logits [m V], which it may overwrite, and which of the M positions they are; returns
# losses [m] in nats and their gradient by the logits, scaled by each position's weight, or None
# for it where none is wanted.
HeadLoss = Callable[[Tensor, slice, bool], tuple[Tensor, Tensor | None]]


def head_pass(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, loss: HeadLoss, *, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns the positions' losses [M] and, where `wanted`, their weighted gradient [M D].

    Args:
        hidden: what the head reads, shape [M D].
        weight: the head's, shape [V D], frozen; `bias` [V] or None.
    """
    losses = torch.empty(len(hidden), dtype=torch.float32)
    grad = torch.empty_like(hidden) if wanted else None
    for at in range(0, len(hidden), HEAD_CHUNK):
        part = slice(at, min(at + HEAD_CHUNK, len(hidden)))
        logits = torch.nn.functional.linear(hidden[part], weight, bias).float()
        losses[part], by_logits = loss(logits, part, wanted)
        if grad is not None and by_logits is not None:
            torch.mm(by_logits.to(hidden.dtype), weight, out=grad[part])
    return losses, grad


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, loss: HeadLoss
    ) -> Tensor:
        losses, grad = head_pass(hidden, weight, bias, loss, wanted=ctx.needs_input_grad[0])
        ctx.save_for_backward(grad)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad, None, None, None


def head_losses(hidden: Tensor, weight: Tensor, bias: Tensor | None, loss: HeadLoss) -> Tensor:
    """Returns the losses of `head_pass`; their backward gives `hidden` the weighted gradient.

    The gradient is the one that `loss` gave, whatever is done with the result: call
    `.sum().backward()`.
    """
    return _ChunkedHead.apply(hidden, weight, bias, loss)


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """The loss of predicting `targets` [M]; gradients are times `weights` [M]."""

    targets: Tensor
    weights: Tensor

    def __call__(self, logits: Tensor, part: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
        own = self.targets[part][:, None]
        likely = logits.softmax(dim=1)
        right = likely.gather(1, own)
        losses = -right.log()
        # Too unlikely for a probability in fp32, the logits themselves tell.
        if (faint := (right < FAINT)[:, 0]).any():
            rest = logits[faint]
            losses[faint] = rest.logsumexp(1, keepdim=True) - rest.gather(1, own[faint])
        if not wanted:
            return losses[:, 0], None
        likely.scatter_add_(1, own, torch.full_like(right, -1.0))
        return losses[:, 0], likely.mul_(self.weights[part][:, None])


def cross_entropy(targets: Tensor, weights: Tensor) -> CrossEntropy:
    """Returns the loss of predicting `targets` [M]; gradients are times `weights` [M]."""
    return CrossEntropy(targets=targets, weights=weights)


def joined(losses: Sequence[tuple[HeadLoss, int]]) -> HeadLoss:
    """Returns one loss over the positions of all, each with its number of positions."""
    plain = [loss for loss, _ in losses if isinstance(loss, CrossEntropy)]
    if len(plain) == len(losses):
        targets = torch.cat([loss.targets for loss in plain])
        return CrossEntropy(targets=targets, weights=torch.cat([loss.weights for loss in plain]))
    starts = [0]
    for _, count in losses:
        starts.append(starts[-1] + count)

    def loss(logits: Tensor, part: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
        found = torch.empty(len(logits))
        for (own, count), start in zip(losses, starts, strict=False):
            first, last = max(part.start, start), min(part.stop, start + count)
            if first >= last:
                continue
            here = slice(first - part.start, last - part.start)
            found[here], grad = own(logits[here], slice(first - start, last - start), wanted)
            if grad is not None:
                logits[here] = grad
        return found, logits if wanted else None

    return loss


def from_position(loss: HeadLoss, start: int) -> HeadLoss:
    """Returns the loss of the positions from `start` on, numbered from 0."""
    if isinstance(loss, CrossEntropy):
        return CrossEntropy(targets=loss.targets[start:], weights=loss.weights[start:])
    return lambda logits, part, wanted: loss(
        logits, slice(part.start + start, part.stop + start), wanted
    )


def added(losses: Sequence[HeadLoss]) -> HeadLoss:
    """Returns the first loss with the gradients of all, which are of the same positions."""

    def loss(logits: Tensor, part: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
        found, grad = losses[0](logits.clone(), part, wanted)
        if grad is not None:
            for own in losses[1:]:
                by_logits = own(logits.clone(), part, True)[1]
                grad = grad if by_logits is None else grad + by_logits
        return found, grad

    return loss
