"""What the live page shows: the last requests, lessons, adapters, monitors and budgets.

All of it is read from the state, so that it is there after a restart; only what is under way at
this moment lives in memory alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

from cambium.evals.drift.picture import TITLES
from cambium.serve.access import Caller
from cambium.serve.adapter_states import AdapterState
from cambium.serve.api.adapters import adapter_view
from cambium.serve.api.review import may_see
from cambium.serve.dashboard import views
from cambium.serve.runtime import Runtime
from cambium.serve.store.records import AdapterRecord, LearnRecord, TraceRow

NUM_REQUESTS = 20
NUM_LESSONS = 200
NUM_ADAPTERS = 30
MINUTES = 60
# Alerts are told per so many requests.
WINDOW = 10_000


def pulse(runtime: Runtime) -> tuple[object, ...]:
    """Returns something that differs when a page that follows the server would show otherwise."""
    with runtime.state.read() as tx:
        size = tx.audit_size()
    jobs = runtime.jobs.pending
    at = runtime.review.checker.progress(jobs[0]) if jobs else None
    return (
        size,
        # Written, not only taken: a page that hears of it reads it from the state.
        runtime.traces.num_written,
        runtime.engine.num_active,
        jobs,
        at and (at.stage, round(at.share, 2)),
        runtime.kill.killed is not None,
    )


def overview(runtime: Runtime, caller: Caller) -> dict[str, Any]:
    """Returns all that the live page shows to this caller."""
    tenant = None if caller.sees_all else caller.tenant
    now = runtime.now_ms()
    hour_ago = now - MINUTES * 60_000
    with runtime.state.read() as tx:
        by_minute = tx.requests_by_minute(since=hour_ago, tenant=tenant)
        count, first = tx.back_to(WINDOW, tenant=tenant)
        alerts = tx.held_back(since=first if count == WINDOW else 0, tenant=tenant)
        traces = tx.newest_traces(limit=NUM_REQUESTS, tenant=tenant)
        lessons = tx.newest_lessons(limit=NUM_LESSONS, tenant=tenant)
    minutes = range(now // 60_000 - MINUTES + 1, now // 60_000 + 1)
    adapters = [a for a in runtime.adapters.list() if caller.sees(a.tenant)]
    return {
        "active": views.told(runtime.engine.num_active, sees_all=caller.sees_all),
        "jobs": list(runtime.jobs.pending) if caller.sees_all else [],
        "num_jobs": views.told(len(runtime.jobs.pending), sees_all=caller.sees_all),
        "requests": [_request(row) for row in traces],
        "rate": views.line([by_minute.get(minute, 0) for minute in minutes]),
        "in_hour": sum(by_minute.values()),
        "lessons": [_lesson(record, caller) for record in lessons[:NUM_REQUESTS]],
        "monitors": {
            "requests": count,
            "alerts": alerts,
            "per_window": alerts * WINDOW / count if count else None,
            "quarantined": sum(a.state is AdapterState.QUARANTINED for a in adapters),
        },
        "adapters": _adapters(runtime, adapters, lessons, caller),
        "num_live": sum(a.state is AdapterState.EPHEMERAL for a in adapters),
        "budgets": _budgets(runtime, adapters),
        "line": views.revision_line(runtime.releases.list()),
        "drift": _drift(runtime, caller),
    }


def _drift(runtime: Runtime, caller: Caller) -> list[dict[str, Any]]:
    series = runtime.drift.measured(partial(may_see, runtime, caller))
    return views.drift_panels(series.to_json(), TITLES)


def _request(row: TraceRow) -> dict[str, Any]:
    record: dict[str, Any] = row.record
    return {
        "id": row.request_id,
        "at": row.at / 1000,
        "tenant": row.tenant,
        "model": record["model"],
        "revision": record["revision"],
        "adapters": [entry["adapter"] for entry in record["adapters"]],
        "tokens": record["usage"]["prompt_tokens"] + record["usage"]["completion_tokens"],
        "ms": record["timings_ms"]["total"],
        "learning": record.get("learning", {}).get("state", ""),
    }


def _lesson(record: LearnRecord, caller: Caller) -> dict[str, Any]:
    return {
        "at": record.at / 1000,
        "adapter": caller.label(record.adapter),
        "steps": record.steps,
        "examples": record.num_examples,
        "losses": record.losses,
        "source": record.source,
        "monitors": views.interlocks([record.monitors]),
    }


def _adapters(
    runtime: Runtime, adapters: Sequence[AdapterRecord], lessons: Sequence[LearnRecord],
    caller: Caller,
) -> list[dict[str, Any]]:  # fmt: skip
    """Returns those who live first, and of each kind the newest first."""
    losses: dict[str, list[float]] = defaultdict(list)
    for record in reversed(lessons):
        losses[record.adapter] += record.losses
    ordered = sorted(adapters, key=lambda a: (a.state is not AdapterState.EPHEMERAL, -a.created_at))
    newest = ordered[:NUM_ADAPTERS]
    with runtime.state.read() as tx:
        monitors = tx.monitors_of([a.name for a in newest])
    now = runtime.now_ms()
    bounds = runtime.adapters.bounds
    return [
        {
            **adapter_view(record, caller),
            "left_s": max(0, (record.expires_at or now) - now) // 1000,
            "curve": views.line(losses[record.name]),
            "max_steps": bounds.max_total_steps_per_adapter,
            "interlocks": views.interlocks(monitors[record.name]),
            "traffic": runtime.traffic.progress(record.name),
            "replay": runtime.adapters.replay_view(record.name),
        }
        for record in newest
    ]


def _budgets(runtime: Runtime, adapters: Sequence[AdapterRecord]) -> list[dict[str, Any]]:
    """Returns each bound, and how much of it is used: of one adapter's, by whoever used most."""
    bounds, traffic, policy = runtime.adapters.bounds, runtime.traffic.budget, runtime.policy
    live = [a for a in adapters if a.state is AdapterState.EPHEMERAL]
    tenants = Counter(a.tenant for a in live)
    found: list[dict[str, Any]] = [
        _budget("Steps of one adapter", max((a.steps for a in live), default=0),
                bounds.max_total_steps_per_adapter),
        _budget("Live adapters of a tenant", max(tenants.values(), default=0),
                bounds.max_live_adapters),
    ]  # fmt: skip
    if policy is not None:
        found.append(
            _budget("Risk that looks may run", runtime.review.spent(), policy.ledger.alpha)
        )
    found += [
        {
            "name": "Change of one adapter",
            "most": f"at most {bounds.max_relative_change:g} of its weights",
        },
        {"name": "Time to live", "most": f"at most {bounds.max_ttl_s / 3600:g} h"},
    ]  # fmt: skip
    if traffic is not None:
        most = f"at most {traffic.first_steps_per_hour} steps an hour at first, "
        most += f"{traffic.max_steps_per_hour} with wins"
        on = most if traffic.learn else "off"
        found.append({"name": "Learning from requests, an adapter", "most": on})
    return found


def _budget(name: str, used: float, most: float) -> dict[str, Any]:
    share = min(1.0, used / most) if most else 1.0
    return {"name": name, "used": f"{used:.3g}", "most": f"{most:g}", "share": share}
