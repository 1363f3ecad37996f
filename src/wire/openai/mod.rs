//! OpenAI's dialect.
