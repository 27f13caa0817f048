//! A connection to a control member, from the caller's side.
//!
//! Invariant: after any error, and after a call that was given up, a link is not used again: an answer that comes late
//! is never taken for another call's.

use std::time::Duration;

use ashlar_layout::ids::Epoch;
use ashlar_layout::limits::FRAME_PAYLOAD_MAX;

use crate::error::{ControlError, WireError};
use crate::host::{Host, Socket};
use crate::wire::{self, Answer, Call, Hello};

/// A connection on which the hello was accepted.
#[derive(Debug)]
pub struct Link {
    stream: Socket,
    number: u64,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// There was no way to the member: the call was certainly not heard.
    #[error("{0}")]
    Unreachable(WireError),
    /// The member did not accept the hello.
    #[error("{0}")]
    Refused(ControlError),
    /// The call was under way: it may have been heard.
    #[error("{0}")]
    Lost(WireError),
}

impl Link {
    /// Connects and says hello.
    pub async fn open(
        host: &dyn Host,
        address: &str,
        hello: Hello,
        time: Duration,
    ) -> Result<Link, LinkError> {
        let connecting = async {
            let stream = host.connect(address).await;
            let stream = stream.map_err(|source| WireError::Io {
                what: "connecting",
                source,
            })?;
            let mut link = Link { stream, number: 0 };
            let answer = link.exchange(&Call::Hello(hello)).await?;
            Ok((link, answer))
        };
        let (link, answer) = wire::in_time("connecting", time, connecting)
            .await
            .map_err(LinkError::Unreachable)?;
        match answer {
            Answer::Welcome { member } => match hello.to {
                Some(theirs) if theirs != member => {
                    let ours = member;
                    Err(LinkError::Refused(ControlError::OtherMember {
                        ours,
                        theirs,
                    }))
                }
                _ => Ok(link),
            },
            Answer::Failed(error) => Err(LinkError::Refused(error)),
            other => Err(LinkError::Unreachable(WireError::WrongAnswer {
                what: format!("{other:?}"),
            })),
        }
    }

    /// One call. The link comes back only with an answer.
    pub async fn call(mut self, call: &Call, time: Duration) -> Result<(Link, Answer), LinkError> {
        let answer = wire::in_time("waiting for an answer", time, self.exchange(call)).await;
        match answer {
            Ok(answer) => Ok((self, answer)),
            // What could not be encoded was not sent.
            Err(error @ WireError::Content(_)) => Err(LinkError::Unreachable(error)),
            Err(error) => Err(LinkError::Lost(error)),
        }
    }

    async fn exchange(&mut self, call: &Call) -> Result<Answer, WireError> {
        self.number += 1;
        let frame = wire::encode(self.number, Epoch(0), call)?;
        wire::write(&mut self.stream, &frame).await?;
        let header = wire::read_header(&mut self.stream, FRAME_PAYLOAD_MAX)
            .await?
            .ok_or(WireError::Closed)?;
        let payload = wire::read_payload(&mut self.stream, &header).await?;
        let answer = wire::decode(&payload).map_err(|error| WireError::WrongAnswer {
            what: error.to_string(),
        })?;
        // A member that could not read the number answers with 0, and says why.
        if header.request != self.number && !matches!(answer, Answer::Failed(_)) {
            return Err(WireError::WrongAnswer {
                what: format!("number {}, not {}", header.request, self.number),
            });
        }
        Ok(answer)
    }
}
