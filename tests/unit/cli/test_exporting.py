from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from starlette.responses import Response


def archive(**files: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as found:
        for name, content in files.items():
            found.writestr(name.replace("__", "."), content)
    return written.getvalue()


PLAIN = {"adapter_config__json": b"{}", "adapter_model__safetensors": b"w"}


def sends(stage, data: bytes, status: int = 200) -> None:
    stage.answers["GET /adapters/a/export"] = lambda _: (status, Response(data, status))


def test_a_folder_is_written(cambium, stage, tmp_path: Path) -> None:
    sends(stage, archive(**PLAIN))
    ended = cambium("export", "a", "--out", tmp_path / "new" / "folder")
    assert ended.status == 0, ended.err
    names = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    assert cambium("export", "a", "--out", tmp_path / "new" / "folder").status == 2


def test_a_signed_one_comes_with_the_key_beside_it(cambium, stage, tmp_path: Path) -> None:
    sends(stage, archive(**PLAIN, model__sig=b"{}"))
    stage.answers["GET /model-signing-key"] = (200, {"pem": "-----BEGIN PUBLIC KEY-----\n"})
    ended = cambium("export", "a", "--out", tmp_path / "f")
    assert (ended.status, "model_signing verify key" in ended.out) == (0, True)
    assert (tmp_path / "f.pub").read_text().startswith("-----BEGIN PUBLIC KEY")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no archive",
        archive(adapter_config__json=b"{}"),
        archive(**PLAIN, evil__py=b"import os"),
        archive(**PLAIN, **{"../evil": b"x"}),
    ],
)
def test_whatever_else_a_server_sends_is_refused(cambium, stage, tmp_path: Path, data) -> None:
    sends(stage, data)
    assert cambium("export", "a", "--out", tmp_path / "f").status == 3
    assert not (tmp_path / "f").exists()


def test_what_is_not_there_is_said(cambium, stage, tmp_path: Path) -> None:
    assert cambium("export", "b", "--out", tmp_path / "f").status == 2


DOMAIN = {f"d%20e/{n}": b"x" for n in ("adapter_config__json", "adapter_model__safetensors",
                                       "router__safetensors")}  # fmt: skip
WHOLE = {"revision__json": b"{}", "model__sig": b"{}", **DOMAIN}


def test_a_revision_is_written_with_a_folder_for_each_domain(
    cambium, stage, tmp_path: Path
) -> None:
    stage.answers["GET /revisions/7/export"] = lambda _: (200, Response(archive(**WHOLE), 200))
    stage.answers["GET /model-signing-key"] = (200, {"pem": "-----BEGIN PUBLIC KEY-----\n"})
    ended = cambium("export", "revision/7", "--out", tmp_path / "f")
    assert ended.status == 0, ended.err
    assert (tmp_path / "f" / "d%20e" / "router.safetensors").read_bytes() == b"x"


@pytest.mark.parametrize(
    "files",
    [
        PLAIN,
        {name: data for name, data in WHOLE.items() if name != "model__sig"},
        {**WHOLE, "../x/adapter_config__json": b"x"},
        {**WHOLE, "d%20e/evil__py": b"x"},
        {**WHOLE, "a/b/router__safetensors": b"x"},
    ],
)
def test_no_other_folder_is_taken_for_a_revision(cambium, stage, tmp_path: Path, files) -> None:
    stage.answers["GET /revisions/7/export"] = lambda _: (200, Response(archive(**files), 200))
    assert cambium("export", "revision/7", "--out", tmp_path / "f").status == 3
    assert not (tmp_path / "f").exists()
