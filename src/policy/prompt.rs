//! Prompt templates: sandboxed, strict, values inert.

/// One immutable version of a prompt, compiled.
#[derive(Debug)]
pub struct Template {}
