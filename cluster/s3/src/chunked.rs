//! Bodies in chunks of S3's kind (`aws-chunked`): sizes, signatures, trailers.
//!
//! Invariants:
//! - a chunk is given on as it comes, and never held; that its signature is right is known when it has
//!   ended, so nothing of a body may be acknowledged before [`Chunked::end`] has said yes;
//! - a body that ends without its last chunk, with more or fewer bytes than were promised, or with
//!   something behind its end, is refused;
//! - what is held is bounded: one line of a chunk's size, and the trailer.

use bytes::{Buf, Bytes};
use sha2::{Digest, Sha256};

use crate::refusal::{Refusal, refuse};
use crate::signature::Payload;
use crate::signature_v4::ChunkSigner;

/// Longest line with a chunk's size.
const LINE_MAX: usize = 256;
/// Longest trailer.
const TRAILER_MAX: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// In the line with a chunk's size.
    Size,
    /// In a chunk, of which so much is to come.
    Data(u64),
    /// At the line's end behind a chunk.
    DataEnd,
    /// Behind the last chunk.
    Trailer,
    /// All is there.
    Done,
}

/// A body in chunks, being taken apart.
#[derive(Debug)]
pub struct Chunked {
    signer: Option<ChunkSigner>,
    with_trailer: bool,
    /// Bytes that were promised,
    promised: u64,
    /// and those that came.
    came: u64,
    state: State,
    line: Vec<u8>,
    signature: String,
    hash: Sha256,
    trailer: Vec<(String, String)>,
}

impl Chunked {
    /// A body of `promised` bytes in all. `signer` signs its chunks, if they are signed.
    pub fn new(payload: Payload, signer: Option<ChunkSigner>, promised: u64) -> Chunked {
        let (with_trailer, signed) = match payload {
            Payload::Chunks { trailer } => (trailer, true),
            _ => (true, false),
        };
        Chunked {
            signer: signer.filter(|_| signed),
            with_trailer,
            promised,
            came: 0,
            state: State::Size,
            line: Vec::new(),
            signature: String::new(),
            hash: Sha256::new(),
            trailer: Vec::new(),
        }
    }

    /// Takes more of the body, as it came; gives what is in it.
    pub fn push(&mut self, mut bytes: Bytes, out: &mut Vec<Bytes>) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            match self.state {
                State::Size => {
                    if self.take_line(&mut bytes, LINE_MAX)? {
                        self.begin_chunk()?;
                    }
                }
                State::Data(left) => {
                    // What fits `left` fits the piece's length.
                    let piece = bytes.split_to((left.min(bytes.len() as u64)) as usize);
                    if self.signer.is_some() {
                        self.hash.update(&piece);
                    }
                    let left = left - piece.len() as u64;
                    out.push(piece);
                    self.state = State::Data(left);
                    if left == 0 {
                        self.end_chunk()?;
                        self.state = State::DataEnd;
                    }
                }
                State::DataEnd => {
                    if self.take_line(&mut bytes, 2)? {
                        if !self.line.is_empty() {
                            return malformed("a chunk is longer than it says");
                        }
                        self.state = State::Size;
                    }
                }
                State::Trailer => {
                    if self.take_line(&mut bytes, TRAILER_MAX)? {
                        self.take_trailer()?;
                    }
                }
                State::Done => return malformed("something comes behind the end"),
            }
        }
        Ok(())
    }

    /// Moves bytes into the line; whether it is whole, without its end.
    fn take_line(&mut self, bytes: &mut Bytes, most: usize) -> Result<bool, Refusal> {
        // A line is whole at its end only: else `line` would hold one already.
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let take = end.map_or(bytes.len(), |at| at + 1);
        if self.line.len() + take > most {
            return malformed("a line is too long");
        }
        self.line.extend_from_slice(&bytes[..take]);
        bytes.advance(take);
        if end.is_some() {
            self.line.pop();
            if self.line.pop_if(|byte| *byte == b'\r').is_none() && self.state != State::Trailer {
                return malformed("a line ends without CR");
            }
        }
        Ok(end.is_some())
    }

    fn begin_chunk(&mut self) -> Result<(), Refusal> {
        let line = std::mem::take(&mut self.line);
        let Ok(line) = std::str::from_utf8(&line) else {
            return malformed("a chunk's size is none");
        };
        let (size, signature) = match line.split_once(';') {
            Some((size, rest)) => match rest.strip_prefix("chunk-signature=") {
                Some(signature) => (size, Some(signature)),
                None => return malformed("a chunk has an unknown extension"),
            },
            None => (line, None),
        };
        let digits = (1..=16).contains(&size.len()) && size.bytes().all(|b| b.is_ascii_hexdigit());
        let size = match u64::from_str_radix(size, 16) {
            Ok(size) if digits => size,
            _ => return malformed("a chunk's size is none"),
        };
        match (signature, self.signer.is_some()) {
            (Some(signature), true) => self.signature = signature.to_owned(),
            (None, true) => return malformed("a chunk is not signed"),
            (_, false) => {}
        }
        self.came = self.came.saturating_add(size);
        if self.came > self.promised {
            return refuse!(
                InvalidRequest,
                "The body has more bytes than x-amz-decoded-content-length says: {}",
                self.promised
            );
        }
        if size > 0 {
            self.state = State::Data(size);
            return Ok(());
        }
        self.end_chunk()?;
        self.state = State::Trailer;
        Ok(())
    }

    fn end_chunk(&mut self) -> Result<(), Refusal> {
        if let Some(signer) = &mut self.signer {
            let hash = self.hash.finalize_reset_to();
            if !signer.chunk(&hash, &self.signature) {
                return refuse!(
                    SignatureDoesNotMatch,
                    "The signature we calculated of a chunk does not match the signature you provided."
                );
            }
        }
        Ok(())
    }

    fn take_trailer(&mut self) -> Result<(), Refusal> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            self.state = State::Done;
            return Ok(());
        }
        let Some((name, value)) = std::str::from_utf8(&line)
            .ok()
            .and_then(|l| l.split_once(':'))
        else {
            return malformed("a line of the trailer is none");
        };
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim().to_owned());
        let held: usize = self
            .trailer
            .iter()
            .map(|(n, v)| n.len() + v.len() + 2)
            .sum();
        if held + line.len() > TRAILER_MAX {
            return malformed("the trailer is too long");
        }
        self.trailer.push((name, value));
        Ok(())
    }

    /// The body has ended: gives its trailer, if it was whole and right.
    pub fn end(mut self) -> Result<Vec<(String, String)>, Refusal> {
        // Some clients leave out the last line's end.
        if self.state == State::Trailer && !self.line.is_empty() {
            self.take_trailer()?;
        }
        if !matches!(self.state, State::Done | State::Trailer) || self.came != self.promised {
            return refuse!(
                IncompleteBody,
                "You did not provide the number of bytes specified by the \
                 x-amz-decoded-content-length HTTP header"
            );
        }
        let signature = self
            .trailer
            .iter()
            .position(|(n, _)| n == "x-amz-trailer-signature");
        let signature = signature.map(|at| self.trailer.remove(at).1);
        if !self.with_trailer && !self.trailer.is_empty() {
            return malformed("a trailer was not announced");
        }
        if let Some(signer) = self.signer.as_mut().filter(|_| self.with_trailer) {
            let lines: Vec<String> = self
                .trailer
                .iter()
                .map(|(n, v)| format!("{n}:{v}\n"))
                .collect();
            let right = signature.is_some_and(|s| signer.trailer(&lines.concat(), &s));
            if !right {
                return refuse!(
                    SignatureDoesNotMatch,
                    "The signature we calculated of the trailer does not match the signature you provided."
                );
            }
        }
        Ok(self.trailer)
    }
}

fn malformed<T>(what: &str) -> Result<T, Refusal> {
    refuse!(
        InvalidRequest,
        "The body is not in chunks as it should be: {what}"
    )
}

/// The digest so far, and a new beginning.
trait FinalizeReset {
    fn finalize_reset_to(&mut self) -> [u8; 32];
}

impl FinalizeReset for Sha256 {
    fn finalize_reset_to(&mut self) -> [u8; 32] {
        std::mem::take(self).finalize().into()
    }
}
