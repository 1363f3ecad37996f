"""Whether the notebook shows what is in the log: a gateway takes real calls, the notebook is run on them and asked for its figures.

Run by `make test-notebook`.
"""

import http.client
import json
import os
import pathlib
import re
import socket
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from datetime import datetime, timedelta, timezone

import nbclient
import nbformat
import pandas
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "notebooks" / "analysis.ipynb"
BINARY = os.environ.get("TOLLGATE_BIN", str(ROOT / "target" / "debug" / "tollgate"))
CELL_SECONDS = 60

CONFIG = """
server: { listen: "127.0.0.1:0", admin: "127.0.0.1:0" }
data_dir: DATA
default_provider: sim
providers:
  sim: { kind: simulated, time_to_first_token: 2ms, tokens_per_second: 20000 }
  broken: { kind: simulated, time_to_first_token: 1ms, tokens_per_second: 20000, error_rate: 100% }
prices:
  sim/small: { input: 0.40 USD/1M, cached: 0.10 USD/1M, output: 1.60 USD/1M, max_output: 4096 }
  sim/large: { input: 2.50 USD/1M, cached: 0.25 USD/1M, output: 10 USD/1M, max_output: 4096 }
  broken/large: { input: 2.50 USD/1M, output: 10 USD/1M, max_output: 4096 }
models:
  support: { versions: { v1: { target: sim/small }, v2: { target: sim/large } }, live: v1 }
  steady: { versions: { v1: { target: broken/large, fallbacks: [sim/large] } } }
  alone: { versions: { v1: { target: sim/small } } }
experiments:
  tone: { model: support, variants: { control: { weight: 50 }, larger: { weight: 50, version: v2 } } }
  trial: { model: alone, variants: { everybody: { weight: 100 } } }
keys:
  - { name: web, secret: tg-notebook-web-0123456789abcdef, team: product }
  - { name: poor, secret: tg-notebook-poor-0123456789abcdef, team: research }
budgets:
  - { name: research-day, scope: { team: research }, limit: 0.0005 USD, per: day, clamp: off }
"""


class Gateway:
    def __init__(self, home):
        config = home / "tollgate.yaml"
        config.write_text(CONFIG.replace("DATA", str(home / "data")))
        config.chmod(0o600)
        self.data = home / "data"
        self.process = subprocess.Popen(
            [BINARY, "serve", "--config", config], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        line = self.process.stdout.readline()
        assert line.startswith("ready "), line
        self.listen = line.split()[1].split("=")[1]

    def call(self, model, key="web", user="u", stream=False, simulate=""):
        body = {
            "model": model,
            "stream": stream,
            "user": user,
            "max_tokens": 40,
            "messages": [{"role": "user", "content": "Where is my parcel? " * 20}],
        }
        self.send("chat/completions", key, simulate, json.dumps(body).encode())

    def send(self, endpoint, key="web", simulate="", body=None):
        headers = {
            "authorization": f"Bearer tg-notebook-{key}-0123456789abcdef",
            "content-type": "application/json",
            "x-simulate": simulate,
        }
        request = urllib.request.Request(f"http://{self.listen}/v1/{endpoint}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                reply.read()
        except (urllib.error.HTTPError, http.client.IncompleteRead):
            pass

    def traffic(self):
        """All that a section of the notebook is about: streams, both variants, a cache, failures, refusals, a second attempt."""
        for number in range(90):
            self.call("support", user=f"u{number}", stream=number % 2 == 0, simulate=f"tokens={5 + number % 7}")
        for number in range(6):
            self.call("support", user=f"u{number}", simulate="cached=64 reasoning=8")
            self.call("steady", user=f"u{number}")
            self.call("support", user=f"u{number}", simulate="error=400")
        for number in range(4):
            self.call("alone", user=f"u{number}")
            self.call("support", key="poor", user=f"p{number}")
        self.send("images/generations", body=b'{"model": "sim/picture", "prompt": "a parcel"}')
        self.call("support", key="nobody")
        self.call("support", stream=True, simulate="cut=3")

    def stop(self):
        """Ends it, with all calls in the log."""
        self.process.terminate()
        assert self.process.wait(60) == 0


def export(data, form, *filters):
    """The calls as the command writes them to a file."""
    path = data.parent / f"calls.{form}"
    command = [BINARY, "calls", "export", "--data-dir", data, "--format", form, "--output", path, *filters]
    subprocess.run(command, check=True, timeout=60)
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A log of real calls: its directory, and the calls by the other way, which is the command's."""
    gateway = Gateway(tmp_path_factory.mktemp("gateway"))
    gateway.traffic()
    gateway.stop()
    lines = export(gateway.data, "jsonl").read_text().splitlines()
    return gateway.data, [json.loads(line) for line in lines]


def run(calls, *asked, sections="", **settings):
    """Runs the notebook, or some sections of it, on a log, and gives back the expressions' values and the cells."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if re.match(f"settings|read|helpers|{sections}", cell.id)]
    (cell,) = [cell for cell in notebook.cells if cell.id == "settings"]
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in settings.items())
    probe = "print(json.dumps([" + ", ".join(asked) + "], default=int))"
    notebook.cells.append(nbformat.v4.new_code_cell(probe, id="probe"))
    environment = {**os.environ, "TOLLGATE_CALLS": str(calls)}
    client = nbclient.NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3")
    client.execute(cwd=str(NOTEBOOK.parent), env=environment)
    return json.loads(text_of(notebook.cells.pop())), {cell.id: cell for cell in notebook.cells}


def text_of(cell):
    """What a cell shows as text."""
    return "".join(output.get("text") or output["data"]["text/plain"] for output in cell.outputs)


def figures_of(cells):
    return [cell.id for cell in cells.values() for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]


def sums(calls, name_of, value_of=lambda call: call["cost_nanousd"]):
    total = Counter()
    for call in calls:
        total[name_of(call)] += value_of(call)
    return dict(total)


FIGURES = ["cost-over-time", "cost-by", "latency", "latency-over-time", "errors", "tokens", "experiment-figure"]
ASKED = [
    "len(calls)",
    "calls['cost_nanousd'].sum()",
    "calls.groupby('team')['cost_nanousd'].sum().to_dict()",
    "calls.groupby('model')['cost_nanousd'].sum().to_dict()",
    "calls.groupby('outcome').size().to_dict()",
    "parts.sum().to_dict()",
    "variants[['calls', 'cost (USD)', 'units']].T.to_dict('list')",
    "sorted(calls['first_token_ms'].dropna())",
    "percentiles(served, 'model', 'duration_ms')['p50 (ms)'].to_dict()",
    "{name: [draw.min(), variants.loc[name, 'cost per 1,000 calls (USD)'], draw.max()] for name, draw in draws.items()}",
    "[stamp.isoformat() for stamp in calls['received'].iloc[[0, -1]].dt.tz_convert('UTC')]",
]


@pytest.mark.parametrize("form", ["sqlite", "parquet"])
def test_its_figures_are_those_of_the_export(log, form):
    data, calls = log
    path = data / "calls.db" if form == "sqlite" else export(data, "parquet")

    values, cells = run(path, *ASKED)

    count, cost, by_team, by_model, outcomes, tokens, variants, first_tokens, medians, intervals, span = values
    assert (count, cost) == (len(calls), sum(call["cost_nanousd"] for call in calls))
    assert by_team == sums(calls, lambda call: call["team"] or "no team")
    assert by_model == sums(calls, lambda call: call["model"])
    assert outcomes == Counter(call["outcome"] for call in calls)
    assert sum(tokens.values()) == sum(call["input_tokens"] + call["output_tokens"] for call in calls)
    assert tokens["input, from the cache"] == sum(call["cached_tokens"] for call in calls) > 0
    assert tokens["output, reasoning"] == sum(call["reasoning_tokens"] for call in calls) > 0
    assert first_tokens == pytest.approx(sorted(call["first_token_us"] / 1000 for call in calls if call["first_token_us"]))
    assert medians.keys() == {call["model"] for call in calls if call["outcome"] == "ok"}
    assert variants == experiment(calls, "tone")
    assert intervals.keys() == variants.keys() == {"control", "larger"} and all(low < mean < high for low, mean, high in intervals.values())
    received = [call["received_ms"] for call in calls]
    assert span == [iso(min(received)), iso(max(received))]
    assert figures_of(cells) == FIGURES
    assert usd(cost) in text_of(cells["overview"])
    for team_cost in by_team.values():
        assert usd(team_cost) in text_of(cells["cost-by"])
    assert re.search(r"larger against control: \+0\.\d+ USD per 1,000 calls.*: a difference beyond chance", text_of(cells["difference"]))


def usd(nanousd):
    return f"{nanousd // 10**9}.{nanousd % 10**9:09d}"


def iso(milliseconds):
    return (datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=milliseconds)).isoformat()


def experiment(calls, name):
    """Calls, cost and units of each variant, of calls that were not refused."""
    rows = [
        (given["variant"], given["unit"], call["cost_nanousd"])
        for call in calls
        for given in call["variants"]
        if given["experiment"] == name and call["outcome"] != "refused"
    ]
    return {
        variant: [len(mine), usd(sum(cost for _, cost in mine)), len({unit for unit, _ in mine})]
        for variant in sorted({row[0] for row in rows})
        for mine in [[row[1:] for row in rows if row[0] == variant]]
    }


def test_the_traffic_has_what_the_sections_are_about(log):
    _, calls = log
    assert {call["outcome"] for call in calls} >= {"ok", "refused", "upstream_error", "cut"}
    assert {call["team"] for call in calls} == {"product", "research", None}
    assert any(call["attempts"] > 1 and call["outcome"] == "ok" for call in calls)
    assert any(not call["priced"] and call["outcome"] != "refused" for call in calls)
    assert any(call["streamed"] for call in calls)


def test_a_variant_without_another_is_shown_and_not_compared(log):
    data, calls = log
    asked = "variants[['calls', 'cost (USD)', 'units']].T.to_dict('list')"
    (variants,), cells = run(data / "calls.db", asked, sections="experiment|difference", EXPERIMENT="trial")
    assert variants == experiment(calls, "trial") and list(variants) == ["everybody"]
    assert "nothing to compare" in text_of(cells["difference"])
    assert figures_of(cells) == ["experiment-figure"]


def test_of_few_units_there_is_no_interval_and_no_verdict(log, tmp_path):
    data, calls = log
    few = tmp_path / "few.parquet"
    frame = pandas.read_parquet(export(data, "parquet"))
    frame[frame["user"].isin([f"u{number}" for number in range(20)])].to_parquet(few)
    (draws,), cells = run(few, "list(draws)", sections="experiment|difference")
    assert draws == [] and "too few units to tell" in text_of(cells["difference"])


@pytest.mark.parametrize("form", ["sqlite", "parquet"])
def test_a_log_without_calls_is_no_error(log, form):
    data, _ = log
    path, settings = data / "calls.db", {"SINCE": "2100-01-01"}
    if form == "parquet":
        path, settings = export(data, "parquet", "--team", "nobody"), {}
    (count,), cells = run(path, "len(calls)", **settings)
    assert count == 0 and figures_of(cells) == []
    assert "There are no calls" in text_of(cells["overview"])


@pytest.mark.parametrize("form", ["sqlite", "parquet"])
def test_calls_before_a_time_can_be_left_out_and_times_are_local(log, form):
    data, calls = log
    path = data / "calls.db" if form == "sqlite" else export(data, "parquet")
    latest = sorted(call["received_ms"] for call in calls)[-10:]
    begin = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=latest[0], hours=5, minutes=45)

    (received,), cells = run(
        path,
        "[stamp.isoformat() for stamp in calls['received'].dt.tz_convert('UTC')]",
        sections="cost-over-time",
        SINCE=begin.replace(tzinfo=None).isoformat(),
        TIMEZONE="Asia/Kathmandu",
    )

    assert received == [iso(moment) for moment in latest]
    assert figures_of(cells) == ["cost-over-time"]


def test_a_log_that_is_not_there_is_named(tmp_path):
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="there is no .*missing.db; set CALLS"):
        run(tmp_path / "missing.db", "0", sections="read")


# === what is committed ===


def test_it_is_committed_without_outputs_and_without_traces_of_a_machine():
    text = NOTEBOOK.read_text()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.metadata and not cell.get("outputs") and cell.get("execution_count") is None, cell.id
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)
    assert str(ROOT) not in text
    assert not re.search(r"(?<![\w.])/(?:[\w.-]+/)+|\b[A-Za-z]:\\\\", text), "an absolute path"


def test_it_leads_to_pages_that_are_there():
    for link in re.findall(r"\]\(([^)#]+)\)", NOTEBOOK.read_text()):
        assert (NOTEBOOK.parent / link).is_file(), link


def test_its_columns_are_in_the_documentation():
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "calls.md").read_text()))
    source = NOTEBOOK.read_text()
    named = set(re.findall(r"\w+_(?:us|tokens|nanousd)\b", source))
    assert named and named <= documented
