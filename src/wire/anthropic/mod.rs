//! Anthropic's dialect: messages.

pub mod request;
