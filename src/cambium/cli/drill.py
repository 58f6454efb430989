"""`cambium key drill`: a revocation rehearsed on a state of its own, from loss to proof."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cambium.cli.failures import NO, CommandFailed
from cambium.cli.options import AsJson
from cambium.cli.output import print_json, print_line, print_rows
from cambium.core.nouns import Action

if TYPE_CHECKING:
    import httpx

    from cambium.trust.keys import SigningKey

_COLUMNS = ("step", "ms", "ok", "detail")
_PEOPLE = ("root", "operator", "approver-1", "approver-2", "approver-3")


def drill(
    out: Annotated[Path | None, typer.Option("--out", help="Keep the record in this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Rehearse losing a key, with a server and keys made for it; your state is not touched."""
    from cambium.cli.initialise import initialise_development
    from cambium.serve.child import ChildServer
    from cambium.serve.store.key_files import load_key

    with tempfile.TemporaryDirectory(prefix="cambium-drill-") as folder:
        state = Path(folder) / "state"
        initialise_development(state)
        keys = {name: load_key(state / "keys" / f"{name}.key") for name in _PEOPLE}
        with ChildServer(state) as server:
            steps = _rehearse(server.http, keys)
    record = {"ok": all(step["ok"] for step in steps), "steps": steps}
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if as_json:
        print_json(record)
    else:
        print_rows(steps, _COLUMNS)
    if not record["ok"]:
        raise CommandFailed("the rehearsal did not go as it must: see its steps", status=NO)
    if not as_json:
        print_line("a lost key is out of service, and the others can act without it")


def _rehearse(http: httpx.Client, keys: dict[str, SigningKey]) -> list[dict[str, Any]]:
    lost, root = keys["approver-1"], keys["root"]
    others = [keys["approver-2"], keys["approver-3"]]
    steps: list[dict[str, Any]] = []

    def step(name: str, status: int, act: Callable[[], httpx.Response]) -> None:
        began = time.perf_counter()
        answer = act()
        took = round(1000 * (time.perf_counter() - began), 1)
        detail = f"{answer.status_code} {answer.json().get('code', '')}".strip()
        steps.append(
            {"step": name, "ms": took, "ok": answer.status_code == status, "detail": detail}
        )

    def revoke() -> httpx.Response:
        body = {"reason": "rehearsal", "signatures": _signed(
            http, Action.REVOKE, lost.public_key.digest, [root])}  # fmt: skip
        return http.post(f"/keys/{lost.key_id}/revoke", json=body)

    def kill(key: SigningKey) -> httpx.Response:
        target = http.get("/kill").json()["target"]
        signed = _signed(http, Action.KILL, target, [key])
        return http.post("/kill", json={"reason": "rehearsal", "signatures": signed})

    def revive(signers: list[SigningKey]) -> httpx.Response:
        target = http.get("/kill").json()["digest"]
        return http.post(
            "/revive", json={"signatures": _signed(http, Action.REVIVE, target, signers)}
        )

    server = _server(http)
    step("the root revokes the lost key", 200, revoke)
    step("the lost key kills nothing", 409, lambda: kill(lost))
    step("an operator kills", 200, lambda: kill(keys["operator"]))
    step("the server's key is revoked by it, and another in its place", 200,
         lambda: _replaced(http, server))  # fmt: skip
    step("the lost key and one other revive nothing", 409, lambda: revive([lost, others[0]]))
    step("the other two revive", 200, lambda: revive(others))
    step("the log says so", 200, lambda: _logged(http, lost.key_id))
    step("a witness follows from the old server key to the new one", 200,
         lambda: _followed(http, server))  # fmt: skip
    return steps


def _signed(
    http: httpx.Client, action: Action, target: str, signers: list[SigningKey]
) -> list[dict[str, object]]:
    from cambium.cli.signing import body_of

    standing = http.get("/kill").json()
    return [body_of(key, action, target=target, standing=standing) for key in signers]


def _server(http: httpx.Client) -> dict[str, Any]:
    (row,) = [row for row in http.get("/keys").json()["keys"] if row["role"] == "server"]
    return row


def _replaced(http: httpx.Client, before: dict[str, Any]) -> httpx.Response:
    """Answers 404 where the key from before is not revoked, or the kill names another one."""
    answer, named = http.get("/keys"), http.get("/kill").json().get("server")
    gone = [row["key_id"] for row in answer.json()["keys"] if row["revoked_at"] is not None]
    is_so = before["key_id"] in gone and _server(http)["public"] == named != before["public"]
    return answer if is_so else http.get("/nothing")


def _followed(http: httpx.Client, before: dict[str, Any]) -> httpx.Response:
    """Answers 404 where what the old key signed last does not lead to the one in office."""
    from cambium.cli.record import built
    from cambium.cli.succession import check_succession
    from cambium.trust.audit import AuditEntry, Checkpoint
    from cambium.trust.keys import PublicKey

    answer = http.get("/audit/successions")
    (told,) = answer.json()["successions"]
    last, killed = built(Checkpoint, told["checkpoint"]), built(AuditEntry, told["entry"])
    now = check_succession(last, killed, told["proof"], PublicKey(raw=before["public"]))
    return answer if now.raw == _server(http)["public"] else http.get("/nothing")


def _logged(http: httpx.Client, key_id: str) -> httpx.Response:
    answer = http.get("/audit")
    bodies = [e["body"] for e in answer.json()["entries"] if e["kind"] == "key.revoked"]
    return answer if [b["key_id"] for b in bodies] == [key_id] else http.get("/nothing")
