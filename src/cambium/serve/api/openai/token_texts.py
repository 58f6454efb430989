"""Tokens as bytes, so that text can be given out token by token and never half a character."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from cambium.core.errors import ModelError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_PLAIN_DECODERS = frozenset({"ByteLevel", "ByteFallback", "Replace", "Metaspace", "Fuse", "Strip"})


class TokenTexts:
    """The bytes that each token of a tokenizer stands for; control tokens stand for none.

    Joined, the bytes of an answer's tokens are its text. `tokenizer.decode` cannot be used
    instead: what it gives for a byte token depends on the tokens around it.

    Raises:
        ModelError: a tokenizer whose tokens have no bytes of their own.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError("the tokenizer is not a fast one", mend="add tokenizer.json")
        decoders = list(_flatten(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]))
        if unknown := {d["type"] for d in decoders} - _PLAIN_DECODERS:
            raise ModelError(f"tokenizer decoders {sorted(unknown)} are not supported",
                             mend="use a byte-level or byte-fallback tokenizer")  # fmt: skip
        self._names: list[str] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        added = tokenizer.added_tokens_decoder
        self._pieces = [_piece(name or "", decoders) for name in self._names]
        for token_id, token in added.items():
            self._pieces[token_id] = b"" if token.special else token.content.encode("utf-8")

    def raw(self, token_id: int) -> bytes:
        """Returns the token's bytes; none for a control token or an id without a name."""
        return self._pieces[token_id] if token_id < len(self._pieces) else b""

    def shown(self, token_id: int) -> str:
        r"""Returns how a list of log-probabilities names the token.

        Its text; `bytes:\xe2\x82` where that is not whole characters; a control token's name.
        """
        piece = self.raw(token_id)
        if not piece:
            named = token_id < len(self._names) and self._names[token_id]
            return named or f"<|{token_id}|>"
        try:
            return piece.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


class TextStream:
    """Turns tokens into text as they come; the pieces joined do not depend on the pace.

    Bytes wait until they are a whole character. What can never be one is shown as U+FFFD.
    """

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.num_chars = 0

    def feed(self, token_id: int) -> str:
        """Returns the characters that this token completed."""
        return self._count(self._decoder.decode(self._texts.raw(token_id)))

    def finish(self) -> str:
        """Returns what is left when no token will follow."""
        return self._count(self._decoder.decode(b"", final=True))

    def _count(self, text: str) -> str:
        self.num_chars += len(text)
        return text


def _flatten(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for inner in decoder["decoders"]:
            yield from _flatten(inner)
    else:
        yield decoder


def _piece(name: str, decoders: list[dict[str, Any]]) -> bytes:
    # `Strip` takes a space from the start of a whole text; an answer continues one.
    for decoder in decoders:
        if decoder["type"] == "ByteLevel":
            return bytes(_BYTE_OF[c] for c in name if c in _BYTE_OF)
        if decoder["type"] == "ByteFallback" and (found := _BYTE_TOKEN.fullmatch(name)):
            return bytes([int(found[1], 16)])
        if decoder["type"] == "Replace" and "String" in decoder["pattern"]:
            name = name.replace(decoder["pattern"]["String"], decoder["content"])
        if decoder["type"] == "Metaspace":
            name = name.replace(decoder["replacement"], " ")
    return name.encode("utf-8")


def _byte_alphabet() -> dict[str, int]:
    """Returns GPT-2's printable stand-in for every byte (Radford et al., 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
