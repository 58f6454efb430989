"""Request bodies: bytes to checked values, and a clear no to what is not offered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from cambium.core.errors import DataError
from cambium.serve.api.openai.errors import refusal
from cambium.serve.errors import NotUtf8, TooLarge

MAX_BODY_BYTES = 4 * 2**20
MAX_CHOICES = 128  # prompts times n, in one request

_INT64 = 2**63
_Stop = Annotated[str, Field(min_length=1, max_length=1024)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]
_Bias = Annotated[float, Field(ge=-100, le=100)]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    model: str


class StreamOptions(BaseModel):
    """How a stream reports; obfuscation is accepted and not done."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool = False


class SamplingBody(_Body):
    """What chat and completions have in common, in OpenAI's terms."""

    domain: str | None = None
    learn: bool = False
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    n: int = Field(1, ge=1, le=16)
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = None
    frequency_penalty: _Penalty = 0.0
    presence_penalty: _Penalty = 0.0
    logit_bias: dict[str, _Bias] = Field(default_factory=dict)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Returns the stop strings, however they were written."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class TextPart(BaseModel):
    """A part of a message; only text is offered."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn; `name` and `refusal` are accepted and not shown to the model."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None

    @property
    def text(self) -> str:
        """Returns the content as one string."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatBody(SamplingBody):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)


class CompletionBody(SamplingBody):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool = False
    best_of: int | None = None


class EmbeddingBody(_Body):
    """`POST /v1/embeddings`."""

    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"


@dataclass(frozen=True, kw_only=True)
class _Beyond:
    """Known fields outside the body: accepted without effect, or only with these values."""

    harmless: frozenset[str] = frozenset()
    only: Mapping[str, tuple[object, ...]] = field(default_factory=dict[str, tuple[object, ...]])


_HARMLESS = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_options", "prompt_cache_retention", "parallel_tool_calls",
})  # fmt: skip
_BEYOND: dict[type[_Body], _Beyond] = {
    ChatBody: _Beyond(
        harmless=_HARMLESS,
        only={
            "tools": ([],),
            "tool_choice": ("none",),
            "functions": ([],),
            "function_call": ("none",),
            "response_format": ({"type": "text"},),
            "modalities": (["text"],),
            "audio": (),
            "prediction": (),
            "web_search_options": (),
            "reasoning_effort": ("none",),
            "verbosity": (),
            "moderation": (),
        },
    ),
    CompletionBody: _Beyond(harmless=_HARMLESS, only={"suffix": ("",)}),
    EmbeddingBody: _Beyond(harmless=frozenset({"user"}), only={"dimensions": ()}),
}
_SHAPES = {
    "prompt": "a string, a list of strings, token ids, or lists of token ids",
    "stop": "a string, or up to 4 strings, none of them empty",
    "input": "a string or a list of strings",
}
_AnyBody = TypeVar("_AnyBody", bound=_Body)


async def read_json(request: Request) -> dict[str, object]:
    """Returns the body of `request` as a JSON object.

    Raises:
        TooLarge: more than `MAX_BODY_BYTES`.
        NotUtf8: bytes, or an escape, that are no Unicode text.
        DataError: not a JSON object.
    """
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise TooLarge(f"the body is over {MAX_BODY_BYTES} bytes", mend="send less at a time")
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # an escape can name half a character
    except UnicodeError as error:
        raise NotUtf8("the body is not UTF-8 text", mend="encode it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"the body is not JSON: {error}", mend="send a JSON object") from error
    if not isinstance(value, dict):
        raise DataError("the body is not a JSON object", mend="send a JSON object")
    return value


def parse(kind: type[_AnyBody], raw: Mapping[str, object]) -> _AnyBody:
    """Returns the body as `kind`; a field that is null counts as absent.

    Raises:
        DataError: a field is unknown, not offered, missing, or out of its range.
    """
    beyond = _BEYOND[kind]
    given = {name: value for name, value in raw.items() if value is not None}
    known: dict[str, Any] = {}
    for name, value in given.items():
        if name in kind.model_fields:
            known[name] = value
        elif name in beyond.only:
            if not any(value == allowed for allowed in beyond.only[name]):
                raise refusal(f"{name} is not offered", param=name, code="unsupported_parameter",
                              mend="leave it out")  # fmt: skip
        elif name == "memory" and issubclass(kind, SamplingBody):
            raise refusal("answering from memory is not offered yet", param=name,
                          code="memory_unavailable", mend="leave it out")  # fmt: skip
        elif name not in beyond.harmless:
            raise refusal(f"unknown parameter {name[:80]!r}", param=name[:80],
                          code="unknown_parameter", mend="leave it out")  # fmt: skip
    try:
        return kind.model_validate(known)
    except ValidationError as error:
        raise _as_refusal(error) from error


def _as_refusal(error: ValidationError) -> DataError:
    first = error.errors(include_url=False, include_context=False)[0]
    name = str(first["loc"][0])
    if name in _SHAPES and first["type"] != "missing":
        return refusal(f"{name} is not {_SHAPES[name]}", param=name)
    path = name + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"][1:])
    return refusal(f"{path[:120]}: {first['msg']}", param=path[:120])


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
