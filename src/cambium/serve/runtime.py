"""The composition root: one object that holds everything a server needs, and its lifetime."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Any, TypeVar

from cambium.core.errors import DataError, Stopped
from cambium.learn.lesson import LearnResult
from cambium.lifecycle.kill import Killed
from cambium.models.base import BaseModel, load_base
from cambium.models.breaking_off import breakable
from cambium.models.compute_thread import ComputeThread
from cambium.models.encoder import SentenceEncoder
from cambium.models.engine import Engine, EngineConfig
from cambium.models.process import prepare_process
from cambium.models.training_model import TrainingModel
from cambium.serve.access import Access
from cambium.serve.answering import Answering
from cambium.serve.bank import Bank
from cambium.serve.behaviour import Describer
from cambium.serve.bootstrap import policy_in_force, stored_policy
from cambium.serve.checking import Checker
from cambium.serve.config import ServerConfig
from cambium.serve.consolidation import Consolidator
from cambium.serve.drift import DriftTracker
from cambium.serve.ephemeral import EphemeralAdapters
from cambium.serve.following import Following
from cambium.serve.identity import Identity, server_identity
from cambium.serve.janitor import Janitor
from cambium.serve.jobs import JobRunner, claims_on
from cambium.serve.kill_switch import KillSwitch
from cambium.serve.learning_queue import MAX_TOGETHER, LearningQueue
from cambium.serve.lesson_turns import LessonTurns
from cambium.serve.log_head import check_log, sign_newest
from cambium.serve.metrics import Metrics
from cambium.serve.model_signing import ModelSigner
from cambium.serve.policy_change import Change, change_policy
from cambium.serve.proposals import Proposals
from cambium.serve.publish import Published, open_bank
from cambium.serve.quarantined import check_quarantine
from cambium.serve.rehearsing import Rehearsing
from cambium.serve.releases import Releases
from cambium.serve.request_log import forget_requests, newest_signed
from cambium.serve.review import Review
from cambium.serve.rules import Rules
from cambium.serve.sessions import Sessions
from cambium.serve.store.state import State
from cambium.serve.subjects import Subjects
from cambium.serve.tokens import Tokens
from cambium.serve.traces import TraceLane
from cambium.serve.traffic import TrafficLearner
from cambium.serve.waiting_signatures import WaitingSignatures
from cambium.trust.audit import REQUESTS
from cambium.trust.policy import Policy

DAY_MS = 24 * 3_600_000
Result = TypeVar("Result")


class Runtime:
    """A server without its HTTP: open it, use its parts, close it.

    Raises:
        StateLocked: another process holds the state folder.
        ConfigError: the state was made on another base, or under another policy than asked for.
    """

    def __init__(self, config: ServerConfig) -> None:
        prepare_process()
        self.config = config
        self.started_at = int(time.time())
        # What is opened closes in the opposite order, whether the whole opened or not.
        self._opened = ExitStack()
        self.closing = threading.Event()
        self.state = State.open(config.state, url=config.db, address=config.address)
        self._opened.callback(self.state.close)
        try:
            self._open(config)
        except BaseException:
            self._opened.close()
            raise

    def _open(self, config: ServerConfig) -> None:
        self.identity: Identity = server_identity(config.state, self.state)
        self.model_signer = ModelSigner(config.state)
        self.rules = Rules(policy_in_force(config, self.state))
        check_log(self.state, self.identity.key.public_key)
        check_quarantine(self.state)
        self.tokens = self._open_tokens(config)
        self.sessions = Sessions(self.tokens, now_ms=self.now_ms)
        self.access = Access(
            None if config.in_process else self.tokens,
            sessions=self.sessions,
            now_s=time.monotonic,
        )
        self.kill = self._open_kill_switch()
        self.waiting = WaitingSignatures(
            self.state, rules=self.rules, kill=self.kill, now_ms=self.now_ms
        )
        self.metrics = self._open_metrics()
        self.base = self._open_base(config)
        self.training = TrainingModel(self.base)
        self.published: Published = open_bank(
            self.state, self.base, identity=self.identity, policy=self.policy, now_ms=self.now_ms()
        )
        self.encoder = SentenceEncoder()
        self.traces = TraceLane(self.state, self.identity.key_in)
        self._opened.callback(self.traces.close)
        self.engine = Engine(self.base, EngineConfig(num_rows=config.num_rows))
        self._opened.callback(self.engine.close)
        self.adapters = self._open_adapters()
        self.janitor = Janitor(self.adapters, self.state, forget=self._forget_traces)
        self._opened.callback(self.janitor.close)
        self.jobs = JobRunner(claims_on(self.state), breakable=breakable)
        self._opened.callback(self.jobs.close)
        self.deciding = Following(
            self.state, rules=self.rules, published=self.published, read_policy=stored_policy
        )
        self._open_review(config)
        self.traffic = TrafficLearner(self.adapters, self, rules=self.rules, state=self.state)
        self._opened.callback(self.traffic.close)
        self.answering = Answering(self)
        self.subjects = Subjects(self)
        self.kill.listen(self._on_kill)
        self.deciding.on_look = self.tokens.follow
        self.deciding.on_act = self.adapters.forget_ended
        # What follows must not wait for lessons under way, which the other thread does.
        self.deciding.on_policy = lambda: self.slow_threads.submit(self._follow_rules)
        self.deciding.on_unattended = self._attend
        self.deciding.start()
        self._opened.callback(self.deciding.close)
        self._attend()

    def _open_review(self, config: ServerConfig) -> None:
        self.proposals = Proposals(
            state=self.state,
            identity=self.identity,
            rules=self.rules,
            kill=self.kill,
            now_ms=self.now_ms,
        )
        consolidator = Consolidator(
            engine=self.engine,
            model=self.training,
            blobs=self.state.blobs,
            embed=self.encoder.embed,
            num_replay=config.num_replay_anchors,
            num_retention=config.num_retention_anchors,
            anchor_tokens=config.anchor_tokens,
        )
        checker = Checker(
            self.proposals,
            published=self.published,
            consolidator=consolidator,
            deciding=self.deciding,
            count=self.metrics.observe_verdict,
        )
        self.review = Review(
            self.proposals,
            published=self.published,
            adapters=self.adapters,
            jobs=self.jobs,
            checker=checker,
            describer=Describer(
                proposals=self.proposals,
                published=self.published,
                checker=checker,
                engine=self.engine,
                encoder=self.encoder,
                num_prompts=config.num_diff_prompts,
                deciding=self.deciding,
            ),
        )
        self.drift = DriftTracker(
            proposals=self.proposals,
            jobs=self.jobs,
            engine=self.engine,
            encoder=self.encoder,
            num_replay=config.num_replay_anchors,
            is_on=config.measure_drift,
            is_eager=not config.in_process,
        )
        self.releases = Releases(
            self.proposals,
            published=self.published,
            review=self.review,
            adapters=self.adapters,
            drift=self.drift,
            deciding=self.deciding,
        )

    def _open_tokens(self, config: ServerConfig) -> Tokens:
        tokens = Tokens(self.state, now_ms=self.now_ms)
        config.check(has_tokens=tokens.demanded)
        return tokens

    def _open_kill_switch(self) -> KillSwitch:
        switch = KillSwitch(
            self.config.state,
            self.state,
            rules=self.rules,
            identity=self.identity,
            now_ms=self.now_ms,
        )
        self._opened.callback(switch.close)
        return switch

    def _on_kill(self, killed: Killed | None) -> None:
        if killed is not None:
            self.engine.halt(self.kill.error(), spare_base=self.kill.serves_base)
            self.lessons.halt(self.kill.error())
            self.jobs.halt()
            return
        if self.closing.is_set():
            return
        self.engine.resume()
        self.lessons.resume()
        self.jobs.resume()
        self._attend()

    def _open_metrics(self) -> Metrics:
        metrics = Metrics(attestation=self.identity.attestation_label)
        self._opened.callback(metrics.close)
        metrics.watch("cambium_revision", "The served revision.", lambda: self.revision)
        metrics.watch(
            "cambium_answers_active", "Answers under way.", lambda: self.engine.num_active
        )
        metrics.watch("cambium_jobs", "Background jobs.", lambda: len(self.jobs.pending))
        metrics.watch(
            "cambium_lessons_active", "Lessons under way.", lambda: self.lessons.num_pending
        )
        metrics.watch(
            "cambium_killed", "1 after the kill switch.", lambda: int(self.kill.killed is not None)
        )
        return metrics

    def _open_base(self, config: ServerConfig) -> BaseModel:
        base = load_base(config.model)
        base.compute_thread = ComputeThread(config.num_threads)
        self._opened.callback(base.compute_thread.close)
        return base

    def _open_adapters(self) -> EphemeralAdapters:
        # Replays and looks take minutes; the threads of other calls must not wait for them.
        self.slow_threads = ThreadPoolExecutor(2, thread_name_prefix="slow")
        self._opened.callback(self.slow_threads.shutdown)
        # Evals ask for minutes at a time, and wait for nobody but each other.
        self.measuring_thread = ThreadPoolExecutor(1, thread_name_prefix="measuring")
        self._opened.callback(self.measuring_thread.shutdown, cancel_futures=True)
        # As many as a pass may hold are one tenant's at most; the others find threads all the same.
        threads = ThreadPoolExecutor(2 * MAX_TOGETHER, thread_name_prefix="lesson")
        self._opened.callback(threads.shutdown)
        self.lesson_turns = LessonTurns(threads, per_tenant=MAX_TOGETHER)
        self.lessons = queue = LearningQueue(self.training)
        self._opened.callback(queue.close)
        adapters = EphemeralAdapters(
            self.training,
            self.state,
            queue=queue,
            rehearsing=Rehearsing(
                self.state, self.base, embed=self.encoder.embed, rules=self.rules
            ),
            rules=self.rules,
            around=self,
        )
        threads.submit(adapters.warm_up)
        return adapters

    def _forget_traces(self) -> None:
        days, now = self.config.keep_traces_days, self.now_ms()
        if days is not None:
            before = now - days * DAY_MS
            forget_requests(self.state, self.identity.key_in, before=before, now=now)

    @property
    def policy(self) -> Policy | None:
        """Returns the policy in force."""
        return self.rules.policy

    @property
    def bank(self) -> Bank:
        """Returns the bank that is being served."""
        return self.published.bank

    @property
    def revision(self) -> int:
        """Returns the number of the revision that is being served."""
        return self.bank.revision.number

    def now_ms(self) -> int:
        """Returns milliseconds since 1970, UTC."""
        return time.time_ns() // 1_000_000

    def check_alive(self) -> None:
        """Returns while nobody has pulled the kill switch.

        Raises:
            SystemKilled: somebody did.
        """
        self.kill.check()

    def check_open(self) -> None:
        """Returns while this server goes on with what takes long.

        Raises:
            SystemKilled: somebody pulled the kill switch.
            Stopped: the server is closing.
        """
        self.check_alive()
        self.check_closing()

    def check_closing(self) -> None:
        """Returns while nobody has asked this server to end.

        Raises:
            Stopped: somebody has.
        """
        if self.closing.is_set():
            raise _closing()

    def at_length(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Returns what `work` returns, which takes minutes and ends early as `check_open` says."""
        with breakable(self.check_open):
            return work(*arguments)

    def count_lesson(self, result: LearnResult) -> None:
        """Counts a call to learn by what the monitors made of it."""
        outcome = "quarantined" if result.quarantined else "reset" if result.reset else "kept"
        self.metrics.observe_lesson(outcome, result.seconds)

    def check_scope(self, scope: str) -> None:
        """Refuses a safety scope that the policy does not define.

        Raises:
            DataError: unknown scope.
        """
        scopes = self.policy.scopes.names if self.policy else ("text",)
        if scope not in scopes:
            raise DataError(
                f"the policy defines no scope {scope[:80]!r}", mend=f"use one of {list(scopes)}"
            )

    def tell(self, request_id: str, outcome: dict[str, object]) -> None:
        """Adds to a request's trace what came of its offer."""
        self.answering.tell(request_id, outcome)

    def novelty(self, text: str, tenant: str) -> float:
        """Returns the cosine distance of a text to what taught the tenant's bank, 0 to 2."""
        policy = self.policy
        routers = [
            index
            for domain, index in self.bank.routers.items()
            if policy is None or policy.may_use(domain, tenant)
        ]
        if not routers:
            return 1.0
        embedding = self.encoder.embed([text])[0]
        return 1.0 - max(float((index.inside @ embedding).max()) for index in routers)

    def propose(self, adapter: str, domain: str) -> str:
        """Files a proposal; returns its id."""
        return self.review.propose(adapter, domain).proposal.id

    def change_policy(self, asked: Change) -> dict[str, Any]:
        """Puts a new policy in force; see `policy_change.change_policy`."""
        changed = change_policy(
            asked,
            rules=self.rules,
            proposals=self.proposals,
            published=self.published,
            deciding=self.deciding,
        )
        self._follow_rules()
        return changed

    def _follow_rules(self) -> None:
        self.adapters.follow_rules()
        self.traffic.follow_rules()

    def _attend(self) -> None:
        """Queues what is undecided: a process that worked on it may be gone."""
        if not self.kill.killed:
            self.review.resume()
            self.drift.follow()

    def state_version(self) -> int:
        """Returns the state version that signatures must be made for."""
        with self.state.read() as tx:
            return tx.state_version()

    def checkpoint(self, lane: str) -> dict[str, Any]:
        """Returns a fresh checkpoint of one whole lane of the log, and the key that signed it.

        Raises:
            AuditBroken: it does not extend what was signed before.
        """
        with self.state.transaction() as tx:
            key = self.identity.key_in(tx)
            signed = newest_signed(tx, key) if lane == REQUESTS else sign_newest(tx, key)
        return {**signed.__dict__, "public": key.public_key.raw}

    def stop(self) -> None:
        """Ends what is under way, each between two of its steps; who waits is told `Stopped`."""
        self.closing.set()
        self.jobs.halt()
        self.lessons.halt(_closing())
        self.engine.halt(_closing())

    def close(self) -> None:
        """Ends the background threads and lets the next process have the state."""
        self.stop()
        self._opened.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _closing() -> Stopped:
    return Stopped("the server is closing", mend="ask again when it is up")
