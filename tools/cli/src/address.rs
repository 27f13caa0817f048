//! Where a thing is: `ashlar://bucket/key`, a path, or `-` for standard input or output.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use ashlar_layout::names;

/// What every address of the store begins with.
pub const SCHEME: &str = "ashlar://";

/// A bucket, or a key or prefix in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The bucket.
    pub bucket: String,
    /// The key; empty: the bucket itself.
    pub key: String,
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It does not begin with the scheme.
    #[error("'{0}' is not an address: it takes ashlar://bucket/key")]
    Scheme(String),
    /// The bucket's name breaks the rules.
    #[error("'{address}': {source}")]
    Bucket {
        /// What was given.
        address: String,
        /// Which rule.
        source: names::NameError,
    },
    /// The key breaks the rules.
    #[error("'{address}': {source}")]
    Key {
        /// What was given.
        address: String,
        /// Which rule.
        source: names::NameError,
    },
    /// A key is needed.
    #[error("'{0}' names a bucket: a key is needed behind it, as in ashlar://bucket/key")]
    NoKey(String),
    /// A key is one too many.
    #[error("'{0}' names an object: only a bucket is wanted, as in ashlar://bucket")]
    NoBucket(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let rest = text
            .strip_prefix(SCHEME)
            .ok_or_else(|| AddressError::Scheme(text.to_owned()))?;
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        names::check_bucket(bucket).map_err(|source| AddressError::Bucket {
            address: text.to_owned(),
            source,
        })?;
        if !key.is_empty() {
            names::check_key(key).map_err(|source| AddressError::Key {
                address: text.to_owned(),
                source,
            })?;
        }
        Ok(Address {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.bucket, self.key)
    }
}

impl Address {
    /// The same address, if it names an object.
    pub fn object(self) -> Result<Address, AddressError> {
        if self.key.is_empty() {
            Err(AddressError::NoKey(self.to_string()))
        } else {
            Ok(self)
        }
    }

    /// The bucket's name, if that is all it names.
    pub fn bucket_only(self) -> Result<String, AddressError> {
        if self.key.is_empty() {
            Ok(self.bucket)
        } else {
            Err(AddressError::NoBucket(self.to_string()))
        }
    }

    /// The key as the prefix of a tree: empty, or ending in `/`.
    pub fn tree_prefix(&self) -> String {
        if self.key.is_empty() || self.key.ends_with('/') {
            self.key.clone()
        } else {
            format!("{}/", self.key)
        }
    }

    /// Another key in the same bucket.
    pub fn with_key(&self, key: impl Into<String>) -> Address {
        Address {
            bucket: self.bucket.clone(),
            key: key.into(),
        }
    }

    /// The last part of the key: what a file of it would be called. Empty if the key ends in `/`.
    pub fn base_name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or("")
    }
}

/// A place outside of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Standard input or output.
    Pipe,
    /// A file or folder.
    Path(PathBuf),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        if text.starts_with(SCHEME) {
            return Err("a path, or - for a pipe, is wanted here, not an ashlar:// address".into());
        }
        Ok(if text == "-" {
            Place::Pipe
        } else {
            Place::Path(PathBuf::from(text))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let cases = [
            ("ashlar://photos", "photos", ""),
            ("ashlar://photos/", "photos", ""),
            ("ashlar://photos/a", "photos", "a"),
            ("ashlar://photos/a/b/", "photos", "a/b/"),
            ("ashlar://photos//a", "photos", "/a"),
            ("ashlar://photos/ä ?#%20", "photos", "ä ?#%20"),
        ];
        for (text, bucket, key) in cases {
            let address: Address = text.parse().unwrap();
            assert_eq!(
                (address.bucket.as_str(), address.key.as_str()),
                (bucket, key),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "photos/a",
            "s3://photos/a",
            "ashlar:/photos",
            "",
            "ashlar://",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        assert!(matches!(
            "ashlar://No/a".parse::<Address>(),
            Err(AddressError::Bucket { .. })
        ));
        let long = format!("ashlar://photos/{}", "k".repeat(1025));
        assert!(matches!(
            long.parse::<Address>(),
            Err(AddressError::Key { .. })
        ));
        let bucket: Address = "ashlar://photos".parse().unwrap();
        assert_eq!(
            bucket.clone().object(),
            Err(AddressError::NoKey("ashlar://photos/".into()))
        );
        assert_eq!(bucket.bucket_only(), Ok("photos".into()));
    }

    #[test]
    fn a_tree_prefix_ends_where_a_folder_ends() {
        let prefix = |text: &str| text.parse::<Address>().unwrap().tree_prefix();
        assert_eq!(prefix("ashlar://photos"), "");
        assert_eq!(prefix("ashlar://photos/a"), "a/");
        assert_eq!(prefix("ashlar://photos/a/"), "a/");
    }
}
