//! How numbers look: money with as many digits as say something, durations with units, thousands set apart.

use jiff::Timestamp;

use super::language::Language;

/// A whole number, thousands set apart: `12,345`.
pub(super) fn count(number: u64, language: Language) -> String {
    grouped(&number.to_string(), language)
}

/// A number for a headline, three digits of it: `1.24 M`.
pub(super) fn compact(number: u64, language: Language) -> String {
    let (scaled, unit) = match number {
        0..10_000 => return count(number, language),
        10_000..999_500 => (number as f64 / 1e3, "k"),
        999_500..999_500_000 => (number as f64 / 1e6, "M"),
        _ => (number as f64 / 1e9, "G"),
    };
    format!("{} {unit}", three_digits(scaled, language))
}

/// Dollars for a headline: cents where there are dollars, else three digits that are not 0.
pub(super) fn money(nanousd: u64, language: Language) -> String {
    let decimals = match nanousd {
        0 => 2,
        1_000_000_000_000.. => 0,
        100_000_000.. => 2,
        // A dollar has 9 decimals here; the first digit that is not 0 and two more are shown.
        _ => (2 + 9 - nanousd.ilog10() as usize).min(9),
    };
    // Zeros at the end say nothing, except in cents.
    let places = 10_u64.pow(u32::try_from(9 - decimals).unwrap_or_default());
    let mut rounded = (nanousd.saturating_add(places / 2)) / places;
    let mut kept = decimals;
    while kept > 2 && rounded.is_multiple_of(10) {
        (rounded, kept) = (rounded / 10, kept - 1);
    }
    money_with(nanousd, kept, language)
}

/// Dollars with so many decimals, for a column.
pub(super) fn money_with(nanousd: u64, decimals: usize, language: Language) -> String {
    let number = decimal(nanousd as f64 / 1e9, decimals, language);
    match language {
        Language::English => format!("${number}"),
        Language::German => format!("{number} $"),
    }
}

/// A duration of microseconds: `850 µs`, `412 ms`, `1.24 s`, `2 min 5 s`.
pub(super) fn duration(us: u64, language: Language) -> String {
    match us {
        0 => "0".to_owned(),
        1..1_000 => format!("{us} µs"),
        1_000..999_500 => format!("{} ms", three_digits(us as f64 / 1e3, language)),
        999_500..60_000_000 => format!("{} s", three_digits(us as f64 / 1e6, language)),
        _ => long(us / 1_000_000),
    }
}

/// Seconds, as their two largest units: `3 d 4 h`.
pub(super) fn long(seconds: u64) -> String {
    let parts = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let mut rest = seconds;
    let mut said = Vec::new();
    for (unit, name) in parts {
        if rest >= unit && said.len() < 2 {
            said.push(format!("{} {name}", rest / unit));
        } else if !said.is_empty() {
            break;
        }
        rest %= unit;
    }
    if said.is_empty() { "0 s".to_owned() } else { said.join(" ") }
}

/// A share of 1 as percent.
pub(super) fn percent(share: f64, language: Language) -> String {
    let percent = share * 100.0;
    let decimals = match percent {
        p if p == 0.0 || p >= 99.95 => 0,
        p if p < 1.0 => 2,
        _ => 1,
    };
    let number = decimal(percent, decimals, language);
    match language {
        Language::English => format!("{number}%"),
        Language::German => format!("{number} %"),
    }
}

/// `2026-11-23 21:07:04 UTC`.
pub(super) fn absolute(ms: u64) -> String {
    timestamp(ms).strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// As machines read it: RFC 3339.
pub(super) fn machine(ms: u64) -> String {
    format!("{:.3}", timestamp(ms))
}

/// The instant; the beginning of 1970 for what is no time.
pub(super) fn timestamp(ms: u64) -> Timestamp {
    i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Milliseconds since 1970; 0 for what was before.
pub(super) fn milliseconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_millisecond()).unwrap_or_default()
}

/// A number with so many decimals.
pub(super) fn decimal(number: f64, decimals: usize, language: Language) -> String {
    grouped(&format!("{number:.decimals$}"), language)
}

fn three_digits(number: f64, language: Language) -> String {
    let decimals = match number {
        n if n >= 99.95 => 0,
        n if n >= 9.995 => 1,
        _ => 2,
    };
    decimal(number, decimals, language)
}

/// Sets thousands apart and writes the language's decimal sign.
fn grouped(digits: &str, language: Language) -> String {
    let (thousands, point) = match language {
        Language::English => (',', '.'),
        Language::German => ('.', ','),
    };
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at) % 3 == 0 {
            text.push(thousands);
        }
        text.push(digit);
    }
    if !decimals.is_empty() {
        text.push(point);
        text.push_str(decimals);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const EN: Language = Language::English;

    #[test]
    fn money_has_the_digits_that_say_something() {
        let table = [
            (0, "$0.00"),
            (184, "$0.000000184"),
            (512_300, "$0.000512"),
            (48_210_000, "$0.0482"),
            (10_000_000, "$0.01"),
            (420_000_000, "$0.42"),
            (1_234_567_890_000, "$1,235"),
            (12_340_000_000, "$12.34"),
        ];
        for (nanousd, text) in table {
            assert_eq!(money(nanousd, EN), text);
        }
        assert_eq!(money(12_340_000_000, Language::German), "12,34 $");
        assert_eq!(money_with(5_000_000_000_000, 2, Language::German), "5.000,00 $");
    }

    #[test]
    fn durations_have_units() {
        let table = [
            (0, "0"),
            (850, "850 µs"),
            (1_234, "1.23 ms"),
            (412_000, "412 ms"),
            (999_600, "1.00 s"),
            (12_340_000, "12.3 s"),
            (125_000_000, "2 min 5 s"),
            (7_200_000_000, "2 h"),
        ];
        for (us, text) in table {
            assert_eq!(duration(us, EN), text);
        }
        assert_eq!(long(90_061), "1 d 1 h");
        assert_eq!(long(86_460), "1 d");
    }

    #[test]
    fn counts_and_shares_are_read_at_a_glance() {
        assert_eq!(count(1_234_567, EN), "1,234,567");
        assert_eq!(count(1_234_567, Language::German), "1.234.567");
        assert_eq!(compact(9_999, EN), "9,999");
        assert_eq!(compact(12_345, EN), "12.3 k");
        assert_eq!(compact(1_240_000, Language::German), "1,24 M");
        assert_eq!(percent(0.0, EN), "0%");
        assert_eq!(percent(0.004, EN), "0.40%");
        assert_eq!(percent(0.123, Language::German), "12,3 %");
        assert_eq!(percent(1.0, EN), "100%");
    }
}
