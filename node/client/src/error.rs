//! What can go wrong in the client.

use std::io;

use ashlar_cluster_object::{Code, ObjectError};

/// What went wrong. [`ClientError::code`] is what a caller branches on; the text is for a person.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The operation failed in the store.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The source of a put failed in the middle; nothing of the object is visible.
    #[error("the source failed after {read} bytes: {source}")]
    Source {
        /// Bytes read before.
        read: u64,
        /// What the source said.
        source: io::Error,
    },
    /// The source of a put did not have the length that was promised; nothing of it is visible.
    #[error("the source has {got} bytes, not the {expected} that were promised")]
    SourceLength {
        /// Bytes promised.
        expected: u64,
        /// Bytes that came, at the least.
        got: u64,
    },
    /// The map or an option does not serve.
    #[error("{detail}")]
    Setup {
        /// Why.
        detail: String,
    },
    /// A node could not be asked.
    #[error("node {node} at {address} does not answer: {detail}")]
    Node {
        /// Which.
        node: ashlar_layout::ids::NodeId,
        /// Where.
        address: String,
        /// Why.
        detail: String,
    },
}

impl ClientError {
    /// What a caller branches on.
    pub fn code(&self) -> Code {
        match self {
            ClientError::Object(error) => error.code(),
            ClientError::Source { .. } | ClientError::SourceLength { .. } => Code::Io,
            ClientError::Setup { .. } => Code::BadRequest,
            ClientError::Node { .. } => Code::Io,
        }
    }

    /// Whether the change that was asked for may have been made although this is an error.
    pub fn is_uncertain(&self) -> bool {
        matches!(self, ClientError::Object(error) if error.is_uncertain())
    }
}
