"""The kinds of adapters: how each is read, begun and trained.

A new kind is a file that holds an `Adapter` and one line in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cambium.core.errors import DataError
from cambium.models import lora, soft_prompt
from cambium.models.adapter import Adapter, read_fields
from cambium.models.adapter_bytes import AdapterBytes
from cambium.models.adapter_stack import AdapterStack
from cambium.models.base import BaseModel
from cambium.models.lora import LoraConfig, fresh_lora
from cambium.models.prompt_stack import PromptStack
from cambium.models.soft_prompt import SoftPromptConfig, fresh_prompt
from cambium.models.stack import Stack

AdapterConfig = LoraConfig | SoftPromptConfig


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind.

    Args:
        config: the class of its configurations.
        peft_type: what `adapter_config.json` says.
        read: reads frozen bytes, checked against the base.
        fresh: begins one from a configuration and a seed.
        stack: lays one out for training, for passes in a dtype.
        words: what a configuration says, for people; its fields stand in braces.
    """

    config: type[Any]
    peft_type: str
    read: Callable[[AdapterBytes, BaseModel], Adapter]
    fresh: Callable[[Any, BaseModel, int], Adapter]
    stack: Callable[[Any, BaseModel, torch.dtype], Stack]
    words: str


KINDS: Mapping[str, Kind] = {
    "lora": Kind(
        config=LoraConfig,
        peft_type="LORA",
        read=lambda data, base: lora.from_bytes(data, base.sites),
        fresh=lambda config, base, seed: fresh_lora(config, base.targets(config), seed=seed),
        stack=lambda adapter, base, dtype: AdapterStack([adapter], base.sites, dtype=dtype),
        words="LoRA of rank {r}, alpha {lora_alpha}",
    ),
    "soft_prompt": Kind(
        config=SoftPromptConfig,
        peft_type=soft_prompt.PEFT_TYPE,
        read=lambda data, base: soft_prompt.from_bytes(data, base.model),
        fresh=lambda config, base, seed: fresh_prompt(config, base.model, seed=seed),
        stack=lambda adapter, base, dtype: PromptStack(adapter),
        words="soft prompt of {num_virtual_tokens} virtual tokens",
    ),
}


def kind_of(config: AdapterConfig) -> str:
    """Returns the name of the kind that a configuration is of."""
    return next(name for name, kind in KINDS.items() if isinstance(config, kind.config))


def read_adapter(data: AdapterBytes, base: BaseModel) -> Adapter:
    """Reads an adapter of whichever kind and checks it against the base.

    Raises:
        DataError: of no kind that is offered, or not what its kind asks for.
    """
    said = read_fields(data.config).get("peft_type")
    for kind in KINDS.values():
        if kind.peft_type == said:
            return kind.read(data, base)
    offered = ", ".join(kind.peft_type for kind in KINDS.values())
    raise DataError(f"adapter_config.json is of no LoRA and no soft prompt, but of {said!r:.60}",
                    mend=f"train one of {offered}")  # fmt: skip


def shape_in_words(config: AdapterConfig) -> str:
    """Returns what a configuration says, for people.

    >>> shape_in_words(LoraConfig(r=4, lora_alpha=8))
    'LoRA of rank 4, alpha 8'
    """
    return KINDS[kind_of(config)].words.format(**asdict(config))


def config_record(config: AdapterConfig) -> dict[str, dict[str, Any]]:
    """Returns a configuration under its kind's name, as JSON holds it."""
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    return {kind_of(config): fields}


def config_from(record: Mapping[str, Any]) -> AdapterConfig:
    """Returns the configuration that `config_record` put into a record, beside whatever else."""
    name = next(name for name in KINDS if name in record)
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in record[name].items()}
    return KINDS[name].config(**fields)
