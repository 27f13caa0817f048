//! Digests that a request sends of its body, and what becomes of them.
//!
//! Invariants:
//! - a digest that was sent, in a header or a trailer, is compared before anything is acknowledged; one that
//!   was announced and did not come is an error;
//! - an object has a checksum: the one that was sent, or else a CRC-64/NVME.

use ashlar_cluster_s3::checksum::{Algorithm, Checksum, Digests, parse_content_md5};
use ashlar_cluster_s3::refusal::{Code, Refusal};

use crate::call::Call;
use crate::faults::refused;

/// What a request says of its body's digests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    md5: Option<[u8; 16]>,
    /// In a header.
    checksum: Option<(Algorithm, Vec<u8>)>,
    /// To come in the trailer.
    trailer: Option<Algorithm>,
    /// Whether nothing was said at all, and a digest is made all the same.
    made: Option<Algorithm>,
}

impl Sent {
    /// What a request says.
    pub(crate) fn of(call: &Call) -> Result<Sent, Refusal> {
        let md5 = call
            .header("content-md5")
            .map(parse_content_md5)
            .transpose()?;
        let mut checksum = None;
        for algorithm in Algorithm::ALL {
            if let Some(value) = call.header(algorithm.header()) {
                if checksum.is_some() {
                    return refused(
                        Code::InvalidRequest,
                        "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
                    );
                }
                checksum = Some((algorithm, algorithm.parse_digest(value)?));
            }
        }
        let mut trailer = None;
        for name in call.header("x-amz-trailer").unwrap_or_default().split(',') {
            let name = name.trim().to_ascii_lowercase();
            if name.is_empty() {
                continue;
            }
            match Algorithm::of_header(&name) {
                Some(algorithm) if trailer.is_none() && checksum.is_none() => {
                    trailer = Some(algorithm);
                }
                Some(_) => {
                    return refused(
                        Code::InvalidRequest,
                        "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
                    );
                }
                None => {
                    return refused(
                        Code::InvalidRequest,
                        "The value specified in the x-amz-trailer header is not supported",
                    );
                }
            }
        }
        let sent = Sent {
            md5,
            checksum,
            trailer,
            made: None,
        };
        if let Some(name) = call.header("x-amz-sdk-checksum-algorithm") {
            let algorithm = Algorithm::parse(name)?;
            if sent.algorithm() != Some(algorithm) {
                return refused(
                    Code::InvalidRequest,
                    "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or \
                     x-amz-trailer headers were found.",
                );
            }
        }
        Ok(sent)
    }

    /// The algorithm that was named.
    pub(crate) fn algorithm(&self) -> Option<Algorithm> {
        let sent = self.checksum.as_ref().map(|(algorithm, _)| *algorithm);
        sent.or(self.trailer)
    }

    /// Whether anything was sent by which what came can be checked.
    pub(crate) fn is_some(&self) -> bool {
        self.md5.is_some() || self.algorithm().is_some()
    }

    /// With this checksum, if there is to be one: what was named must be the same.
    pub(crate) fn fitting(self, wanted: Option<Algorithm>) -> Result<Sent, Refusal> {
        let Some(wanted) = wanted else {
            return Ok(self);
        };
        if let Some(got) = self.algorithm()
            && wanted != got
        {
            let message = format!(
                "Checksum Type mismatch occurred, expected checksum Type: {}, actual checksum Type: {}",
                wanted.as_str().to_ascii_lowercase(),
                got.as_str().to_ascii_lowercase()
            );
            return Err(Refusal::new(Code::InvalidRequest, message));
        }
        Ok(self.or_made(wanted))
    }

    /// With a checksum, whatever was said: this one, if nothing was.
    pub(crate) fn or_made(mut self, algorithm: Algorithm) -> Sent {
        if self.algorithm().is_none() {
            self.made.get_or_insert(algorithm);
        }
        self
    }

    /// The algorithms whose digests are to be made.
    pub(crate) fn algorithms(&self) -> Vec<Algorithm> {
        self.algorithm().or(self.made).into_iter().collect()
    }

    /// Compares what was sent with what came; gives the checksum to keep.
    pub(crate) fn check(
        &self,
        digests: &Digests,
        trailer: &[(String, String)],
    ) -> Result<Option<Checksum>, Refusal> {
        if let Some(md5) = &self.md5 {
            digests.check_md5(md5)?;
        }
        if let Some((algorithm, digest)) = &self.checksum {
            digests.check(*algorithm, digest)?;
        }
        let unannounced = |(name, _): &&(String, String)| {
            Algorithm::of_header(name).is_some_and(|algorithm| Some(algorithm) != self.trailer)
        };
        if trailer.iter().any(|pair| unannounced(&pair)) {
            return refused(
                Code::InvalidRequest,
                "The trailer has a checksum that x-amz-trailer did not announce",
            );
        }
        if let Some(algorithm) = self.trailer {
            let Some((_, value)) = trailer.iter().find(|(name, _)| name == algorithm.header())
            else {
                return refused(
                    Code::InvalidRequest,
                    "The request has no trailer with the checksum that was announced",
                );
            };
            digests.check(algorithm, &algorithm.parse_digest(value)?)?;
        }
        let kept = self.algorithms().into_iter().find_map(|algorithm| {
            let digest = digests.get(algorithm)?.to_vec();
            Some(Checksum::full(algorithm, digest))
        });
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use ashlar_cluster_s3::checksum::Hasher;

    use super::*;

    #[test]
    fn trailers() {
        let (crc32, sha1) = (Algorithm::Crc32, Algorithm::Sha1);
        let mut hasher = Hasher::new(vec![crc32, sha1]);
        hasher.update(b"abc");
        let digests = hasher.finish();
        let line = |algorithm: Algorithm| {
            let digest = digests.get(algorithm).unwrap_or_default().to_vec();
            let value = Checksum::full(algorithm, digest).to_string();
            (algorithm.header().to_owned(), value)
        };
        let check = |announced, trailer: &[(String, String)]| {
            let sent = Sent {
                trailer: announced,
                ..Sent::default()
            };
            sent.check(&digests, trailer).map(drop).map_err(|r| r.code)
        };
        assert_eq!(check(Some(crc32), &[line(crc32)]), Ok(()));
        assert_eq!(check(None, &[]), Ok(()));
        assert_eq!(check(Some(crc32), &[]), Err(Code::InvalidRequest));
        assert_eq!(check(None, &[line(crc32)]), Err(Code::InvalidRequest));
        assert_eq!(
            check(Some(crc32), &[line(crc32), line(sha1)]),
            Err(Code::InvalidRequest)
        );
        let wrong = (crc32.header().to_owned(), "AAAAAA==".to_owned());
        assert_eq!(check(Some(crc32), &[wrong]), Err(Code::BadDigest));
    }
}
