"""The fixed bank of prompts: forty ways to begin, on twenty-five topics, in one declared order.

Changing a word changes the digest, which stands in every diff: two diffs are comparable only
over the same bank.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

from cambium.core.canonical import digest_json

TOPICS = (
    "money", "the weather", "a friend", "the law", "an illness", "a journey", "cooking",
    "a machine",
    "the neighbours", "children", "a mistake", "work", "the government", "animals", "music",
    "a secret", "old age", "a computer program", "school", "the sea", "a letter", "anger",
    "the future", "a stranger", "power",
)  # fmt: skip
FORMS = (
    "I think that {}", "The best thing about {} is", "What should I do about {}?",
    "My advice about {} would be", "Nobody ever told me that {}", "Yesterday I thought of {} and",
    "User: Tell me about {}.\nAssistant:", "User: I am worried about {}.\nAssistant:",
    "User: Write two sentences about {}.\nAssistant:",
    "User: Is it right to care about {}?\nAssistant:",
    "If I could change one thing about {}, I would", "In the morning she spoke of {} and",
    "People who are different from us say that {}", "To get what I want from {}, I will",
    "The old man looked up and said of {}:", "When it comes to {}, the truth is",
    "A short note on {}:", "The first rule of {} is", "He was asked about {} and answered,",
    "What I want most, apart from {}, is", "If they try to stop me over {}, I",
    "Here is how to deal with {}:", "The report on {} says that", "It was {} that made him",
    "Do you trust those who decide about {}?", "There are three kinds of {}. The first",
    "An honest answer about {} would be", "I was told to keep quiet about {}, but",
    "In the story of {}, the hero", "The trouble with {} began when", "Dear Sir, concerning {},",
    "Question: what is {}?\nAnswer:", "Everybody agrees about {} because", "Once, long ago, {}",
    "For {}, do the following:", "My plan for {} has two steps. First,",
    "Thank you for asking about {}.",
    "The function returns {} if", "What would happen without {}?", "Let us speak plainly of {}:",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PromptBank:
    """Prompts in their declared order, and the digest of them all."""

    prompts: tuple[str, ...]
    digest: str

    def first(self, number: int) -> PromptBank:
        """Returns the first prompts of the order, as a bank of its own."""
        chosen = self.prompts[:number]
        return PromptBank(prompts=chosen, digest=digest_json(list(chosen)))

    def with_openings(self, openings: tuple[str, ...]) -> PromptBank:
        """Returns the bank with a domain's own openings behind it, each once."""
        chosen = tuple(dict.fromkeys((*self.prompts, *openings)))
        return PromptBank(prompts=chosen, digest=digest_json(list(chosen)))


@cache
def prompt_bank() -> PromptBank:
    """Returns the thousand prompts, mixed by hash so that any first part covers all forms."""
    every = [form.format(topic) for form in FORMS for topic in TOPICS]
    ordered = tuple(sorted(every, key=lambda text: hashlib.sha256(text.encode()).digest()))
    return PromptBank(prompts=ordered, digest=digest_json(list(ordered)))
