"""A full disk: 507 and nothing changed, while answers go on; and room again is enough."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.serving import PORT, TREES, People, Server, served, small_config, tiny_base

from cambium.core.nouns import Action
from cambium.trust.acts import sign_act, signature_to_json

ROOM = 4 * 1024


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Leaves a page on a small disk of its own."""
    filler = disk / "filler"
    with suppress(OSError):  # somebody else took the rest
        filler.write_bytes(b"\0" * max(0, shutil.disk_usage(disk).free - ROOM))
    yield
    filler.unlink()


@contextmanager
def limited(disk: Path) -> Iterator[None]:
    """Lets no file grow: for machines where no disk can be mounted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        yield tmp_path
        return
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.fixture
def server(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    people = People()
    people.init(disk / "state")
    base = tiny_base(tmp_path_factory.mktemp("base"))
    with served(small_config(disk / "state", model=str(base)), people) as found:
        yield found


def test_a_full_disk_changes_nothing_and_answers_go_on(server: Server, disk: Path) -> None:
    proposal = server.awaiting("trees", "trees", TREES)
    server.create("live")
    server.teach("live", PORT, steps=1)
    digest = server.get(f"/proposals/{proposal}")["proposal_digest"]
    act = server.act(Action.APPROVE, digest)
    answers = {model: server.answer(model) for model in ("base", "live", "trees")}
    before = server.everything()
    full = filled if disk.is_mount() else limited
    with full(disk):
        approval = signature_to_json(sign_act(server.people.approvers[0], act))
        calls = {
            "/adapters/ephemeral": {"task_id": "new"},
            "/learn/step": {"adapter_id": "live", "examples": [{"text": t} for t in PORT],
                            "consent": "tests"},
            "/adapters/propose_consolidation": {"adapter_id": "live", "domain": "port"},
            "/gates/align_review": {"proposal_id": proposal},
            f"/proposals/{proposal}/approvals": approval,
            f"/proposals/{proposal}/reject": {"reason": "full"},
        }  # fmt: skip
        for path, body in calls.items():
            for _ in range(2):
                refused = server.http.post(path, json=body)
                assert (refused.status_code, refused.json()["code"]) == (507, "storage_full"), path
        assert server.http.delete("/adapters/live").status_code == 507
        assert server.everything() == before
        assert {model: server.answer(model) for model in answers} == answers
        traced = server.ask("live").headers["x-cambium-request-id"]
        assert server.get(f"/traces/{traced}")["model"] == "live"
    assert server.teach("live", PORT, steps=1)["steps"] == 1
    server.approve(proposal, 0)
    server.approve(proposal, 1)
    merged = server.post("/adapters/merge", proposal_id=proposal)
    assert merged["served_digest"] == merged["signed_digest"]
    assert server.get(f"/traces/{traced}")["model"] == "live"
