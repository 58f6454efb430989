"""Completions: text or token ids continued, and echoed with the prompt's log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

from cambium.models.chat import stop_ids
from cambium.models.engine import GenerationRequest
from cambium.serve.api.openai.bodies import MAX_CHOICES, CompletionBody
from cambium.serve.api.openai.choices import Piece, ShownToken
from cambium.serve.api.openai.errors import refusal
from cambium.serve.api.openai.generation import Job
from cambium.serve.api.openai.plans import (
    Plan,
    check_room,
    check_stream_options,
    draw_seed,
    num_words,
    refuse_too_many,
    room_of,
    sampling_config,
    trace_params,
)
from cambium.serve.api.openai.prompts import Prompt, read_prompts, score_prompts
from cambium.serve.api.openai.runtime import Answerer, OpenAIRuntime
from cambium.serve.api.openai.token_texts import TokenTexts


class CompletionRenderer:
    """Writes choices as `text`, each after the echo of its prompt if there is one."""

    endpoint = "completions"
    id_prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(
        self, texts: TokenTexts, *, logprobs: int | None, echoes: Sequence[Piece] | None
    ) -> None:
        self._texts = texts
        self._logprobs = logprobs
        self._echoes = echoes

    def opening(self, index: int) -> dict[str, object] | None:
        if self._echoes is None:
            return None
        return self._choice(index, [self._echoes[index]], start=0)

    def chunk(self, piece: Piece) -> dict[str, object]:
        start = len(self._echoes[piece.index].text) if self._echoes is not None else 0
        return self._choice(piece.index, [piece], start=start)

    def whole(self, index: int, pieces: Sequence[Piece]) -> dict[str, object]:
        choice = self._choice(index, pieces, start=0)
        if self._echoes is None:
            return choice
        echo = self._echoes[index]
        lists = self._listed(echo.tokens, start=0)
        answered = self._listed(_tokens(pieces), start=len(echo.text))
        if lists is not None and answered is not None:
            choice["logprobs"] = {name: lists[name] + answered[name] for name in lists}
        return choice | {"text": f"{echo.text}{choice['text']}"}

    def _choice(self, index: int, pieces: Sequence[Piece], *, start: int) -> dict[str, object]:
        return {
            "index": index,
            "text": "".join(piece.text for piece in pieces),
            "logprobs": self._listed(_tokens(pieces), start=start),
            "finish_reason": pieces[-1].finish,
        }

    def _listed(
        self, tokens: Sequence[ShownToken], *, start: int
    ) -> dict[str, list[object]] | None:
        if self._logprobs is None:
            return None
        return {
            "tokens": [self._texts.shown(token.token_id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._rivals(token) for token in tokens],
            "text_offset": [start + token.offset for token in tokens],
        }

    def _rivals(self, token: ShownToken) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        # Two tokens may read alike; the likelier one, which comes first, keeps the name.
        rivals: dict[str, float] = {}
        for token_id, value in [*token.top, (token.token_id, token.logprob)]:
            rivals.setdefault(self._texts.shown(token_id), value)
        return rivals


def plan_completion(runtime: OpenAIRuntime, texts: TokenTexts, body: CompletionBody) -> Plan:
    """Decides who answers and with which jobs, and scores what is echoed; in a worker thread.

    Raises:
        DataError: a parameter, or a prompt that does not fit.
        ModelNotFound, DomainNotFound, AdapterExpired, AdapterQuarantined: nobody answers.
    """
    check_stream_options(body)
    _check_bounds(body)
    words = num_words(runtime.base)
    prompts = read_prompts(body.prompt, runtime.base.tokenizer, texts, num_words=words)
    refuse_too_many(len(prompts) * body.n, MAX_CHOICES)
    answerer = runtime.resolve(
        body.model, domain=body.domain, text="\n".join(prompt.text for prompt in prompts)
    )
    for prompt in prompts:
        check_room(
            len(prompt.ids), body.max_tokens, room_of(runtime.engine, answerer), param="prompt"
        )
    seed = draw_seed(body)
    jobs = [
        _job(runtime, body, prompt, answerer=answerer, seed=seed + i)
        for prompt in prompts
        for i in range(body.n)
    ]
    echoes = _echoes(runtime, body, prompts, answerer) if body.echo else None
    return Plan(
        answerer=answerer,
        renderer=CompletionRenderer(texts, logprobs=body.logprobs, echoes=echoes),
        jobs=tuple(jobs),
        prompt_tokens=sum(len(prompt.ids) for prompt in prompts),
        params=trace_params(body, seed=seed, max_tokens=body.max_tokens) | {"echo": body.echo},
        stream=body.stream,
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
        lesson="\n".join(prompt.text for prompt in prompts) if body.learn else None,
    )


def _check_bounds(body: CompletionBody) -> None:
    if body.best_of is not None and body.best_of != body.n:
        raise refusal("best_of other than n is not offered", param="best_of",
                      code="unsupported_parameter", mend="leave it out")  # fmt: skip
    if body.max_tokens == 0 and not body.echo:
        raise refusal("max_tokens is 0, so nothing would come back", param="max_tokens",
                      mend="ask for at least 1 token, or for the echo")  # fmt: skip


def _job(
    runtime: OpenAIRuntime, body: CompletionBody, prompt: Prompt, *, answerer: Answerer, seed: int
) -> Job:
    sampling = sampling_config(body, seed=seed, num_words=num_words(runtime.base))
    if body.max_tokens == 0:
        return Job(request=None)
    ends = stop_ids(runtime.base.tokenizer)
    # Harnesses cut the answer's one token off an echoed prompt's list, so that token must be
    # listed even when it is the end of the text: then this side stops at it, not the engine.
    listed = body.echo and body.logprobs is not None
    request = GenerationRequest(
        prompt=prompt.ids,
        adapters=answerer.adapters,
        max_tokens=body.max_tokens,
        sampling=sampling,
        stop_ids=frozenset() if listed else ends,
        num_logprobs=body.logprobs,
    )
    return Job(request=request, stops=body.stops, end_ids=ends if listed else frozenset())


def _echoes(
    runtime: OpenAIRuntime, body: CompletionBody, prompts: Sequence[Prompt], answerer: Answerer
) -> list[Piece]:
    """Returns the echo of each choice's prompt, scored where log-probabilities are asked for."""
    if body.logprobs is None:
        tokens = [prompt.shown() for prompt in prompts]
    else:
        tokens = score_prompts(
            runtime.base, prompts, adapters=answerer.adapters, num_top=body.logprobs
        )
    return [
        Piece(index=i * body.n + k, text=prompt.text, tokens=tokens[i])
        for i, prompt in enumerate(prompts)
        for k in range(body.n)
    ]


def _tokens(pieces: Sequence[Piece]) -> list[ShownToken]:
    return [token for piece in pieces for token in piece.tokens]
