"""One choice of an answer: the engine's tokens in, showable pieces of text out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from cambium.models.engine import TokenEvent
from cambium.serve.api.openai.stops import StopMatcher
from cambium.serve.api.openai.token_texts import TextStream, TokenTexts


@dataclass(frozen=True, kw_only=True)
class ShownToken:
    """A token as log-probabilities list it.

    Args:
        offset: characters of the text before it.
        logprob: nats; None for a text's first token, which nothing predicts.
        top: the likeliest tokens there, with nats.
    """

    token_id: int
    offset: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What can be shown of choice `index` now; the last one says why it ended."""

    index: int
    text: str = ""
    tokens: tuple[ShownToken, ...] = ()
    finish: str | None = None


class Choice:
    """Follows one answer of the engine; a token is listed once its text is shown.

    Args:
        stops: strings that end the answer, unseen.
        end_ids: tokens that end the answer and are listed as its last.
    """

    def __init__(
        self,
        index: int,
        texts: TokenTexts,
        *,
        stops: Sequence[str] = (),
        end_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._index = index
        self._stream = TextStream(texts)
        self._stops = StopMatcher(stops)
        self._end_ids = end_ids
        self._unlisted: deque[ShownToken] = deque()
        self._num_shown = 0
        self.num_tokens = 0
        self.finish: str | None = None

    def feed(self, event: TokenEvent) -> Piece | None:
        """Returns what this event lets be shown, if anything."""
        if event.token_id is None:
            return self._end(event.finish or "stop")
        self.num_tokens += 1
        if event.logprob is not None:
            self._unlisted.append(
                ShownToken(
                    token_id=event.token_id,
                    offset=self._stream.num_chars,
                    logprob=event.logprob.logprob,
                    top=event.logprob.top,
                )
            )
        if event.token_id in self._end_ids:
            return self._end("stop")
        text, stopped = self._stops.feed(self._stream.feed(event.token_id))
        if stopped:
            self.finish = "stop"
        return self._piece(text) if text or stopped else None

    def _end(self, why: str) -> Piece:
        text, stopped = self._stops.feed(self._stream.finish())
        self.finish = "stop" if stopped else why
        if stopped:
            return self._piece(text)
        piece = self._piece(text + self._stops.finish())
        rest = (*piece.tokens, *self._unlisted)
        return Piece(index=self._index, text=piece.text, tokens=rest, finish=why)

    def _piece(self, text: str) -> Piece:
        self._num_shown += len(text)
        listed = []
        while self._unlisted and self._unlisted[0].offset < self._num_shown:
            listed.append(self._unlisted.popleft())
        return Piece(index=self._index, text=text, tokens=tuple(listed), finish=self.finish)
