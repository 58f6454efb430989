"""Consolidation: accepted examples and joint replay become one candidate for a domain.

It starts again from the parent revision, never from ephemeral weights, which may have seen
documents that the gates keep. Replay is the parent's own text; the parent is also the teacher
there, so that what it knew is held in place. Shape letters: B, T, V as in `online`; K top-k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cambium.core.errors import DataError
from cambium.learn.examples import Window
from cambium.learn.online import (
    adamw,
    batch_windows,
    frozen_copy,
    packed,
    padded_length,
    summed_loss,
    trainable_copy,
)
from cambium.models.base import BaseModel, mixed_precision, shared_rows
from cambium.models.lora import Lora
from cambium.models.scoring import score


@dataclass(frozen=True, kw_only=True)
class ConsolidateConfig:
    """One consolidation.

    Args:
        epochs: passes over the new domain's windows, cut short at `max_tokens`.
        lr: peak of AdamW's rate, reached after a tenth of the steps, then a cosine to a tenth.
        replay_share: replayed windows per window of the new domain.
        distill_weight: weight of the teacher's term on replayed windows.
        temperature: softens both distributions of that term (Hinton et al. 2015).
        num_teacher_tokens: K, the teacher's likeliest tokens kept per position; the rest is one
            tail class.
    """

    epochs: int = 6
    lr: float = 1.5e-3
    windows_per_step: int = 8
    max_tokens: int = 60_000
    replay_share: float = 1.0
    distill_weight: float = 8.0
    temperature: float = 2.0
    num_teacher_tokens: int = 32
    max_grad_norm: float = 0.5
    micro_tokens: int = 1024
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """A window of the parent's text with the teacher's log-probabilities.

    Args:
        top_ids: shape [T-1 K], int64.
        top_logprobs: shape [T-1 K], fp32, at the configured temperature; the tail is the rest.
    """

    window: Window
    top_ids: Tensor
    top_logprobs: Tensor


def consolidate(
    base: BaseModel,
    start: Lora,
    windows: Sequence[Window],
    replay: Sequence[Replayed],
    *,
    config: ConsolidateConfig,
    progress: Callable[[float, float], None] = lambda share, loss: None,
) -> Lora:
    """Returns `start` trained on `windows` jointly with `replay`, frozen.

    Args:
        start: the parent's adapter for this domain, or a fresh one.
        progress: called after each step with the share done and the step's loss; an exception
            it raises ends the consolidation.

    Raises:
        DataError: no windows, so that the candidate would be its own start.
    """
    if not windows:
        raise DataError("there is nothing to consolidate", mend="feed documents, with consent")
    lora = trainable_copy(start)
    adam = adamw(lora, config.lr)
    plan = _plan(windows, len(replay), config)
    for step, (new, old) in enumerate(plan):
        for group in adam.param_groups:
            group["lr"] = config.lr * _schedule(step, len(plan))
        adam.zero_grad(set_to_none=True)
        loss = _backward_new(base, lora, [windows[i] for i in new], config)
        if old:
            loss += _backward_replay(base, lora, [replay[i] for i in old], config)
        parameters = [p for group in adam.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        adam.step()
        progress((step + 1) / len(plan), loss)
    return frozen_copy(lora)


def with_teacher(
    base: BaseModel,
    windows: Sequence[Window],
    parent: tuple[Lora, ...],
    *,
    config: ConsolidateConfig,
) -> list[Replayed]:
    """Returns the windows with the parent revision's top-k log-probabilities."""

    def keep(logprobs: Tensor, targets: Tensor) -> Tensor:
        softened = torch.log_softmax(logprobs / config.temperature, dim=-1)
        values, ids = softened.topk(min(config.num_teacher_tokens, softened.shape[-1] - 1))
        return torch.stack([values.double(), ids.double()])

    kept = score(base, [w.tokens for w in windows], adapters=parent, reduce=keep)
    return [
        Replayed(window=w, top_ids=k[1].long(), top_logprobs=k[0].float())
        for w, k in zip(windows, kept, strict=True)
    ]


def distillation_loss(
    logits: Tensor, top_ids: Tensor, top_logprobs: Tensor, temperature: float
) -> Tensor:
    """Returns T² KL(teacher || student), summed over positions, over K tokens and one tail.

    The tail's term uses the total mass outside the top K, so the sum is a lower bound of the
    full divergence and exact when K + 1 covers the vocabulary.

    Args:
        logits: the student's, shape [N V]; the teacher's tensors have shape [N K].
    Source: Hinton et al. (2015), eq. 1 and the T² of section 2.1; Li & Hoiem (2017).
    """
    student = torch.log_softmax(logits.float() / temperature, dim=-1).gather(1, top_ids)
    student_tail = _log_rest(student)
    teacher_tail = _log_rest(top_logprobs)
    divergence = (top_logprobs.exp() * (top_logprobs - student)).sum(1)
    divergence += teacher_tail.exp() * (teacher_tail - student_tail)
    return temperature**2 * divergence.sum()


def _log_rest(logprobs: Tensor) -> Tensor:
    covered = logprobs.exp().sum(1).clamp(max=1 - 1e-6)
    return torch.log1p(-covered)


def _backward_new(
    base: BaseModel, lora: Lora, windows: Sequence[Window], config: ConsolidateConfig
) -> float:
    batches = batch_windows(windows, config.micro_tokens, base.context)
    total = sum(b.num_targets for b in batches)
    value = 0.0
    for batch in batches:
        with base.rows(shared_rows((lora,))) as model, mixed_precision():
            logits = model(input_ids=batch.tokens, use_cache=False).logits
            loss = summed_loss(logits, batch.targets) / total
            loss.backward()
        value += float(loss.detach())
    return value


def _backward_replay(
    base: BaseModel, lora: Lora, replayed: Sequence[Replayed], config: ConsolidateConfig
) -> float:
    total = sum(len(r.top_ids) for r in replayed)
    weight = config.replay_share * config.distill_weight / total
    value = 0.0
    ordered = sorted(replayed, key=lambda r: (len(r.top_ids), r.window.tokens))
    for group in packed(
        ordered, config.micro_tokens, key=lambda r: padded_length(len(r.top_ids), base.context)
    ):
        tokens, real = _padded(group, base.context)
        with base.rows(shared_rows((lora,))) as model, mixed_precision():
            logits = model(input_ids=tokens, use_cache=False).logits[real]
            loss = weight * distillation_loss(
                logits,
                torch.cat([r.top_ids for r in group]),
                torch.cat([r.top_logprobs for r in group]),
                config.temperature,
            )
            loss.backward()
        value += float(loss.detach())
    return value


def _padded(group: Sequence[Replayed], context: int) -> tuple[Tensor, Tensor]:
    """Returns input ids [B T] and which of them are no padding."""
    length = padded_length(max(len(r.top_ids) for r in group), context)
    tokens = torch.zeros(len(group), length, dtype=torch.long)
    real = torch.zeros(len(group), length, dtype=torch.bool)
    for i, one in enumerate(group):
        tokens[i, : len(one.top_ids)] = torch.tensor(one.window.tokens[:-1])
        real[i, : len(one.top_ids)] = True
    return tokens, real


def _plan(
    windows: Sequence[Window], num_replay: int, config: ConsolidateConfig
) -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(config.seed)
    steps: list[tuple[list[int], list[int]]] = []
    tokens = 0
    replay_order: list[int] = []
    for _ in range(config.epochs):
        order = torch.randperm(len(windows), generator=generator).tolist()
        for at in range(0, len(order), config.windows_per_step):
            new = order[at : at + config.windows_per_step]
            tokens += sum(len(windows[i].tokens) for i in new)
            wanted = math.ceil(len(new) * config.replay_share) if num_replay else 0
            while len(replay_order) < wanted:
                replay_order += torch.randperm(num_replay, generator=generator).tolist()
            old, replay_order = replay_order[:wanted], replay_order[wanted:]
            steps.append((new, old))
            if tokens >= config.max_tokens:
                return steps
    return steps


def _schedule(step: int, num_steps: int) -> float:
    warmup = max(1, num_steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, num_steps - warmup)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share))
