//! A request's body as it comes through HTTP, and what becomes of one that nobody read to its end.
//!
//! Invariants:
//! - what is left of a body is never taken for the next request, and the next request never for what is left
//!   of a body: a client that asked whether to send its body (`Expect: 100-continue`) may or may not do so
//!   once it is refused, so that connection ends with the reply, which says so;
//! - a client that is sending already is listened to for a while, so that it can read why it was refused;
//!   for a bounded while, and a bounded number of bytes.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// Bytes of a refused body that are taken so that its connection can be kept.
const KEEP_MAX: u64 = 256 * 1024;
/// Bytes that are taken so that its sender gets to read the refusal.
const LINGER_MAX: u64 = 16 * 1024 * 1024;
/// How long that may take.
const LINGER: Duration = Duration::from_secs(5);

/// A body, which comes back to its [`Leftover`] when whoever reads it is done with it.
#[derive(Debug)]
pub(crate) struct Inbound {
    /// None once it has ended.
    body: Option<Incoming>,
    back: Arc<Mutex<State>>,
}

/// How a body stands.
#[derive(Debug)]
enum State {
    /// Somebody reads it.
    Held,
    /// Nobody does; none if it was read to its end.
    Left(Option<Incoming>),
}

/// What was left of a body.
#[derive(Debug)]
pub(crate) struct Leftover(Arc<Mutex<State>>);

/// Whether a connection may be used for another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Keep,
    Close,
}

impl Inbound {
    pub(crate) fn new(body: Incoming) -> (Inbound, Leftover) {
        let back = Arc::new(Mutex::new(State::Held));
        let inbound = Inbound {
            body: Some(body),
            back: back.clone(),
        };
        (inbound, Leftover(back))
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        *self.back.lock().unwrap_or_else(PoisonError::into_inner) = State::Left(self.body.take());
    }
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Leftover {
    /// Takes what is left out of the way, behind the reply; says what is to become of the connection.
    /// `expects`: the client asked before it sent anything.
    pub(crate) fn settle(self, expects: bool) -> After {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let body = match std::mem::replace(&mut *state, State::Held) {
            // Whatever comes of it, it is no request.
            State::Held => return After::Close,
            State::Left(None) => return After::Keep,
            State::Left(Some(body)) if body.is_end_stream() => return After::Keep,
            State::Left(Some(body)) => body,
        };
        if expects {
            return After::Close;
        }
        let is_short = body.size_hint().upper().is_some_and(|n| n <= KEEP_MAX);
        tokio::spawn(tokio::time::timeout(LINGER, drain(body)));
        if is_short { After::Keep } else { After::Close }
    }
}

async fn drain(mut body: Incoming) {
    let mut taken = 0;
    while taken < LINGER_MAX {
        match std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            Some(Ok(frame)) => taken += frame.data_ref().map_or(0, |data| data.len() as u64),
            _ => return,
        }
    }
}
