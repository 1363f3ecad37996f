//! What is kept of a call's bodies: redacted first, then cut to size, off the call's path.

use super::ports::{Bodies, Body};
use crate::{
    policy::redact::Redactor,
    record::{Capture, Captured},
};

/// What is kept of `captured`, at most `bytes_max` of each text.
#[must_use]
pub fn kept(captured: &Captured, redactor: &Redactor, bytes_max: usize) -> Bodies {
    let body = |capture: &Capture| (capture.length > 0).then(|| kept_of(capture, redactor, bytes_max));
    Bodies { request: body(&captured.request), reply: body(&captured.reply) }
}

fn kept_of(capture: &Capture, redactor: &Redactor, bytes_max: usize) -> Body {
    let captured_part = capture.length > capture.bytes.len() as u64;
    // PostgreSQL has no NUL.
    let text = String::from_utf8_lossy(&capture.bytes).replace('\0', "\u{fffd}");
    let mut text = redactor.redact(&text, captured_part).unwrap_or_default();
    let cut = captured_part || text.is_empty() || text.len() > bytes_max;
    text.truncate(text.floor_char_boundary(bytes_max));
    Body { text, bytes: capture.length, cut }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept_text(text: &str, capture_max: usize, bytes_max: usize) -> Body {
        let mut captured = Captured::new(capture_max);
        captured.request.push(text.as_bytes());
        kept(&captured, &Redactor::builtin(), bytes_max).request.unwrap()
    }

    #[test]
    fn a_secret_is_taken_out_before_the_text_is_cut() {
        let text = "x".repeat(20) + " sk-0123456789abcdefghij and more";
        let body = kept_text(&text, 1000, 30);
        assert_eq!((&*body.text, body.bytes, body.cut), ("xxxxxxxxxxxxxxxxxxxx [redacted", 53, true));
        let whole = kept_text("ä\0", 1000, 1000);
        assert_eq!((&*whole.text, whole.bytes, whole.cut), ("ä\u{fffd}", 3, false));
    }

    #[test]
    fn of_metadata_only_the_length_is_kept() {
        let body = kept_text("private", 0, 1000);
        assert_eq!((&*body.text, body.bytes, body.cut), ("", 7, true));
    }
}
