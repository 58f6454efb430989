"""Learning from traffic: requests that are new or uncertain teach their own ephemeral adapter.

Only where the signed policy says so, the tenant is listed and the request asks for it. No labels,
so the objective is the prompt's likelihood within a trust region, one step a request, watched like
every step. Compute is a budget that starts small and doubles only while everything stays green; a
reset or a veto takes it back. When an adapter keeps beating its parent on requests that it has not
learned from, it is proposed, and review decides as always.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from cambium.core.errors import CambiumError
from cambium.core.nouns import tenant_of
from cambium.learn.examples import Example
from cambium.learn.lesson import LearnConfig, LearnResult
from cambium.learn.marking import Mark, mark
from cambium.lifecycle.proposal import FROZEN
from cambium.serve.bounds import LearnCall
from cambium.serve.ephemeral import EphemeralAdapters
from cambium.serve.lessons import windows_of
from cambium.serve.live_adapter import LiveAdapter
from cambium.serve.proposal_records import from_row
from cambium.serve.proposals import UNDECIDED
from cambium.serve.rules import Rules
from cambium.serve.store.state import State
from cambium.trust.policy import TrafficBudget

LOSS = "prompt"
CONSENT = "policy: traffic"
SOURCE = "traffic"
WIN_SHARE = 0.8
GREEN_STEPS_TO_GROW = 4
HOUR_MS = 3_600_000
MAX_WAITING = 256
OPEN = (*UNDECIDED, *FROZEN)
_log = logging.getLogger(__name__)


class Surroundings(Protocol):
    """What this needs of the server around it."""

    def novelty(self, text: str, tenant: str) -> float:
        """Returns the cosine distance of a text to all that the bank was trained on, 0 to 2."""
        ...

    def propose(self, adapter: str, domain: str) -> str:
        """Files a proposal and returns its id."""
        ...

    def tell(self, request_id: str, outcome: dict[str, object]) -> None:
        """Adds to a request's trace what came of it."""
        ...

    def now_ms(self) -> int:
        """Returns milliseconds since 1970."""
        ...


@dataclass(kw_only=True)
class Progress:
    """How one adapter fares with traffic: since the server started, its budget apart.

    Args:
        allowance: steps it may take in an hour; `taken` when it took its last ones.
        green: steps in a row with nothing to complain about.
        wins: whether it beat its parent, for the last requests that it had not learned from.
    """

    allowance: int
    wins: deque[bool]
    offered: int = 0
    marked: int = 0
    steps: int = 0
    green: int = 0
    taken: deque[int] = field(default_factory=lambda: deque[int]())
    last_shift: float = 0.0
    proposal: str | None = None

    def to_json(self) -> dict[str, object]:
        """Returns what the API shows."""
        return {
            "offered": self.offered,
            "marked": self.marked,
            "steps": self.steps,
            "steps_per_hour": self.allowance,
            "wins": sum(self.wins),
            "of": len(self.wins),
            "proposal": self.proposal,
        }


@dataclass(frozen=True, kw_only=True)
class _Offer:
    adapter: str
    text: str
    request_id: str


class TrafficLearner:
    """Takes offers from the request path without waiting, and works them off in one thread."""

    def __init__(
        self, adapters: EphemeralAdapters, around: Surroundings, *, rules: Rules, state: State
    ) -> None:
        self._adapters = adapters
        self._state = state
        self._around = around
        self._rules = rules
        self._progress: dict[str, Progress] = {}
        self._waiting: queue.Queue[_Offer | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self._thread.start()

    @property
    def budget(self) -> TrafficBudget | None:
        """Returns what requests may teach now."""
        return self._rules.traffic

    def allows(self, tenant: str) -> bool:
        """Returns whether this tenant's requests may teach."""
        budget = self.budget
        return budget is not None and budget.learn and tenant in budget.tenants

    def offer(self, adapter: str, text: str, request_id: str) -> bool:
        """Takes a request's text without waiting; returns False if too many are waiting."""
        try:
            self._waiting.put_nowait(_Offer(adapter=adapter, text=text, request_id=request_id))
        except queue.Full:
            return False
        return True

    def follow_rules(self) -> None:
        """Begins anew under a policy that has changed, and that has ended what was proposed."""
        self._progress.clear()

    def progress(self, adapter: str) -> dict[str, object] | None:
        """Returns how an adapter fares, if traffic taught it since the start."""
        found = self._progress.get(adapter)
        return found.to_json() if found else None

    def close(self) -> None:
        """Ends the thread; what waits is forgotten."""
        while True:
            try:
                self._waiting.get_nowait()
            except queue.Empty:
                break
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (offer := self._waiting.get()) is not None:
            outcome: dict[str, object]
            try:
                outcome = self._consider(offer)
            except CambiumError as error:
                outcome = {"state": "refused", "code": error.code, "why": error.one_line()}
            except Exception as error:  # noqa: BLE001 - one request must not end them all
                _log.exception("learning from a request failed")
                outcome = {"state": "failed", "why": type(error).__name__}
            try:
                self._around.tell(offer.request_id, outcome)
            except Exception:  # noqa: BLE001 - the trace is lost, and what comes next is not
                _log.exception("what came of a request could not be told")

    def _consider(self, offer: _Offer) -> dict[str, object]:
        # As it is now: the policy may have changed since the offer.
        if self.budget is None or not self.allows(tenant_of(offer.adapter)):
            return {"state": "off"}
        live = self._adapters.get_own(offer.adapter)
        progress = self._progress.get(offer.adapter)
        if progress is None:
            progress = self._progress[offer.adapter] = self._begun(offer.adapter, self.budget)
        progress.offered += 1
        found, novelty = (
            self._read(live, offer.text),
            self._around.novelty(offer.text, tenant_of(offer.adapter)),
        )
        if not self._was_taught(offer):
            progress.wins.append(found.is_win)
        seen: dict[str, object] = {
            "novelty": round(novelty, 4),
            "entropy": round(found.entropy, 4),
            "margin": round(found.margin, 4),
            "loss": round(found.loss, 4),
            "parent_loss": round(found.parent_loss, 4),
        }
        highest = self.budget.max_margin
        unsure = found.entropy >= self.budget.min_entropy
        unsure |= highest is not None and found.margin <= highest
        if not unsure and novelty < self.budget.min_novelty:
            return {"state": "passed over", **seen}
        progress.marked += 1
        if not self._has_budget(progress):
            return {"state": "over budget", **seen}
        outcome = {**seen, **self._step(live, offer.text, progress)}
        if progress.green and self._is_sustained(progress):
            outcome["proposal"] = self._propose(live, progress)
        return outcome

    def _begun(self, adapter: str, budget: TrafficBudget) -> Progress:
        """Returns an adapter's progress, with what it has taken and filed before this start."""
        since = self._around.now_ms() - HOUR_MS
        with self._state.read() as tx:
            calls = [c for c in tx.list_learn_steps(adapter) if c.source == SOURCE]
            filed = [from_row(row).proposal for s in OPEN for row in tx.list_proposals(state=s)]
        return Progress(
            allowance=budget.first_steps_per_hour,
            wins=deque(maxlen=budget.wins_window),
            taken=deque(call.at for call in calls if call.at > since),
            proposal=next((p.id for p in filed if p.adapter_name == adapter), None),
        )

    def _was_taught(self, offer: _Offer) -> bool:
        """Returns whether the adapter learned from this very text, so that it proves nothing."""
        with self._state.read() as tx:
            return tx.has_example(offer.adapter, _example(offer.text).digest)

    def _read(self, live: LiveAdapter, text: str) -> Mark:
        windows = windows_of(self._adapters.base, [_example(text)], loss=LOSS)
        return mark(self._adapters.model, live.lora, live.parent, windows)

    def _has_budget(self, progress: Progress) -> bool:
        now = self._around.now_ms()
        while progress.taken and progress.taken[0] <= now - HOUR_MS:
            progress.taken.popleft()
        budget = self.budget
        most = min(progress.allowance, budget.max_steps_per_hour) if budget else 0
        return len(progress.taken) < most

    def _step(self, live: LiveAdapter, text: str, progress: Progress) -> dict[str, object]:
        call = LearnCall(
            examples=[_example(text)],
            loss=LOSS,
            steps=1,
            lr=shaped_rate(progress.last_shift, self._adapters.bounds.monitor_margin_nats),
            consent=CONSENT,
            source=SOURCE,
        )
        # Before it is taken: one that is refused at its end has cost the same.
        progress.taken.append(self._around.now_ms())
        try:
            _, after, result = self._adapters.learn(live.record.name, call)
        except CambiumError:
            progress.green = 0
            raise
        progress.steps += 1
        self._grow(progress, result)
        state = "quarantined" if result.quarantined else "reset" if result.reset else "learned"
        return {
            "state": state,
            "adapter": f"{after.name}@{after.digest}",
            "green": bool(progress.green),
            "shift": round(progress.last_shift, 6),
        }

    def _grow(self, progress: Progress, result: LearnResult) -> None:
        """Doubles what an adapter may do while it stays green, and takes it all back if not."""
        budget = self.budget
        if budget is None:
            return
        progress.last_shift = result.checks[-1].shift if result.checks else 0.0
        if result.reset or result.quarantined:
            progress.green, progress.allowance = 0, budget.first_steps_per_hour
            progress.wins.clear()
            return
        progress.green += 1
        if progress.green % GREEN_STEPS_TO_GROW == 0:
            progress.allowance = min(2 * progress.allowance, budget.max_steps_per_hour)

    def _is_sustained(self, progress: Progress) -> bool:
        wins = progress.wins
        return (
            progress.proposal is None
            and len(wins) == wins.maxlen
            and progress.green >= len(wins)
            and sum(wins) >= WIN_SHARE * len(wins)
        )

    def _propose(self, live: LiveAdapter, progress: Progress) -> str:
        record = live.record
        try:
            progress.proposal = self._around.propose(
                record.name, record.domain or record.name.rpartition(":")[2]
            )
        except CambiumError as error:
            return error.one_line()
        return progress.proposal


def shaped_rate(shift: float, margin: float) -> float:
    """Returns the next step's rate: the default, less the nearer the monitor is to its veto.

    Args:
        shift: of the last look, negative towards harm; `margin` where it vetoes. Nats per token.
    """
    near = min(1.0, max(0.0, -shift) / margin) if margin > 0 else 0.0
    return LearnConfig().lr * max(0.1, 1 - near)


def _example(text: str) -> Example:
    return Example(kind="text", content={"text": text})
