//! Anthropic's dialect: messages.

pub mod prompt;
pub mod reply;
pub mod request;
pub mod stream;
