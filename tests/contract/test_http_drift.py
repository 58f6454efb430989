"""`GET /drift`: every merge is measured once, against base and parent, and stays measured."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving import PORT, TREES, WAIT_S, People, Rules, Server, served, small_config

# Adapters of three merges: one domain twice, and one that another tenant owns.
DOMAIN, OWNED = "growth", "harbour"


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    people, state = People(), tmp_path_factory.mktemp("state")
    people.init(state, Rules(owners=((OWNED, "default"),)))
    with served(small_config(state, model=str(base), measure_drift=True), people) as found:
        yield found


def measured(server: Server) -> Any:
    deadline = time.monotonic() + WAIT_S
    while (record := server.get("/drift"))["pending"]:
        assert time.monotonic() < deadline, record
        time.sleep(0.05)
    return record


def test_a_state_without_merges_has_no_drift(server: Server) -> None:
    record = server.get("/drift")
    assert record["available"] and record["series"] == record["pending"] == []
    assert record["suspect"]["revision"] is None


@pytest.fixture(scope="module")
def series(server: Server) -> list[dict[str, Any]]:
    server.merged("first", DOMAIN, TREES)
    server.merged("second", DOMAIN, [f"{text} Truly." for text in TREES])
    server.merged("third", OWNED, PORT)
    record = measured(server)
    assert record["failed"] == {}
    return record["series"]


def test_each_merge_is_held_against_the_base_and_its_domains_parent(
    server: Server, series: list[dict[str, Any]]
) -> None:
    bare = server.runtime.base.digest
    assert [(d["revision"], d["label"]) for d in series] == [(2, DOMAIN), (3, DOMAIN), (4, OWNED)]
    assert {d["base"] for d in series} == {bare}
    # The second of a domain follows its first; another domain's first follows the base.
    assert [d["parent"] for d in series] == [bare, series[0]["digest"], bare]
    for drift in (series[0], series[2]):
        assert drift["against_base"] == drift["against_parent"]
    assert series[1]["against_base"] != series[1]["against_parent"]
    banks = {r["number"]: r["bank"] for r in server.get("/revisions")["revisions"]}
    for drift in series:
        assert drift["digest"] in str(banks[drift["revision"]][drift["label"]])
    names = {name.split(".")[0] for name in series[0]["against_base"]}
    assert {"concept", "value", "bias", "diversity", "style", "calibration"} <= names
    moved = series[0]["against_base"]["value.choice"]
    assert moved["low"] < moved["value"] < moved["high"] and moved["num_items"] == 56


def test_it_is_drawn(server: Server, series: list[dict[str, Any]]) -> None:
    answer = server.http.get("/drift.svg")
    assert answer.headers["content-type"].startswith("image/svg+xml")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    texts = {e.text for e in ElementTree.fromstring(answer.text).iter() if e.text}
    assert {f"2 {DOMAIN}", f"3 {DOMAIN}", f"4 {OWNED}"} <= texts


def test_a_rollback_learns_nothing_and_adds_nothing(
    server: Server, series: list[dict[str, Any]]
) -> None:
    assert server.rollback(2).status_code == 200
    assert measured(server)["series"] == series


def test_another_tenant_sees_nothing_of_an_owned_domain(
    server: Server, series: list[dict[str, Any]]
) -> None:
    assert [d["revision"] for d in server.runtime.drift.report(lambda d: d != OWNED)["series"]] == [
        2, 3]  # fmt: skip
    assert OWNED not in server.runtime.drift.drawn(lambda d: d != OWNED)


def test_what_was_measured_outlasts_the_server(base: Path, tmp_path: Path) -> None:
    people = People()
    people.init(tmp_path)
    off, on = (
        small_config(tmp_path, model=str(base), measure_drift=is_on) for is_on in (False, True)
    )
    with served(off, people) as server:
        server.merged("first", DOMAIN, TREES)
        record = server.get("/drift")
        assert not record["available"] and record["series"] == record["pending"] == []
    with served(on, people) as server:  # what was merged before is measured at the start
        series = measured(server)["series"]
        assert [d["revision"] for d in series] == [2]
    with served(off, people) as server:
        assert server.get("/drift")["series"] == series
        live = server.http.get("/live", headers={"accept": "text/html"}).text
        assert live.count('<figure class="panel">') == len(series[0]["against_base"])
