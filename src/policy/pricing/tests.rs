//! Costs and bounds: against hand-computed vectors, against the source's own calculator, and as properties.

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

fn usd_per_million(text: &str) -> PicoUsdPerToken {
    format!("{text} USD/1M").parse().unwrap()
}

fn own(row: PriceRow) -> Arc<Price> {
    let catalog = Catalog::default().with_rows(vec![("p/m".to_owned(), row)]).unwrap();
    catalog.find("p", None, "m").unwrap()
}

fn row(rates: &[(&str, &str)]) -> PriceRow {
    let mut row = PriceRow::default();
    for (unit, text) in rates {
        let text = Some(format!("{text} USD/1M"));
        match *unit {
            "input" => row.input = text,
            "cached" => row.cached = text,
            "write" => row.cache_write = text,
            "write_1h" => row.cache_write_1h = text,
            "audio" => row.input_audio = text,
            "output" => row.output = text,
            "output_audio" => row.output_audio = text,
            _ => panic!("{unit}"),
        }
    }
    row
}

fn usage(parts: &[(&str, u64)]) -> Usage {
    let mut usage = Usage::default();
    for (part, n) in parts {
        let field = match *part {
            "input" => &mut usage.input,
            "cached" => &mut usage.cached,
            "write" => &mut usage.cache_write,
            "write_1h" => &mut usage.cache_write_1h,
            "audio" => &mut usage.input_audio,
            "cached_audio" => &mut usage.cached_audio,
            "output" => &mut usage.output,
            "reasoning" => &mut usage.reasoning,
            "output_audio" => &mut usage.output_audio,
            _ => panic!("{part}"),
        };
        *field = Tokens(*n);
    }
    usage
}

fn at(text: &str) -> jiff::Timestamp {
    text.parse().unwrap()
}

fn now() -> jiff::Timestamp {
    at("2026-11-23T12:00:00Z")
}

/// Rates in USD per million, usage, nano-dollars; each line computed by hand.
/// The first two are the regressions of <https://github.com/BerriAI/litellm/issues/14849> and its kin.
#[test]
fn costs_are_those_computed_by_hand() {
    type Vector = (&'static [(&'static str, &'static str)], &'static [(&'static str, u64)], u64);
    let vectors: [Vector; 20] = [
        // 5,005 × 1.25 + 257,955 × 0.625 + 1,744 × 10 = 6,256.25 + 161,221.875 + 17,440 µ$
        (
            &[("input", "1.25"), ("cached", "0.625"), ("output", "10")],
            &[("input", 262_960), ("cached", 257_955), ("output", 1_744)],
            184_918_125,
        ),
        // 6 × 5 + 159,217 × 6.25 + 2,745 × 25 = 30 + 995,106.25 + 68,625 µ$
        (
            &[("input", "5"), ("write", "6.25"), ("output", "25")],
            &[("input", 159_223), ("write", 159_217), ("output", 2_745)],
            1_063_761_250,
        ),
        // Plain calls.
        (&[("input", "0.15"), ("output", "0.60")], &[("input", 1_000), ("output", 500)], 450_000),
        (&[("input", "2.5"), ("output", "10")], &[("input", 1), ("output", 0)], 2_500),
        (&[("input", "2.5"), ("output", "10")], &[("input", 0), ("output", 1)], 10_000),
        (&[("input", "3"), ("output", "15")], &[], 0),
        // Rounded up once, at the end: 0.0375 USD/1M is 37.5 nano-dollars a token, 0.000001 is 0.001.
        (&[("input", "0.0375"), ("output", "0.15")], &[("input", 1)], 38),
        (&[("input", "0.0375"), ("output", "0.15")], &[("input", 2)], 75),
        (&[("input", "0.000001"), ("output", "0.000001")], &[("input", 1), ("output", 1)], 1),
        // Without a rate of its own, a part is charged like its total.
        (&[("input", "2"), ("output", "8")], &[("input", 1_000), ("cached", 900), ("output", 10)], 2_080_000),
        (&[("input", "2"), ("output", "8")], &[("input", 1_000), ("write", 900), ("output", 10)], 2_080_000),
        (
            &[("input", "2"), ("output", "8")],
            &[("input", 100), ("audio", 90), ("output", 10), ("output_audio", 9)],
            280_000,
        ),
        // Everything cached.
        (&[("input", "3"), ("cached", "0.3"), ("output", "15")], &[("input", 50_000), ("cached", 50_000)], 15_000_000),
        // Cache writes of both lives beside reads: 100 × 3 + 400 × 0.3 + 300 × 3.75 + 200 × 6.
        (
            &[("input", "3"), ("cached", "0.3"), ("write", "3.75"), ("write_1h", "6"), ("output", "15")],
            &[("input", 1_000), ("cached", 400), ("write", 300), ("write_1h", 200)],
            2_745_000,
        ),
        // One-hour writes without a rate of their own are writes.
        (
            &[("input", "3"), ("write", "3.75"), ("output", "15")],
            &[("input", 1_000), ("write_1h", 1_000), ("output", 100)],
            5_250_000,
        ),
        // Reasoning is output, and charged once: 1,000 × 1.1 + 2,000 × 4.4.
        (
            &[("input", "1.1"), ("output", "4.4")],
            &[("input", 1_000), ("output", 2_000), ("reasoning", 1_900)],
            9_900_000,
        ),
        // Audio both ways: 600 × 2.5 + 400 × 40 + 100 × 10 + 300 × 80.
        (
            &[("input", "2.5"), ("audio", "40"), ("output", "10"), ("output_audio", "80")],
            &[("input", 1_000), ("audio", 400), ("output", 400), ("output_audio", 300)],
            42_500_000,
        ),
        // Cached audio is charged as audio where it has no rate: 400 × 40 + 600 × 1.25.
        (
            &[("input", "2.5"), ("cached", "1.25"), ("audio", "40"), ("output", "10")],
            &[("input", 1_000), ("cached", 800), ("audio", 400), ("cached_audio", 200)],
            16_750_000,
        ),
        // More cached than input: the report must mean both. 10 × 2 + 1,000 × 1.
        (&[("input", "2"), ("cached", "1"), ("output", "8")], &[("input", 10), ("cached", 1_000)], 1_020_000),
        // More reasoning than output: the provider reports it beside the output. 100 × 8 + 1,000 × 8.
        (&[("input", "2"), ("output", "8")], &[("output", 100), ("reasoning", 1_000)], 8_800_000),
    ];
    for (rates, parts, nano_usd) in vectors {
        let cost = own(row(rates)).cost(&usage(parts), None, now());
        assert_eq!(cost, NanoUsd(nano_usd), "{rates:?} {parts:?}");
    }
}

#[test]
fn usage_beyond_reason_costs_everything_and_does_not_overflow() {
    let price = Price::flat(PicoUsdPerToken(u64::MAX), PicoUsdPerToken(u64::MAX));
    let max = Tokens(u64::MAX);
    let absurd = Usage {
        input: max,
        cached: max,
        cache_write: max,
        cache_write_1h: max,
        input_audio: max,
        cached_audio: max,
        output: max,
        reasoning: max,
        output_audio: max,
    };
    assert_eq!(price.cost(&absurd, None, now()), NanoUsd::MAX);
    assert_eq!(price.bound(max, max, Some("auto"), now()), NanoUsd::MAX);
}

#[derive(Deserialize)]
struct OracleLine {
    provider: String,
    model: String,
    at: String,
    tier: Option<String>,
    usage: std::collections::BTreeMap<String, u64>,
    usd: String,
}

/// The package computes with exact decimals; ours is the same rounded up to a nano-dollar.
#[test]
fn costs_agree_with_the_calculator_that_the_prices_come_from() {
    let catalog = Catalog::builtin();
    let mut lines = include_str!("../../../tests/data/pricing/oracle.jsonl").lines();
    let header: serde_json::Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert_eq!(**catalog.revision(), *format!("genai-prices {}", header["version"].as_str().unwrap()));
    let mut checked = 0;
    for text in lines {
        let line: OracleLine = serde_json::from_str(text).unwrap();
        let price =
            catalog.find("any", Some(&line.provider), &line.model).unwrap_or_else(|| panic!("no price: {text}"));
        let parts: Vec<(&str, u64)> = line
            .usage
            .iter()
            .map(|(part, n)| match part.as_str() {
                "cache_write" => ("write", *n),
                "cache_write_1h" => ("write_1h", *n),
                "input_audio" => ("audio", *n),
                part => (part, *n),
            })
            .collect();
        let (whole, decimals) = line.usd.split_once('.').unwrap_or((&line.usd, ""));
        let (kept, rest) = decimals.split_at(decimals.len().min(9));
        let mut expected: u64 = format!("{whole}{kept:0<9}").parse().unwrap();
        expected += u64::from(rest.bytes().any(|digit| digit != b'0'));
        assert_eq!(price.cost(&usage(&parts), line.tier.as_deref(), at(&line.at)), NanoUsd(expected), "{text}");
        checked += 1;
    }
    assert_eq!(checked, 1000);
}

#[test]
fn a_new_price_holds_from_its_date_without_a_restart() {
    let price = Catalog::builtin().find("google", Some("google"), "gemini-3.8-flash-lite-tts").unwrap();
    let one_million = usage(&[("input", 1_000_000)]);
    assert_eq!(price.cost(&one_million, None, at("2026-12-31T23:59:59Z")), NanoUsd(500_000_000));
    assert_eq!(price.cost(&one_million, None, at("2027-01-01T00:00:00Z")), NanoUsd(1_000_000_000));
}

#[test]
fn off_peak_prices_hold_over_midnight() {
    let over_midnight = When::Daily { start_s: 16 * 3600 + 1800, end_s: 1800 };
    for (time, holds) in [("16:29:59", false), ("16:30:00", true), ("00:29:59", true), ("00:30:00", false)] {
        assert_eq!(over_midnight.holds(at(&format!("2026-11-23T{time}Z"))), holds, "{time}");
    }
}

#[test]
fn a_long_context_makes_the_whole_call_dearer() {
    let rate = Rate { base: usd_per_million("1"), steps: Box::new([(200_000, usd_per_million("2"))]) };
    let price = Price::of_rates("test".into(), RateSet(Box::new([(Unit::Input, rate)])));
    assert_eq!(price.cost(&usage(&[("input", 200_000)]), None, now()), NanoUsd(200_000_000));
    assert_eq!(price.cost(&usage(&[("input", 200_001)]), None, now()), NanoUsd(400_002_000));
    assert_eq!(price.bound(Tokens(200_001), Tokens::ZERO, None, now()), NanoUsd(400_002_000));
}

#[test]
fn an_automatic_tier_is_bounded_by_the_dearest_and_an_unset_one_by_the_standard() {
    let price = Catalog::builtin().find("openai", Some("openai"), "gpt-4.1").unwrap();
    let bound = |tier| price.bound(Tokens(1_000_000), Tokens::ZERO, tier, now());
    assert_eq!(bound(None), NanoUsd(2_000_000_000));
    assert_eq!(bound(Some("default")), NanoUsd(2_000_000_000));
    assert_eq!(bound(Some("batch")), NanoUsd(2_000_000_000));
    assert_eq!(bound(Some("priority")), NanoUsd(3_500_000_000));
    assert_eq!(bound(Some("auto")), NanoUsd(3_500_000_000));
}

#[test]
fn models_are_found_by_the_rules_of_their_provider() {
    let catalog = Catalog::builtin();
    let row = |group, model| catalog.find("any", Some(group), model).map(|price| price.row().to_owned());
    for (group, model, expected) in [
        ("openai", "gpt-4o-mini", Some("openai/gpt-4o-mini")),
        ("openai", "GPT-4o-mini-2024-07-18", Some("openai/gpt-4o-mini")),
        ("openai", "gpt-4o-mini-20240718", Some("openai/gpt-4o-mini")),
        ("azure", "gpt-4.1", Some("openai/gpt-4.1")),
        ("openai", "no-such-model", None),
        ("nobody", "gpt-4o", None),
        ("openai", "whisper-1", None),
    ] {
        assert_eq!(row(group, model).as_deref(), expected, "{group}/{model}");
    }
    assert_eq!(catalog.find("local", None, "gpt-4o"), None);
}

#[test]
fn a_base_url_tells_the_provider() {
    let catalog = Catalog::builtin();
    for (url, group) in [
        ("https://api.openai.com/v1", Some("openai")),
        ("https://api.anthropic.com", Some("anthropic")),
        ("https://openrouter.ai/api/v1", Some("openrouter")),
        ("https://my-name.openai.azure.com/openai", Some("azure")),
        ("http://127.0.0.1:8000/v1", None),
        ("http://127.0.0.1/?https://api.openai.com", None),
    ] {
        assert_eq!(catalog.provider_of(url), group, "{url}");
    }
}

#[test]
fn own_rows_come_before_the_catalog() {
    let rows = vec![
        ("openai/gpt-4o".to_owned(), row(&[("input", "1"), ("output", "2")])),
        ("openai/gpt-4.1".to_owned(), PriceRow { max_output: Some(32_768), ..PriceRow::default() }),
        ("local/*".to_owned(), row(&[("input", "0"), ("output", "0")])),
    ];
    let catalog = Catalog::builtin().with_rows(rows).unwrap();
    let find = |provider, group, model| catalog.find(provider, group, model).map(|price| price.row().to_owned());
    assert_eq!(find("openai", Some("openai"), "gpt-4o").as_deref(), Some("own:openai/gpt-4o"));
    assert_eq!(find("local", None, "anything").as_deref(), Some("own:local/*"));
    assert_eq!(find("other", Some("openai"), "gpt-4o").as_deref(), Some("openai/gpt-4o"));
    let limited = catalog.find("openai", Some("openai"), "gpt-4.1").unwrap();
    assert_eq!((limited.row(), limited.max_output()), ("openai/gpt-4.1", Some(Tokens(32_768))));
    assert_eq!(limited.context_window(), Some(Tokens(1_000_000)));
    assert_ne!(catalog.revision(), Catalog::builtin().revision());
}

#[test]
fn own_rows_that_would_make_something_free_by_silence_are_refused() {
    let refused = |name: &str, row| Catalog::default().with_rows(vec![(name.to_owned(), row)]).unwrap_err().to_string();
    assert!(refused("p/m", row(&[("input", "1")])).contains("`output`"));
    assert!(refused("p/m", row(&[("output", "1")])).contains("`input`"));
    assert!(refused("p/m", row(&[("cached", "1")])).contains("`input`"));
    assert!(refused("p/m", PriceRow::default()).contains("needs rates"));
    assert!(refused("m", row(&[("input", "1"), ("output", "1")])).contains("provider/model"));
    let unit_missing = PriceRow { input: Some("0.15".to_owned()), ..PriceRow::default() };
    assert_eq!(refused("p/m", unit_missing), "p/m.input: `0.15` is not a price; write it as `0.15 USD/1M`");
}

#[test]
fn rates_are_shown_as_people_write_them() {
    let rate = Rate { base: usd_per_million("0.075"), steps: Box::new([(200_000, usd_per_million("12"))]) };
    assert_eq!(rows::rate_text(Unit::Input, &rate), "0.075 USD/1M (12 above 200000)");
    let search = Catalog::builtin().find("openai", Some("openai"), "gpt-4.1").unwrap();
    assert!(search.rates(now()).contains(&("web_search".to_owned(), "10 USD/1K".to_owned())));
    assert_eq!(search.web_search(now()), Some(NanoUsd(10_000_000)));
}

#[test]
fn a_row_is_written_as_in_the_contract() {
    let yaml = "{ input: 0.15 USD/1M, cached: 0.075 USD/1M, output: 0.60 USD/1M, max_output: 16384 }";
    let price = own(serde_saphyr::from_str(yaml).unwrap());
    assert_eq!(
        price.cost(&usage(&[("input", 1_000), ("cached", 500), ("output", 100)]), None, now()),
        NanoUsd(172_500)
    );
    assert_eq!(price.max_output(), Some(Tokens(16_384)));
    assert!(serde_saphyr::from_str::<PriceRow>("{ input: 1 USD/1M, ouput: 2 USD/1M }").is_err());
}

fn rates() -> impl Strategy<Value = RateSet> {
    let rate = (0..100_000_000_u64, proptest::collection::vec((0..3_000_u64, 0..100_000_000_u64), 0..3)).prop_map(
        |(base, mut steps)| {
            steps.sort_unstable();
            let steps = steps.into_iter().map(|(start, rate)| (start, PicoUsdPerToken(rate))).collect();
            Rate { base: PicoUsdPerToken(base), steps }
        },
    );
    let units: Vec<Unit> = INPUT_UNITS.into_iter().chain(OUTPUT_UNITS).chain([Unit::Request]).collect();
    proptest::collection::btree_map(proptest::sample::select(units), rate, 1..8)
        .prop_map(|rates| RateSet(rates.into_iter().collect()))
}

fn any_price() -> impl Strategy<Value = Price> {
    let tier = ("(flex|priority)", rates()).prop_map(|(tier, rates)| TierRates {
        tier: tier.into(),
        when: When::Always,
        rates,
    });
    (rates(), proptest::collection::vec(tier, 0..3))
        .prop_map(|(standard, tiers)| Price { tiers: tiers.into(), ..Price::of_rates("any".into(), standard) })
}

fn any_usage() -> impl Strategy<Value = Usage> {
    proptest::array::uniform9(0..2_000_u64).prop_map(|n| Usage {
        input: Tokens(n[0]),
        cached: Tokens(n[1]),
        cache_write: Tokens(n[2]),
        cache_write_1h: Tokens(n[3]),
        input_audio: Tokens(n[4]),
        cached_audio: Tokens(n[5]),
        output: Tokens(n[6]),
        reasoning: Tokens(n[7]),
        output_audio: Tokens(n[8]),
    })
}

/// What a report claims in all, read as [`Price::cost`] reads contradictions.
fn claimed(usage: &Usage) -> (Tokens, Tokens) {
    let output = OutputParts::of(usage);
    (Tokens(InputParts::of(usage).total), Tokens(output.plain + output.reasoning + output.audio))
}

/// A report in which parts are within their totals, though cached audio may not be told apart.
fn consistent_usage() -> impl Strategy<Value = Usage> {
    any_usage().prop_map(|mut usage| {
        let within = |part: Tokens, whole: Tokens| Tokens(part.0 % (whole.0 + 1));
        usage.cached = within(usage.cached, usage.input);
        usage.cache_write = within(usage.cache_write, usage.input.saturating_sub(usage.cached));
        let rest = usage.input.saturating_sub(usage.cached).saturating_sub(usage.cache_write);
        usage.cache_write_1h = within(usage.cache_write_1h, rest);
        usage.input_audio = within(usage.input_audio, usage.input);
        usage.cached_audio = within(usage.cached_audio, usage.cached.min(usage.input_audio));
        usage.reasoning = within(usage.reasoning, usage.output);
        usage.output_audio = within(usage.output_audio, usage.output.saturating_sub(usage.reasoning));
        usage
    })
}

fn any_tier() -> impl Strategy<Value = Option<&'static str>> {
    proptest::sample::select(vec![None, Some("default"), Some("flex"), Some("priority"), Some("auto")])
}

/// A report of any size up to ten million tokens, so that every step of long-context pricing is reached.
fn usage_of_any_size() -> impl Strategy<Value = Usage> {
    (consistent_usage(), proptest::sample::select(vec![1_u64, 10, 100, 1_000, 5_000])).prop_map(|(usage, times)| {
        let Usage {
            input,
            cached,
            cache_write,
            cache_write_1h,
            input_audio,
            cached_audio,
            output,
            reasoning,
            output_audio,
        } = usage;
        let scaled = |tokens: Tokens| Tokens(tokens.0 * times);
        Usage {
            input: scaled(input),
            cached: scaled(cached),
            cache_write: scaled(cache_write),
            cache_write_1h: scaled(cache_write_1h),
            input_audio: scaled(input_audio),
            cached_audio: scaled(cached_audio),
            output: scaled(output),
            reasoning: scaled(reasoning),
            output_audio: scaled(output_audio),
        }
    })
}

/// The tier that a call asks for, and one that its reply may report: that one, or the standard one; any after `auto`.
fn asked_and_reported(price: &Price, asked: prop::sample::Index, reported: prop::sample::Index) -> [Option<&str>; 2] {
    let of_price: Vec<Option<&str>> =
        price.tiers.iter().map(|t| Some(&*t.tier)).chain([None, Some("default")]).collect();
    let asked = *asked.get(&[&of_price[..], &[Some("auto")]].concat());
    match asked {
        Some("auto") => [asked, *reported.get(&of_price)],
        _ => [asked, *reported.get(&[asked, None, Some("default")])],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn no_legal_report_costs_more_than_the_bound_at_any_price_of_the_catalog(
        price in any::<prop::sample::Index>(),
        usage in usage_of_any_size(),
        asked: prop::sample::Index,
        reported: prop::sample::Index,
        more in 0..500_u64,
        second in 1_700_000_000_i64..1_900_000_000,
    ) {
        static PRICES: std::sync::LazyLock<Vec<Arc<Price>>> = std::sync::LazyLock::new(|| Catalog::builtin().prices());
        let price = price.get(&PRICES[..]);
        let at = jiff::Timestamp::from_second(second).unwrap();
        let [asked, reported] = asked_and_reported(price, asked, reported);
        let bound = price.bound(Tokens(usage.input.0 + more), Tokens(usage.output.0 + more), asked, at);
        let cost = price.cost(&usage, reported, at);
        prop_assert!(cost <= bound, "{}: {cost} > {bound}, {asked:?} {reported:?} {at}", price.row());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn no_usage_within_a_bound_costs_more(price in any_price(), usage in any_usage(), tier in any_tier(), more in 0..500_u64) {
        let (input, output) = claimed(&usage);
        let bound = price.bound(Tokens(input.0 + more), Tokens(output.0 + more), tier, now());
        prop_assert!(price.cost(&usage, tier, now()) <= bound);
    }

    #[test]
    fn a_consistent_usage_is_bounded_by_its_totals(price in any_price(), usage in consistent_usage(), tier in any_tier()) {
        prop_assert_eq!(claimed(&usage), (usage.input, usage.output));
        prop_assert!(price.cost(&usage, tier, now()) <= price.bound(usage.input, usage.output, tier, now()));
    }

    #[test]
    fn an_automatic_tier_bounds_whatever_the_provider_chose(price in any_price(), usage in consistent_usage(), tier in any_tier()) {
        prop_assert!(price.cost(&usage, tier, now()) <= price.bound(usage.input, usage.output, Some("auto"), now()));
    }

    #[test]
    fn the_affordable_output_is_the_largest(price in any_price(), money in 0..20_000_000_u64, input in 0..3_000_u64, tier in any_tier()) {
        let (money, input) = (NanoUsd(money), Tokens(input));
        let bound = |output| price.bound(input, output, tier, now());
        let output = price.affordable_output(money, input, tier, now());
        if bound(Tokens::ZERO) > money {
            prop_assert_eq!(output, Tokens::ZERO);
        } else {
            prop_assert!(bound(output) <= money);
            prop_assert!(output == Tokens(u64::MAX) || bound(Tokens(output.0 + 1)) > money);
        }
    }
}
