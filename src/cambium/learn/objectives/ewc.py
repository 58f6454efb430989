"""Elastic weight consolidation: how much each weight matters to what was learned.

The diagonal of the empirical Fisher information: the mean over texts of the squared gradient of
each text's own log-probability. Squaring a batch's mean gradient instead would shrink it by the
batch's size. All texts share one pass: each gets a copy of the adapter, so the stack's rows are
the per-text gradients. Computed in fp32 on the plain task loss.

At a fresh adapter (B = 0) the gradient by A is zero, and so is its Fisher; (RA, BR^-1) is the same
update with another penalty: an anchor holds within one lineage only, and ends with any merge.

Sources: Kirkpatrick et al. (2017), eq. 3; Schwarz et al. (2018), section 4, for the online form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cambium.core.errors import DataError
from cambium.learn.examples import Window
from cambium.learn.passes import Ask, run_asks, window_segment
from cambium.models.adapter_stack import AdapterStack
from cambium.models.chunked_head import cross_entropy
from cambium.models.lora import Lora, concatenated
from cambium.models.packing import targets_of
from cambium.models.training_model import TrainingModel

TEXTS_TOGETHER = 8


def fisher(
    model: TrainingModel, lora: Lora, windows: Sequence[Window], *, parent: tuple[Lora, ...] = ()
) -> Tensor:
    """Returns the Fisher diagonal in the order of `AdapterStack.compact`, shape [P], fp32.

    Args:
        model: an fp32 one; a bf16 gradient squared is too coarse.
        windows: one text each; a log-probability is the sum over its learned tokens.

    Raises:
        DataError: no windows.
    """
    if not windows:
        raise DataError("the Fisher information of no text", mend="give some windows")
    total = torch.zeros(0)
    parents = None
    if parent:
        parents = AdapterStack([concatenated(parent)], model.base.sites, dtype=model.dtype)
    for at in range(0, len(windows), TEXTS_TOGETHER):
        part = windows[at : at + TEXTS_TOGETHER]
        stack = AdapterStack([lora] * len(part), model.base.sites, dtype=model.dtype)
        stack.zero_grad()
        asks: list[Ask] = []
        for row, window in enumerate(part):
            segment = window_segment(window, adapter=row, parent=0 if parent else -1)
            targets, _ = targets_of([segment])
            loss = cross_entropy(targets, torch.ones(len(targets)))
            asks.append(Ask(segments=[segment], loss=loss))
        run_asks(asks, lambda pack, loss, s=stack: model.train_pass(pack, s, loss, parents=parents))
        rows = [stack.compact(stack.grad, row).square() for row in range(len(part))]
        found = torch.stack(rows).sum(0)
        total = total + found if len(total) else found
    return total / len(windows)


def online_fisher(old: Tensor, new: Tensor, *, decay: float) -> Tensor:
    """Returns decay * old + new: what mattered long ago matters less."""
    return decay * old + new
