"""How a server is set up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cambium.core.errors import ConfigError

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """One server.

    Args:
        state: the folder of everything that lasts.
        model: a folder or hub id; None for the bundled base.
        db: a SQLAlchemy URL; None for SQLite inside `state`.
        policy: a signed policy that must be the one in force; None takes the state's.
        num_rows: answers generated at the same time.
        max_body_bytes: larger requests are refused unread.
        num_replay_anchors, num_retention_anchors: texts the parent writes for consolidation and
            for the retention gate; `anchor_tokens` long each.
        num_diff_prompts: of the bank, for the behavioural diff of a proposal; 0 computes none.
        measure_drift: after each merge, in the background.
        in_process: requests come from this very process, whose user holds the state's files and
            needs no token. Never with a socket.
        log: `text` or `json`.
        keep_traces_days: after which what stood behind an answer is deleted; None keeps it.
        num_threads: that a pass runs on; None for torch's own choice.
    """

    state: Path
    model: str | None = None
    db: str | None = None
    host: str = "127.0.0.1"
    port: int = 8321
    policy: Path | None = None
    num_rows: int = 16
    max_body_bytes: int = 32 * 1024 * 1024
    num_replay_anchors: int = 40
    num_retention_anchors: int = 80
    anchor_tokens: int = 192
    num_diff_prompts: int = 150
    measure_drift: bool = True
    log: str = "text"
    keep_traces_days: int | None = None
    num_threads: int | None = None
    in_process: bool = False

    @property
    def address(self) -> str:
        """Returns where this server can be asked; nothing for one without a socket."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return "" if self.in_process else f"http://{host}:{self.port}"

    def check(self, *, has_tokens: bool) -> None:
        """Refuses to listen beyond this machine without tokens to tell callers apart.

        Raises:
            ConfigError: `host` is not a loopback address.
        """
        if self.host not in LOOPBACK and not has_tokens:
            raise ConfigError(
                f"host {self.host!r} is not a loopback address, and this state has no tokens",
                mend="bind to 127.0.0.1, or make a token with `cambium token new --state DIR`",
            )
