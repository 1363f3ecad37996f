//! `tollgate costs`: sums, forecasts, bills, what-ifs, and the comparison with a provider's statement, over a log written by hand.

use serde_json::{Value, json};
use tollgate::{
    record::{CallRow, Feedback, Rating},
    store::records::{ports::CallLog, sqlite::Sqlite},
};

use crate::support::{
    Gateway, Upstream,
    calls::{self, BEGIN_MS, DAY_MS, row},
    gateway::Setup,
};

/// Ten calls of product's on the 1st and 2nd of November, five of research's, which went to gpt-4o-mini, on the 2nd.
fn november() -> Vec<CallRow> {
    let product = (0..10).map(|n| row(BEGIN_MS + (n % 2) * DAY_MS + n * 1000, n));
    let research = (10..15).map(|n| CallRow {
        team: Some("research".into()),
        model: "cheap".into(),
        target: Some("openai/gpt-4o-mini".into()),
        prompt: None,
        tags: [("job".into(), "batch".into())].into(),
        streamed: false,
        cost_nanousd: 195_000,
        ..row(BEGIN_MS + DAY_MS + n * 1000, n)
    });
    product.chain(research).collect()
}

/// A directory with a log of `rows`.
async fn logged(rows: Vec<CallRow>) -> Setup {
    let setup = Gateway::yaml("");
    calls::write(&directory(&setup).join("data"), rows).await;
    setup
}

fn directory(setup: &Setup) -> std::path::PathBuf {
    setup.config_path().parent().unwrap().to_owned()
}

fn costs(setup: &Setup, arguments: &[&str]) -> (String, String, Option<i32>) {
    let data = directory(setup).join("data");
    let arguments = [&["costs"], arguments, &["--data-dir", data.to_str().unwrap()]].concat();
    let output = setup.command(&arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code())
}

fn json_of(setup: &Setup, arguments: &[&str]) -> Value {
    let (out, said, code) = costs(setup, &[arguments, &["--json"]].concat());
    assert_eq!(code, Some(0), "{arguments:?}: {said}");
    serde_json::from_str(&out).unwrap()
}

#[tokio::test]
async fn costs_are_summed_by_what_is_asked_for() {
    let setup = logged(november()).await;
    let cases = [
        ("team", [("product", 10, 32_500_000), ("research", 5, 975_000)]),
        ("model", [("support", 10, 32_500_000), ("cheap", 5, 975_000)]),
        ("prompt", [("greeting", 10, 32_500_000), ("", 5, 975_000)]),
        ("tag:job", [("", 10, 32_500_000), ("batch", 5, 975_000)]),
        ("day", [("2026-11-01", 5, 16_250_000), ("2026-11-02", 10, 17_225_000)]),
    ];
    for (by, expected) in cases {
        let sums = json_of(&setup, &["--by", by, "--month", "2026-11"]);
        let rows: Vec<(&str, u64, u64)> = sums["rows"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| {
                (row["value"].as_str().unwrap(), row["calls"].as_u64().unwrap(), row["cost_nanousd"].as_u64().unwrap())
            })
            .collect();
        assert_eq!(rows, expected, "{by}");
        assert_eq!(sums["total"]["cost_nanousd"], 33_475_000, "{by}");
    }
    let (none, _, _) = costs(&setup, &["--by", "team", "--month", "2026-10"]);
    assert!(none.lines().last().unwrap().starts_with("total                0"), "{none}");
    let (csv, _, _) = costs(&setup, &["--by", "team", "--month", "2026-11", "--team", "research", "--csv"]);
    assert_eq!(csv.lines().nth(1), Some("research,5,0,0,5000,1000,500,150,0.000975"));
}

#[tokio::test]
async fn the_current_month_has_a_forecast() {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let midnight = now / DAY_MS * DAY_MS;
    // Each of the last three weeks' days cost the same, so that every month ends at that times its days.
    let rows =
        (1..=21).map(|back| CallRow { cost_nanousd: 1_000_000_000, ..row(midnight - back * DAY_MS, back) }).collect();
    let setup = logged(rows).await;

    let forecast = json_of(&setup, &[])["forecast"].clone();
    let (table, _, _) = costs(&setup, &["--by", "day"]);

    assert_eq!(forecast["days"], 21);
    assert_eq!(forecast["range"]["low_nanousd"], forecast["range"]["high_nanousd"], "days that never differed");
    assert!(table.contains("This month will come to about") && table.contains("(21 whole days known)"), "{table}");
}

#[tokio::test]
async fn outcomes_are_worth_what_is_said() {
    let setup = logged(november()).await;
    let said = |n: u64, value: Rating| Feedback {
        id: row(BEGIN_MS + n, n).id,
        call: Some(format!("call-{n}").into()),
        session: None,
        metric: "resolved".into(),
        value,
        source: "client".into(),
        comment: None,
        key: "web".into(),
        team: Some("product".into()),
        rated_ms: BEGIN_MS + n,
    };
    let ratings = [
        said(1, Rating::Flag(true)),
        said(2, Rating::Flag(false)),
        said(3, Rating::Number(2.0)),
        said(4, Rating::Text("x".into())),
    ];
    let log = Sqlite::open(&directory(&setup).join("data")).unwrap();
    log.rate(ratings.into()).await.unwrap();

    let value = json_of(&setup, &["--month", "2026-11", "--value", "resolved=0.10USD"])["value"].clone();
    let (table, _, _) = costs(&setup, &["--month", "2026-11", "--value", "resolved=0.10USD"]);
    let (_, refused, code) = costs(&setup, &["--value", "resolved=0.10USD", "--team", "product"]);

    assert_eq!(value, json!({"ratings": 3, "sum": 3.0, "value_nanousd": 300_000_000}));
    assert!(table.contains("worth 0.30 USD, 9.0 times what was spent"), "{table}");
    assert_eq!(code, Some(2), "{refused}");
}

#[tokio::test]
async fn a_bill_has_a_row_for_each_team_model_and_month() {
    let mut rows = november();
    rows.push(CallRow { team: None, cost_nanousd: 1, cache_write_tokens: 7, ..row(BEGIN_MS - 1, 99) });
    let setup = logged(rows).await;

    let (bill, said, code) =
        costs(&setup, &["chargeback", "--since", "2026-10-01T00:00:00Z", "--until", "2026-12-01T00:00:00Z"]);

    assert_eq!(code, Some(0), "{said}");
    let lines: Vec<&str> = bill.lines().skip(1).collect();
    assert_eq!(
        lines,
        [
            "2026-10,,support,1,793,200,7,100,30,0,0.000000001",
            "2026-11,product,support,10,8000,2000,0,1000,300,0,0.0325",
            "2026-11,research,cheap,5,4000,1000,0,500,150,0,0.000975",
        ]
    );
}

#[tokio::test]
async fn another_models_price_is_taken_for_each_call() {
    let setup = logged(november()).await;
    let arguments = ["what-if", "--model", "gpt-4o-mini", "--instead-of", "gpt-4o", "--month", "2026-11"];

    let found = json_of(&setup, &arguments);
    let (table, _, _) = costs(&setup, &arguments);
    let (_, said, code) = costs(&setup, &["what-if", "--model", "no-such-model"]);

    assert_eq!(found["model"], "openai/gpt-4o-mini");
    // 800 plain, 200 cached, 100 output tokens: 120 + 15 + 60 micro-dollars, ten times.
    assert_eq!(
        found["total"],
        json!({"target": "", "calls": 10, "cost_nanousd": 32_500_000, "would_nanousd": 1_950_000})
    );
    assert!(table.contains("another tokenizer counts the same text differently"), "{table}");
    assert_eq!(code, Some(2), "{said}");
}

#[tokio::test]
async fn the_dashboard_and_the_api_say_what_calls_would_have_cost_too() {
    let upstream = Upstream::run().await;
    let setup = Gateway::before(&upstream).top("records", "sqlite").top("data_dir", "data");
    let now_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap();
    let logged = november().into_iter().enumerate().map(|(n, row)| CallRow { received_ms: now_ms - n as u64, ..row });
    calls::write(&directory(&setup).join("data"), logged.collect()).await;
    let gateway = setup.run().await;
    let get = |path: &'static str| gateway.admin_get(path);

    let found = get("/api/costs/what-if?model=gpt-4o-mini&instead_of=gpt-4o&since=1d").await.expect(200).json();
    assert_eq!(
        (&found["model"], &found["total"], &found["is_cut"]),
        (
            &json!("openai/gpt-4o-mini"),
            &json!({"target": "", "calls": 10, "cost_nanousd": 32_500_000, "would_nanousd": 1_950_000}),
            &json!(false)
        )
    );
    let page = get("/costs?model=gpt-4o-mini&since=1d&lang=de").await.expect(200).text();
    for words in [
        "Mit openai&#x2f;gpt-4o-mini hätten 15 Aufrufe",
        "−0,0306 $",
        "<th scope=\"row\">openai&#x2f;gpt-4o</th>",
        "6,0 %",
    ] {
        assert!(page.contains(words), "{words}: {page}");
    }
    let form = get("/costs").await.expect(200).text();
    assert!(form.contains("<option>cheap</option>") && !form.contains("would have cost $"), "{form}");
    let refused = get("/costs?model=no-such-model").await.expect(200).text();
    assert!(refused.contains("role=\"alert\"") && refused.contains("`no-such-model` has no price"), "{refused}");
    let nothing = get("/costs?model=gpt-4o&team=nobody").await.expect(200).text();
    assert!(nothing.contains("No call is like that."), "{nothing}");
    for wrong in
        ["/api/costs/what-if?model=no-such-model", "/api/costs/what-if", "/api/costs/what-if?model=gpt-4o&tag=x"]
    {
        get(wrong).await.expect(400);
    }
}

#[tokio::test]
async fn a_providers_statement_is_compared_by_day_and_model() {
    let mut rows = november();
    rows.iter_mut().for_each(|row| row.cost_nanousd *= 1000);
    let setup = logged(rows).await;
    let statement = |second_day: &str| {
        let head = "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,line_item\n";
        let lines = format!(
            "1793491200,0,,,12.0,usd,\"gpt-4o-2024-08-06, input\"\n1793491200,0,,,4.25,usd,\"gpt-4o-2024-08-06, output\"\n\
             1793577600,0,,,16.25,usd,\"gpt-4o-2024-08-06, input\"\n1793577600,0,,,{second_day},usd,\"gpt-4o-mini-2024-07-18, input\"\n"
        );
        let path = directory(&setup).join("statement.csv");
        std::fs::write(&path, format!("{head}{lines}")).unwrap();
        path
    };
    let compare = |path: &std::path::Path| {
        costs(&setup, &["reconcile", path.to_str().unwrap(), "--provider", "openai", "--tolerance", "1%"])
    };

    let (same, said, code) = compare(&statement("0.975"));
    assert_eq!(code, Some(0), "{same}{said}");
    assert!(same.contains("Both agree"), "{same}");

    let (apart, _, code) = compare(&statement("2.0"));
    assert_eq!(code, Some(1), "{apart}");
    let marked: Vec<&str> = apart.lines().filter(|line| line.ends_with("<-")).collect();
    assert!(marked.len() == 2 && marked[0].starts_with("2026-11-02 gpt-4o-mini"), "{apart}");
    assert!(marked[0].contains("-1.025"), "{apart}");

    let (_, said, code) = compare(&setup.config_path());
    assert_eq!(code, Some(2), "{said}");
}

#[tokio::test]
async fn advice_says_what_it_would_save_and_how_that_is_known() {
    let mut rows = november();
    rows.iter_mut().for_each(|row| {
        row.input_tokens *= 100;
        row.cost_nanousd *= 100;
    });
    rows.extend((100..1100).map(|n| CallRow {
        streamed: false,
        prompt: None,
        tags: [("job".into(), "batch".into())].into(),
        ..row(BEGIN_MS + n, n)
    }));
    let setup = logged(rows).await;

    let advice = json_of(&setup, &["advice", "--month", "2026-11"]);

    let [cache, batches, _models] = &advice["advice"].as_array().unwrap()[..] else { panic!("{advice}") };
    // Nine calls with one prompt: 100,000 tokens, of which 200 were cached. At half the price of 2.5 USD/1M, that saves
    // 99,800 × 1.25 micro-dollars each.
    assert_eq!(cache["rows"][0]["saved_nanousd_max"], 9 * 99_800 * 1250, "{advice}");
    assert_eq!(cache["rows"][0]["uncached_tokens"], 9 * 99_800);
    // A thousand calls; in a batch, plain input and output are half the price, and cached input is no cheaper than plain:
    // 800 × 1.25 + 100 × 5 micro-dollars less.
    assert_eq!(batches["rows"][0]["saved_nanousd_max"], 1000 * 1_500_000, "{advice}");
    assert!(batches["method"].as_str().unwrap().contains("An upper bound"));
}
