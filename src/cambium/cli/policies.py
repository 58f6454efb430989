"""`cambium policy`: the signed rules, shown, changed, and signed where the root key lies."""

from __future__ import annotations

import json
from difflib import unified_diff
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cambium.cli.client import connect
from cambium.cli.failures import NO, WRONG_CALL, CommandFailed
from cambium.cli.keys import read_public_key
from cambium.cli.options import AsJson, Key, State
from cambium.cli.output import print_json, print_line, print_record
from cambium.cli.signing import read_key, signed_body
from cambium.core.errors import ConfigError, DataError
from cambium.core.nouns import Action

if TYPE_CHECKING:
    from cambium.trust.policy import Policy, SignedPolicy

app = typer.Typer(
    name="policy", help="See the rules, sign new ones, put them in force.", no_args_is_help=True
)


@app.command()
def show(state: State = None, as_json: AsJson = False) -> None:
    """Show the policy in force."""
    with connect(state) as client:
        answer = client.get("/policy")
    if as_json:
        print_json(answer)
        return
    text = answer.pop("toml", None)
    print_record(answer)
    if isinstance(text, str):
        print_line(f"\n{text}")


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The policy (TOML).")],
    key: Key,
    version: Annotated[
        int,
        typer.Option("--state-version", min=0, help="Of the running state; 0 for `cambium init`."),
    ] = 0,
) -> None:
    """Sign a policy with the root key, into FILE.sig, for `policy put` or `init --key ROOT.pub`."""
    from cambium.trust.acts import signature_to_json
    from cambium.trust.policy import sign_policy

    signed = sign_policy(read_key(key), read_toml(file), state_version=version)
    target = signature_file(file)
    try:
        target.write_text(json.dumps(signature_to_json(signed.signature), indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}",
                          mend="sign in a writable folder") from error  # fmt: skip
    print_line(f"{target}: policy {signed.signature.act.policy} by {signed.signature.key_id}")


@app.command()
def diff(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new policy (TOML).")],
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Show what a new policy would change, and whose signatures that needs."""
    from cambium.lifecycle.policy_change import widenings

    new = read_policy(file)
    with connect(state) as client:
        old = client.get("/policy")
    if not old.get("signed"):
        raise CommandFailed("no signed policy is in force: run `cambium init`", status=NO)
    # The tables that a policy may leave out count where only the old one has them, too.
    stated = {*new.content, "evaluators", "attesters"}
    before = {name: old[name] for name in stated if name in old}
    wider = list(widenings(before, new.content))
    shown = {
        "digest": new.digest,
        "in_force": old["policy_digest"],
        "state_version": old["state_version"],
        "widens": wider,
        "needs": f"the root, and {old['approvers']['k']} approvers" if wider else "the root",
    }
    if as_json:
        print_json(shown)
        return
    text = str(old["toml"]).splitlines()
    after = read_toml(file).decode("utf-8").splitlines()
    for line in unified_diff(text, after, "in force", str(file), lineterm="", n=1):
        print_line(line)
    print_record({**shown, "widens": "; ".join(wider) or "nothing"})


@app.command()
def put(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The policy, with FILE.sig.")],
    key: Annotated[
        list[Path] | None, typer.Option("--key", help="An approver's, where it widens; repeat it.")
    ] = None,
    new_root: Annotated[
        Path | None,
        typer.Option("--root", help="A .pub that signed FILE and becomes the root; needs --from."),
    ] = None,
    old_root: Annotated[
        Path | None, typer.Option("--from", help="The root key in office, which hands over.")
    ] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Put a signed policy in force; open proposals end, since their bar was another."""
    from cambium.core.canonical import digest_bytes
    from cambium.lifecycle.policy_change import hand_over_target
    from cambium.trust.acts import signature_to_json

    if (new_root is None) != (old_root is None):
        raise CommandFailed("--root and --from go together: give both or none", status=WRONG_CALL)
    signed = read_signed_policy(file)
    target = digest_bytes(signed.toml)
    with connect(state) as client:
        standing = client.get("/kill")
        others = [
            signed_body(k, Action.WIDEN_SCOPE, target=target, standing=standing) for k in key or ()
        ]
        body: dict[str, object] = {
            "toml": signed.toml.decode("utf-8"),
            "signature": signature_to_json(signed.signature),
            "signatures": others,
        }
        if new_root is not None and old_root is not None:
            public = read_public_key(new_root)
            body["root"], target = public.raw, hand_over_target(signed.toml, public)
            others.append(signed_body(old_root, Action.POLICY, target=target, standing=standing))
        answer = client.post("/policy", body)
    print_json(answer) if as_json else print_record(answer)


def signature_file(policy: Path) -> Path:
    """Returns where a policy's signature lies: beside it."""
    return Path(f"{policy}.sig")


def read_toml(file: Path) -> bytes:
    """Returns a policy's bytes.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}", mend="check its name") from error


def read_policy(file: Path) -> Policy:
    """Returns a policy's content, whoever signed it.

    Raises:
        ConfigError: the file cannot be read.
        PolicyInvalid: it states no valid policy.
    """
    from cambium.trust.policy import parse_policy

    return parse_policy(read_toml(file))


def read_signed_policy(file: Path) -> SignedPolicy:
    """Returns a policy and the signature beside it, which is checked where it is put in force.

    Raises:
        ConfigError: one of the two cannot be read.
    """
    from cambium.serve.signed_records import signature_from_json
    from cambium.trust.policy import SignedPolicy

    target = signature_file(file)
    try:
        signature = signature_from_json(json.loads(read_toml(target)))
    except (ValueError, AttributeError, DataError) as error:
        raise ConfigError(
            f"{target} holds no signature", mend="use `cambium policy sign`"
        ) from error
    return SignedPolicy(toml=read_toml(file), signature=signature)
