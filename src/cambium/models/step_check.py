"""What a monitor says of one learning step: what `learn` asks and `evals` answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepCheck:
    """What the alignment monitor says of one learning step.

    Args:
        shift: mean movement toward the harmless continuations, nats per token; below zero is
            movement toward the harmful ones.
        margin: how far below zero `shift` may go.
    """

    ok: bool
    shift: float
    margin: float
