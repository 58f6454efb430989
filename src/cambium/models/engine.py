"""The generation engine: requests for different adapters share one batch.

A row's numbers must not depend on who else is being served. So passes run in fixed shapes:
decoding always over all rows, prefill at one of few lengths and always as many prompts at once as
`PREFILL_TOKENS` hold, with dummies in the rest; an answer is the same alone and in company.
Shape letters: B rows, T positions, V words.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cambium.core.errors import DataError, Stopped
from cambium.models.adapter import Adapter, virtual_tokens
from cambium.models.answer_passes import NewTokens, answer_passes
from cambium.models.base import BaseModel, RowWeights, stack_rows
from cambium.models.packing import pass_length
from cambium.models.row_stack import RowStack
from cambium.models.sampling import SamplingConfig, TokenLogprob, sample, token_logprob
from cambium.models.slot_cache import SlotCache

_log = logging.getLogger(__name__)
PREFILL_TOKENS = 64
# Decoding reads so many keys more at a time. Attention takes them in blocks of `KEY_BLOCK`, and a
# long block is added up in an order that depends on its length; so reads beyond half a block are
# of whole ones, or else an answer would show how long its neighbours are.
READ_BUCKET = 64
KEY_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Rows served at once and the longest sequence, in tokens."""

    num_rows: int = 16
    max_context: int = 4096


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One answer to be generated.

    Args:
        prompt: token ids, at least one.
        adapters: the adapters that act on this row, summed.
        stop_ids: tokens that end the answer and are not part of it.
        num_logprobs: None for no log-probabilities, else how many rivals to list.
    """

    prompt: Sequence[int]
    adapters: tuple[Adapter, ...] = ()
    max_tokens: int = 16
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    stop_ids: frozenset[int] = frozenset()
    num_logprobs: int | None = None


@dataclass(frozen=True, kw_only=True)
class TokenEvent:
    """One generated token, or the end: `finish` is `stop`, `length`, `cancelled` or `error`."""

    token_id: int | None = None
    logprob: TokenLogprob | None = None
    finish: str | None = None
    error: BaseException | None = None


@dataclass(kw_only=True)
class Ticket:
    """A request under way; `cancel` frees its row before the next token.

    Args:
        read: what the row reads first: the virtual tokens of its adapters, then the prompt.
    """

    request: GenerationRequest
    read: Sequence[int]
    on_event: Callable[[TokenEvent], None]
    generator: torch.Generator
    generated: list[int] = field(default_factory=list)
    cancelled: bool = False

    def cancel(self) -> None:
        """Asks the engine to stop this answer."""
        self.cancelled = True


class Engine:
    """One thread that generates for all rows; callers get events from that thread."""

    def __init__(self, base: BaseModel, config: EngineConfig | None = None) -> None:
        self.base = base
        self.config = config or EngineConfig()
        self.context = min(base.context, self.config.max_context)
        text_config = base.model.config.get_text_config()
        self._passes = answer_passes(base)
        self._cache = SlotCache(text_config.num_hidden_layers, self.config.num_rows)
        self._rows: list[Ticket | None] = [None] * self.config.num_rows
        self._weights = RowStack(self.config.num_rows)
        self._waiting: deque[Ticket] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._refused: Exception | None = None
        self._spares_base = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, on_event: Callable[[TokenEvent], None]) -> Ticket:
        """Queues a request; `on_event` is called from the engine's thread for every token.

        Raises:
            DataError: the prompt is empty or leaves no room for one token.
        """
        if not request.prompt:
            raise DataError("the prompt is empty", mend="send at least one token")
        before = virtual_tokens(request.adapters)
        room = self.context - len(before)
        if len(request.prompt) >= room:
            raise DataError(
                f"the prompt has {len(request.prompt)} tokens; the context is {room}",
                mend="shorten the prompt",
            )
        generator = torch.Generator().manual_seed(request.sampling.seed)
        read = [*before, *request.prompt]
        ticket = Ticket(request=request, read=read, on_event=on_event, generator=generator)
        with self._wake:
            if self._closing:
                raise Stopped("the engine is closing", mend="try again when the server is up")
            if error := self._refusal(request):
                raise error
            self._waiting.append(ticket)
            self._wake.notify()
        return ticket

    def generate(self, request: GenerationRequest) -> list[TokenEvent]:
        """Generates one answer and returns its events, the last one with `finish`."""
        events: list[TokenEvent] = []
        done = threading.Event()

        def collect(event: TokenEvent) -> None:
            events.append(event)
            if event.finish:
                done.set()

        self.submit(request, collect)
        done.wait()
        if events[-1].error is not None:
            raise events[-1].error
        return events

    def halt(self, error: Exception, *, spare_base: bool = False) -> None:
        """Ends answers with `error` before their next token and lets none begin until `resume`.

        Args:
            spare_base: answers that no adapter takes part in go on.
        """
        with self._wake:
            self._refused, self._spares_base = error, spare_base
            refused = [t for t in self._waiting if self._refusal(t.request)]
            for ticket in refused:
                self._waiting.remove(ticket)
        for ticket in refused:
            self._tell(ticket, TokenEvent(finish="error", error=error))

    def resume(self) -> None:
        """Lets answers begin again."""
        with self._wake:
            self._refused = None

    @property
    def num_active(self) -> int:
        """Returns how many answers are being generated or wait for a row."""
        return sum(t is not None for t in self._rows) + len(self._waiting)

    def close(self) -> None:
        """Stops the thread; answers under way end as cancelled."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._has_work():
            try:
                with torch.inference_mode():
                    if arrived := self._take_waiting():
                        self._prefill(arrived)
                    self._decode()
            except Exception as error:  # noqa: BLE001 - told to its rows; the rest goes on
                _log.exception("a pass of the engine failed")
                self._fail_all(error)
        self.base.expect_answers(False)
        for ticket in [*self._rows, *self._waiting]:
            if ticket is not None:
                self._tell(ticket, TokenEvent(finish="cancelled"))

    def _has_work(self) -> bool:
        """Waits for something to do; returns False when the engine is to end."""
        with self._wake:
            while not self._closing and not self._waiting and not any(self._rows):
                self.base.expect_answers(False)
                self._wake.wait()
                self.base.expect_answers(True)
            return not self._closing

    def _take_waiting(self) -> list[tuple[int, Ticket]]:
        taken = []
        with self._wake:
            for row, ticket in enumerate(self._rows):
                if ticket is None and self._waiting:
                    arriving = self._waiting.popleft()
                    self._rows[row] = arriving
                    taken.append((row, arriving))
        return taken

    def _active(self) -> list[tuple[int, Ticket]]:
        return [(row, ticket) for row, ticket in enumerate(self._rows) if ticket is not None]

    def _prefill(self, arrived: Sequence[tuple[int, Ticket]]) -> None:
        by_bucket: dict[int, list[tuple[int, Ticket]]] = {}
        for row, ticket in arrived:
            length = min(pass_length(len(ticket.read)), self.context)
            by_bucket.setdefault(length, []).append((row, ticket))
        for length, members in by_bucket.items():
            per_pass = max(1, PREFILL_TOKENS // length)
            for at in range(0, len(members), per_pass):
                self._prefill_pass(length, per_pass, members[at : at + per_pass])

    def _prefill_pass(
        self, length: int, per_pass: int, members: Sequence[tuple[int, Ticket]]
    ) -> None:
        # Dummy rows repeat the first member, whose slot then receives the same values twice.
        filled = [*members, *[members[0]] * (per_pass - len(members))]
        tokens = torch.zeros(per_pass, length, dtype=torch.long)
        for i, (_, ticket) in enumerate(filled):
            tokens[i, : len(ticket.read)] = torch.tensor(ticket.read)
        weights = stack_rows([ticket.request.adapters for _, ticket in filled])
        self._cache.ensure(length)
        self._cache.slots = torch.tensor([row for row, _ in filled])
        self._cache.positions = torch.arange(length).expand(per_pass, length)
        self._cache.read_length = None
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        logits = self._pass(weights, NewTokens(
            tokens=tokens,
            positions=self._cache.positions,
            mask=causal.expand(per_pass, 1, length, length),
            last=torch.tensor([len(t.read) - 1 for _, t in filled]),
        ))  # fmt: skip
        for i, (row, ticket) in enumerate(members):
            self._accept(row, ticket, logits[i])
            if self._rows[row] is ticket:
                self._weights.put(row, ticket.request.adapters, weights, i)

    def _decode(self) -> None:
        active = self._active()
        if not active:
            return
        tokens = torch.zeros(self.config.num_rows, 1, dtype=torch.long)
        positions = torch.zeros(self.config.num_rows, 1, dtype=torch.long)
        for row, ticket in active:
            tokens[row] = ticket.generated[-1]
            positions[row] = len(ticket.read) + len(ticket.generated) - 1
        read = min(_read_length(int(positions.max()) + 1), self.context)
        self._cache.ensure(read)
        self._cache.slots = torch.arange(self.config.num_rows)
        self._cache.positions = positions
        self._cache.read_length = read
        mask = (torch.arange(read) <= positions)[:, None, None, :]
        last = torch.zeros(self.config.num_rows, dtype=torch.long)
        new = NewTokens(tokens=tokens, positions=positions, mask=mask, last=last)
        logits = self._pass(self._weights.weights, new)
        for row, ticket in active:
            self._accept(row, ticket, logits[row])

    def _pass(self, weights: RowWeights | None, new: NewTokens) -> Tensor:
        """Returns the logits [B V] of one pass over the cache."""
        return self.base.run(lambda: self._passes.logits(new, self._cache, weights), is_answer=True)

    def _accept(self, row: int, ticket: Ticket, logits: Tensor) -> None:
        if ticket.cancelled:
            return self._finish(row, ticket, TokenEvent(finish="cancelled"))
        if error := self._refusal(ticket.request):
            return self._finish(row, ticket, TokenEvent(finish="error", error=error))
        try:
            event = _next_token(ticket, logits)
        except Exception as error:  # noqa: BLE001 - one row's request ends only itself
            _log.exception("no token could be drawn")
            return self._finish(row, ticket, TokenEvent(finish="error", error=error))
        if event.token_id is None:
            return self._finish(row, ticket, event)
        ticket.generated.append(event.token_id)
        self._tell(ticket, event)
        used = len(ticket.read) + len(ticket.generated)
        if len(ticket.generated) >= ticket.request.max_tokens or used >= self.context:
            self._finish(row, ticket, TokenEvent(finish="length"))
        return None

    def _refusal(self, request: GenerationRequest) -> Exception | None:
        spared = self._spares_base and not request.adapters
        return None if spared else self._refused

    def _finish(self, row: int, ticket: Ticket, event: TokenEvent) -> None:
        self._rows[row] = None
        self._weights.clear(row)
        self._tell(ticket, event)

    def _fail_all(self, error: Exception) -> None:
        self._weights.forget()
        for row, ticket in self._active():
            self._rows[row] = None
            self._tell(ticket, TokenEvent(finish="error", error=error))

    def _tell(self, ticket: Ticket, event: TokenEvent) -> None:
        try:
            ticket.on_event(event)
        except Exception:  # noqa: BLE001 - a broken listener loses only its own answer
            _log.exception("a listener failed")
            ticket.cancel()


def _next_token(ticket: Ticket, logits: Tensor) -> TokenEvent:
    request = ticket.request
    token = sample(logits, request.sampling, previous=ticket.generated, generator=ticket.generator)
    if token in request.stop_ids:
        return TokenEvent(finish="stop")
    logprob = None
    if request.num_logprobs is not None:
        logprob = token_logprob(logits, token, request.num_logprobs)
    return TokenEvent(token_id=token, logprob=logprob)


def _read_length(longest: int) -> int:
    step = READ_BUCKET if longest <= KEY_BLOCK // 2 else KEY_BLOCK
    return -(-longest // step) * step
