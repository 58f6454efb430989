from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cambium.models.adapter import Adapter
from cambium.models.answer_passes import (
    AnswerPasses,
    AskedBase,
    LlamaAnswers,
    NewTokens,
    answer_passes,
)
from cambium.models.base import BaseModel, stack_rows
from cambium.models.slot_cache import SlotCache
from cambium.models.soft_prompt import SoftPromptConfig, fresh_prompt

LENGTH = 11


def biased(tokenizer: Any) -> BaseModel:
    """A Qwen of two layers: its queries, keys and values have biases."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(5)
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    model = Qwen2ForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    return BaseModel(model, tokenizer, digest="sha256:" + "3" * 64, name="tiny-qwen")


def written(
    passes: AnswerPasses, base: BaseModel, rows: list[tuple[Adapter, ...]], num_virtual: int = 0
) -> Tensor:
    """Returns the logits of a prefill and of two tokens after it, each row its own length."""
    cache = SlotCache(base.model.config.num_hidden_layers, len(rows))
    cache.ensure(2 * LENGTH)
    weights = stack_rows(rows)
    tokens = torch.randint(12, 500, (len(rows), LENGTH), generator=torch.Generator().manual_seed(2))
    tokens[:, :num_virtual] = -1 - torch.arange(num_virtual)
    lengths = torch.tensor([LENGTH - i for i in range(len(rows))])
    cache.positions = torch.arange(LENGTH).expand(len(rows), LENGTH)
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    new = NewTokens(tokens=tokens, positions=cache.positions, last=lengths - 1,
                    mask=causal.expand(len(rows), 1, LENGTH, LENGTH))  # fmt: skip
    with torch.inference_mode():
        found = [passes.logits(new, cache, weights)]
        for at in range(2):
            cache.positions = positions = (lengths + at)[:, None]
            cache.read_length = LENGTH + 2
            mask = (torch.arange(LENGTH + 2) <= positions)[:, None, None]
            new = NewTokens(tokens=tokens[:, at : at + 1].clamp(min=7), positions=positions,
                            mask=mask, last=torch.zeros_like(lengths))  # fmt: skip
            found.append(passes.logits(new, cache, weights))
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_llamas_by_hand_say_what_the_base_says(
    llama: BaseModel, tokenizer: Any, make_lora: Any, kind: str
) -> None:
    base = llama if kind == "llama" else biased(tokenizer)
    rows = [(make_lora(base, seed=1),), (), (make_lora(base, seed=2), make_lora(base, seed=3))]
    by_hand, asked = (written(p, base, rows) for p in (LlamaAnswers(base), AskedBase(base)))
    assert torch.allclose(by_hand, asked, rtol=1e-4, atol=1e-4)
    plain = written(LlamaAnswers(base), base, [(), (), ()])
    assert torch.equal(plain[:, 1], by_hand[:, 1])
    assert not torch.allclose(plain[:, 0], by_hand[:, 0], atol=1e-2)


def test_virtual_tokens_have_their_own_embeddings(llama: BaseModel) -> None:
    config = SoftPromptConfig(num_virtual_tokens=3)
    rows: list[tuple[Adapter, ...]] = [
        (fresh_prompt(config, llama.model, seed=seed),) for seed in (4, 5)
    ]
    by_hand, asked = (written(p, llama, rows, 3) for p in (LlamaAnswers(llama), AskedBase(llama)))
    assert torch.allclose(by_hand, asked, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(by_hand[:, 0], by_hand[:, 1], atol=1e-2)


def test_a_base_that_computes_otherwise_is_asked_itself(
    llama: BaseModel, gpt2: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert type(answer_passes(llama)) is LlamaAnswers
    assert type(answer_passes(gpt2)) is AskedBase
    attention = llama.model.model.layers[1].self_attn
    right = attention.forward
    monkeypatch.setattr(attention, "forward", lambda *a, **k: (2 * right(*a, **k)[0], None))
    assert type(answer_passes(llama)) is AskedBase
