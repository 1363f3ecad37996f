//! Decodes a body beside its passage, within bounds: what goes on to the client are the bytes as they came.
//!
//! A bomb costs the limit and no more: what decodes to more than the limit, or to more than a hundred times what came in,
//! is given up with an error, and the caller meters nothing. Never panics, whatever the bytes.

use std::io::{self, Write};

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

/// Output may be this many times as long as input…
const RATIO_MAX: u64 = 100;
/// …once it is longer than this, in bytes.
const RATIO_FREE_BYTES: u64 = 64 * 1024;
/// Input is decoded in pieces of this many bytes, which bounds what one of them can expand to.
const PIECE_BYTES: usize = 4 * 1024;

/// Why decoding was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not what the coding's name says.
    #[error("the body is not in the content coding that it names")]
    Corrupt,
    /// Longer than the limit, or more than a hundred times the input.
    #[error("the body decodes to more than is taken")]
    TooLarge,
}

/// A push decoder for one body.
#[derive(Debug)]
pub struct Decoder {
    coding: Coding,
    input_bytes: u64,
    limit_bytes: u64,
    given_up: Option<DecodeError>,
}

enum Coding {
    Identity {
        passed_bytes: u64,
    },
    Gzip(MultiGzDecoder<Sink>),
    /// `deflate` means zlib; some send raw deflate, which the first two bytes tell.
    DeflateUnknown(Vec<u8>),
    Zlib(ZlibDecoder<Sink>),
    Deflate(DeflateDecoder<Sink>),
    Brotli(Box<Brotli>),
}

/// Where a decoder's output is kept until it is handed on.
#[derive(Debug, Default)]
struct Sink {
    bytes: Vec<u8>,
    /// All output so far, in bytes.
    total: u64,
    /// What `total` may be, in bytes.
    ceiling: u64,
    is_full: bool,
}

struct Brotli {
    state: BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    sink: Sink,
    total: usize,
    is_finished: bool,
}

impl Decoder {
    /// A decoder for one content coding, which gives up beyond `limit_bytes` of output; `None` for a coding that is not
    /// known here, or for several.
    #[must_use]
    pub fn for_encoding(encoding: &str, limit_bytes: u64) -> Option<Decoder> {
        let coding = match encoding.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Coding::Identity { passed_bytes: 0 },
            "gzip" | "x-gzip" => Coding::Gzip(MultiGzDecoder::new(Sink::default())),
            "deflate" => Coding::DeflateUnknown(Vec::new()),
            "br" => Coding::Brotli(Box::new(Brotli::new())),
            _ => return None,
        };
        Some(Decoder { coding, input_bytes: 0, limit_bytes, given_up: None })
    }

    /// Takes the next bytes of the body and hands on all output that they complete.
    ///
    /// # Errors
    /// The body is corrupt or too large; from then on nothing is decoded, and the same error is returned.
    pub fn push(&mut self, bytes: &[u8], mut sink: impl FnMut(&[u8])) -> Result<(), DecodeError> {
        if let Some(error) = self.given_up {
            return Err(error);
        }
        for piece in bytes.chunks(PIECE_BYTES) {
            self.input_bytes += piece.len() as u64;
            let ceiling = self.limit_bytes.min(RATIO_FREE_BYTES.max(self.input_bytes.saturating_mul(RATIO_MAX)));
            if let Err(error) = self.coding.push(piece, ceiling, &mut sink) {
                self.given_up = Some(error);
                return Err(error);
            }
        }
        Ok(())
    }
}

// === impl Coding ===

impl std::fmt::Debug for Coding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Coding::Identity { .. } => "identity",
            Coding::Gzip(_) => "gzip",
            Coding::DeflateUnknown(_) | Coding::Zlib(_) | Coding::Deflate(_) => "deflate",
            Coding::Brotli(_) => "br",
        })
    }
}

impl Coding {
    fn push(&mut self, piece: &[u8], ceiling: u64, sink: &mut impl FnMut(&[u8])) -> Result<(), DecodeError> {
        match self {
            Coding::Identity { passed_bytes } => {
                *passed_bytes += piece.len() as u64;
                if *passed_bytes > ceiling {
                    return Err(DecodeError::TooLarge);
                }
                sink(piece);
                Ok(())
            }
            Coding::Gzip(decoder) => {
                decoder.get_mut().ceiling = ceiling;
                let written = write(decoder, piece);
                decoder.get_mut().hand_on(written, sink)
            }
            Coding::Zlib(decoder) => {
                decoder.get_mut().ceiling = ceiling;
                let written = write(decoder, piece);
                decoder.get_mut().hand_on(written, sink)
            }
            Coding::Deflate(decoder) => {
                decoder.get_mut().ceiling = ceiling;
                let written = write(decoder, piece);
                decoder.get_mut().hand_on(written, sink)
            }
            Coding::Brotli(decoder) => {
                decoder.sink.ceiling = ceiling;
                let written = decoder.write(piece);
                decoder.sink.hand_on(written, sink)
            }
            Coding::DeflateUnknown(start) => {
                start.extend_from_slice(piece);
                let Some(is_zlib) = is_zlib(start) else { return Ok(()) };
                let start = std::mem::take(start);
                *self = match is_zlib {
                    true => Coding::Zlib(ZlibDecoder::new(Sink::default())),
                    false => Coding::Deflate(DeflateDecoder::new(Sink::default())),
                };
                self.push(&start, ceiling, sink)
            }
        }
    }
}

/// RFC 1950 section 2.2: method 8, and the two header bytes are a multiple of 31. `None` until both are there.
fn is_zlib(start: &[u8]) -> Option<bool> {
    let (method, flags) = (*start.first()?, *start.get(1)?);
    Some(method & 0x0F == 8 && (u16::from(method) << 8 | u16::from(flags)) % 31 == 0)
}

/// Writes all of `piece`; without the flush, output would wait in the decoder for the next piece.
fn write(decoder: &mut impl Write, piece: &[u8]) -> Result<(), DecodeError> {
    decoder.write_all(piece).and_then(|()| decoder.flush()).map_err(|_| DecodeError::Corrupt)
}

// === impl Sink ===

impl Sink {
    fn hand_on(&mut self, written: Result<(), DecodeError>, sink: &mut impl FnMut(&[u8])) -> Result<(), DecodeError> {
        if !self.bytes.is_empty() {
            sink(&self.bytes);
            self.bytes.clear();
        }
        if self.is_full { Err(DecodeError::TooLarge) } else { written }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.total + bytes.len() as u64 > self.ceiling {
            self.is_full = true;
            return Err(io::Error::other("the body decodes to more than is taken"));
        }
        self.total += bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// === impl Brotli ===

impl Brotli {
    fn new() -> Brotli {
        let alloc = StandardAlloc::default;
        Brotli {
            // Strict: windows up to 16 MiB, as RFC 7932 has them, and none of the larger ones that came later.
            state: BrotliState::new_strict(alloc(), alloc(), alloc()),
            sink: Sink::default(),
            total: 0,
            is_finished: false,
        }
    }

    fn write(&mut self, piece: &[u8]) -> Result<(), DecodeError> {
        let mut available_in = piece.len();
        let mut input_offset = 0;
        let mut buffer = [0; PIECE_BYTES];
        while !self.is_finished {
            let mut available_out = buffer.len();
            let mut output_offset = 0;
            let result = BrotliDecompressStream(
                &mut available_in,
                &mut input_offset,
                piece,
                &mut available_out,
                &mut output_offset,
                &mut buffer,
                &mut self.total,
                &mut self.state,
            );
            self.sink.write_all(&buffer[..output_offset]).map_err(|_| DecodeError::TooLarge)?;
            match result {
                BrotliResult::NeedsMoreInput => return Ok(()),
                BrotliResult::NeedsMoreOutput => {}
                BrotliResult::ResultSuccess => self.is_finished = true,
                BrotliResult::ResultFailure => return Err(DecodeError::Corrupt),
            }
        }
        // What follows the end is no part of the body.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flate2::{
        Compression,
        write::{DeflateEncoder, GzEncoder, ZlibEncoder},
    };
    use proptest::prelude::*;

    use super::*;

    const LIMIT: u64 = 1 << 20;

    fn decoded(encoding: &str, body: &[u8], piece: usize) -> Result<Vec<u8>, DecodeError> {
        let mut decoder = Decoder::for_encoding(encoding, LIMIT).expect(encoding);
        let mut out = Vec::new();
        for piece in body.chunks(piece) {
            decoder.push(piece, |bytes| out.extend_from_slice(bytes))?;
        }
        Ok(out)
    }

    fn gzip(body: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(body: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    fn deflate(body: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    /// `hello\n`, from the test data of the decompressor.
    const BROTLI: &[u8] = b"\x8f\x02\x80\x68\x65\x6c\x6c\x6f\x0a\x03";

    #[test]
    fn every_coding_is_decoded_at_every_cut() {
        let body: Vec<u8> = (0..20_000u32).map(|n| b"data: {}\n"[n as usize % 9] ^ (n / 4000) as u8).collect();
        for piece in [1, 2, 3, 100, 5000, 100_000] {
            assert_eq!(decoded("gzip", &gzip(&body), piece).as_deref(), Ok(&body[..]));
            assert_eq!(decoded("X-GZIP", &gzip(&body), piece).as_deref(), Ok(&body[..]));
            assert_eq!(decoded("deflate", &zlib(&body), piece).as_deref(), Ok(&body[..]));
            assert_eq!(decoded(" deflate", &deflate(&body), piece).as_deref(), Ok(&body[..]));
            assert_eq!(decoded("identity", &body, piece).as_deref(), Ok(&body[..]));
            assert_eq!(decoded("br", BROTLI, piece).as_deref(), Ok(&b"hello\n"[..]));
        }
        let members = [gzip(b"one "), gzip(b"two")].concat();
        assert_eq!(decoded("gzip", &members, 7).as_deref(), Ok(&b"one two"[..]));
        assert!(Decoder::for_encoding("zstd", LIMIT).is_none());
        assert!(Decoder::for_encoding("gzip, br", LIMIT).is_none());
    }

    #[test]
    fn a_flushed_event_comes_out_before_the_next_arrives() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        let mut decoder = Decoder::for_encoding("gzip", LIMIT).expect("gzip");
        for n in 0..3 {
            let event = format!("data: {n}\n\n");
            encoder.write_all(event.as_bytes()).unwrap();
            encoder.flush().unwrap();
            let mut out = Vec::new();
            decoder.push(&std::mem::take(encoder.get_mut()), |bytes| out.extend_from_slice(bytes)).unwrap();
            assert_eq!(out, event.as_bytes());
        }
    }

    #[test]
    fn bombs_are_given_up_at_the_limit_and_at_the_ratio() {
        let zeros = vec![0; 8 << 20];
        for (encoding, bomb) in [("gzip", gzip(&zeros)), ("deflate", zlib(&zeros)), ("deflate", deflate(&zeros))] {
            let mut decoder = Decoder::for_encoding(encoding, u64::MAX).expect(encoding);
            let mut out = 0;
            let error = decoder.push(&bomb, |bytes| out += bytes.len());
            assert_eq!(error, Err(DecodeError::TooLarge), "ratio of {encoding}");
            assert!(out as u64 <= RATIO_FREE_BYTES.max(RATIO_MAX * bomb.len() as u64));
            assert_eq!(decoder.push(b"x", |_| {}), error, "given up for good");
        }
        let body: Vec<u8> = (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut decoder = Decoder::for_encoding("gzip", 50_000).expect("gzip");
        assert_eq!(decoder.push(&gzip(&body), |_| {}), Err(DecodeError::TooLarge));
        let mut decoder = Decoder::for_encoding("identity", 10).expect("identity");
        assert_eq!(decoder.push(b"more than ten bytes", |_| {}), Err(DecodeError::TooLarge));
    }

    #[test]
    fn what_is_not_in_its_coding_is_corrupt() {
        assert_eq!(decoded("gzip", b"data: {}\n\n", 100), Err(DecodeError::Corrupt));
        assert_eq!(decoded("deflate", b"\x78\x9c\xff\xff\xff\xff", 100), Err(DecodeError::Corrupt));
        assert_eq!(decoded("br", &[0xff; 100], 100), Err(DecodeError::Corrupt));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(
            encoding in prop::sample::select(&["gzip", "deflate", "br"][..]),
            body in prop::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(), byte: u8, piece in 1usize..50,
        ) {
            let _ = decoded(encoding, &body, piece);
            let mut damaged = match encoding { "gzip" => gzip(&body), "deflate" => zlib(&body), _ => BROTLI.to_vec() };
            let at = at.index(damaged.len());
            damaged[at] = byte;
            let _ = decoded(encoding, &damaged, piece);
        }
    }
}
