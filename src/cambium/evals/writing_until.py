"""Many texts from the engine, each ended as soon as one of its stop strings is written."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from cambium.core.errors import Stopped
from cambium.evals.subject import Generation
from cambium.models.adapter import Adapter
from cambium.models.breaking_off import check_going_on
from cambium.models.engine import Engine, GenerationRequest, Ticket, TokenEvent
from cambium.models.sampling import SamplingConfig
from cambium.models.writing import cancelled_unless_done


class _Text:
    """One text being written; events come from the engine's thread."""

    def __init__(self, engine: Engine, until: Sequence[str], done: threading.Semaphore) -> None:
        self.error: BaseException | None = None
        self.is_broken = False
        self._engine = engine
        self._until = [term for term in until if term]
        self._ids: list[int] = []
        self._done = done
        self._ticket: Ticket | None = None
        self._is_whole = False
        self._lock = threading.Lock()

    def submit(self, request: GenerationRequest) -> Ticket:
        ticket = self._engine.submit(request, self._on_event)
        with self._lock:
            self._ticket = ticket
            if self._is_whole:
                ticket.cancel()
        return ticket

    def text(self) -> str:
        """Returns what was written before the first stop string."""
        written: str = self._engine.base.tokenizer.decode(self._ids, skip_special_tokens=True)
        for term in self._until:
            written = written.split(term)[0]
        return written

    def _on_event(self, event: TokenEvent) -> None:
        if event.token_id is not None and not self._is_whole:
            self._ids.append(event.token_id)
            if self._until and self._ends():
                with self._lock:
                    self._is_whole = True
                    if self._ticket is not None:
                        self._ticket.cancel()
        if event.finish == "error" or (event.finish == "cancelled" and not self._is_whole):
            self.is_broken, self.error = True, event.error
        if event.finish:
            self._done.release()

    def _ends(self) -> bool:
        # The end alone is decoded: a stop string of n characters lies in the last n tokens and
        # one more, for a token writes at least a byte. Cutting is done on the whole text.
        longest = max(len(term.encode()) for term in self._until)
        tail = self._engine.base.tokenizer.decode(
            self._ids[-(longest + 1) :], skip_special_tokens=True
        )
        return any(term in tail for term in self._until)


def write_until(
    engine: Engine, rows: Sequence[tuple[Generation, list[int], tuple[Adapter, ...]]]
) -> list[str]:
    """Returns what the engine writes for each request, its prompt as token ids, its adapters.

    Raises:
        Stopped: the engine closed meanwhile; half a text would pass for a whole one.
    """
    done = threading.Semaphore(0)
    end = engine.base.tokenizer.eos_token_id
    texts = [_Text(engine, request.until, done) for request, _, _ in rows]
    # Long prompts first, so that rows of like length are read and freed together.
    with cancelled_unless_done() as tickets:
        for k in sorted(range(len(rows)), key=lambda k: -len(rows[k][1])):
            request, ids, adapters = rows[k]
            wanted = GenerationRequest(
                prompt=ids,
                adapters=adapters,
                max_tokens=request.max_tokens,
                sampling=SamplingConfig(temperature=request.temperature, seed=request.seed),
                stop_ids=frozenset() if end is None else frozenset({end}),
            )
            tickets.append(texts[k].submit(wanted))
        for _ in rows:
            done.acquire()
            check_going_on()
    for text in texts:
        if text.is_broken:
            if text.error is not None:
                raise text.error
            raise Stopped("the engine closed while texts were written", mend="start again")
    return [text.text() for text in texts]
