"""Chat completions: a conversation in, the assistant's next turn out."""

from __future__ import annotations

from collections.abc import Sequence

from cambium.models.chat import encode_chat, stop_ids
from cambium.models.engine import GenerationRequest
from cambium.serve.api.openai.bodies import ChatBody
from cambium.serve.api.openai.choices import Piece, ShownToken
from cambium.serve.api.openai.errors import refusal
from cambium.serve.api.openai.generation import Job
from cambium.serve.api.openai.plans import (
    Plan,
    check_room,
    check_stream_options,
    draw_seed,
    num_words,
    room_of,
    sampling_config,
    trace_params,
)
from cambium.serve.api.openai.runtime import OpenAIRuntime
from cambium.serve.api.openai.token_texts import TokenTexts


class ChatRenderer:
    """Writes choices as `message` and `delta`."""

    endpoint = "chat.completions"
    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, texts: TokenTexts, *, logprobs: bool) -> None:
        self._texts = texts
        self._logprobs = logprobs

    def opening(self, index: int) -> dict[str, object] | None:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def chunk(self, piece: Piece) -> dict[str, object]:
        return {
            "index": piece.index,
            "delta": {"content": piece.text} if piece.text else {},
            "logprobs": self._listed(piece.tokens),
            "finish_reason": piece.finish,
        }

    def whole(self, index: int, pieces: Sequence[Piece]) -> dict[str, object]:
        content = "".join(piece.text for piece in pieces)
        return {
            "index": index,
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": self._listed([token for piece in pieces for token in piece.tokens]),
            "finish_reason": pieces[-1].finish,
        }

    def _listed(self, tokens: Sequence[ShownToken]) -> dict[str, object] | None:
        if not self._logprobs:
            return None
        content = [
            self._entry(token.token_id, token.logprob)
            | {"top_logprobs": [self._entry(i, value) for i, value in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token_id: int, logprob: float | None) -> dict[str, object]:
        raw = self._texts.raw(token_id)
        shown = self._texts.shown(token_id)
        return {"token": shown, "logprob": logprob, "bytes": list(raw) or None}


def plan_chat(runtime: OpenAIRuntime, texts: TokenTexts, body: ChatBody) -> Plan:
    """Decides who answers and with which jobs; runs in a worker thread.

    Raises:
        DataError: a parameter, or a conversation that does not fit.
        ModelNotFound, DomainNotFound, AdapterExpired, AdapterQuarantined: nobody answers.
    """
    check_stream_options(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise refusal("top_logprobs needs logprobs", param="top_logprobs",
                      mend="set logprobs to true")  # fmt: skip
    asked = [m.text for m in body.messages if m.role == "user"] or [m.text for m in body.messages]
    answerer = runtime.resolve(body.model, domain=body.domain, text="\n".join(asked))
    tokenizer = runtime.base.tokenizer
    # `developer` is OpenAI's newer name of the system's turn; models know the older one.
    turns = [
        {"role": "system" if m.role == "developer" else m.role, "content": m.text}
        for m in body.messages
    ]
    prompt = encode_chat(tokenizer, turns, add_generation_prompt=True)
    context = room_of(runtime.engine, answerer)
    max_tokens = _max_tokens(body)
    check_room(len(prompt), max_tokens or 1, context, param="messages")
    max_tokens = max_tokens or context - len(prompt)
    seed = draw_seed(body)
    top = body.top_logprobs or 0
    jobs = [
        Job(
            request=GenerationRequest(
                prompt=prompt,
                adapters=answerer.adapters,
                max_tokens=max_tokens,
                sampling=sampling_config(body, seed=seed + i, num_words=num_words(runtime.base)),
                stop_ids=stop_ids(tokenizer),
                num_logprobs=top if body.logprobs else None,
            ),
            stops=body.stops,
        )
        for i in range(body.n)
    ]
    return Plan(
        answerer=answerer,
        renderer=ChatRenderer(texts, logprobs=body.logprobs),
        jobs=tuple(jobs),
        prompt_tokens=len(prompt),
        params=trace_params(body, seed=seed, max_tokens=max_tokens),
        stream=body.stream,
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
        lesson="\n".join(asked) if body.learn else None,
    )


def _max_tokens(body: ChatBody) -> int | None:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise refusal("max_tokens and max_completion_tokens differ", param="max_tokens",
                      mend="send one of them")  # fmt: skip
    return old if new is None else new
