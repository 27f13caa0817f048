//! What S3 wants remembered of an object, as bytes of its manifest.
//!
//! A byte with the version, then fields: a tag (1 byte), a length (2), and so many bytes. Fields that are
//! there once stand once; metadata, tags and checksums stand once for each.
//!
//! Invariants:
//! - what is encoded fits a manifest, or is refused;
//! - what is decoded is all understood: a field of a newer version is an error, not left out, since who
//!   rewrites an object's tags writes the rest as well.

use ashlar_layout::limits::ATTRIBUTES_MAX;

use crate::acl::ObjectAcl;
use crate::checksum::{Algorithm, Checksum, Kind};
use crate::encryption::SealedKey;
use crate::refusal::{Refusal, refuse};
use crate::tags::Tags;

/// Version of the encoding.
const VERSION: u8 = 1;
/// Most bytes of names and values of a user's metadata.
pub const METADATA_MAX: usize = 2048;
/// Most bytes of the digests of parts that are kept.
const PART_DIGESTS_MAX: usize = 2048;
/// Most runs of equally long parts that are kept.
const PART_RUNS_MAX: usize = 128;

const CONTENT_TYPE: u8 = 1;
const CONTENT_ENCODING: u8 = 2;
const CONTENT_LANGUAGE: u8 = 3;
const CONTENT_DISPOSITION: u8 = 4;
const CACHE_CONTROL: u8 = 5;
const EXPIRES: u8 = 6;
const METADATA: u8 = 16;
const TAG: u8 = 17;
const CHECKSUM: u8 = 18;
const PART_RUNS: u8 = 19;
const PART_DIGESTS: u8 = 20;
const UPLOAD: u8 = 21;
const MODIFIED: u8 = 22;
const RENAMED: u8 = 23;
const ACL: u8 = 24;
const ENCRYPTION: u8 = 28;

/// The attributes of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `Content-Type`, as it was given.
    pub content_type: Option<String>,
    /// `Content-Encoding`, without `aws-chunked`.
    pub content_encoding: Option<String>,
    /// `Content-Language`
    pub content_language: Option<String>,
    /// `Content-Disposition`
    pub content_disposition: Option<String>,
    /// `Cache-Control`
    pub cache_control: Option<String>,
    /// `Expires`: any text.
    pub expires: Option<String>,
    /// A user's metadata: names in lower case, without `x-amz-meta-`.
    pub metadata: Vec<(String, String)>,
    /// Its tags.
    pub tags: Tags,
    /// Its checksums.
    pub checksums: Vec<Checksum>,
    /// The parts that it was uploaded in, if it was, and if they are regular enough to be kept.
    pub parts: Option<Parts>,
    /// The upload that it came from, if it came in parts.
    pub upload: Option<[u8; 16]>,
    /// When it was made, if its manifest was written anew since: milliseconds since 1970.
    pub modified_ms: Option<u64>,
    /// The token of the request that gave it its key, if one did that and had a token: see [`crate::rename::Token`].
    pub renamed: Option<[u8; 32]>,
    /// The key that its bytes are encrypted with, sealed, if they are.
    pub encryption: Option<SealedKey>,
    /// Whose it is, and who else may do what with it, if that is not the bucket's owner alone.
    pub acl: Option<ObjectAcl>,
}

/// The parts that an object was uploaded in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Runs of parts of the same length: how many, and how long.
    pub runs: Vec<(u16, u64)>,
    /// A digest of each, if they are kept: which one the object's checksum says.
    pub digests: Vec<Vec<u8>>,
}

impl Parts {
    /// Of parts of these lengths, with these digests. None if they are too irregular to be kept.
    pub fn new(lens: impl IntoIterator<Item = u64>, digests: Vec<Vec<u8>>) -> Option<Parts> {
        let mut runs: Vec<(u16, u64)> = Vec::new();
        for len in lens {
            match runs.last_mut() {
                Some((count, last)) if *last == len && *count < u16::MAX => *count += 1,
                _ => runs.push((1, len)),
            }
            if runs.len() > PART_RUNS_MAX {
                return None;
            }
        }
        let mut parts = Parts { runs, digests };
        let even = parts.digests.windows(2).all(|d| d[0].len() == d[1].len());
        let bytes: usize = parts.digests.iter().map(Vec::len).sum();
        if !even || bytes > PART_DIGESTS_MAX || parts.digests.len() != parts.count() {
            parts.digests.clear();
        }
        Some(parts)
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.runs.iter().map(|(count, _)| usize::from(*count)).sum()
    }

    /// Where part `number` (the first one is 1) begins, and how long it is.
    pub fn place(&self, number: usize) -> Option<(u64, u64)> {
        let mut before = number.checked_sub(1)? as u64;
        let mut at = 0u64;
        for (count, len) in &self.runs {
            let count = u64::from(*count);
            if before < count {
                return Some((at + before * len, *len));
            }
            before -= count;
            at = at.checked_add(count.checked_mul(*len)?)?;
        }
        None
    }
}

fn field(out: &mut Vec<u8>, tag: u8, bytes: &[&[u8]]) -> Result<(), Refusal> {
    let len: usize = bytes.iter().map(|part| part.len()).sum();
    match u16::try_from(len) {
        Ok(len) if out.len() + usize::from(len) + 3 <= ATTRIBUTES_MAX => {
            out.push(tag);
            out.extend_from_slice(&len.to_le_bytes());
            bytes.iter().for_each(|part| out.extend_from_slice(part));
            Ok(())
        }
        _ => refuse!(
            MetadataTooLarge,
            "The headers, metadata and tags of an object take at most {ATTRIBUTES_MAX} bytes together"
        ),
    }
}

/// Attributes that make no sense: damage that no checksum saw, or a newer version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("attributes that are none: {detail}")]
pub struct BadAttributes {
    /// What is wrong with them.
    pub detail: String,
}

fn bad<T>(detail: impl Into<String>) -> Result<T, BadAttributes> {
    Err(BadAttributes {
        detail: detail.into(),
    })
}

fn text(bytes: &[u8]) -> Result<String, BadAttributes> {
    match String::from_utf8(bytes.to_vec()) {
        Ok(text) => Ok(text),
        Err(error) => bad(error.to_string()),
    }
}

/// A name and a value with a zero byte between.
fn pair(bytes: &[u8]) -> Result<(String, String), BadAttributes> {
    match bytes.iter().position(|byte| *byte == 0) {
        Some(at) => Ok((text(&bytes[..at])?, text(&bytes[at + 1..])?)),
        None => bad("a pair without its middle"),
    }
}

fn algorithm_number(algorithm: Algorithm) -> u8 {
    match algorithm {
        Algorithm::Crc32 => 1,
        Algorithm::Crc32c => 2,
        Algorithm::Crc64Nvme => 3,
        Algorithm::Sha1 => 4,
        Algorithm::Sha256 => 5,
    }
}

fn checksum(bytes: &[u8]) -> Result<Checksum, BadAttributes> {
    let [algorithm, kind, p0, p1, digest @ ..] = bytes else {
        return bad("a checksum that is too short");
    };
    let numbered = |a: &Algorithm| algorithm_number(*a) == *algorithm;
    let kind = match kind {
        0 => Kind::FullObject,
        1 => Kind::Composite,
        _ => return bad("a checksum of an unknown kind"),
    };
    match Algorithm::ALL.into_iter().find(numbered) {
        Some(algorithm) if algorithm.digest_len() == digest.len() => Ok(Checksum {
            algorithm,
            kind,
            digest: digest.to_vec(),
            parts: u16::from_le_bytes([*p0, *p1]),
        }),
        _ => bad("a checksum of an unknown algorithm"),
    }
}

impl Attributes {
    /// As bytes of a manifest.
    pub fn encode(&self) -> Result<Vec<u8>, Refusal> {
        let named = |(name, value): &(String, String)| name.len() + value.len();
        if self.metadata.iter().map(named).sum::<usize>() > METADATA_MAX {
            return refuse!(
                MetadataTooLarge,
                "Your metadata headers exceed the maximum allowed metadata size"
            );
        }
        let mut out = vec![VERSION];
        for (tag, value) in self.headers() {
            if let Some(value) = value {
                field(&mut out, tag, &[value.as_bytes()])?;
            }
        }
        for (tag, pairs) in [(METADATA, &self.metadata), (TAG, &self.tags)] {
            for (name, value) in pairs {
                if name.contains('\0') {
                    return refuse!(InvalidArgument, "A name with a zero byte in it");
                }
                field(&mut out, tag, &[name.as_bytes(), &[0], value.as_bytes()])?;
            }
        }
        for checksum in &self.checksums {
            let kind = u8::from(checksum.kind == Kind::Composite);
            let [p0, p1] = checksum.parts.to_le_bytes();
            let head = [algorithm_number(checksum.algorithm), kind, p0, p1];
            field(&mut out, CHECKSUM, &[&head, &checksum.digest])?;
        }
        if let Some(parts) = &self.parts {
            let mut runs = Vec::new();
            for (count, len) in &parts.runs {
                runs.extend_from_slice(&count.to_le_bytes());
                runs.extend_from_slice(&len.to_le_bytes());
            }
            field(&mut out, PART_RUNS, &[&runs])?;
            if let Some(first) = parts.digests.first() {
                // A digest has 32 bytes at most.
                let len = [first.len() as u8];
                let digests = parts.digests.concat();
                field(&mut out, PART_DIGESTS, &[&len, &digests])?;
            }
        }
        if let Some(upload) = &self.upload {
            field(&mut out, UPLOAD, &[upload])?;
        }
        if let Some(modified_ms) = self.modified_ms {
            field(&mut out, MODIFIED, &[&modified_ms.to_le_bytes()])?;
        }
        if let Some(renamed) = &self.renamed {
            field(&mut out, RENAMED, &[renamed])?;
        }
        if let Some(sealed) = &self.encryption {
            field(&mut out, ENCRYPTION, &[&sealed.encode()])?;
        }
        if let Some(acl) = &self.acl {
            field(&mut out, ACL, &[&acl.encode()?])?;
        }
        Ok(out)
    }

    /// The same; of the parts only what there is room for. Their digests go first, then their lengths: an
    /// object is whole without them, and nobody chose how long they are.
    pub fn encode_fitting(&mut self) -> Result<Vec<u8>, Refusal> {
        if let Ok(bytes) = self.encode() {
            return Ok(bytes);
        }
        if let Some(parts) = &mut self.parts {
            parts.digests.clear();
            if let Ok(bytes) = self.encode() {
                return Ok(bytes);
            }
        }
        self.parts = None;
        self.encode()
    }

    fn headers(&self) -> [(u8, &Option<String>); 6] {
        [
            (CONTENT_TYPE, &self.content_type),
            (CONTENT_ENCODING, &self.content_encoding),
            (CONTENT_LANGUAGE, &self.content_language),
            (CONTENT_DISPOSITION, &self.content_disposition),
            (CACHE_CONTROL, &self.cache_control),
            (EXPIRES, &self.expires),
        ]
    }

    /// From a manifest's bytes; of an object that came from elsewhere there are none.
    pub fn decode(bytes: &[u8]) -> Result<Attributes, BadAttributes> {
        let mut all = Attributes::default();
        let mut rest = match bytes {
            [] => return Ok(all),
            [VERSION, rest @ ..] => rest,
            [version, ..] => return bad(format!("version {version}")),
        };
        while let [tag, l0, l1, behind @ ..] = rest {
            let len = usize::from(u16::from_le_bytes([*l0, *l1]));
            let Some((value, behind)) = behind.split_at_checked(len) else {
                return bad("a field that ends early");
            };
            all.take(*tag, value)?;
            rest = behind;
        }
        if rest.is_empty() {
            Ok(all)
        } else {
            bad("a field without a length")
        }
    }

    fn take(&mut self, tag: u8, value: &[u8]) -> Result<(), BadAttributes> {
        match tag {
            CONTENT_TYPE => self.content_type = Some(text(value)?),
            CONTENT_ENCODING => self.content_encoding = Some(text(value)?),
            CONTENT_LANGUAGE => self.content_language = Some(text(value)?),
            CONTENT_DISPOSITION => self.content_disposition = Some(text(value)?),
            CACHE_CONTROL => self.cache_control = Some(text(value)?),
            EXPIRES => self.expires = Some(text(value)?),
            METADATA => self.metadata.push(pair(value)?),
            TAG => self.tags.push(pair(value)?),
            CHECKSUM => self.checksums.push(checksum(value)?),
            PART_RUNS => {
                let mut runs = Vec::new();
                for run in value.chunks(10) {
                    let Ok(run) = <[u8; 10]>::try_from(run) else {
                        return bad("a run of parts that ends early");
                    };
                    let [c0, c1, len @ ..] = run;
                    runs.push((u16::from_le_bytes([c0, c1]), u64::from_le_bytes(len)));
                }
                self.parts.get_or_insert_default().runs = runs;
            }
            PART_DIGESTS => {
                let digests = match value {
                    [len, digests @ ..] if *len > 0 => digests.chunks(usize::from(*len)),
                    _ => return bad("digests of parts without a length"),
                };
                let digests = digests.map(<[u8]>::to_vec).collect();
                self.parts.get_or_insert_default().digests = digests;
            }
            UPLOAD => match value.try_into() {
                Ok(upload) => self.upload = Some(upload),
                Err(_) => return bad("an upload's name of another length"),
            },
            MODIFIED => match value.try_into() {
                Ok(ms) => self.modified_ms = Some(u64::from_le_bytes(ms)),
                Err(_) => return bad("a time of another length"),
            },
            RENAMED => match value.try_into() {
                Ok(renamed) => self.renamed = Some(renamed),
                Err(_) => return bad("a token of another length"),
            },
            ENCRYPTION => match SealedKey::decode(value) {
                Some(sealed) => self.encryption = Some(sealed),
                None => return bad("a sealed key that is none"),
            },
            ACL => match ObjectAcl::decode(value) {
                Some(acl) => self.acl = Some(acl),
                None => return bad("an ACL that is none"),
            },
            other => return bad(format!("a field of the unknown kind {other}")),
        }
        Ok(())
    }

    /// The checksum that is told first.
    pub fn checksum(&self) -> Option<&Checksum> {
        self.checksums.first()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::acl::Grant;
    use crate::checksum::digest;
    use crate::refusal::Code;

    fn full() -> Attributes {
        let text = |text: &str| Some(text.to_owned());
        Attributes {
            content_type: text("text/plain; charset=utf-8"),
            content_encoding: text("gzip"),
            content_language: text("de, en"),
            content_disposition: text("attachment; filename=\"ä\""),
            cache_control: text("no-cache"),
            expires: text("tomorrow"),
            metadata: vec![("a".into(), "ä b".into()), ("".into(), "".into())],
            tags: vec![("k".into(), "v".into()), ("k2".into(), "".into())],
            checksums: vec![
                Checksum::full(Algorithm::Crc32, digest(Algorithm::Crc32, b"x")),
                Checksum {
                    kind: Kind::Composite,
                    parts: 3,
                    ..Checksum::full(Algorithm::Sha256, digest(Algorithm::Sha256, b"x"))
                },
            ],
            parts: Parts::new([5, 5, 7], vec![vec![1; 4], vec![2; 4], vec![3; 4]]),
            upload: Some([9; 16]),
            modified_ms: Some(1_700_000_000_123),
            renamed: Some([7; 32]),
            encryption: SealedKey::decode(&[1; 73]),
            acl: Some(acl()),
        }
    }

    fn acl() -> ObjectAcl {
        ObjectAcl {
            owner: Some("000000000001".into()),
            grants: vec![Grant::all_to("000000000258")],
        }
    }

    #[test]
    fn there_and_back() {
        for attributes in [Attributes::default(), full()] {
            let bytes = attributes.encode().unwrap();
            assert_eq!(Attributes::decode(&bytes).unwrap(), attributes);
        }
        assert_eq!(Attributes::decode(&[]).unwrap(), Attributes::default());
        assert_eq!(Attributes::default().encode().unwrap(), [1]);
    }

    #[test]
    fn parts_give_way() {
        let with = |header: usize| {
            let mut all = Attributes {
                content_disposition: Some("x".repeat(header)),
                parts: Parts::new((0..100).map(|n| n % 7), vec![vec![1; 20]; 100]),
                upload: Some([9; 16]),
                ..Attributes::default()
            };
            let bytes = all.encode_fitting().unwrap();
            assert!(bytes.len() <= ATTRIBUTES_MAX);
            assert_eq!(Attributes::decode(&bytes).unwrap(), all);
            let digests = all.parts.as_ref().map(|parts| parts.digests.len());
            (digests, all.upload.is_some())
        };
        assert_eq!(with(10), (Some(100), true));
        assert_eq!(with(ATTRIBUTES_MAX - 2000), (Some(0), true));
        assert_eq!(with(ATTRIBUTES_MAX - 200), (None, true));
        let mut too_much = Attributes {
            content_disposition: Some("x".repeat(ATTRIBUTES_MAX)),
            ..Attributes::default()
        };
        let refused = too_much.encode_fitting().unwrap_err();
        assert_eq!(refused.code, Code::MetadataTooLarge);
    }

    /// The bytes stand in manifests on devices: they may not change.
    #[test]
    fn the_bytes_stand() {
        let attributes = Attributes {
            content_type: Some("a/b".into()),
            metadata: vec![("m".into(), "n".into())],
            tags: vec![("t".into(), "".into())],
            checksums: vec![Checksum::full(Algorithm::Crc32c, vec![1, 2, 3, 4])],
            parts: Parts::new([5, 5], vec![]),
            modified_ms: Some(258),
            renamed: Some([7; 32]),
            encryption: SealedKey::decode(&[2; 73]),
            acl: Some(acl()),
            ..Attributes::default()
        };
        let expected = [
            &[1][..],
            &[1, 3, 0, b'a', b'/', b'b'],
            &[16, 3, 0, b'm', 0, b'n'],
            &[17, 2, 0, b't', 0],
            &[18, 8, 0, 2, 0, 0, 0, 1, 2, 3, 4],
            &[19, 10, 0, 2, 0, 5, 0, 0, 0, 0, 0, 0, 0],
            &[22, 8, 0, 2, 1, 0, 0, 0, 0, 0, 0],
            &[23, 32, 0],
            &[7; 32],
            &[28, 73, 0],
            &[2; 73],
            &[24, 11, 0, 1, 0, 0, 0, 0, 0x34, 2, 1, 0, 0, 0],
        ]
        .concat();
        assert_eq!(attributes.encode().unwrap(), expected);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut attributes = full();
        attributes.metadata = vec![("a".into(), "b".repeat(METADATA_MAX - 1))];
        attributes.encode().unwrap();
        attributes.metadata[0].1.push('b');
        assert_eq!(
            attributes.encode().unwrap_err().code,
            Code::MetadataTooLarge
        );
        let mut attributes = full();
        attributes.content_type = Some("t".repeat(ATTRIBUTES_MAX));
        assert_eq!(
            attributes.encode().unwrap_err().code,
            Code::MetadataTooLarge
        );
        let mut attributes = full();
        attributes.tags[0].0 = "a\0b".into();
        assert_eq!(attributes.encode().unwrap_err().code, Code::InvalidArgument);
    }

    #[test]
    fn damage_is_an_error() {
        let bytes = full().encode().unwrap();
        for len in 1..bytes.len() {
            // Where a field ends is an end as well.
            if let Ok(less) = Attributes::decode(&bytes[..len]) {
                assert_ne!(less, full());
            }
        }
        for bytes in [
            &[2][..],
            &[1, 1],
            &[1, 99, 0, 0],
            &[1, 16, 1, 0, b'a'],
            &[1, 1, 1, 0, 0xff],
            &[1, 28, 1, 0, 1],
            &[1, 24, 1, 0, 0],
        ] {
            Attributes::decode(bytes).unwrap_err();
        }
    }

    #[test]
    fn where_parts_are() {
        let parts = Parts::new([5, 5, 7, 0, 0, 9], vec![]).unwrap();
        assert_eq!(parts.count(), 6);
        let places: Vec<_> = (0..8).map(|n| parts.place(n)).collect();
        let some = |at, len| Some((at, len));
        assert_eq!(
            places,
            [
                None,
                some(0, 5),
                some(5, 5),
                some(10, 7),
                some(17, 0),
                some(17, 0),
                some(17, 9),
                None
            ]
        );
        // Ten thousand of one length are one run; digests of all of them are too many.
        let digests = vec![vec![1; 4]; 10_000];
        let parts = Parts::new(vec![5 << 20; 10_000], digests).unwrap();
        assert_eq!((parts.runs.len(), parts.digests.len()), (1, 0));
        assert_eq!(parts.place(10_000), some(9999 * (5 << 20), 5 << 20));
        assert_eq!(Parts::new(0..200, vec![]), None);
    }

    proptest! {
        #[test]
        fn anything_is_taken(bytes: Vec<u8>) {
            let _ = Attributes::decode(&bytes);
            let versioned = [&[VERSION], &bytes[..]].concat();
            let _ = Attributes::decode(&versioned);
        }
    }
}
