"""The OpenAI-compatible part of the contract, through the official client."""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch

CHAT: list[Any] = [{"role": "user", "content": "the tree grows"}]
PROMPT = "the tree grows a thin layer, naïve café"


@pytest.fixture(autouse=True)
def no_old_traces(served: Any) -> None:
    while not served.runtime.traces.empty():
        served.runtime.traces.get()


def stream_text(chunks: Any) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


# --- models ---------------------------------------------------------------------------------


def test_models_are_listed_with_the_encoder(client: openai.OpenAI) -> None:
    entries = {m.id: m for m in client.models.list()}
    assert set(entries) == {"base", "one", "two", "all-MiniLM-L6-v2"}
    assert entries["all-MiniLM-L6-v2"].owned_by == "encoder"
    assert client.models.retrieve("one").id == "one"


@pytest.mark.parametrize("method", ["chat", "completions", "embeddings", "retrieve"])
def test_an_unknown_model_is_404_and_never_the_base(client: openai.OpenAI, method: str) -> None:
    calls = {
        "chat": lambda: client.chat.completions.create(model="none", messages=CHAT),
        "completions": lambda: client.completions.create(model="none", prompt="a"),
        "embeddings": lambda: client.embeddings.create(model="none", input="a"),
        "retrieve": lambda: client.models.retrieve("no/ne"),
    }
    with pytest.raises(openai.NotFoundError) as caught:
        calls[method]()
    assert caught.value.code == "model_not_found"
    assert caught.value.response.headers["x-cambium-request-id"]


# --- chat -----------------------------------------------------------------------------------


def test_chat_answers_with_headers_usage_and_a_trace(client: openai.OpenAI, served: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="one", messages=CHAT, max_tokens=5, temperature=0, extra_body={"domain": "wood"}
    )
    answer = raw.parse()
    assert answer.model == "one" and answer.choices[0].message.role == "assistant"
    assert answer.usage and answer.usage.completion_tokens <= 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert raw.headers["x-cambium-revision"] == "3"
    assert raw.headers["x-cambium-adapter"].startswith("one@sha256:")
    trace = served.runtime.traces.get(timeout=10)
    assert trace.request_id == raw.headers["x-cambium-request-id"]
    assert trace.answerer.detail == {"domain": "wood"}
    assert trace.completion_tokens == answer.usage.completion_tokens
    assert 0 <= trace.queued_ms <= trace.first_token_ms <= trace.total_ms
    assert served.runtime.traces.empty()


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI, served: Any) -> None:
    asked: dict[str, Any] = {"model": "base", "messages": CHAT, "max_tokens": 60, "seed": 5}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert stream_text(chunks) == whole.choices[0].message.content
    assert len(chunks) > 10
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert {c.id for c in chunks} == {chunks[0].id}
    assert served.runtime.traces.get(timeout=10).completion_tokens > 0


def test_parts_and_developer_messages_are_text(client: openai.OpenAI) -> None:
    plain: Any = [{"role": "system", "content": "be brief"}, *CHAT]
    parts: Any = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "the tree"},
                                     {"type": "text", "text": " grows"}]},
    ]  # fmt: skip
    asked: Any = {"model": "base", "max_tokens": 8, "temperature": 0}
    first = client.chat.completions.create(messages=plain, **asked)
    second = client.chat.completions.create(messages=parts, **asked)
    assert first.choices[0].message == second.choices[0].message
    assert first.usage == second.usage


def test_chat_logprobs_list_the_text_and_its_rivals(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="base", messages=CHAT, max_tokens=12, temperature=0, logprobs=True, top_logprobs=3
    )
    choice = answer.choices[0]
    assert choice.logprobs and choice.logprobs.content
    shown = b"".join(bytes(t.bytes or []) for t in choice.logprobs.content)
    assert shown.decode("utf-8", errors="replace") == choice.message.content
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob  # greedy
    bare = client.chat.completions.create(model="base", messages=CHAT, max_tokens=2)
    assert bare.choices[0].logprobs is None


def test_a_seed_repeats_each_of_n_choices(client: openai.OpenAI) -> None:
    def texts(seed: int, n: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model="base", messages=CHAT, max_tokens=12, seed=seed, n=n
        )
        assert [c.index for c in answer.choices] == list(range(n))
        return [c.message.content for c in answer.choices]

    three = texts(11, 3)
    assert three == texts(11, 3)
    assert len(set(three)) == 3
    assert texts(12, 1) == three[1:2]  # choice i is drawn with seed + i


def test_chat_without_a_limit_runs_to_the_end_of_the_context(
    client: openai.OpenAI, served: Any
) -> None:
    ends = {"2": -100, "6": -100}  # <|eos|> and <|end|>: nothing ends it but its length
    answer = client.chat.completions.create(model="base", messages=CHAT, seed=1, logit_bias=ends)  # type: ignore[arg-type]
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage and answer.usage.total_tokens == served.runtime.engine.context


# --- completions ----------------------------------------------------------------------------


def test_a_stop_string_across_tokens_is_never_shown(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "base", "prompt": PROMPT, "max_tokens": 40, "seed": 3}
    free = client.completions.create(**asked, logprobs=0)
    text = free.choices[0].text
    assert free.choices[0].logprobs and free.choices[0].logprobs.text_offset
    boundary = next(at for at in free.choices[0].logprobs.text_offset if at > 8)
    stop = text[boundary - 2 : boundary + 2]
    cut = text[: text.index(stop)]
    whole = client.completions.create(**asked, stop=["never seen", stop], logprobs=0)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (cut, "stop")
    assert whole.choices[0].logprobs and whole.choices[0].logprobs.text_offset
    assert all(at < len(cut) for at in whole.choices[0].logprobs.text_offset)
    chunks = list(client.completions.create(**asked, stop=stop, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == cut
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_several_prompts_answer_as_each_alone(client: openai.OpenAI) -> None:
    prompts = ["the tree", "a thin layer of cambium", "every year"]
    asked: Any = {"model": "two", "max_tokens": 10, "seed": 4, "n": 2}
    together = client.completions.create(prompt=prompts, **asked)
    alone = [client.completions.create(prompt=p, **asked).choices for p in prompts]
    assert [c.text for c in together.choices] == [c.text for cs in alone for c in cs]


def oracle(model: Any, ids: list[int], delta: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probabilities [T-1 V] from a plain forward pass with `delta` added to the weights."""
    for path, update in delta.items():
        model.get_submodule(path).weight.data += update
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    for path, update in delta.items():
        model.get_submodule(path).weight.data -= update
    return torch.log_softmax(logits[:-1].double(), dim=-1)


@pytest.mark.parametrize("name", ["base", "one"])
def test_echo_scores_a_prompt_as_a_plain_forward_pass_does(
    client: openai.OpenAI, served: Any, plain_llama: Any, name: str
) -> None:
    ids = [1, *served.runtime.base.tokenizer.encode(PROMPT, add_special_tokens=False)]
    answer = client.completions.create(
        model=name, prompt=ids, max_tokens=1, logprobs=2, echo=True, temperature=0, seed=1234
    )
    found = answer.choices[0].logprobs
    assert found and found.token_logprobs and found.top_logprobs and found.tokens
    adapter = served.runtime.adapters.get(name)
    delta = {} if adapter is None else {
        p: adapter.config.scaling * adapter.b[p] @ a for p, a in adapter.a.items()
    }  # fmt: skip
    expected = oracle(plain_llama, ids, delta)
    own = expected.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    assert len(found.token_logprobs) == len(ids) + 1  # the prompt exactly, and one token more
    assert np.allclose(found.token_logprobs[1:-1], own.numpy(), atol=2e-4)
    greedy = [v == max(t.values()) for v, t in
              zip(found.token_logprobs[1:-1], found.top_logprobs[1:-1], strict=True)]  # fmt: skip
    assert greedy == (expected.argmax(-1) == torch.tensor(ids[1:])).tolist()
    assert found.tokens[0] == "<|bos|>"


def test_text_is_echoed_exactly_with_its_offsets(client: openai.OpenAI) -> None:
    prompt = " naïve  café\n\n 木 <|end|> x"
    answer = client.completions.create(
        model="base", prompt=prompt, max_tokens=0, logprobs=0, echo=True
    )
    choice = answer.choices[0]
    assert choice.text == prompt and choice.finish_reason == "length"
    found = choice.logprobs
    assert found and found.text_offset and found.tokens and found.token_logprobs
    for token, at in zip(found.tokens, found.text_offset, strict=True):
        assert token.startswith("bytes:") or prompt[at : at + len(token)] == token
    assert sum(t.startswith("bytes:") for t in found.tokens) >= 3  # one character, three bytes
    assert found.token_logprobs[0] is None and None not in found.token_logprobs[1:]
    assert answer.usage and answer.usage.completion_tokens == 0
    assert answer.usage.prompt_tokens == len(found.tokens) + 1  # the begin token is read, not shown


def test_an_echoed_list_ends_with_the_answers_token_even_if_it_ends_the_text(
    client: openai.OpenAI,
) -> None:
    answer = client.completions.create(
        model="base", prompt=[1, 300, 301], max_tokens=1, logprobs=1, echo=True, temperature=0,
        logit_bias={"2": 100},
    )  # fmt: skip
    choice = answer.choices[0]
    assert choice.logprobs and choice.logprobs.tokens
    assert len(choice.logprobs.tokens) == 4 and choice.logprobs.tokens[-1] == "<|eos|>"
    assert choice.finish_reason == "stop" and "eos" not in choice.text


def test_echo_streams(client: openai.OpenAI) -> None:
    asked: Any = {"model": "one", "prompt": PROMPT, "max_tokens": 9, "seed": 2, "echo": True}
    whole = client.completions.create(**asked, logprobs=1).choices[0]
    chunks = [c.choices[0] for c in client.completions.create(**asked, logprobs=1, stream=True)]
    assert "".join(c.text for c in chunks) == whole.text
    assert whole.logprobs
    for name in ("tokens", "text_offset"):
        joined = [x for c in chunks if c.logprobs for x in getattr(c.logprobs, name)]
        assert joined == getattr(whole.logprobs, name)


# --- many at once ---------------------------------------------------------------------------


def test_adapters_and_base_asked_at_once_answer_as_each_alone(client: openai.OpenAI) -> None:
    def ask(name: str) -> tuple[str, list[str] | None]:
        answer = client.completions.create(
            model=name, prompt=PROMPT, max_tokens=30, temperature=0, logprobs=0
        )
        found = answer.choices[0].logprobs
        return answer.choices[0].text, found.tokens if found else None

    names = ["base", "one", "two"]
    alone = [ask(name) for name in names]
    assert len({text for text, _ in alone}) == 3
    with ThreadPoolExecutor(max_workers=6) as pool:
        together = list(pool.map(ask, names * 4))
    assert together == alone * 4


def test_a_client_that_leaves_stops_its_answer(client: openai.OpenAI, served: Any) -> None:
    ends: Any = {"2": -100, "6": -100}
    with client.chat.completions.create(
        model="base", messages=CHAT, stream=True, seed=1, logit_bias=ends
    ) as stream:
        next(iter(stream))
    trace = served.runtime.traces.get(timeout=30)
    assert trace.finish_reasons == ("cancelled",)
    assert trace.completion_tokens < served.runtime.engine.context // 2
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(
            model="base", messages=CHAT, n=16, seed=1, logit_bias=ends, timeout=0.1
        )
    assert set(served.runtime.traces.get(timeout=30).finish_reasons) == {"cancelled"}
    with pytest.raises(queue.Empty):
        served.runtime.traces.get_nowait()


# --- embeddings -----------------------------------------------------------------------------


def test_embeddings_in_both_encodings(client: openai.OpenAI, served: Any) -> None:
    texts = ["a tree in the garden", "stochastic gradient descent"]
    packed = client.embeddings.create(model="all-MiniLM-L6-v2", input=texts)  # base64 underneath
    plain = client.embeddings.create(
        model="all-MiniLM-L6-v2", input=texts[0], encoding_format="float"
    )
    rows = np.array([row.embedding for row in packed.data])
    assert rows.shape == (2, 384)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert np.allclose(rows[0], plain.data[0].embedding, atol=1e-5)
    assert rows[0] @ rows[1] < 0.5
    assert packed.usage.prompt_tokens > plain.usage.prompt_tokens > 0
    assert served.runtime.traces.get(timeout=10).endpoint == "embeddings"


# --- refusals -------------------------------------------------------------------------------

REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("chat/completions", {"memory": {"collections": []}}, "memory_unavailable", "memory"),
    ("completions", {"memory": {}}, "memory_unavailable", "memory"),
    ("chat/completions", {"learn": True}, "learn_unavailable", "learn"),
    ("completions", {"learn": "maybe"}, "invalid_request", "learn"),
    ("chat/completions", {"top_k": 5}, "unknown_parameter", "top_k"),
    ("embeddings", {"domain": "d"}, "unknown_parameter", "domain"),
    ("chat/completions", {"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
    ("chat/completions", {"response_format": {"type": "json_object"}}, "unsupported_parameter",
     "response_format"),
    ("completions", {"suffix": "end"}, "unsupported_parameter", "suffix"),
    ("completions", {"best_of": 4}, "unsupported_parameter", "best_of"),
    ("embeddings", {"dimensions": 12}, "unsupported_parameter", "dimensions"),
    ("embeddings", {"input": [1, 2]}, "invalid_request", "input"),
    ("embeddings", {"input": [""]}, "invalid_request", "input"),
    ("chat/completions", {"temperature": 2.1}, "invalid_request", "temperature"),
    ("chat/completions", {"temperature": True}, "invalid_request", "temperature"),
    ("chat/completions", {"n": 17}, "invalid_request", "n"),
    ("chat/completions", {"seed": 2**63}, "invalid_request", "seed"),
    ("chat/completions", {"top_logprobs": 2}, "invalid_request", "top_logprobs"),
    ("chat/completions", {"stream_options": {"include_usage": True}}, "invalid_request",
     "stream_options"),
    ("chat/completions", {"logit_bias": {"9999": 1}}, "invalid_request", "logit_bias"),
    ("chat/completions", {"messages": []}, "invalid_request", "messages"),
    ("chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, "invalid_request",
     "messages[0].role"),
    ("chat/completions", {"messages": [{"role": "user", "content": "x" * 9000}]},
     "context_length_exceeded", "messages"),
    ("completions", {"stop": ["a", "b", "c", "d", "e"]}, "invalid_request", "stop"),
    ("completions", {"stop": ""}, "invalid_request", "stop"),
    ("completions", {"logprobs": 6}, "invalid_request", "logprobs"),
    ("completions", {"max_tokens": 0}, "invalid_request", "max_tokens"),
    ("completions", {"max_tokens": 2000}, "context_length_exceeded", "prompt"),
    ("completions", {"prompt": [1, -1]}, "invalid_request", "prompt"),
    ("completions", {"prompt": [420]}, "invalid_request", "prompt"),
    ("completions", {"prompt": [[]]}, "invalid_request", "prompt"),
    ("completions", {"prompt": None}, "invalid_request", "prompt"),
    ("completions", {"prompt": 5}, "invalid_request", "prompt"),
]  # fmt: skip
GOOD: dict[str, dict[str, Any]] = {
    "chat/completions": {"model": "base", "messages": CHAT, "max_tokens": 1},
    "completions": {"model": "base", "prompt": "the", "max_tokens": 1},
    "embeddings": {"model": "all-MiniLM-L6-v2", "input": "the"},
}


@pytest.mark.parametrize(("path", "change", "code", "param"), REFUSED)
def test_what_is_not_offered_is_refused_aloud(
    served: Any, path: str, change: dict[str, Any], code: str, param: str
) -> None:
    body = GOOD[path] | change
    if "max_tokens" not in change and "messages" in change:
        body = {k: v for k, v in body.items() if k != "max_tokens"}
    answer = httpx.post(f"{served.url}/v1/{path}", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
    assert error["type"] == "invalid_request_error" and error["message"]
    assert answer.headers["x-cambium-request-id"] and answer.headers["x-cambium-revision"] == "3"
    assert answer.headers["x-cambium-adapter"] == "none"
    assert served.runtime.traces.empty()


HARMLESS = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto",
            "learn": False, "tools": [], "response_format": {"type": "text"}, "stop": None,
            "memory": None, "tool_choice": "none"}  # fmt: skip


def test_harmless_fields_are_accepted(served: Any) -> None:
    body = GOOD["chat/completions"] | HARMLESS
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"{", 400, "invalid_request"),
        (b"[]", 400, "invalid_request"),
        (b'{"temperature": NaN}', 400, "invalid_request"),
        (b"[" * 100_000, 400, "invalid_request"),
        (b'{"seed": ' + b"9" * 5000 + b"}", 400, "invalid_request"),
        (b'{"model": "\xff"}', 400, "not_utf8"),
        (b'{"model": "base", "prompt": "\\ud800"}', 400, "not_utf8"),
        (b'"' + b"a" * (4 * 2**20) + b'"', 413, "too_large"),
    ],
)
def test_bad_bytes_are_refused(served: Any, data: bytes, status: int, code: str) -> None:
    answer = httpx.post(f"{served.url}/v1/completions", content=data)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["x-cambium-request-id"]


def test_extremes_of_sampling_leave_the_engine_up(client: openai.OpenAI) -> None:
    greedy = client.completions.create(model="base", prompt="the", max_tokens=6, temperature=0)
    for extreme in ({"temperature": 1e-40}, {"top_p": 0}, {"top_p": 1e-30}):
        answer = client.completions.create(
            model="base", prompt="the", max_tokens=6, seed=-1, **extreme
        )
        assert answer.choices[0].text == greedy.choices[0].text


def test_a_path_that_is_not_offered_answers_in_openais_shape(served: Any) -> None:
    answer = httpx.post(f"{served.url}/v1/audio/speech", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
