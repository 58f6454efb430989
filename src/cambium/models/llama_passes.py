"""Llama's blocks over flat passes, forward and backward by hand.

For bases whose blocks are RMSNorm, rotary attention and SwiGLU. On a processor most of a short
pass is the many small operations around its products, so modules that read the same inputs run as
one product, activations are kept as the backward needs them, and no graph is recorded. The
backward writes adapters' gradients straight into their stack, stops below the lowest adapted
block, and makes no gradient of a base weight at all.
Shape letters: N tokens, D width, K chunks of n tokens with one adapter each, R rank, I inputs,
O outputs, S sequences of T tokens, H heads (query, key and value together: 3H here), E size of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cambium.models.base import BaseModel
from cambium.models.chunked_head import HeadLoss, head_pass
from cambium.models.flat_pass import FlatPass
from cambium.models.packed_attention import attend, attend_back, from_lanes, to_lanes
from cambium.models.packing import IGNORED
from cambium.models.stack import Stack

# Architectures whose blocks these are; a base is compared with them before it learns.
KINDS = ("llama", "mistral", "qwen2")


def are_llamas(base: BaseModel) -> bool:
    """Returns whether these passes compute what the base does, by what it says of itself."""
    config: Any = base.model.config
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in KINDS
        and config.hidden_act == "silu"
        and not any(site.transposed for site in base.sites.values())
        and rope.get("partial_rotary_factor", 1.0) == 1.0
    )


class LlamaPasses:
    """The base's blocks as frozen weights in `dtype`, and passes through them.

    Weights are the base's own in fp32 and copies, joined where inputs are shared, in bf16.
    """

    def __init__(self, base: BaseModel, dtype: torch.dtype) -> None:
        model: Any = base.model
        self._dtype = dtype
        self._embed = model.get_input_embeddings().weight
        self._rotary = model.model.rotary_emb
        self._blocks = [
            _Block(layer, f"model.layers.{i}", dtype, model.config)
            for i, layer in enumerate(model.model.layers)
        ]
        self._norm = _Norm(model.model.norm, dtype)
        head = model.get_output_embeddings()
        self._head = head.weight.detach().to(dtype)
        self._bias = None if head.bias is None else head.bias.detach().to(dtype)

    @torch.no_grad()
    def losses(self, within: FlatPass, loss: HeadLoss) -> Tensor:
        """Returns the losses [M] of the pass's target positions, in order."""
        hidden, _ = self._forward(within, keep=False)
        chosen = hidden[within.pack.targets != IGNORED]
        return head_pass(chosen, self._head, self._bias, loss, wanted=False)[0]

    @torch.no_grad()
    def learn(self, within: FlatPass, loss: HeadLoss) -> Tensor:
        """Returns the losses [M]; adds gradients to the stack."""
        hidden, kept = self._forward(within, keep=True)
        chosen = within.pack.targets != IGNORED
        losses, grad = head_pass(hidden[chosen], self._head, self._bias, loss, wanted=True)
        by_hidden = torch.zeros_like(hidden)
        if grad is not None:
            by_hidden[chosen] = grad
        flow = self._norm.backward(by_hidden, kept.pop(), None)
        lowest = self._lowest(within.stack)
        for at in range(len(self._blocks) - 1, max(lowest, 0) - 1, -1):
            block = self._blocks[at]
            flow = block.backward(flow, kept.pop(), within, needs_input=at > lowest)
        if within.stack.virtual:
            within.stack.take(flow, within.pack.tokens)
        return losses

    def _forward(self, within: FlatPass, *, keep: bool) -> tuple[Tensor, list[Any]]:
        pack = within.pack
        x = nn.functional.embedding(pack.tokens.clamp(min=0), self._embed)
        x = within.stack.lay(x, pack.tokens).to(self._dtype)
        turn = _Turn.at(self._rotary, x, pack.positions)
        kept: list[Any] = []
        for block in self._blocks:
            x, saved = block.forward(x, within, turn)
            if keep:
                kept.append(saved)
        x, saved = self._norm.forward(x)
        kept.append(saved)
        return x, kept

    def _lowest(self, stack: Stack) -> int:
        """Returns the lowest block that some adapter changes, -1 where it is the embeddings."""
        if stack.virtual:
            return -1
        paths = set(stack.paths)
        touched = (i for i, block in enumerate(self._blocks) if paths & block.paths)
        return next(touched, len(self._blocks))


class _Block:
    """Attention and feed-forward of one layer, each behind a norm and added to the stream."""

    def __init__(self, layer: Any, path: str, dtype: torch.dtype, config: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._first = _Norm(layer.input_layernorm, dtype)
        self._second = _Norm(layer.post_attention_layernorm, dtype)
        heads, shared = config.num_attention_heads, config.num_key_value_heads
        self._size = attention.head_dim
        self._heads, self._shared = heads, shared
        self._scale = float(attention.scaling)

        def joint(module: Any, prefix: str, names: Sequence[str]) -> _Joint:
            parts = [getattr(module, name) for name in names]
            return _Joint(parts, [f"{path}.{prefix}.{name}" for name in names], dtype)

        self._qkv = joint(attention, "self_attn", ("q_proj", "k_proj", "v_proj"))
        self._out = joint(attention, "self_attn", ("o_proj",))
        self._up = joint(mlp, "mlp", ("gate_proj", "up_proj"))
        self._down = joint(mlp, "mlp", ("down_proj",))
        self.paths = {p for one in (self._qkv, self._out, self._up, self._down) for p in one.paths}

    def forward(self, x: Tensor, within: FlatPass, turn: _Turn) -> tuple[Tensor, tuple[Any, ...]]:
        """Returns the stream after this block [N D] and what its backward needs."""
        read, norm1 = self._first.forward(x)
        qkv, inner1 = self._qkv.forward(read, within)
        turn.forward(self._turned(qkv))
        lanes = to_lanes(qkv, within.pack, self._size)
        attended, weights = attend(lanes, self._heads, self._shared, self._scale)
        mixed = from_lanes(attended, within.pack)
        added, inner2 = self._out.forward(mixed, within)
        x = added.add_(x)
        asked, norm2 = self._second.forward(x)
        both, inner3 = self._up.forward(asked, within)
        gate, up = both.chunk(2, dim=1)
        act = nn.functional.silu(gate)
        wide = act * up
        added, inner4 = self._down.forward(wide, within)
        saved = (
            turn, norm1, norm2, (read, inner1), (lanes, weights), (mixed, inner2),
            (asked, inner3), (both, act), (wide, inner4),
        )  # fmt: skip
        return added.add_(x), saved

    def backward(
        self, flow: Tensor, saved: tuple[Any, ...], within: FlatPass, *, needs_input: bool
    ) -> Tensor:
        """Returns the gradient of the stream before this block, of no use if not needed."""
        turn, norm1, norm2, qkv, (lanes, weights), out, asked, (both, act), wide = saved
        by_wide = self._down.backward(flow, wide, within)
        gate, up = both.chunk(2, dim=1)
        by_both = torch.empty_like(both)
        by_gate, by_up = by_both.chunk(2, dim=1)
        torch.mul(by_wide, act, out=by_up)
        torch.ops.aten.silu_backward.grad_input(by_wide.mul_(up), gate, grad_input=by_gate)
        flow = self._second.backward(self._up.backward(by_both, asked, within), norm2, flow)
        by_mixed = self._out.backward(flow, out, within)
        by_lanes = to_lanes(by_mixed, within.pack, self._size, slots_only=True)
        by_qkv = from_lanes(
            attend_back(
                by_lanes,
                lanes,
                weights,
                heads=self._heads,
                shared=self._shared,
                scale=self._scale,
            ),
            within.pack,
            is_gradient=True,
        )
        turn.backward(self._turned(by_qkv))
        by_read = self._qkv.backward(by_qkv, qkv, within, needs_input=needs_input)
        return self._first.backward(by_read, norm1, flow) if needs_input else flow

    def _turned(self, qkv: Tensor) -> Tensor:
        """Returns the queries and keys of `qkv` [N 3HE] as heads, in place."""
        heads = self._heads + self._shared
        return qkv[:, : heads * self._size].unflatten(1, (heads, self._size))


class _Joint:
    """Modules that read the same inputs, as one product: `x W^T + x A^T B^T` with own A and B."""

    def __init__(self, modules: Sequence[Any], paths: Sequence[str], dtype: torch.dtype) -> None:
        weights = [module.weight.detach() for module in modules]
        biases = [module.bias for module in modules]
        self.paths = tuple(paths)
        self._sizes = [len(weight) for weight in weights]
        if weights[0].dtype != dtype:
            weights = [torch.cat(weights)]
        self._weights = [weight.to(dtype) for weight in weights]
        self._bias: Tensor | None = None
        if any(bias is not None for bias in biases):
            own = zip(biases, self._sizes, strict=True)
            parts = [torch.zeros(size) if b is None else b.detach() for b, size in own]
            self._bias = torch.cat(parts).to(dtype)

    def forward(self, x: Tensor, within: FlatPass) -> tuple[Tensor, Tensor | None]:
        """Returns outputs [N O] and, with an adapter, the products by its A, [K n MR]."""
        out, in_chunks, inner = self._forward(x), within.pack.in_chunks, None
        for stack, owners in within.stacks():
            halves = stack.joint_halves(self.paths)
            if halves is None:
                continue
            a, b = (half if owners is None else half[owners] for half in halves)
            by_a = torch.bmm(in_chunks(x), a.transpose(1, 2))
            in_chunks(out).baddbmm_(by_a, b.transpose(1, 2))
            if stack is within.stack:
                inner = by_a
        return out, inner

    def backward(
        self,
        grad: Tensor,
        saved: tuple[Tensor, Tensor | None],
        within: FlatPass,
        *,
        needs_input: bool = True,
    ) -> Tensor:
        """Adds the adapters' gradients; returns that of the inputs [N I], empty if not needed.

        Args:
            grad: of the outputs [N O].
            saved: the inputs, and what `forward` gave beside the outputs.
        """
        (x, inner), in_chunks = saved, within.pack.in_chunks
        chunks = in_chunks(grad)
        by_x = self._backward(grad) if needs_input else x[:0]
        for stack, owners in within.stacks():
            halves = stack.joint_halves(self.paths)
            if halves is None:
                continue
            a, b = (half if owners is None else half[owners] for half in halves)
            by_inner = torch.bmm(chunks, b)
            if needs_input:
                in_chunks(by_x).baddbmm_(by_inner, a)
            if stack is within.stack and inner is not None:
                by_a = torch.bmm(by_inner.transpose(1, 2), in_chunks(x))
                by_b = torch.bmm(chunks.transpose(1, 2), inner)
                stack.add_grad(self.paths, owners, by_a, by_b)
        return by_x

    def _forward(self, x: Tensor) -> Tensor:
        if len(self._weights) == 1:
            return nn.functional.linear(x, self._weights[0], self._bias)
        out = x.new_empty(len(x), sum(self._sizes))
        for weight, part in zip(self._weights, out.split(self._sizes, dim=1), strict=True):
            torch.mm(x, weight.T, out=part)
        return out if self._bias is None else out.add_(self._bias)

    def _backward(self, grad: Tensor) -> Tensor:
        if len(self._weights) == 1:
            return torch.mm(grad, self._weights[0])
        parts = grad.split(self._sizes, dim=1)
        by_x = torch.mm(parts[0], self._weights[0])
        for part, weight in zip(parts[1:], self._weights[1:], strict=True):
            by_x.addmm_(part, weight)
        return by_x


class _Norm:
    """RMSNorm, its rates in fp32. Source: Zhang and Sennrich (2019), equation 4."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        self._weight = module.weight.detach().to(dtype)
        self._eps = float(module.variance_epsilon)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns the scaled normal of x [N D], and the normal with its rates [N 1]."""
        rate = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        rate = rate.square_().div_(x.shape[1]).add_(self._eps).rsqrt_()
        normal = torch.mul(x, rate, out=torch.empty_like(x))
        return normal * self._weight, (normal, rate)

    def backward(self, grad: Tensor, saved: tuple[Tensor, Tensor], flow: Tensor | None) -> Tensor:
        """Returns the gradient of x [N D], added to what flows past the norm."""
        normal, rate = saved
        grad = grad.mul_(self._weight)
        share = (grad * normal).sum(dim=1, keepdim=True, dtype=torch.float32)
        share = share.div_(-grad.shape[1]).to(grad.dtype)
        by_x = grad.addcmul_(normal, share).mul_(rate.to(grad.dtype))
        return by_x if flow is None else by_x.add_(flow)


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """Rotary embedding of queries and keys, in place. Source: Su et al. (2021), equation 34.

    Args:
        cos, sin: shape [N 1 E]; the first half of `sin` negated, for a half-turn of the heads.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, rotary: Any, like: Tensor, positions: Tensor) -> _Turn:
        """Returns the turn of tokens at `positions` [N]."""
        cos, sin = (t[0, :, None] for t in rotary(like, positions[None]))
        first, second = sin.chunk(2, dim=-1)
        return cls(cos=cos.contiguous(), sin=torch.cat([-first, second], dim=-1))

    def forward(self, heads: Tensor) -> None:
        """Turns heads [N H E]."""
        turned = heads.roll(heads.shape[-1] // 2, -1).mul_(self.sin)
        torch.addcmul(turned, heads, self.cos, out=heads)

    def backward(self, heads: Tensor) -> None:
        """Turns gradients of heads [N H E] back."""
        turned = heads.roll(heads.shape[-1] // 2, -1).mul_(-self.sin)
        torch.addcmul(turned, heads, self.cos, out=heads)
