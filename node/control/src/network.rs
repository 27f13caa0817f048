//! How openraft reaches the other members: one connection each, made when it is needed.
//!
//! Invariant: a connection on which something went wrong, or on which openraft gave a call up, is closed.

use std::sync::Arc;
use std::time::Duration;

use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend, Snapshot};

use crate::error::WireError;
use crate::host::Host;
use crate::limits::FRAME_TIME;
use crate::link::{Link, LinkError};
use crate::types::{MemberId, Types, Vote};
use crate::wire::{Answer, Call, Hello, Who};

/// Makes connections to members.
#[derive(Clone, Debug)]
pub struct Network {
    /// What every connection says first, but for whom it is meant.
    pub hello: Hello,
    /// How long to wait before a member that could not be reached is tried again.
    pub pause: Duration,
    /// How they are reached.
    pub host: Arc<dyn Host>,
}

impl Network {
    /// The network of this member.
    pub fn new(
        cluster: ashlar_layout::ids::ClusterId,
        me: u32,
        pause: Duration,
        host: Arc<dyn Host>,
    ) -> Network {
        let hello = Hello {
            cluster,
            who: Who::Member(me),
            to: None,
        };
        Network { hello, pause, host }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: MemberId, node: &BasicNode) -> Peer {
        Peer {
            address: node.addr.clone(),
            hello: Hello {
                to: u32::try_from(target).ok(),
                ..self.hello
            },
            pause: self.pause,
            host: self.host.clone(),
            link: None,
        }
    }
}

/// The way to one member.
#[derive(Debug)]
pub struct Peer {
    address: String,
    hello: Hello,
    pause: Duration,
    host: Arc<dyn Host>,
    link: Option<Link>,
}

impl Peer {
    async fn call(&mut self, call: &Call, time: Duration) -> Result<Answer, LinkError> {
        // Taken out: if this future is dropped in the midst, so is the connection.
        let link = match self.link.take() {
            Some(link) => link,
            None => Link::open(&*self.host, &self.address, self.hello, time).await?,
        };
        let (link, answer) = link.call(call, time).await?;
        self.link = Some(link);
        Ok(answer)
    }
}

type Failure<E> = RPCError<MemberId, BasicNode, E>;

fn rpc<E: std::error::Error>(error: LinkError) -> Failure<E> {
    match error {
        LinkError::Lost(error) => NetworkError::new(&error).into(),
        error => Unreachable::new(&error).into(),
    }
}

fn odd<E: std::error::Error>(answer: Answer) -> Failure<E> {
    match answer {
        Answer::Failed(error) => Unreachable::new(&error).into(),
        other => Unreachable::new(&WireError::WrongAnswer {
            what: format!("{other:?}"),
        })
        .into(),
    }
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<MemberId>, Failure<RaftError<MemberId>>> {
        // A write to a slow device takes longer than a heartbeat may.
        let time = if request.entries.is_empty() {
            option.hard_ttl()
        } else {
            option.hard_ttl().max(FRAME_TIME)
        };
        match self.call(&Call::Append(request), time).await.map_err(rpc)? {
            Answer::Append(response) => Ok(response),
            other => Err(odd(other)),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<MemberId>,
        option: RPCOption,
    ) -> Result<VoteResponse<MemberId>, Failure<RaftError<MemberId>>> {
        let answer = self.call(&Call::Vote(request), option.hard_ttl()).await;
        match answer.map_err(rpc)? {
            Answer::Vote(response) => Ok(response),
            other => Err(odd(other)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<Types>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<MemberId>, StreamingError<Types, Fatal<MemberId>>> {
        let call = Call::Snapshot {
            vote,
            meta: snapshot.meta,
            state: *snapshot.snapshot,
        };
        let answer = tokio::select! {
            biased;
            answer = self.call(&call, FRAME_TIME) => answer,
            closed = cancel => return Err(closed.into()),
        };
        match answer {
            Ok(Answer::Snapshot(response)) => Ok(response),
            Ok(other) => {
                let what = format!("{other:?}");
                Err(Unreachable::new(&WireError::WrongAnswer { what }).into())
            }
            Err(error) => Err(Unreachable::new(&error).into()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.pause))
    }
}
