"""The admin API does what its description says: schemathesis asks the built gateway what the description allows, and what it does not."""

import json
import os
import pathlib
import re
import subprocess
import sys
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("TOLLGATE_BIN", str(ROOT / "target" / "debug" / "tollgate"))
TOKEN = "api-check-0123456789abcdef0123456789abcdef"
KEY = "tg-api-check-0123456789abcdef0123456789abcdef"
AUTHORIZED = {"authorization": f"Bearer {TOKEN}"}
SECONDS_MAX = 60
CONFIG = f"""
server: {{ listen: "127.0.0.1:0", admin: "127.0.0.1:0", admin_token: "{TOKEN}" }}
default_provider: sim
unpriced: {{ charge: {{ input: 1 USD/1M, output: 1 USD/1M }} }}
providers:
  sim: {{ kind: simulated, tokens_per_second: 2000, time_to_first_token: 5ms }}
models:
  support: {{ live: v1, versions: {{ v1: {{ target: sim/m, prompt: assistant }} }} }}
prompts:
  assistant: {{ live: v1, versions: {{ v1: {{ system: "You help." }} }} }}
experiments:
  tone: {{ model: support, unit: user, variants: {{ a: {{ weight: 1 }}, b: {{ weight: 1 }} }} }}
keys:
  - {{ name: check, secret: "{KEY}", team: check }}
budgets:
  - {{ name: all, scope: {{ team: check }}, limit: 1 USD, per: month }}
"""
# Left out: checks that guess what is refused (names and times have rules that no schema says), and the one that shows wrong tokens:
# after twenty of them nobody is answered any more. tests/it/admin_api.rs asks each operation with each role instead.
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
]


@pytest.fixture(scope="module")
def admin(tmp_path_factory):
    """The admin listener of a running gateway that has served a call."""
    directory = tmp_path_factory.mktemp("gateway")
    config = directory / "tollgate.yaml"
    config.write_text(CONFIG)
    config.chmod(0o600)
    log = (directory / "log").open("w")
    process = subprocess.Popen(
        [BINARY, "serve", "--config", str(config)], cwd=directory, stdout=subprocess.PIPE, stderr=log, text=True
    )
    ready = next((line for line in process.stdout if line.startswith("ready ")), None)
    assert ready, (directory / "log").read_text()
    client, admin = (f"http://{word.split('=')[1]}" for word in ready.split()[1:3])
    body = {"model": "support", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{client}/v1/chat/completions", json.dumps(body).encode(), headers)).read()
    yield admin
    process.terminate()
    assert process.wait(timeout=40) == 0, (directory / "log").read_text()
    assert "panicked" not in (directory / "log").read_text()


def test_the_api_is_what_it_says(admin, tmp_path):
    command = [
        str(pathlib.Path(sys.executable).parent / "schemathesis"),
        "run",
        f"{admin}/api/openapi.json",
        *("--header", f"Authorization: Bearer {TOKEN}"),
        *("--checks", ",".join(CHECKS)),
        *("--phases", "examples,coverage,fuzzing"),
        *("--max-examples", "15"),
        *("--seed", "1"),
        "--continue-on-failure",
        "--no-color",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS_MAX)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    tested = re.search(r"Tested: (\d+)", done.stdout)
    with urllib.request.urlopen(urllib.request.Request(f"{admin}/api/openapi.json", headers=AUTHORIZED)) as described:
        paths = json.load(described)["paths"]
    assert int(tested.group(1)) == sum(len(item) for item in paths.values()), done.stdout
