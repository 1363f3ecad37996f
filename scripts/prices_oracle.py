#!/usr/bin/env python3
"""Writes tests/data/pricing/oracle.jsonl: random usages with the cost that genai-prices itself computes for them.

    python3 scripts/prices_oracle.py [SEED]

A Rust test checks that the gateway's arithmetic agrees with each line, rounded up to a nano-dollar. Run it with the
package version that config/prices.yaml was written from.

Left out, because the gateway differs on purpose:
- models with prices for images, video or citations: usage reports do not tell these tokens apart, and the gateway
  charges the dearest;
- prices with more than six decimals: the gateway's are rounded up to a millionth of a dollar per million tokens;
- usages that contradict themselves: the package raises an error, the gateway charges.
"""

import datetime
import importlib.metadata
import json
import pathlib
import random
import sys
from decimal import Decimal

from genai_prices import Usage, calc_price, types
from genai_prices.data import providers

TARGET = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "pricing" / "oracle.jsonl"
LINES = 1000
MEASURED = {"input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok", "cache_write_1h_mtok", "input_audio_mtok"}
MEASURED |= {"output_audio_mtok", "cache_audio_read_mtok", "output_reasoning_mtok", "requests_kcount"}
IGNORED = {"web_searches_kcount", "storage_searches_kcount"}
CONTEXTS = {"service_tier", "processing", "speed"}


def stored(model_price):
    return {key: price for key, price in model_price.__dict__.items() if price is not None}


def standard_sets(model):
    conditional = model.prices if isinstance(model.prices, list) else [types.ConditionalPrice(prices=model.prices)]
    return [stored(p.prices) for p in conditional]


def price_sets(model):
    return standard_sets(model) + [stored(v.prices) for v in model.price_variants or []]


def decimals(price):
    amounts = [price] if isinstance(price, Decimal) else [price.base] + [tier.price for tier in price.tiers]
    return max(-amount.normalize().as_tuple().exponent for amount in amounts)


def comparable(model):
    return (
        all("input_mtok" in prices for prices in standard_sets(model))
        and keys_of(model) <= MEASURED | IGNORED
        and all(decimals(price) <= 6 for prices in price_sets(model) for price in prices.values())
    )


def keys_of(model):
    return {key for prices in price_sets(model) for key in prices}


def random_usage(rng, model):
    keys = keys_of(model)
    size = rng.choice([10, 1_000, 50_000, 400_000, 2_000_000])
    usage = {"input": rng.randint(0, size), "output": rng.randint(0, size // 4)}
    left = usage["input"]

    def part(name, key):
        nonlocal left
        if key in keys and rng.random() < 0.6:
            usage[name] = rng.randint(0, left)
            left -= usage[name]

    part("cached", "cache_read_mtok")
    part("cache_write", "cache_write_mtok")
    part("cache_write_1h", "cache_write_1h_mtok")
    part("input_audio", "input_audio_mtok")
    if "cache_audio_read_mtok" in keys and usage.get("cached") and "input_audio" in usage:
        usage["cached_audio"] = rng.randint(0, usage["cached"])
        usage["input_audio"] += usage["cached_audio"]
    output_left = usage["output"]
    for name, key in [("reasoning", "output_mtok"), ("output_audio", "output_audio_mtok")]:
        if key in keys and rng.random() < 0.5:
            usage[name] = rng.randint(0, output_left)
            output_left -= usage[name]
    return usage


def theirs(usage, keys):
    """The gateway's usage in the package's terms: there, cache writes include those of one hour."""
    reported = {
        "input_tokens": usage["input"],
        "output_tokens": usage["output"],
        "cache_read_tokens": usage.get("cached", 0),
        "cache_write_tokens": usage.get("cache_write", 0) + usage.get("cache_write_1h", 0),
        "cache_write_1h_tokens": usage.get("cache_write_1h", 0),
        "input_audio_tokens": usage.get("input_audio", 0),
        "cache_audio_read_tokens": usage.get("cached_audio", 0),
        "output_audio_tokens": usage.get("output_audio", 0),
    }
    if "output_reasoning_mtok" in keys:
        reported["output_reasoning_tokens"] = usage.get("reasoning", 0)
    return Usage(**reported)


def random_context(rng, model):
    variants = [v for v in model.price_variants or [] if next(iter(v.when)) in CONTEXTS]
    if not variants or rng.random() < 0.4:
        return None, None
    when = rng.choice(variants).when
    return next(iter(when.values())), when


def main():
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 20261123
    rng = random.Random(seed)
    models = [(p, m) for p in sorted(providers, key=lambda p: p.id) for m in p.models if comparable(m)]
    weighted = [pair for pair in models if pair[1].price_variants or isinstance(pair[1].prices, list)]
    lines = [json.dumps({"package": "genai-prices", "version": importlib.metadata.version("genai-prices"), "seed": seed})]
    while len(lines) <= LINES:
        provider, model = rng.choice(rng.choice([models, weighted]))
        at = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(minutes=rng.randint(0, 600_000))
        tier, context = random_context(rng, model)
        usage = random_usage(rng, model)
        try:
            found = calc_price(
                theirs(usage, keys_of(model)),
                model.id,
                provider_id=provider.id,
                genai_request_timestamp=at,
                price_context=context,
            )
        except LookupError:
            continue
        if not comparable(found.model):
            continue
        line = {"provider": provider.id, "model": model.id, "at": at.isoformat().replace("+00:00", "Z")}
        if tier:
            line["tier"] = tier
        lines.append(json.dumps(line | {"usage": usage, "usd": format(found.total_price, "f")}))
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text("\n".join(lines) + "\n")
    print(f"wrote {LINES} lines over {len(models)} models")


if __name__ == "__main__":
    main()
