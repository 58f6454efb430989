from __future__ import annotations

from pathlib import Path

import pytest

from cambium.cli.keys import read_public_key
from cambium.cli.policies import read_signed_policy
from cambium.core.errors import ConfigError
from cambium.serve.bootstrap import render_policy
from cambium.serve.store.key_files import load_key, save_key
from cambium.trust.keys import generate_key
from cambium.trust.policy import verify_policy
from cambium.trust.quorum import Approver


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    people = [Approver(name=f"p{i}", public=generate_key().public_key) for i in range(2)]
    file = tmp_path / "rules.toml"
    file.write_bytes(render_policy(approvers=people))
    return file


def test_a_new_key_is_a_pair_of_files(cambium, tmp_path: Path) -> None:
    file = tmp_path / "me.key"
    shown = cambium("key", "new", file, "--json").json
    assert load_key(file).key_id == shown["key_id"]
    assert read_public_key(tmp_path / "me.key.pub").raw == shown["public"]
    assert file.stat().st_mode & 0o077 == 0


def test_a_key_is_never_overwritten_nor_half_made(cambium, tmp_path: Path) -> None:
    file = tmp_path / "me.key"
    cambium("key", "new", file)
    before = file.read_bytes()
    assert cambium("key", "new", file).status == 2
    assert file.read_bytes() == before
    (tmp_path / "other.key.pub").write_text("taken")
    assert cambium("key", "new", tmp_path / "other.key").status == 2
    assert not (tmp_path / "other.key").exists()


def test_what_is_no_public_key_is_refused(tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"00" * 32, b"\xff", b"Z" * 64)):
        file = tmp_path / f"{number}.pub"
        file.write_bytes(content)
        with pytest.raises(ConfigError, match="no public key"):
            read_public_key(file)


def test_keys_and_policy_are_shown(cambium, stage) -> None:
    stage.answers["GET /keys"] = (200, {"keys": [{"name": "approver-1", "role": "approver"}]})
    answer = {"digest": "sha256:" + "a" * 64, "toml": "k = 2  # [bold]two[/]\n", "learning": {}}
    stage.answers["GET /policy"] = (200, answer)
    assert "approver-1" in cambium("key", "list").out
    assert "# [bold]two[/]" in cambium("policy", "show").out
    assert cambium("policy", "show", "--json").json == answer


def test_a_signed_policy_verifies_under_the_root(cambium, policy: Path, tmp_path: Path) -> None:
    root = generate_key()
    save_key(root, tmp_path / "root.key")
    assert cambium("policy", "sign", policy, "--key", tmp_path / "root.key").status == 0
    assert verify_policy(read_signed_policy(policy), root.public_key).k == 2


def test_an_invalid_policy_is_not_signed(cambium, policy: Path, tmp_path: Path) -> None:
    save_key(generate_key(), tmp_path / "root.key")
    policy.write_text(policy.read_text().replace("k = 2", "k = 9", 1))
    ended = cambium("policy", "sign", policy, "--key", tmp_path / "root.key")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert not Path(f"{policy}.sig").exists()
