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
    """Fields common to all requests."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str | None = Field(None, description="Name of the served model; optional.")
    user: str | None = Field(
        None, max_length=256, description="Identifier of the end user; stored with texts."
    )


class StreamOptions(BaseModel):
    """Options of a streamed response."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool = False
    continuous_usage_stats: bool = Field(
        default=False,
        description="Include the usage so far in each chunk, and send a chunk per token, even without text.",
    )


class ResponseFormat(BaseModel):
    """Response format; json_object constrains decoding to a JSON object."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text", "json_object"]


class Sampling(Body):
    """Sampling parameters; null means the default."""

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
        None, description="Bias added to the logits, by token id."
    )
    response_format: ResponseFormat | None = None
    store: bool | None = Field(None, description="Allow the operator to store the prompt.")
    metadata: dict[str, str] | None = Field(None, description="Accepted and ignored.")
    top_k: int | None = Field(0, ge=0, description="Sample from the k most likely tokens; 0: all.")
    min_p: float | None = Field(0.0, ge=0, le=1)
    repetition_penalty: float | None = Field(1.0, gt=0, le=10)
    min_tokens: int | None = Field(0, ge=0)
    stop_token_ids: list[_TokenId] | None = Field(None, max_length=64)
    ignore_eos: bool | None = False


class CompletionBody(Sampling):
    """Request body of POST /v1/completions."""

    prompt: _Prompts = Field(description="Text, token ids, or a list of either.")
    max_tokens: int | None = Field(16, ge=1)
    echo: bool | None = False
    logprobs: int | None = Field(None, ge=0, le=5)


class TextPart(BaseModel):
    """Part of a message; text is the only supported type."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """Message of a conversation."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = Field(None, description="Accepted and ignored.")

    @property
    def text(self) -> str:
        """All parts of the content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


_Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]


class ChatBody(Sampling):
    """Request body of POST /v1/chat/completions."""

    messages: _Messages
    max_tokens: int | None = Field(
        None, ge=1, description="Maximum output tokens; default: the rest of the context."
    )
    max_completion_tokens: int | None = Field(None, ge=1, description="Alias of max_tokens.")
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)


class EmbeddingBody(Body):
    """Request body of POST /v1/embeddings."""

    input: _Prompts
    encoding_format: Literal["float", "base64"] | None = "float"


def _only(name: str, other: str) -> dict[str, Any]:
    """Describe two fields of which exactly one is given; the other is null or omitted."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}, other: {"type": "null"}}}


class TokenizeBody(Body):
    """Request body of POST /tokenize: either a prompt or messages."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [_only("prompt", "messages"), _only("messages", "prompt")]}
    )

    prompt: str | None = None
    messages: _Messages | None = None
    add_special_tokens: bool = True


class DetokenizeBody(Body):
    """Request body of POST /detokenize."""

    tokens: list[_TokenId]


class ErrorDetail(BaseModel):
    """Details of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """Error response body."""

    error: ErrorDetail


class PromptDetails(BaseModel):
    """Breakdown of the prompt tokens."""

    cached_tokens: int


class CompletionUsage(BaseModel):
    """Token usage of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class CompletionLogprobs(BaseModel):
    """Log probabilities per output token, as parallel lists."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """Generated choice."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """Response body of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage


class TopLogprob(BaseModel):
    """Candidate token at one position."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """Log probability of an output token, with the most likely candidates."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log probabilities per output token."""

    content: list[TokenLogprob]


class ChatAnswer(BaseModel):
    """Message generated by the model."""

    role: Literal["assistant"]
    content: str


class ChatChoice(BaseModel):
    """Generated choice."""

    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """Response body of /v1/chat/completions."""

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
    """Embedding of one input, as numbers or as base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Token usage of an embeddings request."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """Response body of /v1/embeddings."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class Tokens(BaseModel):
    """Response body of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]


class Detokenized(BaseModel):
    """Response body of /detokenize."""

    prompt: str


class Status(BaseModel):
    """Status of the server."""

    status: str


def describe_responses(*statuses: int, stream: bool = False) -> dict[int | str, dict[str, Any]]:
    """OpenAPI description of a route's error responses and, with `stream`, of its event stream."""
    found: dict[int | str, dict[str, Any]] = {status: {"model": Error} for status in statuses}
    if stream:
        # Of each event, as OpenAPI 3.1 has it.
        event = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
        found[200] = {"content": {"text/event-stream": {"schema": event}}}
    return found
