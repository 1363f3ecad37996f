"""The Anthropic SDK against the simulated provider: `base_url` without `/v1`, the virtual key as its API key."""

import anthropic
import pytest
from conftest import KEY

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def claude(gateway):
    with anthropic.Anthropic(base_url=gateway.url, api_key=KEY, timeout=20, max_retries=0) as client:
        yield client


def test_a_message_has_text_and_usage(claude):
    reply = claude.messages.create(model="sim/claude", max_tokens=64, messages=HELLO)
    assert reply.content[0].text
    assert 0 < reply.usage.output_tokens <= 64


def test_a_streamed_message_adds_up(claude):
    with claude.messages.stream(model="sim/claude", max_tokens=64, messages=HELLO) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text != ""
    assert final.usage.output_tokens > 0


def test_a_wrong_key_is_an_authentication_error(gateway):
    with anthropic.Anthropic(base_url=gateway.url, api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError):
            stranger.messages.create(model="sim/claude", max_tokens=64, messages=HELLO)
