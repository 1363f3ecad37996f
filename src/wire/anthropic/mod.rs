//! Anthropic's dialect: messages.

pub mod prompt;
pub mod request;
