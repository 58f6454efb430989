"""All weights of a copy of the base learn, as without adapters: what adapters are compared with."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cambium.learn.examples import Window
from cambium.models.base import BaseModel
from cambium.models.packing import IGNORED

MAX_GRAD_NORM = 0.5
# As AdamW of the adapters: no weight decays, so that only what is learned changes them.
WEIGHT_DECAY = 0.0
Weighted = tuple[Window, float]


class WholeBase:
    """A copy of a base whose every weight is trained; the base itself stays as it is.

    Args:
        lr: AdamW's rate. All weights at the rate of an adapter would destroy the base.
    """

    def __init__(self, base: BaseModel, *, lr: float) -> None:
        model = copy.deepcopy(base.model)
        self.base = BaseModel(model, base.tokenizer, digest="", name="whole")
        self._weights = list(model.parameters())
        self._lr = lr
        self._adam = torch.optim.AdamW(self._weights, lr=lr, weight_decay=WEIGHT_DECAY)

    def step(self, new: Sequence[Weighted], old: Sequence[Weighted], *, rate: float = 1.0) -> float:
        """Takes one step on the mean loss of new windows and of old ones; returns the former.

        Args:
            new, old: windows, each with what its loss counts; the old may be none.
            rate: of the learning rate.
        """
        for group in self._adam.param_groups:
            group["lr"] = self._lr * rate
        for weight in self._weights:
            weight.requires_grad_()
        try:
            with torch.enable_grad():
                loss = self._loss(new)
                (loss + self._loss(old) if old else loss).backward()
            nn.utils.clip_grad_norm_(self._weights, MAX_GRAD_NORM)
            self._adam.step()
        finally:
            self._adam.zero_grad(set_to_none=True)
            for weight in self._weights:
                weight.requires_grad_(False)
        return float(loss.detach())

    def _loss(self, windows: Sequence[Weighted]) -> Tensor:
        """Returns the windows' weighted losses in nats per learned token, their mean."""
        longest = max(len(window.tokens) for window, _ in windows)
        tokens = torch.zeros(len(windows), longest, dtype=torch.long)
        targets = torch.full_like(tokens, IGNORED)
        for i, (window, _) in enumerate(windows):
            own = torch.tensor(window.tokens)
            tokens[i, : len(own)] = own
            targets[i, window.learn_from : len(own)] = own[window.learn_from :]
        wanted = targets[:, 1:]
        with self.base.rows(None) as model:
            logits: Tensor = model(input_ids=tokens[:, :-1], use_cache=False).logits
        flat = nn.functional.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none"
        )
        means = flat.view_as(wanted).sum(dim=1) / (wanted != IGNORED).sum(dim=1)
        return (means * torch.tensor([weight for _, weight in windows])).mean()
