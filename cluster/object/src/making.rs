//! How an object is made: as the one that there is, or as a version among others.

use ashlar_layout::ids::Seq;
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
            Making::Version { null } => {
                let tag = VersionTag {
                    id: Seq(0),
                    null,
                    marker: false,
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
