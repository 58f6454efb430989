"""Small models with random weights, shared by the tests of the tensor packages; torch on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from cambium.models.base import BaseModel
    from cambium.models.lora import Lora


class LoraMaker(Protocol):
    """Makes an adapter with random weights for a base."""

    def __call__(
        self, base: BaseModel, *, seed: int = 0, r: int = 4, targets: tuple[str, ...] = ...
    ) -> Lora: ...


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Trained on the spot: the bundled tokenizer's kind, with a vocabulary of 512."""
    from pydoc_data.topics import topics

    from cambium.models.tokenizer import TokenizerConfig, train_tokenizer

    texts = [topics[name] for name in sorted(topics)[:20]]
    return train_tokenizer(texts, TokenizerConfig(vocab_size=512, alphabet_size=100))


@pytest.fixture(scope="session")
def llama(tokenizer: Any) -> BaseModel:
    """Two layers, grouped key-value heads, context 128."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from cambium.models.base import BaseModel

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    return BaseModel(model, tokenizer, digest="sha256:" + "1" * 64, name="tiny-llama")


@pytest.fixture(scope="session")
def gpt2(tokenizer: Any) -> BaseModel:
    """Two layers whose linear weights are `Conv1D`, that is [I O]; context 128."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from cambium.models.base import BaseModel

    torch.manual_seed(2)
    config = GPT2Config(
        vocab_size=512, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3
    )
    model = GPT2LMHeadModel(config)
    return BaseModel(model, tokenizer, digest="sha256:" + "2" * 64, name="tiny-gpt2")


@pytest.fixture(scope="session")
def bundled() -> BaseModel:
    """The base that ships with Cambium."""
    from cambium.models.base import load_base

    return load_base()


@pytest.fixture(scope="session")
def library_code() -> list[str]:
    """Gives the standard library's sources; parsed once, since that takes seconds."""
    from cambium.recipes.python_texts import library_sources

    return [d.text for d in library_sources()]


@pytest.fixture(scope="session")
def make_lora() -> LoraMaker:
    """Makes adapters that change something: both halves random."""
    import torch

    from cambium.models.lora import ALL_LINEAR, LoraConfig, fresh_lora

    def make(
        base: BaseModel, *, seed: int = 0, r: int = 4, targets: tuple[str, ...] = (ALL_LINEAR,)
    ) -> Lora:
        config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets)
        lora = fresh_lora(config, base.targets(config), seed=seed)
        generator = torch.Generator().manual_seed(seed + 1000)
        for weight in lora.b.values():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
        return lora

    return make
