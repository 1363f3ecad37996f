"""Starts the built gateway in front of a simulated provider and the scripted one of `provider.py`."""

import json
import os
import pathlib
import subprocess
import threading
import time
import urllib.request

import openai
import pytest

from provider import Provider

ROOT = pathlib.Path(__file__).resolve().parents[3]
BINARY = os.environ.get("TOLLGATE_BIN", str(ROOT / "target" / "debug" / "tollgate"))
KEY = "tg-sdk-0123456789abcdef0123456789abcdef"
POOR_KEY = "tg-poor-0123456789abcdef0123456789abcdef"
NARROW_KEY = "tg-narrow-0123456789abcdef0123456789abcdef"
CONFIG = """
server: {{ listen: "127.0.0.1:0", admin: "127.0.0.1:0" }}
records: none
default_provider: mock
unpriced: {{ charge: {{ input: 1 USD/1M, output: 1 USD/1M }} }}
routing: {{ attempts: 1, eject: off }}
providers:
  mock: {{ kind: openai, base_url: "{url}/v1", api_key: sk-provider }}
  sim: {{ kind: simulated, tokens_per_second: 2000, time_to_first_token: 5ms }}
models:
  support: {{ live: v1, versions: {{ v1: {{ target: mock/m }} }} }}
prices:
  mock/m: {{ input: 1 USD/1M, output: 10 USD/1M, max_output: 4096 }}
keys:
  - {{ name: sdk, secret: "{key}", team: sdk }}
  - {{ name: poor, secret: "{poor}", team: poor }}
  - {{ name: narrow, secret: "{narrow}", models: [support] }}
budgets:
  - {{ name: poor, scope: {{ team: poor }}, limit: 0.000001 USD, per: month }}
"""


class Gateway:
    """A running gateway: where it listens, and what it logged."""

    def __init__(self, directory, provider):
        config = directory / "tollgate.yaml"
        config.write_text(CONFIG.format(url=provider.url, key=KEY, poor=POOR_KEY, narrow=NARROW_KEY))
        self.process = subprocess.Popen(
            [BINARY, "serve", "--config", str(config)], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines = []
        threading.Thread(target=self._follow, daemon=True).start()
        words = self._ready().split()
        self.url, self.admin = (f"http://{word.split('=')[1]}" for word in words[1:3])

    def _follow(self):
        for line in self.process.stderr:
            self.lines.append(line)

    def _ready(self):
        for line in self.process.stdout:
            if line.startswith("ready "):
                return line
        raise RuntimeError(f"the gateway did not start:\n{''.join(self.lines)}")

    def records(self):
        """The finished calls so far, as logged."""
        lines = [json.loads(line) for line in self.lines if line.startswith("{")]
        flat = [{**line, **line.get("fields", {})} for line in lines]
        return [line for line in flat if line.get("call.id") and line.get("outcome")]

    def wait_for_record(self, call_id, seconds=10):
        """The record of one call, which is logged just after its reply."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = [record for record in self.records() if record["call.id"] == call_id]
            if found:
                return found[0]
            time.sleep(0.01)
        raise AssertionError(f"no record of {call_id}")

    def metrics(self):
        with urllib.request.urlopen(f"{self.admin}/metrics", timeout=10) as reply:
            return reply.read().decode()

    def stop(self):
        self.process.terminate()
        assert self.process.wait(timeout=40) == 0, "".join(self.lines)
        assert not any("panicked at" in line for line in self.lines), "".join(self.lines)


@pytest.fixture(scope="session")
def provider():
    provider = Provider()
    yield provider
    provider.close()


@pytest.fixture(scope="session")
def gateway(tmp_path_factory, provider):
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), provider)
    yield gateway
    gateway.stop()


@pytest.fixture
def client(gateway):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, timeout=20, max_retries=0) as client:
        yield client
