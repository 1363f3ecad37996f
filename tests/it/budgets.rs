//! Budgets: exact under concurrency, refused before the provider is called, settled whatever happens, kept over a crash.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt as _, future::join_all, stream};
use serde_json::{Value, json};

use crate::support::{
    Budget, DEADLINE, Gate, Gateway, KEY, Reply, Upstream, eventually,
    gateway::Setup,
    metrics::Metrics,
    upstream::{DONE, chat_completion, chunk, openai, usage_chunk},
};

/// What a call of [`dear`] costs, in nano-dollars: 1,000 output tokens at 10 USD per million.
const COST_NANOUSD: i64 = 10_000_000;
const USD: i64 = 1_000_000_000;

/// A provider whose replies cost exactly what was reserved for them: input is free, 1,000 output tokens are used.
async fn exact_upstream() -> Upstream {
    Upstream::answering(|request| {
        Reply::json(200, &chat_completion("x", (5, request.json()["max_tokens"].as_u64().unwrap_or(1000))))
    })
    .await
}

fn budgeted(upstream: &Upstream, budget: &str) -> Setup {
    Gateway::before(upstream)
        .price("upstream/m", "input: 0 USD/1M, output: 10 USD/1M, max_output: 16384")
        .budget(budget)
}

fn dear(max_tokens: u64) -> Value {
    json!({"model": "upstream/m", "max_tokens": max_tokens, "messages": [{"role": "user", "content": "hi"}]})
}

fn dear_stream(max_tokens: u64) -> Value {
    let mut body = dear(max_tokens);
    body["stream"] = json!(true);
    body
}

/// The budget once nothing is reserved any more.
async fn settled(gateway: &Gateway, name: &str) -> Budget {
    eventually(
        "every reservation is settled",
        Duration::from_secs(5),
        || gateway.budget(name),
        |budget| budget.reserved_nanousd == 0,
    )
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_five_hundred_calls_at_once_exactly_one_hundred_are_paid_for() {
    let upstream = exact_upstream().await;
    let gateway =
        budgeted(&upstream, "name: all, scope: { team: red }, limit: 1 USD, per: month, clamp: off").run().await;

    let calls: Vec<_> = (0..500).map(|number| gateway.chat(&dear(1000)).user(&format!("user-{number}"))).collect();
    let responses = join_all(calls.iter().map(|call| call.send())).await;

    let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
    for response in &responses {
        *statuses.entry(response.status).or_default() += 1;
    }
    assert_eq!(statuses, BTreeMap::from([(200, 100), (429, 400)]));
    assert_eq!(upstream.request_count(), 100, "a refused call never reaches the provider");
    let budget = settled(&gateway, "all").await;
    assert_eq!(budget.charged_nanousd, USD);
    assert_eq!((budget.limit_nanousd, budget.debt_nanousd), (USD, 0));
}

#[tokio::test]
async fn a_refusal_says_what_the_contract_says() {
    let upstream = exact_upstream().await;
    let gateway =
        budgeted(&upstream, "name: all, scope: { team: red }, limit: 0.01 USD, per: day, clamp: off").run().await;

    gateway.chat(&dear(1000)).send().await.expect(200);
    let refused = gateway.chat(&dear(1000)).send().await.expect(429);

    let error = &refused.json()["error"];
    assert_eq!((&error["code"], &error["type"]), (&json!("budget_exhausted"), &json!("insufficient_quota")));
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    let wait: u64 = refused.header("retry-after").expect("retry-after").parse().expect("whole seconds");
    assert!((1..=86_400).contains(&wait), "{wait} s to the end of the day");
    assert_eq!(upstream.request_count(), 1);
    let told = |metrics: &Metrics| {
        let refusals = metrics.value("tollgate_refusals_total", &[("reason", "budget_exhausted")]);
        (refusals, metrics.value("tollgate_budget_spent_ratio", &[("budget", "all")]))
    };
    eventually("both are told", Duration::from_secs(3), || gateway.metrics(), |metrics| told(metrics) == (1.0, 1.0))
        .await;
    let records = gateway.wait_for_records(2).await;
    assert!(records.iter().any(|record| record.text("outcome") == "refused" && record.text("status") != "200"));
}

#[tokio::test]
async fn an_output_cap_is_lowered_to_what_is_left_and_said_so() {
    let upstream = exact_upstream().await;
    let gateway = budgeted(&upstream, "name: all, scope: { team: red }, limit: 0.01 USD, per: month").run().await;

    let response = gateway.chat(&dear(4000)).send().await.expect(200);

    let cap = upstream.next_request().await.json()["max_tokens"].as_u64().expect("a cap");
    assert!((256..=1000).contains(&cap), "0.01 USD pays 1000 tokens, not {cap}");
    assert_eq!(response.header("x-tollgate-clamped"), Some(cap.to_string().as_str()));
    let mut expected = dear(4000);
    expected["model"] = json!("m");
    expected["max_tokens"] = json!(cap);
    assert_eq!(upstream.requests()[0].json(), expected);
    assert!(settled(&gateway, "all").await.charged_nanousd <= COST_NANOUSD);
}

#[tokio::test]
async fn a_cap_below_the_minimum_is_a_refusal() {
    let upstream = exact_upstream().await;
    let gateway = budgeted(&upstream, "name: all, scope: { team: red }, limit: 0.002 USD, per: month").run().await;

    assert_eq!(gateway.chat(&dear(4000)).send().await.expect(429).error_code(), "budget_exhausted");

    assert_eq!(upstream.request_count(), 0);
    assert_eq!(settled(&gateway, "all").await.charged_nanousd, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_streams_settle_what_they_used() {
    const CALLS: usize = 40;
    let upstream = Upstream::always(Reply::stream().data(chunk("one two three")).then_hang()).await;
    let gateway = budgeted(&upstream, "name: all, scope: { team: red }, limit: 10 USD, per: month").run().await;

    let calls: Vec<_> = (0..CALLS).map(|_| gateway.chat(&dear_stream(1000))).collect();
    let streams = join_all(calls.iter().map(|call| call.open())).await;
    let held = gateway.budget("all").await;
    for mut stream in streams {
        stream.read_events(1).await;
        stream.hang_up();
    }

    assert_eq!(held.reserved_nanousd, CALLS as i64 * COST_NANOUSD, "while they run, their ceilings are reserved");
    upstream.wait_for_aborts(CALLS, Duration::from_secs(5)).await;
    let budget = settled(&gateway, "all").await;
    assert!(budget.charged_nanousd >= CALLS as i64 * 3 * 10_000, "three tokens each were delivered: {budget:?}");
    assert!(budget.charged_nanousd < CALLS as i64 * COST_NANOUSD / 10, "far less than their ceilings: {budget:?}");
    for record in gateway.wait_for_records(CALLS).await {
        assert_eq!((record.text("outcome"), record.text("usage_source")), ("abandoned", "estimated"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_calls_killed_in_flight_leave_nothing_reserved() {
    let upstream = Upstream::answering(|request| {
        if request.json()["stream"] == true { Reply::stream().data(chunk("x")).then_hang() } else { Reply::hang() }
    })
    .await;
    let gateway = budgeted(&upstream, "name: all, scope: { team: red }, limit: 100 USD, per: month").run().await;

    let calls: Vec<_> =
        (0..200).map(|number| gateway.chat(&if number % 2 == 0 { dear(100) } else { dear_stream(100) })).collect();
    let mut calls: Vec<_> = calls.iter().map(|call| Box::pin(call.send())).collect();
    // All are polled until the upstream has each of them, then all connections are dropped at once.
    let everyone = join_all(calls.iter_mut());
    tokio::select! {
        _ = everyone => panic!("no call ends by itself"),
        () = crate::support::wait_until("all are in flight", DEADLINE, || upstream.request_count() == 200) => {}
    }
    drop(calls);

    upstream.wait_for_aborts(200, Duration::from_secs(5)).await;
    let budget = settled(&gateway, "all").await;
    assert_eq!(budget.debt_nanousd, 0);
    let gauge = eventually(
        "nothing is in flight",
        DEADLINE,
        || gateway.metrics(),
        |metrics| metrics.value("tollgate_in_flight", &[]) == 0.0,
    )
    .await;
    assert!(gauge.names("tollgate_in_flight"), "{}", gauge.text);
}

#[tokio::test]
async fn what_was_surely_not_processed_costs_nothing_and_what_may_have_been_costs_its_ceiling() {
    let upstream = Upstream::run().await;
    let gateway = budgeted(&upstream, "name: all, scope: { team: red }, limit: 1 USD, per: month").run().await;
    let error = json!({"error": {"message": "no", "type": "t", "param": null, "code": "c"}});

    for status in [401, 403, 404, 429] {
        upstream.script(Reply::json(status, &error));
        gateway.chat(&dear(1000)).send().await.expect(status);
    }
    assert_eq!(settled(&gateway, "all").await.charged_nanousd, 0);

    upstream.script(Reply::json(500, &error));
    gateway.chat(&dear(1000)).send().await.expect(500);
    assert_eq!(settled(&gateway, "all").await.charged_nanousd, COST_NANOUSD);
}

#[tokio::test]
async fn spend_survives_a_kill_exactly() {
    let upstream = exact_upstream().await;
    let gateway =
        budgeted(&upstream, "name: all, scope: { team: red }, limit: 0.1 USD, per: month, clamp: off").run().await;
    for _ in 0..3 {
        gateway.chat(&dear(1000)).send().await.expect(200);
    }
    let before = settled(&gateway, "all").await;

    let gateway = gateway.kill_and_restart().await;

    assert_eq!(before.charged_nanousd, 3 * COST_NANOUSD);
    let calls: Vec<_> = (0..20).map(|_| gateway.chat(&dear(1000))).collect();
    let responses = join_all(calls.iter().map(|call| call.send())).await;
    assert_eq!(responses.iter().filter(|response| response.status == 200).count(), 7);
    assert_eq!(settled(&gateway, "all").await.charged_nanousd, 10 * COST_NANOUSD);
}

#[tokio::test]
async fn spend_is_shown_at_once_after_a_restart() {
    let upstream = exact_upstream().await;
    let gateway = budgeted(&upstream, "name: all, scope: { team: red }, limit: 0.1 USD, per: month").run().await;
    gateway.chat(&dear(1000)).send().await.expect(200);
    settled(&gateway, "all").await;

    let gateway = gateway.kill_and_restart().await;

    assert_eq!(gateway.budget("all").await.charged_nanousd, COST_NANOUSD);
}

#[tokio::test]
async fn calls_in_flight_at_a_kill_count_at_their_ceiling() {
    let upstream = exact_upstream().await;
    let gateway =
        budgeted(&upstream, "name: all, scope: { team: red }, limit: 0.1 USD, per: month, clamp: off").run().await;
    for _ in 0..3 {
        gateway.chat(&dear(1000)).send().await.expect(200);
    }
    settled(&gateway, "all").await;
    let in_flight: Vec<_> = (0..2).map(|_| gateway.chat(&dear(1000))).collect();
    for _ in &in_flight {
        upstream.script(Reply::hang());
    }
    let mut sends: Vec<_> = in_flight.iter().map(|call| Box::pin(call.send())).collect();
    tokio::select! {
        _ = join_all(sends.iter_mut()) => panic!("no call ends by itself"),
        () = crate::support::wait_until("two are in flight", DEADLINE, || upstream.request_count() == 5) => {}
    }

    let gateway = gateway.kill_and_restart().await;

    let calls: Vec<_> = (0..20).map(|_| gateway.chat(&dear(1000))).collect();
    let responses = join_all(calls.iter().map(|call| call.send())).await;
    let served = responses.iter().filter(|response| response.status == 200).count();
    assert!((1..=5).contains(&served), "10 fit, 3 were settled, 2 may have been billed; {served} were served after");
}

#[tokio::test]
async fn each_user_has_an_account_of_its_own() {
    let upstream = exact_upstream().await;
    let gateway =
        budgeted(&upstream, r#"name: each-user, scope: { user: "*" }, limit: 0.02 USD, per: day, clamp: off"#)
            .run()
            .await;
    let as_user = |user: &str| gateway.chat(&dear(1000)).user(user);

    as_user("ann").send().await.expect(200);
    as_user("ann").send().await.expect(200);
    as_user("ann").send().await.expect(429);
    as_user("bob").send().await.expect(200);

    let charged = || async {
        let mut charged: Vec<_> = gateway.budgets().await.iter().map(|row| row.charged_nanousd).collect();
        charged.sort_unstable();
        charged
    };
    let expected = [COST_NANOUSD, 2 * COST_NANOUSD];
    eventually("both are charged", DEADLINE, charged, |charged| *charged == expected).await;
}

#[tokio::test]
async fn a_call_pays_from_every_budget_it_touches_or_from_none() {
    let upstream = exact_upstream().await;
    let gateway = budgeted(&upstream, "name: wide, scope: { team: red }, limit: 1 USD, per: month, clamp: off")
        .budget("name: narrow, scope: { key: dev }, limit: 0.01 USD, per: day, clamp: off")
        .run()
        .await;

    gateway.chat(&dear(1000)).send().await.expect(200);
    gateway.chat(&dear(1000)).send().await.expect(429);

    assert_eq!(settled(&gateway, "wide").await.charged_nanousd, COST_NANOUSD);
    assert_eq!(settled(&gateway, "narrow").await.charged_nanousd, COST_NANOUSD);
}

#[tokio::test]
async fn a_model_without_a_price_is_refused_under_a_budget_or_charged_as_set() {
    let upstream = exact_upstream().await;
    let budget = "name: all, scope: { team: red }, limit: 1 USD, per: month";
    let strict = Gateway::before(&upstream).budget(budget).top("unpriced", "refuse").run().await;
    let set = Gateway::before(&upstream)
        .budget(budget)
        .top("unpriced", "{ charge: { input: 0 USD/1M, output: 10 USD/1M } }")
        .run()
        .await;

    let refused = strict.chat(&dear(1000)).send().await;
    assert!((400..500).contains(&refused.status), "{} {}", refused.status, refused.text());
    assert_eq!(upstream.request_count(), 0);
    assert!(
        refused.json()["error"]["message"].as_str().is_some_and(|message| message.contains("price")),
        "{}",
        refused.text()
    );

    set.chat(&dear(1000)).send().await.expect(200);
    assert_eq!(settled(&set, "all").await.charged_nanousd, COST_NANOUSD);
}

#[tokio::test]
async fn a_budget_that_only_warns_refuses_nobody() {
    let upstream = exact_upstream().await;
    let gateway =
        budgeted(&upstream, "name: all, scope: { team: red }, limit: 0.01 USD, per: month, mode: warn, clamp: off")
            .run()
            .await;

    for _ in 0..3 {
        gateway.chat(&dear(1000)).send().await.expect(200);
    }

    assert_eq!(upstream.request_count(), 3);
}

#[tokio::test]
async fn a_limit_raised_by_a_reload_keeps_what_was_spent() {
    let upstream = exact_upstream().await;
    let budget = |limit: &str| format!("name: all, scope: {{ team: red }}, limit: {limit} USD, per: month, clamp: off");
    let gateway = budgeted(&upstream, &budget("0.01")).run().await;
    gateway.chat(&dear(1000)).send().await.expect(200);
    gateway.chat(&dear(1000)).send().await.expect(429);

    gateway.replace_config(&budgeted(&upstream, &budget("0.02")).text());

    eventually(
        "the raised limit pays a call",
        Duration::from_secs(3),
        || gateway.chat(&dear(1000)).send_owned(),
        |response| response.status == 200,
    )
    .await;
    gateway.chat(&dear(1000)).send().await.expect(429);
    assert_eq!(settled(&gateway, "all").await.charged_nanousd, 2 * COST_NANOUSD);
}

#[tokio::test]
async fn usage_that_cannot_be_true_never_lowers_what_is_charged() {
    let upstream = Upstream::run().await;
    let gateway = budgeted(&upstream, "name: all, scope: { team: red }, limit: 10 USD, per: month").run().await;
    let mut charged = 0;

    for usage in [
        json!({"prompt_tokens": -5, "completion_tokens": -5}),
        json!(null),
        json!({"prompt_tokens": "3", "completion_tokens": "3"}),
        json!({}),
        json!([]),
        json!(1e30),
    ] {
        let mut reply = chat_completion("one two three", (1, 1));
        reply["usage"] = usage.clone();
        upstream.script(Reply::json(200, &reply));
        gateway.chat(&dear(1000)).send().await.expect(200);

        let now = settled(&gateway, "all").await.charged_nanousd;
        assert!(now > charged, "usage {usage} cost {} nano-dollars", now - charged);
        charged = now;
    }
}

#[tokio::test]
async fn a_bill_above_the_ceiling_is_debt_and_stops_the_budget() {
    let upstream = Upstream::always(Reply::json(200, &chat_completion("x", (5, 200_000)))).await;
    let gateway =
        budgeted(&upstream, "name: all, scope: { team: red }, limit: 1 USD, per: month, clamp: off").run().await;

    gateway.chat(&dear(1000)).send().await.expect(200);

    let budget = settled(&gateway, "all").await;
    assert_eq!(budget.charged_nanousd.max(budget.debt_nanousd + COST_NANOUSD), 2 * USD, "{budget:?}");
    assert!(budget.debt_nanousd > 0, "{budget:?}");
    gateway.chat(&dear(1000)).send().await.expect(429);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_and_plain_calls_in_a_mix_are_charged_to_the_nanodollar() {
    let upstream = Upstream::answering(|request| {
        let tokens = request.json()["seed"].as_u64().expect("sent below");
        if request.json()["stream"] != true {
            return Reply::json(200, &chat_completion("x", (5, tokens)));
        }
        Reply::stream().data(chunk("x")).data(usage_chunk((5, tokens))).data(DONE)
    })
    .await;
    let gateway = budgeted(&upstream, "name: all, scope: { team: red }, limit: 100 USD, per: month").run().await;

    let calls: Vec<_> = (0..200u64)
        .map(|number| {
            let mut body = if number % 2 == 0 { dear(1000) } else { dear_stream(1000) };
            body["seed"] = json!(number);
            gateway.chat(&body)
        })
        .collect();
    let calls = stream::iter(calls).map(|call| async move { call.send().await });
    let responses: Vec<_> = calls.buffer_unordered(32).collect().await;

    assert!(responses.iter().all(|response| response.status == 200));
    gateway.wait_for_records(200).await;
    assert_eq!(settled(&gateway, "all").await.charged_nanousd, (0..200).sum::<i64>() * 10_000);
    let logged: i64 = gateway.records().iter().map(|record| record.number("cost_nanousd")).sum();
    assert_eq!(logged, (0..200).sum::<i64>() * 10_000);
}

#[tokio::test]
async fn a_plain_call_holds_its_ceiling_while_it_runs() {
    let gate = Gate::closed();
    let reply = Reply::json(200, &chat_completion("x", (5, 3)));
    let held = Reply::raw("").gate(&gate).data("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    let upstream = Upstream::answering(openai).await;
    upstream.script(held);
    upstream.script(reply);
    let gateway = budgeted(&upstream, "name: all, scope: { key: \"*\" }, limit: 1 USD, per: month").run().await;

    let call = gateway.post("/v1/chat/completions").key(KEY).json(&dear(1000));
    let (response, held) = tokio::join!(call.send(), async {
        upstream.next_request().await;
        let held = gateway.budget("all").await;
        gate.open(1);
        held
    });

    response.expect(200);
    assert_eq!(held.reserved_nanousd, COST_NANOUSD);
}

#[tokio::test]
async fn a_budget_that_is_spent_sends_calls_to_its_cheaper_model_as_long_as_that_is_paid_for() {
    let upstream = exact_upstream().await;
    let gateway = budgeted(
        &upstream,
        "name: all, scope: { team: red }, limit: 0.011 USD, per: month, clamp: off, on_exhausted: { downgrade: cheap }",
    )
    .price("upstream/small", "input: 0 USD/1M, output: 0.5 USD/1M, max_output: 16384")
    .model("cheap", "target: upstream/small")
    .run()
    .await;

    let first = gateway.chat(&dear(1000)).send().await.expect(200);
    let second = gateway.chat(&dear(1000)).send().await.expect(200);
    let third = gateway.chat(&dear(1000)).send().await.expect(200);
    let fourth = gateway.chat(&dear(1000)).send().await.expect(429);

    let models = [&first, &second, &third].map(|response| response.header("x-tollgate-model"));
    assert_eq!(models, [Some("upstream/m"), Some("upstream/small"), Some("upstream/small")]);
    assert_eq!(fourth.json()["error"]["code"], json!("budget_exhausted"));
    assert_eq!(settled(&gateway, "all").await.charged_nanousd, COST_NANOUSD + 2 * COST_NANOUSD / 20);
    assert_eq!(gateway.wait_for_records(4).await.len(), 4, "a downgraded call has one record");
}

#[tokio::test]
async fn a_call_without_a_cap_stays_as_it_is_where_its_context_window_is_small_change() {
    let upstream = exact_upstream().await;
    let uncapped = json!({"model": "upstream/m", "messages": [{"role": "user", "content": "hi"}]});
    let price = "input: 0 USD/1M, output: 10 USD/1M, context_window: 100000";
    let rich = Gateway::before(&upstream)
        .price("upstream/m", price)
        .budget("name: all, scope: { team: red }, limit: 1000 USD, per: month")
        .run()
        .await;
    let poor = Gateway::before(&upstream)
        .price("upstream/m", price)
        .budget("name: all, scope: { team: red }, limit: 2 USD, per: month, default_max_tokens: 500")
        .run()
        .await;

    let free = rich.chat(&uncapped).send().await.expect(200);
    let capped = poor.chat(&uncapped).send().await.expect(200);

    assert_eq!(free.header("x-tollgate-clamped"), None);
    assert_eq!(capped.header("x-tollgate-clamped"), Some("500"));
    let sent: Vec<Value> = upstream.requests().iter().map(|request| request.json()["max_tokens"].clone()).collect();
    assert_eq!(sent, [Value::Null, json!(500)]);
}

#[tokio::test]
async fn a_prompt_whose_bytes_do_not_fit_is_counted_and_passes_when_its_tokens_do() {
    let upstream = exact_upstream().await;
    let gateway = Gateway::before(&upstream)
        .price("upstream/gpt-4o", "input: 10 USD/1M, output: 0 USD/1M, max_output: 100")
        .budget("name: all, scope: { team: red }, limit: 0.1 USD, per: month, clamp: off")
        .run()
        .await;
    let saying =
        |content: String| json!({"model": "upstream/gpt-4o", "messages": [{"role": "user", "content": content}]});

    // 0.1 USD pays for 10,000 tokens; these are some 6,000 tokens in 30,000 bytes, and three times that.
    gateway.chat(&saying("word ".repeat(6_000))).send().await.expect(200);
    let refused = gateway.chat(&saying("word ".repeat(18_000))).send().await.expect(429);

    assert_eq!(refused.error_code(), "budget_exhausted");
    assert_eq!(upstream.request_count(), 1);
}
