"""`cambium init`: keys and the first signed policy, all or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cambium.cli.failures import WRONG_CALL, CommandFailed
from cambium.cli.output import print_line
from cambium.core.errors import ConfigError

if TYPE_CHECKING:
    from cambium.trust.keys import PublicKey, SigningKey
    from cambium.trust.policy import Policy, SignedPolicy

OPERATOR, EVALUATOR, ATTESTER = "operator", "evaluator", "attester"
NUM_APPROVERS = 3
QUORUM = 2


class Profile(StrEnum):
    """What a state is for; only a development state makes its own keys."""

    DEVELOPMENT = "development"
    PRODUCTION = "production"


def init(
    state: Annotated[Path, typer.Option("--state", help="State folder.")],
    profile: Annotated[Profile, typer.Option("--profile")] = Profile.DEVELOPMENT,
    policy: Annotated[Path | None, typer.Option("--policy", help="Policy (TOML).")] = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", help="Root key; or its .pub, with the policy signed beforehand."),
    ] = None,
) -> None:
    """Make the first signed policy of a state; a development state gets its keys too."""
    if policy is None and key is None and profile is Profile.DEVELOPMENT:
        digest = initialise_development(state)
        print_line(f"policy {digest} is in force: {QUORUM} of {NUM_APPROVERS} approvers")
        print_line(f"keys: {state / 'keys'}; rules: {state / 'policy.toml'}")
        print_line("development: all keys lie on this disk and the attestation is software-dev")
        return
    if policy is None or key is None:
        line = f"the {profile} profile with your own root key needs both --policy and --key"
        raise CommandFailed(f"{line}: give the policy's file and the key's", status=WRONG_CALL)
    from cambium.cli.policies import read_policy

    signed, root = _signed(policy, key)
    stated = read_policy(policy).profile
    if stated != profile:
        line = f"{policy} is for the {stated} profile, --profile is {profile}"
        raise CommandFailed(f"{line}: make them agree", status=WRONG_CALL)
    with _undone_on_failure() as made:
        made.folder(state)
        taken = _take_along(state, key.parent, read_policy(policy), made)
        digest = _store(state, signed, root)
    print_line(f"policy {digest} is in force ({profile})")
    for name in taken:
        print_line(f"taken along from {key.parent}: {name}, which the policy lists")


@dataclass
class _Made:
    """Paths made so far, so that a failure can take them back."""

    paths: list[Path] = field(default_factory=list[Path])

    def folder(self, path: Path, mode: int = 0o755) -> None:
        missing = [p for p in (path, *path.parents) if not p.exists()]
        path.mkdir(parents=True, exist_ok=True, mode=mode)
        self.paths += reversed(missing)

    def file(self, path: Path) -> Path:
        """Notes a file that is about to be made; one that exists stays."""
        if path.exists():
            raise ConfigError(f"{path} exists: this state is initialised, or was begun",
                              mend="use another --state, or move it away")  # fmt: skip
        self.paths.append(path)
        return path


@contextmanager
def _undone_on_failure() -> Iterator[_Made]:
    made = _Made()
    try:
        yield made
    except BaseException:
        for path in reversed(made.paths):
            if not path.is_dir():
                path.unlink(missing_ok=True)
            elif not any(path.iterdir()):
                path.rmdir()
        raise


def initialise_development(state: Path) -> str:
    """Makes a state of the development profile, with all keys; returns its policy's digest.

    Raises:
        ConfigError: it is a state already.
    """
    from cambium.serve.bootstrap import render_policy
    from cambium.serve.store.key_files import SERVER_PASSPHRASE, passphrase_in, save_key
    from cambium.trust.keys import generate_key
    from cambium.trust.policy import sign_policy
    from cambium.trust.quorum import Approver

    root, operator, evaluator, attester = (generate_key() for _ in range(4))
    people = {f"approver-{i}": generate_key() for i in range(1, NUM_APPROVERS + 1)}
    approvers = [Approver(name=name, public=key.public_key) for name, key in people.items()]
    toml = render_policy(
        approvers=approvers,
        operator=Approver(name=OPERATOR, public=operator.public_key),
        held=(
            Approver(name=EVALUATOR, public=evaluator.public_key),
            Approver(name=ATTESTER, public=attester.public_key),
        ),
        k=QUORUM,
        rollback_k=QUORUM,
    )
    with _undone_on_failure() as made:
        made.folder(state)
        made.folder(state / "keys", 0o700)
        keys: dict[str, SigningKey] = {"root": root, **people, OPERATOR: operator}
        held = {EVALUATOR: evaluator, ATTESTER: attester}  # by the server, as its own key is
        names = [*keys, *held]
        for path in [state / "keys" / f"{name}.key" for name in names] + [state / "policy.toml"]:
            made.file(path)
        for name, key in keys.items():
            save_key(key, state / "keys" / f"{name}.key")
        for name, key in held.items():
            path = state / "keys" / f"{name}.key"
            save_key(key, path, passphrase=passphrase_in(SERVER_PASSPHRASE))
        (state / "policy.toml").write_bytes(toml)
        return _store(state, sign_policy(root, toml), root.public_key)


def _take_along(state: Path, folder: Path, policy: Policy, made: _Made) -> list[str]:
    """Copies the keys of a development state's own roles, where they lie beside its root's."""
    from cambium.serve.store.durable import write_durably
    from cambium.serve.store.key_files import SERVER_PASSPHRASE, load_key

    taken: list[str] = []
    if policy.profile != "development":
        return taken
    listed = {p.key_id for role in (EVALUATOR, ATTESTER) for p in policy.people[role]}
    for name in (f"{EVALUATOR}.key", f"{ATTESTER}.key"):
        file = folder / name
        if file.exists() and load_key(file, variable=SERVER_PASSPHRASE).key_id in listed:
            made.folder(state / "keys", 0o700)
            write_durably(made.file(state / "keys" / name), file.read_bytes())
            taken.append(name)
    return taken


def _signed(policy: Path, key: Path) -> tuple[SignedPolicy, PublicKey]:
    """Signs a policy with the root key, or takes the signature made where the root key lies."""
    from cambium.cli.keys import read_public_key
    from cambium.cli.policies import read_signed_policy, read_toml
    from cambium.cli.signing import read_key
    from cambium.trust.policy import sign_policy

    if key.suffix == ".pub":
        return read_signed_policy(policy), read_public_key(key)
    root = read_key(key)
    return sign_policy(root, read_toml(policy)), root.public_key


def _store(state: Path, signed: SignedPolicy, root: PublicKey) -> str:
    from cambium.serve.bootstrap import init_state

    return init_state(state, toml=signed.toml, signature=signed.signature, root_public=root)
