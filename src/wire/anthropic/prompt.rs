//! Where a prompt belongs in Anthropic's requests.

use crate::wire::{
    edit::{EditError, last_user_content_in, prepend_paragraph, text_part},
    json::{self, Edits, Kind, Scan, Span, quoted},
};

/// Puts `text` before the `system` prompt.
///
/// # Errors
/// `system` is neither a string nor an array of blocks.
pub fn prepend_system(edits: &mut Edits, body: &[u8], scan: &Scan, text: &str) -> Result<(), EditError> {
    match scan.field("system").map(|field| (field.kind, field.value)) {
        None | Some((Kind::Null, _)) => edits.set_field(scan, "system", quoted(text)),
        Some((Kind::String, span)) => prepend_paragraph(edits, span, text),
        Some((Kind::Array, span)) => edits.prepend_element(body, span, text_part("text", text)),
        Some(_) => return Err(EditError::Shape { param: "system", must: "a string or an array of blocks" }),
    }
    Ok(())
}

/// The content of the last message that the user wrote. Messages with tool results do not count: the results must come
/// first in them, and they are the tools' words.
///
/// # Errors
/// `messages` is no array, or has no such message.
pub fn last_user_content(body: &[u8], scan: &Scan) -> Result<Span, EditError> {
    let messages = scan.field("messages").filter(|field| field.kind == Kind::Array);
    let messages = messages.ok_or(EditError::Shape { param: "messages", must: "an array" })?.value;
    last_user_content_in(body, messages, "messages", |content| !has_tool_result(body, content))
}

fn has_tool_result(body: &[u8], content: Span) -> bool {
    json::elements(body, content).any(|block| {
        let kind = json::field(body, block, "type").and_then(|span| json::text(body, span));
        kind.as_deref() == Some("tool_result")
    })
}
