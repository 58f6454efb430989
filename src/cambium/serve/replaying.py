"""`replay`: derives an adapter once more from the manifests of how it came to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cambium.core.errors import DataError
from cambium.learn.lesson import LearnConfig, Learner
from cambium.learn.manifest import machine, replay
from cambium.models.lora import fresh_lora, read_config, to_bytes
from cambium.serve.bank import load_bank, parent_of
from cambium.serve.checking import Checker
from cambium.serve.ephemeral import EphemeralAdapters
from cambium.serve.errors import AdapterExpired, AdapterNotFound
from cambium.serve.lessons import fresh_seed, kept_example, windows_of
from cambium.serve.proposal_records import from_row
from cambium.serve.revision_records import revision_from_manifest
from cambium.serve.store.records import AdapterRecord
from cambium.serve.store.state import State


@dataclass(frozen=True, kw_only=True)
class ReplayedCall:
    """One call to learn or one consolidation, as it was recorded and as it came out now.

    Args:
        steps: of a call; of a consolidation, its epochs.
    """

    call: int
    steps: int
    digest: str
    replayed: str
    same_machine: bool

    @property
    def ok(self) -> bool:
        """Returns whether the digests agree."""
        return self.digest == self.replayed


def replay_adapter(adapters: EphemeralAdapters, state: State, name: str) -> list[ReplayedCall]:
    """Returns every call of the adapter's life, taken again from its fresh start.

    Serving, learning and the adapter itself are not touched.

    Raises:
        AdapterNotFound: no adapter has this name.
        AdapterExpired: its texts and weights are gone.
        ConsentMissing: some call was without consent, so its texts were never kept.
        DataError: a call from before there were manifests.
    """
    record = adapters.get(name)
    if record.weights_blob is None:
        raise AdapterExpired(f"adapter {name!r} is gone, and its texts with it",
                             mend="replay an adapter that is alive")  # fmt: skip
    with state.read() as tx:
        calls = tx.list_learn_steps(name)
        kept = {row.digest: row.blob for row in tx.list_examples(name)}
    learner = _start(adapters, state, record)
    done = []
    for number, call in enumerate(calls, 1):
        config: Mapping[str, Any] = dict(call.manifest)
        if "examples" not in config:
            raise DataError(f"call {number} has no manifest", mend="replay what was learned since")
        taken = LearnConfig(
            steps=int(config["config"]["steps"]),
            seed=int(config["config"]["seed"]),
            tokens_per_step=int(config["config"]["tokens_per_step"]),
        )
        examples = [kept_example(state, kept, str(digest)) for digest in config["examples"]]
        windows = windows_of(adapters.base, examples, loss=config["config"]["loss"])
        old = adapters.rehearsing.rehearsal(config["rehearsed"], kept, taken)
        result = replay(adapters.model, config, learner, windows, rehearsal=old)
        data = to_bytes(result.lora, fan_in_fan_out=adapters.base.transposed)
        learner = Learner(lora=result.lora, parent=learner.parent, optimizer=result.optimizer)
        done.append(
            ReplayedCall(
                call=number,
                steps=call.steps,
                digest=call.digest_after,
                replayed=data.digest,
                same_machine=config["machine"] == machine(adapters.model),
            )
        )
    return done


def replay_candidate(
    checker: Checker, adapters: EphemeralAdapters, state: State, name: str, digest: str
) -> ReplayedCall:
    """Returns a frozen or stable version consolidated again from the revision it was made on.

    Nothing is changed. It takes as long as the consolidation did.

    Raises:
        AdapterNotFound: no proposal froze this version.
        DataError: it was frozen before there were manifests.
    """
    with state.read() as tx:
        filed = next(
            (
                f
                for f in map(from_row, tx.list_proposals())
                if (f.proposal.adapter_name, f.proposal.candidate_digest) == (name, digest)
            ),
            None,
        )
        if filed is None:
            raise AdapterNotFound(
                f"no proposal froze {name[:80]!r}@{digest[:71]}", mend="see GET /proposals"
            )
        made: dict[str, Any] = filed.made_from or {}
        if not made:
            raise DataError("this version has no manifest", mend="replay one frozen since")
        revision = revision_from_manifest(tx.get_revision(int(made["revision"])).manifest)
    again = checker.derive_again(filed, load_bank(revision, state, adapters.base))
    return ReplayedCall(
        call=1,
        steps=made["config"]["epochs"],
        digest=digest,
        replayed=again.digest,
        same_machine=made["machine"] == machine(adapters.model),
    )


def _start(adapters: EphemeralAdapters, state: State, record: AdapterRecord) -> Learner:
    config = read_config(record.config_json.encode())
    sites = adapters.base.targets(config)
    lora = fresh_lora(config, sites, seed=fresh_seed(record.name))
    return Learner(lora=lora, parent=parent_of(record, state, adapters.base))
