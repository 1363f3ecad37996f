//! The text forms of the configuration: durations `10s`, sizes `32MiB`, money `500 USD`, rates `60/min`, shares `80%`, `on`/`off`.

use std::{borrow::Cow, fmt, net::SocketAddr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize,
    de::{self, Deserializer, MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::{
    policy::limits::Rate,
    units::{NanoUsd, PicoUsdPerToken, parse_scaled},
};

/// Declares a value that is written as a text and parsed by a function.
macro_rules! text_form {
    ($(#[$doc:meta])* $name:ident($inner:ty), $parse:expr, $due:literal, $pattern:literal, [$($example:literal),+]) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub struct $name(pub $inner);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                deserializer.deserialize_str(TextVisitor { due: $due, parse: $parse }).map($name)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $due, "pattern": $pattern, "examples": [$($example),+] })
            }
        }
    };
}

text_form!(
    /// A length of time.
    DurationText(Duration), duration, "a duration such as `250ms`, `10s` or `5m`",
    r"^[0-9]+(\.[0-9]+)?\s*(ms|s|m|h|d)$", ["250ms", "10s", "5m"]
);
text_form!(
    /// A number of bytes.
    Size(u64), size, "a size such as `32MiB`", r"^[0-9]+\s*(B|KB|MB|GB|KiB|MiB|GiB)?$", ["32MiB", "512KiB"]
);
text_form!(
    /// An amount of money.
    Money(NanoUsd), |text: &str| text.parse().map_err(said), "an amount such as `500 USD`",
    r"^(\$\s*[0-9_.]+|USD\s*[0-9_.]+|[0-9_.]+\s*USD)$", ["500 USD", "0.50 USD"]
);
text_form!(
    /// A price per token.
    PriceText(PicoUsdPerToken), |text: &str| text.parse().map_err(said), "a price such as `0.15 USD/1M`",
    r"^\$?\s*[0-9.]+\s*(USD)?\s*/\s*(1M|M|1m|1K|K|1k|token|1)$", ["0.15 USD/1M"]
);
text_form!(
    /// So many per so long.
    RateText(Rate), |text: &str| Rate::parse(text).map_err(said), "a rate such as `600/min`", r"^[0-9]+\s*/\s*(s|sec|second|min|minute|h|hour|d|day)$", ["600/min"]
);
text_form!(
    /// A share, from 0 to 1 once read.
    Share(f64), share, "a share such as `80%`", r"^[0-9]+(\.[0-9]+)?%$|^[01](\.[0-9]+)?$|^0?\.[0-9]+$", ["80%", "20%"]
);
text_form!(
    /// A listening address.
    Address(SocketAddr), address, "an address such as `127.0.0.1:8080`", r"^.+:[0-9]+$", ["127.0.0.1:8080", "0.0.0.0:8080"]
);

/// `on` or `off`; `true` and `false` are understood too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch(pub bool);

impl<'de> Deserialize<'de> for Switch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Switch, D::Error> {
        deserializer.deserialize_str(TextVisitor { due: "on or off", parse: switch }).map(Switch)
    }
}

impl JsonSchema for Switch {
    fn schema_name() -> Cow<'static, str> {
        "Switch".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "enum": ["on", "off", true, false] })
    }
}

/// A secret as typed: the value itself, or `file:PATH`. `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct SecretText(pub(super) String);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

/// A word such as `off`, or a map with details.
#[derive(Debug, Clone, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub enum WordOr<W, M> {
    /// A single word or text.
    Word(W),
    /// Details.
    Map(M),
}

impl<'de, W: Deserialize<'de>, M: Deserialize<'de>> Deserialize<'de> for WordOr<W, M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WordOr<W, M>, D::Error> {
        deserializer.deserialize_str(WordOrVisitor(std::marker::PhantomData))
    }
}

struct WordOrVisitor<W, M>(std::marker::PhantomData<(W, M)>);

impl<'de, W: Deserialize<'de>, M: Deserialize<'de>> Visitor<'de> for WordOrVisitor<W, M> {
    type Value = WordOr<W, M>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a word or a map")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        W::deserialize(de::value::StrDeserializer::new(text)).map(WordOr::Word).map_err(|error: E| {
            let said = error.to_string();
            // A word that is near to none of the known ones may have been meant as one of the details.
            if said.contains("; known: ") { E::custom(said + ", or a map of details") } else { error }
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        M::deserialize(MapAccessDeserializer::new(map)).map(WordOr::Map)
    }
}

/// Parses a text with a function.
struct TextVisitor<F> {
    due: &'static str,
    parse: F,
}

impl<'de, T, F: Fn(&str) -> Result<T, String>> Visitor<'de> for TextVisitor<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.due)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text.trim()).map_err(E::custom)
    }
}

fn said(error: impl fmt::Display) -> String {
    error.to_string()
}

/// The number and the unit of `32MiB`.
fn number_and_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = number_and_unit(text);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" if !number.is_empty() => return Err(format!("`{text}` has no unit; write `{text}s` for seconds")),
        _ => return Err(format!("`{text}` is not a duration; write it as `250ms`, `10s`, `5m`, `1h` or `7d`")),
    };
    let thousandths = parse_scaled(number, 3).map_err(said)?;
    let micros = thousandths.checked_mul(unit_ms).ok_or_else(|| format!("`{text}` is too long"))?;
    if micros > DURATION_MAX_MICROS {
        return Err(format!("`{text}` is too long; at most 365 days"));
    }
    Ok(Duration::from_micros(micros))
}

/// A year: longer is a mistake, and sums with the clock cannot overflow below it.
const DURATION_MAX_MICROS: u64 = 365 * 86_400 * 1_000_000;

fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = number_and_unit(text);
    let unit_bytes: u64 = match unit {
        "" | "B" => 1,
        "KB" | "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("`{text}` is not a size; write it as `512KiB`, `32MiB` or `1GiB`")),
    };
    let number =
        parse_scaled(&number.replace('_', ""), 0).map_err(|_| format!("`{text}` is not a whole number of {unit}"))?;
    number.checked_mul(unit_bytes).ok_or_else(|| format!("`{text}` is too large"))
}

fn share(text: &str) -> Result<f64, String> {
    let not_share = || format!("`{text}` is not a share; write it as `80%`, or as a number from 0 to 1");
    let (number, scale, max) = match text.strip_suffix('%') {
        Some(percent) => (percent.trim(), 100.0, 100_000.0),
        None => (text, 1.0, 1.0),
    };
    let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let value: f64 = number.parse().ok().filter(|_| plain).ok_or_else(not_share)?;
    if value > max {
        return Err(not_share());
    }
    Ok(value / scale)
}

/// An amount in the unit that metrics have: a share as a part of 1, money in USD, time in seconds, or a plain number.
pub(super) fn amount(text: &str) -> Option<f64> {
    let text = text.trim();
    if text.ends_with('%') {
        return share(text).ok();
    }
    if let Ok(money) = text.parse::<NanoUsd>() {
        return Some(money.0 as f64 / 1e9);
    }
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number = || text.parse().ok().filter(|_| plain);
    duration(text).ok().map(|time| time.as_secs_f64()).or_else(number)
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let numeric = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    if let Some(port) = text.strip_prefix(':') {
        return Err(format!(
            "`{text}` names no address; write `127.0.0.1:{port}`, or `0.0.0.0:{port}` for every interface"
        ));
    }
    numeric.parse().map_err(|_| format!("`{text}` is not an address; write it as `127.0.0.1:8080` or `[::1]:8080`"))
}

/// `on` or `off`, and their usual spellings.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "On" | "ON" | "true" | "True" | "TRUE" | "yes" => Ok(true),
        "off" | "Off" | "OFF" | "false" | "False" | "FALSE" | "no" => Ok(false),
        _ => Err(format!("`{text}` is neither on nor off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        for (text, ms) in
            [("250ms", 250), ("10s", 10_000), ("1.5s", 1500), ("5m", 300_000), ("1h", 3_600_000), ("0s", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(duration("10"), Err("`10` has no unit; write `10s` for seconds".to_owned()));
        for text in ["", "s", "-1s", "1 fortnight", "99999999999999999999s", "400d", "1.0001s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_know_both_families_of_units() {
        for (text, bytes) in [("32MiB", 33_554_432), ("1KB", 1000), ("7", 7), ("1_000 B", 1000)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["32M", "1.5MiB", "-1", "99999999999GiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares_are_percent_or_at_most_one() {
        for (text, value) in [("80%", 0.8), ("0.25", 0.25), ("1", 1.0), ("150%", 1.5)] {
            assert_eq!(share(text), Ok(value), "{text}");
        }
        for text in ["80", "NaN%", "inf", "-5%", "1e9%", "%"] {
            assert!(share(text).is_err(), "{text}");
        }
    }

    #[test]
    fn amounts_are_in_the_unit_of_their_metric() {
        for (text, value) in
            [("5%", 0.05), ("0.02 USD", 0.02), ("1.5s", 1.5), ("800ms", 0.8), ("400", 400.0), ("0.5", 0.5)]
        {
            assert_eq!(amount(text), Some(value), "{text}");
        }
        for text in ["", "%", "-5", "inf", "NaN", "1e9", "5 EUR"] {
            assert_eq!(amount(text), None, "{text}");
        }
    }

    #[test]
    fn an_address_without_a_host_names_the_mend() {
        assert_eq!(address("localhost:80"), Ok(SocketAddr::from(([127, 0, 0, 1], 80))));
        assert!(address(":80").is_err_and(|message| message.contains("0.0.0.0:80")));
    }
}
