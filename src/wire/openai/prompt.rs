//! Where a prompt belongs in OpenAI's requests.

use crate::wire::{
    edit::{EditError, Role, last_user_content_in, message, paragraphs, prepend_paragraph},
    json::{self, Edits, Kind, Scan, Span, quoted},
};

/// Makes `text` the first message of a chat.
///
/// # Errors
/// `messages` is no array.
pub fn prepend_message(edits: &mut Edits, body: &[u8], scan: &Scan, role: Role, text: &str) -> Result<(), EditError> {
    edits.prepend_element(body, messages(scan)?, message(role, text));
    Ok(())
}

/// Puts the leading instructions of a prompt before all messages of a chat, and its other messages after the instructions with
/// which the client's own begin.
///
/// # Errors
/// `messages` is no array.
pub fn insert_messages(edits: &mut Edits, body: &[u8], scan: &Scan, prompt: &[(Role, &str)]) -> Result<(), EditError> {
    let messages = messages(scan)?;
    let (lead, rest) = prompt.split_at(leading_instructions(prompt));
    lead.iter().for_each(|(role, text)| edits.prepend_element(body, messages, message(*role, text)));
    after_instructions(edits, body, messages, rest);
    Ok(())
}

/// Puts the leading instructions of a prompt before the `instructions` of a Responses call, and its other messages into `input`.
/// A text there becomes the user's message that it stands for. What goes on from an earlier call has these messages already.
///
/// # Errors
/// `instructions` is no string, or `input` neither a string nor an array.
pub fn insert_input(edits: &mut Edits, body: &[u8], scan: &Scan, prompt: &[(Role, &str)]) -> Result<(), EditError> {
    let (lead, rest) = prompt.split_at(leading_instructions(prompt));
    if let Some(text) = paragraphs(lead.iter().map(|(_, text)| *text)) {
        prepend_instructions(edits, scan, &text)?;
    }
    let is_given = |name| scan.field(name).is_some_and(|field| field.kind != Kind::Null);
    if rest.is_empty() || is_given("previous_response_id") || is_given("conversation") {
        return Ok(());
    }
    let items: Vec<Vec<u8>> = rest.iter().map(|(role, text)| message(*role, text)).collect();
    let items = items.join(&b',');
    match scan.field("input").map(|field| (field.kind, field.value)) {
        None | Some((Kind::Null, _)) => edits.set_field(scan, "input", [b"[", items.as_slice(), b"]"].concat()),
        Some((Kind::String, input)) => {
            let before = [b"[", items.as_slice(), b",{\"role\":\"user\",\"content\":"].concat();
            edits.insert(input.start, before);
            edits.insert(input.end, "}]");
        }
        Some((Kind::Array, input)) => after_instructions(edits, body, input, rest),
        Some(_) => return Err(EditError::Shape { param: "input", must: "a string or an array of items" }),
    }
    Ok(())
}

/// With how many instructions a prompt begins.
fn leading_instructions(prompt: &[(Role, &str)]) -> usize {
    prompt.iter().take_while(|(role, _)| role.instructs()).count()
}

/// Puts messages after the leading system and developer messages of `array`.
fn after_instructions(edits: &mut Edits, body: &[u8], array: Span, prompt: &[(Role, &str)]) {
    let instructs = |element: &Span| {
        let role = json::field(body, *element, "role").and_then(|span| json::text(body, span));
        role.is_some_and(|role| role == "system" || role == "developer")
    };
    let leading = json::elements(body, array).take_while(instructs).count();
    let next = json::elements(body, array).nth(leading);
    for (role, text) in prompt {
        let mut json = message(*role, text);
        match next {
            _ if leading == 0 => edits.prepend_element(body, array, json),
            Some(next) => {
                json.push(b',');
                edits.insert(next.start, json);
            }
            None => edits.append_element(body, array, json),
        }
    }
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
