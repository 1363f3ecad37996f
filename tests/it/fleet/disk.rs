//! A disk that is full, or may not be written: strict budgets refuse, others go on, and afterwards everything is as it was. One that is
//! slow: whoever has money does not wait for it.
//!
//! The data directory is a small file system in a mount namespace of its own: nothing of it is left once its holder has ended. What is
//! slow is what waits for a disk, the C library's `fsync` and `fdatasync`: others take their place in the gateway's process.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::support::{
    Budget, DEADLINE, Gateway, KEY, Upstream, eventually,
    fleet::{BOUND, Load, billed, billing_upstream, costing, member, percentile, statuses, team_budget},
    gateway::Setup,
    redis::RedisServer,
    wait_until,
};

/// A key without a budget, and one whose budget only warns.
const FREE: &str = "tg-test-free-0123456789abcdef0123456789abcdef";
const WARNED: &str = "tg-test-warned-0123456789abcdef0123456789abcdef";
/// More calls than fit into what is left of the journal's last page.
const CALLS_MAX: usize = 200;

/// A file system of 8 MiB at a path that only its holder, and whoever enters there, can see.
struct SmallDisk {
    holder: Child,
    at: PathBuf,
}

impl SmallDisk {
    fn mount(at: PathBuf) -> SmallDisk {
        std::fs::create_dir_all(&at).unwrap();
        // Who is not root becomes it in a user namespace.
        let kind = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
        let script = "mount -t tmpfs -o size=8m tollgate-test \"$0\" && echo mounted && exec sleep 600";
        let mut holder = Command::new("unshare")
            .args([kind, "sh", "-c", script])
            .arg(&at)
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is needed for this test: apt-get install util-linux");
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "mounted\n", "a file system can be mounted in a namespace of one's own");
        SmallDisk { holder, at }
    }

    /// The command that enters where the disk can be seen.
    fn entrance(&self) -> Vec<String> {
        let mut words = vec!["nsenter".to_owned(), format!("--target={}", self.holder.id()), "--mount".to_owned()];
        if !rustix::process::geteuid().is_root() {
            words.extend(["--user".to_owned(), "--preserve-credentials".to_owned()]);
        }
        words
    }

    fn remount(&self, how: &str) {
        let mut words = self.entrance();
        words.extend(["mount", "-o", &format!("remount,{how}")].map(str::to_owned));
        let status = Command::new(&words[0]).args(&words[1..]).arg(&self.at).status().unwrap();
        assert!(status.success(), "remount {how}");
    }

    /// The disk as it is seen from here.
    fn path(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.at.strip_prefix("/").expect("an absolute path"))
    }

    /// Leaves no byte free.
    fn fill(&self) {
        let mut filler = File::create(self.path().join("filler")).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
        let mut rest = OpenOptions::new().append(true).open(self.path().join("filler")).unwrap();
        while rest.write_all(&[0]).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ended = self.holder.kill();
        let _ended = self.holder.wait();
    }
}

/// A strict, a lenient and no budget, with the data directory on a small disk.
fn on_a_small_disk(upstream: &Upstream, store: &str) -> (Setup, SmallDisk) {
    let setup = member(upstream, store)
        .key("free", FREE, r#", team: none, models: ["*"]"#)
        .key("warned", WARNED, r#", team: green, models: ["*"]"#)
        .budget(&team_budget("limit: 100 USD"))
        .budget("name: lenient, scope: { team: green }, per: total, clamp: off, limit: 100 USD, mode: warn")
        .top("ledger", "{ sync: 100ms, budget_wait: 10s }");
    let disk = SmallDisk::mount(setup.directory().join("small"));
    let entrance = disk.entrance();
    let words: Vec<&str> = entrance.iter().map(String::as_str).collect();
    let data = disk.at.join("data");
    (setup.behind(&words).top("data_dir", data.to_str().expect("UTF-8")), disk)
}

async fn status(gateway: &Gateway, key: &str) -> u16 {
    gateway.post("/v1/chat/completions").key(key).json(&costing(1000)).send().await.status
}

/// The team's account, once nothing is reserved.
async fn settled(gateway: &Gateway) -> Budget {
    let none = |budget: &Budget| budget.reserved_nanousd == 0;
    eventually("every reservation is settled", DEADLINE, || gateway.budget("all"), none).await
}

fn refused_start(setup: &Setup) -> Output {
    let config = setup.config_path();
    setup.command(&["serve", "--config", config.to_str().expect("UTF-8")]).output().unwrap()
}

/// What an operator is told, and what when it is over.
struct Alarm {
    raised: &'static str,
    over: &'static str,
}

async fn a_full_disk(store: &str, alarm: Alarm) {
    let upstream = billing_upstream().await;
    let (setup, disk) = on_a_small_disk(&upstream, store);
    let gateway = setup.run().await;
    for key in [KEY, FREE, WARNED] {
        assert_eq!(status(&gateway, key).await, 200);
    }

    disk.fill();
    let mut strict = 1;
    while status(&gateway, KEY).await == 200 {
        strict += 1;
        assert!(strict < CALLS_MAX, "a strict budget goes on though nothing can be written");
    }
    for _ in 0..10 {
        let refused = gateway.post("/v1/chat/completions").key(KEY).json(&costing(1000)).send().await.expect(503);
        assert_eq!(refused.error_code(), "store_unavailable");
        assert!(refused.header("retry-after").is_some());
        assert_eq!((status(&gateway, FREE).await, status(&gateway, WARNED).await), (200, 200));
    }
    let said = |line: &str| gateway.log_text().matches(line).count();
    wait_until("an alarm is raised", DEADLINE, || said(alarm.raised) > 0).await;

    disk.free();
    eventually("strict calls pass again", DEADLINE, || status(&gateway, KEY), |status| *status == 200).await;
    strict += 1;
    wait_until("the alarm is over", DEADLINE, || said(alarm.over) > 0).await;
    assert_eq!((said(alarm.raised), said(alarm.over)), (1, 1), "a line per change of state");
    assert_eq!(settled(&gateway).await.charged_nanousd as u64, strict as u64 * BOUND);

    // Killed while the disk is full: it does not start until there is room, says why, and then knows everything.
    disk.fill();
    let setup = gateway.kill();
    let output = refused_start(&setup);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{told}");
    assert!(["No space left", "disk is full"].iter().any(|why| told.contains(why)), "{told}");
    disk.free();
    let gateway = setup.start().await;
    let charged = |budget: &Budget| budget.charged_nanousd as u64 == strict as u64 * BOUND;
    eventually("the ledger opens clean", DEADLINE, || gateway.budget("all"), charged).await;
    assert_eq!(status(&gateway, KEY).await, 200);
    assert!(billed(&upstream) > 0 && !gateway.log_text().contains("cannot be trusted"), "{}", gateway.log_text());
}

/// Reliability 19.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_strict_budgets_refuse_and_others_go_on_with_the_ledger_in_redis() {
    let redis = RedisServer::start();
    let alarm = Alarm { raised: "calls cannot be written down", over: "calls can be written down again" };
    a_full_disk(&redis.url(), alarm).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_strict_budgets_refuse_and_others_go_on_with_the_ledger_on_it() {
    // The purse runs dry before the journal's last page is full.
    let alarm = Alarm { raised: "the budget store is away", over: "the budget store is back" };
    a_full_disk("embedded", alarm).await;
}

#[tokio::test]
async fn a_data_directory_that_may_not_be_written_is_refused_at_the_start_and_kept_as_it_was() {
    let upstream = billing_upstream().await;
    let (setup, disk) = on_a_small_disk(&upstream, "embedded");
    let gateway = setup.run().await;
    assert_eq!(status(&gateway, KEY).await, 200);
    settled(&gateway).await;
    let setup = gateway.kill();

    disk.remount("ro");
    let output = refused_start(&setup);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{told}");
    assert!(told.contains("small/data") && told.contains("Read-only"), "{told}");

    disk.remount("rw");
    let gateway = setup.start().await;
    let charged = |budget: &Budget| budget.charged_nanousd as u64 == BOUND;
    eventually("the ledger opens clean", DEADLINE, || gateway.budget("all"), charged).await;
}

/// What a sync of a slow disk takes. Less than a second: after that a store counts as away.
const SLOW: Duration = Duration::from_millis(600);
/// As the system's own, but slow while there is a file of the name that `SLOW_DISK` says.
const SLOW_SYNCS: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>
static int slow(const char *name, int fd) {
    const char *mark = getenv("SLOW_DISK");
    if (mark && access(mark, F_OK) == 0) usleep(600000);
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
}
int fsync(int fd) { return slow("fsync", fd); }
int fdatasync(int fd) { return slow("fdatasync", fd); }
"#;

/// The gateway's disk, and the file that makes it slow.
fn on_a_slow_disk(setup: Setup) -> (Setup, PathBuf) {
    let [source, library, mark] = ["slow.c", "slow.so", "slow"].map(|name| setup.directory().join(name));
    std::fs::write(&source, SLOW_SYNCS).unwrap();
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(compiled.expect("a C compiler, as Rust's own linker").success());
    let text = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
    (setup.env("LD_PRELOAD", &text(&library)).env("SLOW_DISK", &text(&mark)), mark)
}

/// Reliability 19.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_slow_disk_calls_with_leased_money_do_not_wait_for_it() {
    let upstream = billing_upstream().await;
    let setup = member(&upstream, "embedded")
        .top("records", "sqlite")
        .top("ledger", "{ sync: 100ms, budget_wait: 10s }")
        .budget(&team_budget("limit: 1000 USD"))
        .budget("name: each, scope: { user: \"*\" }, per: total, clamp: off, limit: 500 USD");
    let (setup, mark) = on_a_slow_disk(setup);
    let gateways = [setup.run().await];
    // Calls a thousand times as dear as the ones that are measured leave purses that last.
    let load = Load::start(&gateways, 8, Duration::ZERO, |_| costing(1000));
    let begun = Instant::now();
    let warm = || begun.elapsed() > Duration::from_millis(1200) && load.count(|outcome| outcome.is(200)) > 100;
    wait_until("the purses hold much", DEADLINE, warm).await;
    File::create(&mark).unwrap();
    load.stop().await;

    let small = |_| {
        let mut body = costing(1);
        body["max_tokens"] = 1.into();
        body
    };
    let load = Load::start(&gateways, 4, Duration::from_millis(10), small);
    let new_account = gateways[0].chat(&costing(1)).user("new");
    let begun = Instant::now();
    new_account.send().await.expect(200);
    let waited = begun.elapsed();
    wait_until("many syncs are waited for", DEADLINE, || begun.elapsed() > 4 * SLOW).await;
    let outcomes = load.stop().await;

    let [half, most] = [50, 99].map(|percent| percentile(&outcomes, percent));
    eprintln!("{} calls, p50 {half:?}, p99 {most:?}; a new account took {waited:?}", outcomes.len());
    assert!(waited >= SLOW, "money is granted once that is on the disk: {waited:?}");
    assert_eq!(statuses(&outcomes).into_keys().collect::<Vec<_>>(), [200]);
    assert!(most < SLOW, "calls wait for the disk: {most:?}");

    std::fs::remove_file(mark).unwrap();
    let exact = |budget: &Budget| budget.reserved_nanousd == 0 && budget.charged_nanousd as u64 == billed(&upstream);
    eventually("the books are the provider's", DEADLINE, || gateways[0].budget("all"), exact).await;
    let metrics = || gateways[0].metrics();
    let metrics = eventually("the log has every call", DEADLINE, metrics, |metrics| {
        metrics.value("tollgate_records_waiting", &[]) == 0.0
    });
    assert_eq!(metrics.await.value("tollgate_records_dropped_total", &[]), 0.0);
}
