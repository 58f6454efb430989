from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cambium.core.errors import DataError
from cambium.serve import spans

SECRET = "the heron of Ullapool"


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(spans, "_tracer", provider.get_tracer("test"))
    return exporter


@spans.span("learn")
def learn(text: str) -> str:
    if text == SECRET:
        raise DataError(f"{text} cannot be learned", mend="leave it out")
    return text.upper()


def test_a_function_keeps_its_answer_and_leaves_a_span(kept: InMemorySpanExporter) -> None:
    assert learn("a") + learn("b") == "AB"
    assert [s.name for s in kept.get_finished_spans()] == ["learn", "learn"]


def test_an_error_leaves_its_code_and_none_of_its_words(kept: InMemorySpanExporter) -> None:
    with pytest.raises(DataError, match=SECRET):
        learn(SECRET)
    with pytest.raises(KeyError), spans.span("job", job="p-1"):
        raise KeyError(SECRET)
    first, second = kept.get_finished_spans()
    assert first.attributes == {"error.type": "invalid_request"}
    assert second.attributes == {"job": "p-1", "error.type": "KeyError"}
    assert not first.events and not first.status.description
    assert SECRET not in first.to_json() + second.to_json()
