//! Simulated experiments, looked at after every unit or call: what the promises of the other files are worth.
//!
//! `TOLLGATE_SIMULATION=full` makes each of them ten times as long.

use std::{collections::VecDeque, env, f64::consts::PI, fs, path::Path};

use super::{
    Kind, Moments,
    guardrail::{self, Limit, State},
    power::{self, Baseline, Question},
    random::Random,
    sequence::{Ratio, Sequence, TARGET_UNITS},
};

const ALPHA: f64 = 0.05;

/// Control and arm.
type Arms = [Moments; 2];

/// Units per run: enough to pass the start, where an asymptotic sequence is at its weakest.
fn length(units: u32) -> u32 {
    if env::var_os("TOLLGATE_SIMULATION").is_some_and(|mode| mode == "full") { 10 * units } else { units }
}

/// Share of `runs` in which `event` came, on two threads. `what` is said with it.
fn share_of(what: &str, runs: u32, event: impl Fn(&mut Random) -> bool + Sync) -> f64 {
    let half = |seed: u64| {
        let mut random = Random::new(seed);
        (0..runs / 2).filter(|_| event(&mut random)).count()
    };
    let found = std::thread::scope(|scope| {
        let other = scope.spawn(|| half(1));
        half(2) + other.join().expect("a simulation does not panic")
    });
    let share = found as f64 / f64::from(runs);
    println!("{what}: {:.2} % of {runs} runs", share * 100.0);
    share
}

/// Whether `event` is true at any of the looks after each of `units`, of which `treated` are in the arm. `draw` is given
/// the arm and returns the unit's numerator and denominator.
fn ever(
    units: u32,
    treated: f64,
    random: &mut Random,
    draw: impl Fn(usize, &mut Random) -> (f64, f64),
    event: impl Fn(&Arms) -> bool,
) -> bool {
    let mut arms = Arms::default();
    (0..units).any(|_| {
        let arm = usize::from(random.uniform() < treated);
        let (x, n) = draw(arm, random);
        arms[arm].add(x, n);
        event(&arms)
    })
}

/// Whether the interval of the difference excludes 0.
fn told_apart(arms: &Arms, kind: Kind) -> bool {
    let [Some(control), Some(arm)] = arms.map(|arm| Ratio::of(&arm, kind)) else { return false };
    // The exact sequence of the first units takes a while, and excludes nothing that is within two standard errors.
    if (control.value - arm.value).powi(2) <= 4.0 * (control.variance + arm.variance) {
        return false;
    }
    let found = Sequence::new(ALPHA, TARGET_UNITS).difference(&arms[0], &arms[1], kind);
    found.is_some_and(|found| found.low > 0.0 || found.high < 0.0)
}

fn yes(share: f64, random: &mut Random) -> f64 {
    f64::from(u8::from(random.uniform() < share))
}

/// Failed calls and calls of a user: one call or up to sixty, and an error rate of their own, which for most is near 0.
/// The expected rate is 1 in 14.
fn unlike_user(random: &mut Random) -> (f64, f64) {
    let calls = (2.0 / (1.0 - random.uniform()).sqrt() - 1.0).floor().clamp(1.0, 60.0);
    let rate = 0.5 * random.uniform().powi(6);
    ((0..calls as u32).map(|_| yes(rate, random)).sum(), calls)
}

/// A log-normal cost: one user in a hundred costs over thirty times the median.
fn cost(random: &mut Random) -> f64 {
    // Box and Muller's method.
    let normal = (-2.0 * (1.0 - random.uniform()).ln()).sqrt() * (2.0 * PI * random.uniform()).cos();
    (1.5 * normal).exp()
}

#[test]
fn equal_arms_are_told_apart_no_more_often_than_promised() {
    for (share, units) in [(0.5, 4_000), (0.03, 1_500)] {
        let wrong = share_of(&format!("yes or no at {share}"), 2_000, |random| {
            let draw = |_, random: &mut Random| (yes(share, random), 1.0);
            ever(length(units), 0.5, random, draw, |arms| told_apart(arms, Kind::Share))
        });
        assert!(wrong <= ALPHA, "{wrong} at {share}");
    }
}

/// That the simulations could fail: the interval of the textbook, looked at as often, is wrong in four of ten experiments.
#[test]
fn equal_arms_are_told_apart_by_who_looks_at_a_plain_interval_after_every_unit() {
    let wrong = share_of("a plain interval", 500, |random| {
        let draw = |_, random: &mut Random| (yes(0.5, random), 1.0);
        ever(1_500, 0.5, random, draw, |arms| {
            let [Some(control), Some(arm)] = arms.map(|arm| Ratio::of(&arm, Kind::Share)) else { return false };
            let margin = 1.96 * (control.variance + arm.variance).sqrt();
            (control.value - arm.value).abs() > margin
        })
    });
    assert!(wrong > 0.3, "{wrong}");
}

#[test]
fn equal_arms_of_unlike_users_are_told_apart_no_more_often_than_promised() {
    let wrong = share_of("unlike users", 1_000, |random| {
        let draw = |_, random: &mut Random| unlike_user(random);
        ever(length(1_500), 0.5, random, draw, |arms| told_apart(arms, Kind::Share))
    });
    assert!(wrong <= ALPHA, "{wrong}");
}

#[test]
fn equal_arms_of_skewed_cost_are_told_apart_no_more_often_than_promised() {
    for treated in [0.5, 0.1] {
        let wrong = share_of(&format!("skewed cost, {treated} in the arm"), 1_000, |random| {
            let draw = |_, random: &mut Random| (cost(random), 1.0);
            ever(length(1_500), treated, random, draw, |arms| told_apart(arms, Kind::Amount))
        });
        assert!(wrong <= ALPHA, "{wrong} with {treated} in the arm");
    }
}

/// Users come back: each call is a new user's or one of the last few hundred's, and there is a look after every call.
#[test]
fn equal_arms_of_returning_users_are_told_apart_no_more_often_than_promised() {
    let wrong = share_of("returning users", 600, |random| {
        let mut arms = Arms::default();
        let mut users: VecDeque<(usize, f64, Moments)> = VecDeque::new();
        (0..length(2_000)).any(|_| {
            if users.is_empty() || random.uniform() < 0.3 {
                users.push_front((random.below(2), random.uniform(), Moments::default()));
                users.truncate(400);
            }
            let at = random.below(users.len());
            let (arm, rate, so_far) = &mut users[at];
            let call = (so_far.sum_x + yes(*rate, random), so_far.sum_n + 1.0);
            let before = std::mem::take(so_far);
            so_far.add(call.0, call.1);
            arms[*arm] = replaced(&arms[*arm], &before, so_far);
            told_apart(&arms, Kind::Share)
        })
    });
    assert!(wrong <= ALPHA, "{wrong}");
}

/// `sums` with one unit's `before` replaced by its `after`.
fn replaced(sums: &Moments, before: &Moments, after: &Moments) -> Moments {
    Moments {
        units: sums.units - before.units + after.units,
        sum_x: sums.sum_x - before.sum_x + after.sum_x,
        sum_n: sums.sum_n - before.sum_n + after.sum_n,
        sum_xx: sums.sum_xx - before.sum_xx + after.sum_xx,
        sum_nn: sums.sum_nn - before.sum_nn + after.sum_nn,
        sum_xn: sums.sum_xn - before.sum_xn + after.sum_xn,
    }
}

/// The worst of the harmless variants: one exactly at its limit.
#[test]
fn guardrails_at_their_limit_give_no_more_alarms_than_promised() {
    let breached = |limit, kind| {
        move |arms: &Arms| guardrail::check(limit, &arms[0], &arms[1], kind, ALPHA).state == State::Breached
    };
    let rare = share_of("guardrail: 1 % errors", 600, |random| {
        let draw = |_, random: &mut Random| (yes(0.01, random), 1.0);
        ever(length(1_500), 0.5, random, draw, breached(Limit::Max(0.01), Kind::Share))
    });
    assert!(rare <= ALPHA, "{rare}");
    let unlike = share_of("guardrail: unlike users", 600, |random| {
        let draw = |_, random: &mut Random| unlike_user(random);
        ever(length(1_500), 0.2, random, draw, breached(Limit::Max(1.0 / 14.0), Kind::Share))
    });
    assert!(unlike <= ALPHA, "{unlike}");
    for treated in [0.1, 0.5, 0.9] {
        let increase = share_of(&format!("guardrail: cost, {treated} in the arm"), 600, |random| {
            let draw = |arm, random: &mut Random| (if arm == 1 { 1.2 } else { 1.0 } * cost(random), 1.0);
            ever(length(1_500), treated, random, draw, breached(Limit::MaxIncrease(0.2), Kind::Amount))
        });
        assert!(increase <= ALPHA, "{increase} with {treated} in the arm");
    }
}

#[test]
fn guardrails_find_gross_harm_early() {
    let found = share_of("guardrail: 30 % errors where 5 % are allowed", 200, |random| {
        let draw = |arm, random: &mut Random| (yes(if arm == 1 { 0.3 } else { 0.02 }, random), 1.0);
        ever(500, 0.5, random, draw, |arms| {
            guardrail::check(Limit::Max(0.05), &arms[0], &arms[1], Kind::Share, ALPHA).state == State::Breached
        })
    });
    assert!(found >= 0.95, "{found}");
}

fn question(share: f64, effect: f64) -> Question {
    Question { baseline: Baseline::Share(share), effect, alpha: ALPHA, power: 0.8, variants: 2, units_per_day: None }
}

#[test]
fn the_planned_number_of_units_decides_as_often_as_promised() {
    for (share, effect) in [(0.5, 0.08), (0.1, 0.05)] {
        let plan = power::plan(&question(share, effect)).unwrap();
        let what = format!("{effect} over {share}, {} units", plan.units);
        let found = share_of(&what, 400, |random| {
            let draw = |arm, random: &mut Random| (yes(share + effect * arm as f64, random), 1.0);
            ever(plan.units as u32, 0.5, random, draw, |arms| told_apart(arms, Kind::Share))
        });
        assert!(found >= 0.8, "{what}: {found}");
    }
}

/// The table in the docs is what the calculator says. `BLESS=1 cargo test` writes it anew.
#[test]
fn the_power_table_in_the_docs_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/experiments.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once("<!-- power table -->\n").expect("the page marks where the table begins");
    let (committed, after) = rest.split_once("<!-- end -->").expect("the page marks where the table ends");
    let table = power_table();
    if env::var_os("BLESS").is_some() {
        fs::write(&path, format!("{before}<!-- power table -->\n{table}<!-- end -->{after}")).unwrap();
        return;
    }
    assert_eq!(committed, table, "docs/experiments.md is stale; run `BLESS=1 cargo test --lib power_table`");
}

fn power_table() -> String {
    let effects = [0.01, 0.02, 0.05, 0.1];
    let heads: String = effects.iter().map(|effect| format!(" {} points |", effect * 100.0)).collect();
    let mut table = format!("| in the control |{heads}\n|---|---|---|---|---|\n").replace(" 1 points", " 1 point");
    for share in [0.02, 0.1, 0.3, 0.5, 0.8] {
        let cells = effects.map(|effect| {
            let plan = power::plan(&question(share, effect)).unwrap();
            format!(" {} ({}) |", grouped(plan.units_per_variant), grouped(plan.fixed_units_per_variant))
        });
        table.push_str(&format!("| {:.0} % |{}\n", share * 100.0, cells.concat()));
    }
    table
}

fn grouped(number: u64) -> String {
    if number < 1_000 { number.to_string() } else { format!("{},{:03}", grouped(number / 1_000), number % 1_000) }
}
