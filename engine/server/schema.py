"""The bodies that the server takes and gives, as OpenAI's API describes them.

What is not written here is refused by name, so that nothing a client asks for is dropped in silence. Beyond OpenAI's
there are vLLM's fields for what this engine's sampling has: top_k, min_p, repetition_penalty, min_tokens,
stop_token_ids, ignore_eos.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_STOPS = 4
_TokenId = Annotated[int, Field(ge=0)]
_Text = Annotated[str, Field(min_length=1)]
_TokenIds = Annotated[list[_TokenId], Field(min_length=1)]
_Prompts = (
    _Text
    | _TokenIds
    | Annotated[list[_Text], Field(min_length=1, max_length=256)]
    | Annotated[list[_TokenIds], Field(min_length=1, max_length=256)]
)


class Body(BaseModel):
    """What every request shares."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str | None = Field(None, description="The served model's name; may be left out.")
    user: str | None = Field(None, max_length=256, description="Whose request it is; kept with stored texts.")


class StreamOptions(BaseModel):
    """What a stream holds beside the answer."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool = False
    continuous_usage_stats: bool = Field(
        default=False,
        description="The usage so far in each piece, and a piece for each token, with text or without.",
    )


class ResponseFormat(BaseModel):
    """json_object: the answer is a JSON object, by constrained decoding."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text", "json_object"]


class Sampling(Body):
    """How an answer is sampled; null is the default."""

    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(1.0, ge=0, le=2)
    top_p: float | None = Field(1.0, gt=0, le=1)
    n: int | None = Field(1, ge=1, le=128)
    stop: _Text | Annotated[list[_Text], Field(max_length=MOST_STOPS)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(0.0, ge=-2, le=2)
    frequency_penalty: float | None = Field(0.0, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, description="By token id."
    )
    response_format: ResponseFormat | None = None
    store: bool | None = Field(None, description="Allow the server's owner to keep the prompt.")
    metadata: dict[str, str] | None = Field(None, description="Taken and not used.")
    top_k: int | None = Field(0, ge=0, description="0: all.")
    min_p: float | None = Field(0.0, ge=0, le=1)
    repetition_penalty: float | None = Field(1.0, gt=0, le=10)
    min_tokens: int | None = Field(0, ge=0)
    stop_token_ids: list[_TokenId] | None = Field(None, max_length=64)
    ignore_eos: bool | None = False


class CompletionBody(Sampling):
    """POST /v1/completions."""

    prompt: _Prompts = Field(description="Text, token ids, or a list of either.")
    max_tokens: int | None = Field(16, ge=1)
    echo: bool | None = False
    logprobs: int | None = Field(None, ge=0, le=5)


class TextPart(BaseModel):
    """A piece of a message; text is the only kind."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = Field(None, description="Taken and not used.")

    @property
    def text(self) -> str:
        """All of it in one."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


_Messages = Annotated[list[Message], Field(min_length=1, max_length=4096)]


class ChatBody(Sampling):
    """POST /v1/chat/completions."""

    messages: _Messages
    max_tokens: int | None = Field(None, ge=1, description="Default: what the context has room for.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)


class EmbeddingBody(Body):
    """POST /v1/embeddings."""

    input: _Prompts
    encoding_format: Literal["float", "base64"] | None = "float"


def _only(name: str, other: str) -> dict[str, Any]:
    """One field of two; the other is null or left out."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}, other: {"type": "null"}}}


class TokenizeBody(Body):
    """POST /tokenize: a prompt, or the messages of a conversation."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [_only("prompt", "messages"), _only("messages", "prompt")]}
    )

    prompt: str | None = None
    messages: _Messages | None = None
    add_special_tokens: bool = True


class DetokenizeBody(Body):
    """POST /detokenize."""

    tokens: list[_TokenId]


class ErrorDetail(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """OpenAI's error body."""

    error: ErrorDetail


class PromptDetails(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int


class CompletionUsage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class CompletionLogprobs(BaseModel):
    """Parallel lists, an entry per token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """The answers to /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage


class TopLogprob(BaseModel):
    """One of the likeliest tokens."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """An entry per token."""

    content: list[TokenLogprob]


class ChatAnswer(BaseModel):
    """The model's turn."""

    role: Literal["assistant"]
    content: str


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """The answers to /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage


class Model(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class Models(BaseModel):
    """All served models."""

    object: Literal["list"]
    data: list[Model]


class Embedding(BaseModel):
    """The vector of one input, as numbers or as base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens of the inputs."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """The vectors of all inputs."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class Tokens(BaseModel):
    """Token ids of a text."""

    count: int
    max_model_len: int
    tokens: list[int]


class Detokenized(BaseModel):
    """The text of token ids."""

    prompt: str


class Status(BaseModel):
    """How the server is."""

    status: str


def describe_responses(*statuses: int, stream: bool = False) -> dict[int | str, dict[str, Any]]:
    """FastAPI's description of the errors of a route, and that its answer may be a stream."""
    found: dict[int | str, dict[str, Any]] = {status: {"model": Error} for status in statuses}
    if stream:
        # Of each event, as OpenAPI 3.1 has it.
        event = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
        found[200] = {"content": {"text/event-stream": {"schema": event}}}
    return found
