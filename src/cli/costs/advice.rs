//! `tollgate costs advice`: what would make it less, with the figures that say so.
//!
//! Each advice is an upper bound and says how it was computed; none of them looks into a prompt.

use std::{collections::HashMap, io::Write, sync::Arc};

use clap::Args;
use jiff::{Timestamp, civil::Weekday, tz::TimeZone};
use serde_json::{Value, json};

use super::{
    Books, CostsError, Span,
    cheaper::{self, Cheaper},
    moment_of, percent, usage_of,
};
use crate::{
    policy::pricing::Price,
    record::CallRow,
    units::{NanoUsd, Tokens},
    wire::usage::Usage,
};

/// Of which time.
#[derive(Debug, Args)]
pub(super) struct AdviceArguments {
    #[command(flatten)]
    span: Span,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Providers cache no shorter beginning of a prompt. Sources: OpenAI's and Anthropic's pages on prompt caching.
const CACHED_MIN: u64 = 1024;
/// Names or values of tags that say that nobody waits.
const BATCH_TAGS: [&str; 2] = ["batch", "offline"];

/// Calls of one target whose prompts begin alike: of one session, or with one prompt of the registry.
#[derive(Debug)]
struct Alike {
    price: Arc<Price>,
    /// The shortest input: no beginning that all share is longer.
    shortest: u64,
    usages: Vec<Usage>,
}

/// What an advice rests on.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Saving {
    calls: u64,
    cost_nanousd: u64,
    saved_nanousd: u64,
    /// Input tokens, and those that a cache could have held but did not.
    input: u64,
    uncached: u64,
}

#[derive(Debug, Default)]
struct Findings {
    alike: HashMap<(Arc<str>, Arc<str>), Alike>,
    batches: HashMap<Arc<str>, Saving>,
    /// All calls of a target.
    targets: HashMap<Arc<str>, Saving>,
    cost_nanousd: u64,
}

const CACHE_METHOD: &str = "calls to one target in one session, or with one prompt of the registry, begin alike; of each but the first, \
                            at most the shortest input among them (1024 tokens or more) could come from the provider's cache; priced with \
                            each call's tokens. An upper bound: it is not known how far their beginnings are the same";
const BATCH_METHOD: &str = "calls that are not streamed and either tagged `batch` or `offline`, or made at night (22 to 6 o'clock UTC) or on a \
                            weekend, at the catalog's batch price, or else at half the price. An upper bound: only you know which can wait a day";
const MODEL_METHOD: &str = "what the calls of a target cost, less what they would cost where the latest kept report of a suite has a cheaper \
                            target that is at most two points worse in any score, at the unfavourable end of the 95 % interval; the costs of a \
                            call are the report's. It holds as far as the suite's cases are like your calls";

pub(super) async fn run(
    arguments: &AdviceArguments,
    books: &Books<'_>,
    out: &mut (impl Write + Send),
) -> Result<(), CostsError> {
    let mut findings = Findings::default();
    books.each_call(arguments.span.filter(books), |row| findings.add(row, books.price_of_target(row))).await?;
    let caches = findings.caches(books.now);
    let models = findings.models(&cheaper::of_log(&*books.log).await?);
    let batches = findings.batches;
    let sections = [
        ("prompt cache", CACHE_METHOD, sorted(caches)),
        ("batches", BATCH_METHOD, sorted(batches)),
        ("cheaper models", MODEL_METHOD, sorted(models)),
    ];
    if arguments.json {
        let sections: Vec<Value> =
            sections.iter().map(|(name, method, rows)| section_json(name, method, rows)).collect();
        return Ok(writeln!(out, "{:#}", json!({"cost_nanousd": findings.cost_nanousd, "advice": sections}))?);
    }
    for (name, method, rows) in &sections {
        out.write_all(section(name, method, rows, findings.cost_nanousd).as_bytes())?;
    }
    Ok(())
}

impl Findings {
    fn add(&mut self, row: &CallRow, price: Option<Arc<Price>>) {
        self.cost_nanousd = self.cost_nanousd.saturating_add(row.cost_nanousd);
        if let Some(target) = &row.target {
            self.targets.entry(target.clone()).or_default().add(1, row.cost_nanousd, 0);
        }
        let (Some(target), Some(price), Some(usage)) = (row.target.clone(), price, usage_of(row)) else { return };
        let common = row.session.clone().or_else(|| row.prompt.clone());
        if let Some(common) = common.filter(|_| row.input_tokens >= CACHED_MIN) {
            let new = || Alike { price: price.clone(), shortest: u64::MAX, usages: Vec::new() };
            let alike = self.alike.entry((target.clone(), common)).or_insert_with(new);
            alike.shortest = alike.shortest.min(row.input_tokens);
            alike.usages.push(usage);
        }
        if can_wait(row) {
            let at = moment_of(row.received_ms);
            let (standard, batch) = (price.cost(&usage, None, at).0, price.cost(&usage, Some("batch"), at).0);
            let batch = if batch < standard { batch } else { standard / 2 };
            let saving = self.batches.entry(target).or_default();
            saving.add(1, row.cost_nanousd, standard.saturating_sub(batch));
        }
    }

    /// What other models could save that evaluations found as good, by the target and what would take its place.
    fn models(&self, found: &[Cheaper]) -> HashMap<Arc<str>, Saving> {
        let saving = |cheaper: &Cheaper| {
            let now = self.targets.get(&*cheaper.from)?;
            let saved_nanousd = (now.cost_nanousd as f64 * (1.0 - cheaper.cost_ratio)) as u64;
            let label = format!("{} -> {} ({})", cheaper.from, cheaper.to, cheaper.suite);
            Some((Arc::from(label), Saving { saved_nanousd, ..*now }))
        };
        found.iter().filter_map(saving).collect()
    }

    /// What prompt caches could save, by target.
    fn caches(&self, now: Timestamp) -> HashMap<Arc<str>, Saving> {
        let mut by_target: HashMap<Arc<str>, Saving> = HashMap::new();
        for ((target, _), alike) in self.alike.iter().filter(|(_, alike)| alike.usages.len() > 1) {
            let saving = by_target.entry(target.clone()).or_default();
            // Which call was the first does not matter: one of them has to fill the cache.
            for usage in alike.usages.iter().skip(1) {
                let uncached = alike.shortest.saturating_sub(usage.cached.0);
                let cost = alike.price.cost(usage, None, now).0;
                let with_cache = Usage {
                    cached: Tokens(usage.cached.0 + uncached),
                    cache_write: Tokens::ZERO,
                    cache_write_1h: Tokens::ZERO,
                    ..*usage
                };
                let cheaper = alike.price.cost(&with_cache, None, now).0;
                saving.add(1, cost, cost.saturating_sub(cheaper));
                saving.input = saving.input.saturating_add(usage.input.0);
                saving.uncached = saving.uncached.saturating_add(uncached);
            }
        }
        by_target
    }
}

impl Saving {
    fn add(&mut self, calls: u64, cost_nanousd: u64, saved_nanousd: u64) {
        self.calls += calls;
        self.cost_nanousd = self.cost_nanousd.saturating_add(cost_nanousd);
        self.saved_nanousd = self.saved_nanousd.saturating_add(saved_nanousd);
    }
}

/// Whether a call looks as if nobody waited for it.
fn can_wait(row: &CallRow) -> bool {
    let is_tagged = row.tags.keys().any(|tag| BATCH_TAGS.contains(&&**tag))
        || row.tags.values().any(|value| BATCH_TAGS.contains(&&**value));
    let at = TimeZone::UTC.to_datetime(moment_of(row.received_ms));
    let is_quiet = matches!(at.weekday(), Weekday::Saturday | Weekday::Sunday) || !(6..22).contains(&at.hour());
    !row.streamed && (is_tagged || is_quiet)
}

/// The largest savings first; those of less than a cent are not worth a line.
fn sorted(by_target: HashMap<Arc<str>, Saving>) -> Vec<(Arc<str>, Saving)> {
    const CENT: u64 = 10_000_000;
    let mut rows: Vec<_> = by_target.into_iter().filter(|(_, saving)| saving.saved_nanousd >= CENT).collect();
    rows.sort_by(|(a, one), (b, other)| other.saved_nanousd.cmp(&one.saved_nanousd).then_with(|| a.cmp(b)));
    rows
}

fn section(name: &str, method: &str, rows: &[(Arc<str>, Saving)], whole: u64) -> String {
    if rows.is_empty() {
        return format!("{name}: nothing to save\n\n");
    }
    let width = rows.iter().map(|(target, _)| target.chars().count()).max().unwrap_or(0).clamp(12, 48);
    let mut text = format!(
        "{name}\n{:<width$} {:>9} {:>16} {:>16} {:>9} {:>10}\n",
        "TARGET", "CALLS", "COST USD", "SAVES AT MOST", "OF ALL", "UNCACHED"
    );
    for (target, saving) in rows {
        text += &format!(
            "{target:<width$} {:>9} {:>16} {:>16} {:>9} {:>10}\n",
            saving.calls,
            NanoUsd(saving.cost_nanousd).to_string(),
            NanoUsd(saving.saved_nanousd).to_string(),
            percent(saving.saved_nanousd, whole),
            percent(saving.uncached, saving.input),
        );
    }
    text + &format!("How: {method}.\n\n")
}

fn section_json(name: &str, method: &str, rows: &[(Arc<str>, Saving)]) -> Value {
    let row = |(target, saving): &(Arc<str>, Saving)| {
        json!({
            "target": target,
            "calls": saving.calls,
            "cost_nanousd": saving.cost_nanousd,
            "saved_nanousd_max": saving.saved_nanousd,
            "input_tokens": saving.input,
            "uncached_tokens": saving.uncached,
        })
    };
    json!({"name": name, "method": method, "rows": rows.iter().map(row).collect::<Vec<Value>>()})
}
