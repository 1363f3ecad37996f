//! The admin API over budgets, and the operator's command on top of it.

use serde_json::json;

use crate::support::{Call, Gateway, Response, Upstream};

const BUDGET: &str = "name: each-user, scope: { user: \"*\" }, limit: 1 USD, per: total";

#[track_caller]
fn problem(response: &Response, status: u16) -> String {
    assert_eq!(response.status, status, "{}", response.text());
    assert_eq!(response.header("content-type"), Some("application/problem+json"));
    let problem = response.json();
    assert_eq!(problem["status"], json!(status), "{problem}");
    assert_eq!(problem["type"], "about:blank");
    problem["detail"].as_str().expect("a detail").to_owned()
}

#[tokio::test]
async fn the_api_describes_itself_and_refuses_with_problem_details() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).run().await;

    let described = gateway.admin_get("/api/openapi.json").await.expect(200);
    let committed = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json")).unwrap();
    assert_eq!(described.body, committed);
    assert_eq!(described.json()["openapi"], "3.1.0");

    assert!(problem(&gateway.admin_get("/api/nothing").await, 404).contains("/api/openapi.json"));
    problem(&Call::new(gateway.admin, "DELETE", "/api/budgets").send().await, 405);
    problem(&gateway.admin_get("/api/budgets?limits=1").await, 400);
    for (path, content_type) in [("/metrics", "text/plain"), ("/api/config", "application/json")] {
        let response = gateway.admin_get(path).await.expect(200);
        assert!(response.header("content-type").is_some_and(|found| found.starts_with(content_type)), "{path}");
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(response.header("cache-control"), Some("no-store"));
    }
}

#[tokio::test]
async fn accounts_are_listed_by_page() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).budget(BUDGET).run().await;
    for user in ["ann", "bob", "c&d e", "dan", "eve"] {
        gateway.hello("upstream/m").user(user).send().await.expect(200);
    }
    gateway.wait_for_records(5).await;
    let all: Vec<String> = gateway.budgets().await.into_iter().map(|row| row.account).collect();
    assert_eq!(all.len(), 5, "{all:?}");

    let (mut pages, mut next) = (Vec::new(), Some("/api/budgets?limit=2".to_owned()));
    while let Some(path) = next {
        let page = gateway.admin_get(&path).await.expect(200);
        let rows = page.json();
        let rows = rows.as_array().expect("a list");
        assert!(!rows.is_empty() && rows.len() <= 2, "{rows:?}");
        pages.extend(rows.iter().map(|row| row["account"].as_str().expect("a key").to_owned()));
        next = page.header("link").map(|link| {
            let link = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\""));
            link.expect("a link to the next page").to_owned()
        });
    }
    assert_eq!(pages, all);
}
