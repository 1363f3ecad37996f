"""Whether calls and evaluations appear in MLflow: traces by OTLP, runs by its REST API. Run by `make test-otlp`."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import mlflow
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("TOLLGATE_BIN", str(ROOT / "target" / "debug" / "tollgate"))
# MLflow imports for many seconds on a small machine.
PATIENCE = 120

CONFIG = """
server: {{ listen: "127.0.0.1:0", admin: "127.0.0.1:0" }}
auth: none
data_dir: {data}
providers: {{ sim: {{ kind: simulated, time_to_first_token: 1ms, tokens_per_second: 2000 }} }}
prices: {{ sim/large: {{ input: 3 USD/1M, output: 15 USD/1M, max_output: 4096 }} }}
models: {{ support: {{ versions: {{ v1: {{ target: sim/large }} }} }} }}
calls: {{ bodies: full }}
telemetry: {{ otlp: "{mlflow}", metrics: off, content: on, headers: {{ x-mlflow-experiment-id: "{experiment}" }} }}
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(ask, what):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if answer := ask():
            return answer
        time.sleep(0.2)
    pytest.fail(f"waited {PATIENCE} s in vain: {what}")


def is_up(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home, port = tmp_path_factory.mktemp("mlflow"), free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination", str(home / "artifacts")]
    with (home / "log").open("w") as log:
        # A session of its own: its workers outlive it otherwise.
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=home, start_new_session=True)
    eventually(lambda: is_up(f"{url}/health"), "MLflow is up")
    yield mlflow.MlflowClient(url), url
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)


@pytest.fixture
def gateway(server, tmp_path):
    client, url = server
    experiment = client.create_experiment(tmp_path.name)
    config = tmp_path / "tollgate.yaml"
    config.write_text(CONFIG.format(data=tmp_path / "data", mlflow=url, experiment=experiment))
    process = subprocess.Popen(
        [BINARY, "serve", "--config", config], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    line = process.stdout.readline()
    assert line.startswith("ready "), line
    yield line.split()[1].split("=")[1], experiment
    process.terminate()
    assert process.wait(60) == 0


def test_a_call_appears_with_its_model_tokens_and_attempt(server, gateway):
    (client, _), (listen, experiment) = server, gateway
    body = {"model": "support", "messages": [{"role": "user", "content": "Where is my parcel?"}], "max_tokens": 20}
    request = urllib.request.Request(
        f"http://{listen}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        call, usage = reply.headers["x-tollgate-call"], json.load(reply)["usage"]

    (trace,) = eventually(lambda: list(client.search_traces(locations=[experiment])), "the trace is in MLflow")

    assert trace.info.state == "OK"
    root, attempt = sorted(trace.data.spans, key=lambda span: span.parent_id is not None)
    assert (root.name, root.span_type, attempt.parent_id) == ("chat support", "CHAT_MODEL", root.span_id)
    assert root.attributes["tollgate.call.id"] == call and call in trace.info.trace_id
    assert (root.attributes["gen_ai.response.model"], attempt.attributes["gen_ai.request.model"]) == ("large", "large")
    assert root.attributes["mlflow.llm.model"] == "large"
    tokens = trace.info.token_usage
    assert (tokens["input_tokens"], tokens["output_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    said = root.attributes["gen_ai.input.messages"]
    # MLflow reads texts that are JSON, depending on its version.
    said = json.loads(said) if isinstance(said, str) else said
    assert said == [{"role": "user", "parts": [{"type": "text", "content": "Where is my parcel?"}]}]
    assert "Where is my parcel?" in json.dumps(root.inputs), "MLflow shows what was asked"
    assert root.outputs, "and what was answered"


SUITE = """
name: shop
dataset:
  cases:
    - { input: How do I get a refund?, expected: within 14 days. }
    - { input: How long does shipping take?, expected: two days. }
candidates:
  plain: { model: support, system: Be brief. }
  informed:
    model: support
    system: "Be brief.\\n- Refunds: within 14 days.\\n- Shipping: two days."
    parameters: { temperature: 0.5 }
scorers: [ exact ]
gates: [ exact >= 0.9 ]
"""


def test_an_evaluation_is_a_run_a_candidate_with_figures_and_the_report(server, gateway, tmp_path):
    (client, url), (listen, _) = server, gateway
    (tmp_path / "suite.yaml").write_text(SUITE)
    command = [BINARY, "eval", "run", "suite.yaml", "--config", "tollgate.yaml", "--url", f"http://{listen}", "-o", "run"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": url, "MLFLOW_EXPERIMENT_NAME": "evaluations"}

    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)

    assert done.returncode == 0, done.stdout + done.stderr
    experiment = client.get_experiment_by_name("evaluations")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"shop plain", "shop informed"}, done.stderr
    informed = runs["shop informed"]
    assert informed.info.status == "FINISHED"
    assert (informed.data.metrics["exact"], informed.data.metrics["exact.against_baseline"]) == (1.0, 1.0)
    assert informed.data.metrics["cost_per_call_usd"] > 0
    assert informed.data.params["model"] == "support" and informed.data.params["parameters.temperature"] == "0.5"
    assert [artifact.path for artifact in client.list_artifacts(informed.info.run_id)] == ["report.json"]
    report = json.loads(pathlib.Path(client.download_artifacts(informed.info.run_id, "report.json", tmp_path)).read_text())
    assert report == json.loads((tmp_path / "run" / "report.json").read_text())
