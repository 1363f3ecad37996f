//! Stopping: readiness falls at once, what runs may finish, and the exit says that all is well.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::support::{
    DEADLINE, Gate, Gateway, RawClient, Reply, Upstream, eventually,
    upstream::{DONE, chunk},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_in_flight_finish_and_the_exit_follows_them() {
    let gate = Gate::closed();
    let upstream =
        Upstream::always(Reply::stream().data(chunk("first")).gate(&gate).data(chunk("last")).data(DONE)).await;
    let mut gateway = Gateway::transparent(&upstream).run().await;
    let calls: Vec<_> = (0..20).map(|_| gateway.hello_stream("gpt-4o-mini")).collect();
    let mut streams = join_all(calls.iter().map(|call| call.open())).await;
    for stream in &mut streams {
        stream.read_events(1).await;
    }

    gateway.signal("TERM");

    eventually(
        "not ready any more",
        Duration::from_secs(1),
        || gateway.get("/readyz").send_owned(),
        |response| response.status == 503,
    )
    .await;
    gateway.get("/healthz").send().await.expect(200);
    let refused = gateway.hello("gpt-4o-mini").send().await.expect(503);
    assert_eq!(refused.error_code(), "draining");
    assert!(refused.header("retry-after").is_some());
    gate.open(20);
    for stream in streams {
        let response = stream.finish().await;
        assert!(response.complete && response.text().ends_with(DONE), "{}", response.text());
    }
    let finished = Instant::now();
    let status = gateway.exit(Duration::from_secs(5)).await;
    assert_eq!(status.code(), Some(0));
    assert!(finished.elapsed() < Duration::from_secs(3), "exit {:?} after the last stream", finished.elapsed());
}

#[tokio::test]
async fn what_outlives_the_limit_is_broken_off_visibly() {
    let upstream = Upstream::always(Reply::stream().data(chunk("first")).then_hang()).await;
    let server = r#"{ listen: "127.0.0.1:0", admin: "127.0.0.1:0", limits: { drain: 500ms } }"#;
    let mut gateway = Gateway::before(&upstream).top("server", server).run().await;
    let mut stream = gateway.hello_stream("upstream/m").open().await;
    stream.read_events(1).await;

    let begun = Instant::now();
    gateway.signal("TERM");
    let rest = stream.finish().await;
    let status = gateway.exit(DEADLINE).await;

    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(!rest.text().contains("[DONE]"), "{}", rest.text());
    assert!(!rest.complete || rest.text().contains("\"error\""), "a cut that looks complete: {}", rest.text());
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn who_asks_a_second_time_is_not_kept_waiting() {
    let upstream = Upstream::always(Reply::stream().data(chunk("first")).then_hang()).await;
    let mut gateway = Gateway::before(&upstream).run().await;
    let mut stream = gateway.hello_stream("upstream/m").open().await;
    stream.read_events(1).await;

    gateway.signal("INT");
    let ready = || gateway.get("/readyz").send_owned();
    eventually("it drains", DEADLINE, ready, |response| response.status == 503).await;
    gateway.signal("INT");

    assert_eq!(gateway.exit(DEADLINE).await.code(), Some(0), "in much less than the 30 s that a drain may take");
}

#[tokio::test]
async fn an_idle_gateway_stops_at_once() {
    let upstream = Upstream::run().await;
    for signal in ["TERM", "INT"] {
        let mut gateway = Gateway::transparent(&upstream).run().await;
        // An idle keep-alive connection holds nobody up.
        let mut idle = RawClient::connect(gateway.listen).await;
        idle.send("GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await;
        idle.response_to("GET").await.expect("a response").expect(200);

        let begun = Instant::now();
        gateway.signal(signal);

        assert_eq!(gateway.exit(DEADLINE).await.code(), Some(0), "{signal}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{signal}: {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn what_was_spent_is_on_disk_after_a_stop() {
    let upstream = Upstream::run().await;
    let setup = Gateway::before(&upstream)
        .price("upstream/m", "input: 0 USD/1M, output: 10 USD/1M, max_output: 100")
        .budget("name: all, scope: { team: red }, limit: 1 USD, per: month");
    let mut gateway = setup.run().await;
    gateway.hello("upstream/m").send().await.expect(200);
    gateway.next_record().await;

    gateway.signal("TERM");
    gateway.exit(DEADLINE).await;
    let gateway = gateway.kill_and_restart().await;

    gateway.hello("upstream/m").send().await.expect(200);
    gateway.next_record().await;
    let budget = gateway.budget("all").await;
    assert_eq!(budget.charged_nanousd, 2 * 3 * 10_000, "{budget:?}");
    assert_eq!(budget.reserved_nanousd, 0);
}
