"""Two server processes on one PostgreSQL: how long after one has acted the other serves by it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from cambium.bench.trust_service import Service
from cambium.core.errors import ConfigError
from cambium.core.nouns import Action
from cambium.models.lora import LoraConfig
from cambium.serve.child import ChildServer
from cambium.serve.runtime import Runtime

LIMIT_S = 30.0


@contextmanager
def postgres() -> Iterator[str]:
    """Gives the URL of an empty database, of a server that ends with the block.

    Raises:
        ConfigError: there is no PostgreSQL to run.
    """
    try:
        from pgserver.postgres_server import get_server
    except ImportError as error:
        raise ConfigError("there is no PostgreSQL to measure with",
                          mend="pip install 'cambium[dev]'") from error  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="pg") as folder:  # a short path: it names a socket
        server = get_server(folder, cleanup_mode="stop")
        try:
            yield str(server.get_uri())
        finally:
            server.cleanup()


@contextmanager
def two_processes(before: Service, url: str) -> Iterator[tuple[Service, ChildServer]]:
    """Moves a closed service's state to a database, and gives it with another process beside it."""
    config = replace(before.runtime.config, db=url)
    with Runtime(config) as runtime, ChildServer(config.state) as other:
        yield replace(before, runtime=runtime), other


def release_ms(found: Service, other: ChildServer, rounds: int = 50) -> list[float]:
    """Times from a release's end to when the other serves it: in turn base and merged adapter.

    A rollback releases as a merge does: verified, loaded and read back by everyone.
    """
    runtime, times = found.runtime, list[float]()
    for number in range(rounds):
        to = 1 + number % 2
        revision = next(r for r in runtime.releases.list() if r["number"] == to)
        signed = [found.sign(k, Action.ROLLBACK, revision["digest"]) for k in found.approvers[:2]]
        runtime.releases.rollback(to, signed)
        wanted = runtime.revision
        times.append(_ms_until(lambda w=wanted: _standing(other)["revision"] == w))
    return times


def kill_ms(found: Service, other: ChildServer, rounds: int = 20) -> list[float]:
    """Times from the end of a call that kills to when the other refuses; each is revived."""
    kill, times = found.runtime.kill, list[float]()
    for _ in range(rounds):
        signed = [found.sign(found.operator, Action.KILL, kill.view()["target"])]
        kill.pull("rehearsal", signed)
        times.append(_ms_until(lambda: _standing(other)["status"] == "killed"))
        digest = kill.view()["digest"]
        kill.revive([found.sign(key, Action.REVIVE, digest) for key in found.approvers[:2]])
        _ms_until(lambda: _standing(other)["status"] == "ready")
    return times


def adapter_ms(found: Service, other: ChildServer, rounds: int = 20) -> list[float]:
    """Times from the end of a call that makes an adapter to the other's first token with it."""
    adapters, times = found.runtime.adapters, list[float]()
    for number in range(rounds):
        name = f"visitor-{number}"
        adapters.create(name, LoraConfig(), scope="text", ttl_s=3600, domain=None)
        body = {"model": name, "prompt": "x", "max_tokens": 1}
        times.append(_ms_until(lambda b=body: _answers(other, b)))
        adapters.delete(name)
    return times


def _standing(other: ChildServer) -> dict[str, object]:
    return dict(other.http.get("/readyz").json())


def _answers(other: ChildServer, body: dict[str, object]) -> bool:
    return other.http.post("/v1/completions", json=body).status_code == 200


def _ms_until(is_so: Callable[[], bool]) -> float:
    """Returns how long it takes until something is so, asked without a pause.

    Raises:
        ConfigError: it is not within half a minute.
    """
    started = time.perf_counter()
    while not is_so():
        if time.perf_counter() - started > LIMIT_S:
            raise ConfigError("the other process does not follow", mend="see its log")
    return 1000 * (time.perf_counter() - started)
