"""What a user feeds, as windows of tokens with the positions that are to be learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cambium.core.canonical import digest_json
from cambium.core.errors import DataError
from cambium.models.chat import Message, encode_chat, encode_document, encode_text

_SHAPES = {
    "text": frozenset({"text"}),
    "completion": frozenset({"prompt", "completion"}),
    "messages": frozenset({"messages"}),
    "preference": frozenset({"prompt", "chosen", "rejected"}),
}


@dataclass(frozen=True, kw_only=True)
class Example:
    """One document or correction as it was sent; `kind` is a key of the contract's shapes."""

    kind: str
    content: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Returns the digest of the content, by whose hash the gates keep some documents."""
        return digest_json(dict(self.content))

    @property
    def accepted(self) -> Example:
        """Returns what of it can be learned as a text: of a pair, the chosen side."""
        if self.kind != "preference":
            return self
        kept = {"prompt": self.content["prompt"], "completion": self.content["chosen"]}
        return Example(kind="completion", content=kept)

    @property
    def text(self) -> str:
        """Returns all of its text, for the router's embedding."""
        if self.kind == "messages":
            return "\n".join(m["content"] for m in self.content["messages"])
        return "\n".join(str(v) for v in self.content.values())


@dataclass(frozen=True, kw_only=True)
class Window:
    """Token ids of at most context + 1; the loss is taken on tokens from `learn_from` on.

    Args:
        rejected: for preferences, what stands instead of the tokens from `learn_from` on.
    """

    tokens: tuple[int, ...]
    learn_from: int = 1
    rejected: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Returns how many tokens a pass over it holds."""
        return len(self.tokens) + len(self.rejected)


def kept_for_gates(digests: Sequence[str], *, at_least: int) -> frozenset[str]:
    """Returns which documents of these digests the gates keep and consolidation never sees.

    One in five by hash. Where those are fewer than `at_least`, which is what the gates need, the
    next by hash are kept too, but never over a third of all: so a small set of documents can be
    judged, and most of it is still learned.
    """
    ranked = sorted(set(digests), key=lambda digest: (int(digest[7:15], 16) % 5, digest))
    fifth = sum(int(digest[7:15], 16) % 5 == 0 for digest in ranked)
    return frozenset(ranked[: min(max(fifth, at_least), len(ranked) // 3)])


def parse_example(raw: object) -> Example:
    """Reads one example of the contract's shapes.

    Raises:
        DataError: another shape, a value that is not text, or nothing but white space.
    """
    fields: dict[Any, Any] = dict(raw) if isinstance(raw, dict) else {}
    kind = next((k for k, shape in _SHAPES.items() if shape == fields.keys()), None)
    if kind is None:
        raise DataError(
            f"an example with fields {sorted(map(str, fields))[:8]} has no known shape",
            mend="send {text}, {prompt, completion}, {messages} or {prompt, chosen, rejected}",
        )
    if kind == "messages":
        messages = fields["messages"]
        fine = isinstance(messages, list) and messages and all(_is_turn(m) for m in messages)
        if not fine or messages[-1]["role"] != "assistant":
            raise DataError("messages must be turns of role and content, the last by the assistant",
                            mend="end with the assistant's answer")  # fmt: skip
    elif not all(isinstance(v, str) for v in fields.values()):
        raise DataError("an example's values must be text", mend="send strings")
    example = Example(kind=kind, content=fields)
    if not example.text.strip():
        raise DataError("an example is empty", mend="send some text")
    return example


def encode_example(
    tokenizer: Any, example: Example, context: int, *, loss: str = "task"
) -> list[Window]:
    """Returns the example's windows; long ones are cut so that each token is learned once.

    Args:
        loss: what it is for. Preferences need pairs, and only they use them; losses without
            labels take all of a text, whatever its shape.

    Raises:
        DataError: pairs for another loss or the other way round, too short to learn, or a pair
            that the context cannot hold.
    """
    content = example.content
    if (example.kind == "preference") != (loss == "preference"):
        raise DataError(
            "the preference loss needs pairs, and no other loss can use them",
            mend="send {prompt, chosen, rejected} with loss 'preference', else a completion",
        )
    if example.kind == "preference":
        return [_encode_pair(tokenizer, content, context)]
    if example.kind == "text":
        tokens, start = encode_document(tokenizer, content["text"]), 1
    elif example.kind == "completion":
        prompt = encode_document(tokenizer, content["prompt"])
        tokens = prompt + encode_text(tokenizer, content["completion"])
        start = max(1, len(prompt))
    else:
        tokens, start = _encode_messages(tokenizer, content["messages"])
    windows = cut_windows(tokens, start if loss == "task" else 1, context)
    if not windows:
        raise DataError("an example has fewer than two tokens", mend="send more text")
    return windows


def _encode_pair(tokenizer: Any, content: Mapping[str, Any], context: int) -> Window:
    prompt = encode_document(tokenizer, content["prompt"])
    chosen, rejected = (encode_text(tokenizer, content[k]) for k in ("chosen", "rejected"))
    if not chosen or not rejected or chosen == rejected:
        raise DataError(
            "a pair's sides are empty or the same", mend="send two different continuations"
        )
    room = context + 1 - max(len(chosen), len(rejected))
    if room < 1:
        raise DataError(
            f"a pair's longer side leaves no room for its prompt in {context} tokens",
            mend="shorten it",
        )
    kept = prompt[-room:]  # the end of a prompt says most about what follows it
    if not kept:
        raise DataError("a pair's prompt is empty", mend="send a prompt")
    return Window(tokens=(*kept, *chosen), learn_from=len(kept), rejected=tuple(rejected))


def cut_windows(tokens: Sequence[int], learn_from: int, context: int) -> list[Window]:
    """Cuts `tokens` so that every token from `learn_from` on is a target exactly once."""
    windows = []
    at = 0
    while at + 1 < len(tokens):
        piece = tuple(tokens[at : at + context + 1])
        first = max(1, learn_from - at)
        if first < len(piece):
            windows.append(Window(tokens=piece, learn_from=first))
        at += context
    return windows


def _encode_messages(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[int], int]:
    """Returns the conversation and where its last answer begins."""
    tokens = encode_chat(tokenizer, messages, add_generation_prompt=False)
    if len(messages) == 1:
        return tokens, 1
    prompt = encode_chat(tokenizer, messages[:-1], add_generation_prompt=True)
    # A template may write the answer's turn otherwise than the prompt for it: what both share is
    # the prompt, and learning starts where they part.
    pairs = zip(prompt, tokens, strict=False)
    shared = next((i for i, (p, t) in enumerate(pairs) if p != t), min(len(prompt), len(tokens)))
    return tokens, max(1, min(shared, len(tokens) - 1))


def _is_turn(value: object) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"role", "content"}
        and all(isinstance(v, str) for v in value.values())
    )
