"""The behavioural diff of a proposal: what its candidate writes beside what its parent writes.

It is computed by itself once the gates have passed. Of any other frozen candidate, a refused one
above all, it is computed when a reviewer asks, which moves no proposal. It is kept beside it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cambium.core.canonical import digest_json
from cambium.core.errors import CambiumError, IllegalTransition, Stopped
from cambium.core.nouns import ProposalState
from cambium.evals.behaviour import BehaviourConfig, PromptBank, behaviour_diff, prompt_bank
from cambium.evals.behaviour.sampling import SamplingPlan, sample_arms
from cambium.evals.local_subject import LocalSubject
from cambium.learn.examples import Example, encode_example
from cambium.models.adapter import Adapter
from cambium.models.adapter_kinds import read_adapter
from cambium.models.encoder import Encoder
from cambium.models.engine import Engine
from cambium.serve.bank import Bank, load_bank
from cambium.serve.checking import Checker
from cambium.serve.errors import SystemKilled
from cambium.serve.following import Following
from cambium.serve.jobs import AWAY
from cambium.serve.proposal_records import Filed, to_row
from cambium.serve.proposals import Proposals
from cambium.serve.publish import Published
from cambium.serve.revision_records import revision_from_manifest

OPENING_TOKENS = 16
OPEN = frozenset({ProposalState.AWAITING_APPROVAL, ProposalState.MERGEABLE})
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Describer:
    """Compares what a candidate writes with what its parent writes.

    It is for people to read and blocks nothing; the evidence that blocks is the gates'.

    Args:
        num_prompts: of the fixed bank; up to a third as many openings of the domain's own kept
            documents come beside them.
    """

    proposals: Proposals
    published: Published
    checker: Checker
    engine: Engine
    encoder: Encoder
    num_prompts: int
    deciding: Following
    # Both by what is to be compared. Who asked before a stop of the server has to ask again.
    _failed: dict[str, str] = field(default_factory=lambda: {})
    _asked: set[str] = field(default_factory=lambda: set())

    def found(self, filed: Filed) -> dict[str, Any]:
        """Returns the diff as it is kept, or why there is none and whether one can be asked for."""
        state, arms = filed.proposal.state, digest_json(_arms_of(filed))
        kept = self._kept(filed)
        if kept is not None:
            return {"available": True, **kept}
        if not self.num_prompts:
            return {"available": False, "why": "this server is set up to compute none"}
        if filed.proposal.candidate_digest is None:
            return {"available": False, "why": "no candidate is frozen"}
        if why := self._failed.get(arms):
            return {"available": False, "askable": True, "why": why}
        if state in OPEN or arms in self._asked:
            return {"available": False, "pending": True, "why": "it is being computed"}
        why = "it had not been computed before the merge"
        if state is not ProposalState.MERGED:
            why = f"it is computed by itself once the gates have passed, and this one is {state}; "
            why += "a reviewer can ask for it"
        return {"available": False, "askable": True, "why": why}

    def check_askable(self, filed: Filed) -> None:
        """Returns if there is a candidate of which no diff is there or under way.

        Raises:
            IllegalTransition: there is not.
        """
        found = self.found(filed)
        if not found.get("askable"):
            raise IllegalTransition(
                f"no diff of {filed.proposal.id} can be asked for: "
                f"{found.get('why', 'it is there already')}",
                mend=f"see GET /proposals/{filed.proposal.id}/diff",
            )

    def want(self, filed: Filed) -> None:
        """Has the next `run` compute the diff, whatever became of the proposal."""
        arms = digest_json(_arms_of(filed))
        self._failed.pop(arms, None)
        self._asked.add(arms)

    def is_missing(self, filed: Filed) -> bool:
        """Returns whether there is something to compute that did not fail before."""
        return bool(self.found(filed).get("pending"))

    def run(self, proposal_id: str) -> None:
        """Computes and keeps the diff of a proposal that has to have one."""
        filed, bank = self.checker.as_it_stands(proposal_id)
        if not self.is_missing(filed):
            return
        # Against any other parent, a candidate might be compared with itself.
        is_head = bank.revision.digest == filed.proposal.parent_digest
        if not is_head and filed.proposal.state in OPEN:
            return
        arms = digest_json(_arms_of(filed))
        try:
            parent = bank if is_head else self._parent(filed)
            self._keep(filed, self._computed(filed, parent))
        except AWAY:
            raise  # it is tried again, and asked for still
        except (Stopped, SystemKilled):
            pass
        except CambiumError as error:
            self._failed[arms] = error.one_line()
            _log.warning("no behavioural diff of %s: %s", proposal_id, error.one_line())
        except Exception as error:
            # Said where people look for it; without this it would be begun again forever.
            self._failed[arms] = f"{type(error).__name__}: {error}"
            self._asked.discard(arms)
            raise
        self._asked.discard(arms)

    def _parent(self, filed: Filed) -> Bank:
        """Returns the bank that the candidate was made on, which is not served any more."""
        state = self.proposals.state
        with state.read() as tx:
            row = tx.get_revision(filed.proposal.parent_revision)
        return load_bank(revision_from_manifest(row.manifest), state, self.engine.base)

    def _keep(self, filed: Filed, record: dict[str, Any]) -> None:
        blob = self.proposals.state.blobs.put(json.dumps(record).encode())
        with self.deciding.transaction() as tx:
            self.proposals.kill.check_recorded(tx)
            now = self.proposals.get(filed.proposal.id)
            tx.put_proposal(to_row(replace(now, behaviour_blob=blob), at=self.proposals.now_ms()))

    def _kept(self, filed: Filed) -> dict[str, Any] | None:
        if filed.behaviour_blob is None:
            return None
        record: dict[str, Any] = json.loads(self.proposals.state.blobs.get(filed.behaviour_blob))
        return record if record["of"] == _arms_of(filed) else None

    def _computed(self, filed: Filed, parent: Bank) -> dict[str, Any]:
        inputs = self.checker.inputs(filed)
        candidate = read_adapter(self.checker.candidate_bytes(filed), self.engine.base)
        bank = self._prompts(filed, inputs.kept, candidate)
        plan = SamplingPlan(seed=inputs.seed % 2**62)
        before = self._subject(filed, "parent", parent.stack(filed.proposal.domain))
        after = self._subject(filed, "candidate", (candidate,))
        arms = sample_arms(before, after, bank.prompts, plan=plan)
        found = behaviour_diff(
            bank.prompts, *arms, embed=self.encoder.embed, config=BehaviourConfig()
        )
        return {
            "of": _arms_of(filed),
            "prompts": bank.digest,
            "sampling": vars(plan),
            **found.to_json(),
        }

    def _subject(self, filed: Filed, name: str, adapters: tuple[Adapter, ...]) -> LocalSubject:
        base = self.engine.base
        return LocalSubject(
            base,
            name=name,
            digest=digest_json([base.digest, name, filed.proposal.candidate_digest]),
            choose=lambda prompt: adapters,
            engine=self.engine,
        )

    def _prompts(self, filed: Filed, kept: Sequence[Example], candidate: Adapter) -> PromptBank:
        """Returns the bank's first prompts, and openings of documents never learned from.

        Openings are shown with what is written after them, so that only documents whose consent
        still stands give any.
        """
        base = self.engine.base
        with self.proposals.state.read() as tx:
            standing = {row.digest for row in tx.list_examples(filed.proposal.adapter_name)}
        room = base.context - candidate.num_virtual
        firsts = [
            encode_example(base.tokenizer, example.accepted, room)[0].tokens[:OPENING_TOKENS]
            for example in kept
            if example.digest in standing
        ]
        decode = base.tokenizer.decode
        openings = (
            decode(list(tokens), skip_special_tokens=True)
            for tokens in firsts[: self.num_prompts // 3]
        )
        bank = prompt_bank().first(self.num_prompts)
        return bank.with_openings(tuple(o for o in openings if o.strip()))


def _arms_of(filed: Filed) -> dict[str, Any]:
    proposal = filed.proposal
    return {"parent": proposal.parent_digest, "candidate": proposal.candidate_digest}
