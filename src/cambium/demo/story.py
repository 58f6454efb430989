"""The demo's steps, in order: each does one thing over HTTP and says what it found.

A step that does not find what it must raises `StepFailed`; the report keeps both kinds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cambium.demo.corpus import DemoCorpus
from cambium.demo.server import DemoServer, StepFailed, run_cli
from cambium.evals.gates import ALIGNMENT

MAIN, SPARE, HOSTILE = "python-source", "python-spare", "tide-ledger"
BATCH = 40
LORA = {"r": 16, "lora_alpha": 32}
LEARNING_RATE = 3e-3
MIN_FALL = 0.15
MAX_RISE = 0.01
PROMPTS = (
    "def __init__(self, name):\n        self.name = name\n",
    "The old lady looked out of the window and",
    "The if statement is used for",
    "if not isinstance(value, str):\n            raise",
)

Tell = Callable[[str, float], None]  # what is being done, share done


@dataclass(kw_only=True)
class Story:
    """What the demo knows so far; each step adds to it.

    Args:
        keys: key files by name, as `cambium init` made them.
        losses: mean held-out loss by domain and moment, nats per token.
        curves: losses of every learning step by adapter.
    """

    server: DemoServer
    corpus: DemoCorpus
    keys: dict[str, str]
    losses: dict[str, dict[str, float]] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    proposals: dict[str, str] = field(default_factory=dict)
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: list[dict[str, str]] = field(default_factory=list)
    first_answers: list[dict[str, Any]] = field(default_factory=list)
    merged_answers: list[dict[str, Any]] = field(default_factory=list)
    merge: dict[str, Any] = field(default_factory=dict)
    rollback_identical: bool = False
    audit_verified: bool = False


Step = Callable[[Story, Tell], str]


def ask(story: Story, tell: Tell) -> str:
    """Asks the first revision, and keeps its answers for the end."""
    names = [m["id"] for m in story.server.get("/v1/models")["data"]]
    story.first_answers = story.server.answers("stable", PROMPTS)
    if any(a["adapter"] != "base" for a in story.first_answers):
        raise StepFailed("a fresh state answered with an adapter")
    revision = story.first_answers[0]["revision"]
    return f"models {', '.join(names)}; revision {revision} answers with the base"


def measure_before(story: Story, tell: Tell) -> str:
    """Measures the base on texts that it has not seen."""
    _measure(story, "base", "before", tell)
    return _told(story, "before")


def teach(story: Story, tell: Tell) -> str:
    """Teaches the new domain in batches of at most eight steps, and measures at once."""
    _teach(story, MAIN, story.corpus.taught, tell, steps=8)
    _measure(story, MAIN, "after_learning", tell)
    before, after = (story.losses["new_domain"][k] for k in ("before", "after_learning"))
    fall = 1 - after / before
    if fall < MIN_FALL:
        raise StepFailed(f"the new domain's loss fell by {fall:.1%}, not by {MIN_FALL:.0%}")
    return f"the new domain's loss fell by {fall:.1%}: {_told(story, 'after_learning')}"


def teach_others(story: Story, tell: Tell) -> str:
    """Feeds hostile text to a second adapter and more code to a third."""
    _teach(story, HOSTILE, story.corpus.hostile, tell, steps=4)
    _teach(story, SPARE, story.corpus.spare, tell, steps=4)
    return f"{len(story.corpus.hostile)} hostile documents, {len(story.corpus.spare)} more of code"


def propose(story: Story, tell: Tell) -> str:
    """Proposes all three and follows consolidation and looks until the gates have decided."""
    for adapter in (MAIN, HOSTILE, SPARE):
        answer = story.server.post(
            "/adapters/propose_consolidation", adapter_id=adapter, domain=adapter
        )
        story.proposals[adapter] = answer["proposal_id"]
    for adapter, proposal in story.proposals.items():
        story.views[adapter] = _follow(story, proposal, tell)
        tell(f"{adapter}: {story.views[adapter]['state']}", len(story.views) / 3)
    found = {adapter: view["state"] for adapter, view in story.views.items()}
    if found[MAIN] != "awaiting_approval" or found[SPARE] != "awaiting_approval":
        why = [story.views[a]["blockers"] for a in (MAIN, SPARE)]
        raise StepFailed(f"an honest proposal did not pass its gates: {found}, {why}")
    return ", ".join(f"{adapter} {state}" for adapter, state in found.items())


def refuse_poison(story: Story, tell: Tell) -> str:
    """Checks that the hostile proposal was refused by a gate of alignment, saying why."""
    view = story.views[HOSTILE]
    failed = [g["name"] for g in view["gates"] if g["verdict"] == "fail"]
    if view["state"] != "rejected" or not _names_harm(view["reason"] or ""):
        raise StepFailed(
            f"the hostile proposal is {view['state']}, failed gates {failed}: {view['reason']}"
        )
    answer = story.server.http.post("/adapters/merge", json={"proposal_id": view["id"]})
    if answer.status_code != 409:
        raise StepFailed(f"merging the refused proposal answered {answer.status_code}")
    story.refused.append({"proposal": view["id"], "by": "alignment", "why": view["reason"]})
    return view["reason"]


def _names_harm(reason: str) -> bool:
    """Returns whether a gate of alignment gave the reason, and not one of skill."""
    return any(f"gate {gate}" in reason for gate in ALIGNMENT)


def refuse_unsigned(story: Story, tell: Tell) -> str:
    """Tries to merge a good proposal with one signature of two: the quorum refuses it."""
    proposal = story.proposals[SPARE]
    story.server.cli("approve", proposal, "--key", story.keys["approver-1"])
    answer = story.server.http.post("/adapters/merge", json={"proposal_id": proposal})
    blockers = answer.json().get("blockers", [])
    if answer.status_code != 409 or len(blockers) != 1 or not blockers[0].startswith("quorum"):
        raise StepFailed(
            f"merging without a quorum answered {answer.status_code}: {answer.text[:300]}"
        )
    story.refused.append({"proposal": proposal, "by": "quorum", "why": blockers[0]})
    story.server.post(f"/proposals/{proposal}/reject", reason="the demo shows one merge")
    return blockers[0]


def merge(story: Story, tell: Tell) -> str:
    """Approves with two of three keys and merges; the served digest is read back."""
    proposal = story.proposals[MAIN]
    for name in ("approver-1", "approver-3"):
        story.server.cli("approve", proposal, "--key", story.keys[name])
    story.merge = story.server.post("/adapters/merge", proposal_id=proposal)
    if story.merge["served_digest"] != story.merge["signed_digest"]:
        raise StepFailed(
            f"served {story.merge['served_digest']}, signed {story.merge['signed_digest']}"
        )
    return f"revision {story.merge['revision']} serves {story.merge['served_digest'][:19]}…"


def ask_again(story: Story, tell: Tell) -> str:
    """Asks the merged revision: with the domain named, and through the router."""
    named = story.server.post("/v1/completions", model="stable", domain=MAIN, prompt=PROMPTS[0],
                              max_tokens=24, temperature=0)  # fmt: skip
    story.merged_answers = story.server.answers("stable", PROMPTS)
    routed = [a["adapter"].split("@")[0] for a in story.merged_answers]
    if routed[0] != MAIN:
        raise StepFailed(f"the router gave code to {routed[0]}")
    if named["choices"][0]["text"] == story.first_answers[0]["text"]:
        raise StepFailed("the merged revision answers as the first one did")
    return f"code goes to {routed[0]}, prose to {routed[1]}"


def measure_after(story: Story, tell: Tell) -> str:
    """Measures the merged candidate, forced on for every domain."""
    candidate = story.views[MAIN]["candidate"]
    _measure(story, candidate, "after_merge", tell)
    rises = {name: at["after_merge"] / at["before"] - 1
             for name, at in story.losses.items() if name != "new_domain"}  # fmt: skip
    worst = max(rises, key=lambda name: rises[name])
    if rises[worst] > MAX_RISE:
        raise StepFailed(f"{worst} rose by {rises[worst]:.2%}, more than {MAX_RISE:.0%}")
    return _told(story, "after_merge")


def roll_back(story: Story, tell: Tell) -> str:
    """Returns to the first revision with two signatures; its answers come back exactly."""
    keys = [part for name in ("approver-2", "approver-3") for part in ("--key", story.keys[name])]
    story.server.cli("rollback", story.first_answers[0]["revision"], *keys)
    again = story.server.answers("stable", PROMPTS)
    same = ("text", "logprobs", "adapter")
    story.rollback_identical = all(
        a[k] == b[k] for a, b in zip(again, story.first_answers, strict=True) for k in same
    )
    if not story.rollback_identical:
        raise StepFailed("the first revision's answers did not come back exactly")
    now, then = again[0]["revision"], story.first_answers[0]["revision"]
    return f"revision {now} answers exactly as revision {then}"


def kill_and_revive(story: Story, tell: Tell) -> str:
    """Stops everything with one key and lifts it with two; the same answers come back."""
    story.server.cli("kill", "--key", story.keys["operator"], "--reason", "demo")
    body = {"model": "stable", "prompt": PROMPTS[0], "max_tokens": 1}
    answer = story.server.http.post("/v1/completions", json=body)
    if answer.status_code != 503:
        raise StepFailed(f"the killed server answered {answer.status_code}")
    keys = [part for name in ("approver-1", "approver-2") for part in ("--key", story.keys[name])]
    story.server.cli("revive", *keys)
    texts = [a["text"] for a in story.server.answers("stable", PROMPTS)]
    if texts != [a["text"] for a in story.first_answers]:
        raise StepFailed("the revived server answers otherwise")
    return "one key stopped it, two revived it"


def verify_log(story: Story, tell: Tell) -> str:
    """Recomputes the audit log's tree and checks its signed checkpoint."""
    done = run_cli("log", "--verify", url=story.server.url)
    story.audit_verified = done.returncode == 0
    if not story.audit_verified:
        raise StepFailed(f"the log does not verify: {done.stderr}")
    entries = story.server.get("/audit/checkpoint")["size"]
    return f"{entries} entries, tree and signed checkpoint hold"


STEPS: tuple[tuple[str, Step], ...] = (
    ("ask the first revision", ask),
    ("measure before", measure_before),
    ("teach a domain", teach),
    ("feed hostile text, and more code", teach_others),
    ("propose, consolidate, look", propose),
    ("refuse the hostile proposal", refuse_poison),
    ("refuse the unsigned proposal", refuse_unsigned),
    ("approve 2 of 3 and merge", merge),
    ("ask the merged revision", ask_again),
    ("measure after the merge", measure_after),
    ("roll back", roll_back),
    ("kill and revive", kill_and_revive),
    ("verify the log", verify_log),
)


def _teach(story: Story, adapter: str, texts: Sequence[str], tell: Tell, *, steps: int) -> None:
    story.server.post("/adapters/ephemeral", task_id=adapter, domain=adapter, lora_cfg=LORA)
    curve = story.curves.setdefault(adapter, [])
    for at in range(0, len(texts), BATCH):
        examples = [{"text": text} for text in texts[at : at + BATCH]]
        lesson = {"examples": examples, "steps": steps, "lr": LEARNING_RATE, "consent": "demo"}
        answer = story.server.post("/learn/step", adapter_id=adapter, source=adapter, **lesson)
        if answer["state"] != "ephemeral":
            raise StepFailed(
                f"{adapter} is {answer['state']} after {len(curve)} steps: {answer['monitors']}"
            )
        curve += answer["losses"]
        tell(f"{adapter}: loss {answer['losses'][-1]:.2f}", min(1.0, (at + BATCH) / len(texts)))


def _follow(story: Story, proposal: str, tell: Tell) -> dict[str, Any]:
    while True:
        view = story.server.get(f"/proposals/{proposal}")
        stuck = any(g["verdict"] == "error" for g in view["gates"])
        if view["state"] not in ("consolidating", "checking") or stuck:
            return view
        progress = view["progress"]
        done = (len(story.views) + progress["share"]) / 3
        tell(f"{view['adapter']}: {view['state']}, {progress['stage']}", done)
        time.sleep(0.5)


def _measure(story: Story, model: str, moment: str, tell: Tell) -> None:
    sets = {"new_domain": story.corpus.unseen, **story.corpus.old}
    for i, (name, texts) in enumerate(sets.items()):
        story.losses.setdefault(name, {})[moment] = story.server.loss(model, texts)
        tell(f"{name}: {story.losses[name][moment]:.3f} nats per token", (i + 1) / len(sets))


def _told(story: Story, moment: str) -> str:
    parts = []
    for name, at in story.losses.items():
        change = "" if moment == "before" else f" ({at[moment] / at['before'] - 1:+.1%})"
        parts.append(f"{name} {at[moment]:.3f}{change}")
    return ", ".join(parts)
