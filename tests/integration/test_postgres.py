"""The whole loop with the state's rows in a real PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.postgres import fresh_database
from tests.serving import FACTS, PORT, TREES, People, served, small_config

from cambium.core.nouns import Action
from cambium.trust.acts import sign_act, signature_to_json


def test_an_initialised_state_moves_and_goes_on_there(
    base: Path, people: People, tmp_path: Path
) -> None:
    digest = people.init(tmp_path)
    url = fresh_database()
    with served(small_config(tmp_path, model=str(base), db=url), people) as server:
        assert server.get("/policy")["digest"] == digest
        merged = server.merged("trees", "trees", TREES)
        assert merged["served_digest"] == merged["signed_digest"]
        stable = server.answer("stable", domain="trees")
        server.create("pupil")
        taught = server.teach("pupil", FACTS[:4])
        pupil = server.answer("pupil")
        assert server.ask("pupil").headers["x-cambium-request-id"]
        open_one = server.awaiting("port", "port", PORT)
        server.approve(open_one, 0)
    # Where it lies is remembered: nobody has to say so again.
    with served(small_config(tmp_path, model=str(base)), people) as again:
        assert again.answer("stable", domain="trees") == stable
        assert again.answer("pupil") == pupil
        assert again.get("/adapters/pupil")["digest"] == taught["digest_after"]
        assert again.post("/adapters/pupil/replay")["ok"] is True
        again.approve(open_one, 1)
        assert again.post("/adapters/merge", proposal_id=open_one)["revision"] == 3
        assert again.rollback(1).status_code == 200
        assert again.ask("stable").headers["x-cambium-adapter"] == "base"
        target = again.get("/kill")["target"]
        kill = signature_to_json(sign_act(people.operator, again.act(Action.KILL, target)))
        again.post("/kill", reason="drill", signatures=[kill])
    with served(small_config(tmp_path, model=str(base)), people) as killed:
        assert killed.ask("base").status_code == 503
        revive = killed.act(Action.REVIVE, killed.get("/kill")["digest"])
        signed = [signature_to_json(sign_act(people.approvers[i], revive)) for i in (0, 1)]
        killed.post("/revive", signatures=signed)
        assert killed.ask("base").status_code == 200
        kinds = [entry["kind"] for entry in killed.get("/audit")["entries"]]
        assert kinds.count("revision.merge") == 2 and kinds[-1] == "system.revived"


def test_a_killed_writer_loses_nothing(tmp_path: Path) -> None:
    code = (
        "from cambium.bench import trust_crash as t; t.ROUNDS_EACH = 1; t.RANDOM_ROUNDS = 5; "
        "t.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), fresh_database()],
        capture_output=True,
        text=True,
        check=True,
    )
    rounds, acknowledged, lost, halves = map(int, done.stdout.split())
    assert (rounds, lost, halves) == (10, 0, 0) and acknowledged > 0
