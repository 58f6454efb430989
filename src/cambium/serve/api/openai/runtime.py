"""What the API needs of the server behind it: names that resolve, and a place for traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cambium.models.adapter import Adapter
from cambium.models.base import BaseModel
from cambium.models.encoder import Encoder
from cambium.models.engine import Engine


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One line of `GET /v1/models`; `created` in seconds since 1970."""

    id: str
    created: int
    owned_by: str


@dataclass(frozen=True, kw_only=True)
class Answerer:
    """What a model name stands for at this moment.

    Args:
        model: the name as asked for.
        adapter: `base`, or `name@digest` of what acts on the base.
        adapters: their weights, summed; empty for the base.
        revision: number of the revision being served.
        detail: what the trace should say of the choice (domain, router's scores).
    """

    model: str
    adapter: str
    adapters: tuple[Adapter, ...]
    revision: int
    detail: dict[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, kw_only=True)
class TraceDraft:
    """What is kept of one request: numbers and names, no text of prompt or answer.

    Args:
        finish_reasons: one for each choice; `cancelled` when the client went away first.
        queued_ms: from arrival until the engine had the request.
        first_token_ms, total_ms: from arrival; the first is None when no token came.
        params: sampling parameters, the seeds drawn included.
    """

    request_id: str
    endpoint: str
    answerer: Answerer
    prompt_tokens: int
    completion_tokens: int
    finish_reasons: tuple[str, ...]
    queued_ms: float
    first_token_ms: float | None
    total_ms: float
    params: dict[str, object]


class OpenAIRuntime(Protocol):
    """The server as this API sees it."""

    @property
    def engine(self) -> Engine: ...

    @property
    def base(self) -> BaseModel: ...

    @property
    def encoder(self) -> Encoder: ...

    @property
    def revision(self) -> int:
        """Returns the number of the revision being served."""
        ...

    def models(self) -> Sequence[ModelEntry]:
        """Returns every name that `resolve` knows; the encoder is added by this API."""
        ...

    def resolve(self, model: str, *, domain: str | None, text: str) -> Answerer:
        """Returns what answers to `model`; called from a worker thread.

        Args:
            domain: the domain the caller names, if any.
            text: what is asked, for a router to read.

        Raises:
            ModelNotFound, DomainNotFound: nothing answers to the name or the domain.
            AdapterExpired, AdapterQuarantined: it did once.
        """
        ...

    def offer(self, answerer: Answerer, text: str, request_id: str) -> None:
        """Takes what a request wants to teach; must not wait.

        Raises:
            DataError: code `learn_unavailable`: nobody may teach this here.
        """
        ...

    def record(self, trace: TraceDraft) -> None:
        """Takes one finished request's trace; called on the event loop, so must not wait."""
        ...
