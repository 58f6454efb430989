"""Changing the rules of a running state: what a new policy would widen, and who must say yes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from cambium.core.canonical import digest_bytes, digest_json
from cambium.core.errors import PolicyInvalid, ReplayDetected
from cambium.core.nouns import Action, Signature
from cambium.lifecycle.situation import Situation
from cambium.trust.keys import PublicKey
from cambium.trust.policy import MAX_NUMBER, Policy, SignedPolicy, verify_policy
from cambium.trust.quorum import Approver, met

_STRICTEST = {"profile": "production", "kill.then": "nothing"}
_ROLES = ("evaluators.k", "attesters.k")
_STRICTER_WHEN_MORE = {"k", "threshold", "passes_required", "min_items", "confidence",
                       "min_novelty", "min_entropy", "wins_window"}  # fmt: skip
# Whatever else is a number there is stricter when it is less.
_BUDGETS = ("learning.", "traffic.", "ledger.", "gates.", "approvers.list.", "kill.operators.",
            "evaluators.list.", "attesters.list.")  # fmt: skip


def authorise_policy(
    signed: SignedPolicy,
    signatures: Sequence[Signature],
    *,
    situation: Situation,
    root_public: PublicKey,
    new_root: PublicKey | None = None,
) -> tuple[Policy, tuple[str, ...], tuple[Signature, ...]]:
    """Returns the new policy, what it widens, and the others' signatures that it needed.

    The root signs every policy. One that widens anything also needs k approvers of the policy in
    force, who sign `widen_scope` over the digest of the text; where fewer than k are left, the
    root alone can put others in their place, and nothing else.

    Args:
        new_root: the key that signed, where it takes the root's place; the root in office signs
            `policy` over `hand_over_target` for that.

    Raises:
        SignatureInvalid, DigestMismatch, PolicyInvalid: the root did not sign this text as a
            policy, it is another state's, its version is not higher, or it lists a revoked key.
        ReplayDetected: it was signed for another version of the state.
        ThresholdNotMet: it widens, and fewer than k approvers say yes; or the root in office does
            not hand over to the new one.
    """
    old, new = situation.policy, verify_policy(signed, new_root or root_public)
    if signed.signature.act.state_version != situation.state_version:
        raise ReplayDetected(f"the state's version is {situation.state_version} now",
                             mend="look at the policy in force and sign again")  # fmt: skip
    if new.state != old.state:
        raise PolicyInvalid("it is another state's policy", mend=f'write state = "{old.state}"')
    if new.version <= old.version:
        raise PolicyInvalid(f"version {new.version} is not above {old.version}",
                            mend="raise the policy's version")  # fmt: skip
    revoked, now = situation.revoked_keys, situation.now
    if gone := {p.name for people in new.people.values() for p in people if p.key_id in revoked}:
        raise PolicyInvalid(f"revoked keys are listed: {sorted(gone)}", mend="list new keys")
    handed: tuple[Signature, ...] = ()
    if new_root is not None:
        target = hand_over_target(signed.toml, new_root)
        handed = met(situation.count(signatures, action=Action.POLICY, target=target, k=1,
                                     people=[Approver(name="root", public=root_public)]),
                     Action.POLICY)  # fmt: skip
    wider = tuple(widenings(old.content, new.content))
    left = [a for a in old.approvers.list if a.key_id not in revoked and not a.has_expired(now)]
    if sum(not person.has_expired(now) for person in new.approvers.list) < new.approvers.k:
        raise PolicyInvalid("fewer than k of its approvers' keys still count", mend="list new keys")
    too_few = len(left) < old.approvers.k
    if not wider or (too_few and all(w.startswith("approvers.") for w in wider)):
        return new, wider, handed
    found = situation.count(signatures, action=Action.WIDEN_SCOPE,
                            target=digest_bytes(signed.toml), people=left)  # fmt: skip
    return new, wider, (*handed, *met(found, Action.WIDEN_SCOPE))


def hand_over_target(toml: bytes, new_root: PublicKey) -> str:
    """Returns what the root in office signs to make another key the root, from this policy on."""
    return digest_json({"root": new_root.digest, "policy": digest_bytes(toml)})


def widenings(old: Mapping[str, object], new: Mapping[str, object]) -> Iterator[str]:
    """Yields, of two policies' contents, where `new` is not known to be as strict as `old`."""
    was, now = dict(_leaves("", old)), dict(_leaves("", new))
    for path in sorted(was.keys() | now.keys()):
        anyway = path.startswith("domains.allowed.") and "domains.allowed.*" in was
        if not anyway and not _is_as_strict(path, was.get(path), now.get(path)):
            yield f"{path}: {was.get(path, 'not there')} -> {now.get(path, 'not there')}"


def _leaves(path: str, value: object) -> Iterator[tuple[str, object]]:
    """Yields single values by path; what a list holds is part of the path: names, people's keys."""
    if isinstance(value, Mapping):
        for name, inner in cast("Mapping[str, object]", value).items():
            yield from _leaves(f"{path}.{name}".lstrip("."), inner)
    elif isinstance(value, list):
        for item in cast("list[Any]", value):
            if path == "gates":
                yield from _leaves(f"gates.{item['name']}", item)
            elif isinstance(item, dict):
                yield f"{path}.{item['public']}", item["expires"] or MAX_NUMBER
            else:
                yield f"{path}.{item}", True
    else:
        yield path, value


def _is_as_strict(path: str, was: object, now: object) -> bool:
    name = path.rpartition(".")[2]
    free = path == "version" or (path.startswith("gates.") and name in ("metric", "max_items"))
    if was == now or free or (path in _STRICTEST and _STRICTEST[path] == now):
        return True
    if path.startswith("kill.operators.") or (now is None and path in _ROLES):
        return False  # more may stop everything, or fewer can; or a role goes to the server's key
    if was is None or now is None:
        # An owner or a gate that is new is stricter; of everything else, one that is gone.
        return (was is None) == path.startswith(("domains.owners.", "gates."))
    if not isinstance(was, (int, float)) or not isinstance(now, (int, float)):
        return False
    return now >= was if name in _STRICTER_WHEN_MORE else path.startswith(_BUDGETS) and now <= was
