"""`cambium policy`: the signed rules, shown, and signed where the root key lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cambium.cli.client import connect
from cambium.cli.options import AsJson, Key, State
from cambium.cli.output import print_json, print_line, print_record
from cambium.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from cambium.trust.policy import Policy, SignedPolicy

app = typer.Typer(name="policy", help="See the rules, or sign new ones.", no_args_is_help=True)


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
) -> None:
    """Sign a policy with the root key, into FILE.sig; `init --key ROOT.pub` takes it from there."""
    from cambium.serve.store.key_files import load_key
    from cambium.trust.acts import signature_to_json
    from cambium.trust.policy import sign_policy

    signed = sign_policy(load_key(key), read_toml(file))
    target = signature_file(file)
    try:
        target.write_text(json.dumps(signature_to_json(signed.signature), indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}",
                          mend="sign in a writable folder") from error  # fmt: skip
    print_line(f"{target}: policy {signed.signature.act.policy} by {signed.signature.key_id}")


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
    from cambium.trust.acts import signature_from_json
    from cambium.trust.policy import SignedPolicy

    target = signature_file(file)
    try:
        signature = signature_from_json(json.loads(read_toml(target)))
    except (ValueError, AttributeError, DataError) as error:
        raise ConfigError(
            f"{target} holds no signature", mend="use `cambium policy sign`"
        ) from error
    return SignedPolicy(toml=read_toml(file), signature=signature)
