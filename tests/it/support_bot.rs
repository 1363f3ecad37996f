//! The example's README is followed to the letter: its commands, one after the other, and what it says that they show.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

/// All of it together; a quarter of this on a machine that has nothing else to do.
const PATIENCE: &str = "300";

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/support-bot")
}

/// Commands of the page, and what it says that they show.
struct Step<'p> {
    commands: &'p str,
    shown: Option<&'p str>,
}

/// Each block of commands, with the block of output that follows it before the next one.
fn steps(page: &str) -> Vec<Step<'_>> {
    let parts = page.split("\n```sh\n").skip(1);
    let steps = parts.map(|part| {
        let (commands, rest) = part.split_once("\n```\n").expect("a fence that ends");
        let shown =
            rest.split_once("\n```text\n").map(|(_, shown)| shown.split("\n```\n").next().expect("a first part"));
        Step { commands, shown }
    });
    steps.collect()
}

/// What a terminal would have seen of each step, by one shell that ran them all.
fn followed(steps: &[Step<'_>], directory: &Path) -> Vec<String> {
    let folder = directory.join("support-bot");
    copy(&example(), &folder);
    let output = |index: usize| directory.join(format!("output-{index}"));
    let blocks = steps
        .iter()
        .enumerate()
        .map(|(index, step)| format!("{{\n{}\n}} > '{}' 2>&1 < /dev/null\n", step.commands, output(index).display()));
    // What was started in the background ends with the script, wherever that ends.
    let script = format!("trap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT\n{}", blocks.collect::<String>());
    fs::write(directory.join("script"), script).unwrap();

    let [port, admin_port] = free_ports();
    let binaries = Path::new(env!("CARGO_BIN_EXE_tollgate")).parent().expect("in a directory").display();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = Command::new("timeout");
    shell
        .args([PATIENCE, "bash", "-euo", "pipefail", "../script"])
        .current_dir(&folder)
        .stdin(Stdio::null())
        .env_clear();
    shell.envs([("PATH", format!("{binaries}:{path}")), ("PORT", port), ("ADMIN_PORT", admin_port)]);
    let ended = shell.output().expect("timeout and bash");

    let read = |index| fs::read_to_string(output(index)).unwrap_or_default();
    let outputs: Vec<String> = (0..steps.len()).map(read).collect();
    let log = || fs::read_to_string(folder.join("serve.log")).unwrap_or_default();
    assert!(ended.status.success(), "{ended:?}\n{}\n--- serve.log\n{}", outputs.join("\n---\n"), log());
    outputs
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            // What somebody's own tour has left.
            true if entry.file_name() == "data" || entry.file_name() == "runs" => {}
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

fn free_ports() -> [String; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port().to_string())
}

/// A line without its numbers and its spacing, which differ from run to run; `v1` is a name.
fn shape(line: &str) -> String {
    let (mut shape, mut before, mut in_number) = (String::new(), ' ', false);
    for c in line.chars() {
        in_number = match in_number {
            true => c.is_ascii_digit() || c == '.',
            false => c.is_ascii_digit() && !before.is_alphanumeric(),
        };
        match in_number {
            true if before.is_ascii_digit() || before == '.' => {}
            true => shape.push('0'),
            false if c.is_whitespace() => {}
            false => shape.push(c),
        }
        before = c;
    }
    shape
}

/// Whether a line was printed, but for numbers and for what `…` stands for.
fn is_printed(shown: &str, output: &str) -> bool {
    let parts: Vec<String> = shown.split('…').map(shape).collect();
    output.lines().map(shape).any(|line| {
        let mut rest = Some(line.as_str());
        for part in &parts {
            rest = rest.and_then(|rest| rest.split_once(part.as_str())).map(|(_, rest)| rest);
        }
        rest.is_some()
    })
}

#[test]
fn the_support_bot_gets_better_as_its_page_says() {
    let page = fs::read_to_string(example().join("README.md")).unwrap();
    let (steps, directory) = (steps(&page), TempDir::new().unwrap());

    let outputs = followed(&steps, directory.path());

    for (step, output) in steps.iter().zip(&outputs) {
        let lines = step.shown.into_iter().flat_map(str::lines).filter(|line| !matches!(line.trim(), "" | "…"));
        for line in lines {
            assert!(
                is_printed(line, output),
                "the page shows `{line}` for\n{}\nbut there came\n{output}",
                step.commands
            );
        }
    }
    let said = |command: &str| -> Vec<&str> {
        let those = steps.iter().zip(&outputs).filter(|(step, _)| step.commands.contains(command));
        those.map(|(_, output)| output.as_str()).collect()
    };
    let live = said("eval run suites/live.yaml");
    assert!(live[0].contains("FAIL") && live[0].contains("exit code 1"), "v1 does not pass: {}", live[0]);
    assert!(live[1].contains("pass") && !live[1].contains("FAIL"), "what was promoted does: {}", live[1]);
    let compared = said("eval run suites/support.yaml")[0];
    assert!(compared.contains("pass") && !compared.contains("FAIL"), "v2 passes: {compared}");
    let reports = said("experiments report facts");
    assert!(reports[0].contains("keep running: "), "{}", reports[0]);
    assert!(reports[1].contains("facts is better: resolved +"), "{}", reports[1]);
    let served: Vec<bool> =
        said("Is there a warranty?").iter().map(|reply| reply.contains("warranty of 5 years")).collect();
    assert_eq!(served, [false, true, false], "before, promoted, rolled back");
    let junit = fs::read_to_string(directory.path().join("support-bot/report.xml")).unwrap();
    assert!(junit.contains("<testsuite"), "{junit}");
}

#[test]
fn a_page_that_shows_something_else_would_be_noticed() {
    let output = "contains  v2   0.960  48 of 50\nfacts is better: resolved +38 points (25 to 51)\n";
    for (shown, printed) in [
        ("contains  v2  0.955  47 of 50", true),
        ("facts is better: …", true),
        ("…resolved +40 points…", true),
        ("contains  v1  0.960  48 of 50", false),
        ("facts is worse: …", false),
    ] {
        assert_eq!(is_printed(shown, output), printed, "{shown}");
    }
}
