"""The stable bank as it is in memory: the adapters of one revision and their routers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cambium.core.errors import DigestMismatch
from cambium.core.nouns import AdapterRef, Revision
from cambium.models.adapter import Adapter
from cambium.models.adapter_bytes import AdapterBytes
from cambium.models.adapter_kinds import kind_of, read_adapter
from cambium.models.base import BaseModel
from cambium.models.lora import Lora, from_bytes
from cambium.models.router import Route, RouterConfig, RouterIndex, route
from cambium.serve.errors import AdapterKindRefused, DomainNotFound, StateCorrupt
from cambium.serve.store.records import AdapterRecord, VersionRecord
from cambium.serve.store.state import State


@dataclass(frozen=True, kw_only=True)
class ServedAdapter:
    """An adapter, of any kind, in memory under the name and digest that were signed."""

    ref: AdapterRef
    lora: Adapter


@dataclass(frozen=True, kw_only=True)
class Bank:
    """One revision, loaded. Replaced as a whole, never changed."""

    revision: Revision
    adapters: Mapping[str, ServedAdapter] = field(default_factory=dict)
    routers: Mapping[str, RouterIndex] = field(default_factory=dict)

    def stack(self, domain: str | None) -> tuple[Adapter, ...]:
        """Returns the adapters that answer for `domain`: one, or none for the base."""
        served = self.adapters.get(domain) if domain else None
        return (served.lora,) if served else ()

    def kind(self, domain: str) -> str | None:
        """Returns the kind of the adapter that serves `domain`, if one does."""
        served = self.adapters.get(domain)
        return kind_of(served.lora.config) if served else None

    def below(self, domain: str | None) -> tuple[Lora, ...]:
        """Returns what an ephemeral adapter for `domain` learns on top of.

        Raises:
            AdapterKindRefused: that is a soft prompt, which lessons cannot go through.
        """
        found = self.stack(domain)
        loras = tuple(one for one in found if isinstance(one, Lora))
        if loras != found:
            raise AdapterKindRefused(
                f"a soft prompt serves domain {domain!r}, and nothing learns on top of one",
                mend="make the adapter without a domain, and propose it into this one",
            )
        return loras

    def pick(
        self,
        text: str,
        embed: Callable[[list[str]], np.ndarray],
        *,
        among: Callable[[str], bool] = lambda _: True,
    ) -> Route:
        """Returns the domain that the router gives `text` to, of those that `among` allows."""
        routers = {domain: index for domain, index in self.routers.items() if among(domain)}
        if not routers or not text.strip():
            return Route(domain=None, leads={})
        return route(embed([text])[0], routers, RouterConfig())

    def serving(self, domain: str) -> ServedAdapter:
        """Returns the adapter of `domain`.

        Raises:
            DomainNotFound: the revision's bank has no such domain.
        """
        if domain not in self.adapters:
            raise DomainNotFound(
                f"no stable adapter serves domain {domain[:80]!r}",
                mend="see GET /revisions, or leave the domain out",
            )
        return self.adapters[domain]


def load_bank(revision: Revision, state: State, base: BaseModel) -> Bank:
    """Loads the very bytes that the revision names, hashing what is loaded.

    Raises:
        DigestMismatch: stored bytes differ from the signed digest.
    """
    adapters, routers = {}, {}
    for entry in revision.bank:
        with state.read() as tx:
            version = tx.get_version(entry.adapter.name, entry.adapter.digest)
        data = stored_bytes(state, version)
        adapters[entry.domain] = ServedAdapter(ref=entry.adapter, lora=read_adapter(data, base))
        routers[entry.domain] = RouterIndex.from_bytes(state.blobs.get(entry.router_digest))
    return Bank(revision=revision, adapters=adapters, routers=routers)


def parent_of(record: AdapterRecord, state: State, base: BaseModel) -> tuple[Lora, ...]:
    """Returns the adapter of the revision that this one was started from, if it has one."""
    with state.read() as tx:
        manifest: dict[str, Any] = tx.get_revision(record.parent_revision).manifest
        entry = manifest["bank"].get(record.domain)
        if entry is None:
            return ()
        version = tx.get_version(entry["adapter"], entry["digest"])
    return (from_bytes(stored_bytes(state, version), base.sites),)


def stored_bytes(state: State, record: AdapterRecord | VersionRecord) -> AdapterBytes:
    """Returns an adapter's two files as stored, verified against its digest.

    Raises:
        DigestMismatch: the bytes do not hash to the digest.
        StateCorrupt: the weights are gone.
    """
    if record.weights_blob is None:
        raise StateCorrupt(f"adapter {record.name!r} has no weights", mend="create it again")
    data = AdapterBytes(
        config=record.config_json.encode(), weights=state.blobs.get(record.weights_blob)
    )
    if data.digest != record.digest:
        raise DigestMismatch(f"stored bytes hash to {data.digest}, not to {record.digest}",
                             mend="restore the state from a backup")  # fmt: skip
    return data
