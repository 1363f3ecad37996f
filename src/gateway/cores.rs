//! A thread with a runtime of its own for each core, among which clients' connections are shared out.
//!
//! A connection and all of its calls stay on one thread. Where threads steal tasks from each other, a call's memory is allocated on
//! one core and freed on another, every other time, and its wake-ups go through queues that all cores share. The price: calls that
//! come over one connection, as HTTP/2 allows, share one core.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// The threads; they end when the process is over for good.
#[derive(Debug, Clone)]
pub struct Cores(Arc<[Core]>);

#[derive(Debug)]
struct Core {
    handle: Handle,
    connections: AtomicUsize,
}

/// A connection's place on a core, which it has until this is dropped.
#[derive(Debug)]
pub struct Seat {
    cores: Cores,
    index: usize,
}

impl Cores {
    /// Starts one thread per core that this process may use. They end, and drop what is left on them, once it is `over`.
    ///
    /// # Errors
    /// When the system gives no thread, or no more file descriptors.
    pub fn start(over: &CancellationToken) -> io::Result<Cores> {
        let count = thread::available_parallelism().map_or(1, usize::from);
        let cores = (0..count).map(|index| start(index, over.clone())).collect::<io::Result<Vec<Core>>>()?;
        Ok(Cores(cores.into()))
    }

    /// A place on the core that has the fewest connections.
    #[must_use]
    pub fn seat(&self) -> Seat {
        let connections = |index: &usize| self.0[*index].connections.load(Ordering::Relaxed);
        let index = (0..self.0.len()).min_by_key(connections).unwrap_or_default();
        self.0[index].connections.fetch_add(1, Ordering::Relaxed);
        Seat { cores: self.clone(), index }
    }
}

fn start(index: usize, over: CancellationToken) -> io::Result<Core> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let work = move || runtime.block_on(over.cancelled_owned());
    thread::Builder::new().name(format!("calls-{index}")).spawn(work)?;
    Ok(Core { handle, connections: AtomicUsize::new(0) })
}

// === impl Seat ===

impl Seat {
    /// Where the connection's task is to run.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.cores.0[self.index].handle
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.cores.0[self.index].connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_go_where_the_fewest_are() {
        let over = CancellationToken::new();
        let cores = Cores((0..3).map(|index| start(index, over.clone()).unwrap()).collect());
        let seats: Vec<Seat> = (0..3).map(|_| cores.seat()).collect();
        let mut taken: Vec<usize> = seats.iter().map(|seat| seat.index).collect();
        taken.sort_unstable();
        assert_eq!(taken, [0, 1, 2]);
        let left = seats.into_iter().nth(1).map(|seat| seat.index);
        assert!(left.is_some());
        let _one = cores.seat();
        assert_eq!(cores.0.iter().map(|core| core.connections.load(Ordering::Relaxed)).sum::<usize>(), 1);
        over.cancel();
    }

    #[test]
    fn what_runs_on_a_core_stays_there() {
        let over = CancellationToken::new();
        let cores = Cores::start(&over).unwrap();
        let seat = cores.seat();
        let handle = seat.handle();
        let names = handle.spawn(async {
            let here = || thread::current().name().unwrap_or_default().to_owned();
            let before = here();
            tokio::task::yield_now().await;
            (before, here(), tokio::spawn(async move { here() }).await.unwrap())
        });
        let (first, second, third) = Builder::new_current_thread().build().unwrap().block_on(names).unwrap();
        assert!(first.starts_with("calls-"), "{first}");
        assert_eq!((&second, &third), (&first, &first));
        over.cancel();
    }
    #[test]
    fn a_panic_on_a_core_gives_its_seat_back_and_hurts_nobody_else_there() {
        let over = CancellationToken::new();
        let cores = Cores([start(0, over.clone()).unwrap()].into());
        let (panics, stays) = (cores.seat(), cores.seat());
        let waiting = stays.handle().spawn(async { tokio::task::yield_now().await });
        let handle = panics.handle().clone();
        let panicked = handle.spawn(async move {
            let _seat = panics;
            panic!("a call that goes wrong on purpose");
        });
        let here = Builder::new_current_thread().build().unwrap();
        assert!(here.block_on(panicked).unwrap_err().is_panic());
        here.block_on(waiting).unwrap();
        assert_eq!(here.block_on(handle.spawn(async { 1 })).unwrap(), 1);
        assert_eq!(cores.0[0].connections.load(Ordering::Relaxed), 1);
        over.cancel();
    }
}
