"""A tokenizer with byte fallback, trained on a few strings."""

from __future__ import annotations

from typing import Any

import pytest

from cambium.models.tokenizer import TokenizerConfig, train_tokenizer

TEXTS = ["the tree grows a thin layer every year", "naïve café, 12 trees: {x}\n\n  end"]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS, TokenizerConfig(vocab_size=420, alphabet_size=40))
