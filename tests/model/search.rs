//! Every state that can be reached, the nearest first.
//!
//! States are known by a 64-bit fingerprint (two of ten million are taken for one with a chance of one in 400,000), which also
//! says where each was reached from: so the way to a fault is found again without keeping any state.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    thread,
    time::{Duration, Instant},
};

use crate::{
    scenario::Scenario,
    world::{Action, Fault, World},
};

/// States that are expanded together: what is found lies in memory until it is told apart.
const BATCH: usize = 20_000;
const THREADS: usize = 2;

/// What a search found.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) states: usize,
    /// Steps to the state that is farthest from the first, or to the fault.
    pub(crate) depth: usize,
    pub(crate) took: Duration,
    /// The shortest way to what must never be.
    pub(crate) fault: Option<(Fault, Vec<String>)>,
}

/// Where each state was reached from.
type Reached = HashMap<u64, u64, BuildHasherDefault<AsItIs>>;

/// What a state leads to.
enum Found {
    State { from: u64, fingerprint: u64, world: Box<World> },
    Fault { from: u64, fault: Fault, action: Action },
}

/// Searches a scenario to its end, or to its first fault.
pub(crate) fn search(scenario: &Scenario) -> Outcome {
    let started = Instant::now();
    let first = World::new(scenario);
    let mut reached = Reached::default();
    reached.insert(first.fingerprint(), first.fingerprint());
    let (mut frontier, mut depth) = (vec![first], 0);
    while !frontier.is_empty() {
        let mut next = Vec::new();
        for batch in frontier.chunks(BATCH) {
            for found in expand_all(batch, scenario, &reached) {
                match found {
                    Found::State { from, fingerprint, world } => {
                        reached.entry(fingerprint).or_insert_with(|| {
                            next.push(*world);
                            from
                        });
                    }
                    Found::Fault { from, fault, action } => {
                        let trace = way_to(from, action, scenario, &reached);
                        let (states, took) = (reached.len(), started.elapsed());
                        return Outcome { states, depth: depth + 1, took, fault: Some((fault, trace)) };
                    }
                }
            }
        }
        depth += usize::from(!next.is_empty());
        frontier = next;
    }
    Outcome { states: reached.len(), depth, took: started.elapsed(), fault: None }
}

fn expand_all(batch: &[World], scenario: &Scenario, reached: &Reached) -> Vec<Found> {
    let share = batch.len().div_ceil(THREADS);
    thread::scope(|scope| {
        let threads: Vec<_> =
            batch.chunks(share).map(|part| scope.spawn(move || expand(part, scenario, reached))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no state makes the model panic")).collect()
    })
}

fn expand(worlds: &[World], scenario: &Scenario, reached: &Reached) -> Vec<Found> {
    let mut found = Vec::new();
    for world in worlds {
        let from = world.fingerprint();
        for action in world.actions(scenario) {
            match world.after(action, scenario) {
                Ok(None) => {}
                Ok(Some(world)) => {
                    let fingerprint = world.fingerprint();
                    if !reached.contains_key(&fingerprint) {
                        found.push(Found::State { from, fingerprint, world: Box::new(world) });
                    }
                }
                Err(fault) => found.push(Found::Fault { from, fault, action }),
            }
        }
    }
    found
}

/// Goes the way again, from the first state to the one before the fault.
fn way_to(last: u64, action: Action, scenario: &Scenario, reached: &Reached) -> Vec<String> {
    let mut way = vec![last];
    while let Some(&from) = way.last().and_then(|at| reached.get(at)).filter(|from| Some(*from) != way.last()) {
        way.push(from);
    }
    let mut world = World::new(scenario);
    let mut trace = Vec::new();
    for fingerprint in way.into_iter().rev().skip(1) {
        let step = world.actions(scenario).into_iter().find_map(|action| {
            let next = world.after(action, scenario).ok().flatten()?;
            (next.fingerprint() == fingerprint).then_some((action, next))
        });
        let (action, next) = step.expect("it was gone before");
        trace.push(world.tell(action));
        world = next;
    }
    // Gateways may have changed places: of those that do the same, one leads to the fault.
    let ends = world.actions(scenario).into_iter().find(|action| world.after(*action, scenario).is_err());
    trace.push(world.tell(ends.unwrap_or(action)));
    trace
}

/// Fingerprints are hashes already.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only fingerprints are hashed");
    }

    fn write_u64(&mut self, fingerprint: u64) {
        self.0 = fingerprint;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
