//! Digests that S3 knows: those that a client sends to be checked, and keeps with the object.
//!
//! Invariant: a checksum that was sent is compared with what came before anything is acknowledged; this
//! module says what it should have been, its caller sees to the order.

use std::fmt;

use crc_fast::CrcAlgorithm;
use md5::{Digest as _, Md5};
use sha1::Sha1;
use sha2::Sha256;

use crate::crc_combine::{CRC32, CRC32C, CRC64_NVME};
use crate::refusal::{Refusal, refuse};
use crate::text::{from_base64, to_base64};

/// A digest that an object can have beside its ETag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// CRC-32, as in zip.
    Crc32,
    /// CRC-32C, as in iSCSI.
    Crc32c,
    /// CRC-64, as in NVMe: what is made if nobody asks for one.
    Crc64Nvme,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
}

/// What a checksum of an object of parts is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// All of its bytes.
    FullObject,
    /// The checksums of its parts.
    Composite,
}

impl Kind {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::FullObject => "FULL_OBJECT",
            Kind::Composite => "COMPOSITE",
        }
    }

    /// The one of this name.
    pub fn parse(name: &str) -> Result<Kind, Refusal> {
        match name {
            "FULL_OBJECT" => Ok(Kind::FullObject),
            "COMPOSITE" => Ok(Kind::Composite),
            _ => refuse!(
                InvalidRequest,
                "Value for x-amz-checksum-type header is invalid."
            ),
        }
    }
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Algorithm; 5] = [
        Algorithm::Crc32,
        Algorithm::Crc32c,
        Algorithm::Crc64Nvme,
        Algorithm::Sha1,
        Algorithm::Sha256,
    ];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Crc32 => "CRC32",
            Algorithm::Crc32c => "CRC32C",
            Algorithm::Crc64Nvme => "CRC64NVME",
            Algorithm::Sha1 => "SHA1",
            Algorithm::Sha256 => "SHA256",
        }
    }

    /// The header that carries it.
    pub fn header(self) -> &'static str {
        match self {
            Algorithm::Crc32 => "x-amz-checksum-crc32",
            Algorithm::Crc32c => "x-amz-checksum-crc32c",
            Algorithm::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Algorithm::Sha1 => "x-amz-checksum-sha1",
            Algorithm::Sha256 => "x-amz-checksum-sha256",
        }
    }

    /// The one of this name, in any case.
    pub fn parse(name: &str) -> Result<Algorithm, Refusal> {
        let of = Algorithm::ALL.into_iter();
        match of.clone().find(|a| a.as_str().eq_ignore_ascii_case(name)) {
            Some(algorithm) => Ok(algorithm),
            None => refuse!(
                InvalidRequest,
                "Checksum algorithm provided is unsupported. Please try again with any of the valid \
                 types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]"
            ),
        }
    }

    /// The one whose header this is, given in lower case.
    pub fn of_header(name: &str) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|a| a.header() == name)
    }

    /// Bytes of its digest.
    pub fn digest_len(self) -> usize {
        match self {
            Algorithm::Crc32 | Algorithm::Crc32c => 4,
            Algorithm::Crc64Nvme => 8,
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 => 32,
        }
    }

    /// What is made of parts if nobody says: what is compatible with all.
    pub fn default_kind(self) -> Kind {
        match self {
            Algorithm::Crc64Nvme => Kind::FullObject,
            _ => Kind::Composite,
        }
    }

    /// Whether a checksum of parts can be of this kind.
    pub fn takes(self, kind: Kind) -> bool {
        match (self, kind) {
            (Algorithm::Crc32 | Algorithm::Crc32c, _) => true,
            (Algorithm::Crc64Nvme, kind) => kind == Kind::FullObject,
            (Algorithm::Sha1 | Algorithm::Sha256, kind) => kind == Kind::Composite,
        }
    }

    /// The digest that a header's value is.
    pub fn parse_digest(self, value: &str) -> Result<Vec<u8>, Refusal> {
        match from_base64(value) {
            Some(digest) if digest.len() == self.digest_len() => Ok(digest),
            _ => refuse!(
                InvalidRequest,
                "Value for {} header is invalid.",
                self.header()
            ),
        }
    }
}

/// A checksum of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Which digest.
    pub algorithm: Algorithm,
    /// Of what.
    pub kind: Kind,
    /// The digest.
    pub digest: Vec<u8>,
    /// Of a composite one: how many parts.
    pub parts: u16,
}

impl Checksum {
    /// Of a whole object.
    pub fn full(algorithm: Algorithm, digest: Vec<u8>) -> Checksum {
        Checksum {
            algorithm,
            kind: Kind::FullObject,
            digest,
            parts: 0,
        }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_base64(&self.digest))?;
        match self.kind {
            Kind::FullObject => Ok(()),
            Kind::Composite => write!(f, "-{}", self.parts),
        }
    }
}

/// The digest that a Content-MD5 is.
pub fn parse_content_md5(value: &str) -> Result<[u8; 16], Refusal> {
    match from_base64(value).map(<[u8; 16]>::try_from) {
        Some(Ok(digest)) => Ok(digest),
        _ => refuse!(InvalidDigest, "The Content-MD5 you specified is not valid."),
    }
}

/// A digest in the making.
#[derive(Clone, Debug)]
enum State {
    Crc(CrcAlgorithm, crc_fast::Digest),
    Sha1(Sha1),
    Sha256(Sha256),
}

impl State {
    fn new(algorithm: Algorithm) -> State {
        let crc = |name| State::Crc(name, crc_fast::Digest::new(name));
        match algorithm {
            Algorithm::Crc32 => crc(CrcAlgorithm::Crc32IsoHdlc),
            Algorithm::Crc32c => crc(CrcAlgorithm::Crc32Iscsi),
            Algorithm::Crc64Nvme => crc(CrcAlgorithm::Crc64Nvme),
            Algorithm::Sha1 => State::Sha1(Sha1::new()),
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            State::Crc(_, digest) => digest.update(bytes),
            State::Sha1(digest) => digest.update(bytes),
            State::Sha256(digest) => digest.update(bytes),
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            State::Crc(CrcAlgorithm::Crc64Nvme, digest) => digest.finalize().to_be_bytes().to_vec(),
            State::Crc(_, digest) => digest.finalize().to_be_bytes()[4..].to_vec(),
            State::Sha1(digest) => digest.finalize().to_vec(),
            State::Sha256(digest) => digest.finalize().to_vec(),
        }
    }
}

/// Digests of a body as it comes: its MD5, and those that were asked for.
#[derive(Clone, Debug)]
pub struct Hasher {
    md5: Md5,
    others: Vec<(Algorithm, State)>,
    bytes: u64,
}

/// What a [`Hasher`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    /// Bytes in all.
    pub bytes: u64,
    /// Their MD5.
    pub md5: [u8; 16],
    /// The others.
    pub others: Vec<(Algorithm, Vec<u8>)>,
}

impl Digests {
    /// The digest of this algorithm, if it was made.
    pub fn get(&self, algorithm: Algorithm) -> Option<&[u8]> {
        let found = self.others.iter().find(|(a, _)| *a == algorithm);
        found.map(|(_, digest)| digest.as_slice())
    }

    /// Checks a digest that was sent.
    pub fn check(&self, algorithm: Algorithm, sent: &[u8]) -> Result<(), Refusal> {
        match self.get(algorithm) {
            Some(digest) if digest == sent => Ok(()),
            _ => refuse!(
                BadDigest,
                "The {} you specified did not match the calculated checksum.",
                algorithm.as_str()
            ),
        }
    }

    /// Checks a Content-MD5 that was sent.
    pub fn check_md5(&self, sent: &[u8; 16]) -> Result<(), Refusal> {
        if self.md5 == *sent {
            return Ok(());
        }
        refuse!(
            BadDigest,
            "The Content-MD5 you specified did not match what we received."
        )
    }
}

impl Hasher {
    /// Of the MD5 and these.
    pub fn new(algorithms: impl IntoIterator<Item = Algorithm>) -> Hasher {
        let mut others: Vec<(Algorithm, State)> = Vec::new();
        for algorithm in algorithms {
            if others.iter().all(|(a, _)| *a != algorithm) {
                others.push((algorithm, State::new(algorithm)));
            }
        }
        Hasher {
            md5: Md5::new(),
            others,
            bytes: 0,
        }
    }

    /// Takes more of the body.
    pub fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.md5.update(bytes);
        for (_, state) in &mut self.others {
            state.update(bytes);
        }
    }

    /// The digests of all that came.
    pub fn finish(self) -> Digests {
        let others = self.others.into_iter();
        Digests {
            bytes: self.bytes,
            md5: self.md5.finalize().into(),
            others: others.map(|(a, state)| (a, state.finish())).collect(),
        }
    }
}

/// The digest of bytes at hand.
pub fn digest(algorithm: Algorithm, bytes: &[u8]) -> Vec<u8> {
    let mut state = State::new(algorithm);
    state.update(bytes);
    state.finish()
}

/// The MD5 of bytes at hand.
pub fn md5(bytes: &[u8]) -> [u8; 16] {
    Md5::digest(bytes).into()
}

/// The MD5 of the MD5s of parts: what the ETag of an object of parts is made of.
pub fn md5_of_parts<'a>(parts: impl Iterator<Item = &'a [u8; 16]>) -> [u8; 16] {
    let mut all = Md5::new();
    parts.for_each(|part| all.update(part));
    all.finalize().into()
}

/// The checksum of an object of parts, each with its digest and its length.
pub fn checksum_of_parts(algorithm: Algorithm, kind: Kind, parts: &[(Vec<u8>, u64)]) -> Checksum {
    let digest = match kind {
        Kind::Composite => {
            let mut state = State::new(algorithm);
            parts.iter().for_each(|(digest, _)| state.update(digest));
            state.finish()
        }
        Kind::FullObject => {
            let polynomial = match algorithm {
                Algorithm::Crc32 => CRC32,
                Algorithm::Crc32c => CRC32C,
                _ => CRC64_NVME,
            };
            let number = |digest: &[u8]| digest.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
            let crc = parts.iter().fold(0, |crc, (digest, len)| {
                polynomial.combine(crc, number(digest), *len)
            });
            crc.to_be_bytes()[8 - algorithm.digest_len().min(8)..].to_vec()
        }
    };
    Checksum {
        algorithm,
        kind,
        digest,
        parts: u16::try_from(parts.len()).unwrap_or(u16::MAX),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::to_hex;

    #[test]
    fn the_check_values_of_all_digests() {
        for (algorithm, expected) in [
            (Algorithm::Crc32, "cbf43926"),
            (Algorithm::Crc32c, "e3069283"),
            (Algorithm::Crc64Nvme, "ae8b14860a799888"),
            (Algorithm::Sha1, "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
            (
                Algorithm::Sha256,
                "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
            ),
        ] {
            assert_eq!(to_hex(&digest(algorithm, b"123456789")), expected);
            assert_eq!(expected.len(), 2 * algorithm.digest_len());
            let sent = to_base64(&digest(algorithm, b"123456789"));
            assert_eq!(
                algorithm.parse_digest(&sent).unwrap(),
                digest(algorithm, b"123456789")
            );
            assert!(algorithm.parse_digest("AAA=").is_err());
            assert!(algorithm.parse_digest(&sent[1..]).is_err());
            assert_eq!(Algorithm::parse(algorithm.as_str()), Ok(algorithm));
            assert_eq!(Algorithm::of_header(algorithm.header()), Some(algorithm));
            assert!(algorithm.takes(algorithm.default_kind()));
        }
        assert_eq!(
            to_hex(&md5(b"123456789")),
            "25f9e794323b453885f5181f1b624d0b"
        );
        assert!(Algorithm::parse("MD5").is_err() && Kind::parse("PART").is_err());
    }

    /// As in S3's manual, of parts of the first one's length.
    #[test]
    fn checksums_of_parts() {
        let parts: Vec<Vec<u8>> = (0..3u8).map(|i| vec![i; 1000 + usize::from(i)]).collect();
        let digests = |algorithm| -> Vec<(Vec<u8>, u64)> {
            let part = |p: &Vec<u8>| (digest(algorithm, p), p.len() as u64);
            parts.iter().map(part).collect()
        };
        let whole = parts.concat();
        for algorithm in Algorithm::ALL {
            let digests = digests(algorithm);
            if algorithm.takes(Kind::FullObject) {
                let full = checksum_of_parts(algorithm, Kind::FullObject, &digests);
                assert_eq!(full.digest, digest(algorithm, &whole));
                assert_eq!(full.to_string(), to_base64(&full.digest));
            }
            if algorithm.takes(Kind::Composite) {
                let all: Vec<u8> = digests.iter().flat_map(|(d, _)| d.clone()).collect();
                let composite = checksum_of_parts(algorithm, Kind::Composite, &digests);
                assert_eq!(composite.digest, digest(algorithm, &all));
                assert!(composite.to_string().ends_with("=-3"));
            }
        }
        let etag = md5_of_parts([md5(b"a"), md5(b"b")].iter());
        assert_eq!(etag, md5(&[md5(b"a"), md5(b"b")].concat()));
    }

    proptest! {
        #[test]
        fn in_pieces_or_at_once(pieces: Vec<Vec<u8>>) {
            let mut hasher = Hasher::new(Algorithm::ALL.into_iter().chain([Algorithm::Sha1]));
            pieces.iter().for_each(|piece| hasher.update(piece));
            let (found, all) = (hasher.finish(), pieces.concat());
            prop_assert_eq!((found.bytes, found.md5), (all.len() as u64, md5(&all)));
            prop_assert_eq!(found.others.len(), Algorithm::ALL.len());
            for algorithm in Algorithm::ALL {
                let expected = digest(algorithm, &all);
                found.check(algorithm, &expected).unwrap();
                prop_assert!(found.check(algorithm, &expected[1..]).is_err());
            }
            found.check_md5(&md5(&all)).unwrap();
            prop_assert!(found.check_md5(&[1; 16]).is_err());
        }
    }
}
