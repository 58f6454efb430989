"""Soft prompts as data, in PEFT's layout: the embeddings of tokens that no tokenizer has.

They stand before every sequence and move its positions on; no module of the base changes. Source:
Lester et al. (2021), whose start from words of the vocabulary this takes too.
Shape letters: P virtual tokens, D d_model, B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from cambium.core.canonical import canonical_json
from cambium.core.errors import DataError
from cambium.models.adapter import read_fields, read_tensors
from cambium.models.adapter_bytes import AdapterBytes

MAX_VIRTUAL = 128
PEFT_TYPE = "PROMPT_TUNING"
_KEY = "prompt_embeddings"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class SoftPromptConfig:
    """How many virtual tokens stand before a sequence, named as in PEFT: 1 to 128."""

    num_virtual_tokens: int = 16


@dataclass(frozen=True, kw_only=True)
class SoftPrompt:
    """One adapter of virtual tokens, `prompt` [P D] in fp32; it changes no module."""

    prompt: Tensor

    @property
    def a(self) -> Mapping[str, Tensor]:
        """Returns nothing: no module is changed."""
        return {}

    @property
    def b(self) -> Mapping[str, Tensor]:
        """Returns nothing: no module is changed."""
        return {}

    @property
    def rank(self) -> int:
        """Returns 0: no module is changed."""
        return 0

    @property
    def scaling(self) -> float:
        """Returns 1: there is nothing to scale."""
        return 1.0

    @property
    def config(self) -> SoftPromptConfig:
        """Returns the prompt's shape."""
        return SoftPromptConfig(num_virtual_tokens=self.num_virtual)

    @property
    def num_virtual(self) -> int:
        """Returns P, the room that it takes of the context."""
        return len(self.prompt)

    def norms(self) -> dict[str, float]:
        """Returns the Frobenius norm of all virtual tokens."""
        return {_KEY: float(torch.linalg.norm(self.prompt.double()))}

    def oversized(self, model: nn.Module, limit: float) -> list[str]:
        """Returns which virtual tokens are not finite, or too long beside the base's words.

        One starts as a word's embedding and may then move by `limit` of the longest.
        """
        longest = (1 + limit) * float(torch.linalg.norm(_words(model), dim=1).max())
        lengths = torch.linalg.norm(self.prompt, dim=1).tolist()
        return [
            f"virtual token {i}: norm {length:.3f} exceeds {longest:.3f}, "
            f"{1 + limit:g} times the longest embedding's"
            for i, length in enumerate(lengths)
            if not length <= longest
        ]

    def to_bytes(self, *, fan_in_fan_out: bool = False) -> AdapterBytes:
        """Returns the two PEFT files; the same weights always give the same bytes."""
        config = {
            "base_model_name_or_path": None,
            "inference_mode": True,
            "num_transformer_submodules": 1,
            "num_virtual_tokens": self.num_virtual,
            "peft_type": PEFT_TYPE,
            "prompt_tuning_init": "RANDOM",  # where it began says nothing of what it is
            "task_type": "CAUSAL_LM",
            "token_dim": self.prompt.shape[1],
        }
        weights = save({_KEY: self.prompt.detach().float().contiguous()})
        return AdapterBytes(config=canonical_json(config), weights=weights)


def fresh_prompt(config: SoftPromptConfig, model: nn.Module, *, seed: int) -> SoftPrompt:
    """Returns a prompt of words drawn from the base's vocabulary, every one at most once."""
    words = _words(model)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(words), generator=generator)[: config.num_virtual_tokens]
    return SoftPrompt(prompt=words[drawn].clone())


def from_bytes(data: AdapterBytes, model: nn.Module) -> SoftPrompt:
    """Reads a soft prompt and checks it against the base's embeddings.

    Raises:
        DataError: not plain PEFT prompt tuning, another shape, or numbers that are not finite.
    """
    config = read_config(data.config)
    tensors = read_tensors(data.weights)
    shape = (config.num_virtual_tokens, _words(model).shape[1])
    if list(tensors) != [_KEY] or tuple(tensors[_KEY].shape) != shape:
        found = {key[:80]: tuple(t.shape) for key, t in sorted(tensors.items())[:4]}
        raise DataError(f"a soft prompt holds {found}, not {_KEY} {shape}",
                        mend="train it on this base")  # fmt: skip
    prompt = tensors[_KEY]
    if prompt.dtype not in _FLOATS or not bool(torch.isfinite(prompt).all()):
        raise DataError(f"{_KEY} holds other than finite floats", mend="train it again")
    return SoftPrompt(prompt=prompt.float())


def read_config(data: bytes) -> SoftPromptConfig:
    """Returns what `adapter_config.json` says of a soft prompt.

    Raises:
        DataError: it is not JSON, not of prompt tuning, or not of a causal model's one stack.
    """
    raw = read_fields(data)
    if raw.get("peft_type") != PEFT_TYPE:
        raise DataError(
            "adapter_config.json is not of a soft prompt", mend="send it as PEFT writes it"
        )
    number, stacks = raw.get("num_virtual_tokens"), raw.get("num_transformer_submodules")
    if type(number) is not int or not 1 <= number <= MAX_VIRTUAL:
        raise DataError(f"num_virtual_tokens is not in 1..{MAX_VIRTUAL}",
                        mend="train with another number")  # fmt: skip
    if stacks not in (None, 1):
        raise DataError("a soft prompt for an encoder and a decoder cannot be served here",
                        mend="train it for a causal model")  # fmt: skip
    return SoftPromptConfig(num_virtual_tokens=number)


def with_prompts(embedded: Tensor, ids: Tensor, prompts: Tensor) -> Tensor:
    """Returns embeddings in which virtual tokens have their own; all others are bit-equal.

    Args:
        embedded: shape [B T D]; `ids` [B T], below zero where a virtual token is.
        prompts: shape [B P D], or [P D] where all rows have the same.
    """
    at = (-1 - ids).clamp(min=0)
    own = prompts[at] if prompts.dim() == 2 else prompts[torch.arange(len(ids))[:, None], at]
    return torch.where((ids < 0)[..., None], own.to(embedded.dtype), embedded)


def _words(model: nn.Module) -> Tensor:
    """Returns the base's word embeddings [V D] in fp32."""
    holder: Any = model
    return holder.get_input_embeddings().weight.detach().float()
