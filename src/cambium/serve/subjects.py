"""What can be measured under a name: base, stable, an adapter's version, or an earlier revision."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import TYPE_CHECKING

from cambium.core.canonical import digest_json
from cambium.core.nouns import Revision
from cambium.evals.local_subject import LocalSubject
from cambium.models.lora import Lora
from cambium.serve.access import Caller
from cambium.serve.bank import Bank, load_bank

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
        if name == "stable" or (found := REVISION.fullmatch(name)):
            runtime.kill.check()
            bank = runtime.bank if name == "stable" else self._bank(int(found[1]))  # type: ignore[index]
            return self._of_bank(name, bank, caller)
        answerer = runtime.answering.resolve(name, caller=caller, domain=None, text="")
        adapters = answerer.adapters
        # A live adapter acts on its parent, which its digest does not name.
        parent = str(answerer.detail.get("parent_revision"))
        return LocalSubject(
            runtime.base,
            name=name,
            digest=digest_json([runtime.base.digest, answerer.adapter, parent]),
            choose=lambda prompt: adapters,
            engine=runtime.engine,
        )

    def _of_bank(self, name: str, bank: Bank, caller: Caller) -> LocalSubject:
        policy, embed = self._runtime.policy, self._runtime.encoder.embed

        def may_use(domain: str) -> bool:
            return policy is None or policy.may_use(domain, caller.tenant)

        def choose(prompt: str) -> tuple[Lora, ...]:
            return bank.stack(bank.pick(prompt, embed, among=may_use).domain)

        return LocalSubject(
            self._runtime.base,
            name=name,
            digest=digest_json([self._runtime.base.digest, bank.revision.digest, caller.tenant]),
            choose=choose,
            engine=self._runtime.engine,
        )

    def _bank(self, number: int) -> Bank:
        if number == self._runtime.revision:
            return self._runtime.bank
        if number not in self._banks:
            with self._runtime.state.read() as tx:
                revision = Revision.from_manifest(tx.get_revision(number).manifest)
            self._banks[number] = load_bank(revision, self._runtime.state, self._runtime.base)
            while len(self._banks) > MAX_BANKS:
                self._banks.popitem(last=False)
        return self._banks[number]
