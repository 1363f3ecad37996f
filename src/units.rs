//! Integer newtypes for tokens and money: no floats, no silent overflow.
//!
//! Money is whole nano-dollars (1e-9 USD); rates are pico-dollars (1e-12 USD) per token, so that one
//! USD per million tokens is exactly 1,000,000. Products are taken in `u128` and rounded **up** once.

use std::{fmt, iter::Sum, str::FromStr};

/// A number of tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Tokens(pub u64);

impl Tokens {
    /// No tokens.
    pub const ZERO: Tokens = Tokens(0);

    /// `self + other`, at most `u64::MAX`.
    #[must_use]
    pub const fn saturating_add(self, other: Tokens) -> Tokens {
        Tokens(self.0.saturating_add(other.0))
    }

    /// `self - other`, at least 0.
    #[must_use]
    pub const fn saturating_sub(self, other: Tokens) -> Tokens {
        Tokens(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Money in nano-dollars (1e-9 USD). `u64` holds 18 billion dollars.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct NanoUsd(pub u64);

impl NanoUsd {
    /// No money.
    pub const ZERO: NanoUsd = NanoUsd(0);
    /// More than any account holds.
    pub const MAX: NanoUsd = NanoUsd(u64::MAX);
    /// One dollar.
    pub const USD: NanoUsd = NanoUsd(1_000_000_000);

    /// `self + other`, at most [`NanoUsd::MAX`].
    #[must_use]
    pub const fn saturating_add(self, other: NanoUsd) -> NanoUsd {
        NanoUsd(self.0.saturating_add(other.0))
    }

    /// `self - other`, at least 0.
    #[must_use]
    pub const fn saturating_sub(self, other: NanoUsd) -> NanoUsd {
        NanoUsd(self.0.saturating_sub(other.0))
    }

    /// Dollars as a float, for metrics and display only; never computed with.
    #[must_use]
    pub fn as_usd(self) -> f64 {
        self.0 as f64 / 1e9
    }
}

impl Sum for NanoUsd {
    fn sum<I: Iterator<Item = NanoUsd>>(amounts: I) -> NanoUsd {
        amounts.fold(NanoUsd::ZERO, NanoUsd::saturating_add)
    }
}

/// Dollars with as many decimals as are needed, at least two: `0.50`, `0.000000184`.
impl fmt::Display for NanoUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = format!("{:09}", self.0 % 1_000_000_000);
        let kept = decimals.trim_end_matches('0').len().max(2);
        write!(f, "{}.{}", self.0 / 1_000_000_000, &decimals[..kept])
    }
}

/// A price in pico-dollars (1e-12 USD) per token; 1 USD per million tokens is 1,000,000.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct PicoUsdPerToken(pub u64);

impl PicoUsdPerToken {
    /// The exact product in pico-dollars; round it with [`nano_usd_ceil`] once per call.
    #[must_use]
    pub const fn times(self, tokens: Tokens) -> u128 {
        self.0 as u128 * tokens.0 as u128
    }
}

/// Pico-dollars to nano-dollars, rounded up, saturating at [`NanoUsd::MAX`].
#[must_use]
pub fn nano_usd_ceil(pico_usd: u128) -> NanoUsd {
    NanoUsd(u64::try_from(pico_usd.div_ceil(1000)).unwrap_or(u64::MAX))
}

/// Why a text is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Not digits with at most one decimal point.
    #[error("`{0}` is not a decimal number such as `0.50`")]
    NotDecimal(String),
    /// More decimals than the unit can hold exactly.
    #[error("`{0}` has more than {1} decimals")]
    TooFine(String, usize),
    /// Above what the unit can hold.
    #[error("`{0}` is too large")]
    TooLarge(String),
    /// No ` USD` where a currency is due.
    #[error("`{0}` names no currency; write `{0} USD`")]
    NoCurrency(String),
    /// Another currency than USD, in which prices and budgets are.
    #[error("`{0}` is in another currency; amounts are in USD: write `{1} USD`")]
    OtherCurrency(String, String),
    /// No `USD/1M` where a price is due.
    #[error("`{0}` is not a price; write it as `0.15 USD/1M`")]
    NotPrice(String),
}

/// Parses a plain decimal into an integer scaled by `10^scale`, exactly.
///
/// # Errors
/// When the text is no decimal, too fine for the scale, or too large.
pub fn parse_scaled(text: &str, scale: usize) -> Result<u64, AmountError> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && decimals.is_empty()) || !digits(whole) || !digits(decimals) {
        return Err(AmountError::NotDecimal(text.to_owned()));
    }
    let decimals = decimals.trim_end_matches('0');
    if decimals.len() > scale {
        return Err(AmountError::TooFine(text.to_owned(), scale));
    }
    let too_large = || AmountError::TooLarge(text.to_owned());
    let mut value: u64 = 0;
    let padding = std::iter::repeat_n(b'0', scale - decimals.len());
    for digit in whole.bytes().chain(decimals.bytes()).chain(padding) {
        value = value.checked_mul(10).and_then(|v| v.checked_add(u64::from(digit - b'0'))).ok_or_else(too_large)?;
    }
    Ok(value)
}

/// `0.50 USD` (also `USD 0.50` and `$0.50`), exact to the nano-dollar.
impl FromStr for NanoUsd {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<NanoUsd, AmountError> {
        let trimmed = text.trim();
        let number = trimmed
            .strip_suffix("USD")
            .or_else(|| trimmed.strip_prefix("USD"))
            .or_else(|| trimmed.strip_prefix('$'))
            .ok_or_else(|| no_dollars(trimmed))?;
        parse_scaled(&number.trim().replace('_', ""), 9).map(NanoUsd)
    }
}

/// Why an amount without dollars is none.
fn no_dollars(text: &str) -> AmountError {
    let number: String = text.chars().filter(|c| c.is_ascii_digit() || matches!(c, '.' | '_')).collect();
    match text.chars().any(|c| !c.is_ascii_digit() && !matches!(c, '.' | '_' | '-')) && !number.is_empty() {
        true => AmountError::OtherCurrency(text.to_owned(), number),
        false => AmountError::NoCurrency(text.to_owned()),
    }
}

/// `0.15 USD/1M` (also `/1K` and `/token`), exact to the pico-dollar per token.
impl FromStr for PicoUsdPerToken {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<PicoUsdPerToken, AmountError> {
        let not_price = || AmountError::NotPrice(text.trim().to_owned());
        let (amount, unit) = text.trim().rsplit_once('/').ok_or_else(not_price)?;
        let scale = match unit.trim() {
            "1M" | "M" | "1m" => 6,
            "1K" | "K" | "1k" => 9,
            "token" | "1" => 12,
            _ => return Err(not_price()),
        };
        let amount = amount.trim();
        let number = amount.strip_suffix("USD").or_else(|| amount.strip_prefix('$')).ok_or_else(not_price)?;
        parse_scaled(number.trim(), scale).map(PicoUsdPerToken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_are_read_exactly() {
        for (text, nano) in
            [("500 USD", 500_000_000_000), ("0.50 USD", 500_000_000), ("$0.000000001", 1), ("USD 3", 3_000_000_000)]
        {
            assert_eq!(text.parse::<NanoUsd>(), Ok(NanoUsd(nano)), "{text}");
        }
    }

    #[test]
    fn a_price_per_million_is_pico_dollars_per_token() {
        assert_eq!("0.15 USD/1M".parse(), Ok(PicoUsdPerToken(150_000)));
        assert_eq!("0.0375 USD/1M".parse(), Ok(PicoUsdPerToken(37_500)));
        assert_eq!("0.002 USD/1K".parse(), Ok(PicoUsdPerToken(2_000_000)));
    }

    #[test]
    fn what_cannot_be_held_exactly_is_refused() {
        assert!(matches!("0.0000000001 USD".parse::<NanoUsd>(), Err(AmountError::TooFine(..))));
        assert!(matches!("99999999999 USD".parse::<NanoUsd>(), Err(AmountError::TooLarge(..))));
        assert!(matches!("5".parse::<NanoUsd>(), Err(AmountError::NoCurrency(..))));
        assert_eq!(
            "5 EUR".parse::<NanoUsd>().unwrap_err().to_string(),
            "`5 EUR` is in another currency; amounts are in USD: write `5 USD`"
        );
        assert!(matches!("five".parse::<NanoUsd>(), Err(AmountError::NoCurrency(..))));
        assert!(matches!("1e3 USD".parse::<NanoUsd>(), Err(AmountError::NotDecimal(..))));
        assert!(matches!("-1 USD".parse::<NanoUsd>(), Err(AmountError::NotDecimal(..))));
    }

    #[test]
    fn money_rounds_up_and_prints_without_noise() {
        assert_eq!(nano_usd_ceil(1), NanoUsd(1));
        assert_eq!(nano_usd_ceil(1000), NanoUsd(1));
        assert_eq!(nano_usd_ceil(1001), NanoUsd(2));
        assert_eq!(NanoUsd(500_000_000).to_string(), "0.50");
        assert_eq!(NanoUsd(184).to_string(), "0.000000184");
    }
}
