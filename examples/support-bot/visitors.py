#!/usr/bin/env python3
"""Visitors of the shop: each asks one question under their own name and says whether it was answered.

Nothing is needed but Python: the calls are plain HTTP. A visitor who got what they needed is satisfied nine times in ten, one who did
not three times in ten, always the same ones.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import urllib.request

HERE = pathlib.Path(__file__).parent
TIMEOUT_S = 60


def luck(visitor: str) -> float:
    """The same number from 0 to 1 for the same visitor."""
    return int.from_bytes(hashlib.sha256(visitor.encode()).digest()[:6], "big") / 2**48


class Shop:
    """The gateway, seen from the shop's website."""

    def __init__(self, url: str, key: str):
        self.url, self.key = url.rstrip("/"), key

    def post(self, path: str, body: dict, **headers: str) -> tuple[dict, dict]:
        """Sends JSON; gives the reply's body and headers."""
        request = urllib.request.Request(
            self.url + path,
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json", "authorization": f"Bearer {self.key}", **headers},
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            return json.loads(reply.read() or b"{}"), dict(reply.headers)

    def visit(self, visitor: str, case: dict) -> tuple[str, bool]:
        """Asks, and rates the answer. Gives the variant and whether the visitor was satisfied."""
        chat = {"model": "support", "messages": [{"role": "user", "content": case["input"]}]}
        reply, headers = self.post("/v1/chat/completions", chat, **{"x-tollgate-user": visitor})
        answered = case["expected"] in reply["choices"][0]["message"]["content"]
        resolved = luck(visitor) < (0.9 if answered else 0.3)
        self.post("/v1/feedback", {"call": headers["x-tollgate-call"], "metric": "resolved", "value": resolved})
        return headers.get("x-tollgate-variant", "none"), resolved


def main() -> None:
    """Sends the visitors and counts who was satisfied."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--url", default=os.environ.get("TOLLGATE_URL", "http://127.0.0.1:8080"))
    arguments.add_argument("--key", default=os.environ.get("SUPPORT_KEY", "tg-support-bot-example"))
    arguments.add_argument("--from", dest="first", type=int, default=0, help="number of the first visitor")
    arguments.add_argument("--count", type=int, default=500, help="how many visitors")
    given = arguments.parse_args()
    shop = Shop(given.url, given.key)
    cases = [json.loads(line) for line in (HERE / "suites" / "cases.jsonl").read_text().splitlines()]
    visits = [(f"visitor-{n}", cases[n % len(cases)]) for n in range(given.first, given.first + given.count)]
    seen: dict[str, list[bool]] = {}
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for variant, resolved in pool.map(lambda visit: shop.visit(*visit), visits):
            seen.setdefault(variant, []).append(resolved)
    for variant, outcomes in sorted(seen.items()):
        print(f"{variant}: {sum(outcomes)} of {len(outcomes)} visitors satisfied")


if __name__ == "__main__":
    main()
