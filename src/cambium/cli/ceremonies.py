"""`cambium key ceremony`: one group's key, dealt as shares, and the record of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from cambium.cli.options import AsJson
from cambium.cli.output import print_json, print_line
from cambium.cli.signing import new_passphrase
from cambium.core.errors import ConfigError

RECORD = "ceremony.json"


def ceremony(
    k: Annotated[int, typer.Option("--k", min=1, help="Shares that sign together.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Shares there are.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder for shares and record.")],
    encrypt: Annotated[
        bool, typer.Option("--encrypt", help="Under a passphrase: asked, or CAMBIUM_PASSPHRASE.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Deal a group's key as n shares, any k of which sign for it; the key is kept nowhere."""
    from cambium.serve.store.key_files import save_key
    from cambium.trust.keys import wrap
    from cambium.trust.providers.bls12_381 import deal

    dealt = deal(k, n)
    try:
        out.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise ConfigError(f"cannot make {out}: {error.strerror}",
                          mend="name a folder that is not there") from error  # fmt: skip
    passphrase = new_passphrase(out) if encrypt else None
    keys = [wrap(share) for share in dealt.shares]
    for index, key in enumerate(keys, start=1):
        save_key(key, out / f"share-{index}.key", passphrase=passphrase)
    record = {
        "scheme": "bls12-381",
        "k": k,
        "n": n,
        "group": dealt.group.hex(),
        "commitments": [c.hex() for c in dealt.commitments],
        "shares": [{"index": i, "public": key.public_key.raw} for i, key in enumerate(keys, 1)],
        "at": int(time.time()),
    }
    (out / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="ascii")
    if as_json:
        print_json(record)
        return
    print_line(f"# {out / RECORD} may be known to everybody; hand out the shares, keep none")
    print_line("[approvers]")
    print_line(f"k = {k}")
    print_line(f'group = "{dealt.group.hex()}"')
    print_line("list = [")
    for index, key in enumerate(keys, start=1):
        print_line(
            f'  {{ name = "person-{index}", public = "{key.public_key.raw}", expires = 0 }},'
        )
    print_line("]")
