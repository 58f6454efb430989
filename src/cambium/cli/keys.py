"""`cambium key`: private keys live in files beside their owners, public keys are enrolled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cambium.cli.ceremonies import ceremony
from cambium.cli.client import connect, rows_of, segment
from cambium.cli.drill import drill
from cambium.cli.failures import NO, CommandFailed
from cambium.cli.options import AsJson, Keys, State
from cambium.cli.output import print_json, print_record, print_rows
from cambium.cli.signing import new_passphrase, signed_body
from cambium.core.errors import ConfigError, TrustError
from cambium.core.nouns import Action

if TYPE_CHECKING:
    from cambium.trust.keys import PublicKey

app = typer.Typer(
    name="key", help="Make keys, enrol them, see which are, revoke one.", no_args_is_help=True
)
_COLUMNS = ("name", "role", "key_id", "enrolled_at", "revoked_at")


@app.command()
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The private key goes here.")],
    encrypt: Annotated[
        bool, typer.Option("--encrypt", help="Under a passphrase: asked, or CAMBIUM_PASSPHRASE.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a key pair: FILE for its owner alone, FILE.pub for everybody."""
    from cambium.serve.store.key_files import save_key
    from cambium.trust.keys import generate_key

    public_file = Path(f"{file}.pub")
    key = generate_key()
    save_key(key, file, passphrase=new_passphrase(file) if encrypt else None)
    try:
        with public_file.open("x", encoding="ascii") as written:
            written.write(key.public_key.raw + "\n")
    except OSError as error:
        file.unlink()
        raise ConfigError(f"cannot write {public_file}: {error.strerror}",
                          mend="choose another name") from error  # fmt: skip
    shown = {"key_id": key.key_id, "public": key.public_key.raw, "file": str(file)}
    print_json(shown) if as_json else print_record(shown)


@app.command(name="list")
def list_keys(state: State = None, as_json: AsJson = False) -> None:
    """List the enrolled public keys and what each may do."""
    with connect(state) as client:
        answer = client.get("/keys")
    rows = rows_of(answer, "keys")
    print_json(answer) if as_json else print_rows(rows, _COLUMNS)


@app.command()
def enroll(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The public key: FILE.pub.")],
    name: Annotated[str, typer.Option("--name", help="Whose it is.")],
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Make a public key known; it can do nothing until a signed policy lists it."""
    public = read_public_key(file)
    with connect(state) as client:
        answer = client.post("/keys", {"name": name, "public": public.raw})
    print_json(answer) if as_json else print_record(answer)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="From `cambium key list`.")],
    key: Keys,
    reason: Annotated[str, typer.Option("--reason", help="It goes into the log.")],
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Take a key out of service: signed by the root, or by k approvers who keep theirs."""
    from cambium.trust.keys import PublicKey

    with connect(state) as client:
        row = next((k for k in client.rows("/keys", "keys") if k.get("key_id") == key_id), None)
        if row is None:
            raise CommandFailed(f"no key has the id {key_id}: see `cambium key list`", status=NO)
        target = PublicKey(raw=str(row.get("public"))).digest
        standing = client.get("/kill")
        signed = [signed_body(k, Action.REVOKE, target=target, standing=standing) for k in key]
        path = f"/keys/{segment(key_id)}/revoke"
        answer = client.post(path, {"reason": reason, "signatures": signed})
    print_json(answer) if as_json else print_record(answer)


app.command()(drill)
app.command()(ceremony)


def read_public_key(path: Path) -> PublicKey:
    """Returns the public key of a file that `cambium key new` wrote.

    Raises:
        ConfigError: it cannot be read or holds no public key.
    """
    from cambium.trust.keys import PublicKey

    try:
        return PublicKey(raw=path.read_text(encoding="ascii").strip())
    except (OSError, ValueError, TrustError) as error:
        raise ConfigError(f"{path} holds no public key", mend="name a FILE.pub") from error
