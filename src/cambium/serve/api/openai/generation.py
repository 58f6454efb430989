"""The choices of one request under way: from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from cambium.core.errors import CambiumError
from cambium.models.engine import Engine, GenerationRequest, Ticket, TokenEvent
from cambium.serve.api.openai.choices import Choice, Piece
from cambium.serve.api.openai.token_texts import TokenTexts


@dataclass(frozen=True, kw_only=True)
class Job:
    """One choice to be made; a `request` of None generates nothing and ends as `length`."""

    request: GenerationRequest | None
    stops: tuple[str, ...] = ()
    end_ids: frozenset[int] = frozenset()


class Generation:
    """Runs jobs side by side; whoever starts it must `cancel` it, which is free when it is over."""

    def __init__(self, engine: Engine, texts: TokenTexts, jobs: Sequence[Job]) -> None:
        self._engine = engine
        self._jobs = tuple(jobs)
        self._choices = [
            Choice(i, texts, stops=job.stops, end_ids=job.end_ids) for i, job in enumerate(jobs)
        ]
        self._tickets: dict[int, Ticket] = {}
        self._events: asyncio.Queue[tuple[int, TokenEvent]] = asyncio.Queue()
        self.started_at: float | None = None
        self.first_token_at: float | None = None

    def start(self) -> None:
        """Hands every job to the engine.

        Raises:
            DataError: the engine takes none; nothing is left running.
        """
        loop = asyncio.get_running_loop()
        try:
            for i, job in enumerate(self._jobs):
                if job.request is None:
                    self._choices[i].finish = "length"
                else:
                    self._tickets[i] = self._engine.submit(job.request, self._deliver(i, loop))
        except CambiumError:
            self.cancel()
            raise
        self.started_at = time.perf_counter()

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yields what can be shown, choices mixed, until all have ended.

        Raises:
            CambiumError: the engine failed or is closing.
        """
        for i, job in enumerate(self._jobs):
            if job.request is None:
                yield Piece(index=i, finish="length")
        while any(choice.finish is None for choice in self._choices):
            i, event = await self._events.get()
            choice = self._choices[i]
            if choice.finish is not None:
                continue  # the engine was a token ahead of a stop string
            if event.finish in ("error", "cancelled"):
                if isinstance(event.error, CambiumError):
                    raise event.error  # the server is closing, or somebody pulled the kill switch
                raise CambiumError("the answer broke off", mend="try again") from event.error
            if self.first_token_at is None and event.token_id is not None:
                self.first_token_at = time.perf_counter()
            piece = choice.feed(event)
            if choice.finish is not None:
                self._tickets[i].cancel()
            if piece is not None:
                yield piece

    def cancel(self) -> None:
        """Frees the engine's rows of every choice that has not ended."""
        for ticket in self._tickets.values():
            ticket.cancel()

    @property
    def num_tokens(self) -> int:
        """Returns the tokens generated for all choices, stop strings included."""
        return sum(choice.num_tokens for choice in self._choices)

    def finishes(self, *, otherwise: str) -> tuple[str, ...]:
        """Returns why each choice ended; `otherwise` for those that did not."""
        return tuple(choice.finish or otherwise for choice in self._choices)

    def _deliver(self, index: int, loop: asyncio.AbstractEventLoop) -> Callable[[TokenEvent], None]:
        def deliver(event: TokenEvent) -> None:
            # A closed loop has no reader left; the engine serves others and must not hear of it.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        return deliver
