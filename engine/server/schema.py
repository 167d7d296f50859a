"""Request and response bodies, as OpenAI's API describes them.

An unknown field is refused by name: no parameter is ignored in silence. Beyond OpenAI's fields there are vLLM's for
this engine's sampling: top_k, min_p, repetition_penalty, min_tokens, stop_token_ids, ignore_eos.
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
    """Fields that all requests share."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str | None = Field(None, description="Name of the served model; optional.")
    user: str | None = Field(
        None, max_length=256, description="Your name for the end user; stored with the request."
    )


class StreamOptions(BaseModel):
    """Options of a streaming response."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool = Field(default=False, description="Send the token usage in a last chunk.")
    continuous_usage_stats: bool = Field(
        default=False,
        description="Send the usage so far in every chunk, and a chunk for every token, even without text.",
    )


class ResponseFormat(BaseModel):
    """Format of the answer; `json_object` guarantees a JSON object, by constrained decoding."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text", "json_object"]


class Sampling(Body):
    """Sampling parameters; null selects the default."""

    stream: bool | None = Field(
        False, description="Send the answer as server-sent events while it is generated."
    )
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(
        1.0, ge=0, le=2, description="Softmax temperature; 0 always picks the most likely token."
    )
    top_p: float | None = Field(
        1.0, gt=0, le=1, description="Sample from the most likely tokens with this total probability."
    )
    n: int | None = Field(1, ge=1, le=128, description="Answers per prompt.")
    stop: _Text | Annotated[list[_Text], Field(max_length=MOST_STOPS)] | None = Field(
        None, description="Texts that end the answer; they are not part of it."
    )
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**63, description="The same seed and request give the same answer."
    )
    presence_penalty: float | None = Field(
        0.0, ge=-2, le=2, description="Subtracted from the logit of every token that was generated before."
    )
    frequency_penalty: float | None = Field(
        0.0, ge=-2, le=2, description="Subtracted from a token's logit for each time it was generated before."
    )
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, description="Added to the logits of these token ids."
    )
    response_format: ResponseFormat | None = None
    store: bool | None = Field(None, description="Allow the server's owner to store the prompt.")
    metadata: dict[str, str] | None = Field(None, description="Accepted and ignored.")
    top_k: int | None = Field(0, ge=0, description="Sample from this many most likely tokens; 0: from all.")
    min_p: float | None = Field(
        0.0, ge=0, le=1, description="Least probability of a token, relative to that of the most likely one."
    )
    repetition_penalty: float | None = Field(
        1.0,
        gt=0,
        le=10,
        description="Divides positive logits of tokens seen before and multiplies negative ones.",
    )
    min_tokens: int | None = Field(0, ge=0, description="Tokens generated before the answer may end.")
    stop_token_ids: list[_TokenId] | None = Field(
        None, max_length=64, description="Token ids that end the answer."
    )
    ignore_eos: bool | None = Field(
        False, description="Generate past the end-of-sequence token, up to max_tokens."
    )


class CompletionBody(Sampling):
    """Request body of POST /v1/completions."""

    prompt: _Prompts = Field(description="A text, token ids, or a list of either.")
    max_tokens: int | None = Field(16, ge=1, description="Most tokens to generate.")
    echo: bool | None = Field(False, description="Begin each answer with its prompt.")
    logprobs: int | None = Field(
        None, ge=0, le=5, description="Most likely alternatives per token to report with log probabilities."
    )


class TextPart(BaseModel):
    """Text part of a message, the only kind that is supported."""

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
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


_Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]


class ChatBody(Sampling):
    """Request body of POST /v1/chat/completions."""

    messages: _Messages
    max_tokens: int | None = Field(
        None, ge=1, description="Most tokens to generate; default: what the context has room for."
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, description="OpenAI's newer name of max_tokens; takes precedence."
    )
    logprobs: bool | None = Field(False, description="Report the log probability of each output token.")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="Most likely alternatives per token to report; needs logprobs."
    )


class EmbeddingBody(Body):
    """Request body of POST /v1/embeddings."""

    input: _Prompts = Field(description="A text, token ids, or a list of either.")
    encoding_format: Literal["float", "base64"] | None = Field(
        "float", description="base64: of little-endian float32 numbers."
    )


def _only(name: str, other: str) -> dict[str, Any]:
    """JSON schema: field `name` is given, and `other` is null or missing."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}, other: {"type": "null"}}}


class TokenizeBody(Body):
    """Request body of POST /tokenize: either a prompt or the messages of a conversation."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [_only("prompt", "messages"), _only("messages", "prompt")]}
    )

    prompt: str | None = None
    messages: _Messages | None = None
    add_special_tokens: bool = Field(
        default=True,
        description="Add the tokenizer's special tokens to a prompt; messages have the template's.",
    )


class DetokenizeBody(Body):
    """Request body of POST /detokenize."""

    tokens: list[_TokenId]


class ErrorDetail(BaseModel):
    """Details of an error."""

    message: str
    type: str = Field(description="Kind of the error, for example invalid_request_error or rate_limit_error.")
    param: str | None = Field(description="Parameter that is wrong.")
    code: str | None = Field(description="Machine-readable reason, for example context_length_exceeded.")


class Error(BaseModel):
    """Error response, as OpenAI's API sends it."""

    error: ErrorDetail


class PromptDetails(BaseModel):
    """Breakdown of the prompt tokens."""

    cached_tokens: int = Field(description="Prompt tokens served from the prefix cache.")


class CompletionUsage(BaseModel):
    """Token usage of a request; the prompt counts once, whatever n is."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class CompletionLogprobs(BaseModel):
    """Log probabilities per output token, as parallel lists."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int] = Field(description="Position of each token in the text, in characters.")


class CompletionChoice(BaseModel):
    """Generated text of one sample."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """Response of POST /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage


class TopLogprob(BaseModel):
    """Log probability of a token."""

    token: str
    logprob: float
    bytes: list[int] | None = Field(description="UTF-8 bytes of the token; null for special tokens.")


class TokenLogprob(TopLogprob):
    """Log probabilities of an output token and of its most likely alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log probabilities per output token."""

    content: list[TokenLogprob]


class ChatAnswer(BaseModel):
    """Message generated by the model."""

    role: Literal["assistant"]
    content: str


class ChatChoice(BaseModel):
    """Generated message of one sample."""

    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """Response of POST /v1/chat/completions."""

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
    max_model_len: int = Field(description="Most tokens of a request, prompt and output together.")


class Models(BaseModel):
    """List of the served models."""

    object: Literal["list"]
    data: list[Model]


class Embedding(BaseModel):
    """Embedding of one input."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="Numbers, or base64 of little-endian float32.")


class EmbeddingUsage(BaseModel):
    """Token usage of an embedding request."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """Response of POST /v1/embeddings."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class Tokens(BaseModel):
    """Response of POST /tokenize."""

    count: int
    max_model_len: int = Field(description="Most tokens of a request, prompt and output together.")
    tokens: list[int]


class Detokenized(BaseModel):
    """Response of POST /detokenize."""

    prompt: str


class Status(BaseModel):
    """Health status."""

    status: str


def describe_responses(*statuses: int, stream: bool = False) -> dict[int | str, dict[str, Any]]:
    """Responses of a route for its OpenAPI description: these errors and, if it can stream, the event stream."""
    found: dict[int | str, dict[str, Any]] = {status: {"model": Error} for status in statuses}
    if stream:
        # The schema of one event, as OpenAPI 3.1 describes streams.
        event = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
        found[200] = {"content": {"text/event-stream": {"schema": event}}}
    return found
