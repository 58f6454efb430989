"""Attention of a packed pass: each sequence by itself, with a backward that is fast in bf16.

On processors, the backward of PyTorch's fused attention is slow in bf16, slower than these batched
products, and a pass's sequences are short enough to hold their weights in memory.
Shape letters: N tokens of a pass, S sequences, T longest sequence, H heads, D size of a head;
heads come first, so that queries, keys and values of all sequences are slices of one tensor.
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
        out = _CausalAttention.apply(flat[0], flat[1], flat[2], float(scale)).view(lanes[0].shape)
    else:
        kwargs["is_causal"] = True
        q, k, v = (t.transpose(0, 1) for t in lanes)
        out = sdpa_attention_forward(module, q, k, v, None, **kwargs)[0].permute(2, 0, 1, 3)
    return _FromLanes.apply(out, pack).unflatten(1, (query.shape[1], -1))[None], None


def to_lanes(flat: Tensor, pack: Pack, size: int, *, slots_only: bool = False) -> Tensor:
    """Returns flat tokens [N HD], heads of `size` D, as sequences by head [H S T D].

    Args:
        slots_only: zero in every copy of a token but its own slot.
    """
    if not pack.is_grid:
        flat = flat.index_select(0, pack.lanes.flatten())
        if slots_only:
            flat.index_fill_(0, pack.copies, 0)
    return flat.reshape(*pack.lanes.shape, -1, size).permute(2, 0, 1, 3).contiguous()


def from_lanes(lanes: Tensor, pack: Pack, *, is_gradient: bool = False) -> Tensor:
    """Returns sequences by head [H S T D] as flat tokens [N HD]; padding becomes zero.

    Args:
        is_gradient: a token gets the sum over its copies, not what its own slot holds.
    """
    flat = lanes.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)
    if pack.is_grid:
        return flat
    if is_gradient and pack.is_shared:
        total = flat.new_zeros(len(pack.tokens), flat.shape[1], dtype=torch.float32)
        return total.index_add_(0, pack.lanes.flatten(), flat.float()).to(flat.dtype)
    return flat.index_select(0, pack.slots).index_fill_(0, pack.padding, 0)


def attend(lanes: Tensor, heads: int, shared: int, scale: float) -> tuple[Tensor, Tensor]:
    """Returns causal attention [H S T D] and its weights [HS T T].

    Args:
        lanes: query, key and value heads, one after the other, shape [H+2G S T D].
        heads, shared: H query heads, and G heads of keys and of values, each for H/G queries.
    """
    query, key, value = _parted(lanes, heads, shared)
    weights = _weights(query, key, scale)
    return torch.bmm(weights, value).view(heads, *lanes.shape[1:]), weights


def attend_back(
    grad: Tensor, lanes: Tensor, weights: Tensor, *, heads: int, shared: int, scale: float
) -> Tensor:
    """Returns the gradient of `lanes` by that of what `attend` returned."""
    query, key, value = _parted(lanes, heads, shared)
    flat = grad.flatten(0, 1)
    by_scores = _by_scores(flat, weights, value)
    out = (
        torch.empty_like(lanes) if heads == shared else lanes.new_empty(3 * heads, *lanes.shape[1:])
    )
    by_query, by_key, by_value = (t.flatten(0, 1) for t in out.split(heads))
    torch.baddbmm(by_query, by_scores, key, beta=0, alpha=scale, out=by_query)
    torch.baddbmm(by_key, by_scores.transpose(1, 2), query, beta=0, alpha=scale, out=by_key)
    torch.bmm(weights.transpose(1, 2), flat, out=by_value)
    if heads == shared:
        return out
    queries, both = out.split([heads, 2 * heads])
    return torch.cat([queries, both.view(2 * shared, -1, *lanes.shape[1:]).sum(dim=1)])


def _parted(lanes: Tensor, heads: int, shared: int) -> list[Tensor]:
    """Returns queries, keys and values, each [HS T D]."""
    query, key, value = lanes.split([heads, shared, shared])
    if heads != shared:
        key, value = (t.repeat_interleave(heads // shared, dim=0) for t in (key, value))
    return [t.flatten(0, 1) for t in (query, key, value)]


def _weights(query: Tensor, key: Tensor, scale: float) -> Tensor:
    mask = _mask(query.shape[1], query.dtype)
    return torch.softmax(torch.baddbmm(mask, query, key.transpose(1, 2), alpha=scale), dim=-1)


def _by_scores(grad: Tensor, weights: Tensor, value: Tensor) -> Tensor:
    by_weights = torch.bmm(grad, value.transpose(1, 2))
    found: Tensor = torch.ops.aten._softmax_backward_data(by_weights, weights, -1, weights.dtype)
    return found


class _ToLanes(torch.autograd.Function):
    """Flat tokens [N H D] to sequences by head [H S T D]."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, pack: Pack) -> Tensor:
        ctx.pack = pack
        return to_lanes(flat.flatten(1), pack, flat.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        flat = from_lanes(grads[0], ctx.pack, is_gradient=True)
        return flat.unflatten(1, (-1, grads[0].shape[-1])), None


class _FromLanes(torch.autograd.Function):
    """Sequences by head [H S T D] to flat tokens [N HD]."""

    @staticmethod
    def forward(ctx: Any, lanes: Tensor, pack: Pack) -> Tensor:
        ctx.pack, ctx.size = pack, lanes.shape[-1]
        return from_lanes(lanes, pack)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # A token is read from its own slot only: no copy of it gets the gradient again.
        return to_lanes(grads[0], ctx.pack, ctx.size, slots_only=True), None


class _CausalAttention(torch.autograd.Function):
    """softmax(scale q k^T + causal mask) v over batches [HS T D]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        weights = _weights(query, key, scale)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scale = scale
        return torch.bmm(weights, value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, weights = ctx.saved_tensors
        out = grads[0].contiguous()
        by_scores = _by_scores(out, weights, value).mul_(ctx.scale)
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
