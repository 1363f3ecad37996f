//! `telemetry`: where traces and metrics go. The environment's `OTEL_*` variables hold where the file says nothing.
//!
//! <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>. Messages never repeat an address or a header: keys stand there.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Uri};

use super::{Check, shown};
use crate::{
    config::{
        file,
        forms::SecretText,
        snapshot::{BodiesKept, CallsKept},
        tree::Path,
    },
    policy::traces::{Content, Otlp, Semconv},
};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
const SERVICE: &str = "OTEL_SERVICE_NAME";

impl Check<'_, '_, '_> {
    pub(super) fn telemetry(&mut self, typed: &file::Telemetry, calls: &CallsKept) -> Option<Arc<Otlp>> {
        let at = Path::default().key("telemetry");
        let semconv = self.semconv(&at.key("semconv"), typed.semconv.as_deref());
        let sample = typed.sample.map_or(1.0, |share| share.0);
        if sample > 1.0 {
            self.problem(&at.key("sample"), "must be at most 100%");
        }
        let interval = self.above_zero(&at.key("interval"), typed.interval, Duration::from_secs(60));
        let headers = self.otlp_headers(&at.key("headers"), typed);
        let base = typed.otlp.clone().or_else(|| self.sources.variable(ENDPOINT));
        let base = base.filter(|base| !base.trim().is_empty())?;
        let (Some(traces), Some(metrics)) = (signal(&base, "traces"), signal(&base, "metrics")) else {
            self.problem(&at.key("otlp"), "is not an absolute URL; write it as `http://collector:4318`");
            return None;
        };
        let service = typed.service.clone().or_else(|| self.sources.variable(SERVICE));
        Some(Arc::new(Otlp {
            traces,
            metrics: typed.metrics.is_none_or(|on| on.0).then_some(metrics),
            headers,
            service: service.filter(|name| !name.is_empty()).as_deref().unwrap_or("tollgate").into(),
            semconv,
            sample,
            interval,
            content: self.content(&at.key("content"), typed, calls),
        }))
    }

    fn content(&mut self, at: &Path, typed: &file::Telemetry, calls: &CallsKept) -> Option<Content> {
        if !typed.content.is_some_and(|on| on.0) {
            return None;
        }
        if !matches!(calls.bodies, BodiesKept::Share(_)) {
            self.warn(
                at,
                "tells nothing: only captured bodies are told; write `calls: { bodies: full }`, or `sampled`",
            );
        }
        Some(Content { redactor: calls.redactor.clone(), bytes_max: calls.body_bytes_max })
    }

    fn semconv(&mut self, at: &Path, typed: Option<&str>) -> Semconv {
        let Some(typed) = typed else { return Semconv::V1_41 };
        let known = Semconv::ALL.into_iter().find(|edition| edition.label() == typed);
        if known.is_none() {
            let labels = Semconv::ALL.map(Semconv::label).join(", ");
            self.problem(at, format!("`{}` is not an edition that is known; write one of {labels}", shown(typed)));
        }
        known.unwrap_or(Semconv::V1_41)
    }

    fn otlp_headers(&mut self, at: &Path, typed: &file::Telemetry) -> Vec<(HeaderName, HeaderValue)> {
        if typed.headers.is_empty() {
            let variable = self.sources.variable(HEADERS).unwrap_or_default();
            return header_list(&variable);
        }
        let mut headers = Vec::with_capacity(typed.headers.len());
        for (name, value) in &typed.headers {
            let at = at.key(name);
            let Some(value) = self.header_value(&at, value) else { continue };
            match header(name, &value) {
                Some(header) => headers.push(header),
                None => self.problem(&at, "is not a header that can be sent"),
            }
        }
        headers
    }

    /// A header's value or its file's; unlike keys, it may hold a blank, as in `Bearer …`.
    fn header_value(&mut self, at: &Path, typed: &SecretText) -> Option<String> {
        let Some(path) = typed.0.strip_prefix("file:") else {
            self.inline_secret |= !self.document.is_filled(at);
            return Some(typed.0.clone());
        };
        let read = self.sources.secret_file(path);
        if let Err(error) = &read {
            self.problem(at, format!("the file {} cannot be read: {error}", shown(path)));
        }
        read.ok()
    }
}

/// The base address and the signal's own path, as exporters form it.
fn signal(base: &str, name: &str) -> Option<Uri> {
    let url: Uri = format!("{}/v1/{name}", base.trim().trim_end_matches('/')).parse().ok()?;
    let authority = url.authority()?;
    let is_http = matches!(url.scheme_str(), Some("http" | "https"));
    let has_query = base.contains(['?', '#']);
    (is_http && !has_query && !authority.host().is_empty() && !authority.as_str().contains('@')).then_some(url)
}

/// `name=value,name=value`, values percent-encoded as in W3C Baggage; what cannot be read is left out, as exporters do.
fn header_list(text: &str) -> Vec<(HeaderName, HeaderValue)> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        header(name.trim(), &percent_decoded(value.trim())?)
    };
    text.split(',').filter_map(pair).collect()
}

fn header(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signal_has_its_path_below_the_base() {
        for (base, expected) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("https://host/otlp/", "https://host/otlp/v1/traces"),
        ] {
            assert_eq!(signal(base, "traces").unwrap(), *expected, "{base}");
        }
        for wrong in ["collector:4318", "ftp://host", "http://u:p@host", "http://host/?a=b", "http://"] {
            assert_eq!(signal(wrong, "traces"), None, "{wrong}");
        }
    }

    #[test]
    fn headers_are_read_as_exporters_read_them() {
        let read = |text| {
            let pairs = header_list(text);
            pairs.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect::<Vec<_>>()
        };
        assert_eq!(read("api-key=a%3Db, X-Tenant = 7 ,,broken,bad name=1,cut=%4"), ["api-key: a=b", "x-tenant: 7"]);
        assert_eq!(read(""), [""; 0]);
    }
}
