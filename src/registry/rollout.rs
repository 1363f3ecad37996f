//! A gradual roll-out: stages of rising shares, each for a while.

use std::{fmt, str::FromStr, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Stages of one roll-out.
const STAGES_MAX: usize = 20;

/// From one version to another, stage by stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// The version that is live until it ends.
    pub from: String,
    /// The version that it leads to.
    pub to: String,
    /// Its stages, the last one at 100 %.
    pub stages: Vec<Stage>,
    /// The stage that it is at, from 0.
    pub stage: usize,
    /// Since when.
    #[serde(with = "super::rfc3339")]
    pub stage_since: Timestamp,
    /// What must hold, for whoever judges it.
    #[serde(default)]
    pub guardrails: Value,
    /// Who started it.
    pub by: String,
    /// Why; may be empty.
    #[serde(default)]
    pub reason: String,
    /// How far it is.
    pub state: RolloutState,
}

/// How far a roll-out is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// On its way.
    Running,
    /// Everybody has the new version.
    Finished,
    /// Everybody has the old one again.
    Aborted,
}

/// A share, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Users that get the new version, in percent.
    pub weight: f64,
    /// For how long, in seconds. `None`: until somebody goes on; in the last stage, it is over at once.
    #[serde(default)]
    pub for_s: Option<u64>,
}

/// The stages of a roll-out, valid: each share above the one before, the last one 100 %.
#[derive(Debug, Clone, PartialEq)]
pub struct Stages(Vec<Stage>);

impl Stages {
    /// Takes stages that rise to 100 %.
    ///
    /// # Errors
    /// What is wrong with them, with the mend.
    pub fn new(stages: Vec<Stage>) -> Result<Stages, String> {
        if stages.len() > STAGES_MAX {
            return Err(format!("a roll-out has at most {STAGES_MAX} stages"));
        }
        let mut before = 0.0;
        for stage in &stages {
            if !(stage.weight > before && stage.weight <= 100.0) {
                let weight = stage.weight;
                return Err(format!(
                    "`{weight}%` does not go on: each stage has a larger share than the one before, up to 100%"
                ));
            }
            before = stage.weight;
        }
        match before == 100.0 {
            true => Ok(Stages(stages)),
            false => Err("the last stage must be 100%, as in \"1% 10m, 10% 1h, 100%\"".to_owned()),
        }
    }

    /// The stages.
    #[must_use]
    pub fn into_inner(self) -> Vec<Stage> {
        self.0
    }
}

/// `1% 10m, 10% 1h, 100%`.
impl FromStr for Stages {
    type Err = String;

    fn from_str(text: &str) -> Result<Stages, String> {
        Stages::new(text.split(',').map(str::parse).collect::<Result<_, _>>()?)
    }
}

/// `10% 1h`, or `10%` for a stage that waits for somebody.
impl FromStr for Stage {
    type Err = String;

    fn from_str(text: &str) -> Result<Stage, String> {
        let wrong = || format!("`{}` is no stage; write a share and for how long, as in `10% 1h`", text.trim());
        let (share, time) = text.trim().split_once('%').ok_or_else(wrong)?;
        let plain = share.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let weight: f64 = share.parse().ok().filter(|_| plain).ok_or_else(wrong)?;
        let for_s = match time.trim() {
            "" => None,
            time => Some(seconds(time).ok_or_else(wrong)?),
        };
        Ok(Stage { weight, for_s })
    }
}

/// `90s`, `10m`, `1h` or `7d`, up to a year.
fn seconds(text: &str) -> Option<u64> {
    let (number, unit_s) = match text.split_at_checked(text.len().checked_sub(1)?)? {
        (number, "s") => (number, 1),
        (number, "m") => (number, 60),
        (number, "h") => (number, 3600),
        (number, "d") => (number, 86_400),
        _ => return None,
    };
    let number: u64 = number.parse().ok().filter(|_| number.bytes().all(|byte| byte.is_ascii_digit()))?;
    number.checked_mul(unit_s).filter(|seconds| *seconds <= 366 * 86_400)
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.weight)?;
        let Some(seconds) = self.for_s else { return Ok(()) };
        let (number, unit) = match seconds {
            0 => (0, "s"),
            s if s % 86_400 == 0 => (s / 86_400, "d"),
            s if s % 3600 == 0 => (s / 3600, "h"),
            s if s % 60 == 0 => (s / 60, "m"),
            s => (s, "s"),
        };
        write!(f, " {number}{unit}")
    }
}

impl Rollout {
    /// Users that get the new version now, in percent.
    #[must_use]
    pub fn weight(&self) -> f64 {
        self.stages.get(self.stage).map_or(0.0, |stage| stage.weight)
    }

    /// Whether its stage is over at `now`. One without a time waits for somebody.
    #[must_use]
    pub fn is_due(&self, now: Timestamp) -> bool {
        let length = self.stages.get(self.stage).and_then(|stage| stage.for_s);
        let Some(length) = length.map(Duration::from_secs) else { return false };
        self.state == RolloutState::Running && self.stage_since.checked_add(length).is_ok_and(|end| end <= now)
    }
}
