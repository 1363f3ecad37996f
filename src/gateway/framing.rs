//! A guard under hyper's server connection: it follows the framing of HTTP/1 requests on the bytes as they come in and
//! lets no request through whose end two readers could see in two places.
//!
//! hyper is lenient where a proxy must not be: it takes `Transfer-Encoding` beside `Content-Length`, several codings,
//! no `Host` or two, and bare line feeds. The guard reads along (HEAD → BODY → HEAD …), copies nothing but a line that
//! two reads cut, and where a request breaks a rule it passes [`POISON`] instead of the offending line. Wherever hyper
//! stands, it can only answer 400 and close, or fail the body; no service sees the request.
//!
//! HTTP/2 has its own framing: after its preface the guard is off. What follows a request to switch protocols is held back
//! until the switch is made ([`Handle::open_tunnel`]); from then on bytes pass untouched. It is never read as HTTP, so a refused upgrade
//! has to close the connection.
//!
//! Sizes are hyper's matter, which answers 431 or 413; the guard's own bound on heads is far above any sensible one.
//! Rules: RFC 9112 §2.2, §3.2, §5, §6.1, §6.3, §7.1; RFC 9110 §7.2.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use memchr::memchr;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// What hyper reads in place of a violation. A NUL is an error anywhere in a head, in a chunk's size line and after a
/// chunk's data; `CR NUL` is one in extensions and trailers; `CRLF CRLF` makes hyper look at a head it holds half of.
pub const POISON: &[u8] = b"\0\r\0\r\n\r\n";

/// Bytes that are read at once while a switch is awaited.
const EARLY_BYTES: usize = 1024;
/// Bytes of one head. hyper's limit is lower and gives the better answer; this one bounds what a split line may hold.
const HEAD_BYTES_MAX: usize = 256 * 1024;
/// Bytes of chunk extensions in one body, as in hyper.
const EXTENSION_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a trailer section.
const TRAILER_BYTES_MAX: usize = 16 * 1024;
/// Time for a client to take something of what is written to it: nginx's `send_timeout`. While a client takes nothing, hyper asks for
/// no more of the reply, so that no other time limit is looked at.
const WRITE_STALL_MAX: Duration = Duration::from_secs(60);
/// Empty lines before a request line, which RFC 9112 §2.2 wants skipped.
const EMPTY_LINES_MAX: u8 = 4;
/// Hex digits of a chunk size: what fits 64 bits.
const CHUNK_SIZE_DIGITS_MAX: u8 = 16;

/// What is wrong with a request's framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Violation {
    /// A line that ends in LF without CR.
    #[error("line ends in a bare line feed")]
    BareLf,
    /// A CR that no LF follows.
    #[error("bare carriage return")]
    BareCr,
    /// Not `method SP target SP HTTP/1.x`.
    #[error("malformed request line")]
    RequestLine,
    /// Not `name: value`, or a continued line.
    #[error("malformed header line")]
    HeaderLine,
    /// More than any sensible head.
    #[error("head is too large")]
    HeadTooLarge,
    /// No `Host` in HTTP/1.1, or several, or one that is no host.
    #[error("not exactly one valid host")]
    Host,
    /// The target names another authority than `Host`.
    #[error("host differs from the target's")]
    HostMismatch,
    /// Several lengths, even equal ones, or one that is not digits.
    #[error("not exactly one content-length of digits")]
    ContentLength,
    /// Anything but exactly one `chunked`, or in HTTP/1.0.
    #[error("transfer-encoding other than one `chunked`")]
    TransferEncoding,
    /// Both `Content-Length` and `Transfer-Encoding`.
    #[error("content-length beside transfer-encoding")]
    TwoLengths,
    /// A malformed chunk.
    #[error("malformed chunk")]
    Chunk,
    /// Chunk extensions or trailers beyond 16 KiB.
    #[error("chunk extensions or trailers are too large")]
    ChunkTooLarge,
    /// Bytes between a request to switch protocols and the switch.
    #[error("bytes before the protocol was switched")]
    BeforeSwitch,
}

/// Where a scan stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stop {
    /// How many of the scanned bytes may pass.
    passed: usize,
    violation: Violation,
}

// === the state machine ===

/// Follows requests, fed with the bytes in any cuts.
#[derive(Debug, Default)]
struct Framing {
    state: State,
    head: Head,
    chunked: Chunked,
    /// The beginning of a line that the last read cut.
    line: Vec<u8>,
    /// Whether a request line has been read on this connection.
    begun: bool,
    /// Whether the request under way asks to switch protocols.
    switches: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a request's head.
    #[default]
    Head,
    /// In a body of known length.
    Body { remaining: u64 },
    /// In a chunked body.
    Chunked(ChunkState),
    /// After a request to switch protocols.
    Switching,
    /// HTTP/2, or a tunnel: nothing to follow.
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    Size,
    /// Blanks after the size, allowed before `;` only.
    Blank,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailer,
}

/// What the head so far said.
#[derive(Debug, Default)]
struct Head {
    bytes: usize,
    empty_lines: u8,
    line: Option<RequestLine>,
    host_seen: bool,
    content_length: Option<u64>,
    chunked: bool,
    switches: bool,
}

#[derive(Debug)]
struct RequestLine {
    http_1_0: bool,
    /// Scheme and authority of an absolute target.
    authority: Authority,
}

/// What the chunked body so far held.
#[derive(Debug, Default)]
struct Chunked {
    size: u64,
    digits: u8,
    extension_bytes: usize,
    trailer_bytes: usize,
}

impl Framing {
    /// Whether a head has begun and not ended.
    fn is_mid_head(&self) -> bool {
        self.state == State::Head && (self.head.bytes > 0 || !self.line.is_empty())
    }

    /// Follows `bytes`, the next ones of the connection.
    fn scan(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let mut passed = 0;
        while passed < bytes.len() && self.state != State::Off {
            let rest = &bytes[passed..];
            passed += self.step(rest).map_err(|violation| Stop { passed, violation })?;
        }
        Ok(())
    }

    /// Takes at least one byte of `bytes`, at most to the end of what the state covers, and says how many.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        match self.state {
            State::Head => self.step_line(bytes, Framing::head_line),
            State::Body { remaining } => Ok(self.step_body(remaining, bytes.len())),
            State::Chunked(ChunkState::Trailer) => self.step_line(bytes, Framing::trailer_line),
            State::Chunked(ChunkState::Data) => Ok(self.step_data(bytes.len())),
            State::Chunked(state) => self.step_chunk(state, bytes[0]).map(|()| 1),
            State::Switching => Err(Violation::BeforeSwitch),
            State::Off => Ok(bytes.len()),
        }
    }

    /// Hands the next whole line, without its CRLF, to `take`; keeps the beginning of one that is not whole yet.
    fn step_line(
        &mut self,
        bytes: &[u8],
        take: fn(&mut Framing, &[u8]) -> Result<(), Violation>,
    ) -> Result<usize, Violation> {
        let Some(end) = memchr(b'\n', bytes) else {
            self.line.extend_from_slice(bytes);
            return if self.line.len() > HEAD_BYTES_MAX { Err(Violation::HeadTooLarge) } else { Ok(bytes.len()) };
        };
        if self.line.is_empty() {
            take(self, checked_line(&bytes[..end])?)?;
        } else {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(&bytes[..end]);
            take(self, checked_line(&line)?)?;
            line.clear();
            self.line = line;
        }
        Ok(end + 1)
    }

    fn step_body(&mut self, remaining: u64, available: usize) -> usize {
        let taken = available.min(usize::try_from(remaining).unwrap_or(usize::MAX));
        let remaining = remaining - taken as u64;
        self.state = if remaining == 0 { self.after_request() } else { State::Body { remaining } };
        taken
    }

    fn step_data(&mut self, available: usize) -> usize {
        let taken = available.min(usize::try_from(self.chunked.size).unwrap_or(usize::MAX));
        self.chunked.size -= taken as u64;
        if self.chunked.size == 0 {
            self.state = State::Chunked(ChunkState::DataCr);
        }
        taken
    }

    fn step_chunk(&mut self, state: ChunkState, byte: u8) -> Result<(), Violation> {
        use ChunkState::{Blank, Data, DataCr, DataLf, Extension, Size, SizeLf, Trailer};
        let next = match (state, byte) {
            (Size, _) if byte.is_ascii_hexdigit() => {
                self.chunked.push_digit(byte)?;
                Size
            }
            (Size, b'\r') if self.chunked.digits > 0 => SizeLf,
            (Size | Blank, b';') if self.chunked.digits > 0 => Extension,
            (Size | Blank, b' ' | b'\t') if self.chunked.digits > 0 => Blank,
            (Extension, b'\r') => SizeLf,
            (Extension, b'\t' | b' '..=b'~' | 0x80..) => {
                self.chunked.count_extension()?;
                Extension
            }
            (SizeLf, b'\n') if self.chunked.size == 0 => Trailer,
            (SizeLf, b'\n') => Data,
            (DataCr, b'\r') => DataLf,
            (DataLf, b'\n') => {
                self.chunked.digits = 0;
                Size
            }
            _ => return Err(Violation::Chunk),
        };
        self.state = State::Chunked(next);
        Ok(())
    }

    fn trailer_line(&mut self, line: &[u8]) -> Result<(), Violation> {
        self.chunked.trailer_bytes += line.len() + 2;
        if self.chunked.trailer_bytes > TRAILER_BYTES_MAX {
            return Err(Violation::ChunkTooLarge);
        }
        if line.is_empty() {
            self.state = self.after_request();
            return Ok(());
        }
        split_field(line).map(drop)
    }

    fn after_request(&self) -> State {
        if self.switches { State::Switching } else { State::Head }
    }

    fn head_line(&mut self, line: &[u8]) -> Result<(), Violation> {
        self.head.bytes += line.len() + 2;
        if self.head.bytes > HEAD_BYTES_MAX {
            return Err(Violation::HeadTooLarge);
        }
        match (&self.head.line, line.is_empty()) {
            (None, true) => self.head.skip_empty_line(),
            (None, false) => self.request_line(line),
            (Some(_), true) => self.end_of_head(),
            (Some(_), false) => self.head.field(line),
        }
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), Violation> {
        let first = !std::mem::replace(&mut self.begun, true) && self.head.empty_lines == 0;
        if first && line == b"PRI * HTTP/2.0" {
            // Where the rest of the preface doesn't follow, hyper falls back to HTTP/1 and refuses this version.
            self.state = State::Off;
            return Ok(());
        }
        self.head.line = Some(RequestLine::parse(line)?);
        Ok(())
    }

    fn end_of_head(&mut self) -> Result<(), Violation> {
        let head = std::mem::take(&mut self.head);
        let http_1_0 = head.line.is_some_and(|line| line.http_1_0);
        if !head.host_seen && !http_1_0 {
            return Err(Violation::Host);
        }
        if http_1_0 && head.chunked {
            return Err(Violation::TransferEncoding);
        }
        self.switches = head.switches;
        self.chunked = Chunked::default();
        self.state = match head.content_length {
            Some(_) if head.chunked => return Err(Violation::TwoLengths),
            Some(remaining) if remaining > 0 => State::Body { remaining },
            _ if head.chunked => State::Chunked(ChunkState::Size),
            _ => self.after_request(),
        };
        Ok(())
    }
}

impl Head {
    fn skip_empty_line(&mut self) -> Result<(), Violation> {
        self.empty_lines += 1;
        if self.empty_lines > EMPTY_LINES_MAX { Err(Violation::RequestLine) } else { Ok(()) }
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Violation> {
        let (name, value) = split_field(line)?;
        if name.eq_ignore_ascii_case(b"host") {
            return self.host(value);
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = parse_length(value).ok_or(Violation::ContentLength)?;
            return if self.content_length.replace(length).is_some() { Err(Violation::ContentLength) } else { Ok(()) };
        }
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let again = std::mem::replace(&mut self.chunked, true);
            let one_chunked = !again && value.eq_ignore_ascii_case(b"chunked");
            return if one_chunked { Ok(()) } else { Err(Violation::TransferEncoding) };
        }
        self.switches |= name.eq_ignore_ascii_case(b"upgrade") && names_other_protocol(value);
        Ok(())
    }

    fn host(&mut self, value: &[u8]) -> Result<(), Violation> {
        let again = std::mem::replace(&mut self.host_seen, true);
        if again || value.is_empty() || !value.iter().all(|&byte| is_host_byte(byte)) {
            return Err(Violation::Host);
        }
        match self.line.as_ref().and_then(|line| line.authority.as_ref()) {
            Some((scheme, authority)) if !same_authority(scheme, authority, value) => Err(Violation::HostMismatch),
            _ => Ok(()),
        }
    }
}

impl RequestLine {
    fn parse(line: &[u8]) -> Result<RequestLine, Violation> {
        let mut parts = line.split(|&byte| byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Violation::RequestLine);
        };
        let http_1_0 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            _ => return Err(Violation::RequestLine),
        };
        if method.is_empty() || !method.iter().all(|&byte| is_token_byte(byte)) {
            return Err(Violation::RequestLine);
        }
        Ok(RequestLine { http_1_0, authority: authority_of(method, target)? })
    }
}

impl Chunked {
    fn push_digit(&mut self, byte: u8) -> Result<(), Violation> {
        // A size line's first digit starts anew; 16 digits can't overflow.
        self.size = if self.digits == 0 { 0 } else { self.size << 4 } | u64::from(hex_value(byte));
        self.digits += 1;
        if self.digits > CHUNK_SIZE_DIGITS_MAX { Err(Violation::Chunk) } else { Ok(()) }
    }

    fn count_extension(&mut self) -> Result<(), Violation> {
        self.extension_bytes += 1;
        if self.extension_bytes > EXTENSION_BYTES_MAX { Err(Violation::ChunkTooLarge) } else { Ok(()) }
    }
}

// === lines ===

/// `line` is what stood before an LF: it must end in CR and hold no other.
fn checked_line(line: &[u8]) -> Result<&[u8], Violation> {
    let Some((b'\r', line)) = line.split_last() else {
        return Err(Violation::BareLf);
    };
    if memchr(b'\r', line).is_some() { Err(Violation::BareCr) } else { Ok(line) }
}

/// `name: value`, the value without blanks around it. A folded line or a blank before the colon is no name.
fn split_field(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    let colon = memchr(b':', line).ok_or(Violation::HeaderLine)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().all(|&byte| is_token_byte(byte)) || memchr(0, value).is_some() {
        return Err(Violation::HeaderLine);
    }
    Ok((name, trim_blanks(value)))
}

fn trim_blanks(mut value: &[u8]) -> &[u8] {
    while let Some((b' ' | b'\t', rest)) = value.split_first() {
        value = rest;
    }
    while let Some((b' ' | b'\t', rest)) = value.split_last() {
        value = rest;
    }
    value
}

fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(value).ok()?.parse().ok()
}

/// Scheme and authority where the target names one: `http://host/path`, or `host:port` after CONNECT.
type Authority = Option<(Box<[u8]>, Box<[u8]>)>;

fn authority_of(method: &[u8], target: &[u8]) -> Result<Authority, Violation> {
    if target.starts_with(b"/") || target == b"*" {
        return Ok(None);
    }
    if method == b"CONNECT" {
        return Ok(Some((b"".as_slice().into(), target.into())));
    }
    let colon = memchr(b':', target).ok_or(Violation::RequestLine)?;
    let rest = target[colon..].strip_prefix(b"://").ok_or(Violation::RequestLine)?;
    let end = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
    Ok(Some((target[..colon].into(), rest[..end].into())))
}

/// Whether two authorities are one, letter case and a default port aside.
fn same_authority(scheme: &[u8], target: &[u8], host: &[u8]) -> bool {
    let default_port: &[u8] = if scheme.eq_ignore_ascii_case(b"https") { b":443" } else { b":80" };
    let plain = |authority: &'_ [u8]| authority.strip_suffix(default_port).unwrap_or(authority).to_ascii_lowercase();
    plain(target) == plain(host)
}

fn hex_value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

/// RFC 9110 §5.6.2. A table, since each byte of each header's name is looked up in it.
fn is_token_byte(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let (mut table, mut byte) = ([false; 256], 0);
        while byte < 256 {
            table[byte] = (byte as u8).is_ascii_alphanumeric();
            byte += 1;
        }
        let (others, mut i) = (b"!#$%&'*+-.^_`|~", 0);
        while i < others.len() {
            table[others[i] as usize] = true;
            i += 1;
        }
        table
    };
    TOKEN[usize::from(byte)]
}

/// A name, an address in brackets, a port. Narrower than RFC 3986, which would take `host,other` or `(host)`.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:[]%".contains(&byte)
}

// === upgrades ===

/// Whether a request asks to switch protocols: the server has to close its connection unless it switches.
///
/// An offer of `h2c` alone is none: some clients add it to every ordinary request, and nobody here takes it.
#[must_use]
pub fn asks_to_switch(headers: &http::HeaderMap) -> bool {
    headers.get_all(http::header::UPGRADE).iter().any(|value| names_other_protocol(value.as_bytes()))
}

fn names_other_protocol(upgrade: &[u8]) -> bool {
    upgrade
        .split(|&byte| byte == b',')
        .map(trim_blanks)
        .any(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"h2c"))
}

// === impl Guarded ===

/// What the connection's owner knows of a [`Guarded`] stream that hyper has taken.
#[derive(Debug, Clone, Default)]
pub struct Handle(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    tunnel: AtomicBool,
    violation: OnceLock<Violation>,
}

impl Handle {
    /// Lets all further bytes pass: call it once the other side has agreed to switch protocols, before the client's
    /// 101 leaves. Never call it for an upgrade that is refused.
    pub fn open_tunnel(&self) {
        self.0.tunnel.store(true, Ordering::Release);
    }

    /// What was wrong, if something was.
    #[must_use]
    pub fn violation(&self) -> Option<Violation> {
        self.0.violation.get().copied()
    }
}

/// A client's connection with the guard on it. Wrap it in `TokioIo` for hyper.
#[derive(Debug)]
pub struct Guarded<S> {
    io: S,
    framing: Framing,
    handle: Handle,
    end: End,
    /// Time for a head to arrive once it has begun. hyper's own timer can't tell a slow head from an idle connection.
    head_limit: Duration,
    /// Runs while a head is cut in the middle and nothing more comes.
    head_alarm: Option<Pin<Box<Sleep>>>,
    /// Time for the client to take something of what is written to it.
    stall_limit: Duration,
    /// Runs while it takes nothing.
    stall_alarm: Option<Pin<Box<Sleep>>>,
    /// What came after a request to switch protocols: for the tunnel, or for nobody.
    held: Vec<u8>,
}

/// What is left to say once a rule was broken.
#[derive(Debug)]
enum End {
    /// No rule was broken.
    Open,
    /// These bytes, then the end of the stream.
    Poison(&'static [u8]),
}

impl<S> Guarded<S> {
    /// Puts the guard on a fresh connection, whose requests' heads each have `head_limit` to arrive.
    pub fn new(io: S, head_limit: Duration) -> (Guarded<S>, Handle) {
        let handle = Handle::default();
        let framing = Framing::default();
        let guarded = Guarded {
            io,
            framing,
            handle: handle.clone(),
            end: End::Open,
            head_limit,
            head_alarm: None,
            stall_limit: WRITE_STALL_MAX,
            stall_alarm: None,
            held: Vec::new(),
        };
        (guarded, handle)
    }

    /// Whether the rest of a head is overdue. The alarm rings on from the head's first byte, however slowly more come.
    fn poll_head_alarm(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.framing.is_mid_head() {
            self.head_alarm = None;
            return Poll::Pending;
        }
        let limit = self.head_limit;
        self.head_alarm.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx)
    }

    /// What a write came to, unless it has come to nothing for too long.
    fn poll_stall<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stall_alarm = None;
            return written;
        }
        let limit = self.stall_limit;
        ready!(self.stall_alarm.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client took nothing of its reply")))
    }

    fn stop(&mut self, violation: Violation) {
        tracing::debug!(%violation, "request refused for its framing");
        // Set once: reading stops here.
        let _ = self.handle.0.violation.set(violation);
        self.end = End::Poison(POISON);
    }

    /// Reads on while a switch is awaited, but only far enough to hear that the client has gone.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        S: AsyncRead + Unpin,
    {
        if !self.held.is_empty() {
            return Poll::Pending;
        }
        let mut early = [0; EARLY_BYTES];
        let mut buf = ReadBuf::new(&mut early);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
        if buf.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.held.extend_from_slice(buf.filled());
        Poll::Pending
    }

    /// Gives the tunnel what came too early.
    fn release_held(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.held.len().min(buf.remaining());
        buf.put_slice(&self.held[..count]);
        self.held.drain(..count);
    }

    /// Gives what is left to say; nothing at all is the end of the stream.
    fn read_end(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        match &mut self.end {
            End::Open => Ok(()),
            End::Poison(left) => {
                let (now, later) = left.split_at(left.len().min(buf.remaining()));
                buf.put_slice(now);
                *left = later;
                Ok(())
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !matches!(this.end, End::Open) {
            return Poll::Ready(this.read_end(buf));
        }
        let tunnel = this.handle.0.tunnel.load(Ordering::Acquire);
        if tunnel && !this.held.is_empty() {
            this.release_held(buf);
            return Poll::Ready(Ok(()));
        }
        if !tunnel && this.framing.state == State::Switching {
            return this.poll_held(cx);
        }
        let before = buf.filled().len();
        let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(cx, buf) else {
            ready!(this.poll_head_alarm(cx));
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the request's head came too slowly")));
        };
        read?;
        if tunnel {
            return Poll::Ready(Ok(()));
        }
        if let Err(stop) = this.framing.scan(&buf.filled()[before..]) {
            let passed = before + stop.passed;
            if stop.violation == Violation::BeforeSwitch {
                this.held.extend_from_slice(&buf.filled()[passed..]);
                buf.set_filled(passed);
                return if stop.passed == 0 { Poll::Pending } else { Poll::Ready(Ok(())) };
            }
            buf.set_filled(passed);
            this.stop(stop.violation);
            if stop.passed == 0 {
                return Poll::Ready(this.read_end(buf));
            }
        }
        if !this.framing.is_mid_head() {
            this.head_alarm = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.poll_stall(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.poll_stall(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.poll_stall(cx, written)
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::atomic::AtomicUsize};

    use bytes::Bytes;
    use http::{Request, Response, StatusCode};
    use http_body_util::{BodyExt, Full};
    use hyper::{body::Incoming, server::conn::http1, service::service_fn};
    use hyper_util::rt::{TokioIo, TokioTimer};
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const HEAD_LIMIT: Duration = Duration::from_secs(10);

    /// What one scan, in pieces of `cut` bytes, finds.
    fn verdict(input: &[u8], cut: usize) -> Option<Violation> {
        let mut framing = Framing::default();
        input.chunks(cut).find_map(|piece| framing.scan(piece).err()).map(|stop| stop.violation)
    }

    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    /// Requests that no proxy may pass on, and why.
    fn corpus() -> Vec<(&'static str, Violation)> {
        use Violation::{
            BareCr, BareLf, BeforeSwitch, Chunk, ContentLength, HeaderLine, Host, HostMismatch, TransferEncoding,
            TwoLengths,
        };
        vec![
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
                TwoLengths,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nG",
                TwoLengths,
            ),
            ("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", TransferEncoding),
            ("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n", TransferEncoding),
            ("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: identity\r\n\r\n", TransferEncoding),
            ("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n", TransferEncoding),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                TransferEncoding,
            ),
            ("POST / HTTP/1.0\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", TransferEncoding),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\nok", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2\r\n\r\nok", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\nok", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nok", ContentLength),
            ("GET / HTTP/1.1\r\n\r\n", Host),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Host),
            ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", Host),
            ("GET / HTTP/1.1\r\nHost: a/b?c\r\n\r\n", Host),
            ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", Host),
            ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", Host),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Host),
            ("GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", HostMismatch),
            ("GET http://b@a/ HTTP/1.1\r\nHost: a\r\n\r\n", HostMismatch),
            ("GET / HTTP/1.1\nHost: a\n\n", BareLf),
            ("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", BareLf),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n", BareLf),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", BareCr),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\r\n\r\n", BareCr),
            ("GET / HTTP/1.1\r\nHost: a\r\nX : a\r\n\r\n", HeaderLine),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", HeaderLine),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n\tTransfer-Encoding: chunked\r\n\r\n", HeaderLine),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", HeaderLine),
            ("GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", HeaderLine),
            ("GET / HTTP/1.1\r\nHost: a\r\n: empty\r\n\r\n", HeaderLine),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", HeaderLine),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer\u{b}-Encoding: chunked\r\n\r\n", HeaderLine),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Violation::RequestLine),
            ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", Violation::RequestLine),
            ("GET /\r\nHost: a\r\n\r\n", Violation::RequestLine),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Violation::RequestLine),
            ("\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Violation::RequestLine),
            ("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\ng\r\n", Chunk),
            ("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n\r\n", Chunk),
            ("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n0x2\r\nok\r\n0\r\n\r\n", Chunk),
            ("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n2 \r\nok\r\n0\r\n\r\n", Chunk),
            ("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n00000000000000002\r\nok\r\n", Chunk),
            ("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n2\nok\r\n0\r\n\r\n", Chunk),
            ("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n2;a\nok\r\n0\r\n\r\n", Chunk),
            ("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n2;a\rok\r\n0\r\n\r\n", Chunk),
            ("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nokay\r\n0\r\n\r\n", Chunk),
            ("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\n0\r\n\r\n", Chunk),
            ("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: a\n\r\n", BareLf),
            (
                "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nGET /\r\n\r\n",
                HeaderLine,
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BeforeSwitch),
            ("POST / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nContent-Length: 2\r\n\r\nokGET /", BeforeSwitch),
        ]
    }

    /// Requests that are right, and how many of them.
    const RIGHT: &[(&str, usize)] = &[
        (GET, 1),
        ("GET / HTTP/1.0\r\n\r\n", 1),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 1),
        ("GET http://A.example:80/x HTTP/1.1\r\nHost: a.example\r\n\r\n", 1),
        ("OPTIONS * HTTP/1.1\r\nHost:\t[::1]:8080 \r\n\r\n", 1),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 2),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n\n\r\0\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 2),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n\
             4;a=\"b\"\r\n\n\r\0\n\r\n00A \t;x\r\n0123456789\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            2,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            2,
        ),
    ];

    #[test]
    fn every_ambiguous_request_is_found_at_any_cut() {
        for (request, violation) in corpus() {
            for cut in 1..=request.len() {
                assert_eq!(verdict(request.as_bytes(), cut), Some(violation), "{request:?} in pieces of {cut}");
            }
            let second = format!("{GET}{request}");
            if !request.starts_with("\r\nPRI") {
                assert_eq!(verdict(second.as_bytes(), second.len()), Some(violation), "pipelined {request:?}");
            }
        }
    }

    #[test]
    fn right_requests_pass_at_any_cut() {
        for (requests, _) in RIGHT {
            for cut in 1..=requests.len() {
                assert_eq!(verdict(requests.as_bytes(), cut), None, "{requests:?} in pieces of {cut}");
            }
        }
    }

    #[test]
    fn the_guard_is_off_after_the_preface_of_http_2() {
        assert_eq!(verdict(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\n\n", 3), None);
        let later = format!("{GET}PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        assert_eq!(verdict(later.as_bytes(), later.len()), Some(Violation::RequestLine));
    }

    #[test]
    fn extensions_have_a_limit_over_the_whole_body() {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let body = |each: usize| format!("{head}{}", format!("1;{}\r\nx\r\n", "e".repeat(each)).repeat(4));
        assert_eq!(verdict(body(EXTENSION_BYTES_MAX / 4).as_bytes(), 1000), None);
        assert_eq!(verdict(body(EXTENSION_BYTES_MAX / 4 + 1).as_bytes(), 1000), Some(Violation::ChunkTooLarge));
    }

    fn pieces() -> impl Strategy<Value = Vec<u8>> {
        let whole: Vec<Vec<u8>> = corpus()
            .into_iter()
            .map(|(request, _)| request.as_bytes().to_vec())
            .chain(RIGHT.iter().map(|(requests, _)| requests.as_bytes().to_vec()))
            .collect();
        let noise = proptest::collection::vec(prop::sample::select(b"\r\n:;0aG \t\0".to_vec()), 0..4);
        proptest::collection::vec(prop_oneof![3 => prop::sample::select(whole), 1 => noise], 1..5)
            .prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn the_verdict_does_not_depend_on_the_cuts(input in pieces(), cuts in proptest::collection::vec(1..40usize, 1..30)) {
            let mut framing = Framing::default();
            let (mut rest, mut cuts) = (&input[..], cuts.iter().cycle());
            let mut in_cuts = None;
            while !rest.is_empty() && in_cuts.is_none() {
                let (piece, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                in_cuts = framing.scan(piece).err().map(|stop| stop.violation);
                rest = later;
            }
            prop_assert_eq!(in_cuts, verdict(&input, input.len().max(1)));
        }

        #[test]
        fn no_bytes_make_the_guard_panic(input in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = verdict(&input, 7);
        }
    }

    // --- with hyper above

    /// A server that counts the requests whose body it read to a proper end.
    fn serve(io: DuplexStream) -> (Arc<AtomicUsize>, Handle) {
        let seen = Arc::new(AtomicUsize::new(0));
        let (guarded, handle) = Guarded::new(io, HEAD_LIMIT);
        let counter = Arc::clone(&seen);
        let service = service_fn(move |request: Request<Incoming>| {
            let counter = Arc::clone(&counter);
            async move {
                let status = match request.into_body().collect().await {
                    Ok(_) => {
                        counter.fetch_add(1, Ordering::SeqCst);
                        StatusCode::OK
                    }
                    Err(_) => StatusCode::BAD_REQUEST,
                };
                Ok::<_, Infallible>(Response::builder().status(status).body(Full::<Bytes>::default()).unwrap())
            }
        });
        tokio::spawn(async move {
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(guarded), service)
                .with_upgrades()
                .await;
        });
        (seen, handle)
    }

    /// Sends `input` in pieces, reads to the end, and gives the statuses and the number of requests seen.
    async fn talk(input: &[u8], cut: usize) -> (Vec<String>, usize, Option<Violation>) {
        let (mut client, server) = duplex(cut);
        let (seen, handle) = serve(server);
        let (mut read, mut write) = tokio::io::split(&mut client);
        let sending = async {
            // Fails once the server has closed: that is its answer.
            let _ = write.write_all(input).await;
            let _ = write.shutdown().await;
        };
        let mut replies = String::new();
        let (_, read) = tokio::join!(sending, read.read_to_string(&mut replies));
        let _ = read;
        let statuses =
            replies.lines().filter_map(|line| line.strip_prefix("HTTP/1.1 ")).map(|line| line[..3].to_owned());
        (statuses.collect(), seen.load(Ordering::SeqCst), handle.violation())
    }

    #[tokio::test]
    async fn hyper_answers_400_and_no_service_sees_an_ambiguous_request() {
        for (request, violation) in corpus() {
            if violation == Violation::BeforeSwitch {
                continue;
            }
            for cut in [1, 4096] {
                let (statuses, seen, found) = talk(request.as_bytes(), cut).await;
                // Fed byte by byte, hyper itself refuses some before their line has come to its end.
                assert!(found == Some(violation) || found.is_none() && cut == 1, "{request:?}: {found:?}");
                assert_eq!((statuses, seen), (vec!["400".to_owned()], 0), "{request:?} in pieces of {cut}");
            }
        }
    }

    #[tokio::test]
    async fn a_pipelined_ambiguous_request_is_refused_after_the_right_one() {
        for (request, violation) in corpus() {
            if violation == Violation::BeforeSwitch || request.starts_with("\r\nPRI") {
                continue;
            }
            let (statuses, seen, _) = talk(format!("{GET}{request}").as_bytes(), 4096).await;
            assert_eq!((statuses, seen), (vec!["200".to_owned(), "400".to_owned()], 1), "{request:?}");
        }
    }

    #[tokio::test]
    async fn right_requests_arrive_in_number() {
        for (requests, number) in RIGHT {
            for cut in [1, 64, 4096] {
                let closing = format!("{requests}GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
                let closing = if requests.contains("HTTP/1.0") { (*requests).to_owned() } else { closing };
                let expected = if requests.contains("HTTP/1.0") { *number } else { number + 1 };
                let (mut client, server) = duplex(cut);
                let (seen, handle) = serve(server);
                let (mut read, mut write) = tokio::io::split(&mut client);
                let mut replies = Vec::new();
                let (sent, read) = tokio::join!(write.write_all(closing.as_bytes()), read.read_to_end(&mut replies));
                sent.unwrap();
                read.unwrap();
                assert_eq!(seen.load(Ordering::SeqCst), expected, "{requests:?}");
                assert_eq!(handle.violation(), None, "{requests:?}");
            }
        }
    }

    #[tokio::test]
    async fn bytes_before_a_switch_are_never_read_as_a_request() {
        for (request, _) in corpus().into_iter().filter(|(_, violation)| *violation == Violation::BeforeSwitch) {
            let (_, seen, found) = talk(request.as_bytes(), 4096).await;
            assert_eq!((seen, found), (1, None), "{request:?}");
        }
    }

    #[tokio::test]
    async fn an_opened_tunnel_is_untouched() {
        let (mut client, server) = duplex(4096);
        let (guarded, handle) = Guarded::new(server, HEAD_LIMIT);
        let service = service_fn(move |mut request: Request<Incoming>| {
            assert!(asks_to_switch(request.headers()));
            handle.open_tunnel();
            tokio::spawn(async move {
                let mut tunnel = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
                let mut received = [0; 6];
                tunnel.read_exact(&mut received).await.unwrap();
                tunnel.write_all(&received).await.unwrap();
            });
            let reply = Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header("connection", "upgrade")
                .header("upgrade", "echo")
                .body(Full::<Bytes>::default())
                .unwrap();
            async { Ok::<_, Infallible>(reply) }
        });
        let server = http1::Builder::new().serve_connection(TokioIo::new(guarded), service).with_upgrades();
        tokio::spawn(server);

        let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
        client.write_all(request).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            client.read_buf(&mut head).await.unwrap();
        }
        client.write_all(b"\n\r\0\n\n\n").await.unwrap();
        let mut echo = [0; 6];
        client.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"\n\r\0\n\n\n");
    }

    #[tokio::test]
    async fn http_2_passes_and_http_1_is_guarded_under_hypers_automatic_choice() {
        use hyper_util::{rt::TokioExecutor, server::conn::auto};
        let serve = |io: DuplexStream| {
            let (guarded, handle) = Guarded::new(io, HEAD_LIMIT);
            let service = service_fn(|request: Request<Incoming>| async move {
                let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                Ok::<_, Infallible>(Response::new(Full::new(body)))
            });
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection_with_upgrades(TokioIo::new(guarded), service).await;
            });
            handle
        };

        let (client, server) = duplex(4096);
        let handle = serve(server);
        let (mut send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await.unwrap();
        tokio::spawn(connection);
        let body = Bytes::from(vec![b'\n'; 100_000]);
        let request = Request::post("http://a/").body(Full::new(body.clone())).unwrap();
        let reply = send.send_request(request).await.unwrap();
        assert_eq!(reply.into_body().collect().await.unwrap().to_bytes(), body);
        assert_eq!(handle.violation(), None);

        let (mut client, server) = duplex(4096);
        let handle = serve(server);
        client.write_all(b"GET / HTTP/1.1\nHost: a\n\n").await.unwrap();
        client.shutdown().await.unwrap();
        let mut reply = String::new();
        client.read_to_string(&mut reply).await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 400"), "{reply}");
        assert_eq!(handle.violation(), Some(Violation::BareLf));
    }
    #[tokio::test]
    async fn a_client_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        let (mut client, server) = duplex(8);
        let (mut guarded, _) = Guarded::new(server, HEAD_LIMIT);
        guarded.stall_limit = Duration::from_millis(400);
        let writing = tokio::spawn(async move { (guarded.write_all(&[0; 32]).await, guarded) });
        for _ in 0..3 {
            sleep(Duration::from_millis(200)).await;
            client.read_exact(&mut [0; 8]).await.unwrap();
        }
        let (written, mut guarded) = writing.await.unwrap();
        written.unwrap();

        let begun = tokio::time::Instant::now();
        assert_eq!(guarded.write_all(&[0; 1]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
    }
}
