//! What the bytes mean. Synchronous, no I/O, borrowed where it can be.

pub mod agent;
pub mod anthropic;
pub mod coding;
pub mod edit;
pub mod endpoint;
pub mod headers;
pub mod json;
pub mod openai;
pub mod output;
pub mod redis_url;
pub mod reply;
pub mod request;
pub mod revision;
pub mod sse;
pub mod stream;
pub mod traceparent;
pub mod usage;
