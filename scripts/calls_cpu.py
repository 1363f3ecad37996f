#!/usr/bin/env python3
"""What the call log costs: CPU per call with it on and off, in one interleaved run.

    cargo build --release
    python3 scripts/calls_cpu.py                               # about two minutes; needs wrk
    python3 scripts/calls_cpu.py --calls 4000 --seconds 5 --rounds 7 --gateway target/release/tollgate

Starts an upstream (a gateway with a simulated provider) and before it two gateways with every policy on
(tests/data/contract/everything.yaml), one with `records: none` and one with `records: sqlite`. They are called in turns, at a fixed
rate, by 500 users with a request of 1 KB. The CPU time is the kernel's account of all threads of a gateway, from the first call of a
window until the log has written its last. Printed is each round, and the median of the rounds' ratios.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time
import urllib.request

from ledger import admitted, cpu_seconds, free_port, wait_for

KEY = "sk-calls-0123456789abcdef0123456789abcdef"
EVERYTHING = pathlib.Path(__file__).parent.parent / "tests/data/contract/everything.yaml"
CONNECTIONS = 64
# What a call takes, so that the next one comes in time for the rate.
LATENCY_MS = 2
TEXT = "Hello, I ordered a pair of walking boots last Thursday and moved house on Saturday. Can it go to the new address? " * 7

UPSTREAM = """
server: {{ listen: "127.0.0.1:{port}", admin: "127.0.0.1:{admin}" }}
data_dir: {data}
records: none
default_provider: simulated
providers:
  simulated: {{ kind: simulated, time_to_first_token: 1ms, tokens_per_second: 1000000 }}
prices:
  simulated/gpt-4o-mini: {{ input: 1 USD/1M, output: 2 USD/1M, max_output: 1000 }}
keys:
  - {{ name: load, secret: sk-upstream-0123456789abcdef0123456789abcdef, models: ["*"] }}
"""

SCRIPT = """
wrk.method = "POST"
wrk.headers["authorization"] = "Bearer {key}"
wrk.headers["content-type"] = "application/json"
local user = 0
function request()
  user = (user + 1) % 500
  return wrk.format(nil, nil, nil, '{{"model":"support","user":"user-' .. user .. '","max_completion_tokens":50,"messages":{messages}}}')
end
function delay() return math.random({least}, {most}) end
"""


class Gateway:
    def __init__(self, binary, config, environment):
        self.port, self.admin = free_port(), free_port()
        ports = {"PORT": str(self.port), "ADMIN_PORT": str(self.admin)}
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        environment = {**os.environ, **ports, **environment}
        self.process = subprocess.Popen([binary, "serve", "--config", config(self)], env=environment, **silent)
        wait_for(self.port)

    def metric(self, name):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics") as reply:
            lines = reply.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    def load(self, script, seconds):
        """CPU µs by call, and calls a second."""
        cpu, calls = cpu_seconds(self.process), admitted(self.admin)
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", script, url]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        time.sleep(0.5)
        while self.metric("tollgate_records_waiting") > 0:
            time.sleep(0.05)
        calls = admitted(self.admin) - calls
        if calls == 0:
            raise SystemExit("no call was answered with 200")
        return (cpu_seconds(self.process) - cpu) * 1e6 / calls, calls / seconds

    def stop(self):
        self.process.terminate()
        self.process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gateway", default="target/release/tollgate")
    parser.add_argument("--calls", type=int, default=4000, help="a second")
    parser.add_argument("--seconds", type=int, default=5, help="of each window")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        home = pathlib.Path(directory)
        between_ms = CONNECTIONS * 1000 / options.calls - LATENCY_MS
        messages = json.dumps([{"role": "user", "content": TEXT}])
        script = home / "load.lua"
        times = {"least": round(between_ms * 0.9), "most": round(between_ms * 1.1)}
        script.write_text(SCRIPT.format(key=KEY, messages=messages, **times))

        def of_upstream(gateway):
            path = home / "upstream.yaml"
            path.touch(0o600)
            path.write_text(UPSTREAM.format(port=gateway.port, admin=gateway.admin, data=home / "upstream"))
            return path

        upstream = Gateway(options.gateway, of_upstream, {"TOLLGATE_LOG": "warn"})
        key = {"UPSTREAM_KEY": "sk-upstream-0123456789abcdef0123456789abcdef", "CLIENT_KEY": KEY}
        shared = {**key, "UPSTREAM": f"http://127.0.0.1:{upstream.port}", "LIMIT": "1000000"}
        gateways = {}
        for records in ("none", "sqlite"):
            own = {"RECORDS": records, "DATA_DIR": str(home / records)}
            gateways[records] = Gateway(options.gateway, lambda _: EVERYTHING, {**shared, **own})
        try:
            for gateway in gateways.values():
                gateway.load(script, 1)
            rounds = [take_turns(gateways, script, options.seconds, number) for number in range(options.rounds)]
            dropped = gateways["sqlite"].metric("tollgate_records_dropped_total")
        finally:
            for gateway in [*gateways.values(), upstream]:
                gateway.stop()
    off, on = (statistics.median(each) for each in zip(*rounds))
    ratios = sorted(on / off for off, on in rounds)
    print(f"median: off {off:.1f}, on {on:.1f} µs CPU per call; {dropped:.0f} calls left out of the log")
    print(f"on : off {statistics.median(ratios):.2f} (of the rounds {ratios[0]:.2f} to {ratios[-1]:.2f})")


def take_turns(gateways, script, seconds, number):
    """CPU per call with the log off and on. Who goes first changes with the round."""
    costs = {}
    for records in list(gateways)[:: 1 if number % 2 == 0 else -1]:
        costs[records], rate = gateways[records].load(script, seconds)
        print(f"round {number + 1}: records {records}: {rate:,.0f} calls/s, {costs[records]:.1f} µs CPU per call", flush=True)
    return costs["none"], costs["sqlite"]


if __name__ == "__main__":
    main()
