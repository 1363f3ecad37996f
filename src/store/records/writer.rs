//! Finished calls, and what is said of them, on their way into the log: batches, off the call's path, in bounded memory, and on disk while the store is away.
//!
//! The recorder hands calls over without waiting. A thread with a runtime of its own writes them, a thousand or 200 ms at a time.
//! When the store does not take a batch, it goes to a file (`calls.spill`), and so does what follows until the store is back;
//! then the file is read back in. Only where memory and file are full are calls dropped, and counted.
//!
//! A process that is killed loses what was not yet written: the last 200 ms, and the batch under way, for which the store has
//! at most five seconds.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout, timeout_at},
};

use super::{
    ports::{Arrived, Bodies, CallLog, Entry},
    spill::Spill,
};
use crate::{
    record::{CallRow, Captured, Feedback, Record},
    store::ports::StoreError,
};

/// The file of calls that wait for the store, in the data directory.
pub const SPILL_FILE: &str = "calls.spill";
/// Calls in one batch.
const BATCH_MAX: usize = 1000;
/// What they may take in memory, bodies included, in bytes.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// How long a call may wait for others to be written with.
const GATHER: Duration = Duration::from_millis(200);
/// Calls that may wait in memory.
const QUEUE_MAX: usize = 65_536;
/// What they may take in memory, in bytes.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// So many calls, or an eighth of the bytes, waiting while the store is busy go to disk.
const CROWD: usize = QUEUE_MAX / 8;
/// How long the store may take for one batch.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Rest after a failure: doubled up to the longest.
const REST_FIRST: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(2);
/// About what a call takes in memory beside its texts of free length.
const RECORD_BYTES: usize = 1024;
/// And a rating.
const FEEDBACK_BYTES: usize = 512;

/// How far the writer is.
#[derive(Debug, Default)]
pub struct Progress {
    queued: AtomicU64,
    spilled: AtomicU64,
    dropped: AtomicU64,
    away: AtomicBool,
    /// Something had room neither in the store nor on disk.
    full: AtomicBool,
}

/// The end at which calls are handed over. Dropped, it lets the writer end.
#[derive(Debug)]
pub struct Handover(Arc<Inbox>);

/// The end at which feedback is handed over. Unlike calls, which have happened, it can be refused.
#[derive(Debug, Clone)]
pub struct Desk(Arc<Inbox>);

/// Why feedback is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The store is away, and there is no room to wait for it.
    Full,
    /// The process goes down.
    Closed,
}

/// What waits in memory.
#[expect(clippy::large_enum_variant, reason = "nearly all of them are calls")]
#[derive(Debug)]
enum Handed {
    Call(Record),
    Feedback(Feedback),
}

#[derive(Debug)]
struct Inbox {
    queue: Mutex<Queue>,
    /// Something came, or nothing more will.
    came: Notify,
    progress: Arc<Progress>,
}

#[derive(Debug, Default)]
struct Queue {
    handed: VecDeque<Handed>,
    bytes: usize,
    closed: bool,
}

/// What is offered to the store at once.
#[derive(Debug, Clone)]
struct Batch {
    calls: Arc<[Entry]>,
    feedback: Arc<[Feedback]>,
}

struct Writer {
    inbox: Arc<Inbox>,
    log: Arc<dyn CallLog>,
    spill: Spill,
    keep: KeepBodies,
    /// Taken out of the queue, and neither in the store nor in the file: neither can be written.
    held: Vec<Arrived>,
    /// Whether it was said that the file cannot be written, since it last could.
    said_unwritable: bool,
    /// The store is left alone until then.
    rests_until: Option<Instant>,
    rest: Duration,
}

/// What is kept of the bodies that a call's way has captured.
pub type KeepBodies = Box<dyn Fn(&Captured) -> Bodies + Send>;

/// Starts the thread that writes into `log`, with what `keep` leaves of bodies. It ends, with everything written or spilled, once the [`Handover`] is dropped.
///
/// # Errors
/// When the spilled calls of an earlier process cannot be read, or the system gives no thread.
pub fn start(
    log: Arc<dyn CallLog>,
    data_dir: &Path,
    spill_bytes_max: u64,
    keep: KeepBodies,
) -> io::Result<(Handover, Arc<Progress>, JoinHandle<()>)> {
    let spill = Spill::open(&data_dir.join(SPILL_FILE), spill_bytes_max)?;
    let progress = Arc::new(Progress::default());
    progress.spilled.store(spill.waiting(), Ordering::Relaxed);
    let inbox = Arc::new(Inbox { queue: Mutex::default(), came: Notify::new(), progress: progress.clone() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let writer = Writer {
        inbox: inbox.clone(),
        log,
        spill,
        keep,
        held: Vec::new(),
        said_unwritable: false,
        rests_until: None,
        rest: REST_FIRST,
    };
    let work = move || runtime.block_on(writer.run());
    let thread = std::thread::Builder::new().name("calls".to_owned()).spawn(work)?;
    Ok((Handover(inbox), progress, thread))
}

// === impl Progress ===

impl Progress {
    /// Calls and ratings that are not in the store yet: in memory and on disk.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.queued.load(Ordering::Relaxed) + self.spilled.load(Ordering::Relaxed)
    }

    /// Whether the store took the last batch that it was offered.
    #[must_use]
    pub fn store_up(&self) -> bool {
        !self.away.load(Ordering::Relaxed)
    }

    /// Calls and ratings that could not be kept since this was last asked.
    #[must_use]
    pub fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Ordering::Relaxed)
    }

    fn dropped(&self, count: usize) {
        self.dropped.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// What there was no room for.
    fn overflowed(&self, count: usize) {
        if count > 0 {
            self.full.store(true, Ordering::Relaxed);
            self.dropped(count);
        }
    }
}

// === impl Handover ===

impl Handover {
    /// Hands finished calls over. Never waits: what there is no room for is dropped and counted.
    pub fn push(&self, records: &mut Vec<Record>) {
        if records.is_empty() {
            return;
        }
        let mut queue = self.0.queue();
        for record in records.drain(..) {
            if !queue.push(Handed::Call(record)) {
                self.0.progress.dropped(1);
            }
        }
        self.0.came(queue);
    }

    /// Where feedback is taken for the same log.
    #[must_use]
    pub fn desk(&self) -> Desk {
        Desk(self.0.clone())
    }
}

// === impl Desk ===

impl Desk {
    /// Hands feedback over, all or none. Never waits.
    ///
    /// # Errors
    /// [`Refused`], where it would surely be lost.
    pub fn push(&self, feedback: Vec<Feedback>) -> Result<(), Refused> {
        let mut queue = self.0.queue();
        if queue.closed {
            return Err(Refused::Closed);
        }
        let bytes: usize = feedback.iter().map(feedback_bytes).sum();
        if self.0.progress.full.load(Ordering::Relaxed) || !queue.has_room(feedback.len(), bytes) {
            return Err(Refused::Full);
        }
        for rating in feedback {
            queue.push(Handed::Feedback(rating));
        }
        self.0.came(queue);
        Ok(())
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        self.0.queue().closed = true;
        self.0.came.notify_one();
    }
}

fn size_of(handed: &Handed) -> usize {
    let record = match handed {
        Handed::Call(record) => record,
        Handed::Feedback(feedback) => return feedback_bytes(feedback),
    };
    let bodies = record.bodies.as_ref().map_or(0, |bodies| bodies.bytes());
    RECORD_BYTES + record.named.as_ref().map_or(0, |named| named.len()) + bodies
}

fn feedback_bytes(feedback: &Feedback) -> usize {
    let text = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |text| text.len());
    FEEDBACK_BYTES + text(&feedback.comment) + text(&feedback.session)
}

// === impl Inbox ===

impl Inbox {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the writer what was put into the queue.
    fn came(&self, queue: MutexGuard<'_, Queue>) {
        self.progress.queued.store(queue.handed.len() as u64, Ordering::Relaxed);
        drop(queue);
        self.came.notify_one();
    }

    fn take(&self) -> Vec<Handed> {
        let mut queue = self.queue();
        let mut taken = Vec::new();
        let mut bytes = 0;
        while taken.len() < BATCH_MAX
            && bytes < BATCH_BYTES_MAX
            && let Some(handed) = queue.handed.pop_front()
        {
            bytes += size_of(&handed);
            taken.push(handed);
        }
        queue.bytes = queue.bytes.saturating_sub(bytes);
        self.progress.queued.store(queue.handed.len() as u64, Ordering::Relaxed);
        taken
    }

    /// Waits until a condition of the queue is fulfilled.
    async fn until(&self, fulfilled: impl Fn(&Queue) -> bool) {
        loop {
            // A permit is kept when nobody listens, so what comes between the look and the wait is not missed.
            if fulfilled(&self.queue()) {
                return;
            }
            self.came.notified().await;
        }
    }
}

impl Queue {
    fn has_room(&self, count: usize, bytes: usize) -> bool {
        self.handed.len() + count <= QUEUE_MAX && self.bytes + bytes <= QUEUE_BYTES_MAX
    }

    /// Whether there was room for it.
    fn push(&mut self, handed: Handed) -> bool {
        let bytes = size_of(&handed);
        let room = self.has_room(1, bytes);
        if room {
            self.bytes += bytes;
            self.handed.push_back(handed);
        }
        room
    }

    fn is_crowded(&self) -> bool {
        self.handed.len() >= CROWD || self.bytes >= QUEUE_BYTES_MAX / 8
    }
}

// === impl Writer ===

impl Writer {
    async fn run(mut self) {
        loop {
            let over = self.gather().await;
            let batch = if self.held.is_empty() { self.take() } else { std::mem::take(&mut self.held) };
            let rests = self.rests();
            match batch.is_empty() {
                false if rests => self.keep(batch),
                false => self.store(batch).await,
                true => {}
            }
            if self.spill.waiting() > 0 && !self.rests() {
                self.bring_back().await;
            }
            self.inbox.progress.spilled.store(self.spill.waiting(), Ordering::Relaxed);
            if over && self.is_done() {
                break;
            }
        }
        self.give_up_held();
    }

    /// The process ends: what neither the store nor the file takes is lost.
    fn give_up_held(&self) {
        let count = self.held.len();
        if count > 0 {
            tracing::error!(
                count,
                "calls are lost: at the end, neither the call log nor the file of spilled calls could be written"
            );
            self.inbox.progress.dropped(count);
        }
    }

    /// Waits for a batch that is worth writing, or for the end of a rest. Whether no more calls will come.
    async fn gather(&self) -> bool {
        let has_work = self.spill.waiting() > 0 || !self.held.is_empty();
        let any = self.inbox.until(|queue| queue.closed || !queue.handed.is_empty());
        match (has_work, self.rests_until) {
            (true, Some(until)) if self.rests() => drop(timeout_at(until, any).await),
            (true, _) => {}
            (false, _) => any.await,
        }
        let enough = self.inbox.until(|queue| queue.closed || queue.handed.len() >= BATCH_MAX);
        if !has_work || self.rests() {
            let _few = timeout(GATHER, enough).await;
        }
        self.inbox.queue().closed
    }

    /// What comes next, as it is stored.
    fn take(&self) -> Vec<Arrived> {
        let stored = |handed| match handed {
            Handed::Feedback(feedback) => Arrived::Feedback(feedback),
            Handed::Call(mut record) => {
                let bodies = record.bodies.take().map(|captured| Box::new((self.keep)(&captured)));
                Arrived::Call(Entry { row: CallRow::of(record), bodies })
            }
        };
        self.inbox.take().into_iter().map(stored).collect()
    }

    fn rests(&self) -> bool {
        self.rests_until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether all that can be done for the calls is done. What is on disk is for the next process when the store is away.
    fn is_done(&self) -> bool {
        let queue = self.inbox.queue();
        let stored = self.spill.waiting() == 0 && self.held.is_empty();
        queue.closed && queue.handed.is_empty() && (stored || self.rests_until.is_some())
    }

    async fn store(&mut self, batch: Vec<Arrived>) {
        let batch = Batch::of(batch);
        match self.append(&batch).await {
            Ok(()) => {}
            Err(StoreError::Damaged(_)) => self.store_one_by_one(&batch).await,
            Err(_) => self.keep(batch.arrived()),
        }
    }

    /// The store refuses a batch for what is in it: all but that is stored.
    async fn store_one_by_one(&mut self, batch: &Batch) {
        for one in batch.arrived() {
            match self.append(&Batch::of(vec![one.clone()])).await {
                Ok(()) => {}
                Err(error @ StoreError::Damaged(_)) => {
                    let (Arrived::Call(Entry { row: CallRow { id, .. }, .. }) | Arrived::Feedback(Feedback { id, .. })) =
                        &one;
                    tracing::error!(%id, %error, "the call log refuses a call or what is said of one: it is dropped");
                    self.inbox.progress.dropped(1);
                }
                Err(_) => self.keep(vec![one]),
            }
        }
    }

    /// Reads some of what was spilled back into the store.
    async fn bring_back(&mut self) {
        let (batch, taken) = match self.spill.next(BATCH_MAX) {
            Ok(next) => next,
            Err(error) => return self.fails(&StoreError::Unavailable(format!("the spilled calls: {error}"))),
        };
        let batch = Batch::of(batch);
        match self.append(&batch).await {
            Ok(()) => self.spill.taken(taken),
            Err(StoreError::Damaged(_)) => {
                self.spill.taken(taken);
                self.store_one_by_one(&batch).await;
            }
            Err(_) => {}
        }
    }

    /// Offers a batch to the store, and spills what crowds meanwhile.
    async fn append(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let mut appending = pin!(timeout(APPEND_TIMEOUT, append(self.log.clone(), batch.clone())));
        let mut room = true;
        let result = loop {
            let inbox = self.inbox.clone();
            tokio::select! {
                result = &mut appending => break result,
                () = inbox.until(Queue::is_crowded), if room => room = self.spill_crowd(),
            }
        };
        let result = result.unwrap_or_else(|_| {
            Err(StoreError::Unavailable(format!("it took longer than {} s", APPEND_TIMEOUT.as_secs())))
        });
        match &result {
            Ok(()) => self.works(),
            Err(StoreError::Damaged(_)) => {}
            Err(error) => self.fails(error),
        }
        result
    }

    /// Whether there is room for more.
    fn spill_crowd(&mut self) -> bool {
        let batch = self.take();
        let count = batch.len();
        match self.spill.write(&batch) {
            Ok(written) => {
                self.inbox.progress.overflowed(count - written);
                written == count
            }
            Err(error) => {
                tracing::error!(%error, "calls cannot be spilled to disk: {count} are dropped");
                self.inbox.progress.overflowed(count);
                false
            }
        }
    }

    /// Keeps calls that the store does not take now.
    fn keep(&mut self, batch: Vec<Arrived>) {
        match self.spill.write(&batch) {
            Ok(written) => {
                self.said_unwritable = false;
                self.inbox.progress.overflowed(batch.len() - written);
            }
            // Neither store nor file: they stay in memory, the queue behind them fills, and what does not fit is counted.
            Err(error) => {
                if !std::mem::replace(&mut self.said_unwritable, true) {
                    tracing::error!(%error, "calls cannot be spilled to disk: they wait in memory");
                }
                self.held.extend(batch);
                self.rests_until.get_or_insert_with(|| Instant::now() + REST_FIRST);
            }
        }
    }

    fn works(&mut self) {
        if self.inbox.progress.away.swap(false, Ordering::Relaxed) {
            tracing::info!(waiting = self.spill.waiting(), "the call log is back");
        }
        self.inbox.progress.full.store(false, Ordering::Relaxed);
        self.said_unwritable = false;
        self.rests_until = None;
        self.rest = REST_FIRST;
    }

    fn fails(&mut self, error: &StoreError) {
        if !self.inbox.progress.away.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "the call log is away: calls go on and wait on disk for it");
        }
        self.rests_until = Some(Instant::now() + self.rest);
        self.rest = (self.rest * 2).min(REST_MAX);
    }
}

// === impl Batch ===

impl Batch {
    fn of(arrived: Vec<Arrived>) -> Batch {
        let (mut calls, mut feedback) = (Vec::with_capacity(arrived.len()), Vec::new());
        for one in arrived {
            match one {
                Arrived::Call(entry) => calls.push(entry),
                Arrived::Feedback(rating) => feedback.push(rating),
            }
        }
        Batch { calls: calls.into(), feedback: feedback.into() }
    }

    fn arrived(&self) -> Vec<Arrived> {
        let calls = self.calls.iter().cloned().map(Arrived::Call);
        calls.chain(self.feedback.iter().cloned().map(Arrived::Feedback)).collect()
    }
}

/// Calls first: what is said of them is shown with them.
async fn append(log: Arc<dyn CallLog>, batch: Batch) -> Result<(), StoreError> {
    if !batch.calls.is_empty() {
        log.append(batch.calls).await?;
    }
    if !batch.feedback.is_empty() {
        log.rate(batch.feedback).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::{
        recorder,
        store::{
            ports::Answer,
            records::{
                contract::{BEGIN_MS, rating},
                evaluations::{Evaluation, EvaluationPage},
                feedback::{FeedbackFilter, FeedbackPage},
                figures::{ArmFigures, ArmsQuery},
                ports::{Filter, Page, Series, UsageQuery},
            },
        },
    };

    /// A log in memory that can be away, hang, or refuse single calls.
    #[derive(Debug, Default)]
    struct Fake {
        mode: Mutex<Mode>,
        ids: Mutex<Vec<Arc<str>>>,
        tries: AtomicUsize,
    }

    #[derive(Debug, Clone, Default, PartialEq)]
    enum Mode {
        #[default]
        Up,
        Away,
        /// Takes everything, and says that it did not.
        Liar,
        Refuses(Arc<str>),
    }

    impl Fake {
        fn set(&self, mode: Mode) {
            *self.mode.lock().unwrap() = mode;
        }

        fn ids(&self) -> Vec<Arc<str>> {
            let mut ids = self.ids.lock().unwrap().clone();
            ids.sort_unstable();
            ids
        }

        fn take(&self, new: Vec<Arc<str>>) -> Answer<'_, u64> {
            self.tries.fetch_add(1, Ordering::Relaxed);
            let mode = self.mode.lock().unwrap().clone();
            let count = new.len() as u64;
            let is_taken = mode != Mode::Away && !matches!(&mode, Mode::Refuses(id) if new.contains(id));
            if is_taken {
                let mut ids = self.ids.lock().unwrap();
                let new: Vec<Arc<str>> = new.into_iter().filter(|id| !ids.contains(id)).collect();
                ids.extend(new);
            }
            let answer = match mode {
                Mode::Away | Mode::Liar => Err(StoreError::Unavailable("away".to_owned())),
                Mode::Refuses(_) if !is_taken => Err(StoreError::Damaged("refused".to_owned())),
                Mode::Up | Mode::Refuses(_) => Ok(count),
            };
            Box::pin(std::future::ready(answer))
        }
    }

    impl CallLog for Fake {
        fn append(&self, entries: Arc<[Entry]>) -> Answer<'_, u64> {
            self.take(entries.iter().map(|entry| entry.row.id.clone()).collect())
        }

        fn rate(&self, feedback: Arc<[Feedback]>) -> Answer<'_, u64> {
            self.take(feedback.iter().map(|rating| rating.id.clone()).collect())
        }

        fn feedback(&self, _: FeedbackFilter, _: Option<Arc<str>>, _: usize) -> Answer<'_, FeedbackPage> {
            unreachable!("the writer only appends")
        }

        fn page(&self, _: Filter, _: Option<Arc<str>>, _: usize) -> Answer<'_, Page> {
            unreachable!("the writer only appends")
        }

        fn get(&self, _: Arc<str>) -> Answer<'_, Option<CallRow>> {
            unreachable!("the writer only appends")
        }

        fn bodies(&self, _: Arc<str>) -> Answer<'_, Option<Bodies>> {
            unreachable!("the writer only appends")
        }

        fn usage(&self, _: UsageQuery) -> Answer<'_, Vec<Series>> {
            unreachable!("the writer only appends")
        }

        fn arms(&self, _: ArmsQuery) -> Answer<'_, Vec<ArmFigures>> {
            unreachable!("the writer only appends")
        }

        fn put_evaluation(&self, _: Evaluation) -> Answer<'_, ()> {
            unreachable!("the writer only appends")
        }

        fn evaluations(&self, _: Option<String>, _: Option<Arc<str>>, _: usize) -> Answer<'_, EvaluationPage> {
            unreachable!("the writer only appends")
        }

        fn evaluation(&self, _: Arc<str>) -> Answer<'_, Option<Evaluation>> {
            unreachable!("the writer only appends")
        }

        fn delete_before(&self, _: u64) -> Answer<'_, u64> {
            unreachable!("the writer only appends")
        }
    }

    fn keep() -> KeepBodies {
        Box::new(|_| Bodies::default())
    }

    fn id(n: usize) -> Arc<str> {
        crate::store::records::contract::id(crate::store::records::contract::BEGIN_MS, n as u64)
    }

    fn push(handover: &Handover, numbers: std::ops::Range<usize>) {
        handover.push(&mut numbers.map(|n| recorder::blank(id(n), "chat_completions")).collect());
    }

    fn until(what: &str, condition: impl Fn() -> bool) {
        let began = std::time::Instant::now();
        while !condition() {
            assert!(began.elapsed() < Duration::from_secs(20), "{what} did not come to pass");
            std::thread::yield_now();
        }
    }

    fn all(count: usize) -> Vec<Arc<str>> {
        (0..count).map(id).collect()
    }

    #[test]
    fn what_was_handed_over_is_stored_by_the_end() {
        let (dir, log) = (tempfile::tempdir().unwrap(), Arc::new(Fake::default()));
        let (handover, progress, thread) = start(log.clone(), dir.path(), 1 << 20, keep()).unwrap();
        push(&handover, 0..2500);
        drop(handover);
        thread.join().unwrap();
        assert_eq!(log.ids(), all(2500));
        assert_eq!((progress.waiting(), progress.take_dropped(), progress.store_up()), (0, 0, true));
    }

    #[test]
    fn a_store_that_was_away_gets_each_call_once() {
        let (dir, log) = (tempfile::tempdir().unwrap(), Arc::new(Fake::default()));
        let (handover, progress, thread) = start(log.clone(), dir.path(), 16 << 20, keep()).unwrap();
        log.set(Mode::Away);
        push(&handover, 0..1500);
        until("the store is missed", || !progress.store_up());
        push(&handover, 1500..3000);
        until("all wait on disk", || progress.queued.load(Ordering::Relaxed) == 0);
        log.set(Mode::Liar);
        let tries = log.tries.load(Ordering::Relaxed);
        until("it was tried again", || log.tries.load(Ordering::Relaxed) > tries + 1);
        log.set(Mode::Up);
        until("all are stored", || progress.waiting() == 0 && log.ids().len() == 3000);
        assert_eq!((log.ids(), progress.store_up(), progress.take_dropped()), (all(3000), true, 0));
        drop(handover);
        thread.join().unwrap();
        assert!(!dir.path().join(SPILL_FILE).exists());
    }

    #[test]
    fn feedback_waits_with_the_calls_and_is_refused_where_it_would_be_lost() {
        let (dir, log) = (tempfile::tempdir().unwrap(), Arc::new(Fake::default()));
        log.set(Mode::Away);
        let (handover, progress, thread) = start(log.clone(), dir.path(), 100_000, keep()).unwrap();
        let desk = handover.desk();
        push(&handover, 0..2);
        let said: Vec<Feedback> = (100..103).map(|n| rating(BEGIN_MS, n)).collect();
        desk.push(said.clone()).unwrap();
        until("all wait on disk", || progress.queued.load(Ordering::Relaxed) == 0 && progress.waiting() == 5);
        push(&handover, 10..1000);
        until("there is no room left", || desk.push(said.clone()) == Err(Refused::Full));
        log.set(Mode::Up);
        until("all are stored", || progress.waiting() == 0);
        assert!(said.iter().all(|rating| log.ids().contains(&rating.id)));
        until("there is room again", || desk.push(vec![rating(BEGIN_MS, 103)]).is_ok());
        drop(handover);
        thread.join().unwrap();
        assert!(log.ids().contains(&rating(BEGIN_MS, 103).id));
        assert_eq!(desk.push(said), Err(Refused::Closed));
    }

    #[test]
    fn the_next_process_stores_what_this_one_could_not() {
        let (dir, log) = (tempfile::tempdir().unwrap(), Arc::new(Fake::default()));
        log.set(Mode::Away);
        let (handover, progress, thread) = start(log.clone(), dir.path(), 16 << 20, keep()).unwrap();
        push(&handover, 0..1200);
        drop(handover);
        thread.join().unwrap();
        assert_eq!((log.ids(), progress.waiting()), (Vec::new(), 1200));

        log.set(Mode::Up);
        let (handover, progress, thread) = start(log.clone(), dir.path(), 16 << 20, keep()).unwrap();
        until("all are stored", || progress.waiting() == 0);
        assert_eq!(log.ids(), all(1200));
        drop(handover);
        thread.join().unwrap();
    }

    #[test]
    fn a_call_that_the_store_refuses_is_dropped_alone() {
        let (dir, log) = (tempfile::tempdir().unwrap(), Arc::new(Fake::default()));
        log.set(Mode::Refuses(id(3)));
        let (handover, progress, thread) = start(log.clone(), dir.path(), 1 << 20, keep()).unwrap();
        push(&handover, 0..9);
        drop(handover);
        thread.join().unwrap();
        assert_eq!((log.ids().len(), progress.take_dropped(), progress.store_up()), (8, 1, true));
    }

    #[test]
    fn what_neither_store_nor_disk_takes_by_the_end_counts_as_lost() {
        let (dir, log) = (tempfile::tempdir().unwrap(), Arc::new(Fake::default()));
        log.set(Mode::Away);
        let (handover, progress, thread) = start(log.clone(), dir.path(), 1 << 20, keep()).unwrap();
        std::fs::remove_dir_all(dir.path()).unwrap();
        push(&handover, 0..9);
        drop(handover);
        thread.join().unwrap();
        assert_eq!((log.ids().len(), progress.take_dropped()), (0, 9));
    }

    #[test]
    fn what_has_no_room_anywhere_is_counted() {
        let (dir, log) = (tempfile::tempdir().unwrap(), Arc::new(Fake::default()));
        log.set(Mode::Away);
        let (handover, progress, thread) = start(log.clone(), dir.path(), 100_000, keep()).unwrap();
        push(&handover, 0..QUEUE_MAX + 10);
        drop(handover);
        thread.join().unwrap();
        let kept = progress.waiting();
        assert!(kept > 10 && kept < 1000, "{kept}");
        assert_eq!(progress.take_dropped() + kept, QUEUE_MAX as u64 + 10);
    }
}
