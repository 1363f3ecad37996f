//! One round of calls, and a table of what became of them: every figure is read from the gateway's replies and ledger.

use std::io::Write;

use serde_json::Value;

use super::{
    HELPDESK_KEY, SHOP_KEY,
    client::{Account, Ask, Client, Reply},
};
use crate::units::NanoUsd;

/// How a call of the round should end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Answered,
    /// Answered, with the output cap lowered to what the budget has left.
    Capped,
    /// Refused: the budget is spent.
    Refused,
    /// Failed by the provider, and passed on.
    Failed,
}

/// One line of the table.
#[derive(Debug)]
struct Row {
    user: &'static str,
    model: String,
    variant: String,
    tokens: String,
    cost: NanoUsd,
    outcome: String,
}

/// Makes the calls one after the other, writes the report, and says whether each ended as it should.
pub(super) async fn round(client: &Client, out: &mut impl Write) -> anyhow::Result<bool> {
    writeln!(out, "Tollgate, with a simulated provider: one round of calls, one after the other.\n")?;
    let mut rows = Vec::new();
    let mut streamed = None;
    let mut all_as_expected = true;
    let mut before = spent(&client.settled_accounts().await?);
    for (ask, expected) in asks() {
        let reply = client.ask(&ask).await?;
        let after = spent(&client.settled_accounts().await?);
        let as_expected = ended_as(&reply) == Some(expected)
            && (expected == Expected::Refused || !charged_nothing(&reply, after, before));
        all_as_expected &= as_expected;
        let outcome = if as_expected { outcome(&reply, expected) } else { format!("UNEXPECTED: {}", plain(&reply)) };
        rows.push(row(&ask, &reply, NanoUsd(after.saturating_sub(before)), outcome));
        before = after;
        streamed = streamed.or_else(|| ask.stream.then_some((ask.user, reply)));
    }
    table(&rows, out)?;
    if let Some((user, reply)) = &streamed {
        all_as_expected &= stream(user, reply, out)?;
    }
    budgets(&client.settled_accounts().await?, out)?;
    let verdict = if all_as_expected {
        "\nAll as it should be. `tollgate demo` keeps running and tells you what to try.\n"
    } else {
        "\nSomething did not go as it should: see UNEXPECTED above.\n"
    };
    out.write_all(verdict.as_bytes())?;
    Ok(all_as_expected)
}

/// The round. Greta may spend 0.01 USD an hour, and asks for more than that.
fn asks() -> Vec<(Ask, Expected)> {
    let ask = |key, user, model, question: &str| Ask {
        key,
        user,
        session: None,
        model,
        question: question.to_owned(),
        stream: false,
        max_tokens: Some(300),
        simulate: None,
    };
    let long = |question| Ask {
        max_tokens: None,
        simulate: Some("tokens=600"),
        ..ask(SHOP_KEY, "greta", "support", question)
    };
    let failing = Ask { simulate: Some("error=503"), ..ask(HELPDESK_KEY, "finn", "support", "Is anybody there?") };
    vec![
        (ask(HELPDESK_KEY, "ada", "support", "How do I reset my password?"), Expected::Answered),
        (ask(HELPDESK_KEY, "bob", "support", "How do I reset my password?"), Expected::Answered),
        (ask(SHOP_KEY, "cleo", "cheap", "Can I change the language of the invoices?"), Expected::Answered),
        (
            Ask { stream: true, ..ask(HELPDESK_KEY, "dan", "support", "How do I connect the calendar?") },
            Expected::Answered,
        ),
        (failing, Expected::Failed),
        (long("Write me a long introduction."), Expected::Capped),
        (long("Write me a longer one."), Expected::Capped),
        (long("And another one."), Expected::Refused),
    ]
}

fn ended_as(reply: &Reply) -> Option<Expected> {
    match (reply.status.as_u16(), reply.header("x-tollgate-clamped")) {
        (200, "") => Some(Expected::Answered),
        (200, _) => Some(Expected::Capped),
        (429, _) if error_code(reply) == "budget_exhausted" => Some(Expected::Refused),
        (503, _) if !reply.header("x-tollgate-model").is_empty() => Some(Expected::Failed),
        _ => None,
    }
}

/// An answered call that cost nothing would be a call that was not accounted for.
fn charged_nothing(reply: &Reply, after: u64, before: u64) -> bool {
    reply.status.is_success() && after == before
}

fn outcome(reply: &Reply, expected: Expected) -> String {
    match expected {
        Expected::Answered if reply.header("content-type").starts_with("text/event-stream") => "answered, streamed",
        Expected::Answered => "answered",
        Expected::Capped => {
            return format!("answered, at most {} tokens: the rest of the budget", reply.header("x-tollgate-clamped"));
        }
        Expected::Refused => "refused (429): the budget `trial` is spent",
        Expected::Failed => "the provider failed (503), passed on unchanged",
    }
    .to_owned()
}

fn plain(reply: &Reply) -> String {
    format!("{} {}", reply.status.as_u16(), String::from_utf8_lossy(&reply.body).chars().take(200).collect::<String>())
}

fn error_code(reply: &Reply) -> String {
    reply.events().first().and_then(|body| body["error"]["code"].as_str().map(str::to_owned)).unwrap_or_default()
}

/// What all users have spent, in nano-USD: each call is charged to exactly one of these accounts.
fn spent(accounts: &[Account]) -> u64 {
    accounts.iter().filter(|account| account.budget == "each-user").map(|account| account.charged).sum()
}

fn row(ask: &Ask, reply: &Reply, cost: NanoUsd, outcome: String) -> Row {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let usage = reply.events().into_iter().rev().find(|event| event["usage"].is_object());
    let tokens =
        usage.map(|event| format!("{} + {}", event["usage"]["prompt_tokens"], event["usage"]["completion_tokens"]));
    Row {
        user: ask.user,
        model: format!("{} -> {}", ask.model, or_dash(reply.header("x-tollgate-model"))),
        variant: or_dash(reply.header("x-tollgate-variant").trim_start_matches("tone=")),
        tokens: tokens.unwrap_or_else(|| "-".to_owned()),
        cost,
        outcome,
    }
}

fn table(rows: &[Row], out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "{:<6} {:<21} {:<8} {:>9} {:>12}  OUTCOME", "USER", "MODEL", "VARIANT", "TOKENS", "COST IN USD")?;
    for row in rows {
        let Row { user, model, variant, tokens, cost, outcome } = row;
        let cost = cost.to_string();
        writeln!(out, "{user:<6} {model:<21} {variant:<8} {tokens:>9} {cost:>12}  {outcome}")?;
    }
    writeln!(out, "(tokens of the prompt + of the reply; the prompt includes what the gateway put before it)")
}

/// Where the streamed reply went; whether it came in pieces and to its end.
fn stream(user: &str, reply: &Reply, out: &mut impl Write) -> std::io::Result<bool> {
    let text: String = reply.events().iter().filter_map(delta).collect();
    let begin: String = text.chars().take(60).collect();
    let done = reply.body.ends_with(b"data: [DONE]\n\n");
    writeln!(
        out,
        "\nThe streamed reply went from {} to {user} as it was made: {} pieces, the first after {} ms, the last after {} ms{}.\n\
         It begins: \"{begin}…\"",
        reply.header("x-tollgate-model"),
        reply.pieces,
        reply.first.as_millis(),
        reply.last.as_millis(),
        if done { ", then [DONE]" } else { ". UNEXPECTED: it has no end" },
    )?;
    Ok(done && reply.pieces > 1)
}

fn delta(event: &Value) -> Option<String> {
    event["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
}

fn budgets(accounts: &[Account], out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "\nBudgets afterwards:")?;
    let mut accounts: Vec<&Account> = accounts.iter().collect();
    accounts.sort_by(|a, b| a.account.cmp(&b.account));
    for Account { account, limit, charged, .. } in accounts {
        writeln!(out, "  {account:<56} {:>12} of {} USD", NanoUsd(*charged).to_string(), NanoUsd(*limit))?;
    }
    Ok(())
}
