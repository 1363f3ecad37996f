//! Processes under measurement: started, awaited, weighed by what the kernel says about them, and ended.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

/// A process that ends with its value.
pub(crate) struct Process {
    child: Child,
    /// From the start to the line that says that it is ready.
    pub(crate) started_in: Duration,
    /// That line, without its first word.
    pub(crate) ready: String,
}

/// Memory of a process and its children, in KiB.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) resident_kib: u64,
    /// Of that, what is no page of a file: of the program, above all, which the system shares between processes and can drop.
    pub(crate) own_kib: u64,
    /// The most that was resident.
    pub(crate) peak_kib: u64,
}

impl Process {
    /// Starts a process that prints a line beginning with `ready` once it takes calls.
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Process> {
        let began = Instant::now();
        let mut process = Process::start_silent(command.stdout(Stdio::piped()))?;
        let output = process.child.stdout.take().context("a piped standard output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        process.started_in = began.elapsed();
        process.ready =
            line.trim().strip_prefix("ready").context("a process ended before it was ready")?.trim().to_owned();
        Ok(process)
    }

    /// Starts a process that says nothing.
    pub(crate) fn start_silent(command: &mut Command) -> anyhow::Result<Process> {
        let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("{command:?}"))?;
        Ok(Process { child, started_in: Duration::ZERO, ready: String::new() })
    }

    /// CPU time so far, of all threads and children that live.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let mut nanos = 0;
        for pid in self.pids()? {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                // A thread may end between the listing and the look; what it used is then missing, a trifle here.
                let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
                nanos += text.split_whitespace().next().context("schedstat")?.parse::<u64>()?;
            }
        }
        ensure!(nanos > 0, "the kernel keeps no schedstat");
        Ok(Duration::from_nanos(nanos))
    }

    /// Memory now.
    pub(crate) fn memory(&self) -> anyhow::Result<Memory> {
        let mut memory = Memory::default();
        for pid in self.pids()? {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let field = |name: &str| -> anyhow::Result<u64> {
                let line = status.lines().find(|line| line.starts_with(name)).context("a field of status")?;
                Ok(line.split_whitespace().nth(1).context("a value")?.parse()?)
            };
            memory.resident_kib += field("VmRSS:")?;
            memory.own_kib += field("RssAnon:")?;
            memory.peak_kib += field("VmHWM:")?;
        }
        Ok(memory)
    }

    fn pids(&self) -> anyhow::Result<Vec<u32>> {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let children = children.split_whitespace().map(str::parse);
        Ok(std::iter::once(Ok(pid)).chain(children).collect::<Result<_, _>>()?)
    }
}

impl Drop for Process {
    /// SIGTERM where there is a `kill`, so that a master takes its workers along; and then for certain.
    fn drop(&mut self) {
        let asked = Command::new("kill").arg(self.child.id().to_string()).status();
        let deadline = Instant::now() + Duration::from_secs(3);
        while asked.is_ok() && Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
