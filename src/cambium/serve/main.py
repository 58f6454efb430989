"""`cambium serve`: uvicorn around the application."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable

import uvicorn

from cambium.serve.app import create_app
from cambium.serve.config import ServerConfig
from cambium.serve.runtime import Runtime
from cambium.serve.telemetry import send_spans, write_logs

# How long answers and lessons may take to their end once the server was asked to end, and whoever
# has not even said what it wants.
PATIENCE_S = 5.0
CUT_OFF_S = 20


def run(config: ServerConfig) -> None:
    """Serves until interrupted; says on standard error what is served and what is missing.

    Raises:
        CambiumError: the server cannot start.
    """
    write_logs(config.log)
    send_last_spans = send_spans()
    # Opened before uvicorn, which would bury an error of the start in a traceback.
    runtime = Runtime(config)
    for line in describe(runtime):
        print(line, file=sys.stderr, flush=True)
    app = create_app(config, opened=runtime)
    server = Server(
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=CUT_OFF_S,
        ),
        runtime,
    )
    server.at_end = send_last_spans
    server.run()
    if not server.started:
        raise SystemExit(3)  # uvicorn has said why


class Server(uvicorn.Server):
    """uvicorn, which tells the runtime before it waits for what is under way.

    Pages that follow the server, jobs and whatever else takes minutes end at once. Answers and
    lessons have `PATIENCE_S` to come to their end, and are told `Stopped` then.
    """

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime
        self.at_end: Callable[[], None] = lambda: None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends, before the signal that asked for it ends the process."""
        self._runtime.closing.set()
        self._runtime.jobs.halt()
        patience = asyncio.get_running_loop().call_later(PATIENCE_S, self._runtime.stop)
        await super().shutdown(sockets)
        patience.cancel()
        if self.force_exit:  # asked twice: nobody waits for anything
            self._runtime.stop()
        await asyncio.to_thread(self.at_end)

    def stop(self) -> None:
        """Begins to stop, without a signal."""
        self.should_exit = True


def describe(runtime: Runtime) -> list[str]:
    """Returns what a person who starts a server should know, a line each."""
    config = runtime.config
    lines = [f"{runtime.base.name}, revision {runtime.revision}, at {config.address}"]
    if runtime.policy is None:
        lines.append(
            "no signed policy: this state learns, but nothing can be proposed or merged; "
            f"stop and run `cambium init --state {config.state}`"
        )
    else:
        lines.append(
            f"policy {runtime.policy.digest} ({runtime.policy.profile}), "
            f"attestation {runtime.identity.attestation_label}"
        )
        if left := " and ".join(runtime.rules.left_to_the_server):
            lines.append(
                f"the policy names no {left}: "
                + (
                    "in production nothing can be merged or rolled back until one does"
                    if runtime.policy.profile == "production"
                    else "the server's own key is both the gates' and the attestation's"
                )
            )
    return lines
