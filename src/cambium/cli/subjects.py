"""What the commands measure: a model that a server holds, or a checkpoint's folder opened here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cambium.cli.client import Client
from cambium.evals.subject import Generation, Likelihood

if TYPE_CHECKING:
    from cambium.evals.subject import Subject
    from cambium.models.adapter import Adapter
    from cambium.models.base import BaseModel

ITEMS_PER_CALL = 512


class ServedSubject:
    """A model that a server holds: `base`, `stable`, `revision/N`, `NAME` or `NAME@DIGEST`."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name
        self._digest = str(self._ask(generate=[])["digest"])

    @property
    def name(self) -> str:
        """As it was asked for."""
        return self._name

    @property
    def digest(self) -> str:
        """Of base and adapters, as the server said when it was opened."""
        return self._digest

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """Returns the likelihood of each continuation after its context."""
        rows = self._in_parts("loglikelihood", pairs, lambda pair: list(pair))
        return [Likelihood(**row) for row in rows]

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[Likelihood]:
        """Returns the likelihood of each whole text."""
        rows = self._in_parts("loglikelihood_rolling", texts, lambda text: text)
        return [Likelihood(**row) for row in rows]

    def generate(self, requests: Sequence[Generation]) -> list[str]:
        """Returns what the model writes after each prompt."""
        rows = self._in_parts("generate", requests, lambda g: {**vars(g), "until": list(g.until)})
        return [str(row) for row in rows]

    def _in_parts(self, kind: str, items: Sequence[Any], write: Callable[[Any], Any]) -> list[Any]:
        found: list[Any] = []
        for at in range(0, len(items), ITEMS_PER_CALL):
            part = [write(item) for item in items[at : at + ITEMS_PER_CALL]]
            answer = self._ask(**{kind: part})
            if answer["digest"] != self._digest:
                self._changed()
            found += answer["results"]
        return found

    def _ask(self, **question: Any) -> dict[str, Any]:
        return self._client.post("/measurements", {"model": self._name, **question})

    def _changed(self) -> None:
        from cambium.cli.failures import NO, CommandFailed

        raise CommandFailed(
            f"{self._name} was changed while it was measured: name it by digest or revision",
            status=NO,
        )


def open_subject(client: Client, name: str) -> Subject:
    """Returns the model that a person means by `name`.

    A bare number is a revision; a name with a `/`, other than `revision/N`, is a folder: a
    checkpoint in the Hugging Face layout, or a PEFT adapter of the bundled base.

    Raises:
        CommandFailed: the server knows no such model.
        ModelError, ConfigError: the folder cannot be loaded.
    """
    return _checkpoint(Path(name)) if is_folder(name) else ServedSubject(client, served_name(name))


def is_folder(name: str) -> bool:
    """Returns whether a person means a folder by `name`."""
    return "/" in name and not name.startswith("revision/")


def served_name(name: str) -> str:
    """Returns what a server calls the model that a person means."""
    return f"revision/{name}" if name.isdigit() else name


def open_checkpoint(folder: Path) -> tuple[BaseModel, tuple[Adapter, ...]]:
    """Returns a folder's base, and the adapter on it where the folder holds one.

    Raises:
        ModelError, ConfigError: the folder cannot be loaded.
        DataError: its adapter is not of the bundled base.
    """
    from cambium.core.errors import ConfigError
    from cambium.models.adapter_bytes import AdapterBytes
    from cambium.models.adapter_kinds import read_adapter
    from cambium.models.base import load_base

    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder", mend="name a checkpoint's folder")
    if not (folder / "adapter_config.json").is_file():
        return load_base(str(folder)), ()
    try:
        data = AdapterBytes(
            config=(folder / "adapter_config.json").read_bytes(),
            weights=(folder / "adapter_model.safetensors").read_bytes(),
        )
    except OSError as error:
        raise ConfigError(f"{folder} is no PEFT adapter: {error.strerror}",
                          mend="name a folder with both files") from error  # fmt: skip
    base = load_base()
    return base, (read_adapter(data, base),)


def _checkpoint(folder: Path) -> Subject:
    from cambium.core.canonical import digest_json
    from cambium.evals.local_subject import LocalSubject
    from cambium.models.lora import to_bytes

    base, adapters = open_checkpoint(folder)
    digest = to_bytes(adapters[0], fan_in_fan_out=base.transposed).digest if adapters else ""
    return LocalSubject(
        base,
        name=str(folder),
        digest=digest_json([base.digest, digest]),
        choose=lambda prompt: adapters,
    )
