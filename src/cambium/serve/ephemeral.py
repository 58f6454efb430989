"""Ephemeral adapters: created, taught, watched, expired. Nothing here touches the stable bank."""

from __future__ import annotations

import logging
import threading
from contextlib import nullcontext
from dataclasses import replace

import torch

from cambium.core.errors import CambiumError, IllegalTransition
from cambium.core.nouns import DEFAULT_TENANT, tenant_of
from cambium.learn.lesson import LearnConfig, Learner, LearnResult, Lesson
from cambium.learn.manifest import manifest
from cambium.learn.objectives import DEFAULT_RATES
from cambium.learn.replay_buffer import ReplayBuffer
from cambium.models.adapter_bytes import AdapterBytes
from cambium.models.lora import Lora, LoraConfig, fresh_lora, from_bytes, to_bytes
from cambium.models.training_model import TrainingModel
from cambium.serve.adapter_states import AdapterState
from cambium.serve.bank import parent_of, stored_bytes
from cambium.serve.bounds import (
    LearnCall,
    check_adapter,
    check_call,
    check_result,
    check_room,
    check_tokens,
)
from cambium.serve.errors import (
    AdapterElsewhere,
    AdapterExpired,
    AdapterQuarantined,
    BudgetExceeded,
)
from cambium.serve.learning_queue import LearningQueue
from cambium.serve.lessons import (
    Taken,
    forgotten_if_unsure,
    fresh_seed,
    keep_examples,
    learn_record,
    monitors_view,
    warm_up_lesson,
    windows_of,
)
from cambium.serve.live_adapter import LiveAdapter, Surroundings, shared_parent
from cambium.serve.rehearsing import Drawn, Rehearsing, copied
from cambium.serve.rules import Rules
from cambium.serve.spans import span
from cambium.serve.step_monitors import StepMonitors
from cambium.serve.store.records import AdapterRecord
from cambium.serve.store.state import State
from cambium.serve.store.transaction import Transaction
from cambium.trust.policy import LearningBudget

_log = logging.getLogger(__name__)


class EphemeralAdapters:
    """All ephemeral adapters of one server.

    What a call acknowledges is on disk before it returns: blobs first, then one transaction
    with the adapter's row, the learning record, the consented examples and the log entry. An
    adapter whose time is over answers and learns no more, whether or not that is on disk yet.

    Where several processes share the state, an adapter is taught by one of them, its owner, and
    answers in all as it now is. Whoever is asked to teach it when its owner is gone is the next.
    """

    def __init__(
        self,
        model: TrainingModel,
        state: State,
        *,
        queue: LearningQueue,
        rehearsing: Rehearsing,
        rules: Rules,
        around: Surroundings,
    ) -> None:
        self.model = model
        self.base = base = model.base
        self._rules = rules
        self._state = state
        self._queue = queue
        self.rehearsing = rehearsing
        self._around = around
        self._now_ms = around.now_ms
        self._live: dict[str, LiveAdapter] = {}
        self.monitors = StepMonitors(model, rules=rules)
        # Whoever puts into or takes out of `_live` holds this from reading the row on, so that
        # an adapter that has ended meanwhile cannot come back.
        self._lock = threading.Lock()
        # Lessons learned together are written one by one, or all would hold up answers at once.
        self._writing = threading.Lock()
        self._weight_norms = {
            path: float(torch.linalg.norm(base.model.get_submodule(path).weight.float()))
            for path in base.sites
        }

    @property
    def bounds(self) -> LearningBudget:
        """Returns the bounds of learning that hold now."""
        return self._rules.learning

    def create(
        self, name: str, config: LoraConfig, *, scope: str, ttl_s: int, domain: str | None
    ) -> AdapterRecord:
        """Makes a fresh adapter on top of the current revision's adapter for its domain.

        Args:
            name: as the state knows it, with its tenant; the caller has checked both.

        Raises:
            DataError: a rank or time to live outside the policy's bounds.
            ModelError: a target module that the base does not have.
            IllegalTransition: the name is taken, or was.
            BudgetExceeded, AdapterKindRefused: as many as the policy allows; see `Bank.below`.
        """
        check_adapter(config, ttl_s=ttl_s, bounds=self.bounds)
        lora = fresh_lora(config, self.base.targets(config), seed=fresh_seed(name))
        bank = self._around.bank
        parent = bank.below(domain)
        now = self._now_ms()
        record = AdapterRecord(
            name=name,
            digest="",
            state=AdapterState.EPHEMERAL,
            tenant=tenant_of(name),
            domain=domain,
            scope=scope,
            config_json="",
            parent_revision=bank.revision.number,
            created_at=now,
            expires_at=now + ttl_s * 1000,
            weights_blob=None,
            owner=self._state.process,
        )
        with self._lock:
            self._around.check_alive()
            with self._state.transaction() as tx:
                self._check_room(name, tx)
                data = to_bytes(lora, fan_in_fan_out=self.base.transposed)
                record = _with_weights(record, data, self._state.blobs.put(data.weights))
                tx.put_adapter(record)
                tx.audit("adapter.created", at=now, body={
                    "name": name, "digest": record.digest, "domain": domain,
                    "parent_revision": bank.revision.number})  # fmt: skip
            self._live[name] = self._loaded(record, lora, parent)
        return record

    @span("learn")
    def learn(self, name: str, call: LearnCall) -> tuple[AdapterRecord, AdapterRecord, LearnResult]:
        """Takes the steps, persists them, and serves them from the next request on.

        Returns:
            The adapter's row before and after, and what happened at each step. A step that
            fails the alignment check leaves the adapter quarantined for good.

        Raises:
            DataError, TooLarge, LossUnavailable, BudgetExceeded, AdapterNotFound,
            AdapterExpired, AdapterQuarantined, AdapterElsewhere, StorageFull: nothing was changed.
        """
        check_call(call, self.bounds)
        with self.get_own(name).busy:
            live = self.get_own(name)  # as whoever was busy before has left it
            before = live.record
            if before.steps + call.steps > self.bounds.max_total_steps_per_adapter:
                raise BudgetExceeded(
                    f"adapter {name!r} has taken {before.steps} of "
                    f"{self.bounds.max_total_steps_per_adapter} steps",
                    mend="propose it, or start another",
                )
            taken = self._take_steps(live, call)
            with self._writing:
                after = self._persist(live, call, taken)
            self._around.count_lesson(taken.result)
            return before, after, taken.result

    def find_live(self, name: str, digest: str | None) -> LiveAdapter | None:
        """Returns a live adapter as it now is; None where it is not, or no longer, `digest`.

        Raises:
            As `get_live`, where no digest is asked for.
        """
        if digest is not None and digest != self.current_digest(name):
            return None
        live = self.get_live(name)
        return live if digest in (None, live.record.digest) else None

    def get_live(self, name: str, *, to_serve: bool = True) -> LiveAdapter:
        """Returns a live adapter as it now is, loading it if what is in memory may be older.

        Args:
            to_serve: False where it is only to be ended or to forget.

        Raises:
            AdapterNotFound, AdapterExpired, AdapterQuarantined: it cannot answer or learn.
            StateCorrupt, DigestMismatch: its stored bytes are not what its digest names.
        """
        live = self._live.get(name)
        if live is not None and self._is_mine(live.record) and not self._is_over(live.record):
            if to_serve:
                self._check_domain(live.record)
            return live
        with self._lock:
            record = self.get(name)
            if to_serve:
                self._check_domain(record)
            if record.state is AdapterState.EXPIRED:
                raise AdapterExpired(f"adapter {name!r} has expired", mend="create another")
            if record.state is AdapterState.QUARANTINED:
                raise AdapterQuarantined(
                    f"adapter {name!r} failed its alignment check, or its parent is in quarantine",
                    mend=f"see GET /adapters/{name}",
                )
            live = self._live.get(name)
            if live is None or live.record != record:
                lora = from_bytes(stored_bytes(self._state, record), self.base.sites)
                known = shared_parent(self._live.values(), record)
                parent = known or parent_of(record, self._state, self.base)
                live = self._live[name] = self._loaded(record, lora, parent)
            return live

    def get_own(self, name: str, *, to_serve: bool = True) -> LiveAdapter:
        """Returns a live adapter that this process teaches.

        One that no living process teaches is this one's from now on.

        Raises:
            AdapterElsewhere: another process teaches it.
            AdapterNotFound, AdapterExpired, AdapterQuarantined: as `get_live`.
        """
        live = self.get_live(name, to_serve=to_serve)
        if not self._is_mine(live.record):
            with self._lock, self._state.transaction() as tx:
                record = tx.get_adapter(name)
                address = None if self._is_mine(record) else tx.find_process(record.owner)
                if address is not None:
                    raise AdapterElsewhere(
                        f"adapter {name!r} learns in another process of this state",
                        mend=f"ask {address}" if address else "wait until it is done",
                        detail={"address": address},
                    )
                tx.put_adapter(replace(record, owner=self._state.process))
            live = self.get_live(name, to_serve=to_serve)
        return live

    def _is_mine(self, record: AdapterRecord) -> bool:
        """Returns whether nobody else can have changed the adapter since it was read."""
        return self._state.owns(record.owner)

    def current_digest(self, name: str) -> str | None:
        """Returns the digest that the ephemeral adapter of this name has now, if there is one."""
        live = self._live.get(name)
        if live is not None and self._is_mine(live.record):
            return live.record.digest
        with self._state.read() as tx:
            record = tx.find_adapter(name)
        return record.digest if record and record.state is AdapterState.EPHEMERAL else None

    def get(self, name: str) -> AdapterRecord:
        """Returns an adapter's row as of now: expired if its time is over.

        Raises:
            AdapterNotFound: no adapter has this name.
        """
        with self._state.read() as tx:
            return self._as_of_now(tx.get_adapter(name))

    def list(self) -> list[AdapterRecord]:
        """Returns all adapters as of now, oldest first."""
        with self._state.read() as tx:
            return [self._as_of_now(record) for record in tx.list_adapters()]

    def delete(self, name: str) -> AdapterRecord:
        """Ends an ephemeral adapter before its time; no row names its weights any more.

        Raises:
            AdapterNotFound: no adapter has this name.
            AdapterElsewhere: another process teaches it.
            IllegalTransition: it has ended already.
        """
        record = self.get(name)
        if record.state is not AdapterState.EPHEMERAL:
            raise IllegalTransition(f"adapter {name!r} is {record.state}",
                mend="delete a live adapter; what is merged goes by rollback")  # fmt: skip
        return self._end(self.get_own(name, to_serve=False).record.name, "adapter.deleted")

    def replay_view(self, name: str) -> dict[str, int] | None:
        """Returns how much a live adapter goes through again; None for any other."""
        live = self._live.get(name)
        if live is None:
            return None
        rows = list(live.replay.rows.values())  # a lesson may be changing them
        return {"rows": len(rows), "tokens": sum(row.num_tokens for row in rows)}

    def withdraw(self, name: str, source: str | None) -> int:
        """Forgets what an adapter was given with consent; what it learned stays in its weights.

        Args:
            source: only what came from it; everything if None.

        Returns:
            How many examples are gone, with all that would go through them again.

        Raises:
            AdapterNotFound: no adapter has this name.
            AdapterElsewhere: another process teaches it.
        """
        record = self.get(name)
        # A lesson under way would write back what it drew.
        alive = record.state is AdapterState.EPHEMERAL
        own = self.get_own(name, to_serve=False).busy if alive else nullcontext()
        with own, self._lock:
            with self._state.transaction() as tx:
                gone = tx.withdraw_consent(name, source=source)
                tx.audit("adapter.consent_withdrawn", at=self._now_ms(), body={
                    "name": name, "source": source, "examples": gone})  # fmt: skip
            live = self._live.get(name)
            if live is not None:
                self._live[name] = replace(live, replay=self._buffer(live.record))
        return gone

    def follow_rules(self) -> None:
        """Lets live adapters' buffers and monitors follow a policy that has changed."""
        for name in list(self._live):
            live = self._live.get(name)
            if live is None:
                continue
            with live.busy, self._lock:
                now = self._live.get(name)
                if now is not None:
                    buffer = self._buffer(now.record)
                    self._live[name] = replace(now, replay=buffer, monitor=None)

    def expire(self) -> int:
        """Writes down the end of every adapter whose time is over; returns how many.

        Their weights, optimizer and consented examples are named by no row then, and go with
        the next sweep; what a filed proposal names stays. A quarantined adapter stays
        quarantined, but its weights go with its time too.
        """
        with self._state.read() as tx:
            due = [a.name for a in tx.list_adapters() if a.weights_blob and self._is_over(a)]
        for name in due:
            self._end(name, "adapter.expired")
        self.forget_ended()
        return len(due)

    def forget_ended(self) -> None:
        """Lets go of adapters in memory that another process has ended."""
        with self._lock:
            alive = {a.name for a in self.list() if a.state is AdapterState.EPHEMERAL}
            self._live = {name: live for name, live in self._live.items() if name in alive}

    def _check_domain(self, record: AdapterRecord) -> None:
        """Refuses an adapter on top of a domain that belongs to another tenant by now."""
        policy = self._rules.policy
        if policy and record.domain and not policy.may_use(record.domain, record.tenant):
            raise AdapterExpired(f"adapter {record.name!r} was made for a domain that belongs to "
                                 "another tenant now", mend="create another")  # fmt: skip

    def _is_over(self, record: AdapterRecord) -> bool:
        return record.expires_at is not None and record.expires_at <= self._now_ms()

    def _as_of_now(self, record: AdapterRecord) -> AdapterRecord:
        if record.state is AdapterState.EPHEMERAL and self._is_over(record):
            return record.ended()
        return record

    def _end(self, name: str, why: str) -> AdapterRecord:
        with self._lock:
            with self._state.transaction() as tx:
                record = tx.get_adapter(name)
                if record.weights_blob is None:
                    return record  # another thread was first
                ended = record.ended()
                tx.put_adapter(ended)
                tx.delete_examples(name)
                tx.audit(why, body={"name": name, "digest": record.digest}, at=self._now_ms())
            self._live.pop(name, None)
        return ended

    def _check_room(self, name: str, tx: Transaction) -> None:
        if tx.find_adapter(name) is not None:
            raise IllegalTransition(f"an adapter named {name!r} exists", mend="choose another name")
        live = [
            a
            for a in map(self._as_of_now, tx.list_adapters(tenant=tenant_of(name)))
            if a.state is AdapterState.EPHEMERAL
        ]
        check_room(len(live), bounds=self.bounds)

    def _take_steps(self, live: LiveAdapter, call: LearnCall) -> Taken:
        """Returns the taught adapter; the live one answers as before until it is persisted."""
        record = live.record
        windows = windows_of(self.base, call.examples, loss=call.loss)
        check_tokens(sum(window.num_tokens for window in windows), call.steps)
        if live.monitor is None:
            live.monitor = self.monitors.make(record.parent_revision, record.domain, live.parent)
        lr = call.lr if call.lr is not None else DEFAULT_RATES[call.loss]
        config = LearnConfig(lr=lr, steps=call.steps, seed=record.steps, loss=call.loss)
        blob = record.optimizer_blob
        learner = Learner(
            lora=live.lora,
            parent=live.parent,
            optimizer=self._state.blobs.get(blob) if blob else None,
        )
        with self._state.read() as tx:
            kept = {row.digest: row.blob for row in tx.list_examples(record.name)}
        replay = copied(live.replay)
        drawn: list[Drawn] = [(key, 1.0) for key in call.replay_keys]
        drawn = drawn or self.rehearsing.draw(replay, windows, config)
        old = self.rehearsing.rehearsal(drawn, kept, config)
        lesson = Lesson(
            learner=learner,
            windows=windows,
            config=config,
            monitor=live.monitor,
            first_step=record.steps,
            rehearsal=old,
        )
        result = self._queue.learn(lesson, tenant=record.tenant)
        self.rehearsing.note(replay, old, result)
        digests = [example.digest for example in call.examples]
        made = manifest(self.model, lesson, result, examples=digests, rehearsed=drawn)
        return Taken(result=result, manifest=made, replay=replay)

    def warm_up(self) -> None:
        """Pays what a server's first lesson would: the base's preferences, kernels for its shapes.

        Nothing comes of it. A base that cannot learn says so to whoever teaches it.
        """
        self.rehearsing.warm_up()
        try:
            monitor = self.monitors.make(self._around.bank.revision.number, None, ())
            self._queue.learn(warm_up_lesson(self.base, monitor), tenant=DEFAULT_TENANT)
        except CambiumError as error:
            _log.info("no warm-up: %s", error)

    def _persist(self, live: LiveAdapter, call: LearnCall, taken: Taken) -> AdapterRecord:
        now, before, result = self._now_ms(), live.record, taken.result
        check_result(before.name, result, weight_norms=self._weight_norms, bounds=self.bounds)
        kept = [] if result.quarantined else keep_examples(self._state, before.name, call, at=now)
        self.rehearsing.admit(taken.replay, call, kept, result)
        seen = {"monitors": monitors_view(result), "replay_tried": taken.replay.tried}
        data = to_bytes(result.lora, fan_in_fan_out=self.base.transposed)
        weights, optimizer = self._state.blobs.put_all([data.weights, result.optimizer])
        after = replace(
            _with_weights(before, data, weights),
            steps=before.steps + len(result.losses),
            optimizer_blob=optimizer,
            state=AdapterState.QUARANTINED if result.quarantined else AdapterState.EPHEMERAL,
            detail={**before.detail, **seen},
        )
        with self._lock:
            self._around.check_alive()
            with forgotten_if_unsure(self._live, before.name), self._state.transaction() as tx:
                row = self._as_of_now(tx.get_adapter(before.name))
                if (row.state, row.digest) != (AdapterState.EPHEMERAL, before.digest):
                    raise AdapterExpired(f"adapter {before.name!r} ended while it learned",
                                         mend="create another")  # fmt: skip
                tx.put_adapter(after)
                tx.add_learn_step(learn_record(before, after, call, taken, at=now))
                for example in kept:
                    tx.add_example(example)
                self.rehearsing.save(tx, before.name, live.replay, taken.replay)
                kind = "adapter.quarantined" if result.quarantined else "adapter.learned"
                tx.audit(kind, at=now, body={
                    "name": after.name, "before": before.digest, "after": after.digest,
                    "steps": len(result.losses), "examples": len(call.examples),
                    "consent": call.consent})  # fmt: skip
            if result.quarantined:
                self._live.pop(after.name, None)
            else:
                # As a new value: a request takes record and weights together, or neither.
                self._live[after.name] = replace(
                    live,
                    record=after,
                    lora=result.lora,
                    replay=taken.replay,
                    monitor=result.monitor,
                )
        return after

    def _loaded(self, record: AdapterRecord, lora: Lora, parent: tuple[Lora, ...]) -> LiveAdapter:
        return LiveAdapter(record=record, lora=lora, parent=parent, replay=self._buffer(record))

    def _buffer(self, record: AdapterRecord) -> ReplayBuffer:
        tried = record.detail.get("replay_tried", 0)
        return self.rehearsing.open_buffer(record.name, tried=int(str(tried)))


def _with_weights(record: AdapterRecord, data: AdapterBytes, blob: str) -> AdapterRecord:
    config = data.config.decode()
    return replace(record, digest=data.digest, config_json=config, weights_blob=blob)
