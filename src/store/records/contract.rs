//! The rules of every call log, run against each of them. `many` calls on top show what a full log costs.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    feedback::{FeedbackFilter, of_call},
    ports::{Bodies, Body, CallLog, Dimension, Entry, Filter, Series, UsageQuery},
    rollup::{DAY_MS, HOUR_MS, MINUTE_MS},
};
use crate::record::{Assigned, AttemptRow, CallRow, Feedback, Outcome, Rating, UsageSource};

/// 2026-11-01T00:00:00Z.
pub(super) const BEGIN_MS: u64 = 1_793_491_200_000;

/// An id as calls have them: a UUID v7 of that millisecond.
pub(super) fn id(at_ms: u64, n: u64) -> Arc<str> {
    Arc::from(format!("{at_ms:012x}7{:03x}8{n:015x}", n % 0x1000))
}

/// A call that came at `at_ms`, every field of which is filled.
pub(super) fn row(at_ms: u64, n: u64) -> CallRow {
    CallRow {
        id: id(at_ms, n),
        received_ms: at_ms,
        endpoint: "chat_completions".into(),
        key: "web".into(),
        team: Some("product".into()),
        user: "alice".into(),
        session: Some("s-1".into()),
        tags: BTreeMap::from([("app".into(), "web".into()), ("ümlaut \"q\"".into(), "ein Wert".into())]),
        model: "support".into(),
        named: Some("support".into()),
        version: Some("v2".into()),
        variants: vec![Assigned { experiment: "tone".into(), variant: "warm".into(), unit: "alice".into() }],
        prompt: Some("greeting@v2".into()),
        provider: "openai".into(),
        target: Some("openai/gpt-4o-mini".into()),
        status: 200,
        outcome: Outcome::Ok,
        refusal: None,
        streamed: true,
        input_tokens: 100,
        cached_tokens: 40,
        cache_write_tokens: 5,
        cache_write_1h_tokens: 6,
        input_audio_tokens: 7,
        cached_audio_tokens: 3,
        output_tokens: 20,
        reasoning_tokens: 8,
        output_audio_tokens: 2,
        usage_source: UsageSource::Provider,
        cost_nanousd: 184_000,
        priced: true,
        prices: Some("genai-prices 0.2.3".into()),
        attempts: 2,
        attempt_list: vec![
            AttemptRow {
                provider: "openai".into(),
                target: "openai/gpt-4o-mini".into(),
                start_us: 900,
                head_us: Some(20_000),
                end_us: 20_100,
                status: Some(503),
                result: "error".into(),
            },
            AttemptRow {
                provider: "openai".into(),
                target: "openai/gpt-4o-mini".into(),
                start_us: 30_000,
                head_us: None,
                end_us: 250_000,
                status: None,
                result: "ok".into(),
            },
        ],
        read_us: 300,
        waited_us: 50,
        overhead_us: Some(550),
        first_token_us: Some(60_000),
        duration_us: 250_000,
    }
}

/// A call of which only what must be there is.
pub(super) fn bare_row(at_ms: u64, n: u64) -> CallRow {
    CallRow {
        team: None,
        session: None,
        tags: BTreeMap::new(),
        named: None,
        version: None,
        variants: Vec::new(),
        prompt: None,
        provider: "none".into(),
        target: None,
        status: 429,
        outcome: Outcome::Refused,
        refusal: Some("rate_limited".into()),
        usage_source: UsageSource::None,
        prices: None,
        attempts: 0,
        attempt_list: Vec::new(),
        overhead_us: None,
        first_token_us: None,
        cost_nanousd: 0,
        ..row(at_ms, n)
    }
}

/// A rating of the call of [`row`], by its team.
pub(super) fn rating(at_ms: u64, n: u64) -> Feedback {
    Feedback {
        id: id(at_ms + 50, n),
        call: Some(id(at_ms, n)),
        session: None,
        metric: "resolved".into(),
        value: Rating::Flag(true),
        source: "user".into(),
        comment: Some("schön \"kurz\"".into()),
        key: "web".into(),
        team: Some("product".into()),
        rated_ms: at_ms + 50,
    }
}

pub(super) fn entries(rows: impl IntoIterator<Item = CallRow>) -> Arc<[Entry]> {
    rows.into_iter().map(|row| Entry { row, bodies: None }).collect()
}

/// All rules. The log is empty, and is left so.
pub(super) async fn holds(log: &dyn CallLog) {
    every_field_comes_back(log).await;
    a_call_is_kept_and_counted_once(log).await;
    pages_lead_through_all_calls(log).await;
    filters_mean_what_they_say(log).await;
    pages_of_a_tag_lead_through_its_calls(log).await;
    sums_are_those_of_the_calls(log).await;
    bodies_come_and_go_with_their_calls(log).await;
    the_last_word_of_each_source_stands(log).await;
    only_those_who_share_a_call_rate_it(log).await;
    what_is_deleted_is_gone(log).await;
}

async fn clear(log: &dyn CallLog) {
    log.delete_before(u64::MAX).await.unwrap();
    assert_eq!(log.page(Filter::default(), None, 10).await.unwrap().rows, []);
    assert_eq!(log.usage(UsageQuery::default()).await.unwrap(), []);
    assert_eq!(log.feedback(FeedbackFilter::default(), None, 10).await.unwrap().rows, []);
}

async fn every_field_comes_back(log: &dyn CallLog) {
    let (full, bare) = (row(BEGIN_MS, 1), bare_row(BEGIN_MS, 2));
    assert_eq!(log.append(entries([full.clone(), bare.clone()])).await.unwrap(), 2);
    assert_eq!(log.get(full.id.clone()).await.unwrap().as_ref(), Some(&full));
    assert_eq!(log.get(bare.id.clone()).await.unwrap().as_ref(), Some(&bare));
    assert_eq!(log.get(id(BEGIN_MS, 3)).await.unwrap(), None);
    assert_eq!(log.page(Filter::default(), None, 2).await.unwrap().rows, [bare, full]);
    clear(log).await;
}

async fn a_call_is_kept_and_counted_once(log: &dyn CallLog) {
    let first = row(BEGIN_MS, 1);
    let changed = CallRow { cost_nanousd: 7, ..first.clone() };
    let second = row(BEGIN_MS + 1, 2);
    assert_eq!(log.append(entries([first.clone()])).await.unwrap(), 1);
    assert_eq!(log.append(entries([changed, second.clone(), second.clone()])).await.unwrap(), 1);
    assert_eq!(log.append(entries([])).await.unwrap(), 0);
    assert_eq!(log.page(Filter::default(), None, 9).await.unwrap().rows, [second, first]);
    let all = log.usage(UsageQuery::default()).await.unwrap();
    assert_eq!((all[0].total.calls, all[0].total.cost_nanousd), (2, 368_000));
    clear(log).await;
}

async fn pages_lead_through_all_calls(log: &dyn CallLog) {
    // Several in one millisecond, and not in the order of their ids.
    let rows: Vec<CallRow> = (0..25).map(|n| row(BEGIN_MS + (n * 7 % 25) / 3 * DAY_MS, n)).collect();
    log.append(entries(rows.clone())).await.unwrap();
    let mut ids: Vec<Arc<str>> = rows.into_iter().map(|row| row.id).collect();
    ids.sort_unstable();
    ids.reverse();
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = log.page(Filter::default(), after, 4).await.unwrap();
        seen.extend(page.rows.iter().map(|row| row.id.clone()));
        after = page.next;
        if after.is_none() {
            break;
        }
        assert_eq!(page.rows.len(), 4);
    }
    assert_eq!(seen, ids);
    let nonsense = log.page(Filter::default(), Some("no id".into()), 4).await.unwrap();
    assert_eq!(nonsense.rows, []);
    clear(log).await;
}

async fn filters_mean_what_they_say(log: &dyn CallLog) {
    let ours = row(BEGIN_MS, 1);
    let theirs = CallRow {
        key: "batch".into(),
        user: "bob'; DROP TABLE calls; --".into(),
        model: "other".into(),
        provider: "local".into(),
        endpoint: "messages".into(),
        outcome: Outcome::Cut,
        ..bare_row(BEGIN_MS + 5000, 2)
    };
    log.append(entries([ours.clone(), theirs.clone()])).await.unwrap();
    let text = |text: &str| Some(text.to_owned());
    let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
    let nothing = Filter::default;
    let (we, they) = (&[ours][..], &[theirs][..]);
    for (filter, found) in [
        (Filter { since_ms: Some(BEGIN_MS + 1), ..nothing() }, they),
        (Filter { since_ms: Some(BEGIN_MS), until_ms: Some(BEGIN_MS + 5000), ..nothing() }, we),
        (Filter { model: text("support"), ..nothing() }, we),
        (Filter { team: text("product"), ..nothing() }, we),
        (Filter { key: text("batch"), ..nothing() }, they),
        (Filter { user: text("bob'; DROP TABLE calls; --"), ..nothing() }, they),
        (Filter { session: text("s-1"), ..nothing() }, we),
        (Filter { provider: text("local"), ..nothing() }, they),
        (Filter { endpoint: text("messages"), ..nothing() }, they),
        (Filter { outcome: Some(Outcome::Ok), ..nothing() }, we),
        (Filter { outcome: Some(Outcome::Cut), ..nothing() }, they),
        (Filter { errors: true, ..nothing() }, they),
        (Filter { variant: pair("tone", "warm"), ..nothing() }, we),
        (Filter { variant: pair("tone", "control"), ..nothing() }, &[]),
        (Filter { tag: pair("ümlaut \"q\"", "ein Wert"), ..nothing() }, we),
        (Filter { tag: pair("app", "' OR 1=1"), ..nothing() }, &[]),
        (Filter { tag: pair("q\"", "ein Wert"), ..nothing() }, &[]),
        (Filter { errors: true, user: text("alice"), ..nothing() }, &[]),
        (Filter { session: text("s-1"), outcome: Some(Outcome::Ok), ..nothing() }, we),
        (Filter { variant: pair("tone", "warm"), tag: pair("app", "web"), key: text("web"), ..nothing() }, we),
        (Filter { key: text("web"), model: text("other"), ..nothing() }, &[]),
        (Filter { model: text("%"), ..nothing() }, &[]),
    ] {
        assert_eq!(log.page(filter.clone(), None, 9).await.unwrap().rows, found, "{filter:?}");
        // A usage query widens its span, so only what is asked of the values can be compared.
        if filter.since_ms.is_none() {
            let sums = log.usage(UsageQuery { filter: filter.clone(), ..UsageQuery::default() }).await.unwrap();
            assert_eq!(sums.iter().map(|s| s.total.calls).sum::<u64>(), found.len() as u64, "{filter:?}");
        }
    }
    clear(log).await;
}

/// Over days that have none of them, and with a span that begins and ends within a day.
async fn pages_of_a_tag_lead_through_its_calls(log: &dyn CallLog) {
    let tags =
        |n: u64| BTreeMap::from([("app".into(), if n.is_multiple_of(3) { "rare".into() } else { "common".into() })]);
    let rows: Vec<CallRow> =
        (0..60).map(|n| CallRow { tags: tags(n), ..row(BEGIN_MS + n / 9 * 5 * HOUR_MS, n) }).collect();
    log.append(entries(rows.clone())).await.unwrap();
    let (since, until) = (BEGIN_MS + 3 * HOUR_MS, BEGIN_MS + 27 * HOUR_MS);
    let tag = Some(("app".to_owned(), "rare".to_owned()));
    let filter = Filter { since_ms: Some(since), until_ms: Some(until), tag, ..Filter::default() };
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = log.page(filter.clone(), after, 2).await.unwrap();
        found.extend(page.rows);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let rare = |row: &&CallRow| &*row.tags["app"] == "rare" && (since..until).contains(&row.received_ms);
    let mut expected: Vec<CallRow> = rows.iter().filter(rare).cloned().collect();
    expected.sort_by_key(|row| std::cmp::Reverse(row.id.clone()));
    assert_eq!(found, expected);
    assert!(expected.len() > 8, "{}", expected.len());
    clear(log).await;
}

async fn sums_are_those_of_the_calls(log: &dyn CallLog) {
    let outcome = |n: u64| [Outcome::Ok, Outcome::Ok, Outcome::UpstreamError, Outcome::Refused][n as usize % 4];
    let rows: Vec<CallRow> = (0..600_u64)
        .map(|n| CallRow {
            model: Arc::from(["a", "b", "c"][n as usize % 3]),
            team: (n % 5 > 0).then(|| Arc::from(format!("team-{}", n % 5))),
            outcome: outcome(n),
            cost_nanousd: n * 1000,
            duration_us: (n + 1) * 1000,
            user: Arc::from(format!("user-{}", n % 7)),
            // Over two days and two hours.
            ..row(BEGIN_MS + n * 300 * 1000, n)
        })
        .collect();
    // In several batches, some of them twice.
    for batch in [&rows[..100], &rows[50..400], &rows[400..], &rows[..600]] {
        log.append(entries(batch.to_vec())).await.unwrap();
    }
    let hours = |from: u64, to: u64| Filter {
        since_ms: Some(BEGIN_MS + from * HOUR_MS),
        until_ms: Some(BEGIN_MS + to * HOUR_MS),
        ..Filter::default()
    };
    let team = |filter: Filter| Filter { team: Some("team-2".to_owned()), ..filter };
    let failed = |filter: Filter| Filter { errors: true, ..filter };
    let warm = |filter: Filter| Filter { variant: Some(("tone".to_owned(), "warm".to_owned())), ..filter };
    for filter in [
        Filter::default(),
        hours(0, 7),
        hours(2, 3),
        team(hours(0, 7)),
        team(hours(1, 2)),
        failed(hours(0, 7)),
        warm(team(hours(0, 7))),
        warm(hours(2, 3)),
        failed(Filter::default()),
        team(hours(3, 49)),
        failed(hours(24, 50)),
        hours(5, 49),
    ] {
        for by in [
            None,
            Some(Dimension::Model),
            Some(Dimension::Team),
            Some(Dimension::Outcome),
            Some(Dimension::Variant),
            Some(Dimension::User),
        ] {
            for bucket in [None, Some(86_400), Some(3600), Some(60)] {
                let bucket = bucket.map(Duration::from_secs);
                let query = UsageQuery { filter: filter.clone(), by, top: 0, bucket };
                let found = log.usage(query.clone()).await.unwrap();
                assert_eq!(found, expected(&rows, &query), "{query:?}");
            }
        }
    }
    let top = UsageQuery { by: Some(Dimension::Model), top: 2, ..UsageQuery::default() };
    let dearest: Vec<Arc<str>> = log.usage(top).await.unwrap().into_iter().map(|series| series.value).collect();
    assert_eq!(dearest, [Arc::from("c"), Arc::from("b")]);
    clear(log).await;
}

/// The same, summed up here.
fn expected(rows: &[CallRow], query: &UsageQuery) -> Vec<Series> {
    let filter = &query.filter;
    let matches = |row: &&CallRow| {
        filter.since_ms.is_none_or(|since| row.received_ms >= since)
            && filter.until_ms.is_none_or(|until| row.received_ms < until)
            && filter.team.as_deref().is_none_or(|team| row.team.as_deref() == Some(team))
            && (!filter.errors || row.outcome.is_error())
    };
    let by_hour =
        filter.since_ms.is_none() || filter.until_ms.zip(filter.since_ms).is_none_or(|(u, s)| u - s > 6 * HOUR_MS);
    let unit = if by_hour { HOUR_MS } else { MINUTE_MS };
    let width = query.bucket.map(|bucket| (bucket.as_millis() as u64).max(unit));
    let mut series: BTreeMap<Arc<str>, Series> = BTreeMap::new();
    for row in rows.iter().filter(matches) {
        let value = match query.by {
            Some(Dimension::Model) => row.model.clone(),
            Some(Dimension::Team) => row.team.clone().unwrap_or_default(),
            Some(Dimension::Outcome) => row.outcome.label().into(),
            Some(Dimension::Variant) => "tone=warm".into(),
            Some(Dimension::User) => row.user.clone(),
            _ => "".into(),
        };
        let of_value = series.entry(value.clone()).or_insert_with(|| Series { value, ..Series::default() });
        of_value.total.add(&row.into());
        if let Some(width) = width {
            let at = row.received_ms / width * width;
            if of_value.points.last().is_none_or(|(last, _)| *last != at) {
                of_value.points.push((at, Default::default()));
            }
            of_value.points.last_mut().unwrap().1.add(&row.into());
        }
    }
    let mut all: Vec<Series> = series.into_values().collect();
    all.sort_by_key(|series| std::cmp::Reverse((series.total.cost_nanousd, series.total.calls)));
    all
}

async fn bodies_come_and_go_with_their_calls(log: &dyn CallLog) {
    let body = |text: &str| Body { text: text.to_owned(), bytes: 9000, cut: true };
    let bodies = Bodies { request: Some(body("{\"model\": \"ü\"}")), reply: None };
    let with = Entry { row: row(BEGIN_MS, 1), bodies: Some(Box::new(bodies.clone())) };
    let without = Entry { row: row(BEGIN_MS, 2), bodies: None };
    log.append(vec![with.clone(), without.clone()].into()).await.unwrap();
    assert_eq!(log.bodies(with.row.id.clone()).await.unwrap(), Some(bodies));
    assert_eq!(log.bodies(without.row.id).await.unwrap(), None);
    clear(log).await;
    assert_eq!(log.bodies(with.row.id).await.unwrap(), None);
}

async fn the_last_word_of_each_source_stands(log: &dyn CallLog) {
    let of = |n: u64, value| Feedback { id: id(BEGIN_MS + n, n), value, ..rating(BEGIN_MS, 1) };
    let (early, late) = (of(10, Rating::Number(0.25)), of(20, Rating::Flag(false)));
    let judge = Feedback { source: "judge".into(), comment: None, ..of(30, Rating::Text("too long".into())) };
    let session = Feedback { call: None, session: Some("s-1".into()), ..of(40, Rating::Number(-3.5)) };
    let other = Feedback { metric: "clarity".into(), rated_ms: BEGIN_MS + 900, ..of(50, Rating::Number(4.0)) };
    // The calls need not be there. An earlier word that comes later changes nothing, the same word again neither.
    assert_eq!(log.rate([early.clone(), late.clone(), judge.clone()].into()).await.unwrap(), 2);
    assert_eq!(log.rate([early.clone(), late.clone()].into()).await.unwrap(), 0);
    assert_eq!(log.rate([session.clone(), other.clone()].into()).await.unwrap(), 2);
    assert_eq!(log.rate([].into()).await.unwrap(), 0);
    let all = [other.clone(), session.clone(), judge.clone(), late.clone()];
    let nothing = FeedbackFilter::default;
    let text = |text: &str| Some(text.to_owned());
    for (filter, found) in [
        (nothing(), &all[..]),
        (FeedbackFilter { call: text(&id(BEGIN_MS, 1)), source: text("judge"), ..nothing() }, &all[2..3]),
        (FeedbackFilter { session: text("s-1"), ..nothing() }, &all[1..2]),
        (FeedbackFilter { metric: text("clarity"), ..nothing() }, &all[..1]),
        (FeedbackFilter { since_ms: Some(BEGIN_MS + 900), until_ms: Some(BEGIN_MS + 901), ..nothing() }, &all[..1]),
        (FeedbackFilter { owner: text("team/product"), until_ms: Some(BEGIN_MS + 60), ..nothing() }, &all[1..]),
        (FeedbackFilter { owner: text("key/product"), ..nothing() }, &[]),
    ] {
        assert_eq!(log.feedback(filter.clone(), None, 9).await.unwrap().rows, found, "{filter:?}");
    }
    let first = log.feedback(nothing(), None, 3).await.unwrap();
    assert_eq!((first.rows.as_slice(), first.next.clone()), (&all[..3], Some(judge.id)));
    let second = log.feedback(nothing(), first.next, 3).await.unwrap();
    assert_eq!((second.rows.as_slice(), second.next), (&all[3..], None));
    clear(log).await;
}

async fn only_those_who_share_a_call_rate_it(log: &dyn CallLog) {
    let (ours, alone) = (row(BEGIN_MS, 1), CallRow { team: None, session: None, ..row(BEGIN_MS, 2) });
    log.append(entries([ours.clone(), alone.clone()])).await.unwrap();
    let own = rating(BEGIN_MS, 1);
    let of_session = Feedback { id: id(BEGIN_MS, 7), call: None, session: Some("s-1".into()), ..own.clone() };
    let foreign = Feedback { id: id(BEGIN_MS, 8), team: Some("rivals".into()), ..own.clone() };
    let foreign_session = Feedback { id: id(BEGIN_MS, 9), team: None, ..of_session.clone() };
    let keyless = Feedback { team: None, ..rating(BEGIN_MS, 2) };
    let other_key = Feedback { id: id(BEGIN_MS, 10), key: "mobile".into(), ..keyless.clone() };
    log.rate([own.clone(), of_session.clone(), foreign, foreign_session, keyless.clone(), other_key].into())
        .await
        .unwrap();
    assert_eq!(of_call(log, &ours).await.unwrap(), [own, of_session]);
    assert_eq!(of_call(log, &alone).await.unwrap(), [keyless]);
    clear(log).await;
}

async fn what_is_deleted_is_gone(log: &dyn CallLog) {
    let rows = (0..50).map(|n| row(BEGIN_MS + n * HOUR_MS, n));
    log.append(entries(rows)).await.unwrap();
    // Given long after the call, it goes with it.
    let late = |n: u64| Feedback { rated_ms: BEGIN_MS + 40 * HOUR_MS, ..rating(BEGIN_MS + n * HOUR_MS, n) };
    log.rate((0..50).map(late).collect()).await.unwrap();
    let limit = BEGIN_MS + 30 * HOUR_MS;
    assert_eq!(log.delete_before(limit).await.unwrap(), 30);
    assert_eq!(log.delete_before(limit).await.unwrap(), 0);
    let left = log.page(Filter::default(), None, 100).await.unwrap().rows;
    assert_eq!(left.len(), 20);
    assert_eq!(log.feedback(FeedbackFilter::default(), None, 100).await.unwrap().rows.len(), 20);
    assert!(left.iter().all(|row| row.received_ms >= limit));
    assert_eq!(log.usage(UsageQuery::default()).await.unwrap()[0].total.calls, 20);
    clear(log).await;
}

// === a full log ===

/// The calls of `days` days, evenly: 8 models, 40 keys of 10 teams, 5 providers, an experiment, 2 % failures, 1,000 users.
pub(super) fn many(count: u64, days: u64) -> impl Iterator<Item = CallRow> {
    let step_ms = days * DAY_MS / count.max(1);
    (0..count).map(move |n| {
        let dice = xxhash_rust::xxh3::xxh3_64(&n.to_le_bytes());
        let pick = |of: u64, shift: u32| (dice >> shift) % of;
        let outcome = match pick(100, 3) {
            0 => Outcome::UpstreamError,
            1 => Outcome::Refused,
            _ => Outcome::Ok,
        };
        let key = pick(40, 11);
        CallRow {
            model: Arc::from(format!("model-{}", pick(8, 7))),
            key: Arc::from(format!("key-{key}")),
            team: Some(Arc::from(format!("team-{}", key % 10))),
            user: Arc::from(format!("user-{}", pick(1000, 17))),
            session: (pick(4, 23) == 0).then(|| Arc::from(format!("session-{}", n / 8))),
            provider: Arc::from(format!("provider-{}", pick(5, 29))),
            variants: match pick(4, 31) {
                0 => vec![Assigned {
                    experiment: "tone".into(),
                    variant: ["a", "b"][n as usize % 2].into(),
                    unit: "u".into(),
                }],
                _ => Vec::new(),
            },
            outcome,
            duration_us: 200_000 + pick(3_000_000, 5),
            first_token_us: Some(50_000 + pick(400_000, 13)),
            cost_nanousd: pick(1_000_000, 19),
            ..row(BEGIN_MS + n * step_ms, n)
        }
    })
}

/// Fills the log and asks of it what dashboards and bills ask. Gives back each question with its time.
pub(super) async fn times_of_a_full_log(log: &dyn CallLog, count: u64) -> Vec<(&'static str, Duration)> {
    const DAYS: u64 = 30;
    let mut rows = many(count, DAYS).peekable();
    let began = Instant::now();
    while rows.peek().is_some() {
        log.append(entries(rows.by_ref().take(1000))).await.unwrap();
    }
    let mut times = vec![("append all", began.elapsed())];
    let text = |text: &str| Some(text.to_owned());
    let end = BEGIN_MS + DAYS * DAY_MS;
    let last = |ms: u64| Filter { since_ms: Some(end - ms), until_ms: Some(end), ..Filter::default() };
    let pages = [
        ("page: the latest", Filter::default()),
        ("page: of a key", Filter { key: text("key-7"), ..Filter::default() }),
        ("page: failures of a team", Filter { errors: true, team: text("team-3"), ..Filter::default() }),
        ("page: of a session", Filter { session: text("session-11"), ..Filter::default() }),
        ("page: of a user and model", Filter { user: text("user-9"), model: text("model-1"), ..Filter::default() }),
        ("page: of nobody", Filter { key: text("nobody"), ..Filter::default() }),
        ("page: of a variant", Filter { variant: Some(("tone".to_owned(), "b".to_owned())), ..Filter::default() }),
        (
            "page: of a variant that nobody has",
            Filter { variant: Some(("tone".to_owned(), "z".to_owned())), ..Filter::default() },
        ),
        ("page: of a tag", Filter { tag: Some(("app".to_owned(), "web".to_owned())), ..Filter::default() }),
        (
            "page: of a tag that nobody has",
            Filter { tag: Some(("app".to_owned(), "none".to_owned())), ..Filter::default() },
        ),
        (
            "page: of a model that a provider does not have",
            Filter { model: text("model-1"), provider: text("nobody"), ..Filter::default() },
        ),
        (
            "page: calls of a key that nobody refused",
            Filter { outcome: Some(Outcome::Internal), key: text("key-7"), ..Filter::default() },
        ),
    ];
    for (what, filter) in pages {
        let began = Instant::now();
        log.page(filter, None, 100).await.unwrap();
        times.push((what, began.elapsed()));
    }
    let (hour, day) = (Some(Duration::from_secs(3600)), Some(Duration::from_secs(86_400)));
    let minute = Some(Duration::from_secs(60));
    let crossed = Filter { team: text("team-3"), ..last(DAYS * DAY_MS) };
    let ok = Filter { outcome: Some(Outcome::Ok), ..Filter::default() };
    // No whole number of days.
    let failed = Filter {
        errors: true,
        since_ms: Some(BEGIN_MS + 3 * HOUR_MS),
        until_ms: Some(end - HOUR_MS),
        ..Filter::default()
    };
    let of_user = Filter { user: text("user-9"), ..Filter::default() };
    let queries = [
        ("usage: last hour by minute", last(HOUR_MS), None, minute),
        ("usage: last hour by minute and model", last(HOUR_MS), Some(Dimension::Model), minute),
        ("usage: last day by hour and model", last(DAY_MS), Some(Dimension::Model), hour),
        ("usage: all by day and key", last(DAYS * DAY_MS), Some(Dimension::Key), day),
        ("usage: all by hour and team", last(DAYS * DAY_MS), Some(Dimension::Team), hour),
        ("usage: all of a team by model", crossed.clone(), Some(Dimension::Model), day),
        (
            "usage: all failures by provider",
            Filter { errors: true, ..Filter::default() },
            Some(Dimension::Provider),
            day,
        ),
        ("usage: all of a user", of_user, None, day),
        ("usage: last day by user", last(DAY_MS), Some(Dimension::User), None),
        ("usage: all by user", Filter::default(), Some(Dimension::User), None),
        ("usage: of a team by hour and model", crossed, Some(Dimension::Model), hour),
        ("usage: all that was ok by day and key", ok, Some(Dimension::Key), day),
        ("usage: nearly all failures by outcome", failed, Some(Dimension::Outcome), None),
    ];
    for (what, filter, by, bucket) in queries {
        let began = Instant::now();
        let series = log.usage(UsageQuery { filter, by, top: 10, bucket }).await.unwrap();
        times.push((what, began.elapsed()));
        assert!(!series.is_empty(), "{what}");
    }
    times
}

/// A page takes at most 500 ms, a usage query at most a second.
pub(super) fn assert_in_time(times: &[(&str, Duration)]) {
    for (what, time) in times {
        let limit = if what.starts_with("page") { 500 } else { 1000 };
        let appended = what.starts_with("append");
        assert!(appended || *time <= Duration::from_millis(limit), "{what} took {time:?}");
    }
}
