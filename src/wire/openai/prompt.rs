//! Where a prompt belongs in OpenAI's requests.

use crate::wire::{
    edit::{EditError, Role, last_user_content_in, prepend_paragraph},
    json::{Edits, Kind, Scan, Span, quoted},
};

/// Makes `text` the first message of a chat.
///
/// # Errors
/// `messages` is no array.
pub fn prepend_message(edits: &mut Edits, body: &[u8], scan: &Scan, role: Role, text: &str) -> Result<(), EditError> {
    let messages = messages(scan)?;
    let mut message = Vec::with_capacity(text.len() + 48);
    message.extend_from_slice(b"{\"role\":\"");
    message.extend_from_slice(role.name().as_bytes());
    message.extend_from_slice(b"\",\"content\":");
    message.extend_from_slice(&quoted(text));
    message.push(b'}');
    edits.prepend_element(body, messages, message);
    Ok(())
}

/// Puts `text` before the `instructions` of a Responses call.
///
/// # Errors
/// `instructions` is no string.
pub fn prepend_instructions(edits: &mut Edits, scan: &Scan, text: &str) -> Result<(), EditError> {
    match scan.field("instructions").map(|field| (field.kind, field.value)) {
        None | Some((Kind::Null, _)) => edits.set_field(scan, "instructions", quoted(text)),
        Some((Kind::String, span)) => prepend_paragraph(edits, span, text),
        Some(_) => return Err(EditError::Shape { param: "instructions", must: "a string" }),
    }
    Ok(())
}

/// The content of a chat's last user message.
///
/// # Errors
/// `messages` is no array, or has no such message.
pub fn last_user_content(body: &[u8], scan: &Scan) -> Result<Span, EditError> {
    last_user_content_in(body, messages(scan)?, "messages", |_| true)
}

/// The input of a Responses call where it is text, else the content of its last user message.
///
/// # Errors
/// There is neither.
pub fn last_user_input(body: &[u8], scan: &Scan) -> Result<Span, EditError> {
    match scan.field("input").map(|field| (field.kind, field.value)) {
        Some((Kind::String, input)) => Ok(input),
        Some((Kind::Array, input)) => last_user_content_in(body, input, "input", |_| true),
        _ => Err(EditError::Shape { param: "input", must: "a string or an array of items" }),
    }
}

fn messages(scan: &Scan) -> Result<Span, EditError> {
    let messages = scan.field("messages").filter(|field| field.kind == Kind::Array);
    messages.map(|field| field.value).ok_or(EditError::Shape { param: "messages", must: "an array" })
}
