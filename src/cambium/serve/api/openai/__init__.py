"""OpenAI's HTTP API over the engine: chat, completions, embeddings and the list of models."""

from cambium.serve.api.openai.errors import openai_error_response
from cambium.serve.api.openai.routes import router
from cambium.serve.api.openai.runtime import Answerer, ModelEntry, OpenAIRuntime, TraceDraft

__all__ = [
    "Answerer",
    "ModelEntry",
    "OpenAIRuntime",
    "TraceDraft",
    "openai_error_response",
    "router",
]
