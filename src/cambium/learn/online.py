"""Online learning: one to eight AdamW steps on one ephemeral adapter, checked at every step.

This package opens no files and no sockets: the server persists what it returns.
Shape letters: B windows of a batch, T positions, V words.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor

from cambium.core.errors import DataError
from cambium.core.evidence import StepCheck
from cambium.learn.examples import Window
from cambium.models.base import BaseModel, mixed_precision, shared_rows
from cambium.models.lora import Lora

Item = TypeVar("Item")
IGNORED = -100
MAX_STEPS = 8
LENGTH_STEP = 32


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """One call's training.

    Args:
        lr: AdamW's rate; the default is the one that the learning-rate recipe chose.
        steps: optimiser steps, 1 to 8.
        max_grad_norm: gradients are clipped to this norm.
        tokens_per_step: windows are dealt to steps up to this many tokens each; more where
            some window would otherwise never be learned in the call.
        micro_tokens: tokens of one pass; between passes, answers get their turn.
    """

    lr: float = 2e-3
    steps: int = 8
    max_grad_norm: float = 0.5
    tokens_per_step: int = 4096
    micro_tokens: int = 1024
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What learns: an adapter on top of its parent, with the optimiser state it came with.

    Args:
        optimizer: the state that an earlier call returned, so that moments carry over.
    """

    lora: Lora
    parent: tuple[Lora, ...] = ()
    optimizer: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class LearnResult:
    """The adapter after the steps; `quarantined` when a check failed, and then no further step.

    Args:
        losses: each step's loss before the step, nats per token.
        loss_before, loss_after: on the first step's windows, nats per token.
    """

    lora: Lora
    optimizer: bytes
    losses: tuple[float, ...]
    loss_before: float
    loss_after: float
    checks: tuple[StepCheck, ...] = ()
    quarantined: bool = False
    seconds: float = 0.0


@dataclass(kw_only=True)
class _Batch:
    tokens: Tensor
    targets: Tensor
    num_targets: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_targets = int((self.targets != IGNORED).sum())


def learn(
    base: BaseModel,
    learner: Learner,
    windows: Sequence[Window],
    *,
    config: LearnConfig,
    check: Callable[[Lora], StepCheck] | None = None,
) -> LearnResult:
    """Takes `config.steps` steps on the learner's adapter, on top of the frozen base and parent.

    The given adapter is not changed; neither is the base, nor the parent.

    Args:
        check: the alignment monitor, called after every step; a failed one ends the call.

    Raises:
        DataError: no windows, steps outside 1..8, or an optimiser state of another adapter.
    """
    if not windows or not 1 <= config.steps <= MAX_STEPS:
        raise DataError(
            f"{len(windows)} windows and {config.steps} steps teach nothing",
            mend=f"send at least one example and 1 to {MAX_STEPS} steps",
        )
    started = time.monotonic()
    parent = learner.parent
    trained = trainable_copy(learner.lora)
    adam = adamw(trained, config.lr)
    if learner.optimizer:
        _load_state(adam, learner.optimizer)
    batches = _deal(windows, config, base.context)
    losses: list[float] = []
    checks: list[StepCheck] = []
    for step in range(config.steps):
        losses.append(
            train_step(
                base,
                trained,
                batches[step % len(batches)],
                adam,
                parent=parent,
                max_grad_norm=config.max_grad_norm,
            )
        )
        if check is not None:
            checks.append(check(frozen_copy(trained)))
            if not checks[-1].ok:
                break
    return LearnResult(
        lora=frozen_copy(trained),
        optimizer=_save_state(adam),
        losses=tuple(losses),
        loss_before=losses[0],
        loss_after=mean_loss(base, trained, batches[0], parent),
        checks=tuple(checks),
        quarantined=any(not c.ok for c in checks),
        seconds=time.monotonic() - started,
    )


def adamw(lora: Lora, lr: float) -> torch.optim.AdamW:
    """Returns AdamW over the adapter's weights, in the order of their names.

    An adapter read from its file holds them in another order than a fresh one; moments are
    kept by position.
    """
    parameters = [half[path] for half in (lora.a, lora.b) for path in sorted(half)]
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)


def train_step(
    base: BaseModel,
    lora: Lora,
    batch: Sequence[_Batch],
    optimizer: torch.optim.Optimizer,
    *,
    parent: tuple[Lora, ...],
    max_grad_norm: float,
) -> float:
    """Takes one optimiser step over the micro-batches; returns the loss in nats per token."""
    total = sum(part.num_targets for part in batch)
    loss_sum = 0.0
    optimizer.zero_grad(set_to_none=True)
    for part in batch:
        with base.rows(shared_rows((*parent, lora))) as model, mixed_precision():
            logits = model(input_ids=part.tokens, use_cache=False).logits
            loss = summed_loss(logits, part.targets) / total
            loss.backward()
        loss_sum += float(loss.detach())
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    return loss_sum


@torch.no_grad()
def mean_loss(
    base: BaseModel, lora: Lora, batch: Sequence[_Batch], parent: tuple[Lora, ...]
) -> float:
    """Returns the loss of a dealt batch in nats per token."""
    loss, total = 0.0, 0
    for part in batch:
        with base.rows(shared_rows((*parent, lora))) as model, mixed_precision():
            logits = model(input_ids=part.tokens, use_cache=False).logits
        loss += float(summed_loss(logits, part.targets))
        total += part.num_targets
    return loss / max(1, total)


def summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the summed cross-entropy in nats; logits [B T V], targets [B T]."""
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def batch_windows(windows: Sequence[Window], micro_tokens: int, context: int) -> list[_Batch]:
    """Packs windows of similar length into micro-batches of about `micro_tokens`."""
    ordered = sorted(windows, key=lambda w: (len(w.tokens), w.tokens))
    groups = packed(ordered, micro_tokens, key=lambda w: padded_length(_num_inputs(w), context))
    return [_collate(group, context) for group in groups]


def packed(items: Iterable[Item], budget: int, *, key: Callable[[Item], int]) -> list[list[Item]]:
    """Cuts items into runs whose number times greatest `key` is within `budget`, or runs of one."""
    runs: list[list[Item]] = []
    longest = 0
    for item in items:
        longest = max(longest, key(item))
        if not runs or (len(runs[-1]) + 1) * longest > budget:
            runs.append([])
            longest = key(item)
        runs[-1].append(item)
    return runs


def padded_length(length: int, context: int) -> int:
    """Returns the positions that a pass gives such a text: passes come in few shapes."""
    return min(-(-length // LENGTH_STEP) * LENGTH_STEP, context)


def _num_inputs(window: Window) -> int:
    return len(window.tokens) - 1


def trainable_copy(lora: Lora) -> Lora:
    """Returns a copy whose weights are leaves that take gradients."""
    return _copy(lora, requires_grad=True)


def frozen_copy(lora: Lora) -> Lora:
    """Returns a copy whose weights take no gradients."""
    return _copy(lora, requires_grad=False)


def _copy(lora: Lora, *, requires_grad: bool) -> Lora:
    a, b = (
        {p: t.detach().clone().requires_grad_(requires_grad) for p, t in half.items()}
        for half in (lora.a, lora.b)
    )
    return Lora(config=lora.config, a=a, b=b)


def _deal(windows: Sequence[Window], config: LearnConfig, context: int) -> list[list[_Batch]]:
    """Returns at most `config.steps` steps, each a list of passes, that hold every window."""
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(config.seed))
    steps: list[list[Window]] = [[]]
    tokens = 0
    for i in order.tolist():
        size = len(windows[i].tokens)
        if steps[-1] and tokens + size > config.tokens_per_step:
            steps.append([])
            tokens = 0
        steps[-1].append(windows[i])
        tokens += size
    if len(steps) > config.steps:
        wider = replace(config, tokens_per_step=2 * config.tokens_per_step)
        return _deal(windows, wider, context)
    return [batch_windows(step, config.micro_tokens, context) for step in steps]


def _collate(windows: Sequence[Window], context: int) -> _Batch:
    length = padded_length(max(map(_num_inputs, windows)), context)
    tokens = torch.zeros(len(windows), length, dtype=torch.long)
    targets = torch.full((len(windows), length), IGNORED, dtype=torch.long)
    for i, window in enumerate(windows):
        ids = torch.tensor(window.tokens)
        tokens[i, : len(ids) - 1] = ids[:-1]
        targets[i, window.learn_from - 1 : len(ids) - 1] = ids[window.learn_from :]
    return _Batch(tokens=tokens, targets=targets)


def _save_state(adam: torch.optim.AdamW) -> bytes:
    tensors = {}
    for index, slots in adam.state_dict()["state"].items():
        for key, value in slots.items():
            tensors[f"{index}.{key}"] = torch.as_tensor(value).detach().clone().contiguous()
    return save(tensors)


def _load_state(adam: torch.optim.AdamW, data: bytes) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load(data).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    parameters = [p for group in adam.param_groups for p in group["params"]]
    shapes = {i: p.shape for i, p in enumerate(parameters)}
    if shapes != {i: slots["exp_avg"].shape for i, slots in state.items()}:
        raise DataError("the optimiser state is of another adapter", mend="learn without it")
    saved = adam.state_dict()
    saved["state"] = state
    adam.load_state_dict(saved)
