"""Whether the dashboards show something: a gateway takes real calls, a real Prometheus scrapes it, and every panel's query is asked.

Run by `make test-deploy`.
"""

import importlib.util
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
BINARY = os.environ.get("TOLLGATE_BIN", str(ROOT / "target" / "debug" / "tollgate"))
PATIENCE = 60
# A panel that may be empty in a run of half a minute: nothing is forecast in the first tenth of a period.
MAY_BE_EMPTY = {"Budgets: forecast"}

CONFIG = """
server: { listen: "127.0.0.1:0", admin: "127.0.0.1:0" }
records: none
data_dir: DATA
default_provider: sim
routing: { attempts: 2 }
providers:
  sim: { kind: simulated, time_to_first_token: 5ms, tokens_per_second: 2000 }
  flaky: { kind: simulated, time_to_first_token: 1ms, tokens_per_second: 2000, error_rate: 60% }
prices:
  sim/large: { input: 3 USD/1M, output: 15 USD/1M, max_output: 4096 }
  flaky/large: { input: 3 USD/1M, output: 15 USD/1M, max_output: 4096 }
models:
  support: { versions: { v1: { target: sim/large }, v2: { target: flaky/large } }, live: v1 }
experiments:
  tone: { model: support, variants: { control: { weight: 50 }, warm: { weight: 50, version: v2 } } }
keys:
  - { name: web, secret: tg-dashboards-web-0123456789abcdef, team: product }
  - { name: poor, secret: tg-dashboards-poor-0123456789abcdef, team: research }
budgets:
  - { name: all-day, limit: 50 USD, per: day, alerts: [50%] }
  - { name: research-day, scope: { team: research }, limit: 0.0001 USD, per: day, clamp: off }
"""


def load_generator():
    spec = importlib.util.spec_from_file_location("dashboards", GRAFANA / "dashboards.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = load_generator()
COMMITTED = {path.name: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}


def panels():
    return [(board["title"], panel) for board in COMMITTED.values() for panel in board["panels"]]


# === what is committed ===


def test_what_is_committed_is_what_the_script_writes():
    written = {name: GENERATOR.text(content) for name, content in GENERATOR.DASHBOARDS.items()}
    committed = {path.name: path.read_text() for path in (GRAFANA / "dashboards").glob("*.json")}
    assert written == committed, "run deploy/grafana/dashboards.py"


def test_panels_say_what_they_answer_and_do_not_overlap():
    assert {board["uid"] for board in COMMITTED.values()} == {"tollgate-operators", "tollgate-finance", "tollgate-product"}
    for board in COMMITTED.values():
        taken = set()
        for panel in board["panels"]:
            assert panel["description"].endswith((".", "?")) and panel["title"], panel
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken and place["x"] + place["w"] <= GENERATOR.COLUMNS, panel["title"]
            taken |= cells


def test_provisioning_leads_to_the_dashboards_that_compose_mounts():
    (provider,) = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "tollgate.yml").read_text())["providers"]
    (source,) = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"] if volume.startswith("."))
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    assert urllib.parse.urlsplit(source["url"]).hostname in services


# === a real run ===


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Gateway:
    def __init__(self, home):
        self.config = home / "tollgate.yaml"
        self.config.write_text(CONFIG.replace("DATA", str(home / "data")))
        self.config.chmod(0o600)
        self.process = subprocess.Popen(
            [BINARY, "serve", "--config", self.config], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        line = self.process.stdout.readline()
        assert line.startswith("ready "), line
        self.listen, self.admin = (word.split("=")[1] for word in line.split()[1:3])

    def call(self, key="web", stream=False, user="u", read=True):
        body = {
            "model": "support",
            "stream": stream,
            "user": user,
            "max_tokens": 20,
            "messages": [{"role": "user", "content": "Where is my parcel?"}],
        }
        request = urllib.request.Request(
            f"http://{self.listen}/v1/chat/completions",
            json.dumps(body).encode(),
            {"authorization": f"Bearer tg-dashboards-{key}-0123456789abcdef", "content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.read() if read else reply.read(1)
        except urllib.error.HTTPError as error:
            return error.read()

    def traffic(self):
        """All that a panel asks about: both variants, streams, failures, a refusal, a client that leaves, a refused change."""
        for number in range(12):
            self.call(stream=number % 2 == 0, user=f"u{number}")
        self.call(key="poor")
        self.call(stream=True, read=False)


class Prometheus:
    def __init__(self, home, target):
        self.address = f"127.0.0.1:{free_port()}"
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ROOT / "deploy" / "prometheus" / "rules" / "*.yml")],
            "scrape_configs": [{"job_name": "tollgate", "static_configs": [{"targets": [target]}]}],
        }
        (home / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={home / 'prometheus.yml'}",
                f"--storage.tsdb.path={home / 'metrics'}",
                f"--web.listen-address={self.address}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def ask(self, query):
        """The samples that answer it. A query that is none fails the test."""
        url = f"http://{self.address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            with urllib.request.urlopen(url, timeout=30) as reply:
                return json.load(reply)["data"]["result"]
        except urllib.error.HTTPError as error:
            pytest.fail(f"{query}: {error.read().decode()}")
        except urllib.error.URLError:
            return []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("run")
    gateway = Gateway(home)
    prometheus = Prometheus(home, gateway.admin)
    yield gateway, prometheus
    for process in (prometheus.process, gateway.process):
        process.terminate()
        process.wait(60)


def as_asked(expression):
    """As Grafana puts it, for a scrape each second."""
    return expression.replace("$job", "tollgate").replace("$__rate_interval", "15s")


def is_empty(samples):
    return not any(sample["value"][1] != "NaN" for sample in samples)


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_every_panel_has_an_answer_after_a_real_run(run):
    gateway, prometheus = run
    waiting = {
        (board, panel["title"], as_asked(target["expr"])) for board, panel in panels() for target in panel["targets"]
    }
    assert len(waiting) > 40
    assert not any("$" in query for _, _, query in waiting)
    gateway.config.write_text(gateway.config.read_text() + "nonsense: 1\n")
    deadline = time.monotonic() + PATIENCE
    while waiting and time.monotonic() < deadline:
        gateway.traffic()
        time.sleep(1)
        waiting = {entry for entry in waiting if is_empty(prometheus.ask(entry[2]))}
        if {title for _, title, _ in waiting} <= MAY_BE_EMPTY:
            break
    assert {title for _, title, _ in waiting} <= MAY_BE_EMPTY, waiting


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_every_rule_is_evaluated_without_an_error(run):
    _, prometheus = run
    with urllib.request.urlopen(f"http://{prometheus.address}/api/v1/rules", timeout=30) as reply:
        rules = [rule for group in json.load(reply)["data"]["groups"] for rule in group["rules"]]
    assert len(rules) > 30
    assert not [rule for rule in rules if rule["health"] == "err"]


def test_panels_use_only_what_the_gateway_exports_or_the_rules_record():
    exported = set(re.findall(r'const \w+: &str = "(tollgate_\w+)";', (ROOT / "src/telemetry/metrics.rs").read_text()))
    recorded = set(re.findall(r"record: (\S+)", (ROOT / "deploy/prometheus/rules/recording.yml").read_text()))
    exported |= {metric + part for metric in exported for part in ("_bucket", "_sum", "_count")}
    for board, panel in panels():
        for target in panel["targets"]:
            used = set(re.findall(r"(?:\w+:)?tollgate_\w+(?::\w+)?", target["expr"]))
            assert used and used <= exported | recorded, (board, panel["title"], used - exported - recorded)
