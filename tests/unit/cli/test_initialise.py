"""The first policy of a state: all of it or nothing, against the real store."""

from __future__ import annotations

from pathlib import Path

import pytest

from cambium.serve.store.key_files import load_key
from cambium.serve.store.state import State
from cambium.trust.keys import generate_key
from cambium.trust.policy import parse_policy

FILES = ["approver-1.key", "approver-2.key", "approver-3.key", "attester.key", "evaluator.key",
         "operator.key", "root.key"]  # fmt: skip


def policy_of(folder: Path):
    with State.open(folder) as state, state.read() as tx:
        return tx.active_policy()


def production(text: str) -> str:
    text = text.replace('profile = "development"', 'profile = "production"')
    return text.replace('accept = ["software-dev"]', "accept = []")


def test_development_makes_keys_and_a_policy_of_two_of_three(cambium, tmp_path: Path) -> None:
    state = tmp_path / "new" / "state"
    ended = cambium("init", "--state", state)
    assert (ended.status, ended.err) == (0, "")
    assert "software-dev" in ended.out
    assert sorted(p.name for p in (state / "keys").iterdir()) == FILES
    assert all(p.stat().st_mode & 0o077 == 0 for p in (state / "keys").iterdir())
    policy = parse_policy((state / "policy.toml").read_bytes())
    assert (policy.approvers.k, policy.rollback.k, policy.profile) == (2, 2, "development")
    ids = {load_key(state / "keys" / f"approver-{i}.key").key_id for i in (1, 2, 3)}
    assert {a.key_id for a in policy.approvers.list} == ids
    assert policy_of(state).digest == policy.digest
    for role, listed in (("evaluator", policy.evaluators), ("attester", policy.attesters)):
        (person,) = listed.list
        assert (listed.k, person.key_id) == (1, load_key(state / "keys" / f"{role}.key").key_id)


def test_the_servers_roles_are_encrypted_as_its_own_key_is(
    cambium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAMBIUM_SERVER_PASSPHRASE", "of the operator")
    assert cambium("init", "--state", tmp_path).status == 0
    locked = {p.name for p in (tmp_path / "keys").iterdir() if b"ENCRYPTED" in p.read_bytes()}
    assert locked == {"evaluator.key", "attester.key"}


def test_another_state_under_an_edited_policy_gets_the_keys_of_its_servers_roles(
    cambium, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert cambium("init", "--state", first).status == 0
    edited = tmp_path / "edited.toml"
    text = (first / "policy.toml").read_text()
    edited.write_text(text.replace("max_rank = 16", "max_rank = 8"))
    ended = cambium("init", "--state", second, "--policy", edited,
                    "--key", first / "keys" / "root.key")  # fmt: skip
    assert ended.status == 0 and "taken along" in ended.out
    names = sorted(p.name for p in (second / "keys").iterdir())
    assert names == ["attester.key", "evaluator.key"]
    for name in names:
        assert (second / "keys" / name).read_bytes() == (first / "keys" / name).read_bytes()
    # Nobody's keys go where the policy does not list them.
    third, bare = tmp_path / "third", tmp_path / "bare.toml"
    head, _, rest = text.partition("[evaluators]")
    bare.write_text(head + rest[rest.index("[domains]") :])
    assert cambium("init", "--state", third, "--policy", bare,
                   "--key", first / "keys" / "root.key").status == 0  # fmt: skip
    assert not (third / "keys").exists()


def test_an_initialised_state_is_left_alone(cambium, tmp_path: Path) -> None:
    cambium("init", "--state", tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.key")}
    digest = policy_of(tmp_path).digest
    ended = cambium("init", "--state", tmp_path)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.key")} == before
    assert policy_of(tmp_path).digest == digest


def test_a_state_whose_keys_are_elsewhere_gets_no_second_set(cambium, tmp_path: Path) -> None:
    cambium("init", "--state", tmp_path)
    for file in [*(tmp_path / "keys").iterdir(), tmp_path / "policy.toml"]:
        file.unlink()
    (tmp_path / "keys").rmdir()
    assert cambium("init", "--state", tmp_path).status == 2
    assert not (tmp_path / "keys").exists()
    assert not (tmp_path / "policy.toml").exists()


def test_a_state_in_use_is_left_alone(cambium, tmp_path: Path) -> None:
    with State.open(tmp_path):
        ended = cambium("init", "--state", tmp_path)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert not (tmp_path / "keys").exists()


def test_a_folder_that_cannot_be_made_is_one_line(cambium, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = cambium("init", "--state", tmp_path / "file" / "state")
    assert (ended.status, ended.err.count("\n")) == (3, 1)


@pytest.fixture
def rules(cambium, tmp_path: Path) -> tuple[Path, Path]:
    """A production policy and a root key, made as their owner would."""
    cambium("init", "--state", tmp_path / "draft")
    policy, root = tmp_path / "rules.toml", tmp_path / "root.key"
    policy.write_text(production((tmp_path / "draft" / "policy.toml").read_text()))
    cambium("key", "new", root)
    return policy, root


def test_production_takes_a_policy_and_makes_no_keys(cambium, rules, tmp_path: Path) -> None:
    policy, root = rules
    state = tmp_path / "live"
    wanted = ("--state", state, "--profile", "production", "--policy", policy)
    assert cambium("init", *wanted, "--key", root).status == 0
    assert policy_of(state).digest == parse_policy(policy.read_bytes()).digest
    assert not (state / "keys").exists()


def test_the_root_key_may_stay_where_it_is(cambium, rules, tmp_path: Path) -> None:
    policy, root = rules
    wanted = ("--profile", "production", "--policy", policy, "--key", f"{root}.pub")
    assert cambium("init", "--state", tmp_path / "early", *wanted).status == 2
    cambium("policy", "sign", policy, "--key", root)
    assert cambium("init", "--state", tmp_path / "live", *wanted).status == 0
    policy.write_text(policy.read_text() + "# changed after signing\n")
    assert cambium("init", "--state", tmp_path / "late", *wanted).status == 1
    assert not (tmp_path / "late").exists()
    (tmp_path / "other.pub").write_text(generate_key().public_key.raw)
    wanted = (*wanted[:-1], tmp_path / "other.pub")
    assert cambium("init", "--state", tmp_path / "other", *wanted).status == 1


def test_production_refuses_what_development_allows(cambium, rules, tmp_path: Path) -> None:
    policy, root = rules
    base = ("init", "--state", tmp_path / "live", "--profile", "production")
    assert cambium(*base).status == 2
    assert cambium(*base, "--policy", policy).status == 2
    draft = tmp_path / "draft" / "policy.toml"
    ended = cambium(*base, "--policy", draft, "--key", root)
    assert (ended.status, "development profile" in ended.err) == (2, True)
    policy.write_text(policy.read_text().replace("accept = []", 'accept = ["software-dev"]'))
    assert cambium(*base, "--policy", policy, "--key", root).status == 2
    assert not (tmp_path / "live").exists()
