"""Adapters leave as PEFT folders, and what was merged is verified by the `model_signing` tool."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.serving import FACTS, TREES, People, Server, served, small_config
from transformers import AutoModelForCausalLM

from cambium.core.canonical import canonical_json, digest_json
from cambium.models.adapter_bytes import AdapterBytes
from cambium.models.lora import concatenated
from cambium.serve.export import folder_of
from cambium.trust.keys import PublicKey

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
FILES = {"adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    people, state = People(), tmp_path_factory.mktemp("state")
    people.init(state)
    with served(small_config(state, model=str(base)), people) as found:
        found.merged("trees", "trees", TREES)
        yield found


def stable(server: Server) -> str:
    head = server.get("/revisions")["revisions"][-1]["bank"]["trees"]
    return f"{head['adapter']}@{head['digest']}"


def export(server: Server, name: str) -> dict[str, bytes]:
    answer = server.http.get(f"/adapters/{name}/export")
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def folder(server: Server, tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name, content in export(server, stable(server)).items():
        (folder / name).write_bytes(content)
    (tmp_path / "key.pub").write_text(server.get("/model-signing-key")["pem"])
    return folder


def verified(folder: Path) -> bool:
    """Asks the tool as its users would."""
    code = "from model_signing._cli import main; main()"
    command = [sys.executable, "-W", "ignore", "-c", code, "verify", "key", str(folder),
               "--signature", str(folder / "model.sig"),
               "--public_key", str(folder.parent / "key.pub")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Verification" in done.stdout + done.stderr, done.stderr
    return done.returncode == 0


def test_a_merged_adapter_is_verified_by_the_tool(server: Server, folder: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(files) == {*FILES, "model.sig"}
    data = AdapterBytes(
        config=files["adapter_config.json"], weights=files["adapter_model.safetensors"]
    )
    assert data.digest == stable(server).partition("@")[2]
    assert verified(folder)


@pytest.mark.parametrize("change", ["flip", "config", "missing", "extra", "renamed", "signature"])
def test_the_tool_finds_every_change(folder: Path, change: str) -> None:
    weights = folder / "adapter_model.safetensors"
    match change:
        case "flip":
            data = bytearray(weights.read_bytes())
            data[-1] ^= 1
            weights.write_bytes(bytes(data))
        case "config":
            config = folder / "adapter_config.json"
            config.write_bytes(config.read_bytes().replace(b"0.0", b"0.1"))
        case "missing":
            weights.unlink()
        case "extra":
            (folder / "more.py").write_text("import os")
        case "renamed":
            weights.rename(folder / "adapter_model.bin")
        case _:
            bundle = folder / "model.sig"
            bundle.write_text(bundle.read_text().replace('"sig": "M', '"sig": "N', 1))
    assert not verified(folder)


def test_the_servers_key_vouches_for_the_other(server: Server) -> None:
    found = server.get("/model-signing-key")
    (row,) = [k for k in server.get("/keys")["keys"] if k["role"] == "server"]
    assert found["key_id"] == row["key_id"] and found["payload"]["pem"] == found["pem"]
    public = PublicKey(raw=row["public"])
    assert public.verify(canonical_json(found["payload"]), found["signature"])
    assert server.get("/model-signing-key")["pem"] == found["pem"]
    key = server.runtime.config.state / "model-signing.key"
    assert key.stat().st_mode & 0o077 == 0


def test_what_nobody_approved_is_not_signed(server: Server) -> None:
    server.create("plain")
    server.teach("plain", FACTS[:3])
    assert set(export(server, "plain")) == FILES


def test_a_live_adapter_leaves_with_its_parent(server: Server, base: Path, tmp_path: Path) -> None:
    server.create("pupil", domain="trees")
    server.teach("pupil", FACTS[:4])
    for name, content in export(server, "pupil").items():
        (tmp_path / name).write_bytes(content)
    live = server.runtime.adapters.get_live("pupil")
    assert len(live.parent) == 1
    whole = concatenated([*live.parent, live.lora])
    from peft import PeftModel

    prompt = torch.tensor([server.runtime.base.tokenizer.encode("Fact 7: the tree")])
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(plain, tmp_path)
    with torch.no_grad():
        theirs = loaded(prompt).logits
    ours = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for path in whole.a:
            weight = ours.get_submodule(path).weight
            for part in (*live.parent, live.lora):
                weight += part.config.scaling * part.b[path] @ part.a[path]
        expected = ours(prompt).logits
    assert torch.allclose(theirs, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["nobody", f"trees@sha256:{'0' * 64}", "globex:trees"])
def test_what_is_not_there_is_not_exported(server: Server, name: str) -> None:
    assert server.http.get(f"/adapters/{name}/export").status_code == 404


def test_a_revision_leaves_as_one_folder_that_the_tool_verifies(
    server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "revision"
    answer = server.http.get("/revisions/2/export")
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(folder)
    (tmp_path / "key.pub").write_text(server.get("/model-signing-key")["pem"])
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    parts = {f"trees/{name}" for name in (*FILES, "router.safetensors")}
    assert files == {"revision.json", "model.sig", *parts}
    assert verified(folder)
    found = json.loads((folder / "revision.json").read_bytes())
    row = server.get("/revisions")["revisions"][1]
    assert digest_json(found["manifest"]) == row["digest"]
    public = PublicKey(raw=found["public"])
    assert public.verify(canonical_json(found["manifest"]), found["signature"]["signature"])
    data = AdapterBytes(
        config=(folder / "trees/adapter_config.json").read_bytes(),
        weights=(folder / "trees/adapter_model.safetensors").read_bytes(),
    )
    assert data.digest == found["manifest"]["bank"]["trees"]["digest"]
    # A part moved to another domain, or the manifest of another revision.
    (folder / "trees").rename(folder / "port")
    assert not verified(folder)
    (folder / "port").rename(folder / "trees")
    assert verified(folder)
    (folder / "revision.json").write_bytes(canonical_json(found | {"public": "0" * 64}))
    assert not verified(folder)


def test_the_bare_base_is_a_signed_manifest_and_what_is_not_there_is_404(server: Server) -> None:
    answer = server.http.get("/revisions/1/export")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert set(archive.namelist()) == {"revision.json", "model.sig"}
    assert server.http.get("/revisions/99/export").json()["code"] == "revision_not_found"
    for number in ("x", str(2**63), "-1"):
        assert server.http.get(f"/revisions/{number}/export").status_code == 400


@pytest.mark.parametrize("domain", ["..", "a/b", "a\\b", "ünı", ".git", "C:"])
def test_no_domain_names_a_place_outside_its_folder(domain: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_~%-]+", folder_of(domain))
