"""A real server with a tiny random Llama and two adapters, and the official client."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest
import torch
import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from tests.serving import People, Server, small_config, tiny_base
from tests.serving import served as whole_server
from transformers import LlamaConfig, LlamaForCausalLM

from cambium.models.base import BaseModel
from cambium.models.encoder import SentenceEncoder
from cambium.models.engine import Engine, EngineConfig
from cambium.models.lora import Lora, LoraConfig, fresh_lora
from cambium.models.tokenizer import TokenizerConfig, train_tokenizer
from cambium.serve.api.openai import (
    Answerer,
    ModelEntry,
    TraceDraft,
    openai_error_response,
    router,
)
from cambium.serve.api.openai.errors import learning_refused
from cambium.serve.errors import ModelNotFound

TEXTS = ["the tree grows a thin layer of cambium every year", "naïve café, 12 trees: {x}\n\n  end"]


@dataclass(kw_only=True)
class TinyRuntime:
    """The least that the API can run on, all of it real."""

    base: BaseModel
    engine: Engine
    adapters: dict[str, Lora]
    encoder: SentenceEncoder = field(default_factory=SentenceEncoder)
    revision: int = 3
    traces: queue.Queue[TraceDraft] = field(default_factory=queue.Queue)

    def models(self) -> list[ModelEntry]:
        names = ["base", *self.adapters]
        return [ModelEntry(id=name, created=1_700_000_000, owned_by="cambium") for name in names]

    def resolve(self, model: str, *, domain: str | None, text: str) -> Answerer:
        if model == "base":
            return Answerer(model=model, adapter="base", adapters=(), revision=self.revision)
        if model not in self.adapters:
            raise ModelNotFound(f"no model {model!r}", mend="see GET /v1/models")
        return Answerer(
            model=model,
            adapter=f"{model}@sha256:{'0' * 64}",
            adapters=(self.adapters[model],),
            revision=self.revision,
            detail={"domain": domain},
        )

    def offer(self, answerer: Answerer, text: str, request_id: str) -> None:
        raise learning_refused("nothing learns here", mend="leave learn out")

    def record(self, trace: TraceDraft) -> None:
        self.traces.put(trace)


@dataclass(frozen=True, kw_only=True)
class Served:
    """The server's address and what stands behind it."""

    url: str
    runtime: TinyRuntime


def build_llama(num_words: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=num_words,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(7)
    return LlamaForCausalLM(config).eval()


def build_runtime() -> TinyRuntime:
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(vocab_size=420, alphabet_size=60))
    model = build_llama(len(tokenizer))
    base = BaseModel(model, tokenizer, digest="sha256:" + "1" * 64, name="tiny")
    adapters = {}
    for i, name in enumerate(("one", "two")):
        config = LoraConfig(r=4, lora_alpha=8)
        fresh = fresh_lora(config, base.targets(config), seed=i)
        generator = torch.Generator().manual_seed(100 + i)
        b = {p: 0.3 * torch.randn(t.shape, generator=generator) for p, t in fresh.b.items()}
        adapters[name] = Lora(config=config, a=fresh.a, b=b)
    engine = Engine(base, EngineConfig(num_rows=8))
    return TinyRuntime(base=base, engine=engine, adapters=adapters)


def build_app(runtime: TinyRuntime) -> FastAPI:
    app = FastAPI()
    app.include_router(router(runtime))
    app.add_exception_handler(HTTPException, lambda _, error: openai_error_response(error))
    return app


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    runtime = build_runtime()
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(build_app(runtime), log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    ready = threading.Event()
    startup = server.startup

    async def announce(*args: object, **kwargs: object) -> None:
        await startup(*args, **kwargs)  # type: ignore[arg-type]
        ready.set()

    server.startup = announce  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert ready.wait(30)
    yield Served(url=f"http://127.0.0.1:{listener.getsockname()[1]}", runtime=runtime)
    server.should_exit = True
    thread.join(10)
    listener.close()
    runtime.engine.close()


@pytest.fixture(scope="session")
def plain_llama(served: Served) -> LlamaForCausalLM:
    """The same weights outside of Cambium: the oracle."""
    return build_llama(len(served.runtime.base.tokenizer))


@pytest.fixture(scope="session")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=60
    ) as found:
        yield found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def server(base: Path, tmp_path: Path) -> Iterator[Server]:
    """A whole server under a policy; modules that need another have their own."""
    people = People()
    people.init(tmp_path)
    with whole_server(small_config(tmp_path, model=str(base)), people) as found:
        yield found
