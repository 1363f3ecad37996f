//! Facts of Anthropic requests.

use crate::wire::{
    json::{self, Scan, Span},
    request::{Inline, Reader, RequestError, RequestFacts, may_hold_any},
};

/// Fields that are priced or routed on.
const PRICED: [&str; 12] = [
    "model",
    "stream",
    "max_tokens",
    "max_tokens_to_sample",
    "service_tier",
    "tools",
    "mcp_servers",
    "container",
    "speed",
    "inference_geo",
    "messages",
    "system",
];

/// Words of which one stands in every message whose tokens are not bounded by its text.
const MEDIA: [&str; 3] = ["image", "document", "container_upload"];

/// The facts of a request to `/v1/messages` or `/v1/messages/count_tokens`.
///
/// # Errors
/// See [`crate::wire::request::facts`].
pub fn facts(body: &[u8], scan: &Scan) -> Result<RequestFacts, RequestError> {
    let reader = Reader { body, scan };
    reader.refuse_case_variants(&PRICED)?;
    let mut facts = RequestFacts {
        model: reader.model()?,
        stream: reader.boolean("stream")?.unwrap_or(false),
        output_caps: reader.output_caps(&["max_tokens"])?,
        choices: 1,
        service_tier: reader.text("service_tier")?.map(Into::into),
        user: reader.user(&[]),
        reasoning: reasons(reader),
        cache_control: reader.has("cache_control") || scan.may_hold("cache_control"),
        extra_cost: extra_cost(reader)?.map(Into::into),
        ..RequestFacts::default()
    };
    tools(reader, &mut facts)?;
    if may_hold_any(scan, &MEDIA) {
        let mut inline = Inline::default();
        ["system", "messages"].into_iter().filter_map(|name| reader.value(name)).for_each(|span| {
            media(body, span, &mut facts, &mut inline);
        });
        facts.image_bytes = inline.bytes(facts.images);
    }
    Ok(facts)
}

fn reasons(reader: Reader<'_>) -> bool {
    let Some(thinking) = reader.value("thinking") else { return false };
    let kind = json::field(reader.body, thinking, "type").and_then(|span| json::text(reader.body, span));
    kind.as_deref() != Some("disabled")
}

/// Fields beyond token prices: tools of other servers, code containers, the fast mode, pinned regions.
fn extra_cost(reader: Reader<'_>) -> Result<Option<&'static str>, RequestError> {
    if reader.text("speed")?.is_some_and(|speed| speed != "standard") {
        return Ok(Some("speed"));
    }
    if reader.text("inference_geo")?.is_some_and(|region| region != "global") {
        return Ok(Some("inference_geo"));
    }
    Ok(["mcp_servers", "container"].into_iter().find(|name| reader.has(name)))
}

/// Tools without a type, or `custom` ones, are the client's. Of Anthropic's own, these run at the client; all others
/// run at Anthropic, for a price.
fn tools(reader: Reader<'_>, facts: &mut RequestFacts) -> Result<(), RequestError> {
    const RUN_BY_THE_CLIENT: [&str; 4] = ["bash_", "text_editor_", "computer_", "memory_"];
    for kind in reader.tool_types()? {
        facts.tools += 1;
        match kind.as_deref() {
            None | Some("custom") => {}
            Some(kind) if RUN_BY_THE_CLIENT.iter().any(|prefix| kind.starts_with(prefix)) => {
                facts.provider_defined_tools += 1;
            }
            Some(hosted) => facts.extra_cost = Some(format!("tools: {hosted}").into()),
        }
    }
    Ok(())
}

/// Counts images and finds documents whose pages are not text in the body.
fn media(body: &[u8], span: Span, facts: &mut RequestFacts, inline: &mut Inline) {
    let mut documents = false;
    let mut opaque_source = false;
    json::walk(body, span, |key, value_at| {
        let Some(key) = json::text(body, key) else { return };
        match &*key {
            "type" => match json::string_at(body, value_at).as_deref() {
                Some("image") => facts.images += 1,
                Some("document") => documents = true,
                Some("container_upload") => facts.unbounded_input = Some("container_upload".into()),
                _ => {}
            },
            "source" => match source(body, Span { start: value_at, end: span.end }) {
                Source::Image(data) => data.into_iter().for_each(|data| inline.add(data)),
                Source::Text => {}
                Source::Opaque => opaque_source = true,
            },
            _ => {}
        }
    });
    if documents && opaque_source {
        facts.unbounded_input = Some("document".into());
    }
}

/// Where a block's content comes from.
enum Source {
    /// Text in the body; also a word that is no source.
    Text,
    /// An image, and its base64 where that stands in the body.
    Image(Option<Span>),
    /// Neither: a PDF, or something behind a URL or an id.
    Opaque,
}

fn source(body: &[u8], source: Span) -> Source {
    if body.get(source.start) != Some(&b'{') {
        return Source::Text;
    }
    let text_of = |name| json::only_field(body, source, name).map(|span| span.and_then(|span| json::text(body, span)));
    let (Ok(kind), Ok(media)) = (text_of("type"), text_of("media_type")) else { return Source::Opaque };
    let is_image = media.is_some_and(|media| media.starts_with("image/"));
    match kind.as_deref() {
        Some("text" | "content") => Source::Text,
        Some("base64") if is_image => Source::Image(json::only_field(body, source, "data").ok().flatten()),
        _ if is_image => Source::Image(None),
        _ => Source::Opaque,
    }
}
