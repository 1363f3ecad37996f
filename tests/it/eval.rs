//! Evaluations: suites through a running gateway, with the real command line.

use std::{
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use serde_json::{Value, json};

use crate::support::{
    DEADLINE, Gateway, Upstream, eventually,
    gateway::{KEY, Setup},
    upstream::{Reply, Request, closed_port},
    wait_until,
};

/// Two prompts, of which only the second knows the answers.
const SIMULATED: &str = r#"
server: { listen: "127.0.0.1:0", admin: "127.0.0.1:0" }
auth: none
data_dir: data
providers: { sim: { kind: simulated, time_to_first_token: 1ms, tokens_per_second: 5000 } }
prices: { sim/m: { input: 1 USD/1M, output: 2 USD/1M } }
models: { support: { live: v1, versions: { v1: { target: sim/m, prompt: chatbot } } } }
prompts:
  chatbot:
    live: v1
    versions:
      v1: { system: "Be brief. You help customers of {{ shop }}." }
      v2: { system: "Be brief. You help customers of {{ shop }}.\n- Refunds: within 14 days.\n- Shipping: two days." }
calls: { bodies: full }
"#;

const SUITE: &str = r"
name: shop
dataset:
  cases:
    - { id: refund, input: 'How do I get a <script>refund</script>?', expected: within 14 days., variables: { shop: Müller } }
    - { id: shipping, input: 'How long does shipping take?', expected: two days., variables: { shop: Müller } }
candidates:
  v1: { model: support, prompt: chatbot@v1 }
  v2: { model: support, prompt: chatbot@v2 }
scorers: [ exact, rouge_l, latency, { cost: { max: 0.01 USD } } ]
gates: [ exact >= 0.95, exact no worse than baseline, cost_per_call <= 0.002 USD, error_rate <= 0 ]
";

/// `tollgate eval ARGUMENTS` beside the gateway's configuration.
fn command(setup: &Setup, arguments: &[&str]) -> Command {
    let mut command = setup.command(&[&["eval"], arguments].concat());
    command.env("TOLLGATE_CONFIG", "tollgate.yaml").stdin(Stdio::null());
    command
}

async fn eval(setup: &Setup, arguments: &[&str]) -> Output {
    let mut command = command(setup, arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn said(output: &Output) -> String {
    format!("{}\n--\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn assert_code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}", said(output));
}

fn write(setup: &Setup, name: &str, text: &str) {
    std::fs::write(setup.directory().join(name), text).unwrap();
}

fn read(setup: &Setup, name: &str) -> String {
    std::fs::read_to_string(setup.directory().join(name)).unwrap()
}

fn report(setup: &Setup, dir: &str) -> Value {
    serde_json::from_str(&read(setup, &format!("{dir}/report.json"))).unwrap()
}

async fn simulated() -> (Setup, Gateway, String) {
    let setup = Gateway::yaml(SIMULATED);
    let gateway = setup.clone().run().await;
    let url = format!("http://{}", gateway.listen);
    (setup, gateway, url)
}

#[tokio::test]
async fn gates_decide_the_exit_code_and_every_report_says_the_same() {
    let (setup, gateway, url) = simulated().await;
    write(&setup, "good.yaml", SUITE);
    write(&setup, "bad.yaml", &SUITE.replace("exact >= 0.95", "exact >= 0.95 for v1"));

    let files = ["--json", "out/r.json", "--junit", "out/r.xml", "--html", "out/r.html", "-o", "good"];
    let good = eval(&setup, &[&["run", "good.yaml", "--url", &url], &files[..]].concat()).await;
    let bad = eval(&setup, &["run", "bad.yaml", "--url", &url, "-o", "bad"]).await;

    assert_code(&good, 0);
    assert_code(&bad, 1);
    assert!(said(&good).contains("About 0.00") && said(&good).contains("2 of 2"), "{}", said(&good));
    assert!(said(&bad).contains("FAIL  exact >= 0.95 for v1 (v1): exact is 0.000"), "{}", said(&bad));
    let found: Value = serde_json::from_str(&read(&setup, "out/r.json")).unwrap();
    assert_eq!(found, report(&setup, "good"));
    assert_eq!(
        (&found["candidates"][1]["scores"][0]["passed"], &found["candidates"][1]["prompt"]),
        (&json!(2), &json!("chatbot@v2"))
    );
    assert_eq!(found["cases"][0]["rows"][1]["model"], "sim/m");
    let (xml, html) = (read(&setup, "out/r.xml"), read(&setup, "out/r.html"));
    assert!(xml.contains("<testsuite name=\"shop.v1\" tests=\"2\" failures=\"2\" errors=\"0\""), "{xml}");
    assert!(!html.contains("<script") && html.contains("&lt;script&gt;refund"), "what was asked is escaped");

    // What it cost is what the gateway charged.
    let records = gateway.wait_for_records(8).await;
    let charged: i64 = records.iter().take(4).map(|record| record.number("cost_nanousd")).sum();
    assert_eq!(found["cost_nanousd"], charged);

    let compared = eval(&setup, &["compare", "good", "bad", "--first", "v1", "--second", "v2", "--json"]).await;
    assert_code(&compared, 0);
    let compared: Value = serde_json::from_slice(&compared.stdout).unwrap();
    assert_eq!(compared[0]["differences"][0]["metric"], "exact");
    assert_eq!(compared[0]["differences"][0]["only_candidate"], 2);
}

#[tokio::test]
async fn a_report_that_is_kept_is_listed_and_shown() {
    let (setup, gateway, url) = simulated().await;
    write(&setup, "suite.yaml", SUITE);
    let admin = format!("http://{}", gateway.admin);

    let arguments = ["run", "suite.yaml", "--url", &url, "-o", "run", "--upload", "--admin-url", &admin];
    let first = eval(&setup, &arguments).await;

    assert_code(&first, 0);
    let listed = gateway.admin_get("/api/evaluations?suite=shop").await.expect(200).json();
    let id = listed[0]["id"].as_str().unwrap().to_owned();
    assert!(said(&first).contains(&format!("Kept as {id}")) && listed[0]["candidate"] == "v2, v1", "{listed}");
    let kept = gateway.admin_get(&format!("/api/evaluations/{id}")).await.expect(200).json();
    assert_eq!(kept, report(&setup, "run"));
    let page = gateway.admin_get(&format!("/evaluations/{id}")).await.expect(200).text();
    assert!(page.contains("All gates hold.") && page.contains("within 14 days."), "{page}");
    assert!(page.contains("&lt;script&gt;refund") && !page.contains("<script>refund"), "what was asked is escaped");
    let pages = gateway.admin_get("/evaluations?lang=de").await.expect(200).text();
    assert!(pages.contains(&id) && pages.contains("Evaluationen"), "{pages}");
    gateway.admin_get("/evaluations/none").await.expect(404);
    assert!(!page.contains("action=\"/evaluations/compare\""), "there is no other one yet");
}

#[tokio::test]
async fn reports_that_are_kept_stand_side_by_side() {
    let (setup, gateway, url) = simulated().await;
    write(&setup, "suite.yaml", SUITE);
    let admin = format!("http://{}", gateway.admin);
    for run in ["one", "other"] {
        eval(&setup, &["run", "suite.yaml", "--url", &url, "-o", run, "--upload", "--admin-url", &admin]).await;
    }
    let listed = gateway.admin_get("/api/evaluations?suite=shop").await.expect(200).json();
    let [second, first] = [0, 1].map(|at| listed[at]["id"].as_str().unwrap_or_else(|| panic!("{listed}")).to_owned());

    let page = gateway.admin_get(&format!("/evaluations/{second}")).await.expect(200).text();
    assert!(page.contains(&format!("<option value=\"{first}\">")), "{page}");
    let path = format!("/evaluations/compare?first={first}&second={second}");
    let both = gateway.admin_get(&path).await.expect(200).text();
    assert!(
        both.contains("+0.000") && both.contains("rouge_l") && !both.contains("Cases that only one passed"),
        "{both}"
    );
    let across = format!("{path}&first_candidate=v1&second_candidate=v2&lang=de");
    let across = gateway.admin_get(&across).await.expect(200).text();
    for words in ["v2 gegen v1", "+1,000", "nur beim zweiten bestanden", "<ins>", "&lt;script&gt;refund"] {
        assert!(across.contains(words), "{words}: {across}");
    }
    let none = gateway.admin_get(&format!("{path}&first_candidate=v9")).await.expect(200).text();
    assert!(none.contains("They cannot be compared.") && none.contains("no candidate `v9`"), "{none}");
    gateway.admin_get(&format!("/evaluations/compare?first={first}")).await.expect(404);
}

#[tokio::test]
async fn a_wrong_suite_and_a_gateway_that_is_away_have_codes_of_their_own() {
    let setup = Gateway::yaml(SIMULATED);
    write(&setup, "tollgate.yaml", SIMULATED);
    write(
        &setup,
        "wrong.yaml",
        "name: x\ndataset: { cases: [{ inptu: a }] }\ncandidates: { a: { model: m } }\nscorers: [exact]\n",
    );
    write(&setup, "suite.yaml", SUITE);

    let wrong = eval(&setup, &["run", "wrong.yaml"]).await;
    let away = eval(&setup, &["run", "suite.yaml", "--url", &closed_port().await]).await;
    let dry = eval(&setup, &["run", "suite.yaml", "--dry-run"]).await;
    let untouched = !setup.directory().join("runs").exists();
    let keyed = Setup::run(Gateway::bare().provider("sim", "kind: simulated").top("keys", "[]")).await;
    let stranger =
        eval(&setup, &["run", "suite.yaml", "--url", &format!("http://{}", keyed.listen), "--key", "wrong"]).await;

    assert_code(&wrong, 2);
    assert!(
        said(&wrong).contains("wrong.yaml:2:22: dataset.cases[0].inptu: unknown key; did you mean `input`?"),
        "{}",
        said(&wrong)
    );
    assert_code(&away, 3);
    assert_code(&dry, 0);
    assert!(untouched, "nothing was begun");
    assert_code(&stranger, 2);
    assert!(said(&stranger).contains("refuses the key"), "{}", said(&stranger));
}

/// An answer of 1,000 + 500 tokens, which cost 0.0015 USD where every model costs 1 USD a million.
fn answer(text: &str) -> Reply {
    let usage = json!({"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500});
    let message = json!({"role": "assistant", "content": text});
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
    Reply::json(200, &json!({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage}))
}

/// What the last message says.
fn asked(request: &Request) -> String {
    let body = request.json();
    body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned()
}

/// Ten cases that want their number back, of one candidate, one at a time.
fn counting(more: &str) -> String {
    let cases: String = (0..10).map(|i| format!("    - {{ input: 'case {i}', expected: {i} }}\n")).collect();
    format!(
        "name: count\ndataset:\n  cases:\n{cases}candidates: {{ m: {{ model: upstream/m }} }}\nscorers: [numeric]\ngates: [numeric >= 1]\nconcurrency: 1\n{more}"
    )
}

#[tokio::test]
async fn a_run_that_was_killed_goes_on_where_it_was() {
    let hangs = Arc::new(AtomicBool::new(true));
    let stuck = Arc::clone(&hangs);
    let upstream = Upstream::answering(move |request| {
        let asked = asked(request);
        if asked == "case 4" && stuck.load(SeqCst) { Reply::hang() } else { answer(&asked) }
    });
    let upstream = upstream.await;
    let setup = Gateway::before(&upstream);
    let gateway = setup.clone().run().await;
    let url = format!("http://{}", gateway.listen);
    write(&setup, "suite.yaml", &counting(""));
    write(&setup, "other.yaml", &counting("repeat: 2\n"));
    let arguments = ["run", "suite.yaml", "--url", &url, "--key", KEY];

    let mut first = command(&setup, &[&arguments[..], &["-o", "run"]].concat()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the fifth case is asked", DEADLINE, || upstream.request_count() == 5).await;
    first.kill().unwrap();
    tokio::task::spawn_blocking(move || first.wait().unwrap()).await.unwrap();
    hangs.store(false, SeqCst);
    let again = eval(&setup, &[&arguments[..], &["-o", "run"]].concat()).await;
    let other = eval(&setup, &["run", "other.yaml", "--url", &url, "--key", KEY, "--resume", "run"]).await;
    let resumed = eval(&setup, &[&arguments[..], &["--resume", "run"]].concat()).await;

    assert_code(&again, 2);
    assert!(said(&again).contains("go on with it by `--resume run`"), "{}", said(&again));
    assert_code(&other, 2);
    assert!(said(&other).contains("of another suite"), "{}", said(&other));
    assert_code(&resumed, 0);
    assert_eq!(upstream.request_count(), 5 + 6, "the four that were there are not asked again");
    assert_eq!(report(&setup, "run")["candidates"][0]["scores"][0]["passed"], 10);
}

#[tokio::test]
async fn a_run_ends_before_it_costs_more_than_allowed_and_can_go_on_with_more() {
    let upstream = Upstream::answering(|request| answer(&asked(request))).await;
    let setup = Gateway::before(&upstream);
    let gateway = setup.clone().run().await;
    let url = format!("http://{}", gateway.listen);
    write(&setup, "suite.yaml", &counting("max_cost: 0.005 USD\n"));
    write(&setup, "more.yaml", &counting("max_cost: 0.05 USD\n"));

    let capped = eval(&setup, &["run", "suite.yaml", "--url", &url, "--key", KEY, "-o", "run"]).await;
    let (calls, ended) = (upstream.request_count(), report(&setup, "run"));
    let more = eval(&setup, &["run", "more.yaml", "--url", &url, "--key", KEY, "--resume", "run"]).await;

    assert_code(&capped, 1);
    assert_eq!(calls, 3, "three cost 0.0045 USD: {}", said(&capped));
    assert_eq!(ended["cost_nanousd"], 4_500_000);
    assert!(ended["ended"].as_str().unwrap().contains("max_cost: 0.005 USD"), "{}", ended["ended"]);
    assert_code(&more, 0);
    assert_eq!(upstream.request_count(), 10);
}

#[tokio::test]
async fn what_fails_for_a_moment_is_asked_again_and_what_fails_for_good_is_an_error() {
    let upstream = Upstream::answering(|request| match asked(request).as_str() {
        "case 7" => Reply::json(400, &json!({"error": {"message": "no sevens"}})),
        text => answer(text),
    });
    let upstream = upstream.await;
    upstream.script(Reply::json(503, &json!({"error": {"message": "busy"}})).header("retry-after", "0"));
    let setup = Gateway::before(&upstream);
    let gateway = setup.clone().run().await;
    write(&setup, "suite.yaml", &counting(""));

    let output =
        eval(&setup, &["run", "suite.yaml", "--url", &format!("http://{}", gateway.listen), "--key", KEY, "-o", "run"])
            .await;

    assert_code(&output, 1);
    let report = report(&setup, "run");
    assert_eq!(
        (&report["candidates"][0]["errors"], &report["candidates"][0]["scores"][0]["passed"]),
        (&json!(1), &json!(9))
    );
    let worst = &report["cases"][0]["rows"][0];
    assert!(worst["error"].as_str().unwrap().contains("no sevens"), "{worst}");
    assert_eq!(worst["scores"]["numeric"]["pass"], false);
}

#[tokio::test]
async fn judges_are_asked_in_both_orders_and_held_against_people() {
    // Scores by length; of two answers it takes the longer one, but of equally long ones always the first.
    let upstream = Upstream::answering(|request| {
        let body = request.json();
        if body["model"] != "judge" {
            return answer(&asked(request));
        }
        let said = asked(request);
        let part = |name: &str| {
            let inside = said.split(&format!("[{name} ")).nth(1)?.split_once("]\n")?.1;
            Some(inside.split("\n[end of").next()?.len())
        };
        match (part("answer A"), part("answer B")) {
            (Some(a), Some(b)) => {
                answer(&format!("{{\"reason\": \"longer\", \"better\": \"{}\"}}", if a >= b { "A" } else { "B" }))
            }
            _ if body["messages"].as_array().unwrap().len() == 2 => answer("Five, I would say."),
            _ => answer(&format!("{{\"reason\": \"length\", \"score\": {}}}", if said.is_empty() { 1 } else { 5 })),
        }
    });
    let upstream = upstream.await;
    let setup = Gateway::before(&upstream);
    let gateway = setup.clone().run().await;
    write(
        &setup,
        "suite.yaml",
        "
name: judged
dataset: { file: cases.csv }
candidates: { old: { recorded: on }, new: { model: upstream/m } }
scorers:
  - judge: { model: upstream/judge, rubric: Longer is better., pairwise: on }
  - judge: { model: upstream/judge, rubric: Any answer is good. }
    name: alone
gates: [ judge better than baseline ]
",
    );
    write(
        &setup,
        "cases.csv",
        "id,input,answer,label\nlong,a long question,short,win\nsame,four,five,tie\nless,one,three,win\n",
    );

    let output =
        eval(&setup, &["run", "suite.yaml", "--url", &format!("http://{}", gateway.listen), "--key", KEY, "-o", "run"])
            .await;

    assert_code(&output, 1);
    let report = report(&setup, "run");
    let new = &report["candidates"][1]["scores"][0];
    assert_eq!(new["mean"]["value"], 0.5, "a win, a tie of orders that disagree, and a loss: {new}");
    assert_eq!(new["orders_agree"], json!(2.0 / 3.0));
    assert_eq!((&new["labels"]["cases"], &new["labels"]["observed"]), (&json!(3), &json!(2.0 / 3.0)));
    assert!(new["labels"]["kappa"].as_f64().unwrap() > 0.0, "{new}");
    let alone = &report["candidates"][1]["scores"][1];
    assert_eq!((&alone["scorer"], &alone["passed"], &alone["unscored"]), (&json!("judge.alone"), &json!(3), &json!(0)));
    assert!(
        report["scoring_nanousd"].as_u64().unwrap() > 0 && report["cost_nanousd"] == 4_500_000,
        "apart from the answers"
    );
}

/// Waits until so many calls are in the log.
async fn logged(gateway: &Gateway, count: usize) {
    let rows = || async { gateway.admin_get("/api/calls").await.json().as_array().map_or(0, Vec::len) };
    eventually("the calls are in the log", DEADLINE, rows, |rows| *rows == count).await;
}

#[tokio::test]
async fn recorded_calls_are_asked_again_of_a_candidate() {
    let setup = Gateway::yaml(SIMULATED.replace(" of {{ shop }}", ""));
    let gateway = setup.clone().run().await;
    let url = format!("http://{}", gateway.listen);
    let none = eval(&setup, &["replay", "--model", "support", "--candidate", "support", "--url", &url]).await;
    for (question, stream) in [("A refund?", false), ("Shipping, please", true)] {
        let body = json!({"model": "support", "stream": stream, "messages": [{"role": "user", "content": question}]});
        gateway.post("/v1/chat/completions").json(&body).send().await.expect(200);
    }
    logged(&gateway, 2).await;

    let which = ["replay", "--model", "support", "--candidate", "support", "--prompt", "chatbot@v2"];
    let how = ["--scorer", "rouge_l", "--gate", "rouge_l >= 0.9", "--url", &url, "-o", "run"];
    let replayed = eval(&setup, &[&which[..], &how[..]].concat()).await;

    assert_code(&none, 2);
    assert!(said(&none).contains("the log has no such call"), "{}", said(&none));
    assert_code(&replayed, 1);
    let report = report(&setup, "run");
    let (before, after) = (&report["candidates"][0], &report["candidates"][1]);
    assert_eq!((&before["name"], &before["scores"][0]["mean"]["value"]), (&json!("recorded"), &json!(1.0)));
    assert_eq!((&after["errors"], &after["prompt"]), (&json!(0), &json!("chatbot@v2")));
    let answers: Vec<&Value> =
        report["cases"].as_array().unwrap().iter().map(|case| &case["rows"][1]["answer"]["text"]).collect();
    assert!(answers.contains(&&json!("within 14 days.")) && answers.contains(&&json!("two days.")), "{answers:?}");
    let compared: Vec<&Value> = report["differences"].as_array().unwrap().iter().map(|one| &one["metric"]).collect();
    assert_eq!(compared, [&json!("rouge_l"), &json!("latency"), &json!("cost_per_call")]);
}

#[tokio::test]
async fn without_bodies_a_replay_says_how_to_keep_them() {
    let setup = Gateway::yaml(SIMULATED.replace("calls: { bodies: full }", "").replace(" of {{ shop }}", ""));
    let gateway = setup.clone().run().await;
    gateway
        .post("/v1/chat/completions")
        .json(&json!({"model": "support", "messages": [{"role": "user", "content": "hi"}]}))
        .send()
        .await
        .expect(200);
    logged(&gateway, 1).await;

    let output =
        eval(&setup, &["replay", "--candidate", "support", "--url", &format!("http://{}", gateway.listen)]).await;

    assert_code(&output, 2);
    assert!(said(&output).contains("`calls: { bodies: full }`"), "{}", said(&output));
}
