"""The language-model head and its loss, chunk by chunk, so that logits never exist as a whole.

Shape letters: M positions, D width of the model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

HEAD_CHUNK = 256

# Takes fp32 logits [m V], which it may overwrite, and which of the M positions they are; returns
# losses [m] in nats and their gradient by the logits, scaled by each position's weight, or None
# for it where none is wanted.
HeadLoss = Callable[[Tensor, slice, bool], tuple[Tensor, Tensor | None]]


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, loss: HeadLoss
    ) -> Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32)
        wanted = ctx.needs_input_grad[0]
        grad = torch.empty_like(hidden) if wanted else None
        for at in range(0, len(hidden), HEAD_CHUNK):
            part = slice(at, min(at + HEAD_CHUNK, len(hidden)))
            logits = torch.nn.functional.linear(hidden[part], weight, bias).float()
            losses[part], by_logits = loss(logits, part, wanted)
            if grad is not None and by_logits is not None:
                torch.mm(by_logits.to(hidden.dtype), weight, out=grad[part])
        ctx.save_for_backward(grad)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad, None, None, None


def head_losses(hidden: Tensor, weight: Tensor, bias: Tensor | None, loss: HeadLoss) -> Tensor:
    """Returns the positions' losses [M]; their backward gives `hidden` the weighted gradient.

    The gradient is the one that `loss` gave, whatever is done with the result: call
    `.sum().backward()`.

    Args:
        hidden: what the head reads, shape [M D].
        weight: the head's, shape [V D], frozen; `bias` [V] or None.
    """
    return _ChunkedHead.apply(hidden, weight, bias, loss)


def cross_entropy(targets: Tensor, weights: Tensor) -> HeadLoss:
    """Returns the loss of predicting `targets` [M]; gradients are times `weights` [M]."""

    def loss(logits: Tensor, part: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
        own = targets[part][:, None]
        total = logits.logsumexp(dim=1, keepdim=True)
        losses = (total - logits.gather(1, own))[:, 0]
        if not wanted:
            return losses, None
        grad = logits.sub_(total).exp_()
        grad.scatter_add_(1, own, torch.full_like(total, -1.0))
        return losses, grad.mul_(weights[part][:, None])

    return loss


def distillation(
    top_ids: Tensor, top_logprobs: Tensor, weights: Tensor, *, temperature: float
) -> HeadLoss:
    """Returns T² KL(teacher || student) over the teacher's top K tokens and one tail.

    The tail's term uses the total mass outside the top K, so it is a lower bound of the full
    divergence and exact when K + 1 covers the vocabulary. Its gradient by the logits is
    T (student - target), where the target keeps the student's own shape in the tail.

    Args:
        top_ids: int64, shape [M K]; `top_logprobs` fp32 [M K], softened by `temperature`.

    Source: Hinton et al. (2015), eq. 1 and the T² of section 2.1; Li and Hoiem (2017).
    """
    teacher_tail = log_rest(top_logprobs)

    def loss(logits: Tensor, part: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
        ids, teacher, tail = top_ids[part], top_logprobs[part], teacher_tail[part]
        student = torch.log_softmax(logits.div_(temperature), dim=1)
        top = student.gather(1, ids)
        own_tail = log_rest(top)
        losses = (teacher.exp() * (teacher - top)).sum(1) + tail.exp() * (tail - own_tail)
        losses *= temperature**2
        if not wanted:
            return losses, None
        grad = student.exp_()
        kept = grad.gather(1, ids) - teacher.exp()
        grad.mul_(1 - (tail - own_tail).exp()[:, None]).scatter_(1, ids, kept)
        return losses, grad.mul_(temperature * weights[part][:, None])

    return loss


def log_rest(logprobs: Tensor) -> Tensor:
    """Returns the log of the mass outside, from log-probabilities [M K]."""
    covered = logprobs.exp().sum(1).clamp(max=1 - 1e-6)
    return torch.log1p(-covered)
