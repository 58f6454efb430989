"""What answers to a model's name, for whom, and what is kept of each answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cambium.core.errors import DataError
from cambium.models.adapter import Adapter
from cambium.models.adapter_kinds import read_adapter
from cambium.models.base import BaseModel
from cambium.models.encoder import Encoder
from cambium.models.engine import Engine
from cambium.serve.access import Caller
from cambium.serve.adapter_states import AdapterState
from cambium.serve.api.openai.errors import learning_refused
from cambium.serve.api.openai.runtime import Answerer, ModelEntry, TraceDraft
from cambium.serve.bank import Bank, stored_bytes
from cambium.serve.errors import AdapterNotFound, DomainNotFound, ModelNotFound, NotFound
from cambium.serve.names import parse_model_name
from cambium.serve.quarantined import refuse_quarantined
from cambium.serve.store.records import TraceRow
from cambium.serve.telemetry import record_answer

if TYPE_CHECKING:
    from cambium.serve.runtime import Runtime

MAX_CACHED_VERSIONS = 64
MAX_OUTCOMES = 4096


class Answering:
    """Resolves names for one caller at a time; keeps loaded versions and what learning came to."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._outcomes: dict[str, dict[str, object]] = {}
        self._telling = threading.Lock()
        # By the state's own names, which are each tenant's own, and digests of content.
        self._versions: dict[str, Adapter] = {}
        self._norms: dict[str, float] = {}

    def models(self, caller: Caller) -> list[ModelEntry]:
        """Returns every name that `resolve` knows for this caller."""
        base, started = self.runtime.base.name, self.runtime.started_at
        entries = [ModelEntry(id=n, created=started, owned_by=base) for n in ("base", "stable")]
        for record in self.runtime.adapters.list():
            if record.state is AdapterState.EPHEMERAL and record.tenant == caller.tenant:
                entries.append(ModelEntry(id=caller.label(record.name),
                                          created=record.created_at // 1000,
                                          owned_by=f"cambium:{record.state}"))  # fmt: skip
        return entries

    def resolve(self, model: str, *, caller: Caller, domain: str | None, text: str) -> Answerer:
        """Returns what answers to `model`: base, stable, or the caller's adapter or version.

        Raises:
            ModelNotFound, DomainNotFound: nothing answers to it; never the base instead.
            AdapterExpired, AdapterQuarantined: it did once.
            SystemKilled: nothing answers, or only the bare base.
            NotCurrent: only the base is known to be what it was.
        """
        bank, kill = self.runtime.bank, self.runtime.kill
        if model != "base" or not kill.serves_base:
            kill.check()
        if model == "base":
            return Answerer(model=model, adapter="base", adapters=(), revision=bank.revision.number)
        self.runtime.deciding.check()
        if model == "stable":
            return self._stable(bank, caller, domain, text)
        try:
            name, digest = parse_model_name(model)
            return self._adapter(model, caller.own(name), digest, bank)
        except (AdapterNotFound, DataError) as error:
            raise ModelNotFound(
                f"the model {model[:100]!r} does not exist", mend="see GET /v1/models"
            ) from error

    def offer(self, answerer: Answerer, text: str, request_id: str, *, caller: Caller) -> None:
        """Takes what a request wants to teach the ephemeral adapter that answers it.

        Raises:
            DataError: code `learn_unavailable`: the policy forbids it, or no live adapter answers.
            AdapterElsewhere: another process teaches that adapter.
        """
        name = answerer.adapter.partition("@")[0]
        live = answerer.adapter == f"{name}@{self.runtime.adapters.current_digest(name)}"
        traffic = self.runtime.traffic
        if not traffic.allows(caller.tenant):
            raise learning_refused("the policy lets no request teach", mend="leave learn out")
        if not live:
            raise learning_refused(
                f"{answerer.model[:100]} is no ephemeral adapter, and nothing else may learn",
                mend="ask one for the answer, see POST /adapters/ephemeral",
            )
        self.runtime.adapters.get_own(name)
        # Said first: the learner may be done before this thread goes on.
        self.tell(request_id, {"state": "offered"})
        if not traffic.offer(name, text, request_id):
            self.tell(request_id, {"state": "dropped"})

    def tell(self, request_id: str, outcome: dict[str, object]) -> None:
        """Adds to a request's trace what came of its offer, now or when it is written."""
        with self._telling:
            while len(self._outcomes) >= MAX_OUTCOMES:
                self._outcomes.pop(next(iter(self._outcomes)), None)
            self._outcomes[request_id] = outcome
        self.runtime.traces.amend(request_id, learning=outcome)

    def record(self, trace: TraceDraft, *, caller: Caller) -> None:
        """Keeps one request's trace; see `traces` for when it is durable."""
        answerer = trace.answerer
        detail = dict(answerer.detail)
        first_ms = trace.first_token_ms
        record: dict[str, Any] = {
            "request_id": trace.request_id,
            "tenant": caller.tenant,
            "endpoint": trace.endpoint,
            "model": answerer.model,
            "revision": answerer.revision,
            "adapters": detail.pop("adapters", []),
            "retrieved": [],
            "safety_scores": None,
            "tripwire_hits": [],
            "attestation": self.runtime.identity.attestation_label,
            "learning": self._outcomes.get(trace.request_id, {"state": "not asked"}),
            "route": detail,
            "usage": {
                "prompt_tokens": trace.prompt_tokens,
                "completion_tokens": trace.completion_tokens,
            },
            "finish_reasons": list(trace.finish_reasons),
            "timings_ms": {
                "queued": round(trace.queued_ms, 3),
                "first_token": None if first_ms is None else round(first_ms, 3),
                "total": round(trace.total_ms, 3),
            },
            "params": trace.params,
        }
        self.runtime.metrics.observe(trace)
        record_answer(trace)
        row = TraceRow(
            request_id=trace.request_id,
            at=self.runtime.now_ms(),
            record=record,
            tenant=caller.tenant,
        )
        self.runtime.traces.record(row)

    def _stable(self, bank: Bank, caller: Caller, domain: str | None, text: str) -> Answerer:
        number, policy = bank.revision.number, self.runtime.policy

        def may_use(name: str) -> bool:
            return policy is None or policy.may_use(name, caller.tenant)

        detail: dict[str, object] = {"domain": domain, "by": "request"}
        if domain is None:
            picked = bank.pick(text, self.runtime.encoder.embed, among=may_use)
            domain = picked.domain
            detail = {"domain": domain, "by": "router",
                      "leads": {d: round(v, 4) for d, v in picked.leads.items()}}  # fmt: skip
        if domain is None:
            return Answerer(
                model="stable", adapter="base", adapters=(), revision=number, detail=detail
            )
        if not may_use(domain):
            raise DomainNotFound(
                f"no stable adapter serves domain {domain[:80]!r}", mend="leave the domain out"
            )
        served = bank.serving(domain)
        detail["adapters"] = [self._described(str(served.ref), served.lora)]
        return Answerer(
            model="stable",
            adapter=str(served.ref),
            adapters=(served.lora,),
            revision=number,
            detail=detail,
        )

    def _adapter(self, model: str, name: str, digest: str | None, bank: Bank) -> Answerer:
        number = bank.revision.number
        live = self.runtime.adapters.find_live(name, digest)
        if live is None:
            ref, lora = f"{name}@{digest}", self._version(name, str(digest))
            return Answerer(model=model, adapter=ref, adapters=(lora,), revision=number,
                            detail={"adapters": [self._described(ref, lora)]})  # fmt: skip
        ref = f"{name}@{live.record.digest}"
        return Answerer(
            model=model,
            adapter=ref,
            adapters=(*live.parent, live.lora),
            revision=number,
            detail={
                "parent_revision": live.record.parent_revision,
                "adapters": [self._described(ref, live.lora)],
            },
        )

    def _version(self, name: str, digest: str) -> Adapter:
        key, state = f"{name}@{digest}", self.runtime.state
        with state.read() as tx:
            refuse_quarantined(tx, name, digest)
        found = self._versions.get(key)
        if found is None:
            try:
                with state.read() as tx:
                    row = tx.get_version(name, digest)
            except NotFound as error:
                raise ModelNotFound(
                    f"no version {digest} of {name!r}", mend="see GET /adapters"
                ) from error
            while len(self._versions) >= MAX_CACHED_VERSIONS:
                self._versions.pop(next(iter(tuple(self._versions))), None)
            found = self._versions[key] = read_adapter(stored_bytes(state, row), self.runtime.base)
        return found

    def _described(self, ref: str, adapter: Adapter) -> dict[str, object]:
        if ref not in self._norms:
            if len(self._norms) >= 4 * MAX_CACHED_VERSIONS:
                self._norms.clear()
            self._norms[ref] = sum(n * n for n in adapter.norms().values()) ** 0.5
        return {"adapter": ref, "delta_norm": round(self._norms[ref], 5)}


@dataclass(frozen=True, kw_only=True)
class CallersView:
    """The server as OpenAI's API sees it on behalf of one caller."""

    answering: Answering
    caller: Caller

    @property
    def engine(self) -> Engine:
        """Returns what generates."""
        return self.answering.runtime.engine

    @property
    def base(self) -> BaseModel:
        """Returns the frozen base."""
        return self.answering.runtime.base

    @property
    def encoder(self) -> Encoder:
        """Returns the sentence encoder."""
        return self.answering.runtime.encoder

    @property
    def revision(self) -> int:
        """Returns the number of the revision being served."""
        return self.answering.runtime.revision

    def models(self) -> Sequence[ModelEntry]:
        """Returns every name that `resolve` knows."""
        return self.answering.models(self.caller)

    def resolve(self, model: str, *, domain: str | None, text: str) -> Answerer:
        """Returns what answers to `model`; see `Answering.resolve`."""
        return self.answering.resolve(model, caller=self.caller, domain=domain, text=text)

    def offer(self, answerer: Answerer, text: str, request_id: str) -> None:
        """Takes what a request wants to teach; see `Answering.offer`."""
        self.answering.offer(answerer, text, request_id, caller=self.caller)

    def record(self, trace: TraceDraft) -> None:
        """Keeps one request's trace."""
        self.answering.record(trace, caller=self.caller)
