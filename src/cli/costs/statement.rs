//! What a provider says that it was used for: its own exports, read into one form.
//!
//! Known: OpenAI's cost export (CSV) and the pages of its Costs and Usage APIs (JSON); Anthropic's usage export of the console (CSV)
//! and the pages of its usage and cost reports (JSON).

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use jiff::civil::Date;
use serde_json::Value;

use super::csv;

/// One line of a statement, or several that are of one day and model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stated {
    /// Nano-USD; `None` where it speaks of tokens only.
    pub(super) cost_nanousd: Option<u64>,
    /// Prompt tokens with all their parts, and output tokens; `None` where it speaks of money only.
    pub(super) tokens: Option<(u64, u64)>,
}

/// By day (UTC) and model; the model is empty where the statement does not tell.
pub(super) type Statement = BTreeMap<(Date, String), Stated>;

/// Reads a statement, whatever its form.
///
/// # Errors
/// When it is of no known form.
pub(super) fn read(text: &str) -> anyhow::Result<Statement> {
    let start = text.trim_start_matches('\u{feff}').trim_start();
    let statement = if start.starts_with('{') { from_json(start)? } else { from_csv(text)? };
    if statement.is_empty() {
        bail!("the statement has no line");
    }
    Ok(statement)
}

/// A model's name without the date of its snapshot: calls name `gpt-4o` where statements say `gpt-4o-2024-08-06`.
pub(super) fn family(model: &str) -> &str {
    let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    let mut parts = model.rsplitn(4, '-');
    let (day, month, year) =
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if digits(day, 2) && digits(month, 2) && digits(year, 4) {
        return &model[..model.len() - "-2024-08-06".len()];
    }
    if digits(day, 8) && model.len() > 9 { &model[..model.len() - "-20250514".len()] } else { model }
}

fn add(statement: &mut Statement, day: Date, model: &str, line: Stated) {
    let entry = statement.entry((day, family(model).to_owned())).or_default();
    if let Some(cost) = line.cost_nanousd {
        entry.cost_nanousd = Some(entry.cost_nanousd.unwrap_or(0).saturating_add(cost));
    }
    if let Some((input, output)) = line.tokens {
        let (more_input, more_output) = entry.tokens.unwrap_or_default();
        entry.tokens = Some((input.saturating_add(more_input), output.saturating_add(more_output)));
    }
}

// === CSV ===

fn from_csv(text: &str) -> anyhow::Result<Statement> {
    let records = csv::records(text);
    let (header, lines) = records.split_first().context("the file is empty")?;
    let column = |name: &str| header.iter().position(|column| column.trim() == name);
    let mut statement = Statement::new();
    match (column("amount_value"), column("start_time"), column("usage_date_utc"), column("model_version")) {
        (Some(amount), Some(start), _, _) => {
            let (line_item, currency) = (column("line_item"), column("amount_currency"));
            for (line, number) in lines.iter().zip(2..) {
                let at = |column: usize| line.get(column).map_or("", |field| field.trim());
                // Days without any cost are there with empty fields.
                if at(amount).is_empty() {
                    continue;
                }
                usd_only(currency.map_or("usd", at)).with_context(|| format!("line {number}"))?;
                let day = day_of_second(at(start)).with_context(|| format!("line {number}: start_time"))?;
                let cost = nano_of(at(amount)).with_context(|| format!("line {number}: amount_value"))?;
                // `gpt-4o-2024-08-06, input`: the model, then what of it.
                let model = line_item.map_or("", at).split(',').next().unwrap_or_default();
                add(&mut statement, day, model, Stated { cost_nanousd: Some(cost), tokens: None });
            }
        }
        (_, _, Some(day), Some(model)) => {
            let inputs = [
                "usage_input_tokens_no_cache",
                "usage_input_tokens_cache_write_5m",
                "usage_input_tokens_cache_write_1h",
                "usage_input_tokens_cache_read",
            ];
            let inputs: Vec<usize> = inputs.into_iter().filter_map(column).collect();
            let output = column("usage_output_tokens").context("there is no column usage_output_tokens")?;
            for (line, number) in lines.iter().zip(2..) {
                let at = |column: usize| line.get(column).map_or("", |field| field.trim());
                let tokens = |column: usize| match at(column) {
                    "" => Ok(0),
                    text => {
                        text.parse::<u64>().with_context(|| format!("line {number}: `{text}` is no number of tokens"))
                    }
                };
                let day = day_of_text(at(day)).with_context(|| format!("line {number}: usage_date_utc"))?;
                let input = inputs.iter().map(|column| tokens(*column)).sum::<anyhow::Result<u64>>()?;
                add(
                    &mut statement,
                    day,
                    at(model),
                    Stated { cost_nanousd: None, tokens: Some((input, tokens(output)?)) },
                );
            }
        }
        _ => bail!(
            "is no export that is known here: OpenAI's cost export has the columns start_time, amount_value and line_item, Anthropic's \
             usage export usage_date_utc, model_version and usage_output_tokens"
        ),
    }
    Ok(statement)
}

// === JSON ===

/// One page of an API, or several one after the other.
fn from_json(text: &str) -> anyhow::Result<Statement> {
    let mut statement = Statement::new();
    for page in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        let page = page.context("not JSON")?;
        let buckets =
            page.get("data").and_then(Value::as_array).context("is no page of a usage API: there is no `data`")?;
        for bucket in buckets {
            let day = match (bucket.get("start_time"), bucket.get("starting_at").and_then(Value::as_str)) {
                (Some(second), _) => day_of_second(&second.to_string())?,
                (None, Some(text)) => day_of_text(text)?,
                (None, None) => bail!("a bucket has no start_time"),
            };
            for result in bucket.get("results").and_then(Value::as_array).into_iter().flatten() {
                let (model, line) = json_line(result)?;
                add(&mut statement, day, model, line);
            }
        }
    }
    Ok(statement)
}

fn json_line(result: &Value) -> anyhow::Result<(&str, Stated)> {
    let text = |key: &str| result.get(key).and_then(Value::as_str).unwrap_or_default();
    if let Some(amount) = result.get("amount").and_then(Value::as_object) {
        usd_only(amount.get("currency").and_then(Value::as_str).unwrap_or("usd"))?;
        let value = amount.get("value").map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        let cost = nano_of(&value.context("an amount has no value")?)?;
        return Ok((
            text("line_item").split(',').next().unwrap_or_default(),
            Stated { cost_nanousd: Some(cost), tokens: None },
        ));
    }
    // Anthropic's cost report: cents, as a text.
    if let Some(cents) = result.get("amount").and_then(Value::as_str) {
        usd_only(text("currency"))?;
        return Ok((text("model"), Stated { cost_nanousd: Some(nano_of(cents)? / 100), tokens: None }));
    }
    let tokens = |pointer: &str| result.pointer(pointer).and_then(Value::as_u64);
    let output = tokens("/output_tokens").context("a result has neither amount nor output_tokens")?;
    let input = match tokens("/uncached_input_tokens") {
        // Anthropic counts the parts of a prompt beside each other.
        Some(uncached) => {
            let parts = [
                "/cache_read_input_tokens",
                "/cache_creation/ephemeral_5m_input_tokens",
                "/cache_creation/ephemeral_1h_input_tokens",
            ];
            parts.into_iter().filter_map(tokens).fold(uncached, u64::saturating_add)
        }
        None => tokens("/input_tokens").context("a result has no input_tokens")?,
    };
    Ok((text("model"), Stated { cost_nanousd: None, tokens: Some((input, output)) }))
}

// === values ===

fn usd_only(currency: &str) -> anyhow::Result<()> {
    match currency.eq_ignore_ascii_case("usd") || currency.is_empty() {
        true => Ok(()),
        false => bail!("the amounts are in {currency}; only USD can be compared"),
    }
}

fn day_of_second(text: &str) -> anyhow::Result<Date> {
    let second: i64 = text.parse().with_context(|| format!("`{text}` is no Unix time"))?;
    Ok(jiff::tz::TimeZone::UTC.to_datetime(jiff::Timestamp::from_second(second)?).date())
}

/// `2026-11-23`, or a time of that day in UTC.
fn day_of_text(text: &str) -> anyhow::Result<Date> {
    let day = text.get(..10).unwrap_or(text);
    day.parse().with_context(|| format!("`{text}` is no date"))
}

/// Dollars as nano-dollars, rounded half up: statements have more decimals than that. Discounts make a line negative; they count as 0.
fn nano_of(text: &str) -> anyhow::Result<u64> {
    let dollars: f64 = text.parse().with_context(|| format!("`{text}` is no amount"))?;
    if !dollars.is_finite() || dollars.abs() > 1e9 {
        bail!("`{text}` is no amount");
    }
    Ok((dollars * 1e9).round().max(0.0) as u64)
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    /// Day, model, nano-USD, and tokens in and out.
    type Shown = (Date, String, Option<u64>, Option<(u64, u64)>);

    fn stated(text: &str) -> Vec<Shown> {
        read(text)
            .unwrap()
            .into_iter()
            .map(|((day, model), line)| (day, model, line.cost_nanousd, line.tokens))
            .collect()
    }

    #[test]
    fn openais_cost_export_is_read() {
        // Columns and spellings of the dashboard's export; a day without cost has empty fields.
        let text = "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,quantity,quantity_unit,line_item,user_id,\
                    api_key_id,project_id,organization_id,project_name,organization_name,user_email,api_source\n\
                    1790467200,1790553600,2026-09-27T00:00:00,2026-09-28T00:00:00,,,,,,,,,,,,,\n\
                    1790553600,1790640000,2026-09-28T00:00:00,2026-09-29T00:00:00,0.0038359800000000,usd,,,\"gpt-4o-2024-08-06, input\",,,,org-1,,O,,\n\
                    1790553600,1790640000,2026-09-28T00:00:00,2026-09-29T00:00:00,0.5,usd,,,\"gpt-4o-2024-08-06, output\",,,,org-1,,O,,\n";
        assert_eq!(stated(text), [(date(2026, 9, 28), "gpt-4o".to_owned(), Some(503_835_980), None)]);
    }

    #[test]
    fn openais_pages_are_read() {
        let costs = r#"{"object":"page","data":[{"object":"bucket","start_time":1730419200,"end_time":1730505600,"results":[
            {"object":"organization.costs.result","amount":{"value":0.06,"currency":"usd"},"line_item":null,"project_id":null}]}],"has_more":false}"#;
        assert_eq!(stated(costs), [(date(2024, 11, 1), String::new(), Some(60_000_000), None)]);
        let usage = r#"{"object":"page","data":[{"object":"bucket","start_time":1730419200,"end_time":1730505600,"results":[
            {"object":"organization.usage.completions.result","input_tokens":1000,"output_tokens":500,"input_cached_tokens":800,
             "num_model_requests":5,"model":"gpt-4o-mini-2024-07-18"}]}]}"#;
        assert_eq!(stated(usage), [(date(2024, 11, 1), "gpt-4o-mini".to_owned(), None, Some((1000, 500)))]);
    }

    #[test]
    fn anthropics_exports_are_read() {
        let text = "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,\
                    usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,usage_output_tokens,\
                    web_search_count,inference_geo,speed\n\
                    2026-08-05,claude-opus-5,App,Default,standard,≤ 200k,46981,15969,1,10,16932,0,global,\n";
        assert_eq!(stated(text), [(date(2026, 8, 5), "claude-opus-5".to_owned(), None, Some((62_961, 16_932)))]);
        let page = r#"{"data":[{"starting_at":"2026-08-05T00:00:00Z","ending_at":"2026-08-06T00:00:00Z","results":[
            {"uncached_input_tokens":10,"cache_creation":{"ephemeral_1h_input_tokens":1,"ephemeral_5m_input_tokens":2},
             "cache_read_input_tokens":3,"output_tokens":4,"model":"claude-sonnet-4-20250514"}]}],"has_more":false}"#;
        assert_eq!(stated(page), [(date(2026, 8, 5), "claude-sonnet-4".to_owned(), None, Some((16, 4)))]);
        let costs = r#"{"data":[{"starting_at":"2026-08-05T00:00:00Z","results":[{"currency":"USD","amount":"123.5","model":"claude-opus-5"}]}]}"#;
        assert_eq!(stated(costs), [(date(2026, 8, 5), "claude-opus-5".to_owned(), Some(1_235_000_000), None)]);
    }

    #[test]
    fn other_files_are_refused() {
        for text in ["", "a,b\n1,2\n", "{\"x\": 1}", "{", "start_time,amount_value,amount_currency\n1730419200,1,eur\n"]
        {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_snapshots_date_is_no_part_of_its_family() {
        for (model, expected) in [
            ("gpt-4o-2024-08-06", "gpt-4o"),
            ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
            ("gpt-4o", "gpt-4o"),
            ("o1", "o1"),
            ("20251001", "20251001"),
        ] {
            assert_eq!(family(model), expected);
        }
    }
}
