//! A little live traffic: pretend users who ask about three questions a second, until the demonstration is stopped.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::interval};

use super::{
    HELPDESK_KEY, REPORTS_KEY, SHOP_KEY,
    client::{Ask, Client, Reply},
};

/// A call begins this often.
const PACE: Duration = Duration::from_millis(350);
/// Calls under way at the same time; while there are as many, none begins.
const UNDER_WAY_MAX: usize = 8;
/// After this many (five hours) it is quiet, so that a forgotten demonstration does not run on.
const CALLS_MAX: usize = 50_000;
/// Every so many calls the provider fails.
const FAILS_EVERY: usize = 23;

/// Who asks, with which key, which model, streamed or not. Greta asks most, and has a budget of her own, soon spent.
const USERS: [(&str, &str, &str, bool); 10] = [
    ("ada", HELPDESK_KEY, "support", true),
    ("greta", SHOP_KEY, "support", false),
    ("bob", HELPDESK_KEY, "support", false),
    ("cleo", SHOP_KEY, "cheap", false),
    ("greta", SHOP_KEY, "support", false),
    ("dan", HELPDESK_KEY, "support", true),
    ("nightly", REPORTS_KEY, "cheap", false),
    ("greta", SHOP_KEY, "support", false),
    ("ivy", SHOP_KEY, "support", true),
    ("finn", HELPDESK_KEY, "cheap", true),
];

const QUESTIONS: [&str; 7] = [
    "How do I reset my password?",
    "Can I change the language of the invoices?",
    "Why is my import still waiting?",
    "How do I invite a colleague to the project?",
    "What happens to my data when I cancel?",
    "Can I have the report as a spreadsheet?",
    "How do I connect the calendar?",
];

/// Asks until [`CALLS_MAX`]; how each call ends is seen in the gateway's metrics.
pub(super) async fn run(client: Arc<Client>) {
    let under_way = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    let mut ticks = interval(PACE);
    for number in 0..CALLS_MAX {
        ticks.tick().await;
        let Ok(permit) = under_way.clone().acquire_owned().await else { return };
        let client = client.clone();
        tokio::spawn(async move {
            let ask = ask(number);
            // Refusals and failures are part of the picture, and the gateway counts them.
            if let Ok(reply) = client.ask(&ask).await
                && let Some(resolved) = resolved(number, &reply)
            {
                let _ = client.rate(ask.key, reply.header("x-tollgate-call"), resolved).await;
            }
            drop(permit);
        });
    }
}

/// What the user says of an answer: the friendlier prompt helps more often. Nothing where none came, or no experiment ran.
fn resolved(number: usize, reply: &Reply) -> Option<bool> {
    let percent = match reply.header("x-tollgate-variant") {
        "tone=warm" => 78,
        "tone=control" => 62,
        _ => return None,
    };
    // Spread over the numbers without a pattern that a user would meet.
    reply.status.is_success().then_some(number * 7919 % 101 < percent)
}

fn ask(number: usize) -> Ask {
    let (user, key, model, stream) = USERS[number % USERS.len()];
    Ask {
        key,
        user,
        model,
        question: QUESTIONS[number % QUESTIONS.len()].to_owned(),
        stream,
        max_tokens: Some(300),
        simulate: (number % FAILS_EVERY == FAILS_EVERY - 1).then_some("error=503"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_asks_different_questions() {
        let of_ada: Vec<Ask> = (0..70).map(ask).filter(|ask| ask.user == "ada").collect();
        assert_eq!(of_ada.len(), 7);
        let questions: std::collections::BTreeSet<&String> = of_ada.iter().map(|ask| &ask.question).collect();
        assert_eq!(questions.len(), QUESTIONS.len());
    }
}
