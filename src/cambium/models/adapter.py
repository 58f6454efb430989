"""What an adapter is, whatever its kind: updates of modules, or tokens before every sequence.

Passes ask only what stands here, so they take all kinds alike; `adapter_kinds` lists the kinds.
Shape letters: R rank, I inputs of a linear layer, O its outputs, P virtual tokens, D d_model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from cambium.core.errors import DataError
from cambium.models.adapter_bytes import AdapterBytes


class Adapter(Protocol):
    """A change of a frozen base as data.

    `a` [R I] and the scaled `b` [O R] by module path are added to the base's linear modules;
    `prompt` [P D] is read before the sequence as if P tokens had these embeddings. A kind that has
    no part of one sort leaves it empty.
    """

    @property
    def config(self) -> Any:
        """Returns the kind's own configuration; two adapters with one are of one shape."""
        ...

    @property
    def a(self) -> Mapping[str, Tensor]:
        """Returns the first halves of the updates."""
        ...

    @property
    def b(self) -> Mapping[str, Tensor]:
        """Returns the second halves of the updates."""
        ...

    @property
    def rank(self) -> int:
        """Returns R, 0 where no module is changed."""
        ...

    @property
    def scaling(self) -> float:
        """Returns the factor on the updates."""
        ...

    @property
    def prompt(self) -> Tensor | None:
        """Returns the virtual tokens' embeddings, None without any."""
        ...

    @property
    def num_virtual(self) -> int:
        """Returns P, the room that it takes of the context."""
        ...

    def norms(self) -> dict[str, float]:
        """Returns the Frobenius norm of each part."""
        ...

    def oversized(self, model: nn.Module, limit: float) -> list[str]:
        """Returns in words which parts are not finite, or too large beside the base's own."""
        ...

    def to_bytes(self, *, fan_in_fan_out: bool = False) -> AdapterBytes:
        """Returns the two PEFT files; the same weights always give the same bytes."""
        ...


def virtual_tokens(adapters: Sequence[Adapter]) -> list[int]:
    """Returns what stands before a sequence's own tokens: -1 for the first virtual token, then -2.

    No word has a number below zero, so a sequence says itself where its virtual tokens are, and
    positions, masks and kept keys need no case of their own.
    """
    return [-1 - i for i in range(sum(one.num_virtual for one in adapters))]


def read_fields(config: bytes) -> dict[str, Any]:
    """Returns what `adapter_config.json` holds; nothing of it is checked yet.

    Raises:
        DataError: it is not a JSON object.
    """
    try:
        fields: Any = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise DataError(
            "adapter_config.json is not JSON", mend="send it as PEFT writes it"
        ) from error
    if not isinstance(fields, dict):
        raise DataError("adapter_config.json is no object", mend="send it as PEFT writes it")
    return fields


def read_tensors(weights: bytes) -> dict[str, Tensor]:
    """Returns what `adapter_model.safetensors` holds; nothing of it is checked yet.

    Raises:
        DataError: it is not safetensors.
    """
    try:
        return load(weights)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(
            f"adapter weights are not safetensors: {error}",
            mend="send adapter_model.safetensors as PEFT writes it",
        ) from error
