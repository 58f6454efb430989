"""The base as the learner runs it: many adapters in one flat pass, forward and backward.

A twin of the base's modules, in bf16 where the processor multiplies it in hardware and sharing
the base's own weights otherwise. Each adapted module runs as one function with a backward of its
own, which writes the adapters' gradients straight into their stack; nothing is computed below the
first adapted module, and no gradient of a base weight at all.
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

from cambium.core.errors import ModelError
from cambium.models.adapter_stack import AdapterStack
from cambium.models.base import BaseModel
from cambium.models.chunked_head import HeadLoss, cross_entropy, head_losses
from cambium.models.lora import Lora, LoraConfig
from cambium.models.packed_attention import ATTENTION, attending
from cambium.models.packing import IGNORED, Pack, Segment, targets_of
from cambium.models.packing import pack as packed


def compute_dtype() -> torch.dtype:
    """Returns bf16 where the processor multiplies it in hardware, else fp32."""
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


class TrainingModel:
    """Runs packs of tokens through the frozen base with stacks of adapters.

    Passes take the base's lock, so that learning and answers take turns on the processor. Before
    the first pass it is checked in fp32 that two packed texts score as each does alone in the
    base: an architecture with attention or a head of its own kind serves, but does not learn.
    """

    def __init__(self, base: BaseModel, dtype: torch.dtype | None = None) -> None:
        self.base = base
        self.dtype = dtype or compute_dtype()
        self._model = _twin(base.model, self.dtype)
        self._pass: _Pass | None = None
        self._anchor = torch.zeros((), requires_grad=True)
        self._is_checked = False
        for path in base.sites:
            module = self._model.get_submodule(path)
            weight = module.weight.T if base.sites[path].transposed else module.weight
            module.forward = partial(self._run, _Site(path=path, weight=weight, bias=module.bias))

    def train_pass(
        self,
        pack: Pack,
        stack: AdapterStack,
        loss: HeadLoss,
        *,
        parents: AdapterStack | None = None,
    ) -> Tensor:
        """Returns the losses [M] of `pack`'s target positions; adds gradients to the stack.

        Raises:
            ModelError: the base is of an architecture that cannot be taught this way.
        """

        def run() -> Tensor:
            with self.base.lock:
                losses = self._losses(pack, stack, loss, parents)
                losses.sum().backward()
            return losses.detach()

        self._check()
        return self.base.run(run)

    @torch.no_grad()
    def eval_pass(
        self,
        pack: Pack,
        stack: AdapterStack,
        loss: HeadLoss,
        *,
        parents: AdapterStack | None = None,
    ) -> Tensor:
        """Returns the losses [M] of `pack`'s target positions, in order.

        Raises:
            ModelError: the base is of an architecture that cannot be taught this way.
        """

        def run() -> Tensor:
            with self.base.lock:
                return self._losses(pack, stack, loss, parents)

        self._check()
        return self.base.run(run)

    def _check(self) -> None:
        """Refuses a base whose twin does not compute what the base does."""
        if not self._is_checked:
            twin = self if self.dtype == torch.float32 else TrainingModel(self.base, torch.float32)
            twin._compare()
            self._is_checked = True

    @torch.no_grad()
    def _compare(self) -> None:
        length = min(24, self.base.context)
        ids = torch.arange(2 * (length + 1)) % self.base.model.config.get_text_config().vocab_size
        rows = ids.view(2, length + 1)
        segments = [Segment(adapter=0, tokens=row[:-1], targets=row[1:]) for row in rows.tolist()]
        empty = Lora(config=LoraConfig(), a={}, b={})
        stack = AdapterStack([empty], self.base.sites, dtype=self.dtype)
        targets, _ = targets_of(segments)
        loss = cross_entropy(targets, torch.ones(len(targets)))
        with self.base.rows(None) as model:
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits.float()
        expected = nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
        try:
            with self.base.lock:
                found = self._losses(packed(segments), stack, loss, None)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise _unteachable(self.base) from error
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
            raise _unteachable(self.base)

    def _losses(
        self, pack: Pack, stack: AdapterStack, loss: HeadLoss, parents: AdapterStack | None
    ) -> Tensor:
        self._pass = _Pass(pack=pack, stack=stack, parents=parents)
        try:
            with attending(pack):
                hidden = self._model.base_model(
                    input_ids=pack.tokens[None],
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


def _unteachable(base: BaseModel) -> ModelError:
    kind = type(base.model).__name__
    return ModelError(
        f"{kind} computes attention or its head otherwise than in packed passes, so it serves but "
        "cannot learn here",
        mend="use a base of a Llama, Qwen or GPT-2 kind for learning",
    )


@dataclass(frozen=True, kw_only=True)
class _Site:
    """An adapted module: where it is, its weight [O I] and bias."""

    path: str
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """What the adapted modules need to know of the pass under way."""

    pack: Pack
    stack: AdapterStack
    parents: AdapterStack | None


class _SiteFunction(torch.autograd.Function):
    """`x W^T + x A^T B^T` with each chunk's own A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, site: _Site, within: _Pass) -> Tensor:
        pack, stack, parents, path = within.pack, within.stack, within.parents, site.path
        out = nn.functional.linear(x, site.weight, site.bias)
        chunks = x.view(-1, pack.chunk, x.shape[-1])
        out_chunks = out.view(-1, pack.chunk, out.shape[-1])
        inner = None
        if path in stack.paths:
            a, b = _own(stack, path, pack)
            inner = torch.bmm(chunks, a.transpose(1, 2))
            out_chunks.baddbmm_(inner, b.transpose(1, 2))
        if parents is not None and path in parents.paths:
            a, b = _chosen(parents, path, pack.parents)
            out_chunks.baddbmm_(torch.bmm(chunks, a.transpose(1, 2)), b.transpose(1, 2))
        ctx.save_for_backward(x, inner)
        ctx.place = (site, within)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, inner = ctx.saved_tensors
        site, within = ctx.place
        pack, stack, parents, path = within.pack, within.stack, within.parents, site.path
        out = grads[0].contiguous()
        out_chunks = out.view(-1, pack.chunk, out.shape[-1])
        needed = ctx.needs_input_grad[0]
        dx = torch.matmul(out, site.weight) if needed else None
        dx_chunks = dx.view(-1, pack.chunk, dx.shape[-1]) if dx is not None else None
        if inner is not None:
            a, b = _own(stack, path, pack)
            by_inner = torch.bmm(out_chunks, b)
            chunks = x.view(-1, pack.chunk, x.shape[-1])
            stack.add_grad(
                path,
                None if _is_whole(stack, pack) else pack.owners,
                torch.bmm(by_inner.transpose(1, 2), chunks),
                torch.bmm(out_chunks.transpose(1, 2), inner),
            )
            if dx_chunks is not None:
                dx_chunks.baddbmm_(by_inner, a)
        if dx_chunks is not None and parents is not None and path in parents.paths:
            a, b = _chosen(parents, path, pack.parents)
            dx_chunks.baddbmm_(torch.bmm(out_chunks, b), a)
        return dx, None, None, None


def _is_whole(stack: AdapterStack, pack: Pack) -> bool:
    return pack.in_order and len(pack.owners) == len(stack.weights)


def _own(stack: AdapterStack, path: str, pack: Pack) -> tuple[Tensor, Tensor]:
    a, b = stack.halves(path)
    return (a, b) if _is_whole(stack, pack) else (a[pack.owners], b[pack.owners])


def _chosen(stack: AdapterStack, path: str, owners: Tensor) -> tuple[Tensor, Tensor]:
    a, b = stack.halves(path)
    return a[owners], b[owners]


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
