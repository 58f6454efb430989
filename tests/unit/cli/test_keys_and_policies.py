from __future__ import annotations

import json
from pathlib import Path

import pytest

from cambium.cli.keys import read_public_key
from cambium.cli.policies import read_signed_policy
from cambium.core.errors import ConfigError
from cambium.lifecycle.policy_change import hand_over_target
from cambium.serve.bootstrap import render_policy
from cambium.serve.store.key_files import load_key, save_key
from cambium.trust.keys import PublicKey, generate_key
from cambium.trust.policy import parse_policy, verify_policy
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
    assert verify_policy(read_signed_policy(policy), root.public_key).approvers.k == 2


def test_an_invalid_policy_is_not_signed(cambium, policy: Path, tmp_path: Path) -> None:
    save_key(generate_key(), tmp_path / "root.key")
    policy.write_text(policy.read_text().replace("k = 2", "k = 9", 1))
    ended = cambium("policy", "sign", policy, "--key", tmp_path / "root.key")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert not Path(f"{policy}.sig").exists()


def test_a_new_key_is_made_known(cambium, stage, tmp_path: Path) -> None:
    cambium("key", "new", tmp_path / "me.key")
    stage.answers["POST /keys"] = (201, {"key_id": "ed25519:1", "role": "enrolled"})
    assert cambium("key", "enroll", tmp_path / "me.key.pub", "--name", "ann").status == 0
    public = read_public_key(tmp_path / "me.key.pub").raw
    assert stage.sent("POST /keys") == [{"name": "ann", "public": public}]
    assert cambium("key", "enroll", tmp_path / "none.pub", "--name", "ann").status == 2


def in_force(policy: Path) -> dict[str, object]:
    found = parse_policy(policy.read_bytes())
    return {
        **found.content,
        "signed": True,
        "policy_digest": found.digest,
        "state_version": 7,
        "toml": policy.read_text(),
    }


def test_a_diff_says_what_widens_and_who_must_sign(cambium, stage, policy, tmp_path) -> None:
    stage.answers["GET /policy"] = (200, in_force(policy))
    other = tmp_path / "new.toml"
    other.write_text(policy.read_text().replace("max_rank = 16", "max_rank = 64"))
    shown = cambium("policy", "diff", other, "--json").json
    assert shown["widens"] == ["learning.max_rank: 16 -> 64"]
    assert (shown["needs"], shown["state_version"]) == ("the root, and 2 approvers", 7)
    out = cambium("policy", "diff", other).out
    assert "-max_rank = 16" in out and "+max_rank = 64" in out
    other.write_text(policy.read_text().replace("max_rank = 16", "max_rank = 8"))
    shown = cambium("policy", "diff", other, "--json").json
    assert (shown["widens"], shown["needs"]) == ([], "the root")
    evaluator = generate_key().public_key.raw
    named = tmp_path / "named.toml"
    named.write_text(
        policy.read_text()
        + f'\n[evaluators]\nk = 1\nlist = [{{ name = "e", public = "{evaluator}", expires = 0 }}]\n'
    )
    stage.answers["GET /policy"] = (200, in_force(named))
    shown = cambium("policy", "diff", policy, "--json").json  # the server's key would evaluate
    assert shown["widens"] == ["evaluators.k: 1 -> not there"]
    stage.answers["GET /policy"] = (200, {"signed": False})
    assert cambium("policy", "diff", other).status == 1


def test_a_policy_is_signed_for_the_running_state_and_put(cambium, stage, policy, tmp_path) -> None:
    root, approver = generate_key(), generate_key()
    save_key(root, tmp_path / "root.key")
    save_key(approver, tmp_path / "a.key")
    signed = cambium("policy", "sign", policy, "--key", tmp_path / "root.key",
                     "--state-version", 7)  # fmt: skip
    assert signed.status == 0
    stage.answers["GET /kill"] = (200, {"state_version": 7, "policy_digest": "sha256:" + "a" * 64})
    stage.answers["POST /policy"] = (200, {"digest": "sha256:b", "widens": []})
    assert cambium("policy", "put", policy, "--key", tmp_path / "a.key").status == 0
    (sent,) = stage.sent("POST /policy")
    assert sent["toml"].encode() == policy.read_bytes()
    assert sent["signature"]["payload"]["state_version"] == 7
    (widen,) = sent["signatures"]
    assert widen["key_id"] == approver.key_id
    assert widen["payload"]["action"] == "widen_scope"
    assert widen["payload"]["target"] == sent["signature"]["payload"]["target"]
    assert cambium("policy", "put", policy).status == 0
    assert stage.sent("POST /policy")[1]["signatures"] == []


def test_the_root_in_office_signs_that_another_follows(cambium, stage, policy, tmp_path) -> None:
    for name in ("old", "new"):
        assert cambium("key", "new", tmp_path / name).status == 0
    assert cambium("policy", "sign", policy, "--key", tmp_path / "new").status == 0
    standing = {"state_version": 7, "policy_digest": "sha256:" + "a" * 64}
    stage.answers["GET /kill"] = (200, standing)
    stage.answers["POST /policy"] = (200, {"digest": "sha256:b"})
    new, old = ("--root", tmp_path / "new.pub"), ("--from", tmp_path / "old")
    for half in (new, old):
        assert cambium("policy", "put", policy, *half).status == 2
    assert stage.sent("POST /policy") == []
    assert cambium("policy", "put", policy, *new, *old).status == 0
    (sent,) = stage.sent("POST /policy")
    public = PublicKey(raw=sent["root"])
    assert sent["signature"]["key_id"] == public.key_id
    (handed,) = sent["signatures"]
    payload = handed["payload"]
    assert handed["key_id"] == load_key(tmp_path / "old").key_id
    assert payload["action"] == "policy" and payload["state_version"] == 7
    assert payload["target"] == hand_over_target(policy.read_bytes(), public)


def test_a_new_key_can_be_encrypted(cambium, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("CAMBIUM_PASSPHRASE", raising=False)
    ended = cambium("key", "new", tmp_path / "a.key", "--encrypt")
    assert (ended.status, "CAMBIUM_PASSPHRASE" in ended.err) == (2, True)
    assert not (tmp_path / "a.key").exists()
    monkeypatch.setenv("CAMBIUM_PASSPHRASE", "correct horse")
    assert cambium("key", "new", tmp_path / "a.key", "--encrypt").status == 0
    assert b"ENCRYPTED" in (tmp_path / "a.key").read_bytes()
    policy = tmp_path / "rules.toml"
    person = Approver(name="p", public=generate_key().public_key)
    policy.write_bytes(render_policy(approvers=[person], k=1, rollback_k=1))
    assert cambium("policy", "sign", policy, "--key", tmp_path / "a.key").status == 0
    monkeypatch.delenv("CAMBIUM_PASSPHRASE")
    assert cambium("policy", "sign", policy, "--key", tmp_path / "a.key").status == 2


def test_a_ceremony_leaves_shares_a_record_and_the_policys_table(cambium, tmp_path: Path) -> None:
    out = tmp_path / "group"
    ended = cambium("key", "ceremony", "--k", 2, "--n", 3, "--out", out)
    assert ended.status == 0, ended.err
    record = json.loads((out / "ceremony.json").read_text())
    keys = [load_key(out / f"share-{i}.key") for i in (1, 2, 3)]
    assert [s["public"] for s in record["shares"]] == [k.public_key.raw for k in keys]
    secrets = {k.private.secret.hex() for k in keys}
    assert not any(secret in ended.out + json.dumps(record) for secret in secrets)
    text = render_policy(approvers=[Approver(name="p", public=generate_key().public_key)],
                         k=1, rollback_k=2).decode()  # fmt: skip
    start, end = text.index("[approvers]"), text.index("# A rollback needs")
    policy = parse_policy((text[:start] + ended.out + "\n" + text[end:]).encode())
    assert (policy.approvers.k, policy.approvers.group) == (2, record["group"])
    assert [a.public for a in policy.approvers.list] == [k.public_key for k in keys]
    assert cambium("key", "ceremony", "--k", 2, "--n", 3, "--out", out).status == 2
    assert cambium("key", "ceremony", "--k", 4, "--n", 3, "--out", tmp_path / "no").status != 0
    assert not (tmp_path / "no").exists()
