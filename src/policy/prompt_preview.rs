//! What a prompt adds to a call: its messages in order, their tokens, what they cost.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;

use crate::{
    policy::{
        pricing::Price,
        prompt::{Message, Rendered},
        tokens::{self, Encoding, chat},
    },
    units::{NanoUsd, Tokens},
    wire::{edit::Role, usage::Usage},
};

/// A rendered prompt as a model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    /// What stands before the conversation.
    pub messages: Vec<Message>,
    /// What stands before the user's own text.
    pub before_user: Option<Arc<str>>,
    /// What stands after it.
    pub after_user: Option<Arc<str>>,
    /// Tokens of all of it.
    pub tokens: Tokens,
    /// Whether the model's own tokenizer counted them.
    pub exact: bool,
    /// What they cost a call that reads nothing of it from a cache; `None` where no price is known.
    pub cost: Option<NanoUsd>,
}

/// Counts and prices what was rendered.
#[must_use]
pub fn preview(rendered: &Rendered, model: &str, price: Option<&Price>, at: Timestamp) -> Preview {
    let messages = lead(rendered);
    let (encoding, _) = Encoding::for_model(model);
    let around = [&rendered.before_user, &rendered.after_user].into_iter().flatten();
    let around = around.map(|text| tokens::count_exact(encoding, text).0).sum::<u64>();
    let counted = count(&messages, model);
    let tokens = Tokens(counted.tokens.0.saturating_add(around));
    let usage = Usage { input: tokens, ..Usage::default() };
    Preview {
        messages,
        before_user: rendered.before_user.clone(),
        after_user: rendered.after_user.clone(),
        tokens,
        exact: counted.exact,
        cost: price.map(|price| price.cost(&usage, None, at)),
    }
}

/// Everything that stands before the conversation, in order.
#[must_use]
pub fn lead(rendered: &Rendered) -> Vec<Message> {
    let named = [(Role::System, &rendered.system), (Role::Developer, &rendered.developer)];
    let named = named.into_iter().filter_map(|(role, text)| Some(Message { role, content: text.clone()? }));
    named.chain(rendered.messages.iter().cloned()).collect()
}

/// Tokens that messages add to a chat.
fn count(messages: &[Message], model: &str) -> chat::Counted {
    let message = |message: &Message| json!({"role": message.role.name(), "content": &*message.content});
    let chat = |messages: Vec<_>| chat::count_exact(&json!({ "messages": messages }), model);
    let (whole, empty) = (chat(messages.iter().map(message).collect()), chat(Vec::new()));
    chat::Counted { tokens: Tokens(whole.tokens.0.saturating_sub(empty.tokens.0)), exact: whole.exact }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PicoUsdPerToken;

    #[test]
    fn a_preview_counts_all_parts_and_prices_them_as_input() {
        let rendered = Rendered {
            system: Some("Hello world".into()),
            messages: vec![Message { role: Role::User, content: "hi".into() }].into(),
            after_user: Some("Thanks".into()),
            ..Rendered::default()
        };
        let price = Price::flat(PicoUsdPerToken(1_000_000), PicoUsdPerToken(9_000_000));
        let seen = preview(&rendered, "gpt-4o", Some(&price), Timestamp::UNIX_EPOCH);
        assert_eq!(seen.messages.iter().map(|one| one.role.name()).collect::<Vec<_>>(), ["system", "user"]);
        // Two messages of four tokens of framing each (role included), and 2 + 1 + 1 of text.
        assert_eq!((seen.tokens, seen.exact), (Tokens(12), true));
        assert_eq!(seen.cost, Some(NanoUsd(12_000)));
        assert_eq!(preview(&rendered, "gpt-4o", None, Timestamp::UNIX_EPOCH).cost, None);
    }
}
