//! What a call costs, and what it can cost at most. Integer arithmetic, rounded up once.
//!
//! [`Catalog`] finds the [`Price`] of a model; the price computes. Where a report leaves it open which rate a token
//! falls under, the dearer one is taken: a ledger may be a little high, never low.

mod catalog;
mod rows;
#[cfg(test)]
mod tests;

pub use catalog::{Catalog, Listing};
pub use rows::{PriceError, PriceRow};

use std::sync::Arc;

use crate::{
    units::{NanoUsd, PicoUsdPerToken, Tokens, nano_usd_ceil},
    wire::usage::Usage,
};

/// What a rate is for. Token units are priced per token, [`Unit::Request`] and the searches per piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    Input,
    Cached,
    CacheWrite,
    #[serde(rename = "cache_write_1h")]
    CacheWrite1h,
    InputAudio,
    CachedAudio,
    InputImage,
    CachedImage,
    InputVideo,
    Output,
    OutputReasoning,
    OutputCitation,
    OutputAudio,
    OutputImage,
    OutputVideo,
    Request,
    WebSearch,
    StorageSearch,
}

const INPUT_UNITS: [Unit; 9] = [
    Unit::Input,
    Unit::Cached,
    Unit::CacheWrite,
    Unit::CacheWrite1h,
    Unit::InputAudio,
    Unit::CachedAudio,
    Unit::InputImage,
    Unit::CachedImage,
    Unit::InputVideo,
];

const OUTPUT_UNITS: [Unit; 6] = [
    Unit::Output,
    Unit::OutputReasoning,
    Unit::OutputCitation,
    Unit::OutputAudio,
    Unit::OutputImage,
    Unit::OutputVideo,
];

impl Unit {
    /// Whether price lists give it per thousand pieces rather than per million tokens.
    fn is_per_thousand(self) -> bool {
        matches!(self, Unit::Request | Unit::WebSearch | Unit::StorageSearch)
    }
}

/// One rate, with the steps of long-context pricing.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rate {
    base: PicoUsdPerToken,
    /// Above so many input tokens, the whole call pays this instead; ascending.
    steps: Box<[(u64, PicoUsdPerToken)]>,
}

impl Rate {
    fn flat(base: PicoUsdPerToken) -> Rate {
        Rate { base, steps: Box::default() }
    }

    fn at(&self, input: u64) -> PicoUsdPerToken {
        self.steps.iter().rev().find(|(start, _)| input > *start).map_or(self.base, |(_, rate)| *rate)
    }

    /// The highest rate of a call with at most `input_max` input tokens.
    fn worst(&self, input_max: u64) -> PicoUsdPerToken {
        let reachable = self.steps.iter().filter(|(start, _)| input_max > *start).map(|(_, rate)| *rate);
        reachable.fold(self.base, PicoUsdPerToken::max)
    }
}

/// Rates by unit; few enough to be searched from the front.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct RateSet(Box<[(Unit, Rate)]>);

impl RateSet {
    fn get(&self, unit: Unit) -> Option<&Rate> {
        self.0.iter().find(|(u, _)| *u == unit).map(|(_, rate)| rate)
    }
}

/// When a set of rates holds. All of it in UTC, as providers announce it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    From(jiff::Timestamp),
    /// Seconds of the day; the end is outside, and may lie before the start (over midnight).
    Daily {
        start_s: i64,
        end_s: i64,
    },
}

impl When {
    fn holds(self, at: jiff::Timestamp) -> bool {
        match self {
            When::Always => true,
            When::From(start) => at >= start,
            When::Daily { start_s, end_s } => {
                let second = at.as_second().rem_euclid(24 * 60 * 60);
                if end_s < start_s { second >= start_s || second < end_s } else { (start_s..end_s).contains(&second) }
            }
        }
    }
}

/// Rates that replace the standard ones for calls of a service tier.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TierRates {
    tier: Box<str>,
    when: When,
    rates: RateSet,
}

/// One model's rates.
///
/// # Service tiers
/// `None` and names without rates of their own (`default`, `standard`, …) mean the standard rates. `auto` leaves the
/// choice to the provider: every tier is then possible, so the dearest is taken. Name the tier that the *reply* reports
/// when settling. An unset tier counts as the default one, although a provider's project settings can make it another:
/// what that costs beyond the bound shows up as debt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    /// Where the rates come from, for the record.
    row: Box<str>,
    /// Never empty; the last entry that holds is in force, else the first.
    schedule: Box<[(When, RateSet)]>,
    /// Per tier and unit, the first entry that holds is in force.
    tiers: Box<[TierRates]>,
    max_output: Option<Tokens>,
    context_window: Option<Tokens>,
}

impl Price {
    /// A price of two rates, such as the one set for models that have none (`unpriced: charge`).
    #[must_use]
    pub fn flat(input: PicoUsdPerToken, output: PicoUsdPerToken) -> Price {
        let rates = RateSet(Box::new([(Unit::Input, Rate::flat(input)), (Unit::Output, Rate::flat(output))]));
        Price::of_rates("flat".into(), rates)
    }

    fn of_rates(row: Box<str>, rates: RateSet) -> Price {
        Price {
            row,
            schedule: Box::new([(When::Always, rates)]),
            tiers: Box::default(),
            max_output: None,
            context_window: None,
        }
    }

    /// Cost of `usage` at the rates of the moment `at`, rounded up once to a nano-dollar.
    ///
    /// Parts of a total are charged at their own rate and not again in the total; without a rate of their own, at the
    /// total's. A report that contradicts itself (more cached tokens than input) is read as if the parts came on top.
    /// Images, video and citations are not told apart in [`Usage`]: a model that prices them above text is charged at the
    /// dearest of these. `service_tier` is the one that the reply reports; see [`Price`].
    #[must_use]
    pub fn cost(&self, usage: &Usage, service_tier: Option<&str>, at: jiff::Timestamp) -> NanoUsd {
        if service_tier != Some("auto") {
            return nano_usd_ceil(self.pico_usd(usage, service_tier, at));
        }
        let tiers = self.tiers.iter().map(|t| Some(&*t.tier)).chain([None]);
        let dearest = tiers.map(|tier| self.pico_usd(usage, tier, at)).max();
        nano_usd_ceil(dearest.expect("there is at least the standard tier"))
    }

    /// The most that a call can cost with at most so many tokens: a sound ceiling for any usage report within them.
    ///
    /// Every input token at the worst input rate (plain, cached, cache-write, audio, image, long-context step within reach),
    /// every output token at the worst output rate; a named tier or the standard one, whichever is dearer.
    /// Take the same `at` here and in [`Price::cost`]. Tools that the provider runs and bills apart (web search) are not in it.
    #[must_use]
    pub fn bound(
        &self,
        input_max: Tokens,
        output_max: Tokens,
        service_tier: Option<&str>,
        at: jiff::Timestamp,
    ) -> NanoUsd {
        let ceiling = self.ceiling(input_max, service_tier, at);
        nano_usd_ceil(ceiling.before_output.saturating_add(ceiling.output.times(output_max)))
    }

    /// The largest output whose [`Price::bound`] is within `money`; 0 also when not even the input is.
    #[must_use]
    pub fn affordable_output(
        &self,
        money: NanoUsd,
        input_max: Tokens,
        service_tier: Option<&str>,
        at: jiff::Timestamp,
    ) -> Tokens {
        let ceiling = self.ceiling(input_max, service_tier, at);
        let Some(left) = (u128::from(money.0) * 1000).checked_sub(ceiling.before_output) else { return Tokens::ZERO };
        match u128::from(ceiling.output.0) {
            0 => Tokens(u64::MAX),
            rate => Tokens(u64::try_from(left / rate).unwrap_or(u64::MAX)),
        }
    }

    /// The most tokens that the model can put out, where the configuration says so.
    #[must_use]
    pub fn max_output(&self) -> Option<Tokens> {
        self.max_output
    }

    /// The model's context window; no output can be longer.
    #[must_use]
    pub fn context_window(&self) -> Option<Tokens> {
        self.context_window
    }

    /// The row that the rates come from: `openai/gpt-4o`, or `own:upstream/gpt-4o-mini`.
    #[must_use]
    pub fn row(&self) -> &str {
        &self.row
    }

    /// The standard rates in force, by the names of `config/prices.yaml`, written as `2.5 USD/1M`.
    #[must_use]
    pub fn rates(&self, at: jiff::Timestamp) -> Vec<(String, String)> {
        let name = |unit: Unit| {
            serde_json::to_value(unit).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
        };
        self.standard(at).0.iter().map(|(unit, rate)| (name(*unit), rows::rate_text(*unit, rate))).collect()
    }

    /// What the provider asks for one web search of its own, where listed.
    #[must_use]
    pub fn web_search(&self, at: jiff::Timestamp) -> Option<NanoUsd> {
        self.standard(at).get(Unit::WebSearch).map(|rate| nano_usd_ceil(u128::from(rate.base.0)))
    }
}

// === reading rates ===

/// A call's possible cost: what is due before the first output token, and each output token's rate.
struct Ceiling {
    before_output: u128,
    output: PicoUsdPerToken,
}

impl Price {
    fn standard(&self, at: jiff::Timestamp) -> &RateSet {
        let in_force = self.schedule.iter().rev().find(|(when, _)| when.holds(at));
        in_force.or(self.schedule.first()).map(|(_, rates)| rates).expect("a schedule is never empty")
    }

    fn rate(&self, unit: Unit, tier: Option<&str>, at: jiff::Timestamp) -> Option<&Rate> {
        let of_tier = self.tiers.iter().filter(|t| Some(&*t.tier) == tier && t.when.holds(at));
        of_tier.filter_map(|t| t.rates.get(unit)).next().or_else(|| self.standard(at).get(unit))
    }

    fn ceiling(&self, input_max: Tokens, tier: Option<&str>, at: jiff::Timestamp) -> Ceiling {
        let possible = |t: &&TierRates| t.when.holds(at) && (tier == Some("auto") || tier == Some(&*t.tier));
        let worst = |units: &[Unit]| {
            let sets = self.tiers.iter().filter(possible).map(|t| &t.rates).chain([self.standard(at)]);
            let rates = sets.flat_map(|set| units.iter().filter_map(|unit| set.get(*unit)));
            rates.map(|rate| rate.worst(input_max.0)).max().unwrap_or_default()
        };
        let request = worst(&[Unit::Request]).times(Tokens(1));
        Ceiling {
            before_output: worst(&INPUT_UNITS).times(input_max).saturating_add(request),
            output: worst(&OUTPUT_UNITS),
        }
    }

    fn pico_usd(&self, usage: &Usage, tier: Option<&str>, at: jiff::Timestamp) -> u128 {
        let input = InputParts::of(usage);
        let output = OutputParts::of(usage);
        let listed = |unit| self.rate(unit, tier, at).map(|rate| rate.at(input.total));
        let dearest = |units: &[Unit]| units.iter().filter_map(|unit| listed(*unit)).max();

        let plain = dearest(&[Unit::Input, Unit::InputImage, Unit::InputVideo])
            .or_else(|| dearest(&INPUT_UNITS))
            .unwrap_or_default();
        let cached = dearest(&[Unit::Cached, Unit::CachedImage]).unwrap_or(plain);
        let cache_write = listed(Unit::CacheWrite).unwrap_or(plain);
        let cache_write_1h = listed(Unit::CacheWrite1h).unwrap_or(cache_write);
        let audio = listed(Unit::InputAudio).unwrap_or(plain);
        let cached_audio = listed(Unit::CachedAudio).unwrap_or(audio);
        let mut input_parts = [
            (plain, input.plain),
            (cached, input.cached),
            (cache_write, input.cache_write),
            (cache_write_1h, input.cache_write_1h),
            (audio, input.audio),
            (cached_audio, input.cached_audio),
        ];
        take_off_cheapest(&mut input_parts, input.counted_twice);

        let plain_output = dearest(&[Unit::Output, Unit::OutputImage, Unit::OutputVideo])
            .or_else(|| dearest(&OUTPUT_UNITS))
            .unwrap_or_default();
        let output_parts = [
            (plain_output, output.plain),
            (listed(Unit::OutputReasoning).unwrap_or(plain_output), output.reasoning),
            (listed(Unit::OutputAudio).unwrap_or(plain_output), output.audio),
        ];
        let request = (listed(Unit::Request).unwrap_or_default(), 1);
        let parts = input_parts.into_iter().chain(output_parts).chain([request]);
        parts.fold(0, |sum: u128, (rate, tokens)| sum.saturating_add(rate.times(Tokens(tokens))))
    }

    fn with_limits(&self, max_output: Option<Tokens>, context_window: Option<Tokens>) -> Arc<Price> {
        let mut price = self.clone();
        price.max_output = max_output.or(self.max_output);
        price.context_window = context_window.or(self.context_window);
        Arc::new(price)
    }
}

/// Takes tokens that stand in two parts out of the cheaper ones, so that each is charged once, at its dearest.
fn take_off_cheapest(parts: &mut [(PicoUsdPerToken, u64)], mut counted_twice: u64) {
    parts.sort_unstable();
    for (_, tokens) in parts {
        let cut = counted_twice.min(*tokens);
        *tokens -= cut;
        counted_twice -= cut;
    }
}

/// Input tokens by part.
#[derive(Debug, Default, PartialEq, Eq)]
struct InputParts {
    plain: u64,
    cached: u64,
    cache_write: u64,
    cache_write_1h: u64,
    audio: u64,
    cached_audio: u64,
    /// What the call counts towards the steps of long-context pricing.
    total: u64,
    /// Tokens in two parts: cached audio that is not reported as such stands in `cached` and in `audio`.
    counted_twice: u64,
}

impl InputParts {
    fn of(usage: &Usage) -> InputParts {
        let (input, audio, cached_audio) = (usage.input.0, usage.input_audio.0, usage.cached_audio.0);
        let parts = InputParts {
            cached: usage.cached.0.saturating_sub(cached_audio),
            cache_write: usage.cache_write.0,
            cache_write_1h: usage.cache_write_1h.0,
            audio: audio.saturating_sub(cached_audio),
            cached_audio,
            ..InputParts::default()
        };
        let of_cache = [usage.cached, usage.cache_write, usage.cache_write_1h];
        let contradictory = of_cache.into_iter().fold(Tokens::ZERO, Tokens::saturating_add) > usage.input
            || audio > input
            || cached_audio > usage.cached.0.min(audio);
        if contradictory {
            let total = input.saturating_add(parts.sum());
            return InputParts { plain: input, total, ..parts };
        }
        let plain = input.saturating_sub(parts.sum());
        let counted_twice = parts.sum().saturating_sub(input);
        InputParts { plain, total: input, counted_twice, ..parts }
    }

    /// All parts but `plain`.
    fn sum(&self) -> u64 {
        let parts = [self.cached, self.cache_write, self.cache_write_1h, self.audio, self.cached_audio];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

/// Output tokens, each of them in one part only.
#[derive(Debug, Default, PartialEq, Eq)]
struct OutputParts {
    plain: u64,
    reasoning: u64,
    audio: u64,
}

impl OutputParts {
    fn of(usage: &Usage) -> OutputParts {
        let (reasoning, audio) = (usage.reasoning.0, usage.output_audio.0);
        // Parts above the total: some providers report reasoning beside the output instead of within it.
        let plain = usage.output.0.checked_sub(reasoning.saturating_add(audio)).unwrap_or(usage.output.0);
        OutputParts { plain, reasoning, audio }
    }
}
