//! OpenAI's dialect: chat completions, legacy completions, responses, embeddings.

pub mod prompt;
pub mod reply;
pub mod request;
pub mod stream;
pub mod usage_filter;
