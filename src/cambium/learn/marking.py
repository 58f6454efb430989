"""What a request says about an adapter: how unsure it is, and whether it beats its parent here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cambium.learn.examples import Window
from cambium.learn.passes import Ask, nothing, run_asks, stack_parents, window_segment
from cambium.models.adapter_stack import AdapterStack
from cambium.models.lora import Lora
from cambium.models.packing import targets_of
from cambium.models.training_model import TrainingModel


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Of a text the adapter has not learned from, all in nats per token.

    Args:
        entropy: mean entropy of the adapter's predictions; `margin` how far the likeliest token
            leads the next in log-probability, on average.
        loss, parent_loss: of the text itself, by the adapter and by its parent alone.
    """

    entropy: float
    margin: float
    loss: float
    parent_loss: float

    @property
    def is_win(self) -> bool:
        """Returns whether the adapter knew the text better than its parent."""
        return self.loss < self.parent_loss


def mark(
    model: TrainingModel, lora: Lora, parent: tuple[Lora, ...], windows: Sequence[Window]
) -> Mark:
    """Reads the windows once with the adapter and once with its parent alone; changes nothing."""
    (above,), parents = stack_parents(model, [parent])
    stack = AdapterStack([lora, nothing()], model.base.sites, dtype=model.dtype)
    readings = [_Reading(windows, adapter=row, parent=above) for row in (0, 1)]
    run_asks(
        [r.ask for r in readings],
        lambda pack, loss: model.eval_pass(pack, stack, loss, parents=parents),
    )
    own, other = readings
    return Mark(
        entropy=float(own.entropy.mean()),
        margin=float(own.margin.mean()),
        loss=float(own.losses.mean()),
        parent_loss=float(other.losses.mean()),
    )


class _Reading:
    def __init__(self, windows: Sequence[Window], *, adapter: int, parent: int) -> None:
        segments = [window_segment(w, adapter=adapter, parent=parent) for w in windows]
        self._targets, _ = targets_of(segments)
        self.entropy, self.margin, self.losses = (torch.zeros(len(self._targets)) for _ in range(3))
        self.ask = Ask(segments=segments, loss=self._read)

    def _read(self, logits: Tensor, part: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
        logprobs = torch.log_softmax(logits, dim=1)
        self.entropy[part] = -(logprobs.exp() * logprobs).sum(1)
        top = logprobs.topk(2, dim=1).values
        self.margin[part] = top[:, 0] - top[:, 1]
        self.losses[part] = -logprobs.gather(1, self._targets[part][:, None])[:, 0]
        return self.losses[part], None
