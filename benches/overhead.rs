//! What the gateway adds to a call, beside what a proxy that does nothing adds.
//!
//! One run measures, in interleaved rounds and each as a process of its own on loopback: the upstream itself, a bare
//! hyper proxy (the same server, client, runtime and allocator, and no policy), nginx where it is installed, and
//! Tollgate with every policy on (`tests/data/contract/everything.yaml`). Machines differ and so do minutes on one
//! machine; the ratios to the bare proxy of the same round are what lasts.
//!
//! `cargo bench --bench overhead -- [--rounds N] [--seconds S] [--connections N] [--gateway FILE] [--json FILE]`
//!
//! See `docs/performance.md` for how to read the figures.

#[path = "overhead/load.rs"]
mod load;
#[path = "overhead/mock.rs"]
mod mock;
#[path = "overhead/pace.rs"]
mod pace;
#[path = "overhead/process.rs"]
mod process;
#[path = "overhead/proxy.rs"]
mod proxy;
#[path = "overhead/report.rs"]
mod report;
#[path = "overhead/subjects.rs"]
mod subjects;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, bail, ensure};

use load::{Load, Pace};
use report::{Measured, Report};
use subjects::{Subject, Subjects};

/// The gateway's allocator, so that it is no difference.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Streams at the same time; the mock paces them, so this is no saturation.
const STREAMS: usize = 32;
/// Starts that are timed.
const STARTS: usize = 5;

/// What the command line says.
struct Options {
    rounds: usize,
    window: Duration,
    connections: usize,
    gateway: PathBuf,
    json: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let upstream = || -> anyhow::Result<SocketAddr> { Ok(arguments.get(1).context("an address")?.parse()?) };
    match arguments.first().map(String::as_str) {
        Some("mock") => mock::run(),
        Some("proxy") => proxy::run(upstream()?),
        _ => measure(&Options::parse(&arguments)?),
    }
}

impl Options {
    fn parse(arguments: &[String]) -> anyhow::Result<Options> {
        let mut options = Options {
            rounds: 5,
            window: Duration::from_millis(1500),
            connections: 64,
            gateway: PathBuf::from(env!("CARGO_BIN_EXE_tollgate")),
            json: None,
        };
        let mut arguments = arguments.iter();
        let mut timed = false;
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{name} wants a value"));
            match name.as_str() {
                // Cargo's word for a real run; without it (`cargo test --benches`) one short round shows that all is well.
                "--bench" => timed = true,
                "--rounds" => options.rounds = value()?.parse()?,
                "--seconds" => options.window = Duration::try_from_secs_f64(value()?.parse()?)?,
                "--connections" => options.connections = value()?.parse()?,
                "--gateway" => options.gateway = value()?.into(),
                "--json" => options.json = Some(value()?.into()),
                other => bail!("{other} is no option of this benchmark"),
            }
        }
        if !timed {
            options.rounds = 1;
            options.window = options.window.min(Duration::from_millis(300));
        }
        ensure!(options.rounds > 0 && options.connections > 0, "at least one round and one connection");
        Ok(options)
    }
}

fn measure(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut subjects = Subjects::start(&options.gateway)?;
    let mut report = Report::new(options.connections, options.window);
    report.starts(&subjects.time_starts(STARTS)?);
    std::thread::sleep(Duration::from_secs(1));
    for subject in subjects.all() {
        report.idle_rss(subject.name, subject.rss()?);
    }
    runtime.block_on(load::check(&subjects))?;
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        runtime.block_on(one_round(options, &subjects, &mut report))?;
    }
    for subject in subjects.all() {
        report.loaded_rss(subject.name, subject.rss()?);
    }
    report.calls_recorded(runtime.block_on(load::recorded_calls(subjects.admin))?)?;
    subjects.stop();
    report.print(&mut std::io::stdout())?;
    if let Some(path) = &options.json {
        std::fs::write(path, report.json()).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Everything once, one subject after the other within each load, so that what disturbs the machine disturbs them alike.
async fn one_round(options: &Options, subjects: &Subjects, report: &mut Report) -> anyhow::Result<()> {
    let Options { window, connections, .. } = *options;
    let mut capacity = 0.0;
    for subject in subjects.all() {
        let load = run(subject, load::plain_requests(), connections, Pace::Closed, window).await?;
        if subject.name == subjects::GATEWAY {
            capacity = load.calls_per_second();
        }
        report.add(subject.name, Measured::Saturated, &load);
    }
    for subject in subjects.all() {
        let load = run(subject, load::plain_requests(), connections, Pace::Rate(capacity / 2.0), window).await?;
        report.add(subject.name, Measured::HalfLoad, &load);
    }
    for subject in subjects.all() {
        let load = run(subject, load::stream_requests(), STREAMS, Pace::Closed, window).await?;
        report.add(subject.name, Measured::Streams, &load);
    }
    Ok(())
}

async fn run(
    subject: &Subject,
    requests: Vec<Vec<u8>>,
    connections: usize,
    pace: Pace,
    window: Duration,
) -> anyhow::Result<Load> {
    load::run(subject, requests, connections, pace, window).await.with_context(|| subject.name.to_owned())
}
