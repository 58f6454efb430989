"""Linux' way to a confidential machine's processor, `configfs-tsm`; no machine here has one."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cambium.core.errors import AttestationRefused

TSM_REPORTS = Path("/sys/kernel/config/tsm/report")


def tsm_report(data: bytes, folder: Path) -> bytes:
    """Returns what the processor signs over 64 bytes of ours: a report, or a quote.

    Raises:
        AttestationRefused: the machine has no such processor, or it said no.
    """
    try:
        entry = Path(tempfile.mkdtemp(prefix="cambium-", dir=folder))
        try:
            (entry / "inblob").write_bytes(data)
            return (entry / "outblob").read_bytes()
        finally:
            entry.rmdir()
    except OSError as error:
        raise AttestationRefused(
            f"attestation refused: no report from the processor: {error.strerror}",
            mend="run on a machine that the references accept",
        ) from error
