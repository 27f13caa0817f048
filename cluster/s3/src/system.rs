//! Where the gateway's own objects stand: in the reserved bucket, under keys that are made here.
//!
//! Invariants:
//! - no key of two different things is the same, and each is a key that the store takes;
//! - a bucket's uploads stand in the order of their keys, but for keys that are long and begin alike.

use ashlar_layout::limits::KEY_MAX;
use ashlar_layout::lock::Lock;
use ashlar_layout::names::SYSTEM_PARTS;
use serde::{Deserialize, Serialize};

use crate::attributes::{Attributes, BadAttributes};
use crate::bucket::{BadDocument, from_json, to_json};
use crate::checksum::{Algorithm, Kind, digest};
use crate::listing::behind;
use crate::refusal::Refusal;
use crate::text::{from_base64, from_hex, to_base64, to_hex};

/// Version of the documents.
pub const VERSION: u32 = 1;
/// Largest record of an upload, in bytes.
const RECORD_MAX: usize = 32 * 1024;
/// Most bytes of an object's key that stand in the key of an upload as they are.
const KEPT: usize = 850;
/// Most parts of an upload.
pub const PARTS_MAX: u16 = 10_000;

/// Between a key and an upload's id: less than any other character.
const BETWEEN: char = '\0';

/// The key of a bucket's document.
pub fn bucket_key(bucket: &str) -> String {
    format!("buckets/{bucket}")
}

/// What the keys of all buckets' documents begin with.
pub const BUCKETS: &str = "buckets/";

/// The key of a user's document.
pub fn user_key(name: &str) -> String {
    format!("users/{name}")
}

/// What the keys of all users' documents begin with.
pub const USERS: &str = "users/";

/// The key of a key's document.
pub fn key_key(id: &str) -> String {
    format!("keys/{id}")
}

/// The name of an upload: when it began, and a random number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadId(pub [u8; 16]);

impl UploadId {
    /// Of an upload that begins now.
    pub fn new(now_ms: u64, seed: [u8; 8]) -> UploadId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&now_ms.to_be_bytes());
        id[8..].copy_from_slice(&seed);
        UploadId(id)
    }

    /// As it is written.
    pub fn to_text(self) -> String {
        to_hex(&self.0)
    }

    /// When it began, milliseconds since 1970.
    pub fn begun_ms(self) -> u64 {
        let mut ms = [0; 8];
        ms.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(ms)
    }

    /// From what was written; None if it was not.
    pub fn parse(text: &str) -> Option<UploadId> {
        let bytes: [u8; 16] = from_hex(text)?.try_into().ok()?;
        let id = UploadId(bytes);
        (id.to_text() == text).then_some(id)
    }
}

/// What the keys of a bucket's uploads begin with, if the objects' keys begin with `prefix`.
pub fn uploads_prefix(bucket: &str, prefix: &str) -> String {
    let kept = cut(prefix, KEPT);
    format!("uploads/{bucket}/{kept}")
}

fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The key of an upload's record.
pub fn upload_key(bucket: &str, key: &str, id: UploadId) -> String {
    let kept = cut(key, KEPT);
    let tail = if kept.len() < key.len() {
        // Keys that begin alike are told apart.
        to_hex(&digest(Algorithm::Sha256, key.as_bytes())[..16])
    } else {
        String::new()
    };
    format!("uploads/{bucket}/{kept}{tail}{BETWEEN}{}", id.to_text())
}

/// What the keys of all uploads' records begin with.
pub const UPLOADS: &str = "uploads/";

/// What the keys of all records begin with that are about making objects longer.
pub const APPENDS: &str = "appends/";

/// Where to go on listing uploads behind those of `key` up to `id`; of all of them if there is no id.
pub fn upload_marker(bucket: &str, key: &str, id: Option<UploadId>) -> String {
    let id = id.unwrap_or(UploadId([0xff; 16]));
    upload_key(bucket, key, id)
}

/// Where to go on listing uploads behind all of objects whose keys begin with `prefix`; None if others may stand among
/// those.
pub fn behind_uploads(bucket: &str, prefix: &str) -> Option<String> {
    match prefix.len() <= KEPT {
        true => behind(&uploads_prefix(bucket, prefix)),
        false => None,
    }
}

/// The key of a part that is uploaded now. A number that is uploaded again displaces nothing: which one
/// counts is decided when the parts are put together.
pub fn part_key(id: UploadId, number: u16, attempt: [u8; 8]) -> String {
    format!(
        "{SYSTEM_PARTS}{}/{number:05}/{}",
        id.to_text(),
        to_hex(&attempt)
    )
}

/// What the keys of an upload's parts begin with.
pub fn parts_prefix(id: UploadId) -> String {
    format!("{SYSTEM_PARTS}{}/", id.to_text())
}

/// Behind what to go on listing parts after part `number`.
pub fn part_marker(id: UploadId, number: u16) -> String {
    // Attempts are hexadecimal.
    format!("{SYSTEM_PARTS}{}/{number:05}/g", id.to_text())
}

/// The number of the part that has this key.
pub fn part_number(key: &str) -> Option<u16> {
    let mut fields = key.split('/').skip(2);
    let number = fields.next()?.parse().ok()?;
    fields.next().and(Some(number))
}

/// The upload of the part that has this key.
pub fn upload_of_part(key: &str) -> Option<UploadId> {
    let (id, _) = key.strip_prefix(SYSTEM_PARTS)?.split_once('/')?;
    UploadId::parse(id)
}

/// The upload whose record has this key, of whatever kind.
pub fn upload_of_record(key: &str) -> Option<UploadId> {
    let (_, id) = key.rsplit_once([BETWEEN, '/'])?;
    UploadId::parse(id)
}

/// How an upload stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum UploadState {
    /// Parts may come.
    Open,
    /// Its parts are being put together, since then. Their stripes are the object's from now on: nobody
    /// may free them.
    Completing {
        /// Milliseconds since 1970.
        since_ms: u64,
    },
    /// It is an object, or may be one, and no more parts come of it: their names are being taken away, and
    /// their stripes stay. Whoever was putting it together has lost it.
    Made,
    /// It was given up: its parts are being freed.
    Aborting,
}

impl UploadState {
    /// Whether its parts are there to be named.
    pub fn has_parts(self) -> bool {
        matches!(self, UploadState::Open | UploadState::Completing { .. })
    }
}

/// The record of an upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UploadRecord {
    /// Of the document.
    pub version: u32,
    /// The bucket.
    pub bucket: String,
    /// The object's key, whole.
    pub key: String,
    /// The upload's id.
    pub id: String,
    /// The account that began it.
    pub owner: String,
    /// When it began, milliseconds since 1970.
    pub begun_ms: u64,
    /// How it stands.
    pub state: UploadState,
    /// Which checksum the parts have, if one was named,
    pub algorithm: Option<String>,
    /// and what is to be made of them.
    pub kind: Option<String>,
    /// What is to be remembered of the object, as a manifest has it, in base64.
    pub attributes: String,
    /// The lock that was asked for.
    #[serde(default, skip_serializing_if = "Lock::is_none")]
    pub lock: Lock,
    /// Whether an object is made longer by its parts: no client knows of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub append: bool,
}

impl UploadRecord {
    /// Of an upload that begins now, milliseconds since 1970, with nothing asked for.
    pub fn new(bucket: &str, key: &str, id: UploadId, owner: &str, now_ms: u64) -> UploadRecord {
        UploadRecord {
            version: VERSION,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            id: id.to_text(),
            owner: owner.to_owned(),
            begun_ms: now_ms,
            state: UploadState::Open,
            algorithm: None,
            kind: None,
            attributes: String::new(),
            lock: Lock::NONE,
            append: false,
        }
    }

    /// As bytes.
    pub fn encode(&self) -> Result<Vec<u8>, Refusal> {
        to_json(self, RECORD_MAX)
    }

    /// From its bytes.
    pub fn decode(bytes: &[u8]) -> Result<UploadRecord, BadDocument> {
        from_json(bytes, VERSION)
    }

    /// The record's key. Those of uploads stand in the order in which they are listed.
    pub fn stands_at(&self, id: UploadId) -> String {
        match self.append {
            true => format!("{APPENDS}{}", id.to_text()),
            false => upload_key(&self.bucket, &self.key, id),
        }
    }

    /// What is to be remembered of the object.
    pub fn attributes(&self) -> Result<Attributes, BadAttributes> {
        Attributes::decode(&from_base64(&self.attributes).unwrap_or_default())
    }

    /// Keeps what is to be remembered of the object.
    pub fn set_attributes(&mut self, attributes: &Attributes) -> Result<(), Refusal> {
        self.attributes = to_base64(&attributes.encode()?);
        Ok(())
    }

    /// Which checksum the parts have, and what is made of them.
    pub fn checksum(&self) -> Option<(Algorithm, Kind)> {
        let algorithm = Algorithm::parse(self.algorithm.as_deref()?).ok()?;
        let kind = self.kind.as_deref().and_then(|kind| Kind::parse(kind).ok());
        Some((algorithm, kind.unwrap_or(algorithm.default_kind())))
    }
}

const _: () = assert!("uploads//".len() + 63 + KEPT + 32 + 1 + 32 <= KEY_MAX);

#[cfg(test)]
mod tests {
    use ashlar_layout::names::check_key;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys() {
        let id = UploadId::new(1_700_000_000_000, [7; 8]);
        assert_eq!(UploadId::parse(&id.to_text()), Some(id));
        for bad in ["", "x", &id.to_text()[1..], &id.to_text().to_uppercase()] {
            assert_eq!(UploadId::parse(bad), None, "{bad}");
        }
        let part = part_key(id, 7, [1; 8]);
        assert_eq!(part_number(&part), Some(7));
        // Nobody moves the stripes of those.
        assert!(part.starts_with(ashlar_layout::names::SYSTEM_PARTS));
        assert!(part.starts_with(&parts_prefix(id)) && part < part_marker(id, 7));
        assert!(part_marker(id, 7) < part_key(id, 8, [0; 8]));
        assert_eq!(part_number("parts/x/abc/1"), None);
        assert_eq!(id.begun_ms(), 1_700_000_000_000);
        assert_eq!(upload_of_part(&part), Some(id));
        let long = "x\0/".repeat(300);
        for key in ["k", "a/b\0c", &long] {
            let of_upload = UploadRecord::new("b", key, id, "1", 5);
            let of_append = UploadRecord {
                append: true,
                ..of_upload.clone()
            };
            for (record, prefix) in [(of_upload, UPLOADS), (of_append, APPENDS)] {
                let stands_at = record.stands_at(id);
                assert!(stands_at.starts_with(prefix), "{stands_at}");
                assert_eq!(upload_of_record(&stands_at), Some(id));
            }
        }
        for other in ["", "uploads/b/k", "parts/x/00001/1", "appends/x"] {
            assert_eq!(
                (upload_of_part(other), upload_of_record(other)),
                (None, None)
            );
        }
        assert!(UploadId::new(1, [9; 8]) < UploadId::new(2, [0; 8]));
    }

    #[test]
    fn records() {
        let id = UploadId::new(5, [1; 8]);
        let mut record = UploadRecord {
            algorithm: Some("CRC32".into()),
            ..UploadRecord::new("b", "k\0ä", id, "111111111111", 5)
        };
        let attributes = Attributes {
            content_type: Some("a/b".into()),
            ..Attributes::default()
        };
        record.set_attributes(&attributes).unwrap();
        for state in [
            UploadState::Open,
            UploadState::Completing { since_ms: 9 },
            UploadState::Made,
            UploadState::Aborting,
        ] {
            record.state = state;
            let read = UploadRecord::decode(&record.encode().unwrap()).unwrap();
            assert_eq!(read, record);
            assert_eq!(read.attributes().unwrap(), attributes);
        }
        assert_eq!(record.checksum(), Some((Algorithm::Crc32, Kind::Composite)));
        record.kind = Some("FULL_OBJECT".into());
        assert_eq!(
            record.checksum(),
            Some((Algorithm::Crc32, Kind::FullObject))
        );
        record.algorithm = None;
        assert_eq!(record.checksum(), None);
    }

    proptest! {
        /// Uploads stand in the order of their objects' keys, then in that in which they began.
        #[test]
        fn the_order_of_uploads(a in "[a-c/ä]{1,6}", b in "[a-c/ä]{1,6}", n in 0u64..3, m in 0u64..3) {
            let key = |key: &str, n| upload_key("bucket", key, UploadId::new(n, [0; 8]));
            prop_assert_eq!(key(&a, n).cmp(&key(&b, m)), (&a, n).cmp(&(&b, m)));
            let marker = upload_marker("bucket", &a, None);
            prop_assert_eq!(marker < key(&b, m), a < b);
            let behind = behind_uploads("bucket", &a).unwrap();
            prop_assert_eq!(behind < key(&b, m), a < b && !b.starts_with(&a));
        }

        #[test]
        fn long_keys_are_told_apart(len in 1usize..1024, c in "[aä€]") {
            let id = UploadId::new(1, [0; 8]);
            let text = c.repeat(len);
            prop_assume!(text.len() < KEY_MAX);
            let longer = format!("{text}x");
            let key = |text: &str| upload_key(&"b".repeat(63), text, id);
            check_key(&key(&text)).unwrap();
            check_key(&key(&longer)).unwrap();
            prop_assert_ne!(key(&text), key(&longer));
            prop_assert!(key(&text).starts_with(&uploads_prefix(&"b".repeat(63), &text)));
            let behind = behind_uploads(&"b".repeat(63), &text);
            prop_assert_eq!(behind.is_some(), text.len() <= KEPT);
            prop_assert!(behind.is_none_or(|behind| key(&longer) < behind));
        }
    }
}
