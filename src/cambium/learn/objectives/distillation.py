"""Learning without forgetting: stay near what a teacher, the parent revision, says.

The teacher is no second model: the same base with the parent's adapters only, whose top tokens are
kept once. Shape letters: M positions, K top tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cambium.models.chunked_head import HeadLoss

NUM_TEACHER_TOKENS = 20


class Teacher:
    """Keeps the top tokens of the positions that run through its `loss`.

    Args:
        num_positions: M; `temperature` softens what is kept.
    """

    def __init__(self, num_positions: int, *, temperature: float = 2.0) -> None:
        self.temperature = temperature
        self.top_ids = torch.zeros(num_positions, NUM_TEACHER_TOKENS, dtype=torch.long)
        self.top_logprobs = torch.zeros(num_positions, NUM_TEACHER_TOKENS)
        self._num_kept = 0

    @property
    def is_complete(self) -> bool:
        """Returns whether every position has run: a pass that broke off leaves zeros."""
        return self._num_kept == len(self.top_ids)

    def loss(self, logits: Tensor, part: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
        """Keeps these positions; their loss is zero and has no gradient."""
        soft = torch.log_softmax(logits / self.temperature, dim=1)
        top = soft.topk(min(NUM_TEACHER_TOKENS, soft.shape[1] - 1), dim=1)
        if top.values.shape[1] < self.top_ids.shape[1]:
            self.top_ids = self.top_ids[:, : top.values.shape[1]].clone()
            self.top_logprobs = self.top_logprobs[:, : top.values.shape[1]].clone()
        self.top_ids[part], self.top_logprobs[part] = top.indices, top.values
        self._num_kept += len(logits)
        return torch.zeros(len(logits)), torch.zeros_like(logits) if wanted else None

    def distillation(self, weights: Tensor) -> HeadLoss:
        """Returns the divergence from what was kept; gradients are times `weights` [M]."""
        return distillation(self.top_ids, self.top_logprobs, weights, temperature=self.temperature)


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

    def loss(logits: Tensor, part: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
        ids, teacher = top_ids[part], top_logprobs[part]
        tail = log_rest(teacher)
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
