"""One prompt, answered by several models, each token weighed by the first of them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cambium.core.errors import DataError, Stopped
from cambium.models.chat import encode_document, stop_ids
from cambium.models.engine import GenerationRequest
from cambium.models.sampling import SamplingConfig
from cambium.models.scoring import score
from cambium.serve.access import Caller
from cambium.serve.api.openai.plans import room_of
from cambium.serve.api.openai.runtime import Answerer, TraceDraft
from cambium.serve.api.openai.token_texts import TextStream, TokenTexts
from cambium.serve.runtime import Runtime

MAX_ARMS = 4
MAX_TOKENS = 128
MAX_PROMPT_CHARS = 20_000


@dataclass(frozen=True, kw_only=True)
class WeighedToken:
    """A token that an arm wrote: its text, and its log-probability there and in the first arm."""

    text: str
    own: float
    first: float

    @property
    def difference(self) -> float:
        """Returns by how many nats this arm likes the token better than the first arm does."""
        return self.own - self.first


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What one model wrote.

    Args:
        adapter: `base`, or `name@digest` of what acted on it.
        request_id: under which the answer's trace is kept.
    """

    model: str
    adapter: str
    request_id: str
    tokens: tuple[WeighedToken, ...]


def compare(
    runtime: Runtime,
    caller: Caller,
    *,
    models: Sequence[str],
    prompt: str,
    max_tokens: int,
    sampling: SamplingConfig,
) -> list[Arm]:
    """Returns a continuation by each model; the first is what others are held to.

    Args:
        sampling: the same for all, so that they draw by the same random numbers.

    Raises:
        DataError: no or too many models, an empty prompt, or one that leaves no room.
        ModelNotFound, AdapterExpired, AdapterQuarantined: nothing answers to a name.
        SystemKilled: nothing answers.
    """
    _check(models, prompt, max_tokens)
    answerers = [
        runtime.answering.resolve(model, caller=caller, domain=None, text=prompt)
        for model in models
    ]
    ids = encode_document(runtime.base.tokenizer, prompt)
    room = min(room_of(runtime.engine, answerer) for answerer in answerers)
    if len(ids) + max_tokens > room:
        raise DataError(f"a prompt of {len(ids)} tokens leaves no room for {max_tokens} more",
                        mend=f"the context is {room} tokens")  # fmt: skip
    texts = TokenTexts(runtime.base.tokenizer)
    arms = []
    for answerer in answerers:
        began = time.perf_counter()
        written, why = _written(runtime, answerer, ids, max_tokens, sampling)
        draft = TraceDraft(
            request_id=f"req-{secrets.token_hex(12)}",
            endpoint="playground",
            answerer=answerer,
            prompt_tokens=len(ids),
            completion_tokens=len(written),
            finish_reasons=(why,),
            queued_ms=0.0,
            first_token_ms=None,
            total_ms=(time.perf_counter() - began) * 1000,
            params={
                "max_tokens": max_tokens,
                "temperature": sampling.temperature,
                "seed": sampling.seed,
            },
        )
        runtime.answering.record(draft, caller=caller)
        own = _weighed(runtime, answerer, ids, written)
        first = own if answerer is answerers[0] else _weighed(runtime, answerers[0], ids, written)
        stream = TextStream(texts)
        tokens = [WeighedToken(text=stream.feed(token), own=a, first=b)
                  for token, a, b in zip(written, own, first, strict=True)]  # fmt: skip
        arms.append(Arm(model=answerer.model, adapter=answerer.adapter,
                        request_id=draft.request_id, tokens=tuple(tokens)))  # fmt: skip
    return arms


def _check(models: Sequence[str], prompt: str, max_tokens: int) -> None:
    if not 1 <= len(models) <= MAX_ARMS or not 1 <= max_tokens <= MAX_TOKENS:
        raise DataError(f"{len(models)} models and {max_tokens} tokens cannot be compared",
                        mend=f"1 to {MAX_ARMS} models, 1 to {MAX_TOKENS} tokens")  # fmt: skip
    if not prompt.strip() or len(prompt) > MAX_PROMPT_CHARS:
        raise DataError("the prompt is empty or too long",
                        mend=f"at most {MAX_PROMPT_CHARS} characters")  # fmt: skip


def _written(
    runtime: Runtime,
    answerer: Answerer,
    ids: list[int],
    max_tokens: int,
    sampling: SamplingConfig,
) -> tuple[list[int], str]:
    """Returns the tokens and why they ended."""
    events = runtime.engine.generate(
        GenerationRequest(
            prompt=ids,
            adapters=answerer.adapters,
            max_tokens=max_tokens,
            sampling=sampling,
            stop_ids=stop_ids(runtime.base.tokenizer),
        )
    )
    end = events[-1].finish
    if end == "cancelled":
        raise Stopped("the answer broke off", mend="try again")
    return [e.token_id for e in events if e.token_id is not None], str(end)


def _weighed(
    runtime: Runtime, answerer: Answerer, ids: list[int], written: list[int]
) -> list[float]:
    """Returns the log-probability of each written token, nats."""
    if not written:
        return []
    (found,) = score(runtime.base, [[*ids, *written]], adapters=answerer.adapters)
    return found.tolist()[-len(written) :]
