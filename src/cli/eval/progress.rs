//! How far a run is: one line on a terminal that is written over, nothing in a pipe.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use crate::eval::run::Progress;

/// Characters of the bar.
const BAR: usize = 24;

/// The line.
#[derive(Debug)]
pub(super) struct Line {
    shown: bool,
    began: Instant,
    /// What was done when it began: a run that goes on has not taken its time for that.
    first: Option<usize>,
}

impl Line {
    pub(super) fn new() -> Line {
        Line { shown: io::stderr().is_terminal(), began: Instant::now(), first: None }
    }

    pub(super) fn show(&mut self, progress: Progress) {
        let first = *self.first.get_or_insert(progress.done);
        if self.shown {
            let _ = write!(io::stderr(), "\r\u{1b}[K{}", text(progress, first, self.began.elapsed()));
        }
    }

    /// Takes the line away.
    pub(super) fn end(&self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\u{1b}[K");
        }
    }
}

fn text(progress: Progress, first: usize, elapsed: Duration) -> String {
    let Progress { done, all, spent } = progress;
    let filled = (done * BAR).checked_div(all).unwrap_or(0).min(BAR);
    let left = match (all - done.min(all), done.saturating_sub(first)) {
        (0, _) | (_, 0) => String::new(),
        (left, made) => {
            let seconds = elapsed.as_secs_f64() / made as f64 * left as f64;
            format!(" · about {} left", in_words(seconds))
        }
    };
    format!("[{}{}] {done}/{all} answers · {spent} USD{left}", "=".repeat(filled), " ".repeat(BAR - filled))
}

fn in_words(seconds: f64) -> String {
    match seconds {
        ..90.0 => format!("{seconds:.0} s"),
        _ => format!("{:.0} min", seconds / 60.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::NanoUsd;

    #[test]
    fn the_time_left_goes_by_what_this_process_did() {
        let progress = |done| Progress { done, all: 100, spent: NanoUsd(10_000_000) };
        assert_eq!(
            text(progress(75), 50, Duration::from_secs(50)),
            "[==================      ] 75/100 answers · 0.01 USD · about 50 s left"
        );
        assert!(text(progress(50), 50, Duration::ZERO).ends_with("0.01 USD"), "nothing is known yet");
        assert!(text(progress(100), 0, Duration::from_secs(1)).starts_with(&format!("[{}]", "=".repeat(BAR))));
    }
}
