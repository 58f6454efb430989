"""An ephemeral adapter as it is held in memory, and what it needs of the server around it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from cambium.learn.lesson import LearnResult, StepMonitor
from cambium.learn.replay_buffer import ReplayBuffer
from cambium.models.lora import Lora
from cambium.serve.bank import Bank
from cambium.serve.store.records import AdapterRecord


@dataclass(kw_only=True)
class LiveAdapter:
    """Its row, its weights and the parent it stands on.

    Args:
        monitor: what watches its steps, once it has taken one.
        busy: held by whoever teaches it.
    """

    record: AdapterRecord
    lora: Lora
    parent: tuple[Lora, ...]
    replay: ReplayBuffer = field(default_factory=ReplayBuffer)
    monitor: StepMonitor | None = None
    busy: threading.Lock = field(default_factory=threading.Lock)


def shared_parent(live: Iterable[LiveAdapter], record: AdapterRecord) -> tuple[Lora, ...]:
    """Returns what another adapter on the same parent stands on, or nothing.

    Passes tell parents apart by what they are in memory: one for all is computed with once.
    """
    wanted = (record.parent_revision, record.domain)
    others = (x.parent for x in live if (x.record.parent_revision, x.record.domain) == wanted)
    return next(others, ())


class Surroundings(Protocol):
    """What adapters need of the server around them."""

    @property
    def bank(self) -> Bank:
        """Returns the bank that is being served."""
        ...

    def now_ms(self) -> int:
        """Returns milliseconds since 1970, UTC."""
        ...

    def check_alive(self) -> None:
        """Raises if the system was killed."""
        ...

    def count_lesson(self, result: LearnResult) -> None:
        """Takes note of a call to learn that was persisted."""
        ...
