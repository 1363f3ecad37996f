//! Where a prompt belongs in Anthropic's requests.

use crate::wire::{
    edit::{EditError, Role, last_user_content_in, message, paragraphs, prepend_paragraph, text_part},
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

/// Puts a prompt's instructions before `system`, wherever they stand in it, and its other messages before the conversation. Two
/// messages of the user in a row are fine: the API reads them as one.
///
/// # Errors
/// `system` or `messages` has another type; or the prompt's conversation is not begun by the user.
pub fn insert_messages(edits: &mut Edits, body: &[u8], scan: &Scan, prompt: &[(Role, &str)]) -> Result<(), EditError> {
    let (instructions, talk): (Vec<_>, Vec<_>) = prompt.iter().partition(|(role, _)| role.instructs());
    if talk.first().is_some_and(|(role, _)| *role == Role::Assistant) {
        return Err(EditError::UserMustBegin);
    }
    if let Some(text) = paragraphs(instructions.iter().map(|(_, text)| *text)) {
        prepend_system(edits, body, scan, &text)?;
    }
    if talk.is_empty() {
        return Ok(());
    }
    let messages = messages(scan)?;
    talk.iter().for_each(|(role, text)| edits.prepend_element(body, messages, message(*role, text)));
    Ok(())
}

/// The content of the last message that the user wrote. Messages with tool results do not count: the results must come
/// first in them, and they are the tools' words.
///
/// # Errors
/// `messages` is no array, or has no such message.
pub fn last_user_content(body: &[u8], scan: &Scan) -> Result<Span, EditError> {
    last_user_content_in(body, messages(scan)?, "messages", |content| !has_tool_result(body, content))
}

fn messages(scan: &Scan) -> Result<Span, EditError> {
    let messages = scan.field("messages").filter(|field| field.kind == Kind::Array);
    messages.map(|field| field.value).ok_or(EditError::Shape { param: "messages", must: "an array" })
}

fn has_tool_result(body: &[u8], content: Span) -> bool {
    json::elements(body, content).any(|block| {
        let kind = json::field(body, block, "type").and_then(|span| json::text(body, span));
        kind.as_deref() == Some("tool_result")
    })
}
