//! The command line: what it prints, and with which code it ends.

use std::{
    io::Write as _,
    process::{Output, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{DEADLINE, Gateway, eventually, gateway::Setup, sha256};

/// `tollgate ARGUMENTS` in an empty directory, with `input` on its standard input.
fn run_with(arguments: &[&str], input: &str) -> Output {
    let setup = Gateway::yaml("");
    let mut command = setup.command(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that reads nothing may be gone already.
    let _ = child.stdin.take().expect("piped above").write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn run(arguments: &[&str]) -> Output {
    run_with(arguments, "")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn count_prints_one_line_of_tokens_per_line() {
    // The counts of the encodings are those that OpenAI's cookbook gives; a chat adds 3 per message and 3 for the reply.
    let cases = [
        (json!({"encoding": "cl100k_base", "text": "tiktoken is great!"}), 6),
        (json!({"encoding": "cl100k_base", "text": "antidisestablishmentarianism"}), 6),
        (json!({"encoding": "cl100k_base", "text": "2 + 2 = 4"}), 7),
        (json!({"encoding": "o200k_base", "text": "2 + 2 = 4"}), 7),
        (json!({"encoding": "cl100k_base", "text": "お誕生日おめでとう"}), 9),
        (json!({"encoding": "o200k_base", "text": "お誕生日おめでとう"}), 8),
        (json!({"encoding": "cl100k_base", "text": ""}), 0),
        (json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}), 8),
        (json!({"model": "gpt-4", "messages": [{"role": "user", "content": "hello"}]}), 8),
    ];
    let input: String = cases.iter().map(|(line, _)| format!("{line}\n")).collect();

    let output = run_with(&["count"], &input);

    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said: Vec<Value> = stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(said.len(), cases.len());
    for (said, (asked, tokens)) in said.iter().zip(&cases) {
        assert_eq!(said["tokens"], *tokens, "{asked}");
    }
}

#[test]
fn the_schema_is_json_and_the_committed_one_is_fresh() {
    let output = run(&["schema"]);

    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let schema: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(schema["$schema"].is_string() && schema["properties"]["providers"].is_object(), "{schema}");
    let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/schema.json"))
        .expect("config/schema.json");
    assert_eq!(
        committed.trim_end(),
        stdout(&output).trim_end(),
        "write it again: tollgate schema > config/schema.json"
    );
}

/// A gateway without any key, whose key store is in its data directory.
fn keyless() -> Setup {
    let setup = Gateway::bare().provider("sim", "kind: simulated").model("support", "target: sim/m");
    let setup = setup.env("TOLLGATE_CONFIG", "tollgate.yaml");
    std::fs::write(setup.config_path(), setup.text()).unwrap();
    setup
}

fn create_key(setup: &Setup) -> Value {
    let output = setup.command(&["keys", "create", "--name", "web", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

#[test]
fn a_new_key_is_random_and_shown_with_its_hash() {
    let (first, second) = (create_key(&keyless()), create_key(&keyless()));

    let secret = first["secret"].as_str().expect("a secret");
    assert!(secret.len() >= 32 + 4, "192 random bits take 32 characters: {secret}");
    assert_eq!(first["hash"], json!(format!("sha256:{}", sha256(secret.as_bytes()))));
    assert_ne!(first["secret"], second["secret"]);
}

#[tokio::test]
async fn a_new_keys_hash_in_a_configuration_lets_the_secret_in_and_nothing_else() {
    let created = create_key(&keyless());
    let (secret, hash) = (created["secret"].as_str().unwrap(), created["hash"].as_str().unwrap());
    let keys = format!("[ {{ name: web, hash: \"{hash}\" }} ]");
    let gateway = Gateway::bare()
        .provider("sim", "kind: simulated")
        .model("support", "target: sim/m")
        .top("keys", &keys)
        .run()
        .await;

    gateway.get("/v1/models").key(secret).send().await.expect(200);
    gateway.get("/v1/models").key(hash).send().await.expect(401);
}

#[tokio::test]
async fn a_key_that_is_created_and_revoked_beside_a_running_gateway_holds_within_seconds() {
    let setup = keyless();
    let gateway = setup.clone().run().await;

    let created = create_key(&setup);
    let secret = created["secret"].as_str().unwrap();
    let list = |status| {
        eventually(
            "the key's change is taken up",
            Duration::from_secs(5),
            || gateway.get("/v1/models").key(secret).send_owned(),
            move |response| response.status == status,
        )
    };
    list(200).await;
    let listed = setup.command(&["keys", "list", "--json"]).output().unwrap();
    assert!(stdout(&listed).contains("web") && !stdout(&listed).contains(secret), "{}", stdout(&listed));
    let revoked = setup.command(&["keys", "revoke", "web"]).output().unwrap();

    assert_eq!(revoked.status.code(), Some(0), "{}", stderr(&revoked));
    list(401).await;
}

#[test]
fn wrong_use_and_wrong_configuration_exit_with_2() {
    let cases: [&[&str]; 6] = [
        &["nonsense"],
        &["serve", "--nonsense"],
        &["check", "not-there.yaml"],
        &["serve", "--config", "not-there.yaml"],
        &["keys"],
        &["completions", "nonsense"],
    ];
    for arguments in cases {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty(), "{arguments:?} says why");
    }
}

/// `tollgate ARGUMENTS` whose reader has closed the pipe, as `head` does.
fn run_unread(arguments: &[&str]) -> Output {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let setup = keyless();
    let mut command = setup.command(arguments);
    command.stdout(writer).stderr(Stdio::piped()).output().unwrap()
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    for arguments in
        [&["completions", "zsh"][..], &["prices", "show", "gpt-4o"], &["keys", "list"], &["prompts", "lint"]]
    {
        let output = run_unread(arguments);
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()), "{arguments:?}");
    }
    // But a secret that nobody has read is lost.
    let output = run_unread(&["keys", "create", "--name", "web"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("the key was made, but cannot be shown"), "{}", stderr(&output));
}

#[test]
fn a_command_that_there_is_not_names_the_nearest() {
    let output = run(&["srve"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stderr(&output),
        "tollgate: there is no command `srve`; did you mean `serve`? `tollgate --help` lists those there are\n"
    );
}

#[test]
fn what_cannot_be_used_is_named_with_its_file_and_its_code() {
    let setup = keyless().top("records", "sqlite");
    std::fs::write(setup.config_path(), setup.text()).unwrap();
    let damaged = |file: &str| {
        let data = setup.directory().join("data");
        let _ = std::fs::remove_dir_all(&data);
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join(file), "no database, though longer than the header of one; ".repeat(99)).unwrap();
        let output = setup.command(&["serve"]).output().unwrap();
        (output.status.code(), stderr(&output))
    };
    for file in ["keys.sqlite", "ledger.db", "calls.db"] {
        let (code, said) = damaged(file);
        let last = said.lines().last().unwrap();
        assert_eq!(code, Some(3), "{said}");
        assert!(last.contains(file) && last.matches("file is not a database").count() == 1, "{last}");
    }

    std::fs::remove_dir_all(setup.directory().join("data")).unwrap();
    std::fs::write(setup.directory().join("data"), "a file").unwrap();
    let output = setup.command(&["serve"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));

    let away = setup.top("records", "\"postgres://ann:hunter2@127.0.0.1:1/calls\"");
    std::fs::write(away.config_path(), away.text()).unwrap();
    let output = away.command(&["calls", "tail"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = stderr(&output);
    assert!(said.contains("PostgreSQL at 127.0.0.1:1/calls: ") && !said.contains("hunter2"), "{said}");
}

#[test]
fn a_schema_that_no_build_knows_is_refused() {
    for (version, newest) in [("99", "this build knows 0 to"), ("-1", "")] {
        let output = run(&["calls", "--data-dir", "data", "migrate", &format!("--to={version}")]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(newest), "{}", stderr(&output));
    }
}

#[test]
fn help_and_version_exit_with_0() {
    for arguments in [["--help"], ["--version"]] {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
    let help = stdout(&run(&["--help"]));
    for command in ["serve", "demo", "check", "schema", "keys", "count"] {
        assert!(help.contains(command), "{command} is not in {help}");
    }
}

#[test]
fn completions_are_printed() {
    let output = run(&["completions", "bash"]);

    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("tollgate"));
}

#[test]
fn a_port_that_is_taken_is_said_and_exits_with_3() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let yaml = format!(
        "server: {{ listen: \"{}\", admin: \"127.0.0.1:0\" }}\nproviders: {{ sim: {{ kind: simulated }} }}\nauth: none\n",
        taken.local_addr().unwrap()
    );
    let setup = Gateway::yaml(yaml);
    std::fs::write(setup.config_path(), setup.text()).unwrap();

    let output = setup.command(&["serve", "--config", "tollgate.yaml"]).stdin(Stdio::null()).output().unwrap();

    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(
        said.contains("server.listen cannot listen on 127.0.0.1:") && said.contains("stop the process that has it"),
        "{said}"
    );
    assert_eq!(said.matches("in use").count(), 1, "{said}");
}

#[tokio::test]
async fn a_demo_needs_no_key_and_ends_by_itself_when_told_once() {
    let setup = Gateway::yaml("");
    let mut child = setup
        .command(&["demo", "--once"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();

    let mut status = None;
    crate::support::wait_until("the demo ends", 3 * DEADLINE, || {
        status = child.try_wait().unwrap();
        status.is_some()
    })
    .await;

    assert_eq!(status.unwrap().code(), Some(0));
}
