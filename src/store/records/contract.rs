//! The rules of every call log, run against each of them. `many` calls on top show what a full log costs.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    evaluations::{Evaluation, EvaluationHead, KEPT_MAX, REPORT_BYTES_MAX},
    feedback::{FeedbackFilter, of_call},
    figures::{ArmFigures, Arms, ArmsQuery},
    ports::{Bodies, Body, CallLog, Dimension, Entry, Filter, Series, UsageQuery},
    rollup::{DAY_MS, HOUR_MS, MINUTE_MS},
};
use crate::{
    policy::stats::Moments,
    record::{Assigned, AttemptRow, BUILT_IN_METRICS, CallRow, Feedback, Outcome, Rating, UsageSource},
    store::ports::StoreError,
};

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
    arms_are_summed_up_by_their_units(log).await;
    evaluations_are_kept_with_their_reports(log).await;
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

/// Users whose calls, costs and ratings differ, some of them in two variants, some of them rated by a session or a stranger.
async fn arms_are_summed_up_by_their_units(log: &dyn CallLog) {
    let rows: Vec<CallRow> = (0..400_u64)
        .map(|n| {
            let user: Arc<str> = format!("user-{}", n * n % 37).into();
            // Weights were changed on the way: some users moved.
            let variant = if (n * n % 37 + n / 250) % 3 == 0 { "warm" } else { "control" };
            let assigned = |experiment: &str, variant: &str| Assigned {
                experiment: experiment.into(),
                variant: variant.into(),
                unit: user.clone(),
            };
            CallRow {
                variants: vec![assigned("other", "x"), assigned("tone", variant)],
                version: Some(if n < 200 { "v1" } else { "v2" }.into()),
                prompt: (n % 4 > 0).then(|| format!("greeting@{}", ["a", "b"][n as usize % 2]).into()),
                outcome: [Outcome::Ok, Outcome::Ok, Outcome::Cut, Outcome::Refused, Outcome::Abandoned][n as usize % 5],
                attempts: u32::from(n % 5 != 3),
                priced: n % 11 > 0,
                cost_nanousd: n * 1_000_000,
                duration_us: 1000 + n,
                first_token_us: (n % 2 > 0).then_some(n * 10),
                session: Some(format!("s-{}", n / 20).into()),
                team: (n % 7 > 0).then(|| "product".into()),
                user: user.clone(),
                ..row(BEGIN_MS + n * 9 * MINUTE_MS, n)
            }
        })
        .collect();
    log.append(entries(rows.clone())).await.unwrap();
    let numbered = |n: u64| Feedback {
        id: id(BEGIN_MS, 10_000 + n),
        team: rows[n as usize].team.clone(),
        ..rating(rows[n as usize].received_ms, n)
    };
    let mut said: Vec<Feedback> =
        (0..400).step_by(3).map(|n| Feedback { value: Rating::Flag(n % 2 == 0), ..numbered(n) }).collect();
    let more = |n: u64, metric: &str, value| Feedback { metric: metric.into(), value, ..numbered(n) };
    said.extend((0..60).map(|n| more(n, "stars", Rating::Number(n as f64 / 7.0 - 2.0))));
    said.extend((0..90).map(|n| more(n, "topic", Rating::Text(format!("topic {}", n % (1 + n % 13)).into()))));
    said.extend((0..20).map(|n| Feedback { team: Some("rivals".into()), ..numbered(n) }));
    let of_session = |n: u64| Feedback {
        call: None,
        session: Some(format!("s-{n}").into()),
        ..more(n, "solved", Rating::Flag(!n.is_multiple_of(3)))
    };
    said.extend((1..15).map(|n| Feedback { team: Some("product".into()), ..of_session(n) }));
    log.rate(said.clone().into()).await.unwrap();

    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let all = |arms| ArmsQuery { arms, since_ms: None, until_ms: None };
    let experiment = Arms::Experiment("tone".to_owned());
    for query in [
        all(experiment.clone()),
        ArmsQuery { arms: experiment, since_ms: Some(BEGIN_MS + 7 * HOUR_MS), until_ms: Some(BEGIN_MS + 50 * HOUR_MS) },
        all(Arms::Model { alias: "support".to_owned(), versions: Vec::new() }),
        all(Arms::Model { alias: "support".to_owned(), versions: names(&["v2", "v3"]) }),
        all(Arms::Prompt { name: "greeting".to_owned(), versions: names(&["a", "b"]) }),
        all(Arms::Prompt { name: "greeting".to_owned(), versions: Vec::new() }),
        all(Arms::Prompt { name: "greet".to_owned(), versions: Vec::new() }),
        all(Arms::Experiment("ton".to_owned())),
    ] {
        let found = log.arms(query.clone()).await.unwrap();
        assert_same_figures(&found, &expected_arms(&rows, &said, &query), &format!("{query:?}"));
    }
    clear(log).await;
}

/// A unit's calls in one arm.
type Unit<'r> = ((Arc<str>, Arc<str>), Vec<&'r CallRow>);

/// Each unit's calls by the arm that they count for, and of each unit how many arms it was seen in.
fn units_of<'r>(rows: &'r [CallRow], query: &ArmsQuery) -> (Vec<Unit<'r>>, BTreeMap<Arc<str>, usize>) {
    let arm_of = |row: &CallRow| -> Option<(Arc<str>, Arc<str>)> {
        let is_named =
            |versions: &[String], version: &str| versions.is_empty() || versions.iter().any(|v| v == version);
        match &query.arms {
            Arms::Experiment(name) => {
                let assigned = row.variants.iter().find(|assigned| &*assigned.experiment == name)?;
                Some((assigned.unit.clone(), assigned.variant.clone()))
            }
            Arms::Model { alias, versions } => {
                let version =
                    row.version.clone().filter(|version| *row.model == **alias && is_named(versions, version))?;
                Some((row.user.clone(), version))
            }
            Arms::Prompt { name, versions } => {
                let version = row.prompt.as_deref()?.strip_prefix(&format!("{name}@"))?;
                is_named(versions, version).then(|| (row.user.clone(), version.into()))
            }
        }
    };
    let (since, until) = (query.since_ms.unwrap_or(0), query.until_ms.unwrap_or(u64::MAX));
    let mut first: BTreeMap<Arc<str>, Arc<str>> = BTreeMap::new();
    let mut seen: BTreeMap<Arc<str>, std::collections::BTreeSet<Arc<str>>> = BTreeMap::new();
    let mut units: BTreeMap<(Arc<str>, Arc<str>), Vec<&CallRow>> = BTreeMap::new();
    for row in rows.iter().filter(|row| (since..until).contains(&row.received_ms)) {
        let Some((unit, arm)) = arm_of(row) else { continue };
        seen.entry(unit.clone()).or_default().insert(arm.clone());
        let first = first.entry(unit.clone()).or_insert_with(|| arm.clone()).clone();
        let counted = if matches!(query.arms, Arms::Experiment(_)) { first } else { arm };
        units.entry((unit, counted)).or_default().push(row);
    }
    (units.into_iter().collect(), seen.into_iter().map(|(unit, arms)| (unit, arms.len())).collect())
}

/// The same, summed up here.
fn expected_arms(rows: &[CallRow], said: &[Feedback], query: &ArmsQuery) -> Vec<ArmFigures> {
    let (units, seen) = units_of(rows, query);
    let mut arms: BTreeMap<Arc<str>, ArmFigures> = BTreeMap::new();
    for ((unit, arm), calls) in &units {
        let figures = arms.entry(arm.clone()).or_insert_with(|| ArmFigures {
            arm: arm.clone(),
            metrics: BUILT_IN_METRICS.iter().map(|metric| ((*metric).into(), Moments::default())).collect(),
            ..ArmFigures::default()
        });
        figures.units += 1;
        figures.crossed += u64::from(seen[unit] > 1);
        figures.calls += calls.len() as u64;
        let day = calls[0].received_ms / DAY_MS * DAY_MS;
        match figures.new_units.iter_mut().find(|(known, _)| *known == day) {
            Some((_, count)) => *count += 1,
            None => figures.new_units.push((day, 1)),
        }
        figures.new_units.sort_unstable();
        let mut add = |metric: &str, x: f64, n: f64| {
            let sums = figures.metrics.entry(metric.into()).or_default();
            sums.units += 1;
            sums.sum_x += x;
            sums.sum_n += n;
            sums.sum_xx += x * x;
            sums.sum_nn += n * n;
            sums.sum_xn += x * n;
        };
        let sum = |of: &dyn Fn(&CallRow) -> Option<f64>| {
            let values: Vec<f64> = calls.iter().filter_map(|row| of(row)).collect();
            (values.iter().sum::<f64>(), values.len() as f64)
        };
        let served = |row: &CallRow| row.outcome != Outcome::Refused;
        let sent = |row: &CallRow| served(row) && row.attempts > 0;
        let is = |flag: bool| f64::from(u8::from(flag));
        let cost = sum(&|row| (served(row) && row.priced).then_some(row.cost_nanousd as f64 / 1e9));
        for (metric, (x, n)) in [
            ("error_rate", sum(&|row| served(row).then(|| is(row.outcome.is_error())))),
            ("refusal_rate", sum(&|row| Some(is(!served(row))))),
            ("cost_per_call", cost),
            ("latency", sum(&|row| sent(row).then_some(row.duration_us as f64 / 1e6))),
            ("time_to_first_token", sum(&|row| row.first_token_us.filter(|_| served(row)).map(|us| us as f64 / 1e6))),
            ("tokens", sum(&|row| sent(row).then_some(row.output_tokens as f64))),
            ("input_tokens", sum(&|row| sent(row).then_some(row.input_tokens as f64))),
        ] {
            if n > 0.0 {
                add(metric, x, n);
            }
        }
        let is_about = |rating: &&Feedback| {
            calls.iter().any(|row| {
                let about =
                    rating.call.as_ref() == Some(&row.id) || rating.session.is_some() && rating.session == row.session;
                about && rating.owner() == row.owner()
            })
        };
        for metric in ["resolved", "stars", "topic", "solved"] {
            let of_unit = said.iter().filter(is_about).filter(|rating| &*rating.metric == metric);
            let values: Vec<f64> = of_unit
                .clone()
                .filter_map(|rating| match rating.value {
                    Rating::Flag(flag) => Some(is(flag)),
                    Rating::Number(number) => Some(number),
                    Rating::Text(_) => None,
                })
                .collect();
            if !values.is_empty() {
                let x = values.iter().sum();
                add(metric, x, values.len() as f64);
                add(&format!("cost_per_{metric}"), cost.0, x);
            }
            for rating in of_unit {
                let Rating::Text(word) = &rating.value else { continue };
                let words = figures.words.entry(metric.into()).or_default();
                match words.iter_mut().find(|(known, _)| known == word) {
                    Some((_, count)) => *count += 1,
                    None => words.push((word.clone(), 1)),
                }
            }
        }
    }
    let mut all: Vec<ArmFigures> = arms.into_values().collect();
    for words in all.iter_mut().flat_map(|figures| figures.words.values_mut()) {
        words.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        words.truncate(10);
    }
    all
}

fn assert_same_figures(found: &[ArmFigures], expected: &[ArmFigures], what: &str) {
    let plain = |figures: &ArmFigures| ArmFigures { metrics: BTreeMap::new(), ..figures.clone() };
    assert_eq!(found.iter().map(plain).collect::<Vec<_>>(), expected.iter().map(plain).collect::<Vec<_>>(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.metrics.keys().eq(expected.metrics.keys()), "{what}: {:?} {:?}", found.metrics, expected.metrics);
        for (metric, moments) in &found.metrics {
            let sums = |m: &Moments| [m.units as f64, m.sum_x, m.sum_n, m.sum_xx, m.sum_nn, m.sum_xn];
            let pairs = sums(moments).into_iter().zip(sums(&expected.metrics[metric]));
            for (a, b) in pairs {
                assert!(
                    (a - b).abs() <= 1e-9 * (1.0 + b.abs()),
                    "{what}, {}, {metric}: {moments:?} {:?}",
                    found.arm,
                    expected.metrics[metric]
                );
            }
        }
    }
}

/// They stay when calls are deleted.
async fn evaluations_are_kept_with_their_reports(log: &dyn CallLog) {
    let of = |n: u64, suite: &str| Evaluation {
        head: EvaluationHead {
            id: format!("{suite}-{n:04}").into(),
            suite: suite.into(),
            candidate: "support@v2".into(),
            // Two at each moment.
            created_ms: BEGIN_MS + n / 2,
        },
        report: format!("{{\"passed\": {n}, \"note\": \"ü\\u0000\"}}"),
    };
    let (a, b): (Vec<_>, Vec<_>) = ((0..5).map(|n| of(n, "a")).collect(), (0..2).map(|n| of(n, "b")).collect());
    for evaluation in a.iter().chain(&b) {
        log.put_evaluation(evaluation.clone()).await.unwrap();
    }
    let again = Evaluation { report: "[]".to_owned(), ..a[3].clone() };
    log.put_evaluation(again.clone()).await.unwrap();
    log.delete_before(u64::MAX).await.unwrap();
    assert_eq!(log.evaluation(a[3].head.id.clone()).await.unwrap(), Some(again));
    assert_eq!(log.evaluation(a[4].head.id.clone()).await.unwrap().as_ref(), Some(&a[4]));
    assert_eq!(log.evaluation("c-0000".into()).await.unwrap(), None);
    let ids = |heads: &[EvaluationHead]| heads.iter().map(|head| head.id.to_string()).collect::<Vec<_>>();
    let first = log.evaluations(Some("a".to_owned()), None, 3).await.unwrap();
    assert_eq!(ids(&first.rows), ["a-0004", "a-0003", "a-0002"]);
    let second = log.evaluations(Some("a".to_owned()), first.next, 3).await.unwrap();
    assert_eq!((ids(&second.rows), second.next), (vec!["a-0001".to_owned(), "a-0000".to_owned()], None));
    assert_eq!(log.evaluations(None, None, 99).await.unwrap().rows.len(), 7);
    for wrong in [
        Evaluation { report: "x".repeat(REPORT_BYTES_MAX + 1), ..of(0, "d") },
        Evaluation { report: "{".to_owned(), ..of(0, "d") },
        of(0, &"d".repeat(600)),
    ] {
        assert!(matches!(log.put_evaluation(wrong).await, Err(StoreError::Damaged(_))));
    }
    for n in 5..KEPT_MAX as u64 + 2 {
        log.put_evaluation(of(n, "a")).await.unwrap();
    }
    let kept = log.evaluations(Some("a".to_owned()), None, 2 * KEPT_MAX).await.unwrap().rows;
    assert_eq!((kept.len(), &*kept[KEPT_MAX - 1].id), (KEPT_MAX, "a-0002"));
    assert_eq!(log.evaluations(Some("b".to_owned()), None, 9).await.unwrap().rows.len(), 2);
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
        let (key, user) = (pick(40, 11), pick(1000, 17));
        CallRow {
            model: Arc::from(format!("model-{}", pick(8, 7))),
            key: Arc::from(format!("key-{key}")),
            team: Some(Arc::from(format!("team-{}", key % 10))),
            user: Arc::from(format!("user-{user}")),
            session: (pick(4, 23) == 0).then(|| Arc::from(format!("session-{}", n / 8))),
            provider: Arc::from(format!("provider-{}", pick(5, 29))),
            variants: match pick(4, 31) {
                0 => vec![Assigned {
                    experiment: "tone".into(),
                    variant: ["a", "b"][n as usize % 2].into(),
                    unit: format!("user-{user}").into(),
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
    // A rating of each tenth call.
    let rated: Vec<Feedback> = many(count, DAYS)
        .enumerate()
        .step_by(10)
        .map(|(n, row)| Feedback {
            value: Rating::Flag(!n.is_multiple_of(3)),
            team: row.team,
            ..rating(row.received_ms, n as u64)
        })
        .collect();
    for some in rated.chunks(1000) {
        log.rate(some.into()).await.unwrap();
    }
    for (what, arms) in [
        ("arms: an experiment", Arms::Experiment("tone".to_owned())),
        ("arms: versions of a model", Arms::Model { alias: "model-3".to_owned(), versions: Vec::new() }),
        (
            "arms: versions of a prompt that all have",
            Arms::Prompt { name: "greeting".to_owned(), versions: Vec::new() },
        ),
    ] {
        let began = Instant::now();
        let figures = log.arms(ArmsQuery { arms, since_ms: None, until_ms: None }).await.unwrap();
        times.push((what, began.elapsed()));
        assert!(figures.iter().all(|arm| arm.units > 0 && arm.metrics.contains_key("resolved")), "{what}");
    }
    times
}

/// A page takes at most 500 ms, a usage query at most a second, figures of arms at most three.
pub(super) fn assert_in_time(times: &[(&str, Duration)]) {
    for (what, time) in times {
        let limit = match what.split(':').next() {
            Some("page") => 500,
            Some("arms") => 3000,
            _ => 1000,
        };
        let appended = what.starts_with("append");
        assert!(appended || *time <= Duration::from_millis(limit), "{what} took {time:?}");
    }
}
