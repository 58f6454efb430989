"""Every answer's trace is under the requests' own tree, over HTTP."""

from __future__ import annotations

import time
from typing import Any

from tests.serving import Server

from cambium.cli.request_lane import verify_requests, verify_trace
from cambium.trust.audit import REQUESTS, Checkpoint
from cambium.trust.keys import PublicKey


class Asking:
    """What the command asks with, on a test's server."""

    def __init__(self, server: Server) -> None:
        self._http = server.http

    def get(self, path: str, **params: Any) -> Any:
        answer = self._http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()


def traced(server: Server, request_id: str) -> Any:
    """Returns a trace once it is written."""
    deadline = time.monotonic() + 30
    while not (found := server.get(f"/traces/{request_id}"))["leaves"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_traces_verify_one_by_one_and_all_together(server: Server) -> None:
    assert server.get("/audit/checkpoint?lane=requests")["size"] == 0
    ids = [server.ask("base").headers["x-cambium-request-id"] for _ in range(3)]
    (row,) = [k for k in server.get("/keys")["keys"] if k["role"] == "server"]
    public = PublicKey(raw=row["public"])
    client: Any = Asking(server)
    for request_id in ids:
        record = traced(server, request_id)
        assert verify_trace(client, dict(record), public) == record["leaves"][-1]
    answer = server.get("/audit/checkpoint?lane=requests")
    assert answer["size"] >= 3 and answer["public"] == public.raw
    signed = Checkpoint(**{n: answer[n] for n in ("size", "root", "key_id", "signature")})
    rows = server.get(f"/audit?lane={REQUESTS}&since=1")["entries"]
    assert {r["request_id"] for r in rows} == set(ids)
    assert verify_requests(rows, checkpoint=signed, server_public=public) == signed.size
    # The lifecycle's lane has none of it, and other lanes are not there.
    assert all("request_id" not in entry for entry in server.get("/audit")["entries"])
    for path in ("/audit", "/audit/checkpoint", "/audit/proof?seq=1"):
        mark = "&" if "?" in path else "?"
        assert server.http.get(f"{path}{mark}lane=other").status_code == 400
    assert server.http.get("/audit/proof?lane=requests&seq=99").status_code == 400
