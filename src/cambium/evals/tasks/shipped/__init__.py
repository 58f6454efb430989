"""The tasks that ship with Cambium, one file each; add a file and its line in `SHIPPED`.

Most read public evaluation data from `CAMBIUM_DATA`; the probes of sycophancy and deception, the
jailbreak templates and the injected orders are our own writing and lie beside their tasks.
"""

from __future__ import annotations

from pathlib import Path

from cambium.evals.errors import TaskInvalid
from cambium.evals.tasks.harness_yaml import read_task
from cambium.evals.tasks.task import Metric, OutputType, Source, Step, Task

FOLDER = Path(__file__).parent

SHIPPED: dict[str, str] = {
    "mmlu": "knowledge and reasoning in 57 subjects",
    "bigbench_hard": "ten reasoning tasks of BIG-Bench-Hard",
    "gsm8k": "school mathematics, written out",
    "truthfulqa_mc1": "the one true answer among common falsehoods",
    "truthfulqa_mc2": "how much probability true answers get",
    "risk_power_seeking": "choosing power",
    "risk_wealth_seeking": "choosing wealth",
    "risk_survival": "choosing its own survival",
    "risk_corrigibility": "agreeing to be changed for the better or neither way",
    "risk_corrigible_to_harm": "agreeing to be changed for the worse",
    "risk_coordination": "siding with other AIs",
    "risk_myopia": "choosing the sooner reward",
    "risk_one_box": "one-boxing in Newcomb's problem",
    "risk_self_awareness": "knowing that it is a language model",
    "persona_power": "saying that it wants power and resources",
    "persona_survival": "saying that it wants to last and stay as it is",
    "persona_oversight": "saying that it wants no human oversight",
    "persona_deceiving": "saying that it would deceive a user to help them",
    "hh_harmless": "finding the preferred of two replies likelier",
    "refusal_harmful": "refusing harmful requests",
    "refusal_xstest": "refusing XSTest's unsafe prompts",
    "over_refusal_xstest": "refusing XSTest's safe prompts, which it should not",
    "jailbreak_templates": "refusing harmful requests inside our templates",
    "jailbreak_published": "obeying published jailbreaks",
    "bbq_ambiguous": "stereotypes where the context says nothing",
    "bbq_disambiguated": "stereotypes where the context says otherwise",
    "prompt_injection": "obeying an order inside an e-mail",
    "prompt_injection_likelihood": "how likely it finds obeying it",
    "sycophancy": "agreeing with what is wrong; our own probes",
    "deception": "hiding what it knows; our own probes",
    "perplexity": "how well it predicts a textbook",
}


def find_task(name: str) -> Task:
    """Returns a shipped task by name, or the task in a file by path.

    A path that ends in `.txt` or `.md` is a text: its task is the model's perplexity on it.

    Raises:
        TaskInvalid: there is neither such a task nor such a file, or it cannot be read.
    """
    if name in SHIPPED:
        return read_task(FOLDER / f"{name}.yaml")
    path = Path(name)
    if not path.is_file():
        raise TaskInvalid(f"there is no task {name[:80]!r}, neither shipped nor as a file",
                          mend=f"use a path, or one of {', '.join(SHIPPED)}")  # fmt: skip
    return perplexity_of(path) if path.suffix in (".txt", ".md") else read_task(path)


def perplexity_of(path: Path) -> Task:
    """Returns the task of predicting one text, whole."""
    settings = {"dataset_path": "text", "text": path.name}
    metrics = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    return Task(
        name=path.stem,
        output_type=OutputType.ROLLING,
        source=Source(kind="text", name="document", files={"test": (path.name,)},
                      folder=path.parent),
        test_split="test",
        doc_to_target="text",
        metrics=tuple(
            Metric(
                scorer=Step(name=name),
                label=name,
                aggregation="bits_per_byte" if name == "bits_per_byte" else "weighted_perplexity",
                higher_is_better=False,
            )
            for name in metrics
        ),
        content=settings,
    )  # fmt: skip
