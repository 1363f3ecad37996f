//! What was found, said in a sentence with numbers, in English and German.
//!
//! A sentence is built around its numbers, so it cannot be a line of the dashboard's catalogue; both languages stand here.

use serde::{Deserialize, Serialize};

use super::{
    Estimate, Kind,
    guardrail::{Finding, Limit, State},
    srm::RatioCheck,
    verdict::{Effect, Outcome, Scale},
};
use crate::policy::experiment::Unit;

/// A language that sentences are in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// English.
    #[default]
    English,
    /// German.
    German,
}

/// What a verdict is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) language: Language,
    pub(super) arm: &'a str,
    pub(super) control: &'a str,
    pub(super) metric: &'a str,
    pub(super) unit: &'a Unit,
}

// === impl Language ===

impl Language {
    const fn pick<'a>(self, english: &'a str, german: &'a str) -> &'a str {
        match self {
            Language::English => english,
            Language::German => german,
        }
    }
}

// === impl Subject ===

impl Subject<'_> {
    /// The verdict on the arm; `effect` where there is an estimate.
    pub(super) fn verdict(&self, outcome: &Outcome, effect: Option<&Effect>) -> String {
        let Subject { language, arm, control, metric, .. } = *self;
        let pick = |english, german| language.pick(english, german);
        let found = effect.map_or_else(|| metric.to_owned(), |effect| format!("{metric} {}", said(effect, language)));
        match outcome {
            Outcome::Void => {
                pick("void, because the split is broken", "ungültig, denn die Aufteilung stimmt nicht").to_owned()
            }
            Outcome::NoGoal => {
                pick("no goal is set: nothing to decide", "kein Ziel gesetzt: nichts zu entscheiden").to_owned()
            }
            Outcome::Stopped { .. } => match language {
                Language::English => format!("{arm} is stopped, it breaks a guardrail"),
                Language::German => format!("{arm} ist gestoppt, eine Schranke ist verletzt"),
            },
            Outcome::Better => format!("{arm} {}: {found}", pick("is better", "ist besser")),
            Outcome::Worse => format!("{arm} {}: {found}", pick("is worse", "ist schlechter")),
            Outcome::Equal { margin } => {
                let margin = self.margin(*margin, effect.map_or(Scale::Points, |effect| effect.scale));
                match language {
                    Language::English => format!("{arm} and {control} are equal within {margin}: {found}"),
                    Language::German => format!("{arm} und {control} sind gleich bis auf {margin}: {found}"),
                }
            }
            Outcome::KeepRunning { more_units } => self.keep_running(*more_units, effect.map(|_| found)),
        }
    }

    fn keep_running(&self, more_units: Option<u64>, found: Option<String>) -> String {
        let users = users(self.unit, self.language);
        let more = more_units.map(|more| count(two_digits(more), self.language));
        match (self.language, more, found) {
            (Language::English, Some(more), Some(found)) => {
                format!("keep running: about {more} more {users} needed at the observed effect, {found}")
            }
            (Language::English, Some(more), None) => {
                format!("keep running: at least {more} more {users} before the first verdict")
            }
            (Language::English, None, Some(found)) => {
                format!("keep running: more {users} needed than can be foreseen, {found}")
            }
            (Language::English, None, None) => format!("keep running: nothing is known of {} yet", self.metric),
            (Language::German, Some(more), Some(found)) => {
                format!("weiterlaufen lassen: beim beobachteten Effekt noch etwa {more} {users} nötig, {found}")
            }
            (Language::German, Some(more), None) => {
                format!("weiterlaufen lassen: noch mindestens {more} {users} bis zum ersten Urteil")
            }
            (Language::German, None, Some(found)) => {
                format!("weiterlaufen lassen: mehr {users} nötig, als absehbar ist, {found}")
            }
            (Language::German, None, None) => {
                format!("weiterlaufen lassen: über {} ist noch nichts bekannt", self.metric)
            }
        }
    }

    /// `±1 point`, `±5%`.
    fn margin(&self, margin: f64, scale: Scale) -> String {
        let number = trimmed(margin * 100.0, self.language);
        match scale {
            Scale::Points => format!("±{number} {}", points(margin == 0.01, self.language)),
            Scale::Percent | Scale::Plain => format!("±{number}{}", percent_sign(self.language)),
        }
    }
}

/// What a guardrail found: `error_rate is 7.1%, at most 5% allowed: breached`.
pub(super) fn guardrail(metric: &str, limit: Limit, kind: Kind, finding: &Finding, language: Language) -> String {
    let state = match finding.state {
        State::Breached => language.pick("breached", "verletzt"),
        State::Held => language.pick("held", "eingehalten"),
        State::Undecided => language.pick("undecided", "offen"),
    };
    let Some(value) = finding.value else {
        return format!("{metric}: {state}");
    };
    let plain = |value: f64| match kind {
        Kind::Share => percent(value, language),
        Kind::Amount => significant(value, language),
    };
    match (limit, language) {
        (Limit::Max(max), Language::English) => {
            format!("{metric} is {}, at most {} allowed: {state}", plain(value), plain(max))
        }
        (Limit::Max(max), Language::German) => {
            format!("{metric} ist {}, höchstens {} erlaubt: {state}", plain(value), plain(max))
        }
        (Limit::MaxIncrease(most), Language::English) => {
            format!("{metric} {}, at most +{} allowed: {state}", change(value, language), percent(most, language))
        }
        (Limit::MaxIncrease(most), Language::German) => {
            format!("{metric} {}, höchstens +{} erlaubt: {state}", change(value, language), percent(most, language))
        }
    }
}

/// What the ratio check found where it is not sound: shares of the arm that is furthest off.
pub(super) fn ratio(check: &RatioCheck, arms: &[&str], unit: &Unit, language: Language) -> Option<String> {
    let off = |at: &usize| (check.observed[*at] - check.expected[*at]).abs();
    let furthest =
        (0..arms.len().min(check.observed.len())).rev().max_by(|one, other| off(one).total_cmp(&off(other)))?;
    let (arm, users) = (arms[furthest], users(unit, language));
    let share = |share: f64| format!("{}{}", decimal(share * 100.0, 1, language), percent_sign(language));
    let (observed, expected) = (share(check.observed[furthest]), share(check.expected[furthest]));
    let chance = match check.p_value {
        p if p < 0.0001 => format!("p < {}", significant(0.0001, language)),
        p => format!("p = {}", significant(p, language)),
    };
    Some(match language {
        Language::English => format!("{observed} of {users} are in {arm}, {expected} should be ({chance})"),
        Language::German => format!("{observed} der {users} sind in {arm}, {expected} sollten es sein ({chance})"),
    })
}

/// `+3.1 points (1.2 to 5.0)`.
fn said(effect: &Effect, language: Language) -> String {
    let factor = if effect.scale == Scale::Plain { 1.0 } else { 100.0 };
    let Estimate { value, low, high } = effect.estimate;
    let decimals = decimals_for((high - low) * factor / 2.0);
    let number = |number: f64| decimal(number * factor, decimals, language);
    let sign = if value > 0.0 { "+" } else { "" };
    let to = language.pick("to", "bis");
    let (low, high) = (number(low), number(high));
    let value = number(value);
    match effect.scale {
        Scale::Points => format!("{sign}{value} {} ({low} {to} {high})", points(false, language)),
        Scale::Percent => {
            let sign_after = percent_sign(language);
            format!("{sign}{value}{sign_after} ({low}{sign_after} {to} {high}{sign_after})")
        }
        Scale::Plain => format!("{sign}{value} ({low} {to} {high})"),
    }
}

const fn users(unit: &Unit, language: Language) -> &'static str {
    match unit {
        Unit::User => language.pick("users", "Nutzer"),
        Unit::Key => language.pick("keys", "Schlüssel"),
        Unit::Session => language.pick("sessions", "Sitzungen"),
        Unit::Header(_) => language.pick("units", "Einheiten"),
    }
}

const fn points(one: bool, language: Language) -> &'static str {
    if one { language.pick("point", "Prozentpunkt") } else { language.pick("points", "Prozentpunkte") }
}

const fn percent_sign(language: Language) -> &'static str {
    language.pick("%", " %")
}

fn percent(share: f64, language: Language) -> String {
    format!("{}{}", trimmed(share * 100.0, language), percent_sign(language))
}

fn change(share: f64, language: Language) -> String {
    let sign = if share > 0.0 { "+" } else { "" };
    format!("{sign}{}{}", decimal(share * 100.0, 1, language), percent_sign(language))
}

/// At most two decimals, none that is 0.
fn trimmed(value: f64, language: Language) -> String {
    let digits = format!("{value:.2}");
    let digits = digits.trim_end_matches('0').trim_end_matches('.');
    grouped(digits, language)
}

/// Three significant digits, zeros at the end left out.
fn significant(value: f64, language: Language) -> String {
    if value == 0.0 || !value.is_finite() {
        return "0".to_owned();
    }
    let decimals = (2.0 - value.abs().log10().floor()).clamp(0.0, 12.0) as usize;
    let digits = format!("{value:.decimals$}");
    let digits = if decimals > 0 { digits.trim_end_matches('0').trim_end_matches('.') } else { &digits };
    grouped(digits, language)
}

/// Decimals with which so wide a margin shows two digits.
fn decimals_for(margin: f64) -> usize {
    if margin > 0.0 { (1.0 - margin.log10().floor()).clamp(0.0, 9.0) as usize } else { 1 }
}

/// Rounded to two significant digits: "about 4,100".
fn two_digits(number: u64) -> u64 {
    let unit = 10_u64.pow(number.max(1).ilog10().saturating_sub(1));
    (number + unit / 2) / unit * unit
}

fn count(number: u64, language: Language) -> String {
    grouped(&number.to_string(), language)
}

fn decimal(value: f64, decimals: usize, language: Language) -> String {
    let digits = format!("{value:.decimals$}");
    // What rounds to zero has no sign.
    let zero = digits.chars().all(|character| matches!(character, '-' | '0' | '.'));
    grouped(if zero { digits.trim_start_matches('-') } else { &digits }, language)
}

/// Thousands apart, the language's decimal sign, a true minus.
fn grouped(digits: &str, language: Language) -> String {
    let (thousands, point) = match language {
        Language::English => (',', '.'),
        Language::German => ('.', ','),
    };
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |digits| ("−", digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mut text = sign.to_owned();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            text.push(thousands);
        }
        text.push(digit);
    }
    if !fraction.is_empty() {
        text.push(point);
        text.push_str(fraction);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(language: Language, outcome: &Outcome, effect: Option<(Scale, f64, f64, f64)>) -> String {
        let subject = Subject { language, arm: "warm", control: "control", metric: "resolved", unit: &Unit::User };
        let effect = effect.map(|(scale, value, low, high)| Effect { scale, estimate: Estimate { value, low, high } });
        subject.verdict(outcome, effect.as_ref())
    }

    #[test]
    fn verdicts_are_sentences_with_numbers() {
        let points = Some((Scale::Points, 0.031, 0.012, 0.050));
        let percent = Some((Scale::Percent, -0.1204, -0.18, -0.0621));
        let open = Some((Scale::Points, 0.0121, -0.0081, 0.0323));
        for (outcome, effect, english, german) in [
            (
                Outcome::Better,
                points,
                "warm is better: resolved +3.1 points (1.2 to 5.0)",
                "warm ist besser: resolved +3,1 Prozentpunkte (1,2 bis 5,0)",
            ),
            (
                Outcome::Better,
                percent,
                "warm is better: resolved −12.0% (−18.0% to −6.2%)",
                "warm ist besser: resolved −12,0 % (−18,0 % bis −6,2 %)",
            ),
            (
                Outcome::Worse,
                Some((Scale::Plain, 1_240.0, 900.0, 1_580.0)),
                "warm is worse: resolved +1,240 (900 to 1,580)",
                "warm ist schlechter: resolved +1.240 (900 bis 1.580)",
            ),
            (
                Outcome::Equal { margin: 0.01 },
                Some((Scale::Points, -0.00001, -0.006, 0.006)),
                "warm and control are equal within ±1 point: resolved 0.00 points (−0.60 to 0.60)",
                "warm und control sind gleich bis auf ±1 Prozentpunkt: resolved 0,00 Prozentpunkte (−0,60 bis 0,60)",
            ),
            (
                Outcome::KeepRunning { more_units: Some(4_130) },
                open,
                "keep running: about 4,100 more users needed at the observed effect, resolved +1.2 points (−0.8 to 3.2)",
                "weiterlaufen lassen: beim beobachteten Effekt noch etwa 4.100 Nutzer nötig, resolved +1,2 Prozentpunkte (−0,8 bis 3,2)",
            ),
            (
                Outcome::KeepRunning { more_units: Some(63) },
                None,
                "keep running: at least 63 more users before the first verdict",
                "weiterlaufen lassen: noch mindestens 63 Nutzer bis zum ersten Urteil",
            ),
            (
                Outcome::Stopped { metric: "error_rate".to_owned() },
                None,
                "warm is stopped, it breaks a guardrail",
                "warm ist gestoppt, eine Schranke ist verletzt",
            ),
        ] {
            assert_eq!(sentence(Language::English, &outcome, effect), english);
            assert_eq!(sentence(Language::German, &outcome, effect), german);
        }
    }

    #[test]
    fn guardrails_say_value_and_limit() {
        let finding = Finding { state: State::Breached, value: Some(0.0714) };
        assert_eq!(
            guardrail("error_rate", Limit::Max(0.05), Kind::Share, &finding, Language::English),
            "error_rate is 7.14%, at most 5% allowed: breached"
        );
        assert_eq!(
            guardrail("cost_per_call", Limit::MaxIncrease(0.2), Kind::Amount, &finding, Language::German),
            "cost_per_call +7,1 %, höchstens +20 % erlaubt: verletzt"
        );
    }

    #[test]
    fn numbers_are_rounded_to_what_they_say() {
        for (number, expected) in [(0, 0), (7, 7), (63, 63), (634, 630), (4_130, 4_100), (99_600, 100_000)] {
            assert_eq!(two_digits(number), expected);
        }
        assert_eq!(significant(0.000_412, Language::English), "0.000412");
        assert_eq!(significant(1_234.6, Language::German), "1.235");
        assert_eq!(trimmed(2.5, Language::German), "2,5");
    }
}
