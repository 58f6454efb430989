"""Any base over flat passes: a twin of its modules whose adapted ones have a backward of their own.

A copy in bf16 where passes compute so, sharing the base's own weights otherwise. Each adapted
module runs as one function, which writes the adapters' gradients straight into their stack;
nothing is computed below the first adapted module, and no gradient of a base weight at all.
Shape letters: N tokens, K chunks of n tokens with one adapter each, R rank, I inputs, O outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cambium.models.base import BaseModel
from cambium.models.chunked_head import HeadLoss, head_losses
from cambium.models.flat_pass import FlatPass
from cambium.models.packed_attention import ATTENTION, attending
from cambium.models.packing import IGNORED


class TwinPasses:
    """The base's modules under autograd, attention and adapted modules exchanged."""

    def __init__(self, base: BaseModel, dtype: torch.dtype) -> None:
        self._model = _twin(base.model, dtype)
        self._pass: FlatPass | None = None
        self._anchor = torch.zeros((), requires_grad=True)
        for path in base.sites:
            module = self._model.get_submodule(path)
            weight = module.weight.T if base.sites[path].transposed else module.weight
            module.forward = partial(self._run, _Site(path=path, weight=weight, bias=module.bias))

    @torch.no_grad()
    def losses(self, within: FlatPass, loss: HeadLoss) -> Tensor:
        """Returns the losses [M] of the pass's target positions, in order."""
        return self._losses(within, loss, self._embedded(within))

    @torch.enable_grad()
    def learn(self, within: FlatPass, loss: HeadLoss) -> Tensor:
        """Returns the losses [M]; adds gradients to the stack."""
        embedded = self._embedded(within)
        if within.stack.virtual:
            embedded = embedded.detach().requires_grad_()
        losses = self._losses(within, loss, embedded)
        losses.sum().backward()
        if embedded.grad is not None:
            within.stack.take(embedded.grad, within.pack.tokens)
        return losses.detach()

    def _embedded(self, within: FlatPass) -> Tensor:
        """Returns the pass's input embeddings [N D]."""
        tokens = within.pack.tokens
        return within.stack.lay(self._model.get_input_embeddings()(tokens.clamp(min=0)), tokens)

    def _losses(self, within: FlatPass, loss: HeadLoss, embedded: Tensor) -> Tensor:
        pack = within.pack
        self._pass = within
        try:
            with attending(pack):
                hidden = self._model.base_model(
                    inputs_embeds=embedded[None],
                    position_ids=pack.positions[None],
                    use_cache=False,
                ).last_hidden_state[0]
        finally:
            self._pass = None
        head = self._model.get_output_embeddings()
        return head_losses(hidden[pack.targets != IGNORED], head.weight, head.bias, loss)

    def _run(self, site: _Site, x: Tensor) -> Tensor:
        if self._pass is None:
            return nn.functional.linear(x, site.weight, site.bias)
        out: Tensor = _SiteFunction.apply(x, self._anchor, site, self._pass)
        return out


@dataclass(frozen=True, kw_only=True)
class _Site:
    """An adapted module: where it is, its weight [O I] and bias."""

    path: str
    weight: Tensor
    bias: Tensor | None


class _SiteFunction(torch.autograd.Function):
    """`x W^T + x A^T B^T` with each chunk's own A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, site: _Site, within: FlatPass) -> Tensor:
        out, inner = nn.functional.linear(x, site.weight, site.bias), None
        in_chunks = within.pack.in_chunks
        for stack, owners in within.stacks():
            if site.path not in stack.paths:
                continue
            a, b = (t if owners is None else t[owners] for t in stack.halves(site.path))
            by_a = torch.bmm(in_chunks(x), a.transpose(1, 2))
            in_chunks(out).baddbmm_(by_a, b.transpose(1, 2))
            if stack is within.stack:
                inner = by_a
        ctx.save_for_backward(x, inner)
        ctx.place = (site, within)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, inner = ctx.saved_tensors
        site, within = ctx.place
        out, in_chunks = grads[0].contiguous(), within.pack.in_chunks
        out_chunks = in_chunks(out)
        dx = torch.matmul(out, site.weight) if ctx.needs_input_grad[0] else None
        for stack, owners in within.stacks():
            if site.path not in stack.paths:
                continue
            a, b = (t if owners is None else t[owners] for t in stack.halves(site.path))
            by_inner = torch.bmm(out_chunks, b)
            if dx is not None:
                in_chunks(dx).baddbmm_(by_inner, a)
            if stack is within.stack:
                by_a = torch.bmm(by_inner.transpose(1, 2), in_chunks(x))
                stack.add_grad(
                    (site.path,), owners, by_a, torch.bmm(out_chunks.transpose(1, 2), inner)
                )
        return dx, None, None, None


class _RmsNormFunction(torch.autograd.Function):
    """Zhang and Sennrich (2019), in fp32 inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        rate = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        normal = (wide * rate).to(x.dtype)
        ctx.save_for_backward(normal, rate, weight)
        return normal * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        normal, rate, weight = ctx.saved_tensors
        grad, wide = (grads[0] * weight).float(), normal.float()
        share = (grad * wide).mean(-1, keepdim=True)
        return torch.addcmul(grad, wide, -share).mul_(rate).to(normal.dtype), None, None


def _twin(model: Any, dtype: torch.dtype) -> Any:
    """Returns a copy of the modules, without hooks; weights are shared where the dtype is."""
    shared: Mapping[int, Any] = {}
    if all(p.dtype == dtype for p in model.parameters()):
        shared = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    twin = copy.deepcopy(model, dict(shared)).to(dtype).requires_grad_(False).eval()
    twin.config._attn_implementation = ATTENTION
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            _fuse_norm(module, dtype)
    return twin


def _fuse_norm(module: Any, dtype: torch.dtype) -> None:
    """Gives a norm the fused form if it computes what the fused form does."""

    def fused(x: Tensor) -> Tensor:
        out: Tensor = _RmsNormFunction.apply(x, module.weight, module.variance_epsilon)
        return out

    probe = torch.linspace(-1, 2, len(module.weight)).to(dtype)[None]
    if torch.allclose(module(probe), fused(probe), rtol=1e-2, atol=1e-3):
        module.forward = fused
