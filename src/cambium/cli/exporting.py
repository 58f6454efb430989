"""`cambium export`: an adapter as a folder that PEFT loads, or a revision made of such folders."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cambium.cli.client import connect, segment
from cambium.cli.failures import BROKEN, CommandFailed
from cambium.cli.options import State
from cambium.cli.output import print_line
from cambium.core.errors import ConfigError

_ADAPTER = frozenset({"adapter_config.json", "adapter_model.safetensors"})
_DOMAIN = frozenset({*_ADAPTER, "router.safetensors"})
_SIGNATURE = "model.sig"
_MANIFEST = "revision.json"
# A domain's name as one of a folder: no slash, no dot.
_FOLDER = re.compile(r"[A-Za-z0-9_~%-]+")
_REVISION = re.compile(r"revision/(\d{1,18})")
MAX_BYTES = 8 * 2**30


def export(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="NAME, NAME@DIGEST or revision/N.")
    ],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    state: State = None,
) -> None:
    """Write an adapter as a PEFT folder, or a revision; what was merged with a signature."""
    revision = _REVISION.fullmatch(adapter)
    path = f"revisions/{revision[1]}" if revision else f"adapters/{segment(adapter)}"
    with connect(state) as client:
        data = client.download(f"/{path}/export")
        files = _files(data, _is_revision) if revision else adapter_files(data)
        signed = _SIGNATURE in files
        pem = client.get("/model-signing-key")["pem"] if signed else None
    try:
        out.mkdir(parents=True)
        for name, content in files.items():
            (out / name).parent.mkdir(exist_ok=True)
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
    """Returns an adapter's files by name, out of what the server sent; nothing else is taken."""
    return _files(data, _is_adapter)


def _files(data: bytes, is_expected: Callable[[set[str]], bool]) -> dict[str, bytes]:
    """Returns the archive's files; whatever else it holds is refused."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            fine = is_expected(set(sizes)) and sum(sizes.values()) < MAX_BYTES
            found = {name: archive.read(name) for name in sizes} if fine else {}
    except (zipfile.BadZipFile, OSError, ValueError):
        found = {}
    if not found:
        raise CommandFailed("the server sent nothing of the kind: use a server of this version",
                            status=BROKEN)  # fmt: skip
    return found


def _is_adapter(names: set[str]) -> bool:
    return names - {_SIGNATURE} == _ADAPTER


def _is_revision(names: set[str]) -> bool:
    folders: dict[str, set[str]] = {}
    for name in names - {_SIGNATURE, _MANIFEST}:
        folder, _, file = name.partition("/")
        folders.setdefault(folder, set()).add(file)
    whole = all(_FOLDER.fullmatch(f) and found == _DOMAIN for f, found in folders.items())
    return {_SIGNATURE, _MANIFEST} <= names and whole
