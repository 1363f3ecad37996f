"""Evaluates the two prompts of examples/support-bot with a real model on this machine, which also is the judge.

Prints the report; with --keep DIR it is kept there as JSON, JUnit XML and a page. The exit code is that of `tollgate eval run`.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import tempfile

from real import free_port, start_server, stop_server, wait_for_server

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "support-bot"
CONTEXT_TOKENS = 8192  # shared by all calls at a time


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("server", "weights", "gateway"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    parser.add_argument("--keep", type=pathlib.Path)
    arguments = parser.parse_args()
    ports = {"model": free_port(), "PORT": free_port(), "ADMIN_PORT": free_port()}
    model = start_server(arguments.server, arguments.weights, ports["model"], "--ctx-size", str(CONTEXT_TOKENS))
    try:
        wait_for_server(model, f"http://127.0.0.1:{ports['model']}/health")
        with tempfile.TemporaryDirectory() as directory:
            code = evaluate(arguments, pathlib.Path(directory) / "support-bot", ports)
    finally:
        stop_server(model)
    raise SystemExit(code)


def evaluate(arguments, folder, ports):
    """Runs the suite in a copy of the example."""
    shutil.copytree(EXAMPLE, folder)
    tollgate = arguments.gateway.resolve()
    environment = {
        **os.environ,
        "TOLLGATE_CONFIG": "tollgate.local.yaml",
        "TOLLGATE_ADMIN_URL": f"http://127.0.0.1:{ports['ADMIN_PORT']}",
        "PORT": str(ports["PORT"]),
        "ADMIN_PORT": str(ports["ADMIN_PORT"]),
        "LOCAL_URL": f"http://127.0.0.1:{ports['model']}/v1",
    }

    def run(*words):
        return subprocess.run([tollgate, *words], cwd=folder, env=environment, check=False).returncode

    gateway = subprocess.Popen([tollgate, "serve"], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        if run("health", "--wait", "30s"):
            raise SystemExit("the gateway did not start")
        kept = [word for form in ("json", "junit", "html") for word in (f"--{form}", f"report.{form}")]
        code = run("eval", "run", "suites/real.yaml", "--output", "run", *kept)
    finally:
        gateway.terminate()
        gateway.wait(timeout=60)
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        for report in folder.glob("report.*"):
            shutil.copy(report, arguments.keep)
    return code


if __name__ == "__main__":
    main()
