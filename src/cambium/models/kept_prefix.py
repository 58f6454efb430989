"""Keys and values of a beginning that many sequences share, read by every row of later passes.

Shape letters: B rows, H key-value heads, P tokens kept, T new tokens, D size of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from cambium.models.base import BaseModel


class KeptPrefix(Cache):
    """Kept keys and values [1 H P D]: open for one pass that fills it, then never written again.

    Args:
        before: what was kept earlier and this one continues.
    """

    def __init__(self, base: BaseModel, before: KeptPrefix | None = None) -> None:
        count = base.model.config.get_text_config().num_hidden_layers
        earlier = before.kept_layers if before else [None] * count
        self.kept_layers = [_KeptLayer(layer) for layer in earlier]
        super().__init__(layers=[*self.kept_layers])

    @property
    def length(self) -> int:
        """Returns how many tokens are kept."""
        return self.kept_layers[0].length

    def close(self) -> None:
        """Ends the filling: from here on, passes read and leave nothing behind."""
        for layer in self.kept_layers:
            layer.is_open = False


class _KeptLayer(CacheLayerMixin):
    is_sliding = False

    def __init__(self, before: _KeptLayer | None) -> None:
        super().__init__()
        self.is_open = True
        if before is not None:
            self.keys, self.values = before.keys, before.values
            self.is_initialized = True

    @property
    def length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        keys, values = _after(self.keys, key_states), _after(self.values, value_states)
        if self.is_open:
            self.keys, self.values = keys, values
        return keys, values

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1


def _after(kept: Tensor | None, new: Tensor) -> Tensor:
    """Returns the kept [1 H P D] before the new [B H T D]."""
    return new if kept is None else torch.cat([kept.expand(len(new), -1, -1, -1), new], dim=2)
