//! An object's bytes, as they come from the store, for those who poll.
//!
//! Invariant: a piece that was asked for is not lost: if nobody polls any more, the whole reading ends.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use ashlar_node_client::{ClientError, GetStream};
use bytes::Bytes;

type Next = Option<Result<Bytes, ClientError>>;
type Coming = Pin<Box<dyn Future<Output = (Box<GetStream>, Next)> + Send>>;

enum State {
    Idle(Box<GetStream>),
    Coming(Coming),
    Ended,
}

/// The pieces of an object, or of a part of one.
pub(crate) struct Pieces {
    /// Those that came already.
    first: Option<Bytes>,
    state: State,
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pieces")
    }
}

impl Pieces {
    pub(crate) fn new(stream: GetStream) -> Pieces {
        Pieces {
            first: None,
            state: State::Idle(Box::new(stream)),
        }
    }

    /// With a piece that was taken already.
    pub(crate) fn with(stream: GetStream, first: Bytes) -> Pieces {
        Pieces {
            first: Some(first),
            state: State::Idle(Box::new(stream)),
        }
    }

    /// The next piece; none after the last one. An error is the last one.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        loop {
            match std::mem::replace(&mut self.state, State::Ended) {
                State::Ended => return Poll::Ready(None),
                State::Idle(mut stream) => {
                    self.state = State::Coming(Box::pin(async move {
                        let next = stream.next().await;
                        (stream, next)
                    }));
                }
                State::Coming(mut coming) => match coming.as_mut().poll(cx) {
                    Poll::Pending => {
                        self.state = State::Coming(coming);
                        return Poll::Pending;
                    }
                    Poll::Ready((stream, next)) => {
                        if matches!(next, Some(Ok(_))) {
                            self.state = State::Idle(stream);
                        }
                        return Poll::Ready(next);
                    }
                },
            }
        }
    }
}
