"""What the pages say: the API's own records, put into words and onto scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cambium.core.nouns import DOMAIN_TAG, ProposalState

# What each state means for whoever looks at the list.
STATES = {
    ProposalState.CONSOLIDATING: "is being consolidated from its parent",
    ProposalState.CHECKING: "is being looked at by the gates",
    ProposalState.AWAITING_APPROVAL: "waits for people",
    ProposalState.MERGEABLE: "can be merged",
    ProposalState.MERGED: "is merged",
    ProposalState.REJECTED: "was rejected",
    ProposalState.FAILED: "failed",
}
# What each gate asks; more is better in all of them, and the policy sets the bar.
QUESTIONS = {
    "domain_gain": "Does it predict documents of its domain better than its parent, unseen ones?",
    "retention": "Does it still predict everything else about as well?",
    "alignment": "Does it lean to harmless answers as much as its parent, given both?",
    "alignment_drift": "And as much as the bare base, over all merges together?",
    "alignment_writing": "What it writes in its domain: does it read as harmless?",
    "power_seeking": "What it writes after neutral openings: does it read as wanting no power?",
    "integrity": "Are its files whole, its change within bounds, its numbers finite?",
}
# Which side of zero is which.
SIGNS = {
    "domain_gain": "Above 0 it predicts them better",
    "retention": "Below 0 it forgets: at -0.02, what it knew costs it 2 % more",
    "alignment": "Below 0 it leans to harm, against its parent",
    "alignment_drift": "Below 0 it leans to harm, against the base",
    "alignment_writing": "Below 0 it reads as harmful",
    "power_seeking": "Below 0 it reads as wanting power",
    "integrity": "It is 0 where nothing is wrong, one lower for each fault",
}
KEY_ROLES = {
    "approver": "approves, waives, rolls back and revives with others, kills alone",
    "operator": "kills alone",
    "root": "signs policies, kills alone",
    "evaluator": "signs what the gates measured",
    "attester": "signs what was attested",
    "enrolled": "known, but no policy lists it: it can sign nothing yet",
    "retired": "an earlier policy listed it: it can sign nothing now",
}
# What verdicts are called where they are counted.
COUNTED = {
    "pass": "passed",
    "fail": "failed",
    "error": "not measurable",
    "missing": "not measured",
}
MAX_NAMED = 2
# Decided proposals that the list shows unless it is asked for all of them.
MAX_DECIDED = 12
MAX_ENTRIES = 100
MAX_DOTS = 24
MAX_CHANGES = 200
MAX_EXAMPLES = 3
# How much of a scale lies beyond the outermost number on either side.
_MARGIN = 0.08


def status_line(view: Mapping[str, Any]) -> str:
    """Returns in one line where a proposal stands and what it waits for."""
    state = ProposalState(view["state"])
    stuck = [g["name"] for g in view["gates"] if g["verdict"] == "error" and not g["waived"]]
    if state in (ProposalState.REJECTED, ProposalState.FAILED):
        return f"{STATES[state]}: {view['reason'] or 'no reason was given'}"
    if state is ProposalState.MERGED:
        return STATES[state]
    names = ", ".join(one["name"] for one in view["approvals"])
    said = [f"{len(view['approvals'])} of {view['quorum']['k']} approvals"
            + (f" ({names})" if names else "")]  # fmt: skip
    if stuck and state is ProposalState.CHECKING:
        return f"is stuck: {' and '.join(stuck)} could not be measured; {said[0]}"
    if state is ProposalState.CONSOLIDATING:
        return f"{STATES[state]}; its gates come next"
    waits: list[str] = []
    for gate in view["gates"]:
        if gate["waived"]:
            said.append(f"{gate['name']} is waived")
        elif gate["verdict"] == "error":
            said.append(f"{gate['name']} could not be measured")
        elif gate["passes"] < gate["required"]:
            waits.append(f"{gate['name']}, {gate['passes']} of {gate['required']} passes")
    if len(waits) > MAX_NAMED:
        said.append(f"waiting for {len(waits)} of {len(view['gates'])} gates")
    else:
        said += [f"waiting for {one}" for one in waits]
    return f"{STATES[state]}; " + "; ".join(said)


def verdicts(view: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Returns the gates' names by verdict, what is no pass first."""
    found: dict[str, list[str]] = {}
    for gate in view["gates"]:
        found.setdefault("waived" if gate["waived"] else str(gate["verdict"]), []).append(
            gate["name"]
        )
    return sorted(found.items(), key=lambda item: (item[0] == "pass", item[0]))


def counted(verdict: str) -> str:
    """Returns a verdict as it is said after a number of gates."""
    return COUNTED.get(verdict, verdict)


def listed(view: Mapping[str, Any]) -> str:
    """Returns the status line for where the state stands beside it and need not be said again."""
    state = ProposalState(view["state"])
    if state is ProposalState.MERGED:
        return ""
    return status_line(view).removeprefix(f"{STATES[state]}: ")


def told(count: int, *, sees_all: bool) -> int | str:
    """Returns how many there are of what all tenants share; to one of them, only whether any."""
    return count if sees_all else "some" if count else "none"


def gate_rows(view: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the gates as the page draws them: each with its looks on one scale, 0 to 100.

    What is no pass comes first: it is what a reader has to judge.
    """
    rows = [{**gate, "scale": _scale(gate)} for gate in view["gates"]]
    return sorted(rows, key=lambda gate: gate["verdict"] == "pass")


def cluster_rows(behaviour: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a diff's clusters for the page, their bars on one scale for all, 0 to 100."""
    changes = list(behaviour.get("changes", ()))[:MAX_CHANGES]
    most = max((max(c["before"], c["after"]) for c in changes), default=0.0) or 1.0
    return [
        {
            **change,
            "found": change["q_value"] <= behaviour["config"]["q"],
            "bar_before": 100 * change["before"] / most,
            "bar_after": 100 * change["after"] / most,
            "examples": list(change["examples"])[:MAX_EXAMPLES],
        }
        for change in changes
    ]


def module_rows(weights: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the changed modules, the most changed first, their bars from 0 to 100."""
    modules = sorted(weights.get("modules", ()), key=lambda m: -m["relative"])
    most = max((m["relative"] for m in modules), default=0.0) or 1.0
    return [{**m, "bar": 100 * m["relative"] / most} for m in modules]


def when(seconds: float | None) -> str:
    """Returns a time of day in UTC, or a dash."""
    if seconds is None:
        return "–"
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def short(digest: str | None) -> str:
    """Returns as much of a digest as a person compares, or a dash."""
    return f"{digest[:19]}…" if digest else "–"


def versioned(name: str) -> str:
    """Returns `name@digest` with as much of the digest as tells versions apart."""
    adapter, at, digest = name.partition("@sha256:")
    return f"{adapter}@{digest[:8]}…" if at else name


def number(value: float | None) -> str:
    """Returns a number with its sign and three digits that count, or a dash."""
    if value is None:
        return "–"
    return f"{value:+.3g}" if value else "0"


def signed(value: float, digits: int) -> str:
    """Returns a number with its sign and so many digits behind the point; zero is never minus."""
    return f"{value:+z.{digits}f}"


def sign(gate: str) -> str:
    """Returns which side of zero is which for a gate; of one not known here, nothing."""
    return SIGNS.get(gate, "")


def question(gate: str) -> str:
    """Returns what a gate asks, in plain words; of one that this page does not know, nothing."""
    return QUESTIONS.get(gate, "")


def _scale(gate: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns where threshold, zero and each look's interval lie, or None before any look."""
    looks = [look for look in gate["history"] if look["ci"] is not None]
    if not looks:
        return None
    numbers = [gate["threshold"], 0.0, *(end for look in looks for end in look["ci"])]
    low, high = min(numbers), max(numbers)
    pad = _MARGIN * ((high - low) or 1.0)

    def at(value: float) -> float:
        return round(100 * (value - low + pad) / (high - low + 2 * pad), 2)

    return {
        "threshold": at(gate["threshold"]),
        "zero": at(0.0),
        "looks": [_look(look, at(look["ci"][0]), at(look["ci"][1]), at(look["effect"]))
                  for look in looks],
    }  # fmt: skip


def _look(look: Mapping[str, Any], low: float, high: float, effect: float) -> dict[str, Any]:
    return {"low": low, "high": high, "width": max(high - low, 0.6), "effect": effect,
            "verdict": look["verdict"], "why": look["why"]}  # fmt: skip


def timeline(
    entries: Sequence[Mapping[str, Any]], proposal: str, *, names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Returns the audit entries that name a proposal, oldest first.

    Args:
        names: of approvers, by the id of their key.
    """
    return [
        {"seq": e["seq"], "kind": e["kind"], "at": e["at"], "hash": e["hash"],
         "state": e["body"].get("state"), "reason": e["body"].get("reason"),
         "by": e["body"].get("by") or names.get(str(e["body"].get("signer"))),
         "comment": e["body"].get("comment")}
        for e in entries
        if e["body"].get("proposal") == proposal
    ]  # fmt: skip


def act(standing: Mapping[str, Any], action: str, target: str) -> dict[str, Any]:
    """Returns what a browser signs, but for the time until which it counts."""
    return {
        "action": action,
        "domain_tag": DOMAIN_TAG,
        "policy": standing["policy_digest"],
        "state_version": standing["state_version"],
        "target": target,
    }


def key_standing(name: str, role: str, revoked_at: int | None) -> str:
    """Returns what a key may do, for whoever holds it."""
    if revoked_at is not None:
        return f"{name}: revoked, it signs nothing any more"
    return f"{name}: {KEY_ROLES.get(role, role)}"


def line(values: Sequence[float]) -> dict[str, Any] | None:
    """Returns a curve's points on a field of 100 by 24, highest and last value; None of none."""
    if not values:
        return None
    low, high = min(0.0, *values), max(values)
    width, height = 100 / max(1, len(values) - 1), 22 / ((high - low) or 1.0)
    points = [f"{i * width:.1f},{23 - (v - low) * height:.1f}" for i, v in enumerate(values)]
    return {"points": " ".join(points), "most": high, "last": values[-1]}


def revision_line(revisions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the last revisions as dots on a line, and each rollback as an arc to its target."""
    shown = list(revisions)[-MAX_DOTS:]
    at = {row["number"]: 20 + 40 * i for i, row in enumerate(shown)}
    dots = [{"x": at[row["number"]], "number": row["number"], "kind": row["kind"],
             "of": row["of"], "served": row["served"], "back": at.get(row["of"])}
            for row in shown]  # fmt: skip
    return {"dots": dots, "width": 40 * len(shown), "earlier": len(revisions) - len(shown)}


def drift_panels(
    series: Sequence[Mapping[str, Any]], titles: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Returns one panel for each reading against the base: a dot and its interval for each merge.

    A panel's field is as wide as there are merges, 10 each, and 40 high, zero always in it.
    """
    panels = []
    for name, title in titles.items():
        read = [(i, row, row["against_base"][name]) for i, row in enumerate(series)
                if name in row["against_base"]]  # fmt: skip
        if read:
            panels.append({"title": title, "width": 10 * len(series), **_dots(read)})
    return panels


def _dots(read: Sequence[tuple[int, Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any]:
    ends = [reading[end] for _, _, reading in read for end in ("low", "high")]
    low, high = min(0.0, *ends), max(0.0, *ends)

    def at(value: float) -> float:
        return round(2 + 36 * (high - value) / ((high - low) or 1.0), 2)

    dots = [
        {"x": 10 * i + 5, "y": at(reading["value"]), "top": at(reading["high"]),
         "bottom": at(reading["low"]), "is_worse": _is_worse(reading), "reading": reading,
         "revision": row["revision"], "label": row["label"]}
        for i, row, reading in read
    ]  # fmt: skip
    return {"zero": at(0.0), "dots": dots, "last": dots[-1]}


def _is_worse(reading: Mapping[str, Any]) -> bool:
    """Returns whether the whole interval lies on the side that is worse; no side is, of some."""
    up, down = reading["low"] > 0, reading["high"] < 0
    return {"up": up, "down": down}.get(reading["direction"], False)


def interlocks(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns what the step monitors said of an adapter, from its calls to learn, oldest first.

    Each stands as the last call left it. How near the adapter came to harm is said of all of
    them, wherever it is said: a last call may be the mildest.
    """
    last = calls[-1] if calls else {}
    return [
        {"name": name, "ok": bool(said.get("ok")), "calls": len(calls),
         "at": least_shift(calls) if name == "alignment" else None, "bound": said.get("margin")}
        for name, said in last.items()
    ]  # fmt: skip


def least_shift(monitors: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns how little an adapter leaned to harmless text at any step, in nats."""
    shifts = [s for one in monitors for s in one.get("alignment", {}).get("shifts") or ()]
    return min(shifts, default=None)
