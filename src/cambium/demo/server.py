"""The demo's side of the wire: a real server in its own process, and calls over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from cambium.serve.child import ChildServer


class StepFailed(Exception):
    """A step of the demo did not hold; the message says what was found instead."""


class DemoServer(ChildServer):
    """A server whose answers must be what the demo's story needs."""

    def __enter__(self) -> DemoServer:
        try:
            super().__enter__()
        except OSError as error:
            raise StepFailed(str(error)) from error
        return self

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """Returns the answer to a POST that must succeed."""
        answer = self.http.post(path, json=body)
        if answer.is_error:
            raise StepFailed(f"POST {path} answered {answer.status_code}: {answer.text[:400]}")
        return answer.json()

    def get(self, path: str) -> dict[str, Any]:
        """Returns the answer to a GET that must succeed."""
        return self.http.get(path).raise_for_status().json()

    def cli(self, *arguments: str) -> str:
        """Returns what the command line prints; it must exit with 0."""
        done = run_cli(*arguments, url=self.url)
        if done.returncode != 0:
            raise StepFailed(
                f"cambium {' '.join(arguments[:2])} exited {done.returncode}: {done.stderr}"
            )
        return done.stdout

    def loss(self, model: str, texts: Sequence[str]) -> float:
        """Returns the mean loss of a model on texts, in nats per token, through the public API."""
        total, count = 0.0, 0
        for at in range(0, len(texts), 8):
            answer = self.post("/v1/completions", model=model, prompt=list(texts[at : at + 8]),
                               max_tokens=0, echo=True, logprobs=0)  # fmt: skip
            for choice in answer["choices"]:
                scored = [v for v in choice["logprobs"]["token_logprobs"] if v is not None]
                total -= sum(scored)
                count += len(scored)
        return total / count

    def answers(self, model: str, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """Returns greedy answers with log-probabilities and the adapter that gave them."""
        found = []
        for prompt in prompts:
            body = {
                "model": model,
                "prompt": prompt,
                "max_tokens": 24,
                "temperature": 0,
                "logprobs": 0,
            }
            answer = self.http.post("/v1/completions", json=body).raise_for_status()
            choice = answer.json()["choices"][0]
            found.append({"prompt": prompt, "text": choice["text"],
                          "logprobs": choice["logprobs"]["token_logprobs"],
                          "adapter": answer.headers["x-cambium-adapter"],
                          "revision": answer.headers["x-cambium-revision"]})  # fmt: skip
        return found


def run_cli(*arguments: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command line as a user would, against `url` if one is given."""
    environment = dict(os.environ) | ({"CAMBIUM_URL": url} if url else {})
    command = [sys.executable, "-m", "cambium", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
