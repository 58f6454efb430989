"""A soft prompt from the proposal to the answer: chosen, trained, measured, signed, rolled back."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest
from tests.serving import PORT, TREES, People, Server, served, small_config, tiny_base

NUM_VIRTUAL = 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    people, state = People(), tmp_path_factory.mktemp("state")
    people.init(state)
    base = tiny_base(tmp_path_factory.mktemp("base"))
    with served(small_config(state, model=str(base)), people) as found:
        yield found


def proposed(server: Server, name: str, domain: str, **body: Any) -> Any:
    asked = {"adapter_id": name, "domain": domain, **body}
    found = server.post("/adapters/propose_consolidation", 202, **asked)
    return server.settled(found["proposal_id"])


@pytest.fixture(scope="module")
def view(server: Server) -> Any:
    server.create("trees")
    server.teach("trees", TREES)
    return proposed(server, "trees", "trees", kind="soft_prompt")


@pytest.fixture(scope="module")
def merged(server: Server, view: Any) -> Any:
    before = server.answer("stable", domain=None)
    for person in (0, 1):
        server.approve(view["id"], person)
    return {"before": before, **server.post("/adapters/merge", proposal_id=view["id"])}


def test_its_gates_judge_it_like_any_candidate(server: Server, view: Any) -> None:
    assert view["state"] == "awaiting_approval", view
    assert view["provenance"]["soft_prompt"] == {"num_virtual_tokens": NUM_VIRTUAL}
    assert "lora" not in view["provenance"]
    assert {gate["verdict"] for gate in view["gates"]} == {"pass"}


def test_its_diff_names_virtual_tokens_and_no_module(server: Server, view: Any) -> None:
    weights = server.get(f"/proposals/{view['id']}/diff")["weights"]
    assert (weights["available"], weights["modules"]) == (True, [])
    assert [token["token"] for token in weights["prompt"]] == list(range(NUM_VIRTUAL))
    for token in weights["prompt"]:
        assert token["delta_norm"] > 0 and isinstance(token["nearest"], str)
    page = server.http.get(f"/review/{view['id']}")
    assert page.status_code == 200
    assert "16 virtual tokens" in page.text


def test_it_is_served_under_the_digest_that_was_signed(server: Server, merged: Any) -> None:
    assert merged["signed_digest"] == merged["served_digest"]
    found = server.ask("stable", domain="trees")
    assert found.headers["x-cambium-adapter"] == f"trees@{merged['served_digest']}"
    assert server.answer("stable", domain="trees") != server.answer("base")
    assert server.answer("stable", domain="trees")[1] == server.answer("stable", domain="trees")[1]
    trace = server.get(f"/traces/{found.headers['x-cambium-request-id']}")
    assert trace["adapters"][0]["delta_norm"] > 0
    assert found.json()["usage"]["prompt_tokens"] == server.ask("base").json()["usage"][
        "prompt_tokens"
    ]  # fmt: skip


def test_it_takes_its_room_from_the_context(server: Server, merged: Any) -> None:
    room = server.runtime.engine.context - NUM_VIRTUAL
    fits = server.ask("stable", [7] * (room - 1), domain="trees", max_tokens=1)  # type: ignore[arg-type]
    assert fits.status_code == 200, fits.text
    over = server.ask("stable", [7] * room, domain="trees", max_tokens=1)  # type: ignore[arg-type]
    assert over.status_code == 400
    assert over.json()["error"]["code"] == "context_length_exceeded"
    assert server.ask("base", [7] * room, max_tokens=1).status_code == 200  # type: ignore[arg-type]


def test_it_leaves_as_a_folder_that_peft_knows(server: Server, merged: Any) -> None:
    answer = server.http.get(f"/adapters/trees@{merged['served_digest']}/export")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        config = json.loads(archive.read("adapter_config.json"))
    assert (config["peft_type"], config["num_virtual_tokens"]) == ("PROMPT_TUNING", NUM_VIRTUAL)


def test_it_is_derived_again_to_the_same_digest(server: Server, merged: Any) -> None:
    found = server.post(f"/adapters/trees@{merged['served_digest']}/replay")
    assert found["ok"], found


def test_nothing_learns_on_top_of_it(server: Server, merged: Any) -> None:
    found = server.post("/adapters/ephemeral", 409, task_id="more", domain="trees")
    assert found["code"] == "adapter_kind_refused"
    assert "without a domain" in found["mend"]


def test_another_kind_cannot_begin_from_it_and_its_own_does(server: Server, merged: Any) -> None:
    server.create("ravens")
    server.teach("ravens", PORT)
    asked = {"adapter_id": "ravens", "domain": "trees", "kind": "lora"}
    found = server.post("/adapters/propose_consolidation", 409, **asked)
    assert found["code"] == "adapter_kind_refused"
    view = proposed(server, "ravens", "trees")
    assert view["provenance"]["soft_prompt"] == {"num_virtual_tokens": NUM_VIRTUAL}
    integrity = next(gate for gate in view["gates"] if gate["name"] == "integrity")
    assert integrity["verdict"] == "pass", integrity
    server.post("/adapters/propose_consolidation", 400, **{**asked, "kind": "prefix"})


def test_rollback_takes_it_out_and_brings_it_back(server: Server, merged: Any) -> None:
    soft = server.answer("stable", domain="trees")
    assert server.rollback(1).status_code == 200
    assert server.ask("stable", domain="trees").status_code == 404
    assert server.rollback(merged["revision"]).status_code == 200
    assert server.answer("stable", domain="trees") == soft


def test_a_parent_of_another_kind_that_comes_first_ends_it(server: Server, merged: Any) -> None:
    server.create("low")
    server.teach("low", TREES)
    server.create("soft")
    server.teach("soft", PORT)
    first = proposed(server, "low", "mixed", kind="lora")
    second = proposed(server, "soft", "mixed", kind="soft_prompt")
    assert {first["state"], second["state"]} == {"awaiting_approval"}, (first, second)
    for person in (0, 1):
        server.approve(first["id"], person)
    server.post("/adapters/merge", proposal_id=first["id"])
    found = server.settled(second["id"])
    assert found["state"] == "failed", found
    assert "a soft_prompt cannot begin from it" in found["reason"]
