//! What outcomes are worth, beside what was spent on them: `--value resolved=0.50USD`.

use super::{Books, CostsError, PAGE};
use crate::{
    record::{Feedback, Rating},
    store::records::{feedback::FeedbackFilter, ports::Filter},
    units::NanoUsd,
};

/// What one of a metric is worth: a yes, or a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Worth {
    metric: String,
    each: NanoUsd,
}

/// What was said in a span.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Valued {
    /// The metric, and what one of it is worth.
    pub(super) worth: Worth,
    /// Ratings.
    pub(super) ratings: u64,
    /// Their sum; a yes is 1.
    pub(super) sum: f64,
}

impl Worth {
    /// Reads `resolved=0.50USD`.
    pub(super) fn parse(text: &str) -> Result<Worth, String> {
        let wrong = || format!("`{text}` is no worth; write it as resolved=0.50USD");
        let (metric, amount) = text.split_once('=').filter(|(metric, _)| !metric.is_empty()).ok_or_else(wrong)?;
        let each = amount.parse().map_err(|error: crate::units::AmountError| error.to_string())?;
        Ok(Worth { metric: metric.to_owned(), each })
    }

    /// The feedback on this metric that came in the span of `filter`.
    pub(super) async fn valued(self, books: &Books<'_>, filter: &Filter) -> Result<Valued, CostsError> {
        let filter = FeedbackFilter {
            since_ms: filter.since_ms,
            until_ms: filter.until_ms,
            metric: Some(self.metric.clone()),
            ..FeedbackFilter::default()
        };
        let mut valued = Valued { worth: self, ratings: 0, sum: 0.0 };
        let mut after = None;
        loop {
            let page = books.log.feedback(filter.clone(), after, PAGE).await?;
            page.rows.iter().for_each(|rating| valued.add(rating));
            after = page.next;
            if after.is_none() {
                return Ok(valued);
            }
        }
    }
}

impl Valued {
    fn add(&mut self, feedback: &Feedback) {
        let value = match feedback.value {
            Rating::Flag(yes) => f64::from(u8::from(yes)),
            Rating::Number(number) => number,
            Rating::Text(_) => return,
        };
        self.ratings += 1;
        self.sum += value;
    }

    /// What all of it is worth.
    pub(super) fn value(&self) -> NanoUsd {
        NanoUsd((self.sum.max(0.0) * self.worth.each.0 as f64).round() as u64)
    }

    /// How it compares with what was spent.
    pub(super) fn sentence(&self, cost: NanoUsd) -> String {
        let (metric, value) = (&self.worth.metric, self.value());
        let ratio = match cost.0 {
            0 => String::new(),
            cost => format!(", {:.1} times what was spent", value.0 as f64 / cost as f64),
        };
        let each = match self.sum > 0.0 {
            true => format!("; each cost {:.4} USD", cost.as_usd() / self.sum),
            false => String::new(),
        };
        format!(
            "{metric}: {} in {} ratings, at {} USD each worth {value} USD{ratio}{each}.",
            self.sum, self.ratings, self.worth.each
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worth_is_a_metric_and_an_amount() {
        let worth = Worth { metric: "resolved".to_owned(), each: NanoUsd(500_000_000) };
        assert_eq!(Worth::parse("resolved=0.50USD"), Ok(worth.clone()));
        assert!(
            Worth::parse("resolved").is_err() && Worth::parse("=1 USD").is_err() && Worth::parse("resolved=1").is_err()
        );
        let valued = Valued { worth, ratings: 12, sum: 8.0 };
        assert_eq!(valued.value(), NanoUsd(4_000_000_000));
        assert_eq!(
            valued.sentence(NanoUsd(2_000_000_000)),
            "resolved: 8 in 12 ratings, at 0.50 USD each worth 4.00 USD, 2.0 times what was spent; each cost 0.2500 USD."
        );
    }
}
