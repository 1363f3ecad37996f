//! A call log that is written by hand, for commands that read one.

use std::{path::Path, sync::Arc};

use tollgate::{
    record::{Assigned, AttemptRow, CallRow, Outcome, UsageSource},
    store::records::{
        ports::{CallLog, Entry},
        sqlite::Sqlite,
    },
};

/// 2026-11-01T00:00:00Z.
pub(crate) const BEGIN_MS: u64 = 1_793_491_200_000;
/// Milliseconds of a day.
pub(crate) const DAY_MS: u64 = 86_400_000;

/// A call of alice's from the team `product` to gpt-4o that came at `at_ms`, with the cost that the catalog says: 0.00325 USD.
pub(crate) fn row(at_ms: u64, n: u64) -> CallRow {
    CallRow {
        id: Arc::from(format!("{at_ms:012x}7{:03x}8{n:015x}", n % 0x1000)),
        received_ms: at_ms,
        endpoint: "chat_completions".into(),
        key: "web".into(),
        team: Some("product".into()),
        user: "alice".into(),
        session: None,
        tags: [("app".into(), "web".into())].into(),
        model: "support".into(),
        named: Some("support".into()),
        version: Some("v1".into()),
        variants: vec![Assigned { experiment: "tone".into(), variant: "warm".into(), unit: "alice".into() }],
        prompt: Some("greeting@v2".into()),
        provider: "openai".into(),
        target: Some("openai/gpt-4o".into()),
        status: 200,
        outcome: Outcome::Ok,
        refusal: None,
        streamed: true,
        input_tokens: 1000,
        cached_tokens: 200,
        cache_write_tokens: 0,
        cache_write_1h_tokens: 0,
        input_audio_tokens: 0,
        cached_audio_tokens: 0,
        output_tokens: 100,
        reasoning_tokens: 30,
        output_audio_tokens: 0,
        usage_source: UsageSource::Provider,
        cost_nanousd: 3_250_000,
        priced: true,
        prices: Some("genai-prices".into()),
        attempts: 1,
        attempt_list: vec![AttemptRow {
            provider: "openai".into(),
            target: "openai/gpt-4o".into(),
            start_us: 900,
            head_us: Some(20_000),
            end_us: 20_100,
            status: Some(200),
            result: "ok".into(),
        }],
        read_us: 300,
        waited_us: 0,
        overhead_us: Some(550),
        first_token_us: Some(60_000),
        duration_us: 250_000,
    }
}

/// Writes `rows` into the SQLite log in `data_dir`.
pub(crate) async fn write(data_dir: &Path, rows: Vec<CallRow>) {
    std::fs::create_dir_all(data_dir).unwrap();
    let log = Sqlite::open(data_dir).unwrap();
    let entries: Vec<Entry> = rows.into_iter().map(|row| Entry { row, bodies: None }).collect();
    let count = entries.len() as u64;
    assert_eq!(log.append(entries.into()).await.unwrap(), count);
}
