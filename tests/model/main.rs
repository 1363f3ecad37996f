//! A model check of the ledger's protocol: all interleavings of three gateways, a store with a replica, and the network.
//!
//! An exhaustive search of our own rather than a framework: states are small, gateways are interchangeable, and what is searched
//! is the ledger's own code. `cargo test` searches small scenarios; `make model` all of them, and prints the table that
//! `docs/ledger.md` shows. A scenario from which a rule is taken away has to fail, or the search would prove nothing.

mod scenario;
mod search;
mod world;

use scenario::{Rule, Scenario, Times};
use search::{Outcome, search};

fn times(reports: u8, calls: u8) -> Times {
    Times { reports, calls, ..Scenario::new("").times }
}

/// What has to hold.
fn promises() -> Vec<Scenario> {
    let scenario = Scenario::new;
    let usual = times(3, 2);
    vec![
        Scenario {
            times: Times { pauses: 1, ..times(4, 2) },
            ..scenario("no faults but the network's, and 20 s of silence")
        },
        Scenario { limit: 3, messages: 3, ..scenario("no faults but the network's, three messages on the way") },
        Scenario { times: Times { crashes: 1, ..times(4, 2) }, ..scenario("one crash, journal kept or lost") },
        Scenario { times: Times { crashes: 2, ..usual }, ..scenario("two crashes") },
        Scenario {
            times: Times { crashes: 1, reclaims: 1, ..usual },
            ..scenario("any purse is declared spent, alive or not, and one crash")
        },
        Scenario { limit: 3, next_limit: Some(1), ..scenario("the limit is lowered, for one gateway after the other") },
        Scenario { next_limit: Some(3), ..scenario("the limit is raised, for one gateway after the other") },
        Scenario { times: Times { debts: 2, ..usual }, ..scenario("credit, and costs above their bound") },
        Scenario {
            wait: true,
            known_account: false,
            all_return: false,
            times: Times { failovers: 1, ..usual },
            ..scenario("one failover, grants wait for the replica")
        },
        Scenario {
            wait: true,
            known_account: false,
            all_return: false,
            times: Times { failovers: 1, crashes: 1, ..times(2, 2) },
            ..scenario("the same, and one crash")
        },
        Scenario {
            wait: true,
            known_account: false,
            all_return: false,
            times: Times { failovers: 2, ..times(2, 2) },
            ..scenario("two failovers, grants wait for the replica")
        },
        Scenario {
            one_flight: true,
            known_account: false,
            times: Times { failovers: 1, ..usual },
            ..scenario("one failover, no waiting, all holders report while the new primary listens")
        },
        Scenario {
            one_flight: true,
            times: Times { wipes: 1, ..usual },
            ..scenario("the store is emptied, all holders report while it listens")
        },
    ]
}

/// What has to fail: a rule or an assumption is missing.
fn mistakes() -> Vec<Scenario> {
    let scenario = Scenario::new;
    let fails =
        |name| Scenario { limit: 1, one_flight: true, times: Times { failovers: 1, ..times(2, 2) }, ..scenario(name) };
    let fails_while_waiting = |name| Scenario { wait: true, known_account: false, all_return: false, ..fails(name) };
    vec![
        Scenario {
            without: Some(Rule::NoExpiry),
            times: Times { reclaims: 1, ..times(2, 2) },
            ..fails("a lease that expires is granted again")
        },
        Scenario { without: Some(Rule::NoRefund), ..scenario("a refund for a call whose client left") },
        Scenario { without: Some(Rule::Totals), ..scenario("reports are differences, not totals") },
        Scenario {
            without: Some(Rule::NeverStartedFull),
            times: Times { wipes: 1, ..times(2, 2) },
            ..fails("a missing account starts full")
        },
        Scenario {
            without: Some(Rule::WithheldGrants),
            ..fails_while_waiting("grants are used before the replica has them")
        },
        Scenario {
            without: Some(Rule::RewrittenGrants),
            ..fails_while_waiting("a grant is told again, on a new connection, without being written again")
        },
        Scenario {
            without: Some(Rule::Learning),
            times: Times { failovers: 1, ..times(3, 2) },
            ..fails("no waiting, and the new primary does not listen")
        },
        Scenario {
            all_return: false,
            times: Times { failovers: 1, ..times(3, 2) },
            ..fails("no waiting, and a holder reports only after it listened")
        },
        Scenario {
            one_flight: false,
            times: Times { failovers: 1, ..times(3, 2) },
            ..fails("no waiting, and an answer of the old primary comes late")
        },
        Scenario {
            known_account: false,
            without: Some(Rule::NeverStartedFull),
            ..fails("no waiting, and the new primary starts an account full that it does not know")
        },
    ]
}

/// A scenario small enough for a build that is not optimised; `None` when two faults make it too large.
fn small(scenario: &Scenario) -> Option<Scenario> {
    let times = Times { reports: 2, calls: 1, debts: scenario.times.debts.min(1), ..scenario.times };
    let faults = times.crashes + times.failovers + times.wipes;
    (faults < 2).then_some(Scenario { messages: 2, times, ..*scenario })
}

fn line(scenario: &Scenario, outcome: &Outcome) -> String {
    let Outcome { states, depth, took, fault } = outcome;
    let verdict = fault.as_ref().map_or("holds".to_owned(), |(fault, _)| format!("**{fault}**"));
    format!("| {} | {states} | {depth} | {:.1} | {verdict} |", scenario.name, took.as_secs_f64())
}

fn shown(outcome: &Outcome) -> String {
    let Some((fault, trace)) = &outcome.fault else { return "nothing".to_owned() };
    let steps = trace.iter().enumerate().map(|(index, step)| format!("{:>4}. {step}\n", index + 1));
    format!("{fault}:\n{}", steps.collect::<String>())
}

#[test]
fn what_is_promised_holds_in_small_worlds() {
    for scenario in promises().iter().filter_map(small) {
        let outcome = search(&scenario);
        assert!(outcome.fault.is_none(), "{}: {}", scenario.name, shown(&outcome));
        assert!(outcome.states > 100, "{}: only {} states", scenario.name, outcome.states);
    }
}

#[test]
fn without_each_rule_money_is_spent_twice_or_not_counted() {
    // The others take a second each where nothing is optimised.
    let fails_early = |scenario: &Scenario| scenario.times.failovers == 0 || scenario.times.reports <= 2;
    for scenario in mistakes().into_iter().filter(fails_early) {
        assert!(search(&scenario).fault.is_some(), "{} does no harm", scenario.name);
    }
}

#[test]
#[ignore = "takes minutes in an optimised build: `make model`"]
fn table() {
    println!("| scenario | states | depth | seconds | |\n|---|---|---|---|---|");
    let mut surprises = Vec::new();
    let mut traces = Vec::new();
    for (scenarios, holds) in [(promises(), true), (mistakes(), false)] {
        for scenario in scenarios {
            let outcome = search(&scenario);
            println!("{}", line(&scenario, &outcome));
            if outcome.fault.is_some() {
                traces.push(format!("{}: {}", scenario.name, shown(&outcome)));
            }
            if outcome.fault.is_none() != holds {
                surprises.push(scenario.name);
            }
        }
    }
    println!("\n{}", traces.join("\n"));
    assert!(surprises.is_empty(), "not as it has to be: {surprises:?}");
}
