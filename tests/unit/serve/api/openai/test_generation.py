"""What the engine does wrong reaches the caller, and nothing is left running."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cambium.core.errors import CambiumError, DataError
from cambium.models.engine import GenerationRequest, Ticket, TokenEvent
from cambium.serve.api.openai.generation import Generation, Job
from cambium.serve.api.openai.token_texts import TokenTexts


class BrokenEngine:
    """An engine that takes `room` requests and fails each after one token."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tickets: list[Ticket] = []

    def submit(self, request: GenerationRequest, on_event: Callable[[TokenEvent], None]) -> Ticket:
        if len(self.tickets) == self.room:
            raise DataError("no room")
        ticket = Ticket(request=request, read=(), on_event=on_event, generator=None)  # type: ignore[arg-type]
        self.tickets.append(ticket)
        on_event(TokenEvent(token_id=300))
        on_event(TokenEvent(finish="error", error=RuntimeError("secret shape")))
        return ticket


def run(engine: BrokenEngine, tokenizer: Any, num_jobs: int) -> Generation:
    async def consume() -> Generation:
        job = Job(request=GenerationRequest(prompt=[1]))
        generation = Generation(engine, TokenTexts(tokenizer), [job] * num_jobs)  # type: ignore[arg-type]
        generation.start()
        async for _ in generation.pieces():
            pass
        return generation

    return asyncio.run(consume())


def test_a_failed_pass_is_an_error_that_keeps_its_text_inside(tokenizer: Any) -> None:
    with pytest.raises(CambiumError) as caught:
        run(BrokenEngine(1), tokenizer, 1)
    assert caught.value.code == "internal" and "secret" not in caught.value.one_line()
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_refused_job_frees_those_before_it(tokenizer: Any) -> None:
    engine = BrokenEngine(2)
    with pytest.raises(DataError):
        run(engine, tokenizer, 3)
    assert [t.cancelled for t in engine.tickets] == [True, True]
