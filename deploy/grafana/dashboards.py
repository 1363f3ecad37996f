#!/usr/bin/env python3
"""Writes the dashboards: `python3 deploy/grafana/dashboards.py`. Needs nothing but Python.

A panel is a title, what it answers, and its queries. tests/deploy asks each query of a Prometheus that scraped a real run.
"""

import json
import pathlib

FOLDER = pathlib.Path(__file__).parent / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
# What `{J` in a query stands for: the gateways that were chosen.
SELECTOR = '{job="$job"'
FAILED = 'outcome=~"upstream_error|upstream_failed|cut|internal"'


def panel(kind, title, question, unit, *queries, width=8, height=8, **field):
    """`queries` are (PromQL, legend)."""
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": DATASOURCE,
            "expr": query.replace("{J", SELECTOR),
            "legendFormat": legend,
            "instant": kind in ("bargauge", "stat"),
            "range": kind == "timeseries",
        }
        for number, (query, legend) in enumerate(queries)
    ]
    defaults = {"unit": unit, "min": 0} | field
    if kind == "timeseries":
        defaults["custom"] = {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}
    options = {
        "timeseries": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "none"},
        "bargauge": {"reduceOptions": {"calcs": ["lastNotNull"]}, "orientation": "horizontal", "displayMode": "basic"},
    }[kind]
    return {
        "type": kind,
        "title": title,
        "description": question,
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "gridPos": {"w": width, "h": height},
    }


def series(title, question, unit, *queries, **more):
    return panel("timeseries", title, question, unit, *queries, **more)


def number(title, question, unit, query, **more):
    return panel("stat", title, question, unit, (query, ""), width=6, height=4, **more)


def bars(title, question, unit, query, legend, **more):
    return panel("bargauge", title, question, unit, (query, legend), **more)


def steps(*levels):
    """Colours from a value on: (None, "green"), (0.8, "yellow"), …"""
    return {"thresholds": {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in levels]}}


def quantile(share, metric, by=""):
    return f"histogram_quantile({share}, sum by (le{by}) (rate({metric}_bucket{{J}}[$__rate_interval])))"


def rate(metric, by, more=""):
    return f"sum by ({by}) (rate({metric}{{J{more}}}[$__rate_interval]))"


BUDGET_STEPS = steps((None, "green"), (0.8, "yellow"), (1, "red"))

OPERATORS = [
    number("Calls a second", "How busy is it?", "reqps", "sum(rate(tollgate_requests_total{J}[$__rate_interval]))"),
    number(
        "Failed",
        "Which share of calls failed through no fault of their client? 0.5 % may.",
        "percentunit",
        f"(sum(rate(tollgate_requests_total{{J,{FAILED}}}[5m])) or vector(0)) / sum(rate(tollgate_requests_total{{J}}[5m]))",
        **steps((None, "green"), (0.005, "yellow"), (0.05, "red")),
    ),
    number("In flight", "How many calls are under way?", "short", "sum(tollgate_in_flight{J})"),
    number(
        "Store",
        "Does the ledger's store answer at every gateway?",
        "short",
        "min(tollgate_store_up{J})",
        mappings=[{"type": "value", "options": {"0": {"text": "away", "color": "red"}, "1": {"text": "up", "color": "green"}}}],
    ),
    series("Calls by outcome", "What becomes of calls?", "reqps", (rate("tollgate_requests_total", "outcome"), "{{outcome}}")),
    series(
        "Duration",
        "How long do calls take, to their last byte?",
        "s",
        (quantile(0.5, "tollgate_request_duration_seconds"), "half"),
        (quantile(0.95, "tollgate_request_duration_seconds"), "95 %"),
        (quantile(0.99, "tollgate_request_duration_seconds"), "99 %"),
    ),
    series(
        "First token",
        "How long do users wait for the first token?",
        "s",
        (quantile(0.5, "tollgate_time_to_first_token_seconds"), "half"),
        (quantile(0.95, "tollgate_time_to_first_token_seconds"), "95 %"),
    ),
    series(
        "Time per output token",
        "How fast do streams flow after their first token?",
        "s",
        (quantile(0.5, "tollgate_time_per_output_token_seconds"), "half"),
        (quantile(0.95, "tollgate_time_per_output_token_seconds"), "95 %"),
    ),
    series(
        "Overhead",
        "What does the gateway itself add before the provider is called?",
        "s",
        (quantile(0.5, "tollgate_overhead_seconds"), "half"),
        (quantile(0.99, "tollgate_overhead_seconds"), "99 %"),
    ),
    series("Refusals", "What does the gateway refuse, and why?", "reqps", (rate("tollgate_refusals_total", "reason"), "{{reason}}")),
    series(
        "Attempts by provider",
        "How do providers answer, before retries and fallbacks have mended anything?",
        "reqps",
        (rate("tollgate_upstream_attempts_total", "provider, result"), "{{provider}} {{result}}"),
    ),
    series(
        "Out of rotation",
        "Which providers are ejected? 0 in rotation, 1 being probed, 2 out.",
        "short",
        ("max by (provider) (tollgate_circuit_state{J})", "{{provider}}"),
        max=2,
    ),
    series("Calls by model", "What is asked for?", "reqps", (rate("tollgate_requests_total", "model"), "{{model}}")),
    series(
        "Configuration",
        "Which configurations serve? More than one for long is a mistake somewhere.",
        "short",
        ("sum by (hash) (tollgate_config_info{J})", "{{hash}}"),
    ),
    series(
        "Changes of the configuration",
        "Was a change refused?",
        "short",
        ("sum by (result) (increase(tollgate_config_reloads_total{J}[$__rate_interval]))", "{{result}}"),
    ),
    series(
        "What should be nothing",
        "Lost records, unbooked calls, bugs, alerts that did not arrive.",
        "short",
        ("sum(increase(tollgate_records_dropped_total{J}[$__rate_interval]))", "records lost"),
        ("sum(increase(tollgate_panics_total{J}[$__rate_interval]))", "panics"),
        ("sum(increase(tollgate_reservations_dropped_total{J}[$__rate_interval]))", "reservations dropped"),
        ("sum(increase(tollgate_calls_unbooked_total{J}[$__rate_interval]))", "calls unbooked"),
        ('sum(increase(tollgate_alerts_total{J,result!="sent"}[$__rate_interval]))', "alerts undelivered"),
    ),
]

FINANCE = [
    number("Last hour", "What did it cost?", "currencyUSD", "sum(increase(tollgate_cost_usd_total{J}[1h]))"),
    number("Last 24 hours", "What did it cost?", "currencyUSD", "sum(increase(tollgate_cost_usd_total{J}[1d]))"),
    number("Last 30 days", "What did it cost?", "currencyUSD", "sum(increase(tollgate_cost_usd_total{J}[30d]))"),
    number(
        "At this pace, a month",
        "What would 30 days cost, if all were like the last hour?",
        "currencyUSD",
        "30 * 24 * 3600 * sum(rate(tollgate_cost_usd_total{J}[1h]))",
    ),
    bars(
        "Budgets: spent",
        "Which share of each budget is spent in this period? Of a budget per user or key: the fullest account.",
        "percentunit",
        "sort_desc(max by (budget) (tollgate_budget_spent_ratio{J}))",
        "{{budget}}",
        width=12,
        max=1,
        **BUDGET_STEPS,
    ),
    bars(
        "Budgets: forecast",
        "Which share will be spent when the period ends, if the rest of it is like what was? Empty in its first tenth.",
        "percentunit",
        "sort_desc(budget:tollgate_budget_spent:forecast_ratio{J})",
        "{{budget}}",
        width=12,
        **BUDGET_STEPS,
    ),
    series(
        "Cost by team",
        "Whose is it? USD an hour.",
        "currencyUSD",
        ("3600 * " + rate("tollgate_team_cost_usd_total", "team"), "{{team}}"),
        width=12,
    ),
    series(
        "Cost by model",
        "What is it for? USD an hour.",
        "currencyUSD",
        ("3600 * " + rate("tollgate_cost_usd_total", "model, provider"), "{{provider}} {{model}}"),
        width=12,
    ),
    bars(
        "By team, 30 days",
        "Who is to be charged?",
        "currencyUSD",
        "sort_desc(sum by (team) (increase(tollgate_team_cost_usd_total{J}[30d])))",
        "{{team}}",
    ),
    bars(
        "By model, 30 days",
        "What was the money spent on?",
        "currencyUSD",
        "sort_desc(sum by (model) (increase(tollgate_cost_usd_total{J}[30d])))",
        "{{model}}",
    ),
    bars(
        "Cost of a call, last 24 hours",
        "Which models are dear to call?",
        "currencyUSD",
        "sort_desc(sum by (model) (increase(tollgate_cost_usd_total{J}[1d])) / sum by (model) (increase(tollgate_requests_total{J,outcome=\"ok\"}[1d])))",
        "{{model}}",
        decimals=6,
    ),
    series("Tokens", "Where do the tokens go? A second, by direction.", "short", (rate("tollgate_tokens_total", "direction"), "{{direction}}")),
    series(
        "Read from the provider's cache",
        "Which share of prompt tokens is charged at the cheaper rate?",
        "percentunit",
        (
            'sum(rate(tollgate_tokens_total{J,direction="cached"}[$__rate_interval])) / sum(rate(tollgate_tokens_total{J,direction="input"}[$__rate_interval]))',
            "cached",
        ),
        max=1,
    ),
    series(
        "Refused for want of money",
        "Whose calls would have cost more than is left?",
        "reqps",
        (rate("tollgate_refusals_total", "reason", ',reason=~"budget_exhausted|unpriceable"'), "{{reason}}"),
    ),
]

PRODUCT = [
    series("Calls by model", "What is used?", "reqps", (rate("tollgate_requests_total", "model"), "{{model}}"), width=12),
    series(
        "First token",
        "How long do users wait, by kind of call? One of twenty waits longer.",
        "s",
        (quantile(0.95, "tollgate_time_to_first_token_seconds", ", endpoint"), "{{endpoint}}"),
        width=12,
    ),
    series(
        "Experiments: share",
        "Is the split as it was meant?",
        "percentunit",
        ("experiment:tollgate_experiment_calls:share1h{J}", "{{experiment}} {{variant}}"),
        max=1,
    ),
    series(
        "Experiments: failures",
        "Does a variant fail more often? Last hour.",
        "percentunit",
        ("experiment:tollgate_experiment_failures:ratio_rate1h{J}", "{{experiment}} {{variant}}"),
    ),
    series(
        "Experiments: cost of a call",
        "Is a variant dearer? Last hour.",
        "currencyUSD",
        (
            "sum by (experiment, variant) (rate(tollgate_experiment_cost_usd_total{J}[1h])) / sum by (experiment, variant) (rate(tollgate_experiment_calls_total{J}[1h]))",
            "{{experiment}} {{variant}}",
        ),
        decimals=6,
    ),
    bars(
        "Experiments: calls",
        "How many calls has each variant had? Last 30 days.",
        "short",
        "sum by (experiment, variant) (increase(tollgate_experiment_calls_total{J}[30d]))",
        "{{experiment}} {{variant}}",
    ),
    series(
        "Answered",
        "Which share of calls got a whole answer, by model?",
        "percentunit",
        (
            'sum by (model) (rate(tollgate_requests_total{J,outcome="ok"}[$__rate_interval])) / sum by (model) (rate(tollgate_requests_total{J}[$__rate_interval]))',
            "{{model}}",
        ),
        max=1,
    ),
    series(
        "Left before the end",
        "How many users hang up on a reply?",
        "reqps",
        (rate("tollgate_requests_total", "endpoint", ',outcome="abandoned"'), "{{endpoint}}"),
    ),
    series(
        "Output of a call",
        "How long are answers, in tokens?",
        "short",
        (
            'sum(rate(tollgate_tokens_total{J,direction="output"}[$__rate_interval])) / sum(rate(tollgate_requests_total{J,outcome="ok"}[$__rate_interval]))',
            "tokens",
        ),
    ),
]


def laid_out(panels):
    """Side by side, as many as fit into a row of the grid."""
    x = y = row_height = 0
    for number, item in enumerate(panels, start=1):
        place = item["gridPos"]
        if x + place["w"] > COLUMNS:
            x, y, row_height = 0, y + row_height, 0
        item |= {"id": number, "gridPos": place | {"x": x, "y": y}}
        x, row_height = x + place["w"], max(row_height, place["h"])
        yield item


def dashboard(uid, title, since, panels):
    variable = {"hide": 0, "multi": False, "includeAll": False}
    return {
        "uid": uid,
        "title": title,
        "tags": ["tollgate"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": f"now-{since}", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                variable | {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                variable
                | {
                    "name": "job",
                    "label": "Gateways",
                    "type": "query",
                    "datasource": DATASOURCE,
                    "query": {"query": "label_values(tollgate_in_flight, job)", "refId": "job"},
                    "refresh": 2,
                },
            ]
        },
        "panels": list(laid_out(panels)),
    }


DASHBOARDS = {
    "operators.json": dashboard("tollgate-operators", "Tollgate: operators", "3h", OPERATORS),
    "finance.json": dashboard("tollgate-finance", "Tollgate: finance", "7d", FINANCE),
    "product.json": dashboard("tollgate-product", "Tollgate: product", "24h", PRODUCT),
}


def text(content):
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, content in DASHBOARDS.items():
        (FOLDER / name).write_text(text(content))
