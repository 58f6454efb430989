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
from cambium.learn.objectives.distillation import distillation
from cambium.learn.passes import PASS_TOKENS, in_passes, window_segment
from cambium.models.adapter import Adapter
from cambium.models.adapter_kinds import KINDS, kind_of
from cambium.models.adapter_stack import StackAdamW
from cambium.models.base import BaseModel
from cambium.models.chunked_head import cross_entropy
from cambium.models.packing import pack, targets_of
from cambium.models.scoring import score
from cambium.models.stack import Stack
from cambium.models.training_model import TrainingModel


@dataclass(frozen=True, kw_only=True)
class ConsolidateConfig:
    """One consolidation.

    Args:
        epochs: passes over the new domain's windows, cut short at `max_tokens`.
        lr: peak of AdamW's rate, reached after a tenth of the steps, then a cosine to a tenth.
        prompt_lr: the same for soft prompts, which are few numbers and have far to go.
        replay_share: replayed windows per window of the new domain.
        distill_weight: weight of the teacher's term on replayed windows.
        temperature: softens both distributions of that term (Hinton et al. 2015).
        num_teacher_tokens: K, the teacher's likeliest tokens kept per position; the rest is one
            tail class.
    """

    epochs: int = 6
    lr: float = 1.5e-3
    prompt_lr: float = 0.03
    windows_per_step: int = 8
    max_tokens: int = 60_000
    replay_share: float = 1.0
    distill_weight: float = 8.0
    temperature: float = 2.0
    num_teacher_tokens: int = 32
    max_grad_norm: float = 0.5
    seed: int = 0

    def rate(self, kind: str) -> float:
        """Returns the peak rate for a kind of adapter."""
        return self.prompt_lr if kind == "soft_prompt" else self.lr


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
    model: TrainingModel,
    start: Adapter,
    windows: Sequence[Window],
    replay: Sequence[Replayed],
    *,
    config: ConsolidateConfig,
    progress: Callable[[float, float], None] = lambda share, loss: None,
) -> Adapter:
    """Returns `start` trained on `windows` jointly with `replay`.

    Args:
        start: the parent's adapter for this domain, or a fresh one.
        progress: called after each step with the share done and the step's loss; an exception
            it raises ends the consolidation.

    Raises:
        DataError: no windows, so that the candidate would be its own start.
    """
    if not windows:
        raise DataError("there is nothing to consolidate", mend="feed documents, with consent")
    kind = kind_of(start.config)
    stack = KINDS[kind].stack(start, model.base, model.dtype)
    peak = config.rate(kind)
    rate = torch.zeros(1, dtype=torch.float64)
    adam = StackAdamW(stack, lr=rate, max_grad_norm=torch.tensor([config.max_grad_norm]))
    plan = _plan(windows, len(replay), config)
    for step, (new, old) in enumerate(plan):
        adam.lr = rate + peak * _schedule(step, len(plan))
        stack.zero_grad()
        loss = _train_new(model, stack, [windows[i] for i in new])
        if old:
            loss += _train_replay(model, stack, [replay[i] for i in old], config)
        adam.step(torch.ones(1, dtype=torch.bool))
        progress((step + 1) / len(plan), loss)
    return stack.to_adapter(0)


def times_taken(
    windows: Sequence[Window], num_replay: int, *, config: ConsolidateConfig
) -> tuple[list[int], list[int]]:
    """Returns how often `consolidate` goes through each window, and through each replayed one."""
    new, old = [0] * len(windows), [0] * num_replay
    for some, replayed in _plan(windows, num_replay, config):
        for i in some:
            new[i] += 1
        for i in replayed:
            old[i] += 1
    return new, old


def with_teacher(
    base: BaseModel,
    windows: Sequence[Window],
    parent: tuple[Adapter, ...],
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


def _train_new(model: TrainingModel, stack: Stack, windows: Sequence[Window]) -> float:
    """Adds the task's gradient to the stack; returns the mean loss in nats per token."""
    ordered = sorted(windows, key=lambda w: (len(w.tokens), w.tokens))
    segments = [window_segment(w, adapter=0, parent=-1, virtual=stack.virtual) for w in ordered]
    total = sum(s.num_targets for s in segments)
    value = 0.0
    for part in in_passes(segments, PASS_TOKENS):
        targets, _ = targets_of(segments[part])
        loss = cross_entropy(targets, torch.full((len(targets),), 1 / total))
        value += float(model.train_pass(pack(segments[part]), stack, loss).sum())
    return value / total


def _train_replay(
    model: TrainingModel,
    stack: Stack,
    replayed: Sequence[Replayed],
    config: ConsolidateConfig,
) -> float:
    """Adds the teacher's gradient to the stack; returns its weighted mean term."""
    ordered = sorted(replayed, key=lambda r: (len(r.top_ids), r.window.tokens))
    segments = [
        window_segment(r.window, adapter=0, parent=-1, virtual=stack.virtual) for r in ordered
    ]
    total = sum(len(r.top_ids) for r in ordered)
    weight = config.replay_share * config.distill_weight / total
    value = 0.0
    for part in in_passes(segments, PASS_TOKENS):
        ids = torch.cat([r.top_ids for r in ordered[part]])
        loss = distillation(
            ids,
            torch.cat([r.top_logprobs for r in ordered[part]]),
            torch.full((len(ids),), weight),
            temperature=config.temperature,
        )
        value += weight * float(model.train_pass(pack(segments[part]), stack, loss).sum())
    return value


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
