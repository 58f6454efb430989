"""An ephemeral adapter as it is held in memory."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from cambium.learn.lesson import StepMonitor
from cambium.learn.replay_buffer import ReplayBuffer
from cambium.models.lora import Lora
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
