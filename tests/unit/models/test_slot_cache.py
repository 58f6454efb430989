from __future__ import annotations

import pytest
import torch

from cambium.models.slot_cache import SlotCache

H, D = 2, 4


def keys(rows: int, length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, H, length, D, generator=generator)


def write(cache: SlotCache, slots: list[int], positions: torch.Tensor, seed: int) -> torch.Tensor:
    new = keys(len(slots), positions.shape[1], seed)
    cache.slots, cache.positions = torch.tensor(slots), positions
    cache.layers[0].update(new, 2 * new)
    return new


def held(cache: SlotCache, slot: int, length: int) -> torch.Tensor:
    values = cache.layers[0].keys
    assert values is not None
    return values[slot, :, :length]


def test_each_slot_keeps_what_was_written_at_its_positions() -> None:
    cache = SlotCache(1, 4)
    cache.ensure(16)
    first = write(cache, [2, 0], torch.arange(5).expand(2, 5), 1)
    assert torch.equal(held(cache, 2, 5), first[0]) and torch.equal(held(cache, 0, 5), first[1])
    assert not held(cache, 1, 16).any() and not held(cache, 3, 16).any()
    later = write(cache, [0, 1, 2, 3], torch.tensor([[5], [0], [5], [9]]), 2)
    assert torch.equal(held(cache, 2, 5), first[0])
    assert torch.equal(held(cache, 2, 6)[:, 5], later[2][:, 0])
    assert torch.equal(held(cache, 3, 16)[:, 9], later[3][:, 0])


def test_growing_keeps_what_is_there() -> None:
    cache = SlotCache(2, 3)
    cache.ensure(8)
    assert cache.capacity == 8
    first = write(cache, [1], torch.arange(8).expand(1, 8), 1)
    cache.ensure(8)
    assert cache.capacity == 8
    cache.ensure(9)
    assert cache.capacity == 16
    assert torch.equal(held(cache, 1, 8), first[0]) and not held(cache, 1, 16)[:, 8:].any()
    assert cache.layers[1].keys is None
    cache.ensure(100)
    assert cache.capacity == 100 and torch.equal(held(cache, 1, 8), first[0])
    values = cache.layers[0].values
    assert values is not None and torch.equal(values[1, :, :8], 2 * first[0])


def test_a_prefill_attends_to_the_new_keys_alone_and_decoding_to_what_is_read() -> None:
    cache = SlotCache(1, 2)
    cache.ensure(16)
    new = keys(1, 4, 1)
    cache.slots, cache.positions = torch.tensor([1]), torch.arange(4)[None]
    assert cache.layers[0].update(new, new)[0] is new
    assert cache.layers[0].get_mask_sizes(4) == (4, 0)
    cache.read_length = 8
    cache.slots, cache.positions = torch.arange(2), torch.tensor([[0], [4]])
    read, _ = cache.layers[0].update(keys(2, 1, 2), keys(2, 1, 2))
    assert read.shape == (2, H, 8, D)
    assert torch.equal(read[1, :, :4], new[0])
    assert cache.layers[0].get_mask_sizes(1) == (8, 0)


def test_writing_beyond_the_room_is_an_error() -> None:
    cache = SlotCache(1, 2)
    cache.ensure(4)
    with pytest.raises(IndexError):
        write(cache, [0], torch.tensor([[4]]), 1)
