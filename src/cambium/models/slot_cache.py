"""Key-value memory of the engine: a fixed number of rows, grown in length on demand.

Shape letters: S slots, H key-value heads, L positions held, D size of a head, T new positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class SlotCache(Cache):
    """One pass's view of the memory: which slots are written, at which positions, how much is read.

    Set `slots`, `positions` and `read_length` before a forward pass. With `read_length` None
    (prefill) the new keys alone are attended to.
    """

    def __init__(self, num_layers: int, num_slots: int) -> None:
        self.num_slots = num_slots
        self.slots: Tensor = torch.arange(num_slots)
        self.positions: Tensor = torch.zeros(num_slots, 1, dtype=torch.long)
        self.read_length: int | None = None
        self.capacity = 0
        self._slot_layers = [_SlotLayer(self) for _ in range(num_layers)]
        super().__init__(layers=[*self._slot_layers])

    def ensure(self, length: int) -> None:
        """Makes room for `length` positions in every slot, keeping what is there."""
        if length > self.capacity:
            capacity = max(length, 2 * self.capacity)
            for layer in self._slot_layers:
                layer.grow(capacity)
            self.capacity = capacity


class _SlotLayer(CacheLayerMixin):
    is_sliding = False

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self._allocate(key_states, value_states)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            held, values = self._allocate(key_states, value_states)
        else:
            held, values = self.keys, self.values
        rows = self.cache.slots[:, None]
        held[rows, :, self.cache.positions] = key_states.transpose(1, 2)
        values[rows, :, self.cache.positions] = value_states.transpose(1, 2)
        length = self.cache.read_length
        if length is None:
            return key_states, value_states
        return held[:, :, :length], values[:, :, :length]

    def grow(self, capacity: int) -> None:
        """Makes room for `capacity` positions, keeping what is there."""
        if self.keys is not None and self.values is not None:
            self.keys = _grown(self.keys, capacity)
            self.values = _grown(self.values, capacity)

    def _allocate(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        slots, capacity = self.cache.num_slots, self.cache.capacity
        self.keys, self.values = (
            torch.zeros(slots, new.shape[1], capacity, new.shape[3], dtype=new.dtype)
            for new in (key_states, value_states)
        )
        self.is_initialized = True
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (self.cache.read_length or query_length), 0

    def get_max_length(self) -> int:
        return -1


def _grown(old: Tensor, capacity: int) -> Tensor:
    new = torch.zeros(*old.shape[:2], capacity, old.shape[3], dtype=old.dtype)
    new[:, :, : old.shape[2]] = old
    return new
