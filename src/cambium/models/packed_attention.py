"""Attention of a packed pass: each sequence by itself, with a backward that is fast in bf16.

On processors, the backward of PyTorch's fused attention is slow in bf16, slower than these batched
products, and a pass's sequences are short enough to hold their weights in memory.
Shape letters: N tokens of a pass, S sequences, T longest sequence, H heads, D size of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from cambium.models.packing import Pack

ATTENTION = "cambium_packed"
# What some architectures add to the scores; those go through the library's own function.
_EXTRAS = ("position_bias", "softcap", "s_aux")

_current: ContextVar[Pack | None] = ContextVar("cambium_pack", default=None)


@contextmanager
def attending(pack: Pack) -> Iterator[None]:
    """Makes attention regroup the flat tokens by `pack`'s sequences."""
    token = _current.set(pack)
    try:
        yield
    finally:
        _current.reset(token)


def packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Causal attention within each sequence; query [1 H N D], returns [1 N H D]."""
    pack = _current.get()
    if pack is None:
        raise RuntimeError("packed attention outside of a packed pass")
    if query.shape[1] != key.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    lanes = [_ToLanes.apply(t[0].transpose(0, 1), pack) for t in (query, key, value)]
    if all(kwargs.get(name) is None for name in _EXTRAS):
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        flat = [t.flatten(0, 1) for t in lanes]
        out = _CausalAttention.apply(flat[0], flat[1], flat[2], float(scale))
        out = out.view(lanes[0].shape)
    else:
        kwargs["is_causal"] = True
        q, k, v = lanes
        out = sdpa_attention_forward(module, q, k, v, None, **kwargs)[0].transpose(1, 2)
    return _FromLanes.apply(out, pack)[None], None


class _ToLanes(torch.autograd.Function):
    """Flat tokens [N H D] to sequences [S H T D]."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, pack: Pack) -> Tensor:
        ctx.pack = pack
        return _gathered(flat, pack)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        pack = ctx.pack
        if not pack.is_shared:
            return _scattered(grads[0], pack), None
        lanes = grads[0].transpose(1, 2).flatten(0, 1)
        flat = lanes.new_zeros(len(pack.tokens), *lanes.shape[1:], dtype=torch.float32)
        return flat.index_add_(0, pack.lanes.flatten(), lanes.float()).to(lanes.dtype), None


class _FromLanes(torch.autograd.Function):
    """Sequences [S H T D] to flat tokens [N H D]; padding becomes zero."""

    @staticmethod
    def forward(ctx: Any, lanes: Tensor, pack: Pack) -> Tensor:
        ctx.pack = pack
        return _scattered(lanes, pack)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # A token is read from its own slot only: no copy of it gets the gradient again.
        return _gathered(grads[0], ctx.pack, slots_only=True), None


def _gathered(flat: Tensor, pack: Pack, *, slots_only: bool = False) -> Tensor:
    if pack.is_grid:
        lanes = flat.reshape(*pack.lanes.shape, *flat.shape[1:])
    else:
        lanes = flat.index_select(0, pack.lanes.flatten())
        if slots_only:
            lanes.index_fill_(0, pack.copies, 0)
        lanes = lanes.view(*pack.lanes.shape, *flat.shape[1:])
    return lanes.transpose(1, 2).contiguous()


def _scattered(lanes: Tensor, pack: Pack) -> Tensor:
    flat = lanes.transpose(1, 2).flatten(0, 1)
    if pack.is_grid:
        return flat
    return flat.index_select(0, pack.slots).index_fill_(0, pack.padding, 0)


class _CausalAttention(torch.autograd.Function):
    """softmax(scale q k^T + causal mask) v over batches [S*H T D]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        mask = _mask(query.shape[1], query.dtype)
        scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=scale)
        weights = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scale = scale
        return torch.bmm(weights, value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, weights = ctx.saved_tensors
        out = grads[0].contiguous()
        by_weights = torch.bmm(out, value.transpose(1, 2))
        by_scores = torch.ops.aten._softmax_backward_data(by_weights, weights, -1, weights.dtype)
        by_scores.mul_(ctx.scale)
        return (
            torch.bmm(by_scores, key),
            torch.bmm(by_scores.transpose(1, 2), query),
            torch.bmm(weights.transpose(1, 2), out),
            None,
        )


@lru_cache(maxsize=64)
def _mask(length: int, dtype: torch.dtype) -> Tensor:
    return torch.full((length, length), float("-inf")).triu(1).to(dtype)[None]


AttentionInterface.register(ATTENTION, packed_attention)
