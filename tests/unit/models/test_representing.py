"""States of texts: where they are taken, whose adapters act, and that neighbours do not matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cambium.core.errors import DataError
from cambium.models.base import BaseModel
from cambium.models.chat import encode_document
from cambium.models.representing import last_states, represents

TEXTS = ["the name of a class", "a", "the statement is executed and then the loop ends"]


def test_states_are_those_of_the_bare_pass_at_the_last_token(llama: BaseModel) -> None:
    found = last_states(llama, TEXTS, layer=1)
    for text, own in zip(TEXTS, found, strict=True):
        ids = torch.tensor([encode_document(llama.tokenizer, text)])
        with torch.inference_mode():
            output = llama.model(input_ids=ids, output_hidden_states=True)
        np.testing.assert_allclose(own, output.hidden_states[1][0, -1].numpy(), atol=1e-5)


def test_adapters_act_and_zero_ones_do_not(llama: BaseModel, make_lora: Any) -> None:
    bare = represents(llama)(TEXTS)
    lora = make_lora(llama, seed=1)
    assert np.abs(represents(llama, [lora])(TEXTS) - bare).max() > 1e-4
    silent = type(lora)(config=lora.config, a=lora.a, b={k: 0 * v for k, v in lora.b.items()})
    np.testing.assert_array_equal(represents(llama, [silent])(TEXTS), bare)


def test_a_state_does_not_depend_on_its_neighbours(llama: BaseModel) -> None:
    together = last_states(llama, TEXTS)
    alone = np.concatenate([last_states(llama, [text]) for text in TEXTS])
    np.testing.assert_array_equal(together, alone)


def test_no_such_layer_and_no_such_length(llama: BaseModel) -> None:
    with pytest.raises(DataError, match="layer 9"):
        last_states(llama, TEXTS, layer=9)
    with pytest.raises(DataError, match="context"):
        last_states(llama, ["word " * 400])
