"""Conversations as tokens, with nothing a user writes ever read as a control token."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from cambium.core.errors import DataError

Message = Mapping[str, str]
_TOKENIZER = threading.Lock()
ROLES = ("system", "developer", "user", "assistant", "tool")


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Returns the ids of `text` with control tokens in it read as plain characters."""
    return _encode(tokenizer, text, control_tokens=False)


def encode_document(tokenizer: Any, text: str) -> list[int]:
    """Returns `text` as a document: begun with the model's begin token where it has one."""
    ids = encode_text(tokenizer, text)
    begin = tokenizer.bos_token_id
    return [begin, *ids] if begin is not None else ids


def encode_chat(
    tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool
) -> list[int]:
    """Returns a conversation through the model's own chat template.

    Contents are put in after the template is rendered, between the tokens of the template, so
    a message cannot open a turn of its own. A model without a template gets `role: content`.

    Raises:
        DataError: no messages, an unknown role, or a template that refuses them.
    """
    _check(messages)
    template = tokenizer.chat_template
    if not template:
        lines = [f"{m['role']}: {m['content']}" for m in messages]
        text = "\n".join([*lines, "assistant:"] if add_generation_prompt else lines)
        return encode_document(tokenizer, text)
    marks = [f"\ue000{secrets.token_hex(8)}\ue001" for _ in messages]
    turns = [{"role": m["role"], "content": mark} for m, mark in zip(messages, marks, strict=True)]
    try:
        rendered = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise DataError(f"the chat template refused the messages: {error}",
                        mend="alternate user and assistant") from error  # fmt: skip
    ids: list[int] = []
    for message, mark in zip(messages, marks, strict=True):
        before, found, rendered = rendered.partition(mark)
        if not found:
            raise DataError(f"the model's chat template leaves out role {message['role']!r}",
                            mend="use roles that the model knows")  # fmt: skip
        ids += _encode(tokenizer, before, control_tokens=True)
        ids += encode_text(tokenizer, message["content"])
    return ids + _encode(tokenizer, rendered, control_tokens=True)


@lru_cache(maxsize=8)
def stop_ids(tokenizer: Any) -> frozenset[int]:
    """Returns the tokens that end an answer: end of text and end of turn."""
    names = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>")
    vocabulary = tokenizer.get_vocab()
    found = {vocabulary[n] for n in names if n in vocabulary}
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return frozenset(found)


def _encode(tokenizer: Any, text: str, *, control_tokens: bool) -> list[int]:
    # Whether control tokens are read is state of the shared tokenizer, set by each call: without
    # the lock another thread's call could let a user's text open a turn.
    with _TOKENIZER:
        return tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=not control_tokens
        )


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise DataError("messages is empty", mend="send at least one message")
    for message in messages:
        if message.get("role") not in ROLES:
            role = str(message.get("role"))[:40]
            raise DataError(f"unknown role {role!r}", mend=f"use one of {ROLES}")
