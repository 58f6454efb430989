"""Many texts at once from the engine, for everything that needs the model's own writing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cambium.core.errors import Stopped
from cambium.models.adapter import Adapter
from cambium.models.breaking_off import check_going_on
from cambium.models.engine import Engine, GenerationRequest, Ticket, TokenEvent
from cambium.models.sampling import SamplingConfig


def write(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    progress: Callable[[float], None] = lambda share: None,
) -> list[list[int]]:
    """Returns what the engine writes for each request, as token ids.

    Raises:
        Stopped: the engine closed meanwhile; half a text would pass for a whole one.
    """
    texts: list[list[int]] = [[] for _ in requests]
    broken: list[TokenEvent] = []
    done = threading.Semaphore(0)

    def collector(text: list[int]) -> Callable[[TokenEvent], None]:
        def on_event(event: TokenEvent) -> None:
            if event.token_id is not None:
                text.append(event.token_id)
            if event.finish in ("error", "cancelled"):
                broken.append(event)
            if event.finish:
                done.release()

        return on_event

    with cancelled_unless_done() as tickets:
        for request, text in zip(requests, texts, strict=True):
            tickets.append(engine.submit(request, collector(text)))
        for i in range(len(requests)):
            done.acquire()
            check_going_on()
            progress((i + 1) / len(requests))
    if broken:
        if broken[0].error is not None:
            raise broken[0].error
        raise Stopped("the engine closed while texts were written", mend="start again")
    return texts


@contextmanager
def cancelled_unless_done() -> Iterator[list[Ticket]]:
    """Gives a list of tickets, which are cancelled if the block breaks off: nobody waits then."""
    tickets: list[Ticket] = []
    try:
        yield tickets
    except BaseException:
        for ticket in tickets:
            ticket.cancel()
        raise


def go_on(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    adapters: tuple[Adapter, ...],
    num_tokens: int,
    seed: int,
) -> list[list[int]]:
    """Returns how each text goes on at temperature 0.7, each from its own seed, as token ids.

    Raises:
        Stopped: as `write`.
    """
    end = engine.base.tokenizer.eos_token_id
    requests = [
        GenerationRequest(
            prompt=prompt,
            adapters=adapters,
            max_tokens=num_tokens,
            sampling=SamplingConfig(temperature=0.7, seed=(seed + i) % 2**63),
            stop_ids=frozenset() if end is None else frozenset({end}),
        )
        for i, prompt in enumerate(prompts)
    ]
    return write(engine, requests)
