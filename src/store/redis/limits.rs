//! Rate limits of a fleet: carries what a [`Limiter`] has to say to Redis, and the answers back, once per sync interval.
//!
//! The function, `limits.lua`, does for each window what [`crate::policy::share::rebalance`] does. All that a replica has to say
//! goes out in one call, or one per [`WINDOWS_MAX`] windows; accounts that are used for the first time go out at once. No call of
//! a client ever waits for any of it.
//!
//! Keys are declared, share one hash tag, so that a Cluster keeps them together, and expire by themselves.

use std::{sync::Arc, time::Duration};

use redis::{Cmd, Pipeline, RedisError, Script, Value};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{connect::Connection, is_unknown_script, reply};
use crate::{
    policy::{
        limits::{Limiter, Reported, WindowReport},
        share::Answer,
    },
    store::ports::StoreError,
    wire::redis_url::RedisUrl,
};

const SCRIPT: &str = include_str!("limits.lua");
/// Windows in one call: a few milliseconds of the server's time.
const WINDOWS_MAX: usize = 512;
/// One call, with connecting where that is needed.
const CALL_TIMEOUT: Duration = Duration::from_millis(800);
/// Between calls for new accounts.
const PAUSE: Duration = Duration::from_millis(20);
/// Intervals without an answer after which limits open.
const AWAY_INTERVALS: u32 = 3;
/// A replica is late after as many intervals, and [`LATE_MIN`].
const LATE_INTERVALS: u32 = 5;
const LATE_MIN: Duration = Duration::from_secs(1);
/// A server that may have lost something listens for as many intervals, and [`LEARN_MIN`].
const LEARN_INTERVALS: u32 = 3;
const LEARN_MIN: Duration = Duration::from_secs(1);

/// The task that shares the limits of this process. Must be closed, or its share is missing for a window.
#[derive(Debug)]
pub struct SharedLimits {
    over: CancellationToken,
    task: JoinHandle<()>,
}

struct Task {
    limiter: Arc<Limiter>,
    line: Line,
    fresh: Arc<Notify>,
    over: CancellationToken,
    /// The start of the limiter's clock.
    epoch: Instant,
    interval: Duration,
    /// When the store last answered and knew all.
    answered: Instant,
    is_away: bool,
    /// The store may not know what was said, or may have forgotten it.
    tell_all: bool,
}

/// The way to Redis, and what is known of it.
struct Line {
    url: RedisUrl,
    script: Script,
    connection: Option<Connection>,
    /// This process, in 16 hexadecimal digits.
    replica: String,
    number: u64,
    late_ms: u64,
    learn_ms: u64,
    /// The server's run id as of the last answer; empty before.
    run: String,
}

/// What the store said to one call.
#[derive(Debug, PartialEq)]
struct Heard {
    learning: bool,
    replicas: u64,
    run: String,
    answers: Vec<Option<Answer>>,
}

/// Whose clock and run id a call goes by.
#[derive(Clone, Copy, Default)]
struct Clock<'a>(Option<(u64, &'a str)>);

impl SharedLimits {
    /// A limiter that shares its limits over Redis, and the task that does it. Its first call has been made or has failed
    /// when this returns.
    ///
    /// `epoch` is the start of the limiter's clock; `in_use` tells whether there are any limits: without, nothing is asked.
    ///
    /// # Errors
    /// When the system has no random number for this replica's name.
    pub async fn start(
        url: RedisUrl,
        interval: Duration,
        epoch: Instant,
        in_use: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<(Arc<Limiter>, SharedLimits), StoreError> {
        let fresh = Arc::new(Notify::new());
        let wake = Arc::clone(&fresh);
        let limiter = Arc::new(Limiter::shared(move || wake.notify_one()));
        let over = CancellationToken::new();
        let mut task = Task {
            limiter: Arc::clone(&limiter),
            line: Line::new(url, interval)?,
            fresh,
            over: over.clone(),
            epoch,
            interval: interval.max(Duration::from_millis(1)),
            answered: Instant::now(),
            is_away: false,
            tell_all: false,
        };
        if in_use() {
            task.report(Reported::Due).await;
        }
        Ok((limiter, SharedLimits { over, task: tokio::spawn(task.run(in_use)) }))
    }

    /// Hands back what this process does not need of any limit.
    pub async fn close(self) {
        self.over.cancel();
        let _ = timeout(CALL_TIMEOUT * 2, self.task).await;
    }
}

// === impl Task ===

impl Task {
    async fn run(mut self, in_use: impl Fn() -> bool) {
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        let (over, fresh) = (self.over.clone(), Arc::clone(&self.fresh));
        loop {
            tokio::select! {
                () = over.cancelled() => break,
                _ = ticks.tick() => if in_use() { self.report(Reported::Due).await },
                // While the store is away, they wait for the next tick with all others.
                () = fresh.notified(), if !self.is_away => {
                    self.report(Reported::New).await;
                    sleep(PAUSE).await;
                }
            }
        }
        if in_use() && !self.is_away {
            self.report(Reported::Leaving).await;
        }
    }

    async fn report(&mut self, which: Reported) {
        let which = if which == Reported::Due && self.tell_all { Reported::All } else { which };
        let now_ns = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let interval_ms = u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX);
        let reports = self.limiter.reports(which, now_ns, interval_ms);
        self.tell_all &= which == Reported::New;
        if reports.is_empty() && which != Reported::New {
            // Without news, too, the others should know that there is one more who may admit something.
            self.say(&[], which).await;
        }
        for chunk in reports.chunks(WINDOWS_MAX) {
            self.say(chunk, which).await;
        }
    }

    async fn say(&mut self, reports: &[WindowReport], which: Reported) {
        let known = !self.line.run.is_empty();
        let run_before = self.line.run.clone();
        match self.line.call(reports, which == Reported::Leaving, Clock::default()).await {
            Ok(heard) => {
                self.limiter.take(reports, &heard.answers);
                self.tell_all |= heard.learning || known && run_before != heard.run;
                if heard.learning {
                    return self.note_silence("it listens to all gateways first");
                }
                self.limiter.store_answers(heard.replicas);
                self.answered = Instant::now();
                if std::mem::take(&mut self.is_away) {
                    tracing::info!("the rate limits' store is back; limits are shared again");
                }
            }
            Err(error) => {
                // Quiet accounts would say it again only later, and may be forgotten by then.
                self.tell_all = true;
                self.note_silence(&error.to_string());
            }
        }
    }

    /// One line per change of state.
    fn note_silence(&mut self, why: &str) {
        if self.is_away || self.answered.elapsed() < self.interval * AWAY_INTERVALS {
            return;
        }
        self.is_away = true;
        self.limiter.store_is_away();
        tracing::error!(why, "the rate limits' store is away; each gateway keeps its last share, or its even part");
    }
}

// === impl Line ===

impl Line {
    fn new(url: RedisUrl, interval: Duration) -> Result<Line, StoreError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| StoreError::Unavailable(format!("no random number: {error}")))?;
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Ok(Line {
            url,
            script: Script::new(SCRIPT),
            connection: None,
            replica: format!("{:016x}", u64::from_le_bytes(random)),
            number: 0,
            late_ms: ms(interval * LATE_INTERVALS + LATE_MIN),
            learn_ms: ms(interval * LEARN_INTERVALS + LEARN_MIN),
            run: String::new(),
        })
    }

    /// Says what there is to say, and returns what the store has to say to it. A call that fails or hangs loses its
    /// connection: an answer that comes after all is never read.
    async fn call(&mut self, reports: &[WindowReport], leaving: bool, clock: Clock<'_>) -> Result<Heard, StoreError> {
        self.number += 1;
        let known = self.connection.take();
        let talk = async {
            let mut connection = match known {
                Some(connection) => connection,
                None => Connection::open(&self.url, CALL_TIMEOUT).await?,
            };
            let mut answer = self.ask(&mut connection, "EVALSHA", reports, leaving, clock).await?;
            if is_unknown_script(&answer) {
                answer = self.ask(&mut connection, "EVAL", reports, leaving, clock).await?;
            }
            let texts: Vec<String> = redis::from_redis_value(answer.extract_error()?)?;
            Ok::<_, RedisError>((connection, texts))
        };
        let answered = timeout(CALL_TIMEOUT, talk).await.map_err(|_| {
            StoreError::Unavailable(format!("{}: no answer within {} ms", self.url, CALL_TIMEOUT.as_millis()))
        })?;
        let (connection, texts) =
            answered.map_err(|error| StoreError::Unavailable(format!("{}: {error}", self.url)))?;
        let heard = heard(&texts, reports)
            .ok_or_else(|| StoreError::Damaged(format!("{} answered what cannot be: is it the limits'?", self.url)))?;
        self.connection = Some(connection);
        self.run.clone_from(&heard.run);
        Ok(heard)
    }

    async fn ask(
        &self,
        connection: &mut Connection,
        command: &str,
        reports: &[WindowReport],
        leaving: bool,
        clock: Clock<'_>,
    ) -> Result<Value, RedisError> {
        let script = if command == "EVAL" { SCRIPT } else { self.script.get_hash() };
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(self.command(command, script, reports, leaving, clock));
        Ok(connection.send(&pipeline, &self.replicas_key()).await?.pop().unwrap_or_default())
    }

    fn command(&self, command: &str, script: &str, reports: &[WindowReport], leaving: bool, clock: Clock<'_>) -> Cmd {
        let mut call = redis::cmd(command);
        call.arg(script).arg(reports.len() + 1).arg(self.replicas_key());
        for WindowReport { name, .. } in reports {
            call.arg(self.window_key(name));
        }
        call.arg(&self.replica).arg(self.number).arg(self.late_ms).arg(self.learn_ms).arg(&self.run);
        call.arg(u8::from(leaving));
        match clock.0 {
            Some((now_ms, run)) => call.arg(now_ms).arg(run),
            None => call.arg("").arg(""),
        };
        for WindowReport { report, .. } in reports {
            call.arg(report.limit).arg(report.window_ms).arg(report.hold).arg(report.used).arg(report.rate);
            call.arg(report.want);
        }
        call
    }

    fn replicas_key(&self) -> String {
        format!("{}limits:{{share}}", self.url.prefix)
    }

    fn window_key(&self, name: &str) -> String {
        format!("{}:{}", self.replicas_key(), reply::escape(name))
    }
}

/// Reads an answer; `None` when it cannot be one to these reports.
fn heard(texts: &[String], reports: &[WindowReport]) -> Option<Heard> {
    let (first, answers) = texts.split_first()?;
    let [learning, replicas, run] = first.split(' ').collect::<Vec<_>>()[..] else { return None };
    if answers.len() != reports.len() {
        return None;
    }
    let answers = answers.iter().zip(reports).map(|(text, report)| answer(text, report.report.limit));
    Some(Heard {
        learning: learning == "1",
        replicas: replicas.parse().ok()?,
        run: run.to_owned(),
        answers: answers.collect::<Option<_>>()?,
    })
}

/// An answer to one window, if there is one; the outer `None` where it cannot be one.
fn answer(text: &str, limit: u64) -> Option<Option<Answer>> {
    if text == "OLD" {
        return Some(None);
    }
    let [cap, free, alone] = text.split(' ').collect::<Vec<_>>()[..] else { return None };
    let answer = Answer { cap: cap.parse().ok()?, free: free.parse().ok()?, alone: alone == "1" };
    (answer.cap <= limit && answer.free <= limit).then_some(Some(answer))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{prelude::*, test_runner::TestRunner};

    use super::{super::tests::server::RedisServer, *};
    use crate::policy::{
        limits::Counted,
        share::{Arrival, Report, Row, rebalance},
    };

    const DEADLINE: Duration = Duration::from_secs(20);

    fn line(server: &RedisServer) -> Line {
        Line::new(RedisUrl::parse(&server.url()).unwrap(), Duration::from_secs(1)).unwrap()
    }

    fn report_of(name: &str, report: Report) -> WindowReport {
        WindowReport::detached(name.to_owned(), report, Counted::Requests)
    }

    fn want(limit: u64, hold: u64, used: u64) -> Report {
        Report { limit, window_ms: 60_000, hold, used, rate: 1000, want: limit }
    }

    /// One report of a random script.
    #[derive(Debug, Clone)]
    struct Step {
        replica: u64,
        number: u64,
        elapsed_ms: i64,
        server: usize,
        window: u8,
        report: Report,
    }

    fn step() -> impl Strategy<Value = Step> {
        let count = || {
            prop_oneof![
                6 => 0u64..2000,
                1 => Just(0),
                1 => prop::sample::select(vec![(1 << 53) - 1, (1 << 53) - 2, 1 << 52, 123_456_789_012_345]),
            ]
        };
        let rate = prop_oneof![4 => 0u64..100_000, 1 => Just(0), 1 => Just(1 << 40)];
        let elapsed_ms = prop_oneof![8 => 0i64..3000, 2 => 0i64..80_000, 1 => -5000i64..0];
        let server = prop_oneof![20 => Just(0usize), 1 => Just(1usize)];
        let window_ms = prop::sample::select(vec![1000u64, 60_000, 86_400_000]);
        let report = (count(), window_ms, count(), count(), rate, count()).prop_map(
            |(limit, window_ms, hold, used, rate, want)| Report {
                limit: limit.max(1),
                window_ms,
                hold,
                used,
                rate,
                want,
            },
        );
        (1u64..5, 1u64..40, elapsed_ms, server, 0u8..2, report).prop_map(
            |(replica, number, elapsed_ms, server, window, report)| Step {
                replica,
                number,
                elapsed_ms,
                server,
                window,
                report,
            },
        )
    }

    /// 300 random scripts; a failure prints the smallest one that still fails.
    #[test]
    fn the_function_does_what_the_model_does() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let server = RedisServer::with(&["--appendonly", "no"]);
        let line = std::cell::RefCell::new(line(&server));
        let mut runner =
            TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) });
        let outcome = runner.run(&prop::collection::vec(step(), 1..40), |steps| {
            server.command(&["FLUSHALL"]);
            runtime.block_on(compare(&mut line.borrow_mut(), &steps))
        });
        if let Err(failure) = outcome {
            panic!("{failure}");
        }
    }

    async fn compare(line: &mut Line, steps: &[Step]) -> Result<(), TestCaseError> {
        let mut model: BTreeMap<u8, BTreeMap<u64, Row>> = BTreeMap::new();
        let (mut now_ms, mut run, mut learn_until) = (1_000_000_000u64, "", 0);
        let mut seen = BTreeMap::new();
        line.run.clear();
        for step in steps {
            now_ms = now_ms.saturating_add_signed(step.elapsed_ms);
            let on = ["aa", "bb"][step.server];
            if run != on && !run.is_empty() {
                learn_until = now_ms + line.learn_ms;
            }
            run = on;
            learn_until = learn_until.min(now_ms + line.learn_ms);
            seen.insert(step.replica, now_ms);
            seen.retain(|_, seen_ms| seen_ms.abs_diff(now_ms) < line.late_ms);
            let (learning, replicas) = (now_ms < learn_until, seen.len() as u64);
            let arrival = Arrival { now_ms, silence_ms: line.late_ms, learning, replicas };
            let rows = model.entry(step.window).or_default();
            let expected = rebalance(rows, step.replica, step.number, &step.report, arrival);

            line.replica = format!("{:016x}", step.replica);
            line.number = step.number - 1;
            let name = format!("each/requests/60000/{}", step.window);
            let heard = line.call(&[report_of(&name, step.report)], false, Clock(Some((now_ms, on)))).await;
            let heard = heard.map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(&heard.answers, &vec![expected], "{:?}", step);
            prop_assert_eq!((heard.learning, heard.replicas), (learning, replicas));
            prop_assert_eq!(&stored(line, &name).await, rows);
        }
        Ok(())
    }

    async fn stored(line: &Line, name: &str) -> BTreeMap<u64, Row> {
        let mut connection = line.connection.clone().unwrap();
        let mut pipeline = Pipeline::new();
        pipeline.cmd("HGETALL").arg(line.window_key(name));
        let answer = connection.send(&pipeline, &line.replicas_key()).await.unwrap().remove(0);
        let fields: BTreeMap<String, String> = redis::from_redis_value(answer).unwrap();
        let row = |text: &str| {
            let numbers: Vec<u64> = text.split(' ').map(|number| number.parse().unwrap()).collect();
            let [number, hold, used, rate, seen_ms] = numbers[..] else { panic!("{text}") };
            Row { number, hold, used, rate, seen_ms }
        };
        fields.iter().map(|(id, text)| (u64::from_str_radix(id, 16).unwrap(), row(text))).collect()
    }

    #[tokio::test]
    async fn what_one_replica_holds_another_does_not_get() {
        let server = RedisServer::start();
        let (mut one, mut other) = (line(&server), line(&server));
        let cap = async |line: &mut Line, report| {
            let heard = line.call(&[report_of("a", report)], false, Clock::default()).await.unwrap();
            (heard.answers[0].unwrap().cap, heard.replicas)
        };
        assert_eq!(cap(&mut one, want(600, 0, 1)).await, (600, 1));
        assert_eq!(cap(&mut other, want(600, 0, 1)).await, (0, 2), "all of it is held");
        let (kept, _) = cap(&mut one, want(600, 600, 1)).await;
        assert!((290..=310).contains(&kept), "{kept}");
        // It has lowered its share when it says so, and not before.
        assert_eq!(cap(&mut other, want(600, 0, 1)).await.0, 0);
        cap(&mut one, want(600, kept, 1)).await;
        assert_eq!(
            cap(&mut other, want(600, 0, 1)).await.0,
            (600 - kept).div_ceil(2),
            "half of what is free at a time"
        );
    }

    #[tokio::test]
    async fn everything_expires_and_a_leaver_is_forgotten() {
        let server = RedisServer::start();
        let mut line = line(&server);
        line.call(&[report_of("a", want(600, 0, 1))], false, Clock::default()).await.unwrap();
        let keys = server.command(&["KEYS", "*"]);
        assert_eq!(keys.lines().count(), 2, "{keys}");
        for key in keys.lines() {
            let ttl: i64 = server.command(&["PTTL", key]).trim().parse().unwrap();
            assert!((1..=86_400_000).contains(&ttl), "{key}: {ttl}");
        }
        let gone = Report { want: 0, ..want(600, 0, 0) };
        line.call(&[report_of("a", gone)], true, Clock::default()).await.unwrap();
        assert_eq!(server.command(&["HKEYS", &line.replicas_key()]).lines().count(), 2, "the run id and the time");
        assert_eq!(server.command(&["EXISTS", &line.window_key("a")]), "0");
    }

    #[tokio::test]
    async fn an_emptied_server_listens_before_it_raises() {
        let server = RedisServer::start();
        let (mut holder, mut newcomer) = (line(&server), line(&server));
        for line in [&mut holder, &mut newcomer] {
            line.call(&[], false, Clock::default()).await.unwrap();
        }
        holder.call(&[report_of("a", want(600, 0, 1))], false, Clock::default()).await.unwrap();
        server.command(&["FLUSHALL"]);
        let heard = newcomer.call(&[report_of("a", want(600, 0, 1))], false, Clock::default()).await.unwrap();
        assert!(heard.learning);
        assert_eq!(heard.answers[0].map(|answer| answer.cap), Some(0));
    }

    #[tokio::test]
    async fn a_cluster_keeps_all_of_it_together() {
        let nodes = RedisServer::cluster(0);
        let url = nodes[0].url().replace("redis://", "redis+cluster://");
        let mut line = Line::new(RedisUrl::parse(&url).unwrap(), Duration::from_secs(1)).unwrap();
        let reports: Vec<_> = (0..40).map(|n| report_of(&format!("each/{n}"), want(600, 0, 1))).collect();
        let heard = line.call(&reports, false, Clock::default()).await.unwrap();
        assert!(heard.answers.iter().all(|answer| answer.is_some_and(|answer| answer.cap == 600)));
    }

    #[tokio::test]
    async fn a_user_with_the_documented_rights_may_do_it_and_one_with_less_is_refused() {
        let server = RedisServer::start();
        let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ledger.md")).unwrap();
        let rights = docs.lines().find_map(|line| line.strip_prefix("ACL SETUSER ledger ")).unwrap();
        let words: Vec<&str> = ["ACL", "SETUSER", "ledger"].into_iter().chain(rights.split(' ')).collect();
        assert_eq!(server.command(&words), "OK");
        let url = server.url().replace("redis://", "redis://ledger:password@");
        let mut line = Line::new(RedisUrl::parse(&url).unwrap(), Duration::from_secs(1)).unwrap();
        let ask = async |line: &mut Line| {
            line.call(&[report_of("a", want(600, 0, 1))], true, Clock::default()).await.map(|heard| heard.replicas)
        };
        assert_eq!(ask(&mut line).await, Ok(1));
        server.command(&["ACL", "SETUSER", "ledger", "-pexpire"]);
        assert!(matches!(ask(&mut line).await, Err(StoreError::Unavailable(_))));
    }

    #[tokio::test]
    async fn a_server_that_hangs_is_given_up_in_time() {
        let server = RedisServer::start();
        let mut line = line(&server);
        line.call(&[], false, Clock::default()).await.unwrap();
        server.signal("STOP");
        let begun = Instant::now();
        let outcome = line.call(&[], false, Clock::default()).await;
        server.signal("CONT");
        assert!(outcome.is_err() && begun.elapsed() < CALL_TIMEOUT + DEADLINE / 10);
    }

    #[test]
    fn an_answer_that_cannot_be_is_none() {
        let reports = [report_of("a", want(600, 0, 1))];
        let texts = |first: &str, second: &str| [first.to_owned(), second.to_owned()];
        assert!(heard(&texts("0 3 ab", "600 10 1"), &reports).is_some());
        assert!(heard(&texts("0 3 ab", "OLD"), &reports).is_some());
        for (first, second) in
            [("0 3", "1 1 1"), ("0 x ab", "1 1 1"), ("0 3 ab", ""), ("0 3 ab", "601 0 0"), ("0 3 ab", "-1 0 0")]
        {
            assert_eq!(heard(&texts(first, second), &reports), None, "{first:?} {second:?}");
        }
        assert_eq!(heard(&texts("0 3 ab", "1 1 1"), &[]), None);
    }
}
