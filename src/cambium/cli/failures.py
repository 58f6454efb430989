"""How a command ends: the exit status and the one line of every failure.

0 done; 1 the answer is no; 2 the call was wrong; 3 something broke; 130 interrupted.
"""

from __future__ import annotations

import json
import traceback
from pathlib import Path

from cambium.core import errors
from cambium.core.errors import CambiumError
from cambium.serve.errors import NotFound, PolicyMissing, StateLocked

NO = 1
WRONG_CALL = 2
BROKEN = 3
INTERRUPTED = 130

# Errors met on this side of HTTP, most derived first; what is not listed is `BROKEN`.
_LOCAL: tuple[tuple[type[CambiumError], int], ...] = (
    (PolicyMissing, WRONG_CALL),
    (errors.PolicyInvalid, WRONG_CALL),
    (errors.TrustError, NO),
    (errors.ConfigError, WRONG_CALL),
    (errors.DataError, WRONG_CALL),
    (NotFound, WRONG_CALL),
    (StateLocked, WRONG_CALL),
)


class CommandFailed(Exception):
    """A command's failure, ready to be shown: one line and an exit status other than 0.

    `code` is the stable code of the server's error, empty where no server spoke.
    """

    def __init__(self, line: str, *, status: int, code: str = "") -> None:
        super().__init__(line)
        self.line = one_line(line)
        self.status = status
        self.code = code


def failure(error: BaseException) -> CommandFailed:
    """Returns what to show for any error; an unforeseen one names its place, not its trace."""
    if isinstance(error, CommandFailed):
        return error
    if isinstance(error, CambiumError):
        status = next((s for kind, s in _LOCAL if isinstance(error, kind)), BROKEN)
        return CommandFailed(error.one_line(), status=status)
    if isinstance(error, KeyboardInterrupt):
        return CommandFailed("interrupted", status=INTERRUPTED)
    if isinstance(error, OSError) and error.strerror:
        named = f" ({error.filename})" if error.filename else ""
        return CommandFailed(f"the system refused: {error.strerror}{named}", status=BROKEN)
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown place"
    what = f"internal error: {type(error).__name__} at {place}: {error}"
    return CommandFailed(f"{what}: please report this line", status=BROKEN)


def from_problem(status: int, problem: dict[str, object]) -> CommandFailed:
    """Returns the failure that a problem details answer (RFC 9457) stands for."""
    why = problem.get("detail") or problem.get("title")
    parts = [why if isinstance(why, str) else json.dumps(why)] if why else []
    blockers = problem.get("blockers")
    if isinstance(blockers, list):
        parts += ["; ".join(str(b) for b in blockers if str(b) not in "".join(parts))]
    parts = [part.rstrip(".: ") for part in (*parts, str(problem.get("mend") or "")) if part]
    line = ": ".join(parts) or f"the server answered {status} without saying why"
    code = str(problem.get("code") or "")
    return CommandFailed(line, status=status_of_http(status), code=code)


def status_of_http(status: int) -> int:
    """Returns the exit status for an HTTP status of 300 or more."""
    if status in (403, 409):
        return NO
    return WRONG_CALL if 400 <= status < 500 else BROKEN


def one_line(text: str) -> str:
    """Returns `text` on one line, with nothing in it that a terminal would act on."""
    return visible(" ".join(text.split()))


def visible(text: str) -> str:
    """Returns `text` with each control character replaced; what a server says is not trusted."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
