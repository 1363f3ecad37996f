"""Whether what is shipped would work and may be shipped, as far as that shows without a container engine or a cluster.

Run by `make lint-deploy`. A tool that is missing skips its tests and says so; promtool, hadolint and the schemas are installed.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import urllib.request

import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
BINARY = os.environ.get("TOLLGATE_BIN", str(ROOT / "target" / "debug" / "tollgate"))
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*/*.yaml*"))
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
SECRET = "tg-deploy-0123456789abcdef0123456789abcdef"
SECRETS_DIR = "/run/secrets/tollgate"
# As in the image.
UID = 65532


class Strict(yaml.SafeLoader):
    """Refuses what YAML readers pass over in silence: a key that is written twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"{node.start_mark}: twice: {twice}"
        return super().construct_mapping(node, deep)


def documents(path):
    return [document for document in yaml.load_all(path.read_text(), Strict) if document]


def document(path):
    (only,) = documents(path)
    return only


def run(*command, **options):
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=120, check=False, **options
    )


def succeeds(*command, **options):
    result = run(*command, **options)
    assert result.returncode == 0, f"{command}:\n{result.stdout}{result.stderr}"
    return result.stdout


def needs(tool):
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


def name_of(path):
    return str(path.relative_to(ROOT))


# === every file ===


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("**/*.y*ml*")), ids=name_of)
def test_yaml_parses_and_names_no_key_twice(path):
    assert documents(path)


CONFIGURATIONS = [*DEPLOY.glob("*/tollgate.yaml"), *DEPLOY.glob("kubernetes/*/configmap.yaml")]


@pytest.mark.parametrize("path", sorted(CONFIGURATIONS), ids=name_of)
def test_configurations_are_valid_with_the_secrets_that_their_template_names(path, tmp_path):
    text, secrets = path.read_text(), ["openai_api_key", "dev_key"]
    if path.name == "configmap.yaml":
        text = document(path)["data"]["tollgate.yaml"]
        secrets = document(path.with_name("secret.yaml.example"))["stringData"]
    for secret in secrets:
        (tmp_path / secret).write_text(f"{SECRET}-{secret}")
    config = tmp_path / "tollgate.yaml"
    config.write_text(text.replace(SECRETS_DIR, str(tmp_path)))
    environment = {
        "TOLLGATE_ADMIN_TOKEN": f"{SECRET}-admin",
        "TOLLGATE_DEV_KEY": f"{SECRET}-dev",
        "CREDENTIALS_DIRECTORY": str(tmp_path),
        "STATE_DIRECTORY": str(tmp_path),
    }
    succeeds(BINARY, "check", config, env=environment, cwd=tmp_path)


def drain_seconds(text):
    return int(re.search(r"drain: (\d+)s", text).group(1))


# === the image ===

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def instructions(name):
    return [line.split(maxsplit=1)[1] for line in DOCKERFILE.splitlines() if line.startswith(f"{name} ")]


def test_hadolint_has_nothing_to_say():
    hadolint = pathlib.Path(sys.executable).with_name("hadolint")
    succeeds(hadolint, ROOT / "Dockerfile")


def test_the_image_is_pinned_and_runs_as_nobody_without_a_shell():
    for base in instructions("FROM"):
        image = base.split()[0]
        assert ":" in image and not image.endswith(":latest"), base
    assert instructions("USER") == [f"{UID}:{UID}"]
    assert not instructions("ADD"), "what comes from the network is not pinned"
    for name in ("ENTRYPOINT", "CMD"):
        assert all(json.loads(form) for form in instructions(name))
    (check,) = instructions("HEALTHCHECK")
    program, command = json.loads(check[check.index("[") :])
    assert succeeds(BINARY, command, "--help") and program in instructions("ENTRYPOINT")[0]


def test_the_build_context_holds_all_that_cargo_asks_for(tmp_path):
    """Cargo refuses a manifest whose targets are missing; what is compiled in must be there as well."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for entry in allowed:
        source = ROOT / entry
        if source.is_dir():
            shutil.copytree(source, tmp_path / entry)
        elif source.exists():
            (tmp_path / entry).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tmp_path / entry)
    succeeds("cargo", "metadata", "--no-deps", "--offline", "--format-version=1", cwd=tmp_path)
    for path in (tmp_path / "src").rglob("*.rs"):
        # What only tests include is not compiled for the image: by convention from a tests.rs, or from under tests/.
        if path.name == "tests.rs":
            continue
        for included in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', path.read_text()):
            target = (path.parent / included).resolve()
            assert target.exists() or "tests" in target.relative_to(tmp_path).parts, f"{path.name}: {included}"


# === what is compiled in ===

DENY = tomllib.loads((ROOT / "deny.toml").read_text())
# The greatest number of crates on Linux; each one is somebody else's code beside provider keys. The gateway by itself had 247;
# PostgreSQL, Parquet, OTLP and the described admin API brought the rest.
CRATES_MAX = 310


def crates(*options):
    """(name, version, licence) of each crate that is built."""
    lines = succeeds("cargo", "tree", "--locked", "--prefix=none", "--format={p}|{l}", *options, cwd=ROOT).splitlines()
    # `name v1.2.3 (where from)|MIT (*)`; lines without a bar are headings.
    crates = [line.removesuffix(" (*)").split("|") for line in lines if "|" in line]
    return {(*name.split()[:2], licence) for name, licence in crates}


def allows(licence):
    """Whether an SPDX expression is met by the allowed licences. Older crates write `/` for `OR`."""
    words = re.findall(r"[()]|[^\s()]+(?: WITH [^\s()]+)?", licence.replace("/", " OR "))
    meaning = {"AND": "and", "OR": "or", "(": "(", ")": ")"}
    truth = " ".join(meaning.get(word, str(word in DENY["licenses"]["allow"])) for word in words)
    return bool(truth) and eval(truth)  # of nothing but True, False, and, or and brackets


def test_licences_are_read_as_spdx_means_them():
    assert allows("MIT OR LGPL-2.1") and allows("MIT/GPL-3.0") and allows("(GPL-3.0 OR MIT) AND ISC")
    assert not allows("MIT AND GPL-3.0") and not allows("") and not allows("Apache-2.0 WITH Something")


def test_every_crate_has_a_licence_that_is_allowed_and_none_is_banned():
    everywhere = crates("--all-features", "--target=all", "--edges=all")
    assert not [crate for crate in everywhere if not allows(crate[2])]
    banned = {ban["crate"] for ban in DENY["bans"]["deny"]}
    assert not banned & {name for name, _, _ in everywhere}
    assert len(crates("--edges=normal,build")) <= CRATES_MAX


def test_every_crate_comes_from_crates_io_with_a_checksum():
    packages = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    (allowed,) = DENY["sources"]["allow-registry"]
    for package in packages:
        if package["name"] != "tollgate":
            assert package["source"] == f"registry+{allowed}" and package["checksum"], package


# === compose ===

COMPOSE = document(DEPLOY / "compose.yaml")


def test_compose_names_only_what_it_declares_and_what_exists():
    for name, service in COMPOSE["services"].items():
        for network in service.get("networks", []):
            assert network == "default" or network in COMPOSE["networks"], (name, network)
        for secret in service.get("secrets", []):
            assert secret in COMPOSE["secrets"], (name, secret)
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).is_dir() if source.startswith(".") else source in COMPOSE["volumes"], (name, volume)
    assert (DEPLOY / COMPOSE["services"]["gateway"]["build"] / "Dockerfile").is_file()


def test_compose_asks_for_no_variable_that_the_example_does_not_show():
    shown = re.findall(r"^([A-Z_]+)=", (DEPLOY / "compose" / "env.example").read_text(), re.MULTILINE)
    asked = re.findall(r"\$\{([A-Z_]+)", (DEPLOY / "compose.yaml").read_text())
    assert set(asked) == set(shown)


def test_compose_gives_no_service_more_than_it_needs():
    for name, service in COMPOSE["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert re.search(r":[^:/]+$", service["image"]) and not service["image"].endswith(":latest"), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    grace = int(COMPOSE["services"]["gateway"]["stop_grace_period"].removesuffix("s"))
    assert grace > drain_seconds((DEPLOY / "compose" / "tollgate.yaml").read_text())


@pytest.mark.skipif(run("sh", "-c", "docker compose version").returncode != 0, reason="docker compose is not installed")
def test_compose_is_what_compose_reads():
    environment = {**os.environ, "TOLLGATE_ADMIN_TOKEN": SECRET, "TOLLGATE_DEV_KEY": SECRET, "GRAFANA_PASSWORD": SECRET}
    succeeds("docker", "compose", "--file", DEPLOY / "compose.yaml", "config", "--quiet", env=environment)


# === Kubernetes ===


@pytest.mark.parametrize("path", KUBERNETES, ids=name_of)
def test_manifests_are_valid_by_the_schemas_of_kubernetes(path):
    for manifest in documents(path):
        kubernetes_validate.validate(manifest, "1.37", strict=True)


def deployments():
    return [(path.parent, document(path)) for path in KUBERNETES if path.name == "deployment.yaml"]


@pytest.mark.parametrize(("folder", "deployment"), deployments(), ids=lambda value: getattr(value, "name", ""))
class TestDeployment:
    def pod(self, deployment):
        return deployment["spec"]["template"]["spec"]

    def containers(self, deployment):
        return self.pod(deployment).get("initContainers", []) + self.pod(deployment)["containers"]

    def gateway(self, deployment):
        (gateway,) = [container for container in self.containers(deployment) if container["name"] == "tollgate"]
        return gateway

    def test_pods_meet_the_restricted_security_standard(self, folder, deployment):
        pod = self.pod(deployment)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == UID
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in self.containers(deployment):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            assert not container["image"].endswith(":latest") and ":" in container["image"]

    def test_probes_ask_what_the_gateway_answers_on_ports_that_it_has(self, folder, deployment):
        gateway = self.gateway(deployment)
        config = yaml.safe_load(document(folder / "configmap.yaml")["data"]["tollgate.yaml"])
        ports = {port["name"]: port["containerPort"] for port in gateway["ports"]}
        reachable = [config["server"][listener] for listener in ("listen", "admin")]
        reachable = {int(port) for host, port in (address.rsplit(":", 1) for address in reachable) if host == "0.0.0.0"}
        assert set(ports.values()) == reachable
        probes = [probe for name, probe in gateway.items() if name.endswith("Probe")]
        assert len(probes) >= 2
        for probe in probes:
            assert probe["httpGet"]["path"] in ("/healthz", "/readyz")
            assert probe["httpGet"]["port"] in ports

    def test_mounts_volumes_and_objects_belong_together(self, folder, deployment):
        pod = self.pod(deployment)
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["name"]: mount for mount in self.gateway(deployment)["volumeMounts"]}
        assert set(mounts) == set(volumes)
        assert not any("subPath" in mount for mount in mounts.values()), "a file under subPath never changes"
        objects = {(manifest["kind"], manifest["metadata"]["name"]) for path in folder.iterdir() for manifest in documents(path)}
        for volume in volumes.values():
            for kind, key, name in (
                ("ConfigMap", "configMap", "name"),
                ("Secret", "secret", "secretName"),
                ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
            ):
                assert key not in volume or (kind, volume[key][name]) in objects, volume
        config = yaml.safe_load(document(folder / "configmap.yaml")["data"]["tollgate.yaml"])
        writable = [mount["mountPath"] for mount in mounts.values() if not mount.get("readOnly")]
        assert writable == [config["data_dir"]]

    def test_a_ledger_on_one_volume_has_one_gateway_at_a_time(self, folder, deployment):
        claims = [volume for volume in self.pod(deployment)["volumes"] if "persistentVolumeClaim" in volume]
        if claims:
            assert deployment["spec"]["replicas"] == 1
            assert deployment["spec"]["strategy"] == {"type": "Recreate"}

    def test_pods_are_given_time_to_drain(self, folder, deployment):
        sleep = self.gateway(deployment).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        drain = drain_seconds(document(folder / "configmap.yaml")["data"]["tollgate.yaml"])
        assert self.pod(deployment)["terminationGracePeriodSeconds"] > sleep + drain

    def test_selectors_select_these_pods(self, folder, deployment):
        labels = deployment["spec"]["template"]["metadata"]["labels"].items()
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels
        for path in folder.glob("*.yaml"):
            for manifest in documents(path):
                if manifest["kind"] == "Service":
                    ports = {port["name"] for port in self.gateway(deployment)["ports"]}
                    assert manifest["spec"]["selector"].items() <= labels
                    assert {port["targetPort"] for port in manifest["spec"]["ports"]} <= ports
                if manifest["kind"] == "PodDisruptionBudget":
                    assert manifest["spec"]["selector"]["matchLabels"].items() <= labels


# === Prometheus ===


@needs("promtool")
def test_promtool_takes_scrapes_and_rules():
    succeeds("promtool", "check", "config", "--syntax-only", DEPLOY / "prometheus" / "prometheus.yml")
    succeeds("promtool", "check", "rules", *RULES)


@needs("promtool")
def test_rules_do_what_their_tests_say():
    succeeds("promtool", "test", "rules", *sorted((DEPLOY / "prometheus" / "tests").glob("*.test.yml")))


def rules():
    return [rule for path in RULES for group in document(path)["groups"] for rule in group["rules"]]


def test_rules_use_only_metrics_that_the_gateway_exports():
    source = (ROOT / "src" / "telemetry" / "metrics.rs").read_text()
    exported = set(re.findall(r'const \w+: &str = "(tollgate_\w+)";', source))
    assert len(exported) > 10
    histograms = {metric + part for metric in exported for part in ("_bucket", "_sum", "_count")}
    for rule in rules():
        # Recorded series have colons in their names.
        used = set(re.findall(r"(?<![\w:])tollgate_\w+(?![\w:])", rule["expr"]))
        assert used <= exported | histograms, rule


def test_every_alert_names_a_paragraph_that_says_what_to_do():
    page = (ROOT / "docs" / "operations.md").read_text()
    # As GitHub makes anchors of headings of one word.
    anchors = {heading.lower() for heading in re.findall(r"^### (\w+)\n\n\S", page, re.MULTILINE)}
    alerts = [rule for rule in rules() if "alert" in rule]
    for rule in alerts:
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}", rule
    assert anchors == {rule["alert"].lower() for rule in alerts}


def test_every_alert_says_what_to_do_and_every_rule_is_tested():
    tests = "".join(path.read_text() for path in (DEPLOY / "prometheus" / "tests").iterdir())
    for rule in rules():
        assert rule.get("alert") is None or rule["labels"]["severity"] in ("page", "ticket"), rule
        assert rule.get("alert") is None or {"summary", "description"} <= rule["annotations"].keys(), rule
        used_elsewhere = any(rule.get("record", "?") in other["expr"] for other in rules())
        assert used_elsewhere or rule.get("alert", rule.get("record")) in tests, rule


# === systemd ===


@pytest.fixture
def unit(tmp_path):
    """The unit, with the built binary in the place of the installed one."""
    path = tmp_path / "tollgate.service"
    path.write_text((DEPLOY / "systemd" / "tollgate.service").read_text().replace("/usr/local/bin/tollgate", BINARY))
    return path


@needs("systemd-analyze")
def test_systemd_takes_the_unit(unit):
    result = run("systemd-analyze", "verify", unit)
    complaints = [line for line in result.stderr.splitlines() if unit.name in line]
    assert result.returncode == 0 and not complaints, result.stderr


@needs("systemd-analyze")
def test_the_unit_is_exposed_to_less_than_two_of_ten(unit):
    succeeds("systemd-analyze", "security", "--offline=yes", "--threshold=20", unit)


def test_the_unit_waits_for_the_drain_and_loads_the_secrets_that_are_read():
    text = (DEPLOY / "systemd" / "tollgate.service").read_text()
    config = (DEPLOY / "systemd" / "tollgate.yaml").read_text()
    assert int(re.search(r"TimeoutStopSec=(\d+)", text).group(1)) > drain_seconds(config)
    loaded = set(re.findall(r"^LoadCredential=(\w+):", text, re.MULTILINE))
    assert loaded == set(re.findall(r"\$\{CREDENTIALS_DIRECTORY\}/(\w+)", config))


# === the cage ===

CAGED = """
server: { listen: "127.0.0.1:0", admin: "127.0.0.1:0" }
auth: none
records: none
data_dir: DATA
default_provider: sim
providers: { sim: { kind: simulated, time_to_first_token: 1ms } }
prices: { sim/small: { input: 1 USD/1M, output: 1 USD/1M, max_output: 4096 } }
budgets: [ { name: all, limit: 1 USD, per: day, timezone: Europe/Berlin } ]
"""
# The root file system read-only but for the data directory, and nobody without capabilities in it: what the image,
# the manifests and the unit promise.
CAGE = f"""
mount --bind "$1" "$1" && mount -o remount,bind,ro / || exit 77
exec setpriv --reuid {UID} --regid {UID} --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$2" serve --config "$3"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting asks for root")
@needs("unshare")
@needs("setpriv")
def test_the_gateway_serves_as_nobody_on_a_read_only_root():
    # pytest's own directories are for their owner alone.
    with tempfile.TemporaryDirectory(prefix="tollgate-cage.") as home:
        home = pathlib.Path(home)
        home.chmod(0o755)
        serves_caged(home)


def serves_caged(home):
    data, config, binary = home / "data", home / "tollgate.yaml", home / "tollgate"
    data.mkdir()
    # As a volume under fsGroup comes: owned by root, open to the group.
    os.chown(data, 0, UID)
    data.chmod(0o2775)
    config.write_text(CAGED.replace("DATA", str(data)))
    # The checkout may lie where nobody else can look.
    shutil.copy(BINARY, binary)
    shell = ["unshare", "--mount", "sh", "-c", CAGE, "sh", str(data), str(binary), str(config)]
    gateway = subprocess.Popen(shell, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd="/")
    try:
        line = gateway.stdout.readline()
        if not line and gateway.wait(10) == 77:
            pytest.skip("this machine does not let root mount")
        assert line.startswith("ready "), f"the gateway ended with {gateway.poll()}"
        listen, admin = (word.split("=")[1] for word in line.split()[1:3])
        call = {"model": "sim/small", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
        request = urllib.request.Request(f"http://{listen}/v1/chat/completions", json.dumps(call).encode())
        with urllib.request.urlopen(request, timeout=30) as reply:
            assert json.load(reply)["usage"]["completion_tokens"] > 0

        assert run(BINARY, "health", "--url", f"http://{admin}/healthz").returncode == 0
        status = pathlib.Path(f"/proc/{gateway.pid}/status").read_text()
        assert re.search(rf"^Uid:\s+{UID}\s", status, re.MULTILINE)
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    finally:
        gateway.terminate()
        code = gateway.wait(60)
    assert code == 0
    assert run(BINARY, "health", "--url", f"http://{admin}/healthz").returncode == 3
    assert {path.stat().st_mode & 0o077 for path in data.iterdir()} == {0}
