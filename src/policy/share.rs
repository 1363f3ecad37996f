//! A rate limit that several replicas share: who may admit how much of it, decided without a clock and without I/O.
//!
//! Each replica holds a [`Share`] of a limit and admits within it, asking nobody. Now and then it reports what it holds, what its
//! window has in it and how fast calls come; [`rebalance`] keeps a [`Row`] per replica and answers with a new cap.
//!
//! # Why no window admits more than the limit
//! What a replica *holds* is its cap or, where that was lowered below it, what its window still has in it. A cap is lowered
//! at once, and what is held sinks as the window empties. It is raised only to what the rows of the others leave of the limit,
//! and a row says no less than its replica holds: it was written before the replica knew. So what all of them hold is never
//! above the limit, nor is what all windows have in them, whatever is lost, repeated or late. Reports are numbered; one
//! that arrives after a later one changes nothing.
//!
//! On top of it each replica may admit one request, and [`BRIDGE`] of the limit: as much as the limit's own pace brings in the
//! time that the first answer takes. That is the "one request per replica" and, up to 64 replicas, the "1.05" of the promise.
//!
//! - A replica that was silent for so long that all it may have admitted has left the window is forgotten. One that only cannot
//!   reach the store meanwhile still admits its last share: rate limits fail open.
//! - A store that lost its rows, or may have, *learns*: it raises no cap until all replicas had time to report.

use std::collections::BTreeMap;

/// A replica may admit a 1280th of a limit that nobody has granted: a twentieth, were there 64 replicas.
const BRIDGE: u64 = 1280;
/// Reports without a call after which a replica keeps no more than half of the limit in reserve.
const QUIET: u32 = 8;
/// Reports without a call after which it leaves.
const LEAVES: u32 = 64;
/// Less than this part of the limit free counts as contended, and this part is split evenly among all who take part.
const SIXTEENTH: u64 = 16;
/// As many times the silence that makes a replica late pass before it was surely silent: [`QUIET`] intervals and a few lost ones.
const SEEN_WITHIN: u64 = 3;
/// Above this, Lua's numbers are not exact.
const COUNT_MAX: u64 = (1 << 53) - 1;
/// Keeps sums of rates exact, too.
const RATE_MAX: u64 = 1 << 40;

/// What one replica may admit of a limit, and what it knows of the demand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    /// What it was granted.
    cap: u64,
    /// Asked for since the last report, admitted or not.
    attempted: u64,
    /// Thousandths per second, smoothed.
    rate: u64,
    /// When demand was last looked at.
    sampled_ns: u64,
    /// Reports since the last call.
    quiet: u32,
    /// What was free of the limit at the last answer.
    free: Option<u64>,
    /// Whether no other replica takes part.
    alone: bool,
}

/// What a replica says of one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The limit's count.
    pub limit: u64,
    /// Its window.
    pub window_ms: u64,
    /// What the replica may have in its window until the answer is there.
    pub hold: u64,
    /// What is in it now.
    pub used: u64,
    /// Demand, in thousandths per second.
    pub rate: u64,
    /// The most that it wants to hold.
    pub want: u64,
}

/// What a report is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// What the replica may admit in a window.
    pub cap: u64,
    /// What is free of the limit, as far as is known.
    pub free: u64,
    /// Whether no other replica takes part.
    pub alone: bool,
}

/// What is known of one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The number of its last report.
    pub number: u64,
    /// No less than what it holds.
    pub hold: u64,
    /// What its window had in it.
    pub used: u64,
    /// Its demand, in thousandths per second.
    pub rate: u64,
    /// When it reported.
    pub seen_ms: u64,
}

/// The circumstances of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The store's clock.
    pub now_ms: u64,
    /// After this long a replica is late: at least five intervals between reports.
    pub silence_ms: u64,
    /// Whether rows may be missing.
    pub learning: bool,
    /// How many replicas there are, whether or not they take part in this account.
    pub replicas: u64,
}

// === impl Share ===

impl Share {
    /// Begins to take part, with nothing but what the window still has in it.
    pub fn join(&mut self, now_ns: u64, used: u64) {
        // What is in the window was reported when the replica left, and is remembered for as long as it is in the window.
        let cap = if used == 0 { 0 } else { self.cap };
        *self = Share { cap, sampled_ns: now_ns, ..Share::default() };
    }

    /// Notes that so much was asked for.
    pub fn attempt(&mut self, cost: u64) {
        self.attempted = self.attempted.saturating_add(cost);
        self.quiet = 0;
    }

    /// The most that the window may have in it. `open` is what is admitted in any case while the store is away.
    #[must_use]
    pub fn most(&self, limit: u64, open: u64) -> u64 {
        self.cap.max(open).saturating_add(bridge(limit)).min(limit)
    }

    /// Whether the fleet had so much free at the last answer, or nothing is known yet: then a larger share is on its way.
    #[must_use]
    pub fn may_grow(&self, cost: u64) -> bool {
        self.free.is_none_or(|free| free >= cost)
    }

    /// Wants nothing more.
    pub fn leave(&mut self) {
        self.attempted = 0;
        self.quiet = LEAVES;
    }

    /// Lowers the share to what is wanted, and says so; `None` where there is nothing to say this time.
    ///
    /// `interval_ms` is the time between reports, at least 1; `must` asks for a report in any case.
    pub fn report(
        &mut self,
        now_ns: u64,
        used: u64,
        (limit, window_ms): (u64, u64),
        interval_ms: u64,
        must: bool,
    ) -> Option<Report> {
        self.sample(now_ns, interval_ms);
        let limit = limit.min(COUNT_MAX);
        let want = if self.is_leaving(used) {
            used
        } else if self.quiet >= QUIET {
            used.saturating_add(limit.div_ceil(2))
        } else {
            limit
        };
        self.cap = self.cap.min(want).min(limit);
        let hold = self.cap.max(used.saturating_sub(bridge(limit))).min(COUNT_MAX);
        let report =
            Report { limit, window_ms, hold, used: used.min(COUNT_MAX), rate: self.rate, want: want.min(COUNT_MAX) };
        let is_news = self.quiet < QUIET || self.quiet.is_multiple_of(QUIET) || !self.alone || self.is_leaving(used);
        (is_news || must).then_some(report)
    }

    /// Takes the answer to the last report.
    pub fn take(&mut self, answer: Answer) {
        self.cap = answer.cap;
        self.free = Some(answer.free);
        self.alone = answer.alone;
    }

    /// Whether the last report was its last, as long as no call comes.
    #[must_use]
    pub fn has_left(&self, used: u64) -> bool {
        self.attempted == 0 && self.is_leaving(used)
    }

    fn is_leaving(&self, used: u64) -> bool {
        self.quiet >= LEAVES || self.quiet >= QUIET && used == 0
    }

    /// Half of the new rate is what came since the last report.
    fn sample(&mut self, now_ns: u64, interval_ms: u64) {
        let elapsed_ms = (now_ns.saturating_sub(self.sampled_ns) / 1_000_000).max(interval_ms).max(1);
        let since = u128::from(self.attempted) * 1_000_000 / u128::from(elapsed_ms);
        let since = u64::try_from(since).unwrap_or(RATE_MAX).min(RATE_MAX);
        self.rate = if self.free.is_none() { since } else { (self.rate + since) / 2 };
        self.quiet = if self.attempted == 0 { self.quiet.saturating_add(1) } else { 0 };
        self.attempted = 0;
        self.sampled_ns = now_ns;
    }
}

/// What a replica may admit that was not granted to it.
fn bridge(limit: u64) -> u64 {
    limit / BRIDGE + 1
}

// === the store's side ===

/// Takes a report into the rows of one account of a limit, and answers it; `None` when it is older than what is known.
pub fn rebalance(
    rows: &mut BTreeMap<u64, Row>,
    replica: u64,
    number: u64,
    report: &Report,
    arrival: Arrival,
) -> Option<Answer> {
    let Arrival { now_ms, silence_ms, learning, replicas } = arrival;
    // Whoever is quiet reports seldom, and may have used its reserve since.
    let memory_ms = report.window_ms.saturating_add(silence_ms.saturating_mul(SEEN_WITHIN));
    rows.retain(|_, row| row.seen_ms.abs_diff(now_ms) < memory_ms);
    if rows.get(&replica).is_some_and(|row| row.number >= number) {
        return None;
    }
    rows.remove(&replica);
    let room = report.limit.saturating_sub(sum(rows.values().map(|row| row.hold)));
    let free = report.limit.saturating_sub(sum(rows.values().map(|row| row.used)).saturating_add(report.used));
    // What a late one asked for is no demand any more.
    let prompt = rows.values().filter(|row| row.seen_ms.abs_diff(now_ms) < silence_ms);
    let (count, rates) = prompt.fold((1, report.rate), |(count, rates), row| (count + 1, rates + row.rate));
    let part = part(report.rate, rates, count);
    // Where there is room, it is what is divided; where there is none, all of it is, and whoever has more waits for its window.
    let is_roomy = free > report.limit / SIXTEENTH;
    let target = if is_roomy { report.used.saturating_add(portion(free, part)) } else { portion(report.limit, part) };
    // Nobody takes all at once while others may be about to ask.
    let room = match is_roomy && replicas > 1 {
        true => room.min(report.hold.saturating_add(room.saturating_sub(report.hold).div_ceil(2))),
        false => room,
    };
    let mut cap = target.min(room).min(report.want);
    if learning {
        cap = cap.min(report.hold);
    }
    let alone = rows.is_empty();
    let hold = cap.max(report.hold);
    if hold > 0 || report.want > 0 {
        rows.insert(replica, Row { number, hold, used: report.used, rate: report.rate, seen_ms: now_ms });
    }
    Some(Answer { cap, free, alone })
}

/// The part that is due to demand `rate` of `rates`, with an even part of a sixteenth for each of `count`.
fn part(rate: u64, rates: u64, count: u64) -> f64 {
    let (rate, rates, count) = (rate as f64, rates as f64, count as f64);
    if rates == 0.0 { 1.0 / count } else { (15.0 * count * rate + rates) / (16.0 * count * rates) }
}

/// A part of a count, rounded up.
fn portion(count: u64, part: f64) -> u64 {
    (count as f64 * part).ceil() as u64
}

fn sum(counts: impl Iterator<Item = u64>) -> u64 {
    counts.fold(0, u64::saturating_add).min(COUNT_MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    };

    use proptest::prelude::*;

    use super::*;
    use crate::{
        policy::{
            limits::{Limit, Limiter, Rate, Reported, WindowReport},
            scope::{Facts, Scope},
        },
        units::Tokens,
    };

    const MS: u64 = 1_000_000;
    const INTERVAL_MS: u64 = 1000;
    const SILENCE_MS: u64 = 6000;
    const WINDOW_MS: u64 = 60_000;

    /// What becomes of a report.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fate {
        Answered,
        Lost,
        AnswerLost,
        /// It arrives after the next one.
        Late,
    }

    /// Several real limiters around one set of rows, with clocks of their own making.
    struct Sim {
        limits: Vec<Arc<Limit>>,
        rows: BTreeMap<u64, Row>,
        replicas: Vec<Replica>,
        now_ms: u64,
        learning: bool,
        /// When, by whom.
        admitted: Vec<(u64, u64)>,
        next_id: u64,
    }

    struct Replica {
        id: u64,
        limiter: Limiter,
        woken: Arc<AtomicBool>,
        number: u64,
        due_ms: u64,
        late: Option<(u64, Report)>,
        losses: u32,
    }

    impl Sim {
        fn new(count: u64, replicas: usize) -> Sim {
            let rate = Rate { count, per_ms: WINDOW_MS };
            let limit = Limit {
                name: "all".into(),
                scope: Scope::default(),
                requests: Some(rate),
                tokens: None,
                concurrent: None,
            };
            let limits = vec![Arc::new(limit)];
            let mut sim = Sim {
                limits,
                rows: BTreeMap::new(),
                replicas: Vec::new(),
                now_ms: 1_000_000,
                learning: false,
                admitted: Vec::new(),
                next_id: 1,
            };
            (0..replicas).for_each(|_| sim.join());
            sim
        }

        fn join(&mut self) {
            let woken = Arc::new(AtomicBool::new(false));
            let limiter = Limiter::shared({
                let woken = Arc::clone(&woken);
                move || woken.store(true, SeqCst)
            });
            let due_ms = self.now_ms + self.next_id * 317 % INTERVAL_MS;
            let id = self.next_id;
            self.next_id += 1;
            self.replicas.push(Replica { id, limiter, woken, number: 0, due_ms, late: None, losses: 0 });
        }

        /// So many calls at once; the first of an account is reported at once.
        fn call(&mut self, at: usize, calls: u64, fate: Fate) -> u64 {
            let replica = &self.replicas[at];
            let facts = Facts { key: "web", team: None, user: "web", model: "m", tags: &[] };
            let admit = || replica.limiter.admit(&self.limits, &facts, Tokens::ZERO, self.now_ms * MS).is_ok();
            let admitted = (0..calls).filter(|_| admit()).count() as u64;
            self.admitted.extend(std::iter::repeat_n((self.now_ms, replica.id), admitted as usize));
            if replica.woken.swap(false, SeqCst) {
                self.sync(at, Reported::New, fate);
            }
            admitted
        }

        fn pass(&mut self, ms: u64, fate: impl Fn(u32) -> Fate) {
            let until = self.now_ms + ms;
            while let Some(next) = self.replicas.iter().map(|replica| replica.due_ms).min().filter(|due| *due <= until)
            {
                self.now_ms = self.now_ms.max(next);
                let at = self.replicas.iter().position(|replica| replica.due_ms == next).expect("just found");
                self.replicas[at].due_ms = next + INTERVAL_MS;
                let fate = fate(self.replicas[at].losses);
                self.sync(at, Reported::Due, fate);
            }
            self.now_ms = until;
        }

        fn sync(&mut self, at: usize, which: Reported, fate: Fate) {
            let (now_ms, learning, replicas) = (self.now_ms, self.learning, self.replicas.len() as u64);
            let replica = &mut self.replicas[at];
            let which = if replica.losses > 0 && which == Reported::Due { Reported::All } else { which };
            replica.number += 1;
            let reports = replica.limiter.reports(which, now_ms * MS, INTERVAL_MS);
            let Some(WindowReport { report, .. }) = reports.first() else { return };
            let arrival = Arrival { now_ms, silence_ms: SILENCE_MS, learning, replicas };
            let mut arrive = |number, report: &Report| rebalance(&mut self.rows, replica.id, number, report, arrival);
            replica.losses = if fate == Fate::Answered { 0 } else { replica.losses + 1 };
            match fate {
                Fate::Lost => {}
                Fate::Late => replica.late = Some((replica.number, *report)),
                Fate::AnswerLost => drop(arrive(replica.number, report)),
                Fate::Answered => {
                    let answer = arrive(replica.number, report);
                    assert!(answer.is_some(), "the newest report is answered");
                    replica.limiter.take(&reports, &[answer]);
                    // Nobody waits for the answer any more.
                    if let Some((number, report)) = replica.late.take() {
                        let _ = arrive(number, &report);
                    }
                }
            }
        }

        /// Seconds of so many calls each, on each replica; what was admitted of them.
        fn seconds(&mut self, seconds: u64, calls: &[u64]) -> Vec<u64> {
            let mut admitted = vec![0; calls.len()];
            for _ in 0..seconds * 10 {
                for (at, calls) in calls.iter().enumerate() {
                    admitted[at] += self.call(at, calls / 10, Fate::Answered);
                }
                self.pass(100, |_| Fate::Answered);
            }
            admitted
        }

        /// The most in any window, beyond the limit: what of it, and how much the replicas of that window may have more.
        fn assert_promise(&self, limit: u64) {
            let mut from = 0;
            for (to, (end_ms, _)) in self.admitted.iter().enumerate() {
                while self.admitted[from].0 + WINDOW_MS <= *end_ms {
                    from += 1;
                }
                let window = &self.admitted[from..=to];
                if window.len() as u64 <= limit {
                    continue;
                }
                let replicas = window.iter().map(|(_, id)| id).collect::<std::collections::BTreeSet<_>>().len() as u64;
                let most = limit + limit / 20 + replicas;
                assert!(window.len() as u64 <= most, "{} of {limit} by {replicas} replicas", window.len());
                assert!(
                    window.len() as u64 <= limit + replicas * bridge(limit),
                    "tighter: {} of {limit}",
                    window.len()
                );
            }
        }
    }

    #[test]
    fn whoever_is_alone_has_the_whole_limit_after_one_answer() {
        let mut sim = Sim::new(600, 1);
        assert_eq!(sim.call(0, 1000, Fate::Answered), 1, "nothing is granted yet");
        assert_eq!(sim.call(0, 1000, Fate::Answered), 599);
    }

    #[test]
    fn the_first_of_several_leaves_room_for_the_others_and_has_the_rest_soon() {
        let mut sim = Sim::new(600, 3);
        let first: Vec<u64> =
            (0..3).map(|at| sim.call(at, 10, Fate::Answered) + sim.call(at, 10, Fate::Answered)).collect();
        assert_eq!(first, [11, 11, 11], "one before the first answer, ten after it");
        let rest = sim.seconds(10, &[1000]);
        assert!(rest[0] >= 540 - 33, "{rest:?}");
        sim.assert_promise(600);
    }

    #[test]
    fn equal_demand_has_equal_shares_and_the_whole_limit_is_used() {
        let mut sim = Sim::new(1200, 3);
        sim.seconds(240, &[100, 100, 100]);
        let last = sim.seconds(60, &[100, 100, 100]);
        let total: u64 = last.iter().sum();
        assert!(total >= 1080, "{last:?}");
        assert!(last.iter().all(|one| (300..=500).contains(one)), "{last:?}");
        sim.assert_promise(1200);
    }

    #[test]
    fn a_flipped_load_takes_the_share_along() {
        let mut sim = Sim::new(1200, 3);
        sim.seconds(120, &[100, 10, 0]);
        let one_sided = sim.seconds(60, &[100, 10, 0]);
        assert!(one_sided[0] + one_sided[1] >= 1080, "{one_sided:?}");
        sim.seconds(65, &[10, 0, 100]);
        let flipped = sim.seconds(60, &[10, 0, 100]);
        assert!(flipped[2] >= 900 && flipped.iter().sum::<u64>() >= 1080, "{flipped:?}");
        sim.assert_promise(1200);
    }

    #[test]
    fn demand_below_the_limit_is_hardly_ever_refused() {
        let mut sim = Sim::new(6000, 3);
        sim.seconds(5, &[40, 20, 10]);
        let asked = 60 * (40 + 20 + 10);
        let admitted: u64 = sim.seconds(60, &[40, 20, 10]).iter().sum();
        assert!(admitted * 100 >= asked * 98, "{admitted} of {asked}");
        sim.assert_promise(6000);
    }

    #[test]
    fn a_newcomer_is_not_starved_by_one_that_uses_everything() {
        let mut sim = Sim::new(600, 1);
        sim.seconds(120, &[100]);
        sim.join();
        let first = sim.seconds(60, &[100, 100]);
        let then = sim.seconds(60, &[100, 100]);
        assert!(first[1] >= 60 && then[1] >= 150, "{first:?} {then:?}");
        sim.assert_promise(600);
    }

    #[test]
    fn sparse_calls_are_admitted_again_and_again() {
        let mut sim = Sim::new(60, 3);
        for round in 0..200 {
            assert_eq!(sim.call(round % 3, 1, Fate::Answered), 1, "round {round}");
            sim.pass(7_000, |_| Fate::Answered);
        }
    }

    #[test]
    fn one_that_is_gone_is_forgotten_once_its_window_has_passed() {
        let mut sim = Sim::new(600, 2);
        sim.seconds(30, &[100, 0]);
        sim.replicas.remove(0);
        let at_first = sim.seconds(20, &[100]);
        assert!(at_first[0] < 100, "what it may have used still counts: {at_first:?}");
        sim.seconds(80, &[100]);
        let later = sim.seconds(60, &[100]);
        assert!(later[0] >= 540, "{later:?}");
        sim.assert_promise(600);
    }

    #[test]
    fn a_store_that_learns_raises_nothing() {
        let mut sim = Sim::new(600, 2);
        sim.seconds(2, &[10, 10]);
        sim.rows.clear();
        sim.learning = true;
        sim.seconds(4, &[200, 200]);
        sim.learning = false;
        sim.seconds(120, &[200, 200]);
        sim.assert_promise(600);
    }

    #[test]
    fn while_the_store_is_away_shares_stay_and_nobody_has_less_than_an_even_part() {
        let mut sim = Sim::new(600, 3);
        sim.seconds(3, &[20, 0, 0]);
        for replica in &sim.replicas {
            replica.limiter.store_answers(3);
            replica.limiter.store_is_away();
        }
        let admitted: Vec<u64> = (0..3).map(|at| sim.call(at, 1000, Fate::Lost)).collect();
        assert_eq!(admitted[1..], [201, 201], "a third each, where there was no share");
        assert!((400..=600).contains(&admitted[0]), "the last share: {admitted:?}");
    }

    #[test]
    fn those_that_find_no_place_have_an_even_part() {
        let limiter = Limiter::shared(|| {});
        limiter.store_answers(3);
        let scope = Scope { user: Some(crate::policy::scope::Match::Each), ..Scope::default() };
        let rate = Some(Rate { count: 30, per_ms: WINDOW_MS });
        let limit = Limit { name: "each".into(), scope, requests: rate, tokens: None, concurrent: None };
        let limits = [Arc::new(limit)];
        let admitted = |user: &str| {
            let facts = Facts { key: "web", team: None, user, model: "m", tags: &[] };
            (0..100).filter(|_| limiter.admit(&limits, &facts, Tokens::ZERO, 0).is_ok()).count()
        };
        for user in 0..crate::policy::limits::LISTED_MAX {
            assert_eq!(admitted(&user.to_string()), 1);
        }
        assert_eq!(admitted("one too many"), 11);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Calls { replica: usize, calls: u64, fate: Fate },
        Pass { ms: u64, fate: Fate },
        Join,
        Crash { replica: usize },
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![6 => Just(Fate::Answered), 1 => Just(Fate::Lost), 1 => Just(Fate::AnswerLost), 1 => Just(Fate::Late)]
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            8 => (0usize..8, prop_oneof![0u64..20, 0u64..1000], fate())
                .prop_map(|(replica, calls, fate)| Event::Calls { replica, calls, fate }),
            8 => (prop_oneof![4 => 0u64..2500, 1 => 0u64..70_000], fate())
                .prop_map(|(ms, fate)| Event::Pass { ms, fate }),
            1 => Just(Event::Join),
            1 => (0usize..8).prop_map(|replica| Event::Crash { replica }),
        ]
    }

    proptest! {
        #[test]
        fn no_window_admits_more_than_the_limit_and_a_little_per_replica(
            limit in prop_oneof![1u64..100, 100u64..2000],
            replicas in 1usize..6,
            events in prop::collection::vec(event(), 1..150),
        ) {
            let mut sim = Sim::new(limit, replicas);
            for event in events {
                match event {
                    Event::Calls { replica, calls, fate } => {
                        sim.call(replica % sim.replicas.len(), calls, fate);
                    }
                    // Whoever hears nothing for longer is cut off, and keeps its last share.
                    Event::Pass { ms, fate } => sim.pass(ms, |losses| if losses < 5 { fate } else { Fate::Answered }),
                    Event::Join if sim.replicas.len() < 16 => sim.join(),
                    Event::Crash { replica } if sim.replicas.len() > 1 => {
                        sim.replicas.remove(replica % sim.replicas.len());
                    }
                    Event::Join | Event::Crash { .. } => {}
                }
            }
            sim.assert_promise(limit);
        }

        #[test]
        fn tokens_of_any_size_exceed_the_limit_by_one_call_per_replica_at_most(
            limit in 100u64..100_000,
            steps in prop::collection::vec((0usize..3, 1u64..40_000, 0u64..3000), 1..150),
        ) {
            let rate = Some(Rate { count: limit, per_ms: WINDOW_MS });
            let tokens = Limit {
                name: "tokens".into(),
                scope: Scope::default(),
                requests: None,
                tokens: rate,
                concurrent: None,
            };
            let mut sim = Sim::new(limit, 3);
            sim.limits = vec![Arc::new(tokens)];
            let facts = Facts { key: "web", team: None, user: "web", model: "m", tags: &[] };
            let mut admitted: Vec<(u64, usize, u64)> = Vec::new();
            for (at, cost, pause_ms) in steps {
                if sim.replicas[at].limiter.admit(&sim.limits, &facts, Tokens(cost), sim.now_ms * MS).is_ok() {
                    admitted.push((sim.now_ms, at, cost));
                }
                sim.pass(pause_ms, |_| Fate::Answered);
            }
            for (end_ms, _, _) in &admitted {
                let window = || admitted.iter().filter(|(at, _, _)| at <= end_ms && at + WINDOW_MS > *end_ms);
                let largest = |replica| window().filter(|(_, at, _)| *at == replica).map(|(_, _, cost)| *cost).max();
                let extra: u64 = (0..3).filter_map(largest).sum();
                let total: u64 = window().map(|(_, _, cost)| cost).sum();
                prop_assert!(total <= limit + limit / 20 + 3 + extra, "{} of {} and {}", total, limit, extra);
            }
        }
    }
}
