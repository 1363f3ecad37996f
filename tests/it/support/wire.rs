//! HTTP/1.1 as bytes: a reader and the framing rules, written apart from the gateway's own so that both cannot be
//! wrong in the same way.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// A request or status line with its header block, exactly as it stood on the wire.
#[derive(Debug, Clone, Default)]
pub(crate) struct Head {
    pub(crate) raw: Vec<u8>,
    pub(crate) start: String,
    pub(crate) headers: Headers,
}

/// Header lines in order, names as spelled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(pub(crate) Vec<(String, String)>);

impl Headers {
    /// The first value under `name`, whatever its case.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Every value under `name`, in order.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect()
    }

    fn parse(block: &str) -> Self {
        let lines = block.lines().filter(|line| !line.is_empty());
        let pairs = lines.map(|line| line.split_once(':').unwrap_or((line, "")));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
    }
}

/// How the end of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Nothing,
    Length(usize),
    Chunked,
    UntilClose,
}

impl Framing {
    pub(crate) fn of_request(headers: &Headers) -> Self {
        Self::declared(headers).unwrap_or(Self::Nothing)
    }

    pub(crate) fn of_response(method: &str, status: u16, headers: &Headers) -> Self {
        let bodyless = method == "HEAD" || status < 200 || status == 204 || status == 304;
        if bodyless { Self::Nothing } else { Self::declared(headers).unwrap_or(Self::UntilClose) }
    }

    fn declared(headers: &Headers) -> Option<Self> {
        if headers.get("transfer-encoding").is_some_and(|coding| coding.to_ascii_lowercase().contains("chunked")) {
            return Some(Self::Chunked);
        }
        headers.get("content-length").map(|length| Self::Length(length.parse().expect("a content-length in digits")))
    }
}

/// Reads heads and bodies from a stream, keeping what came too early.
#[derive(Debug)]
pub(crate) struct Wire<S> {
    pub(crate) stream: S,
    pub(crate) pending: Vec<u8>,
}

impl<S: AsyncRead + Unpin> Wire<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Reads more bytes; 0 at the end of the stream.
    pub(crate) async fn fill(&mut self) -> io::Result<usize> {
        self.pending.reserve(64 * 1024);
        self.stream.read_buf(&mut self.pending).await
    }

    /// The next head; `None` when the peer closed before its first byte.
    pub(crate) async fn head(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some(end) = find(&self.pending, b"\r\n\r\n") {
                let raw: Vec<u8> = self.pending.drain(..end + 4).collect();
                let text = String::from_utf8_lossy(&raw).into_owned();
                let (start, block) = text.split_once("\r\n").expect("a head has a first line");
                return Ok(Some(Head { start: start.to_owned(), headers: Headers::parse(block), raw }));
            }
            if self.fill().await? == 0 {
                return if self.pending.is_empty() { Ok(None) } else { Err(cut("head")) };
            }
        }
    }

    /// The next piece of a body: a chunk as framed, or what has arrived. `None` at its end.
    pub(crate) async fn piece(&mut self, framing: &mut Framing) -> io::Result<Option<Vec<u8>>> {
        match framing {
            Framing::Nothing => Ok(None),
            Framing::Length(0) => Ok(None),
            Framing::Length(left) => {
                if self.pending.is_empty() && self.fill().await? == 0 {
                    return Err(cut("body"));
                }
                let taken = self.pending.len().min(*left);
                *left -= taken;
                Ok(Some(self.pending.drain(..taken).collect()))
            }
            Framing::UntilClose => {
                if self.pending.is_empty() && self.fill().await? == 0 {
                    return Ok(None);
                }
                Ok(Some(std::mem::take(&mut self.pending)))
            }
            Framing::Chunked => self.chunk(framing).await,
        }
    }

    /// The whole body, and the trailers of a chunked one.
    pub(crate) async fn body(&mut self, mut framing: Framing) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(piece) = self.piece(&mut framing).await? {
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    async fn chunk(&mut self, framing: &mut Framing) -> io::Result<Option<Vec<u8>>> {
        let line = self.line().await?;
        let digits = line.split(';').next().unwrap_or_default().trim().to_owned();
        let size = usize::from_str_radix(&digits, 16).map_err(|_| io::Error::other(format!("chunk size {line:?}")))?;
        if size > 0 {
            let data = self.exactly(size).await?;
            self.exactly(2).await?;
            return Ok(Some(data));
        }
        *framing = Framing::Nothing;
        while !self.line().await?.is_empty() {}
        Ok(None)
    }

    async fn line(&mut self) -> io::Result<String> {
        while find(&self.pending, b"\r\n").is_none() {
            if self.fill().await? == 0 {
                return Err(cut("chunk line"));
            }
        }
        let end = find(&self.pending, b"\r\n").expect("found above");
        let line: Vec<u8> = self.pending.drain(..end + 2).collect();
        Ok(String::from_utf8_lossy(&line[..end]).into_owned())
    }

    pub(crate) async fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.pending.len() < length {
            if self.fill().await? == 0 {
                return Err(cut("chunk"));
            }
        }
        Ok(self.pending.drain(..length).collect())
    }
}

fn cut(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the peer closed in the middle of a {what}"))
}

/// Where `needle` begins in `haystack`.
pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
