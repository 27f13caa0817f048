//! A request's body on its way into the store.
//!
//! Invariants:
//! - what is read is what was sent, without the chunks around it, and no more than was promised;
//! - the end is only given when all that was said of the body holds: its length, its chunks' signatures,
//!   its SHA-256. What else was sent of it (checksums, MD5) its [`Came`] checks, before anything of the
//!   object is visible;
//! - a body that stands still is given up, and so is one that comes too slowly: it takes a place among
//!   those that the store serves at once.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use ashlar_cluster_s3::checksum::{Algorithm, Digests, Hasher};
use ashlar_cluster_s3::chunked::Chunked;
use ashlar_cluster_s3::form::FormFile;
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::signature::Payload;
use ashlar_cluster_s3::signature_v4::ChunkSigner;
use bytes::{Buf, Bytes, BytesMut};
use http_body::Body as _;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::faults::{refusal, refused};
use crate::inbound::Inbound;
use crate::memory::{Pace, Share};
use crate::pieces::Pieces;
use crate::places::Peer;

/// Where a body comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A client.
    Http(Inbound),
    /// The store: a copy.
    Object(Pieces),
    /// A client's form: its file.
    Form(Box<FormSource>),
}

/// A form's file, on its way in the form's body.
#[derive(Debug)]
pub(crate) struct FormSource {
    /// The form from its file on.
    form: BodyReader,
    file: FormFile,
    queue: VecDeque<Bytes>,
}

impl FormSource {
    /// Of a form whose fields were read.
    pub(crate) fn new(form: BodyReader, mut file: FormFile) -> FormSource {
        let mut pieces = Vec::new();
        let first = file.first();
        file.push(first, &mut pieces);
        FormSource {
            form,
            file,
            queue: pieces.into(),
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Refusal>> {
        loop {
            if let Some(piece) = self.queue.pop_front() {
                return Poll::Ready(Ok(Some(piece)));
            }
            match ready!(self.form.poll_piece(cx))? {
                Some(bytes) => {
                    let mut pieces = Vec::new();
                    self.file.push(bytes, &mut pieces);
                    self.queue.extend(pieces);
                }
                None => {
                    self.file.end()?;
                    return Poll::Ready(Ok(None));
                }
            }
        }
    }
}

/// What came of a body, once it has ended.
#[derive(Debug, Default)]
pub(crate) struct Came {
    pub(crate) digests: Option<Digests>,
    pub(crate) trailer: Vec<(String, String)>,
    /// Why it failed, in S3's words: what the reader tells is an error of I/O.
    pub(crate) refusal: Option<Refusal>,
}

/// What came of a body, for its reader and who waits for it.
pub(crate) type Shared = Arc<Mutex<Came>>;

/// Locks what came.
pub(crate) fn came(shared: &Shared) -> std::sync::MutexGuard<'_, Came> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was said of a body beforehand.
#[derive(Debug)]
pub(crate) struct Promise {
    /// Its bytes, without chunks around them.
    pub(crate) len: u64,
    /// If it may have fewer: so many, at the least.
    pub(crate) least: Option<u64>,
    pub(crate) payload: Payload,
    /// Signs its chunks, if they are signed.
    pub(crate) signer: Option<ChunkSigner>,
    /// Digests to be made.
    pub(crate) algorithms: Vec<Algorithm>,
    /// How fast it has to come.
    pub(crate) pace: Pace,
    /// Who asks for what it is about.
    pub(crate) peer: Peer,
    /// The memory that it takes, if that is its own already.
    pub(crate) share: Option<Share>,
}

fn too_slow<T>() -> Result<T, Refusal> {
    refused(
        Code::RequestTimeout,
        "Your socket connection to the server was not read from or written to within the timeout period. \
         Idle connections will be closed.",
    )
}

/// A body, being read.
#[derive(Debug)]
pub(crate) struct BodyReader {
    source: Source,
    pace: Pace,
    chunked: Option<Chunked>,
    sha256: Option<[u8; 32]>,
    len: u64,
    least: Option<u64>,
    read: u64,
    hasher: Option<Hasher>,
    queue: VecDeque<Bytes>,
    /// Of a piece that was too long for who reads it.
    rest: Bytes,
    timer: Option<Pin<Box<Sleep>>>,
    shared: Shared,
}

impl BodyReader {
    pub(crate) fn new(source: Source, promise: Promise) -> (BodyReader, Shared) {
        let Promise {
            len,
            least,
            payload,
            signer,
            mut algorithms,
            pace,
            peer: _,
            share: _,
        } = promise;
        let sha256 = match payload {
            Payload::Sha256(digest) => Some(digest),
            _ => None,
        };
        algorithms.extend(sha256.map(|_| Algorithm::Sha256));
        let chunked = payload
            .is_chunked()
            .then(|| Chunked::new(payload, signer, len));
        let shared = Shared::default();
        let reader = BodyReader {
            source,
            pace,
            chunked,
            sha256,
            len,
            least,
            read: 0,
            hasher: Some(Hasher::new(algorithms)),
            queue: VecDeque::new(),
            rest: Bytes::new(),
            timer: None,
            shared: shared.clone(),
        };
        (reader, shared)
    }

    /// The next bytes as they came; none at the end.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Refusal>> {
        let polled = match &mut self.source {
            Source::Object(pieces) => {
                let next = ready!(pieces.poll_next(cx));
                return Poll::Ready(next.transpose().map_err(|error| refusal(&error)));
            }
            Source::Form(form) => return form.poll_next(cx),
            Source::Http(body) => Pin::new(body).poll_frame(cx),
        };
        match polled {
            Poll::Ready(None) => Poll::Ready(Ok(None)),
            Poll::Ready(Some(Ok(frame))) => {
                self.timer = None;
                // HTTP's own trailers are nothing that S3 knows.
                let data = frame.into_data().unwrap_or_default();
                if !self.pace.moved(data.len(), Instant::now()) {
                    return Poll::Ready(too_slow());
                }
                Poll::Ready(Ok(Some(data)))
            }
            Poll::Ready(Some(Err(_))) => Poll::Ready(incomplete()),
            Poll::Pending => {
                self.pace.wait(Instant::now());
                let wait = self.pace.stretch();
                let timer = self
                    .timer
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
                ready!(timer.as_mut().poll(cx));
                Poll::Ready(too_slow())
            }
        }
    }

    /// The next bytes of the body; none when it has ended as it should.
    pub(crate) fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, Refusal>> {
        loop {
            if let Some(piece) = self.queue.pop_front() {
                if piece.is_empty() {
                    continue;
                }
                self.read += piece.len() as u64;
                if self.read > self.len {
                    return Poll::Ready(match self.least {
                        None => too_long(),
                        Some(_) => refused(
                            Code::EntityTooLarge,
                            "Your proposed upload exceeds the maximum allowed size",
                        ),
                    });
                }
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&piece);
                }
                return Poll::Ready(Ok(Some(piece)));
            }
            match ready!(self.poll_source(cx))? {
                Some(bytes) => match &mut self.chunked {
                    None => self.queue.push_back(bytes),
                    Some(chunked) => {
                        let mut pieces = Vec::new();
                        chunked.push(bytes, &mut pieces)?;
                        self.queue.extend(pieces);
                    }
                },
                None => {
                    self.end()?;
                    return Poll::Ready(Ok(None));
                }
            }
        }
    }

    fn end(&mut self) -> Result<(), Refusal> {
        let Some(hasher) = self.hasher.take() else {
            return Ok(());
        };
        let trailer = match self.chunked.take() {
            Some(chunked) => chunked.end()?,
            None => Vec::new(),
        };
        match self.least {
            None if self.read != self.len => return incomplete(),
            Some(least) if self.read < least => {
                return refused(
                    Code::EntityTooSmall,
                    "Your proposed upload is smaller than the minimum allowed size",
                );
            }
            _ => {}
        }
        let digests = hasher.finish();
        if let Some(expected) = self.sha256
            && digests.get(Algorithm::Sha256) != Some(&expected[..])
        {
            return refused(
                Code::XAmzContentSHA256Mismatch,
                "The provided 'x-amz-content-sha256' header does not match what was computed.",
            );
        }
        let mut came = came(&self.shared);
        (came.digests, came.trailer) = (Some(digests), trailer);
        Ok(())
    }

    /// The next bytes of the body, for who waits.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, Refusal> {
        std::future::poll_fn(|cx| self.poll_piece(cx)).await
    }

    /// All of the body.
    pub(crate) async fn whole(mut self) -> Result<Bytes, Refusal> {
        let mut all = BytesMut::new();
        loop {
            match self.piece().await? {
                // As a rule it is one.
                Some(piece) if all.is_empty() && piece.len() as u64 == self.len => {
                    return match self.piece().await? {
                        None => Ok(piece),
                        Some(_) => too_long(),
                    };
                }
                Some(piece) => all.extend_from_slice(&piece),
                None => return Ok(all.freeze()),
            }
        }
    }
}

fn incomplete<T>() -> Result<T, Refusal> {
    refused(
        Code::IncompleteBody,
        "You did not provide the number of bytes specified by the Content-Length HTTP header",
    )
}

fn too_long<T>() -> Result<T, Refusal> {
    refused(
        Code::InvalidRequest,
        "The body has more bytes than was promised",
    )
}

impl AsyncRead for BodyReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.rest.is_empty() {
            match ready!(this.poll_piece(cx)) {
                Ok(None) => return Poll::Ready(Ok(())),
                Ok(Some(piece)) => this.rest = piece,
                Err(refusal) => {
                    let error = io::Error::other(refusal.to_string());
                    came(&this.shared).refusal = Some(refusal);
                    return Poll::Ready(Err(error));
                }
            }
        }
        let n = this.rest.len().min(buffer.remaining());
        buffer.put_slice(&this.rest[..n]);
        this.rest.advance(n);
        Poll::Ready(Ok(()))
    }
}
