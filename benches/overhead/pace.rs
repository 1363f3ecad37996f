//! When calls are due: at a fixed rate, whatever their answers do.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::bail;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::{
    io::unix::AsyncFd,
    sync::mpsc::{self, error::TrySendError},
};

/// Calls that a connection may be behind.
const DUES_MAX: usize = 100_000;

/// A connection's calls, each by the moment from which it counts.
pub(crate) type Dues = mpsc::Receiver<Instant>;

/// Tells connections in turns when to call, one call after the other at even distances.
///
/// It has a timer of its own: tokio's go by the millisecond, in which a busy gateway gets twenty calls, and twenty calls that
/// come at once measure the load generator.
pub(crate) struct Pacer {
    timer: AsyncFd<OwnedFd>,
    interval: Duration,
    connections: Vec<mpsc::Sender<Instant>>,
}

impl Pacer {
    /// A pacer of `rate` calls a second, and what it will tell each connection.
    pub(crate) fn new(rate: f64, connections: usize) -> anyhow::Result<(Pacer, Vec<Dues>)> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[expect(
            deprecated,
            reason = "what replaces it is unsafe to call; a descriptor that is owned is what it asks for"
        )]
        let timer = AsyncFd::new(timer)?;
        let (connections, dues) = (0..connections).map(|_| mpsc::channel(DUES_MAX)).unzip();
        let interval = Duration::from_secs_f64(1.0 / rate.max(1.0));
        Ok((Pacer { timer, interval, connections }, dues))
    }

    /// Goes on until `ends`; connections then see the end of their calls.
    ///
    /// A call counts from when it was told, not from when it was due: that the load generator was late is no fault of its subject.
    pub(crate) async fn run(self, ends: Instant) -> anyhow::Result<()> {
        let mut due = Instant::now();
        for turn in (0..self.connections.len()).cycle() {
            due += self.interval;
            if due >= ends {
                break;
            }
            self.wait_until(due).await?;
            match self.connections[turn].try_send(Instant::now()) {
                Err(TrySendError::Full(_)) => bail!("a connection is {DUES_MAX} calls behind: the load is too much"),
                // Its client has failed, which is reported as such.
                Ok(()) | Err(TrySendError::Closed(_)) => {}
            }
        }
        Ok(())
    }

    async fn wait_until(&self, due: Instant) -> anyhow::Result<()> {
        let ahead = due.saturating_duration_since(Instant::now());
        if ahead.is_zero() {
            return Ok(());
        }
        let once = Itimerspec { it_interval: Timespec::default(), it_value: ahead.try_into()? };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut ready = self.timer.readable().await?;
            if let Ok(read) = ready.try_io(|timer| Ok(rustix::io::read(timer, &mut [0; 8])?)) {
                read?;
                return Ok(());
            }
        }
    }
}
