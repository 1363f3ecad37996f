//! What is charged where it is easy to charge too little: other targets than the first, replies that say nothing, clients that leave.

use serde_json::{Value, json};

use crate::support::{
    Budget, DEADLINE, Gate, Gateway, KEY, PROVIDER_KEY, RawClient, Reply, Upstream, eventually,
    gateway::Setup,
    metrics::Metrics,
    upstream::{DONE, chat_completion, event},
};

/// What a call with 1,000 output tokens is held for at 10 USD per million, its input being free.
const CEILING_NANOUSD: i64 = 10_000_000;

fn budgeted(setup: Setup) -> Setup {
    setup
        .price("upstream/m", "input: 0 USD/1M, output: 10 USD/1M, max_output: 16384")
        .budget("name: all, scope: { team: red }, limit: 1 USD, per: month, clamp: off")
}

fn call(model: &str) -> Value {
    json!({"model": model, "max_tokens": 1000, "messages": [{"role": "user", "content": "hi"}]})
}

async fn settled(gateway: &Gateway) -> Budget {
    let all = || gateway.budget("all");
    eventually("every reservation is settled", DEADLINE, all, |budget| budget.reserved_nanousd == 0).await
}

/// `first/m` is cheap and fails; `second/n` would cost 2 USD.
fn cheap_then_dear(first: &Upstream, second: &Upstream) -> Setup {
    Gateway::bare()
        .provider_at("first", &first.url())
        .provider_at("second", &second.url())
        .price("first/m", "input: 0 USD/1M, output: 1 USD/1M")
        .price("second/n", "input: 0 USD/1M, output: 2000 USD/1M")
        .model("support", "target: first/m, fallbacks: [ second/n ]")
        .key("dev", KEY, ", team: red")
        .top("routing", "{ attempts: 2, retry_budget: 100%, eject: { after: 1, for: 60s } }")
        .budget("name: all, scope: { team: red }, limit: 1 USD, per: month, clamp: off")
}

#[tokio::test]
async fn a_target_that_stands_in_for_one_out_of_rotation_needs_its_own_money() {
    let broken = Upstream::always(Reply::json(500, &json!({}))).await;
    let spare = Upstream::run().await;
    let gateway = cheap_then_dear(&broken, &spare).run().await;

    gateway.chat(&call("support")).send().await.expect(429);
    gateway.chat(&call("support")).send().await.expect(429);

    assert_eq!(broken.request_count(), 1, "it is out of rotation");
    assert_eq!(spare.request_count(), 0, "2 USD are not there");
    assert_eq!(settled(&gateway).await.charged_nanousd, 1_000_000, "the first attempt's ceiling");
}

#[tokio::test]
async fn work_in_the_background_is_charged_at_its_ceiling() {
    let reply = json!({"id": "resp_1", "object": "response", "status": "queued", "output": [], "usage": null});
    let upstream = Upstream::always(Reply::json(200, &reply)).await;
    let gateway = budgeted(Gateway::before(&upstream)).run().await;

    let body = json!({"model": "m", "input": "hi", "background": true, "max_output_tokens": 1000});
    gateway.post("/v1/responses").key(KEY).json(&body).send().await.expect(200);

    assert_eq!(settled(&gateway).await.charged_nanousd, CEILING_NANOUSD);
}

#[tokio::test]
async fn a_reply_that_cannot_be_read_is_charged_at_its_ceiling() {
    let coded =
        |coding: &str| Reply::bytes(200, "application/json", "no such coding").header("content-encoding", coding);
    let upstream = Upstream::run().await;
    let gateway = budgeted(Gateway::before(&upstream)).run().await;

    for (count, coding) in (1..).zip(["zstd", "gzip", "gzip, br"]) {
        upstream.script(coded(coding));
        let response = gateway.chat(&call("m")).send().await.expect(200);

        assert_eq!(response.text(), "no such coding");
        assert_eq!(settled(&gateway).await.charged_nanousd, count * CEILING_NANOUSD, "{coding}");
    }
}

#[tokio::test]
async fn reasoning_that_is_never_reported_is_charged_at_the_ceiling() {
    let mut reply = chat_completion("one", (1, 1));
    reply["usage"] = Value::Null;
    let upstream = Upstream::always(Reply::json(200, &reply)).await;
    let gateway = budgeted(Gateway::before(&upstream)).run().await;

    let mut body = call("m");
    body["reasoning_effort"] = json!("high");
    gateway.chat(&body).send().await.expect(200);

    assert_eq!(settled(&gateway).await.charged_nanousd, CEILING_NANOUSD);
}

#[tokio::test]
async fn drained_calls_are_charged_what_they_used_even_if_the_client_left_before_the_first_byte() {
    let gate = Gate::closed();
    let body = chat_completion("x", (5, 7)).to_string();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    let upstream = Upstream::always(Reply::raw("").gate(&gate).data(head).gate(&gate).data(body)).await;
    let gateway = budgeted(Gateway::before(&upstream)).top("on_disconnect", "drain").run().await;
    let mut client = RawClient::connect(gateway.listen).await;
    client.send(gateway.chat(&call("m")).bytes()).await;
    upstream.next_request().await;

    drop(client);
    let left = |metrics: &Metrics| metrics.value("tollgate_in_flight", &[]) == 0.0;
    eventually("the client's leaving is seen", DEADLINE, || gateway.metrics(), left).await;
    gate.open(2);

    let record = gateway.next_record().await;
    assert_eq!((record.text("usage_source"), record.number("completion_tokens")), ("provider", 7));
    assert_eq!(settled(&gateway).await.charged_nanousd, 70_000);
    assert_eq!(upstream.request_count(), 1);
}

#[tokio::test]
async fn an_image_in_the_body_is_bounded_by_its_size_in_pixels() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream)
        .price("upstream/gpt-4o", "input: 10 USD/1M, output: 10 USD/1M, max_output: 16384")
        .budget("name: all, scope: { team: red }, limit: 1 USD, per: month, clamp: off")
        .run()
        .await;
    let image = |url: &str| {
        let content = json!([{"type": "image_url", "image_url": {"url": url}}]);
        json!({"model": "gpt-4o", "max_tokens": 100, "messages": [{"role": "user", "content": content}]})
    };

    let pixels = "A".repeat(1_000_000);
    gateway.chat(&image(&format!("data:image/png;base64,{pixels}"))).send().await.expect(200);
    gateway.chat(&image(&format!("data:text/plain,{pixels}"))).send().await.expect(429);
}

#[tokio::test]
async fn a_budget_of_a_model_covers_each_way_to_name_it() {
    let upstream = Upstream::always(Reply::json(200, &chat_completion("x", (5, 7)))).await;
    for scope in ["m", "upstream/m", "\"*\""] {
        let gateway = Gateway::before(&upstream)
            .price("upstream/m", "input: 0 USD/1M, output: 10 USD/1M")
            .budget(&format!("name: all, scope: {{ model: {scope} }}, limit: 1 USD, per: month"))
            .run()
            .await;

        gateway.chat(&call("m")).send().await.expect(200);
        gateway.chat(&call("upstream/m")).send().await.expect(200);

        assert_eq!(settled(&gateway).await.charged_nanousd, 140_000, "scope {scope}");
    }
}

#[tokio::test]
async fn the_tier_that_the_reply_names_is_what_is_charged() {
    let mut reply = chat_completion("x", (1000, 0));
    reply["service_tier"] = json!("priority");
    let chunk = event(&json!({"choices": [], "service_tier": "priority", "usage": reply["usage"]}));
    let upstream = Upstream::answering(move |request| match request.json()["stream"] == true {
        true => Reply::stream().data(chunk.clone()).data(DONE),
        false => Reply::json(200, &reply),
    })
    .await;
    let provider =
        format!(r#"kind: openai, catalog: openai, base_url: "{}/v1", api_key: {PROVIDER_KEY}"#, upstream.url());
    let gateway = Gateway::before(&upstream).provider("listed", &provider).run().await;

    gateway.hello("listed/gpt-4.1").send().await.expect(200);
    gateway.hello_stream("listed/gpt-4.1").send().await.expect(200);

    for record in gateway.wait_for_records(2).await {
        assert_eq!(record.number("cost_nanousd"), 3_500_000, "1,000 tokens at 3.50 USD per million, not at 2");
    }
}
