"""The behavioural diff of a proposal: computed once its gates have passed, kept beside it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace
from typing import Any

from cambium.core.canonical import digest_json
from cambium.core.errors import CambiumError, Stopped
from cambium.core.nouns import ProposalState
from cambium.evals.behaviour import BehaviourConfig, PromptBank, behaviour_diff, prompt_bank
from cambium.evals.behaviour.sampling import SamplingPlan, sample_arms
from cambium.evals.gates import GateContext
from cambium.evals.local_subject import LocalSubject
from cambium.models.adapter import Adapter
from cambium.models.encoder import Encoder
from cambium.models.engine import Engine
from cambium.serve.checking import Checker
from cambium.serve.errors import SystemKilled
from cambium.serve.following import Following
from cambium.serve.jobs import AWAY
from cambium.serve.proposal_records import Filed, to_row
from cambium.serve.proposals import Proposals
from cambium.serve.publish import Published

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
    _failed: dict[str, str] = field(default_factory=lambda: {})  # by what was to be compared

    def found(self, filed: Filed) -> dict[str, Any]:
        """Returns the diff as it is kept, or why there is none."""
        state = filed.proposal.state
        kept = self._kept(filed)
        if kept is not None:
            return {"available": True, **kept}
        if why := self._failed.get(digest_json(_arms_of(filed))):
            return {"available": False, "why": why}
        if not self.num_prompts:
            return {"available": False, "why": "this server is set up to compute none"}
        if state in OPEN:
            return {"available": False, "pending": True, "why": "it is being computed"}
        if state is ProposalState.MERGED:
            return {"available": False, "why": "it had not been computed before the merge"}
        why = f"it is computed once the gates have passed, and this proposal is {state}"
        return {"available": False, "why": why}

    def is_missing(self, filed: Filed) -> bool:
        """Returns whether there is something to compute that did not fail before."""
        return bool(self.found(filed).get("pending"))

    def run(self, proposal_id: str) -> None:
        """Computes and keeps the diff of a proposal whose gates have passed."""
        filed, bank = self.checker.as_it_stands(proposal_id)
        # Against any other parent, a candidate might be compared with itself.
        if not self.is_missing(filed) or bank.revision.digest != filed.proposal.parent_digest:
            return
        arms = digest_json(_arms_of(filed))
        try:
            context = self.checker.context(filed, bank)
            self._keep(filed, self._computed(context, filed))
        except (Stopped, SystemKilled):
            return
        except AWAY:
            raise
        except CambiumError as error:
            self._failed[arms] = error.one_line()
            _log.warning("no behavioural diff of %s: %s", proposal_id, error.one_line())
            return
        except Exception as error:
            # Said where people look for it; without this it would be begun again forever.
            self._failed[arms] = f"{type(error).__name__}: {error}"
            raise

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

    def _computed(self, context: GateContext, filed: Filed) -> dict[str, Any]:
        bank = _prompts(context, self.num_prompts)
        plan = SamplingPlan(seed=context.seed % 2**62)
        before, after = (
            self._subject(context, name, adapters)
            for name, adapters in (("parent", context.parent), ("candidate", context.candidate))
        )
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

    def _subject(
        self, context: GateContext, name: str, adapters: tuple[Adapter, ...]
    ) -> LocalSubject:
        return LocalSubject(
            context.base,
            name=name,
            digest=digest_json([context.base.digest, name, context.candidate_bytes.digest]),
            choose=lambda prompt: adapters,
            engine=self.engine,
        )


def _prompts(context: GateContext, num_prompts: int) -> PromptBank:
    """Returns the bank's first prompts, and openings of documents that were never learned from."""
    decode = context.base.tokenizer.decode
    openings = tuple(
        decode(list(document.windows[0][0][:OPENING_TOKENS]), skip_special_tokens=True)
        for document in context.documents[: num_prompts // 3]
    )
    return prompt_bank().first(num_prompts).with_openings(tuple(o for o in openings if o.strip()))


def _arms_of(filed: Filed) -> dict[str, Any]:
    proposal = filed.proposal
    return {"parent": proposal.parent_digest, "candidate": proposal.candidate_digest}
