"""What can be measured under a name: base, stable, an adapter's version, or an earlier revision."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import TYPE_CHECKING

from cambium.core.canonical import digest_json
from cambium.core.nouns import Revision
from cambium.evals.local_subject import LocalSubject
from cambium.models.adapter import Adapter
from cambium.serve.access import Caller
from cambium.serve.bank import Bank, load_bank
from cambium.serve.revision_records import verified_revision

if TYPE_CHECKING:
    from cambium.serve.runtime import Runtime

REVISION = re.compile(r"revision/(\d{1,9})")
MAX_BANKS = 4


class Subjects:
    """Opens names as subjects of evals; each stays what it was when it was opened."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._banks: OrderedDict[int, Bank] = OrderedDict()

    def open(self, name: str, *, caller: Caller) -> LocalSubject:
        """Returns the model that a caller means; `stable` and revisions route each prompt.

        Raises:
            ModelNotFound, RevisionNotFound, AdapterExpired, AdapterQuarantined: nothing answers.
            SystemKilled: nothing is run any more.
        """
        runtime = self._runtime
        if (bank := self._named_bank(name)) is not None:
            return self._of_bank(name, bank, caller)
        answerer = runtime.answering.resolve(name, caller=caller, domain=None, text="")
        adapters = answerer.adapters
        # A live adapter acts on its parent, which its digest does not name.
        number = answerer.detail.get("parent_revision")
        parent = self._revision(number).digest if isinstance(number, int) else ""
        return LocalSubject(
            runtime.base,
            name=name,
            digest=digest_json([runtime.base.digest, answerer.adapter, parent]),
            choose=lambda prompt: adapters,
            engine=runtime.engine,
        )

    def stacks(self, name: str, *, caller: Caller) -> dict[str, tuple[Adapter, ...]]:
        """Returns the adapters that act under a name, by domain; under "" those of every other.

        Raises:
            ModelNotFound, RevisionNotFound, AdapterExpired, AdapterQuarantined: nothing answers.
            SystemKilled: nothing is run any more.
        """
        bank = self._named_bank(name)
        if bank is None:
            answerer = self._runtime.answering.resolve(name, caller=caller, domain=None, text="")
            return {"": tuple(answerer.adapters)}
        allowed = (d for d in sorted(bank.adapters) if self._may_use(d, caller))
        return {"": (), **{domain: bank.stack(domain) for domain in allowed}}

    def _named_bank(self, name: str) -> Bank | None:
        """Returns the bank that a name means, where it means one."""
        found = REVISION.fullmatch(name)
        if name != "stable" and not found:
            return None
        self._runtime.kill.check()
        return self._bank(int(found[1])) if found else self._runtime.bank

    def _may_use(self, domain: str, caller: Caller) -> bool:
        policy = self._runtime.policy
        return policy is None or policy.may_use(domain, caller.tenant)

    def _of_bank(self, name: str, bank: Bank, caller: Caller) -> LocalSubject:
        embed = self._runtime.encoder.embed

        def may_use(domain: str) -> bool:
            return self._may_use(domain, caller)

        # What a policy's owners keep from this caller is not a part of what is measured.
        allowed = sorted(domain for domain in bank.adapters if may_use(domain))

        def choose(prompt: str) -> tuple[Adapter, ...]:
            return bank.stack(bank.pick(prompt, embed, among=may_use).domain)

        return LocalSubject(
            self._runtime.base,
            name=name,
            digest=digest_json([self._runtime.base.digest, bank.revision.digest, allowed]),
            choose=choose,
            engine=self._runtime.engine,
        )

    def _bank(self, number: int) -> Bank:
        if number == self._runtime.revision:
            return self._runtime.bank
        bank = self._banks.get(number)
        if bank is None:
            bank = load_bank(self._revision(number), self._runtime.state, self._runtime.base)
            self._banks[number] = bank
            while len(self._banks) > MAX_BANKS:
                self._banks.popitem(last=False)
        return bank

    def _revision(self, number: int) -> Revision:
        with self._runtime.state.read() as tx:
            row, server = tx.get_revision(number), self._runtime.identity.key_in(tx)
        return verified_revision(row, server.public_key)

    def check(self, name: str) -> None:
        """Returns while what answers to `name` may still be run.

        Raises:
            SystemKilled: the kill switch was pulled, and spares no such model.
            Stopped: the server is closing.
        """
        kill = self._runtime.kill
        if name != "base" or not kill.serves_base:
            kill.check()
        self._runtime.check_closing()
