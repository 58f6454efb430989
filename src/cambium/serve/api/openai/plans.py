"""What chat and completions plan alike: room in the context, sampling, jobs, the trace's words."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cambium.core.errors import DataError
from cambium.models.adapter import virtual_tokens
from cambium.models.base import BaseModel
from cambium.models.engine import Engine
from cambium.models.sampling import SamplingConfig
from cambium.serve.api.openai.bodies import SamplingBody
from cambium.serve.api.openai.choices import Piece
from cambium.serve.api.openai.errors import refusal
from cambium.serve.api.openai.generation import Job
from cambium.serve.api.openai.runtime import Answerer

# Below these, dividing by the temperature overflows and no token is left in the nucleus.
_GREEDY_BELOW = 1e-5
_MIN_TOP_P = 1e-9


class Renderer(Protocol):
    """How one endpoint writes choices."""

    endpoint: str
    id_prefix: str
    whole_object: str
    chunk_object: str

    def opening(self, index: int) -> dict[str, object] | None:
        """Returns the first chunk's choice, sent before anything is generated."""
        ...

    def chunk(self, piece: Piece) -> dict[str, object]:
        """Returns a chunk's choice."""
        ...

    def whole(self, index: int, pieces: Sequence[Piece]) -> dict[str, object]:
        """Returns a choice of an answer that is not streamed."""
        ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything decided about a request before the engine sees it.

    Args:
        lesson: the text that the request wants to teach, if it does.
    """

    answerer: Answerer
    renderer: Renderer
    jobs: tuple[Job, ...]
    prompt_tokens: int
    params: Mapping[str, object]
    stream: bool
    include_usage: bool
    lesson: str | None = None


def check_stream_options(body: SamplingBody) -> None:
    """Refuses options of a stream that is not asked for."""
    if body.stream_options is not None and not body.stream:
        raise refusal("stream_options is for streams only", param="stream_options",
                      mend="set stream to true")  # fmt: skip


def room_of(engine: Engine, answerer: Answerer) -> int:
    """Returns how many tokens of prompt and answer fit beside what answers."""
    return engine.context - len(virtual_tokens(answerer.adapters))


def check_room(num_prompt: int, max_tokens: int, context: int, *, param: str) -> None:
    """Refuses what does not fit the context, prompt and answer together.

    Raises:
        DataError: too long (code `context_length_exceeded`), or no token to begin from.
    """
    if num_prompt == 0:
        raise refusal("the prompt is empty", param=param, mend="send at least one token")
    if num_prompt + max_tokens > context:
        raise refusal(
            f"the model's context is {context} tokens; {num_prompt + max_tokens} were asked for"
            f" ({num_prompt} in the prompt, {max_tokens} for the answer)",
            param=param,
            code="context_length_exceeded",
            mend="shorten the prompt or lower max_tokens",
        )


def draw_seed(body: SamplingBody) -> int:
    """Returns the seed asked for, or a fresh one."""
    return secrets.randbits(62) if body.seed is None else body.seed


def sampling_config(body: SamplingBody, *, seed: int, num_words: int) -> SamplingConfig:
    """Returns the engine's sampling settings for one choice.

    Raises:
        DataError: a logit bias for a token that the model does not have.
    """
    for key in body.logit_bias:
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < num_words):
            raise refusal(f"logit_bias names token {key[:40]!r}", param="logit_bias",
                          mend=f"token ids are 0 to {num_words - 1}")  # fmt: skip
    return SamplingConfig(
        temperature=body.temperature if body.temperature >= _GREEDY_BELOW else 0.0,
        top_p=max(body.top_p, _MIN_TOP_P),
        seed=seed,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        logit_bias={int(key): bias for key, bias in body.logit_bias.items()},
    )


def num_words(base: BaseModel) -> int:
    """Returns how many token ids the base has."""
    return int(base.model.config.get_text_config().vocab_size)


def trace_params(body: SamplingBody, *, seed: int, max_tokens: int) -> dict[str, object]:
    """Returns what the trace keeps of the parameters: no stop strings, which can be content."""
    return {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "n": body.n,
        "seed": seed,
        "max_tokens": max_tokens,
        "frequency_penalty": body.frequency_penalty,
        "presence_penalty": body.presence_penalty,
        "num_logit_bias": len(body.logit_bias),
        "num_stops": len(body.stops),
        "stream": body.stream,
        "domain": body.domain,
    }


def refuse_too_many(num_choices: int, limit: int) -> None:
    """Refuses a request for more choices at once than the engine should queue for one caller."""
    if num_choices > limit:
        raise DataError(f"{num_choices} choices were asked for", mend=f"ask for at most {limit}")
