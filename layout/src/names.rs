//! What an object key and a bucket name may be.

use crate::limits::{BUCKET_MAX, BUCKET_MIN, KEY_MAX};

/// Why a key or bucket name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// An object needs a key.
    #[error("the key is empty")]
    KeyEmpty,
    /// The key is longer than [`KEY_MAX`].
    #[error("the key has {got} bytes of UTF-8; at most {max} are allowed")]
    KeyTooLong {
        /// Its bytes.
        got: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The bucket name is shorter than [`BUCKET_MIN`] or longer than [`BUCKET_MAX`].
    #[error("bucket name {bucket:?} has {got} characters; {min} to {max} are allowed")]
    BucketLength {
        /// The name, cut to what is allowed.
        bucket: String,
        /// Its bytes.
        got: usize,
        /// Bytes needed.
        min: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A character that a bucket name cannot have.
    #[error(
        "bucket name {bucket:?} has {got:?} in it; only a-z, 0-9, hyphens and dots are allowed"
    )]
    BucketCharacter {
        /// The name.
        bucket: String,
        /// The first such character.
        got: char,
    },
    /// It begins or ends with a hyphen or a dot.
    #[error("bucket name {bucket:?} must begin and end with a letter or a digit")]
    BucketEnds {
        /// The name.
        bucket: String,
    },
    /// It has two dots in a row.
    #[error("bucket name {bucket:?} has two dots in a row")]
    BucketDots {
        /// The name.
        bucket: String,
    },
    /// It looks like an IPv4 address.
    #[error("bucket name {bucket:?} looks like an IPv4 address")]
    BucketAddress {
        /// The name.
        bucket: String,
    },
    /// S3 keeps these beginnings for itself.
    #[error("bucket name {bucket:?} begins with {got:?}, which S3 reserves")]
    BucketPrefix {
        /// The name.
        bucket: String,
        /// The reserved beginning.
        got: &'static str,
    },
    /// S3 keeps these endings for itself.
    #[error("bucket name {bucket:?} ends with {got:?}, which S3 reserves")]
    BucketSuffix {
        /// The name.
        bucket: String,
        /// The reserved ending.
        got: &'static str,
    },
}

/// Beginnings of bucket names that S3 reserves.
const PREFIXES: [&str; 3] = ["xn--", "sthree-", "amzn-s3-demo-"];
/// Endings of bucket names that S3 reserves.
const SUFFIXES: [&str; 5] = ["-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"];

/// The bucket that the S3 gateway keeps its own objects in, and auditors what they record: no client of S3 can name
/// this one.
pub const SYSTEM_BUCKET: &str = "ashlar-system";

/// What the keys of parts of uploads begin with in that bucket: their stripes are an object's as well by the time that
/// they are put together.
pub const SYSTEM_PARTS: &str = "parts/";

/// Checks an object's key: any UTF-8 of 1 to [`KEY_MAX`] bytes.
pub fn check_key(key: &str) -> Result<(), NameError> {
    match key.len() {
        0 => Err(NameError::KeyEmpty),
        got if got > KEY_MAX => Err(NameError::KeyTooLong { got, max: KEY_MAX }),
        _ => Ok(()),
    }
}

/// Checks a bucket's name by the rules of S3 for general purpose buckets.
pub fn check_bucket(bucket: &str) -> Result<(), NameError> {
    let name = || bucket.to_owned();
    let got = bucket.len();
    if !(BUCKET_MIN..=BUCKET_MAX).contains(&got) {
        let bucket = bucket.chars().take(BUCKET_MAX).collect();
        return Err(NameError::BucketLength {
            bucket,
            got,
            min: BUCKET_MIN,
            max: BUCKET_MAX,
        });
    }
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if let Some(got) = bucket
        .chars()
        .find(|c| !plain(*c) && *c != '-' && *c != '.')
    {
        return Err(NameError::BucketCharacter {
            bucket: name(),
            got,
        });
    }
    if !bucket.starts_with(plain) || !bucket.ends_with(plain) {
        return Err(NameError::BucketEnds { bucket: name() });
    }
    if bucket.contains("..") {
        return Err(NameError::BucketDots { bucket: name() });
    }
    let parts = bucket.split('.');
    if parts.clone().count() == 4 && parts.clone().all(|p| p.bytes().all(|b| b.is_ascii_digit())) {
        return Err(NameError::BucketAddress { bucket: name() });
    }
    if let Some(got) = PREFIXES
        .into_iter()
        .find(|prefix| bucket.starts_with(prefix))
    {
        return Err(NameError::BucketPrefix {
            bucket: name(),
            got,
        });
    }
    if let Some(got) = SUFFIXES.into_iter().find(|suffix| bucket.ends_with(suffix)) {
        return Err(NameError::BucketSuffix {
            bucket: name(),
            got,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        assert_eq!(check_key(""), Err(NameError::KeyEmpty));
        assert_eq!(check_key("a"), Ok(()));
        assert_eq!(check_key("\0 / .. ä 日本"), Ok(()));
        assert_eq!(check_key(&"ä".repeat(512)), Ok(()));
        assert_eq!(
            check_key(&"ä".repeat(513)),
            Err(NameError::KeyTooLong {
                got: 1026,
                max: 1024
            })
        );
    }

    #[test]
    fn buckets_that_are_allowed() {
        let longest = "a".repeat(63);
        for bucket in [
            "abc",
            "0-9",
            "my.bucket-1",
            "1.2.3",
            "1.2.3.4a",
            "1.2.3.4.5",
            SYSTEM_BUCKET,
            &longest,
        ] {
            assert_eq!(check_bucket(bucket), Ok(()), "{bucket}");
        }
    }

    #[test]
    fn buckets_that_are_refused() {
        use NameError as E;
        type Check = fn(&NameError) -> bool;
        let long = "a".repeat(64);
        let cases: &[(&str, Check)] = &[
            ("", |e| matches!(e, E::BucketLength { got: 0, .. })),
            ("ab", |e| matches!(e, E::BucketLength { got: 2, .. })),
            (&long, |e| {
                matches!(
                    e,
                    E::BucketLength {
                        got: 64,
                        max: 63,
                        ..
                    }
                )
            }),
            ("Abc", |e| matches!(e, E::BucketCharacter { got: 'A', .. })),
            ("a_b", |e| matches!(e, E::BucketCharacter { got: '_', .. })),
            ("a/b", |e| matches!(e, E::BucketCharacter { got: '/', .. })),
            ("bücher", |e| {
                matches!(e, E::BucketCharacter { got: 'ü', .. })
            }),
            (".abc", |e| matches!(e, E::BucketEnds { .. })),
            ("abc-", |e| matches!(e, E::BucketEnds { .. })),
            ("a..b", |e| matches!(e, E::BucketDots { .. })),
            ("192.168.0.1", |e| matches!(e, E::BucketAddress { .. })),
            ("999.168.0.1", |e| matches!(e, E::BucketAddress { .. })),
            ("xn--abc", |e| {
                matches!(e, E::BucketPrefix { got: "xn--", .. })
            }),
            ("sthree-abc", |e| {
                matches!(e, E::BucketPrefix { got: "sthree-", .. })
            }),
            ("abc-s3alias", |e| {
                matches!(
                    e,
                    E::BucketSuffix {
                        got: "-s3alias",
                        ..
                    }
                )
            }),
            ("abc--x-s3", |e| {
                matches!(e, E::BucketSuffix { got: "--x-s3", .. })
            }),
        ];
        for (bucket, expected) in cases {
            let error = check_bucket(bucket).expect_err(bucket);
            assert!(expected(&error), "{bucket}: {error}");
        }
    }
}
