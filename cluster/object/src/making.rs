//! How an object is made: as the one that there is, or as a version among others.

use ashlar_layout::ids::Seq;
use ashlar_layout::lock::Lock;
use ashlar_layout::manifest::{Manifest, Op, VersionTag};

/// How an object is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Making {
    /// It takes the place of the one before.
    #[default]
    Object,
    /// It is a new version, and the current one.
    Version {
        /// S3 calls it `null`; it takes the place of the one before that is called so.
        null: bool,
        /// What keeps it.
        lock: Lock,
    },
    /// It is a version that is there, written anew, or what is to become one.
    Again {
        /// Which one.
        tag: VersionTag,
        /// Whether it is the current one.
        current: bool,
        /// When it was made, in milliseconds since 1970.
        modified_ms: u64,
    },
    /// It is a version that is there, or what is to become one, written anew with another lock, or something else to
    /// remember.
    Locked {
        /// Which one, with the lock that it is to have.
        tag: VersionTag,
        /// The entry that wrote it last.
        seen: Seq,
        /// Whether it is the current one.
        current: bool,
        /// When it was made, in milliseconds since 1970.
        modified_ms: u64,
        /// Whether who asks may do what governance forbids.
        bypass: bool,
    },
}

impl Making {
    /// The change that makes it.
    pub(crate) fn op(self, bucket: &str, key: &str, manifest: Manifest) -> Op {
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        let (tag, current, modified_ms) = match self {
            Making::Object => {
                return Op::Put {
                    bucket,
                    key,
                    manifest,
                };
            }
            Making::Locked {
                tag,
                seen,
                current,
                modified_ms,
                bypass,
            } => {
                return Op::LockVersion {
                    bucket,
                    key,
                    tag,
                    seen,
                    current,
                    modified_ms,
                    manifest,
                    bypass,
                };
            }
            Making::Version { null, lock } => {
                let tag = VersionTag {
                    id: Seq(0),
                    null,
                    marker: false,
                    lock,
                };
                (tag, true, 0)
            }
            Making::Again {
                tag,
                current,
                modified_ms,
            } => (tag, current, modified_ms),
        };
        Op::PutVersion {
            bucket,
            key,
            tag,
            current,
            modified_ms,
            manifest,
        }
    }
}
