"""The weights of `cambium diff A B --by weights`: where two models differ, module by module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cambium.cli.client import Client, segment
from cambium.cli.exporting import adapter_files
from cambium.cli.failures import WRONG_CALL, CommandFailed
from cambium.cli.output import print_line, print_rows
from cambium.cli.subjects import is_folder, open_checkpoint, served_name

if TYPE_CHECKING:
    from cambium.models.adapter import Adapter
    from cambium.models.base import BaseModel

    Stacks = dict[str, tuple[Adapter, ...]]

MAX_SHOWN = 12
_MODULES = ("module", "delta_norm", "relative", "spectral", "relative_spectral",
            "effective_rank", "tail_energy")  # fmt: skip
_TOKENS = ("token", "delta_norm", "relative", "nearest", "cosine")
_LAYERS = ("layer", "delta_norm", "relative")


def weights_of(client: Client, names: tuple[str, str]) -> dict[str, Any]:
    """Returns how the weights of two models differ; folders are read here, the rest is asked.

    Raises:
        CommandFailed: the server knows no such model, or is on another base than a folder.
        DataError: the models are of other shapes.
    """
    if not any(map(is_folder, names)):
        return client.get("/weights", a=served_name(names[0]), b=served_name(names[1]))
    from cambium.models.weight_diff import Weights, weights_by_domain, weights_record

    (base, before), (other, after) = (_read(client, name) for name in names)
    if base.digest == other.digest:
        parts = weights_by_domain(base, before, after)
    else:
        old, new = Weights(base=base, adapters=before[""]), Weights(base=other, adapters=after[""])
        parts = [{"domain": None, **weights_record(old, new)}]
    return {"a": names[0], "b": names[1], "parts": parts}


def print_weights(record: dict[str, Any]) -> None:
    """Prints the most changed modules, and every layer, of each domain."""
    for part in record["parts"]:
        where = f" for {part['domain']}" if part["domain"] else ""
        rows = sorted(part["modules"], key=lambda row: -row["relative"])
        print_rows(
            rows[:MAX_SHOWN], _MODULES, title=f"{len(rows)} modules{where}, most moved first"
        )
        print_rows(part["layers"], _LAYERS, title=f"by layer{where}")
        if part["prompt"]:
            print_rows(part["prompt"], _TOKENS, title=f"by virtual token{where}")
    if not record["parts"]:
        print_line("no weight differs")


def _read(client: Client, name: str) -> tuple[BaseModel, Stacks]:
    """Returns a model's base and its adapters by domain, those of a server on our own base."""
    if is_folder(name):
        base, adapters = open_checkpoint(Path(name))
        return base, {"": adapters}
    from cambium.core.canonical import digest_json
    from cambium.models.base import load_base

    base = load_base()
    asked = client.post("/measurements", {"model": "base", "generate": []})
    if asked["digest"] != digest_json([base.digest, "base", ""]):
        line = f"the server is not on the bundled base, so {name} is no match for a folder"
        raise CommandFailed(f"{line}: export both, or name two that it serves", status=WRONG_CALL)
    return base, _served(client, served_name(name), base)


def _served(client: Client, name: str, base: BaseModel) -> Stacks:
    if name == "base":
        return {"": ()}
    if name != "stable" and not name.startswith("revision/"):
        return {"": (_adapter(client, name, base),)}
    revisions = client.rows("/revisions", "revisions")
    number = None if name == "stable" else int(name.rpartition("/")[2])
    found = [r for r in revisions if number in (None, r["number"])]
    if not found:
        raise CommandFailed(f"there is no {name}: see cambium revisions", status=WRONG_CALL)
    bank: dict[str, dict[str, str]] = found[-1]["bank"]
    stacks: Stacks = {"": ()}
    for domain, entry in bank.items():
        stacks[domain] = (_adapter(client, f"{entry['adapter']}@{entry['digest']}", base),)
    return stacks


def _adapter(client: Client, name: str, base: BaseModel) -> Adapter:
    from cambium.models.adapter_bytes import AdapterBytes
    from cambium.models.adapter_kinds import read_adapter

    files = adapter_files(client.download(f"/adapters/{segment(name)}/export"))
    data = AdapterBytes(
        config=files["adapter_config.json"], weights=files["adapter_model.safetensors"]
    )
    return read_adapter(data, base)
