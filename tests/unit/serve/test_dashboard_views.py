from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cambium.evals.gates import GATES
from cambium.serve.dashboard import views

NUMBERS = st.floats(-1e6, 1e6)


def gate(**changes: Any) -> dict[str, Any]:
    plain = {"name": "retention", "verdict": "pass", "waived": False, "passes": 2, "required": 2,
             "threshold": -0.03, "history": []}  # fmt: skip
    return {**plain, **changes}


def view(state: str, *gates: dict[str, Any], **changes: Any) -> dict[str, Any]:
    plain = {"state": state, "gates": list(gates), "approvals": [{"name": "ann"}],
             "quorum": {"k": 2, "n": 3}, "reason": None}  # fmt: skip
    return {**plain, **changes}


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (view("awaiting_approval", gate()), "waits for people; 1 of 2 approvals (ann)"),
        (
            view("checking", gate(passes=1, required=3)),
            "is being looked at by the gates; 1 of 2 approvals (ann); waiting for retention, "
            "1 of 3 passes",
        ),
        (
            view("checking", gate(verdict="error", passes=0)),
            "is stuck: retention could not be measured; 1 of 2 approvals (ann)",
        ),
        (
            view("mergeable", gate(verdict="fail", passes=0, waived=True)),
            "can be merged; 1 of 2 approvals (ann); retention is waived",
        ),
        (
            view("consolidating", gate(verdict="missing", passes=0)),
            "is being consolidated from its parent; its gates come next",
        ),
        (
            view("checking", *[gate(passes=0)] * 3, gate()),
            "is being looked at by the gates; 1 of 2 approvals (ann); waiting for 3 of 4 gates",
        ),
        (view("merged", gate()), "is merged"),
        (view("rejected", gate(), reason="no gain"), "was rejected: no gain"),
        (view("failed"), "failed: no reason was given"),
    ],
)
def test_the_status_line_says_what_it_waits_for(shown: dict[str, Any], line: str) -> None:
    assert views.status_line(shown) == line


def test_what_is_no_pass_comes_first() -> None:
    shown = view("checking", gate(), gate(name="a", verdict="fail"), gate(name="b", waived=True))
    assert views.verdicts(shown) == [("fail", ["a"]), ("waived", ["b"]), ("pass", ["retention"])]


@given(threshold=NUMBERS, ends=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=5))
def test_every_look_lies_on_the_scale_in_the_right_order(
    threshold: float, ends: list[tuple[float, float]]
) -> None:
    looks = [
        {"ci": sorted(pair), "effect": sum(pair) / 2, "verdict": "pass", "why": ""} for pair in ends
    ]
    (row,) = views.gate_rows(view("checking", gate(threshold=threshold, history=looks)))
    scale = row["scale"]
    for look, raw in zip(scale["looks"], looks, strict=True):
        assert 0 <= look["low"] <= look["effect"] <= look["high"] <= 100
        # Which side of the threshold an end lies on is what a reader sees.
        if raw["ci"][0] > threshold:
            assert look["low"] >= scale["threshold"]
        if raw["ci"][1] < threshold:
            assert look["high"] <= scale["threshold"]


def test_a_gate_that_nobody_looked_at_has_no_scale() -> None:
    errored = {"ci": None, "effect": None, "verdict": "error", "why": "dry"}
    for history in ([], [errored]):
        (row,) = views.gate_rows(view("checking", gate(history=history)))
        assert row["scale"] is None


def test_bars_share_one_scale_and_only_what_is_certain_counts_as_found() -> None:
    change = {"before": 0.1, "after": 0.2, "q_value": 0.5, "examples": [{}] * 5}
    diff = {"config": {"q": 0.05}, "changes": [change, {**change, "after": 0.4, "q_value": 0.01}]}
    first, second = views.cluster_rows(diff)
    assert (first["bar_after"], second["bar_after"]) == (50, 100)
    assert (first["found"], second["found"]) == (False, True)
    assert len(first["examples"]) == views.MAX_EXAMPLES
    assert views.cluster_rows({}) == []


def test_numbers_and_times_are_for_people() -> None:
    assert [views.number(x) for x in (None, 0.0, -0.0, 0.12345, -3)] == [
        "–", "0", "0", "+0.123", "-3"]  # fmt: skip
    assert views.when(None) == "–" and views.when(0) == "1970-01-01 00:00:00 UTC"
    assert views.versioned("stable") == "stable"
    assert views.versioned("a@sha256:" + "0123456789" * 6) == "a@01234567…"
    assert views.short(None) == "–" and len(views.short("sha256:" + "a" * 64)) == 20


@given(values=st.lists(NUMBERS, min_size=1, max_size=60))
def test_a_curve_stays_on_its_field(values: list[float]) -> None:
    found = views.line(values)
    assert found is not None
    points = [tuple(map(float, p.split(","))) for p in found["points"].split(" ")]
    assert len(points) == len(values)
    assert all(0 <= x <= 100.1 and 0.9 <= y <= 23.1 for x, y in points)
    assert (found["most"], found["last"]) == (max(values), values[-1])
    # What is higher is drawn higher: SVG counts downwards.
    for (_, a), (_, b), before, after in zip(points, points[1:], values, values[1:], strict=False):
        assert (a >= b) or before >= after


def test_no_values_make_no_curve() -> None:
    assert views.line([]) is None


def test_a_rollback_reaches_back_to_what_it_is_of() -> None:
    rows = [{"number": n, "kind": "merge", "of": None, "served": False} for n in range(1, 31)]
    rows.append({"number": 31, "kind": "rollback", "of": 30, "served": True})
    rows.append({"number": 32, "kind": "rollback", "of": 1, "served": False})
    found = views.revision_line(rows)
    assert found["earlier"] == 8 and len(found["dots"]) == views.MAX_DOTS
    back = {dot["number"]: dot["back"] for dot in found["dots"] if dot["of"]}
    assert back == {31: next(d["x"] for d in found["dots"] if d["number"] == 30), 32: None}


def test_what_is_signed_names_all_but_its_time() -> None:
    standing = {"policy_digest": "sha256:p", "state_version": 7, "other": 1}
    assert views.act(standing, "approve", "sha256:t") == {
        "action": "approve", "domain_tag": "cambium.v1", "policy": "sha256:p",
        "state_version": 7, "target": "sha256:t"}  # fmt: skip


def test_a_key_is_told_what_it_may_do() -> None:
    assert views.key_standing("a", "approver", None).startswith("a: approves")
    assert "revoked" in views.key_standing("a", "approver", 5)
    assert "no policy lists it" in views.key_standing("a", "enrolled", None)


def test_every_gate_has_its_question() -> None:
    assert set(views.QUESTIONS) == set(views.SIGNS) == set(GATES)
    assert views.sign("of tomorrow") == views.question("of tomorrow") == ""


def test_no_number_is_minus_zero() -> None:
    assert [views.signed(x, 1) for x in (-0.04, 0.0, -0.0, 0.06, -1)] == [
        "+0.0", "+0.0", "+0.0", "+0.1", "-1.0"]  # fmt: skip


def test_a_log_entry_is_by_the_token_or_by_whose_key_signed() -> None:
    entries = [
        {"seq": i, "kind": "k", "at": 0, "hash": "h", "body": {"proposal": "p-1", **body}}
        for i, body in enumerate([{"by": "ann's token"}, {"signer": "ed25519:1", "comment": "c"},
                                  {"signer": "ed25519:2"}, {"proposal": "p-2"}])
    ]  # fmt: skip
    found = views.timeline(entries, "p-1", names={"ed25519:1": "ann"})
    assert [(e["by"], e["comment"]) for e in found] == [
        ("ann's token", None), ("ann", "c"), (None, None)]  # fmt: skip


def test_the_least_shift_is_the_one_nearest_to_harm() -> None:
    calls = [{"alignment": {"shifts": [0.1, -0.02]}}, {"alignment": {"shifts": None}}, {},
             {"alignment": {"shifts": [0.05]}}]  # fmt: skip
    assert views.least_shift(calls) == -0.02
    assert views.least_shift([]) is None


def test_an_adapter_came_as_near_to_harm_as_in_its_worst_call() -> None:
    calls = [
        {"alignment": {"ok": True, "margin": 0.15, "shifts": [0.1, -0.0468]}},
        {"alignment": {"ok": True, "margin": 0.15, "shifts": [-0.0132]}, "trust_region": {"ok": 0}},
    ]
    alignment, region = views.interlocks(calls)
    assert (alignment["at"], alignment["bound"], alignment["calls"]) == (-0.0468, 0.15, 2)
    assert (region["ok"], region["at"], region["bound"]) == (False, None, None)
    assert views.interlocks([]) == []


def reading(low: float, high: float, direction: str = "up") -> dict[str, Any]:
    return {"value": (low + high) / 2, "low": low, "high": high, "direction": direction,
            "unit": "nats/token"}  # fmt: skip


def test_drift_is_red_only_where_the_whole_interval_is_on_the_worse_side() -> None:
    series = [
        {"revision": 2, "label": "law", "against_base": {"a": reading(0.1, 0.3)}},
        {"revision": 3, "label": "law", "against_base": {"a": reading(-0.1, 0.3)}},
        {"revision": 4, "label": "", "against_base": {"b": reading(-0.3, -0.1, "down")}},
    ]
    a, b = views.drift_panels(series, {"b": "B", "a": "A", "c": "C"})[::-1]
    assert (a["title"], [dot["is_worse"] for dot in a["dots"]]) == ("A", [True, False])
    assert (b["title"], b["last"]["is_worse"], b["last"]["x"]) == ("B", True, 25)
    for dot in a["dots"]:
        assert 2 <= dot["top"] < dot["y"] < dot["bottom"] <= 38
    assert a["dots"][0]["bottom"] < a["zero"] < a["dots"][1]["bottom"]
    both = [{**series[2], "against_base": {"b": reading(-0.3, -0.1, "either")}}]
    assert not views.drift_panels(both, {"b": "B"})[0]["last"]["is_worse"]


def test_a_tenant_is_told_whether_and_not_how_many() -> None:
    assert [views.told(n, sees_all=True) for n in (0, 3)] == [0, 3]
    assert [views.told(n, sees_all=False) for n in (0, 3)] == ["none", "some"]


def test_beside_the_state_its_words_are_not_said_again() -> None:
    assert views.listed(view("rejected", gate(), reason="no gain")) == "no gain"
    assert views.listed(view("merged", gate())) == ""
    assert views.listed(view("awaiting_approval", gate())).startswith("waits for people; 1 of 2")


def test_what_is_no_pass_heads_the_table_too() -> None:
    shown = view("checking", gate(name="a"), gate(name="b", verdict="fail"), gate(name="c"))
    assert [row["name"] for row in views.gate_rows(shown)] == ["b", "a", "c"]
