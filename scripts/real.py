"""Real prompts to a real model through the gateway, streamed and not: is what we charge what it reported?

For each prompt the model server's own `usage` (asked of it in the reply) is compared with the gateway's log line of that
call: prompt tokens, completion tokens, and the cost at the prices below. Exit 1 when any differs.
"""

import argparse
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request

KEY = "tg-real-0123456789abcdef0123456789abcdef"
INPUT_NANOUSD, OUTPUT_NANOUSD = 1000, 2000  # a token, at 1 and 2 USD per million
PROMPTS = [
    "Say hello.",
    "Name three colours, separated by commas.",
    "Was ist die Hauptstadt von Österreich?",
    "日本の首都はどこですか。",
    "Write one sentence about the sea. 🌊",
    "What is 2 + 2?\n\nAnswer with a number.",
    "word " * 300 + "How many words was that?",
]
CONFIG = """
server: {{ listen: "127.0.0.1:0", admin: "127.0.0.1:0" }}
records: none
routing: {{ attempts: 1, eject: off }}
providers: {{ local: {{ kind: openai, base_url: "http://127.0.0.1:{port}/v1" }} }}
models: {{ small: {{ live: v1, versions: {{ v1: {{ target: local/smollm2 }} }} }} }}
prices: {{ local/smollm2: {{ input: 1 USD/1M, output: 2 USD/1M, max_output: 2048 }} }}
keys: [ {{ name: real, secret: "{key}", team: real }} ]
budgets: [ {{ name: real, scope: {{ team: real }}, limit: 10 USD, per: day }} ]
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("server", "weights", "gateway"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    port = free_port()
    server = start_server(arguments.server, arguments.weights, port)
    try:
        wait_for_server(server, f"http://127.0.0.1:{port}/health")
        with tempfile.TemporaryDirectory() as directory:
            failures = compare(Gateway(pathlib.Path(directory), arguments.gateway, port))
    finally:
        stop_server(server)
    raise SystemExit(1 if failures else 0)


def compare(gateway):
    failures, calls = 0, 0
    try:
        for prompt in PROMPTS:
            for streamed in (False, True):
                calls += 1
                call_id, reported, text = gateway.ask(prompt, streamed)
                record = gateway.record(call_id)
                expected = {
                    "prompt_tokens": reported["prompt_tokens"],
                    "completion_tokens": reported["completion_tokens"],
                    "cost_nanousd": reported["prompt_tokens"] * INPUT_NANOUSD + reported["completion_tokens"] * OUTPUT_NANOUSD,
                }
                charged = {name: int(record[name]) for name in expected}
                same = charged == expected and record["usage_source"] == "provider"
                failures += not same
                print(f"{'ok  ' if same else 'FAIL'} {'stream' if streamed else 'whole '} reported {expected} charged {charged} {text[:40]!r}")
    finally:
        gateway.stop()
    print(f"{calls - failures} of {calls} calls charged exactly what the model reported")
    return failures


class Gateway:
    """A running gateway in front of the model server, and its log."""

    def __init__(self, directory, binary, port):
        config = directory / "tollgate.yaml"
        config.write_text(CONFIG.format(port=port, key=KEY))
        command = [pathlib.Path(binary).resolve(), "serve", "--config", config]
        self.process = subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines = []
        threading.Thread(target=lambda: self.lines.extend(iter(self.process.stderr.readline, "")), daemon=True).start()
        ready = next((line for line in self.process.stdout if line.startswith("ready ")), None)
        if ready is None:
            raise SystemExit(f"the gateway did not start:\n{''.join(self.lines)}")
        self.url = f"http://{ready.split('listen=')[1].split()[0]}"

    def ask(self, prompt, streamed):
        """The call's id, the usage that the model reported, and its text."""
        body = {"model": "small", "max_tokens": 24, "temperature": 0, "seed": 1, "messages": [{"role": "user", "content": prompt}]}
        if streamed:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=300) as reply:
            call_id, raw = reply.headers["x-tollgate-call"], reply.read().decode()
        if not streamed:
            whole = json.loads(raw)
            return call_id, whole["usage"], whole["choices"][0]["message"]["content"]
        events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
        text = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
        return call_id, next(event["usage"] for event in reversed(events) if event.get("usage")), text

    def record(self, call_id):
        """The log line of a finished call; it comes just after the reply."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for line in list(self.lines):
                fields = json.loads(line) if line.startswith("{") else {}
                fields |= fields.get("fields", {})
                if fields.get("call.id") == call_id and "outcome" in fields:
                    return fields
            time.sleep(0.02)
        raise SystemExit(f"no log line of call {call_id}")

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=60)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_server(program, weights, port, *more):
    """The model server, in a process group of its own: what is installed only starts the real one."""
    command = [program, "--model", weights, "--host", "127.0.0.1", "--port", str(port), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def stop_server(server):
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def wait_for_server(server, url, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"the model server ended with {server.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.2)
    raise SystemExit(f"the model server was not ready within {seconds} s")


if __name__ == "__main__":
    main()
