//! The library that nodes and tools reach the control plane with.
//!
//! Invariants:
//! - a change is made at most once: it names the epoch that it is for, and when it is not known what became of an
//!   attempt the caller hears that, and not that its change came too late;
//! - what is asked for again and again (tokens, joins) has failed only if no attempt can have been heard;
//! - every wait has an end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ashlar_cluster_map::{ClusterMap, Device, MapChange, Node};
use ashlar_layout::ids::{ClusterId, DeviceNo, Epoch, NodeId};
use ashlar_layout::version::ENTRY_VERSION;
use tokio::time::Instant;

use crate::error::{ControlError, WireError};
use crate::host::{Host, System, millis};
use crate::limits::{FRAME_TIME, WATCH_TIME};
use crate::link::{Link, LinkError};
use crate::policy::ChainReport;
use crate::token::Token;
use crate::wire::{Answer, Call, Hello, Status, Who};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// There are no addresses to ask.
    #[error("the cluster map names no control members")]
    NoMembers,
    /// The control plane has answered, and says why not.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// No member could be reached.
    #[error("no control member answers: {}", each(.tried))]
    Unreachable {
        /// Each address with what went wrong there.
        tried: Vec<(String, String)>,
    },
    /// The change was sent, and no answer came: it may be made, or not.
    #[error(
        "no answer from {address} ({source}): the change may be made or not; look at the map before trying again{}",
        after(.then)
    )]
    Uncertain {
        /// Who was asked.
        address: String,
        /// What went wrong.
        source: WireError,
        /// What came of asking again, if that is safe.
        then: Option<Box<ClientError>>,
    },
    /// The member answered something else.
    #[error("{address} answered something that was not asked for: {what}")]
    WrongAnswer {
        /// Who was asked.
        address: String,
        /// What it said.
        what: String,
    },
    /// No randomness for a token.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

impl ClientError {
    /// Whether what was asked for may be done all the same.
    pub fn is_uncertain(&self) -> bool {
        matches!(
            self,
            ClientError::Uncertain { .. } | ClientError::Control(ControlError::Uncertain { .. })
        )
    }

    /// What the control plane answered, if it did.
    pub fn control(&self) -> Option<&ControlError> {
        match self {
            ClientError::Control(error) => Some(error),
            _ => None,
        }
    }
}

fn after(then: &Option<Box<ClientError>>) -> String {
    let then = then.iter();
    then.map(|then| format!("; asked again: {then}")).collect()
}

fn each(tried: &[(String, String)]) -> String {
    let lines = tried
        .iter()
        .map(|(address, why)| format!("{address}: {why}"));
    lines.collect::<Vec<_>>().join("; ")
}

/// What a heartbeat is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The newest map's epoch: fetch it if yours is older.
    pub epoch: Epoch,
    /// Where the leader listens.
    pub leader: String,
    /// Why devices that are away are not marked out, if that is so.
    pub held: Option<String>,
}

/// A caller of the control plane. Each call makes its own connection; calls at once are independent.
#[derive(Debug)]
pub struct ControlClient {
    cluster: ClusterId,
    addresses: Vec<String>,
    /// The index of who answered last.
    preferred: AtomicUsize,
    patience: Duration,
    connecting: Duration,
    host: Arc<dyn Host>,
}

impl ControlClient {
    /// A caller of the members of this cluster at these addresses.
    pub fn new(cluster: ClusterId, addresses: Vec<String>) -> ControlClient {
        ControlClient {
            cluster,
            addresses,
            preferred: AtomicUsize::new(0),
            patience: Duration::from_secs(15),
            connecting: Duration::from_secs(2),
            host: Arc::new(System),
        }
    }

    /// A caller of the control members that a map names.
    pub fn of(map: &ClusterMap) -> ControlClient {
        let addresses = map.control.iter().map(|m| m.address.clone());
        ControlClient::new(map.cluster, addresses.collect())
    }

    /// For how long to go on asking while the members are electing a leader or cannot be reached.
    pub fn with_patience(mut self, patience: Duration) -> ControlClient {
        self.patience = patience;
        self
    }

    /// On another machine than this program's.
    #[cfg(test)]
    pub(crate) fn on(mut self, host: Arc<dyn Host>) -> ControlClient {
        self.host = host;
        self
    }

    /// The newest map of all, agreed on by a quorum.
    pub async fn newest_map(&self) -> Result<ClusterMap, ClientError> {
        match self.ask(&Call::Map { newest: true }, FRAME_TIME).await? {
            (_, Answer::Map(Some(map))) => Ok(map),
            (_, Answer::Map(None)) => Err(ControlError::NotFounded.into()),
            (address, other) => Err(wrong(address, &other)),
        }
    }

    /// The newest map that the first member to answer has: also when there is no quorum.
    pub async fn get_map(&self) -> Result<ClusterMap, ClientError> {
        match self.ask(&Call::Map { newest: false }, FRAME_TIME).await? {
            (_, Answer::Map(Some(map))) => Ok(map),
            (_, Answer::Map(None)) => Err(ControlError::NotFounded.into()),
            (address, other) => Err(wrong(address, &other)),
        }
    }

    /// A map newer than `after`, as soon as a member has one; none if that takes longer than `wait`.
    pub async fn watch(
        &self,
        after: Epoch,
        wait: Duration,
    ) -> Result<Option<ClusterMap>, ClientError> {
        let wait = wait.min(WATCH_TIME);
        let wait_ms = millis(wait);
        let call = Call::Watch { after, wait_ms };
        match self.ask(&call, wait + FRAME_TIME).await? {
            (_, Answer::Map(map)) => Ok(map),
            (address, other) => Err(wrong(address, &other)),
        }
    }

    /// Changes the map if it is of the epoch `expected`; gives the epoch after it.
    pub async fn change(&self, expected: Epoch, change: MapChange) -> Result<Epoch, ClientError> {
        self.done(&Call::Change { expected, change }).await
    }

    /// Makes a join token that lives for `life`. It is kept nowhere: only its hash is.
    pub async fn create_token(&self, life: Duration) -> Result<Token, ClientError> {
        let mut secret = [0; 16];
        getrandom::fill(&mut secret).map_err(ClientError::Random)?;
        let token = Token::new(self.cluster, secret);
        self.enter_token(&token, life).await?;
        Ok(token)
    }

    /// Makes this the secret of a join token.
    pub(crate) async fn enter_token(
        &self,
        token: &Token,
        life: Duration,
    ) -> Result<Epoch, ClientError> {
        self.done(&Call::MakeToken {
            hash: token.hash(),
            life_ms: millis(life),
        })
        .await
    }

    /// A node joins with a token; gives the map's epoch after it. To repeat it is safe.
    pub async fn join(
        &self,
        token: Token,
        node: Node,
        devices: Vec<Device>,
    ) -> Result<Epoch, ClientError> {
        self.done(&Call::Join {
            token,
            node,
            devices,
            entries: Some(ENTRY_VERSION),
        })
        .await
    }

    /// Tells the leader that a node is there, how its chains are, and which of its devices serve, if that is known; and
    /// which entries of the journal this program reads.
    pub async fn heartbeat(
        &self,
        node: NodeId,
        chains: Vec<ChainReport>,
        serving: Option<Vec<DeviceNo>>,
    ) -> Result<Heard, ClientError> {
        let call = Call::Heartbeat {
            node,
            chains,
            serving,
            entries: Some(ENTRY_VERSION),
        };
        match self.ask(&call, FRAME_TIME).await? {
            (
                _,
                Answer::Heard {
                    epoch,
                    leader,
                    held,
                },
            ) => {
                if let Some(index) = self.addresses.iter().position(|a| *a == leader) {
                    self.preferred.store(index, Ordering::Relaxed);
                }
                Ok(Heard {
                    epoch,
                    leader,
                    held,
                })
            }
            (address, other) => Err(wrong(address, &other)),
        }
    }

    /// How the cluster is. Without a quorum: what one member knows, and why it is no more.
    pub async fn status(&self) -> Result<Status, ClientError> {
        match self.ask(&Call::Status, 2 * FRAME_TIME).await? {
            (_, Answer::Status(status)) => Ok(status),
            (address, other) => Err(wrong(address, &other)),
        }
    }

    async fn done(&self, call: &Call) -> Result<Epoch, ClientError> {
        match self.ask(call, 2 * FRAME_TIME).await? {
            (_, Answer::Done(epoch)) => Ok(epoch),
            (address, other) => Err(wrong(address, &other)),
        }
    }

    /// Asks until somebody answers for good or patience ends.
    async fn ask(&self, call: &Call, time: Duration) -> Result<(String, Answer), ClientError> {
        let mut lost = None;
        let answer = self.ask_each(call, time, &mut lost).await;
        match (answer, lost) {
            // Whatever was said later is no word on what became of the first attempt.
            (Err(error), Some((address, source))) => Err(ClientError::Uncertain {
                address,
                source,
                then: Some(Box::new(error)),
            }),
            (answer, _) => answer,
        }
    }

    /// Asks one member after the other, and again; `lost` is the first attempt at a change that may have been heard.
    async fn ask_each(
        &self,
        call: &Call,
        time: Duration,
        lost: &mut Option<(String, WireError)>,
    ) -> Result<(String, Answer), ClientError> {
        let deadline = Instant::now() + self.patience;
        let hello = Hello {
            cluster: self.cluster,
            who: Who::Client,
            to: None,
        };
        let once = matches!(call, Call::Change { .. });
        let count = self.addresses.len();
        loop {
            let mut tried = Vec::new();
            let mut passing = None;
            let first = self.preferred.load(Ordering::Relaxed);
            for i in 0..count {
                let index = (first + i) % count;
                let Some(address) = self.addresses.get(index) else {
                    continue;
                };
                let asked = match Link::open(&*self.host, address, hello, self.connecting).await {
                    Ok(link) => link.call(call, time).await,
                    Err(error) => Err(error),
                };
                match asked {
                    Ok((_, Answer::Failed(error))) | Err(LinkError::Refused(error)) => {
                        if !error.is_passing() {
                            return Err(error.into());
                        }
                        passing = Some(error);
                    }
                    Ok((_, answer)) => {
                        self.preferred.store(index, Ordering::Relaxed);
                        return Ok((address.clone(), answer));
                    }
                    Err(LinkError::Lost(source)) if once => {
                        let address = address.clone();
                        return Err(ClientError::Uncertain {
                            address,
                            source,
                            then: None,
                        });
                    }
                    Err(LinkError::Lost(source)) if call.changes() => {
                        tried.push((address.clone(), source.to_string()));
                        lost.get_or_insert((address.clone(), source));
                    }
                    Err(error) => tried.push((address.clone(), error.to_string())),
                }
            }
            if count == 0 {
                return Err(ClientError::NoMembers);
            }
            let pause = Duration::from_millis(100);
            if Instant::now() + pause >= deadline {
                return Err(match passing {
                    Some(error) => error.into(),
                    None => ClientError::Unreachable { tried },
                });
            }
            tokio::time::sleep(pause).await;
        }
    }
}

fn wrong(address: String, answer: &Answer) -> ClientError {
    let mut what = format!("{answer:?}");
    what.truncate(what.floor_char_boundary(200));
    ClientError::WrongAnswer { address, what }
}
