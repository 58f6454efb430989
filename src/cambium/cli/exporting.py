"""`cambium export`: an adapter as a folder that PEFT loads."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Annotated

import typer

from cambium.cli.client import connect, segment
from cambium.cli.failures import BROKEN, CommandFailed
from cambium.cli.options import State
from cambium.cli.output import print_line
from cambium.core.errors import ConfigError

_EXPECTED = {"adapter_config.json", "adapter_model.safetensors"}
_SIGNATURE = "model.sig"
MAX_BYTES = 8 * 2**30


def export(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="NAME or NAME@DIGEST.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    state: State = None,
) -> None:
    """Write an adapter as a PEFT folder; a merged one with a signature that others verify."""
    with connect(state) as client:
        data = client.download(f"/adapters/{segment(adapter)}/export")
        files = adapter_files(data)
        signed = _SIGNATURE in files
        pem = client.get("/model-signing-key")["pem"] if signed else None
    try:
        out.mkdir(parents=True)
        for name, content in files.items():
            (out / name).write_bytes(content)
        if pem is not None:
            # Beside the folder: inside, it would be a file that nobody signed.
            Path(f"{out}.pub").write_text(str(pem), encoding="ascii")
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}",
                          mend="name a folder that is not there") from error  # fmt: skip
    print_line(f"{out}: {', '.join(sorted(files))}")
    if signed:
        print_line(f"verify: model_signing verify key {out} --signature {out / _SIGNATURE} "
                   f"--public_key {out}.pub")  # fmt: skip


def adapter_files(data: bytes) -> dict[str, bytes]:
    """Returns the archive's files; whatever else it holds is refused."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            fine = set(sizes) - {_SIGNATURE} == _EXPECTED and sum(sizes.values()) < MAX_BYTES
            found = {name: archive.read(name) for name in sizes} if fine else {}
    except (zipfile.BadZipFile, OSError, ValueError):
        found = {}
    if not found:
        raise CommandFailed("the server sent no adapter: use a server of this version",
                            status=BROKEN)  # fmt: skip
    return found
