"""The OpenAI SDK against the gateway, as an application would use it: only `base_url` and the key differ."""

import asyncio

import openai
import pydantic
import pytest
from conftest import KEY, NARROW_KEY, POOR_KEY

HELLO = [{"role": "user", "content": "hello"}]
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
    for name in ("weather", "time")
]


class City(pydantic.BaseModel):
    city: str
    population: int


@pytest.mark.parametrize("model", ["support", "mock/m", "m", "sim/any"])
def test_a_completion_has_text_and_usage(client, model):
    reply = client.chat.completions.create(model=model, messages=HELLO)
    assert reply.choices[0].message.content
    assert reply.usage.completion_tokens > 0
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


@pytest.mark.parametrize("model", ["support", "sim/any"])
def test_a_stream_has_text_and_no_usage_that_was_not_asked_for(client, model):
    chunks = list(client.chat.completions.create(model=model, messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip()
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("model", ["support", "sim/any"])
def test_a_stream_has_usage_when_asked_for(client, model):
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model=model, messages=HELLO, stream=True, stream_options=options))
    with_usage = [chunk for chunk in chunks if chunk.usage]
    assert len(with_usage) == 1 and not with_usage[0].choices


def test_the_async_client_runs_many_at_once(gateway):
    async def run():
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, timeout=20, max_retries=0) as client:
            calls = [client.chat.completions.create(model="support", messages=HELLO) for _ in range(30)]
            replies = await asyncio.gather(*calls)
            stream = await client.chat.completions.create(model="support", messages=HELLO, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return replies, text

    replies, text = asyncio.run(run())
    assert {reply.choices[0].message.content for reply in replies} == {"one two three"}
    assert text == "one two three"


def test_parallel_tool_calls_come_through(client):
    reply = client.chat.completions.create(model="support", messages=HELLO, tools=TOOLS)
    calls = reply.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["weather", "time"]
    assert calls[1].function.arguments == '{"city": "city 1"}'


def test_streamed_tool_calls_come_through(client):
    stream = client.chat.completions.create(model="support", messages=HELLO, tools=TOOLS, stream=True)
    parts = [call.function.arguments for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
    assert "".join(parts) == '{"city": "Berlin"}'


def test_structured_output_is_parsed(client, provider):
    reply = client.chat.completions.parse(model="support", messages=HELLO, response_format=City)
    assert reply.choices[0].message.parsed == City(city="Berlin", population=3700000)
    assert provider.requests[-1]["body"]["response_format"]["json_schema"]["strict"] is True


def test_embeddings_come_in_floats_and_in_base64(client):
    for encoding in (openai.NOT_GIVEN, "float"):
        reply = client.embeddings.create(model="mock/embed", input=["a", "b"], encoding_format=encoding)
        assert [item.embedding for item in reply.data] == [[0.25, -0.5]] * 2
    assert reply.usage.prompt_tokens == 5


def test_raw_headers_are_the_providers_and_the_gateways(client, gateway):
    raw = client.chat.completions.with_raw_response.create(model="support", messages=HELLO)
    assert raw.headers["x-request-id"] == "req_provider"
    assert raw.headers["x-ratelimit-remaining-requests"] == "41"
    assert raw.headers["x-tollgate-model"] == "mock/m"
    assert raw.parse().choices[0].message.content == "one two three"
    record = gateway.wait_for_record(raw.headers["x-tollgate-call"])
    assert (int(record["prompt_tokens"]), int(record["completion_tokens"])) == (11, 3)
    assert int(record["cost_nanousd"]) == 11 * 1000 + 3 * 10_000


def test_a_stream_that_is_closed_is_cancelled_and_recorded(client, gateway, provider):
    provider.left.clear()
    with client.chat.completions.with_streaming_response.create(model="endless", messages=HELLO, stream=True) as raw:
        call_id = raw.headers["x-tollgate-call"]
        next(raw.iter_lines())
    assert provider.left.wait(5), "the provider goes on streaming"
    assert gateway.wait_for_record(call_id)["outcome"] == "abandoned"


def test_the_sdks_own_retry_gets_through(gateway, provider):
    before = len(provider.requests)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, timeout=20, max_retries=2) as client:
        reply = client.chat.completions.create(model="flaky", messages=HELLO)
    assert reply.choices[0].message.content == "one two three"
    assert len(provider.requests) - before == 2


def test_an_exhausted_budget_is_not_retried(gateway, provider):
    before = len(provider.requests)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=POOR_KEY, timeout=20, max_retries=3) as client:
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(model="support", messages=HELLO)
    assert refused.value.code == "budget_exhausted"
    assert refused.value.type == "insufficient_quota"
    assert len(provider.requests) == before
    refusals = [line for line in gateway.metrics().splitlines() if line.startswith('tollgate_refusals_total{reason="budget_exhausted"')]
    assert [float(line.rsplit(" ", 1)[1]) for line in refusals] == [1.0]


@pytest.mark.parametrize(
    ("key", "raised", "code"),
    [("wrong", openai.AuthenticationError, "invalid_api_key"), (NARROW_KEY, openai.PermissionDeniedError, "model_not_allowed")],
)
def test_refusals_are_the_sdks_own_classes(gateway, key, raised, code):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client:
        with pytest.raises(raised) as refused:
            client.chat.completions.create(model="mock/m", messages=HELLO)
    assert refused.value.code == code


def test_responses_come_whole_and_streamed(client):
    reply = client.responses.create(model="support", input="hello")
    assert reply.output_text == "one two three"
    assert reply.usage.output_tokens == 3
    events = list(client.responses.create(model="support", input="hello", stream=True))
    assert [event.type for event in events] == ["response.created", "response.output_text.delta", "response.completed"]


def test_models_are_listed(client):
    assert "support" in [model.id for model in client.models.list()]


def test_unknown_fields_reach_the_provider_as_they_are(client, provider):
    client.chat.completions.create(model="support", messages=HELLO, extra_body={"vendor": {"top_k": 4, "x": [1.5, None]}})
    assert provider.requests[-1]["body"]["vendor"] == {"top_k": 4, "x": [1.5, None]}


def test_the_providers_key_is_used_and_the_clients_is_not(client, provider):
    client.chat.completions.create(model="support", messages=HELLO)
    headers = {name.lower(): value for name, value in provider.requests[-1]["headers"].items()}
    assert headers["authorization"] == "Bearer sk-provider"
    assert not any(KEY in value for value in headers.values())
