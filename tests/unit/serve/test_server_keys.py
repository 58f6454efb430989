"""What a server signs with lies encrypted where its environment has a passphrase."""

from __future__ import annotations

from pathlib import Path

import pytest

from cambium.core.errors import ConfigError
from cambium.serve.identity import SERVER_KEY, server_identity
from cambium.serve.model_signing import KEY_FILE, ModelSigner
from cambium.serve.store.key_files import PASSPHRASE, SERVER_PASSPHRASE
from cambium.serve.store.state import State


@pytest.fixture(autouse=True)
def nobodys_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (PASSPHRASE, SERVER_PASSPHRASE):
        monkeypatch.delenv(name, raising=False)


def key_id(folder: Path) -> str:
    with State.open(folder) as state:
        return server_identity(folder, state).key.key_id


@pytest.mark.parametrize("was_open", [True, False], ids=["open before", "from the start"])
def test_the_servers_keys_are_encrypted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was_open: bool
) -> None:
    before = (key_id(tmp_path), ModelSigner(tmp_path).public_pem()) if was_open else None
    monkeypatch.setenv(SERVER_PASSPHRASE, "of the operator")
    found = key_id(tmp_path), ModelSigner(tmp_path).public_pem()
    assert before in (None, found)
    for name in (SERVER_KEY, KEY_FILE):
        assert b"ENCRYPTED" in (tmp_path / name).read_bytes()[:64]
    assert (key_id(tmp_path), ModelSigner(tmp_path).public_pem()) == found


def test_an_open_key_is_encrypted_before_anybody_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ModelSigner(tmp_path).public_pem()
    monkeypatch.setenv(SERVER_PASSPHRASE, "of the operator")
    ModelSigner(tmp_path)
    assert b"ENCRYPTED" in (tmp_path / KEY_FILE).read_bytes()[:64]


def test_without_the_passphrase_nothing_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SERVER_PASSPHRASE, "of the operator")
    key_id(tmp_path)
    ModelSigner(tmp_path).public_pem()
    for given, why in (("", "is encrypted"), ("another", "does not open")):
        monkeypatch.setenv(SERVER_PASSPHRASE, given)
        with pytest.raises(ConfigError, match=why) as caught:
            key_id(tmp_path)
        assert caught.value.mend == f"set {SERVER_PASSPHRASE}"
        with pytest.raises(ConfigError, match=why):
            ModelSigner(tmp_path).public_pem()
