"""The passes that answers are written with: new tokens of every row, over what the cache holds.

Any base can be asked itself. For Llama's blocks the same is computed here by hand: on a processor
most of so short a pass is what stands around its products. Weights are the base's own, and every
row's products are of its own shape, so that its numbers do not depend on its neighbours'.
Shape letters: B rows, T new positions, K positions that are read, V vocabulary, D width of the
model, H heads, E size of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cambium.models.base import BaseModel, RowWeights, add_product
from cambium.models.llama_passes import are_llamas
from cambium.models.slot_cache import SlotCache
from cambium.models.soft_prompt import with_prompts

_Sites = Mapping[str, tuple[tuple[Tensor, Tensor], ...]]
_PROBE_TOKENS = 12


@dataclass(frozen=True, kw_only=True)
class NewTokens:
    """What a pass adds to its rows.

    Args:
        tokens: ids [B T], below zero where a virtual token is; `positions` likewise.
        mask: what each position may read, bool, shape [B 1 T K].
        last: which of the T positions each row is asked about, shape [B].
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    last: Tensor


class AnswerPasses(Protocol):
    """The base's network over new tokens, with adapters by row."""

    def __init__(self, base: BaseModel) -> None: ...

    def logits(self, new: NewTokens, cache: SlotCache, weights: RowWeights | None) -> Tensor:
        """Returns the logits [B V] after each row's last token; writes the cache."""
        ...


def answer_passes(base: BaseModel) -> AnswerPasses:
    """Returns the fastest passes that compute what the base does."""
    asked = AskedBase(base)
    if not are_llamas(base):
        return asked
    by_hand = LlamaAnswers(base)
    return by_hand if torch.allclose(_probed(by_hand, base), _probed(asked, base),
                                     rtol=1e-3, atol=1e-3) else asked  # fmt: skip


class AskedBase:
    """The base itself, of whichever architecture, with its hooks."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base

    def logits(self, new: NewTokens, cache: SlotCache, weights: RowWeights | None) -> Tensor:
        """Returns the logits [B V] after each row's last token; writes the cache."""
        # The base gives the logits of every position it is told, in every row.
        is_one = new.tokens.shape[1] == 1
        with self._base.rows(weights) as model:
            found: Tensor = model(
                input_ids=new.tokens,
                attention_mask=new.mask,
                position_ids=new.positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=new.last[:1] if is_one else new.last,
            ).logits
        row = torch.arange(len(found))
        return found[:, 0] if is_one else found[row, row]


class LlamaAnswers:
    """RMSNorm, rotary attention and SwiGLU over the base's own weights."""

    def __init__(self, base: BaseModel) -> None:
        model: Any = base.model
        self._lock = base.lock
        self._embed = model.get_input_embeddings().weight
        self._rotary = model.model.rotary_emb
        self._blocks = [
            _Block(layer, f"model.layers.{i}", i) for i, layer in enumerate(model.model.layers)
        ]
        self._norm = _Norm(model.model.norm)
        self._head = model.get_output_embeddings()

    def logits(self, new: NewTokens, cache: SlotCache, weights: RowWeights | None) -> Tensor:
        """Returns the logits [B V] after each row's last token; writes the cache."""
        with self._lock:
            x = nn.functional.embedding(new.tokens.clamp(min=0), self._embed)
            if weights is not None and weights.prompts is not None:
                x = with_prompts(x, new.tokens, weights.prompts)
            turn = _turn(self._rotary, x, new.positions)
            sites = weights.sites if weights else {}
            for block in self._blocks:
                x = block.forward(x, turn, new.mask, cache, sites)
            x = self._norm.forward(x)[torch.arange(len(x)), new.last]
            return nn.functional.linear(x, self._head.weight, self._head.bias)


class _Block:
    def __init__(self, layer: Any, path: str, index: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._index = index
        self._first, self._second = (
            _Norm(layer.input_layernorm),
            _Norm(layer.post_attention_layernorm),
        )
        self._size, self._scale = attention.head_dim, float(attention.scaling)
        self._groups = int(attention.num_key_value_groups)
        self._q, self._k, self._v, self._o = (
            _Linear(getattr(attention, name), f"{path}.self_attn.{name}")
            for name in ("q_proj", "k_proj", "v_proj", "o_proj")
        )
        self._gate, self._up, self._down = (
            _Linear(getattr(mlp, name), f"{path}.mlp.{name}")
            for name in ("gate_proj", "up_proj", "down_proj")
        )

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor, cache: SlotCache, sites: _Sites
    ) -> Tensor:
        """Returns the stream [B T D] after this block."""
        read = self._first.forward(x)
        query, key, value = (
            one.forward(read, sites).unflatten(2, (-1, self._size))
            for one in (self._q, self._k, self._v)
        )
        query, key = _turned(query, turn).transpose(1, 2), _turned(key, turn).transpose(1, 2)
        keys, values = cache.update(key, value.transpose(1, 2), self._index)
        if self._groups > 1:
            keys, values = (t.repeat_interleave(self._groups, dim=1) for t in (keys, values))
        mixed = nn.functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=self._scale
        )
        x = self._o.forward(mixed.transpose(1, 2).flatten(2), sites).add_(x)
        asked = self._second.forward(x)
        wide = nn.functional.silu(self._gate.forward(asked, sites))
        wide.mul_(self._up.forward(asked, sites))
        return self._down.forward(wide, sites).add_(x)


class _Linear:
    """A linear module of the base with the rows' adapters on it."""

    def __init__(self, module: Any, path: str) -> None:
        self._weight, self._bias, self._path = module.weight, module.bias, path

    def forward(self, x: Tensor, sites: _Sites) -> Tensor:
        out = nn.functional.linear(x, self._weight, self._bias)
        for a, b in sites.get(self._path, ()):
            out = add_product(out, x @ a, b)
        return out


class _Norm:
    """RMSNorm. Source: Zhang and Sennrich (2019), equation 4."""

    def __init__(self, module: Any) -> None:
        self._weight, self._eps = module.weight, float(module.variance_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self._weight.shape, self._weight, self._eps)


def _turn(rotary: Any, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Returns cosines and sines [B T 1 E], the sines' first half negated, for a turn of heads."""
    cos, sin = (t[:, :, None] for t in rotary(like, positions))
    first, second = sin.chunk(2, dim=-1)
    return cos, torch.cat([-first, second], dim=-1)


def _turned(heads: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Returns heads [B T H E] at their positions. Source: Su et al. (2021), equation 34."""
    cos, sin = turn
    other = heads.roll(heads.shape[-1] // 2, -1).mul_(sin)
    return torch.addcmul(other, heads, cos)


@torch.inference_mode()
def _probed(passes: AnswerPasses, base: BaseModel) -> Tensor:
    """Returns the logits after a few tokens and after one more, of two rows."""
    config = base.model.config.get_text_config()
    cache = SlotCache(config.num_hidden_layers, 2)
    length = min(_PROBE_TOKENS, base.context - 1)
    ids = (torch.arange(2 * (length + 1)) % config.vocab_size).view(2, length + 1)
    cache.ensure(length + 1)
    found = []
    for begin, end in ((0, length), (length, length + 1)):
        positions = torch.arange(begin, end).expand(2, -1)
        cache.positions = positions
        cache.read_length = end if begin else None
        may = torch.arange(end)[None] <= torch.arange(begin, end)[:, None]
        new = NewTokens(
            tokens=ids[:, begin:end],
            positions=positions,
            mask=may.expand(2, 1, -1, -1),
            last=torch.tensor([end - begin - 1] * 2),
        )
        found.append(passes.logits(new, cache, None).float())
    return torch.stack(found)
