#!/usr/bin/env python3
"""What the ledger costs: CPU per call with more and more budgets, and what Redis is asked meanwhile.

    cargo build --release
    python3 scripts/ledger.py                                  # about a minute; needs redis-server and wrk
    python3 scripts/ledger.py --calls 2000 --seconds 5 --rounds 3 --gateway target/release/tollgate

Starts a redis-server and, for each number of budgets, a gateway with a simulated provider, and calls it at a fixed rate. Every
call takes money from each of the budgets and settles it. Prints per round the CPU time of the gateway by call (the kernel's
account of all its threads), and per second how often Redis executed each command (INFO commandstats; what a function calls
itself is counted there too, so `evalsha` is what was sent).

The rounds take turns, so that a busy machine is busy for all of them. The slope from no budget to eight is what one account costs
a call: claim, reserve, journal, settle.
"""

import argparse
import collections
import os
import pathlib
import re
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request

KEY = "sk-ledger-0123456789abcdef0123456789abcdef"
BUDGETS = (0, 1, 8)
CONNECTIONS = 50
WARM_UP = 3.0
# What a call takes, so that the next one comes in time for the rate.
LATENCY_MS = 5

CONFIG = """
server: {{ listen: "127.0.0.1:{port}", admin: "127.0.0.1:{admin}" }}
store: "redis://127.0.0.1:{redis}"
data_dir: {data}
default_provider: simulated
providers:
  simulated: {{ kind: simulated, time_to_first_token: 1ms, tokens_per_second: 1000000 }}
prices:
  simulated/m: {{ input: 1 USD/1M, output: 2 USD/1M, max_output: 64 }}
keys:
  - {{ name: load, secret: {key}, team: load, models: ["*"] }}
"""

SCRIPT = """
wrk.method = "POST"
wrk.headers["authorization"] = "Bearer {key}"
wrk.headers["content-type"] = "application/json"
wrk.body = '{{"model":"simulated/m","max_tokens":8,"messages":[{{"role":"user","content":"hi"}}]}}'
function delay() return math.random({least}, {most}) end
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(port):
    deadline = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit(f"nothing listens on port {port}")
            time.sleep(0.02)


def commands(port):
    """How often Redis has executed each command."""
    with socket.create_connection(("127.0.0.1", port)) as stream:
        stream.sendall(b"INFO commandstats\r\n")
        answer = stream.makefile("rb")
        length = int(answer.readline()[1:])
        text = answer.read(length).decode()
    return collections.Counter({name: int(calls) for name, calls in re.findall(r"cmdstat_(\S+?):calls=(\d+)", text)})


def cpu_seconds(process):
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def admitted(admin):
    """Calls that were answered with 200."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    counts = [line for line in lines if line.startswith("tollgate_requests_total") and 'status="200"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in counts)


class Gateway:
    def __init__(self, binary, redis, budgets, limits):
        self.directory = tempfile.TemporaryDirectory()
        home = pathlib.Path(self.directory.name)
        self.port, self.admin, self.budgets, self.redis = free_port(), free_port(), budgets, redis
        text = CONFIG.format(port=self.port, admin=self.admin, redis=redis, data=home / "data", key=KEY)
        rows = [f"  - {{ name: b{n}, scope: {{ team: load }}, limit: 100000 USD, per: month }}\n" for n in range(budgets)]
        text += "budgets:\n" + "".join(rows) if rows else ""
        text += "limits:\n  - { name: team, scope: { team: load }, requests: 6000000/min, tokens: 9000000000/min }\n" if limits else ""
        config = home / "tollgate.yaml"
        config.write_text(text)
        config.chmod(0o600)
        environment = {**os.environ, "TOLLGATE_LOG": "warn"}
        command = [binary, "serve", "--config", config]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=environment, **silent)
        wait_for(self.port)

    def load(self, seconds, rate):
        """Returns CPU µs by call, calls a second, and what Redis did in each second."""
        between_ms = CONNECTIONS * 1000 / rate - LATENCY_MS
        script = pathlib.Path(self.directory.name) / "load.lua"
        script.write_text(SCRIPT.format(key=KEY, least=round(between_ms * 0.9), most=round(between_ms * 1.1)))
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        time_s = f"{int(seconds + WARM_UP + 2)}s"
        wrk = subprocess.Popen(["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{time_s}", "-s", script, url], stdout=subprocess.DEVNULL)
        time.sleep(WARM_UP)
        begun, cpu, calls, done = time.monotonic(), cpu_seconds(self.process), admitted(self.admin), commands(self.redis)
        by_second = []
        for second in range(seconds):
            time.sleep(max(0.0, begun + second + 1 - time.monotonic()))
            now = commands(self.redis)
            by_second.append(now - done)
            done = now
        elapsed = time.monotonic() - begun
        cpu, calls = cpu_seconds(self.process) - cpu, admitted(self.admin) - calls
        wrk.wait()
        return cpu * 1e6 / max(calls, 1), calls / elapsed, by_second

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.directory.cleanup()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gateway", default="target/release/tollgate")
    parser.add_argument("--calls", type=int, default=2000, help="a second")
    parser.add_argument("--seconds", type=int, default=5, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limits", action="store_true", help="rate limits as well")
    options = parser.parse_args()
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        arguments = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]
        redis = subprocess.Popen([*arguments, "--dir", directory], stdout=subprocess.DEVNULL)
        wait_for(port)
        costs = collections.defaultdict(list)
        try:
            for number in range(options.rounds):
                for budgets in BUDGETS:
                    gateway = Gateway(options.gateway, port, budgets, options.limits)
                    cost, rate, by_second = gateway.load(options.seconds, options.calls)
                    gateway.stop()
                    costs[budgets].append(cost)
                    print(f"round {number + 1}: {budgets} budgets, {rate:,.0f} calls/s, {cost:.1f} µs CPU per call")
                    for second, counts in enumerate(by_second):
                        counts.subtract(info=1)  # this script's own question
                        told = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count)
                        print(f"    second {second + 1}: {told or 'nothing'}")
        finally:
            redis.terminate()
            redis.wait()
    medians = {budgets: statistics.median(each) for budgets, each in costs.items()}
    print("median µs CPU per call: " + ", ".join(f"{budgets} budgets {cost:.1f}" for budgets, cost in medians.items()))
    print(f"by account: {(medians[8] - medians[0]) / 8:.2f} µs")


if __name__ == "__main__":
    main()
