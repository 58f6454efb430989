from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cambium.core.errors import ModelError
from cambium.models.chat import encode_text
from cambium.serve.api.openai.token_texts import TextStream, TokenTexts


@pytest.fixture(scope="module")
def texts(tokenizer: Any) -> TokenTexts:
    return TokenTexts(tokenizer)


def streamed(texts: TokenTexts, ids: list[int]) -> list[str]:
    stream = TextStream(texts)
    return [*(stream.feed(i) for i in ids), stream.finish()]


@given(text=st.text(max_size=40))
def test_any_text_survives_token_by_token(text: str, tokenizer: Any, texts: TokenTexts) -> None:
    pieces = streamed(texts, encode_text(tokenizer, text))
    assert "".join(pieces) == text


@given(ids=st.lists(st.integers(0, 419), max_size=30))
def test_the_pieces_joined_are_the_bytes_decoded_at_once(ids: list[int], texts: TokenTexts) -> None:
    pieces = streamed(texts, ids)
    whole = b"".join(texts.raw(i) for i in ids)
    assert "".join(pieces) == whole.decode("utf-8", errors="replace")


@given(text=st.text(max_size=20), cut=st.integers(0, 60))
def test_half_a_character_waits_and_is_replaced_only_at_the_end(
    text: str, cut: int, texts: TokenTexts
) -> None:
    data = text.encode("utf-8")[:cut]
    ids = [12 + byte for byte in data]  # the byte tokens follow twelve control tokens
    *pieces, last = streamed(texts, ids)
    assert text.replace("\ufffd", "?").startswith("".join(pieces).replace("\ufffd", "?"))
    assert last in ("", "\ufffd")


def test_control_tokens_have_a_name_but_no_text(tokenizer: Any, texts: TokenTexts) -> None:
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert texts.raw(end) == b"" and texts.shown(end) == "<|end|>"
    assert texts.shown(tokenizer.convert_tokens_to_ids("<0xE2>")) == "bytes:\\xe2"
    assert texts.raw(10**6) == b"" and texts.shown(10**6) == "<|1000000|>"


def byte_level() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@given(text=st.text(max_size=30))
def test_byte_level_tokenizers_are_read_too(text: str) -> None:
    tokenizer = _BYTE_LEVEL
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(streamed(_BYTE_LEVEL_TEXTS, ids)) == text


_BYTE_LEVEL = byte_level()
_BYTE_LEVEL_TEXTS = TokenTexts(_BYTE_LEVEL)


def test_sentencepiece_marks_are_spaces() -> None:
    vocab = {"<unk>": 0, "▁the": 1, "▁tree": 2, "s": 3, "<0xC3>": 4, "<0xA9>": 5}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    texts = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    assert streamed(texts, [1, 2, 3, 4, 5]) == [" the", " tree", "s", "", "é", ""]


def test_a_tokenizer_without_bytes_is_refused() -> None:
    backend = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ModelError, match="WordPiece"):
        TokenTexts(PreTrainedTokenizerFast(tokenizer_object=backend))
