//! What is kept of a bucket beside its objects: one document.
//!
//! Invariants:
//! - a document that is newer than this program, or has something in it that it does not know, is an
//!   error: a rule that is not understood must not be taken for one that is not there;
//! - a document is bounded, and everything in it was checked when it was put there.

use serde::{Deserialize, Serialize};

use crate::acl::Grant;
use crate::cors::CorsRule;
use crate::encryption::BucketEncryption;
use crate::lifecycle::LifecycleRule;
use crate::object_lock::ObjectLock;
use crate::refusal::{Refusal, refuse};
use crate::tags::Tags;

/// Version of the document.
pub const VERSION: u32 = 1;
/// Largest document, in bytes.
pub const CONFIG_MAX: usize = 1024 * 1024;

/// Whether versions are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Versioning {
    /// Each put makes one.
    Enabled,
    /// No more, but those that there are stay.
    Suspended,
}

/// What keeps the public out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PublicAccessBlock {
    /// No public ACLs are taken.
    pub block_public_acls: bool,
    /// Public ACLs mean nothing.
    pub ignore_public_acls: bool,
    /// No public policy is taken.
    pub block_public_policy: bool,
    /// A public policy lets in the owner only.
    pub restrict_public_buckets: bool,
}

/// What is kept of a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BucketConfig {
    /// Of the document.
    pub version: u32,
    /// The account whose it is; empty if it was not made through S3.
    pub owner: String,
    /// The number of the journal entry that made the bucket; 0 if it was not made through S3. A document
    /// that is about an earlier bucket of the name gives way.
    pub made_by: u64,
    /// Whether versions are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versioning: Option<Versioning>,
    /// Whether versions can be locked. Nobody takes that back, and versions are kept then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_lock: Option<ObjectLock>,
    /// Tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Tags,
    /// The policy, as it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Who may call from other sites.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cors: Vec<CorsRule>,
    /// Who owns what is put, if somebody has said so,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ownership: Option<Ownership>,
    /// and where nobody has, if that is not its owner: what the gateway had it that made the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_ownership: Option<Ownership>,
    /// What its ACL grants, if that is not all to its owner and nothing to others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acl: Option<Vec<Grant>>,
    /// What keeps the public out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_access_block: Option<PublicAccessBlock>,
    /// What becomes of objects as they grow old.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lifecycle: Vec<LifecycleRule>,
    /// How objects are encrypted of which nobody says how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<BucketEncryption>,
}

/// Who owns what is put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ownership {
    /// The bucket's owner, and there are no ACLs.
    #[default]
    BucketOwnerEnforced,
    /// Who puts it, unless the bucket's owner is let have all of it.
    BucketOwnerPreferred,
    /// Who puts it.
    ObjectWriter,
}

impl Ownership {
    /// All of them.
    pub const ALL: [Ownership; 3] = [
        Ownership::BucketOwnerEnforced,
        Ownership::BucketOwnerPreferred,
        Ownership::ObjectWriter,
    ];

    /// As requests have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Ownership::BucketOwnerEnforced => "BucketOwnerEnforced",
            Ownership::BucketOwnerPreferred => "BucketOwnerPreferred",
            Ownership::ObjectWriter => "ObjectWriter",
        }
    }

    /// From what a request has.
    pub fn parse(text: &str) -> Option<Ownership> {
        Ownership::ALL.into_iter().find(|one| one.as_str() == text)
    }
}

/// A document that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a document that cannot be read: {detail}")]
pub struct BadDocument {
    /// Why.
    pub detail: String,
}

/// A document's bytes.
pub(crate) fn to_json<T: Serialize>(document: &T, most: usize) -> Result<Vec<u8>, Refusal> {
    match serde_json::to_vec(document) {
        Ok(bytes) if bytes.len() <= most => Ok(bytes),
        Ok(bytes) => refuse!(
            InvalidRequest,
            "the configuration takes {} bytes; at most {most} are allowed",
            bytes.len()
        ),
        Err(error) => refuse!(InternalError, "a document that cannot be written: {error}"),
    }
}

/// The version that a document says it has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// A document of at most this version.
pub(crate) fn from_json<'a, T: Deserialize<'a>>(
    bytes: &'a [u8],
    version: u32,
) -> Result<T, BadDocument> {
    let bad = |error: serde_json::Error| BadDocument {
        detail: error.to_string(),
    };
    let said: Versioned = serde_json::from_slice(bytes).map_err(bad)?;
    if said.version == 0 || said.version > version {
        let detail = format!("its version is {}; known is {version}", said.version);
        return Err(BadDocument { detail });
    }
    serde_json::from_slice(bytes).map_err(bad)
}

impl BucketConfig {
    /// Of a new bucket.
    pub fn new(owner: &str, made_by: u64) -> BucketConfig {
        BucketConfig {
            version: VERSION,
            owner: owner.to_owned(),
            made_by,
            versioning: None,
            object_lock: None,
            tags: Tags::new(),
            policy: None,
            cors: Vec::new(),
            ownership: None,
            default_ownership: None,
            acl: None,
            public_access_block: None,
            lifecycle: Vec::new(),
            encryption: None,
        }
    }

    /// Whose what is put is.
    pub fn ownership(&self) -> Ownership {
        let said = self.ownership.or(self.default_ownership);
        said.unwrap_or_default()
    }

    /// Whether ACLs mean something, of the bucket and of what is in it.
    pub fn has_acls(&self) -> bool {
        self.ownership() != Ownership::BucketOwnerEnforced
    }

    /// What its ACL grants.
    pub fn grants(&self) -> Vec<Grant> {
        let owners = || vec![Grant::all_to(&self.owner)];
        self.acl.clone().unwrap_or_else(owners)
    }

    /// Sets what its ACL grants.
    pub fn set_grants(&mut self, grants: Vec<Grant>) {
        let plain = grants == [Grant::all_to(&self.owner)];
        self.acl = (!plain).then_some(grants);
    }

    /// As bytes.
    pub fn encode(&self) -> Result<Vec<u8>, Refusal> {
        to_json(self, CONFIG_MAX)
    }

    /// From its bytes.
    pub fn decode(bytes: &[u8]) -> Result<BucketConfig, BadDocument> {
        from_json(bytes, VERSION)
    }
}

#[cfg(test)]
mod tests {
    use ashlar_layout::lock::RetentionMode;

    use super::*;
    use crate::acl::{Grantee, Permission};
    use crate::encryption::DefaultAlgorithm;
    use crate::lifecycle::{Filter, When};
    use crate::object_lock::{DefaultRetention, Period};
    use crate::refusal::Code;

    fn full() -> BucketConfig {
        BucketConfig {
            versioning: Some(Versioning::Suspended),
            object_lock: Some(ObjectLock {
                default: Some(DefaultRetention {
                    mode: RetentionMode::Compliance,
                    period: Period::Years(7),
                }),
            }),
            tags: vec![("a".into(), "b".into())],
            policy: Some("{\"Statement\": []}".into()),
            cors: vec![CorsRule {
                origins: vec!["*".into()],
                methods: vec!["GET".into()],
                ..CorsRule::default()
            }],
            ownership: Some(Ownership::ObjectWriter),
            default_ownership: Some(Ownership::BucketOwnerPreferred),
            acl: Some(vec![
                Grant::new(Grantee::AllUsers, Permission::Read),
                Grant::all_to("222222222222"),
            ]),
            public_access_block: Some(PublicAccessBlock {
                block_public_policy: true,
                ..PublicAccessBlock::default()
            }),
            lifecycle: vec![LifecycleRule {
                id: "r".into(),
                enabled: true,
                filter: Filter {
                    prefix: "logs/".into(),
                    ..Filter::default()
                },
                expiration: Some(When::Days(3)),
                ..LifecycleRule::default()
            }],
            encryption: Some(BucketEncryption {
                algorithm: DefaultAlgorithm::Aes256,
            }),
            ..BucketConfig::new("111111111111", 42)
        }
    }

    #[test]
    fn there_and_back() {
        for config in [BucketConfig::new("111111111111", 42), full()] {
            let bytes = config.encode().unwrap();
            assert_eq!(BucketConfig::decode(&bytes).unwrap(), config);
        }
    }

    /// What an earlier version has written is read.
    #[test]
    fn the_text_stands() {
        let text = r#"{"version":1,"owner":"111111111111","made_by":42}"#;
        let config = BucketConfig::new("111111111111", 42);
        assert_eq!(config.encode().unwrap(), text.as_bytes());
        let text = r#"{"version":1,"owner":"o","made_by":1,"versioning":"enabled","tags":[["a","b"]],
            "cors":[{"origins":["*"],"methods":["GET"]}],"lifecycle":[{"id":"x","expiration":{"date":0}}]}"#;
        let config = BucketConfig::decode(text.as_bytes()).unwrap();
        assert_eq!(config.versioning, Some(Versioning::Enabled));
        assert_eq!(config.lifecycle[0].expiration, Some(When::Date(0)));
        let text = r#"{"version":1,"owner":"o","made_by":1,"ownership":"BucketOwnerEnforced"}"#;
        let config = BucketConfig::decode(text.as_bytes()).unwrap();
        assert_eq!((config.has_acls(), config.acl), (false, None));
        let text = r#"{"version":1,"owner":"o","made_by":1,"ownership":"ObjectWriter","acl":[
            {"to":"all_users","may":"read_acp"},{"to":{"account":"p"},"may":"full_control"}]}"#;
        let config = BucketConfig::decode(text.as_bytes()).unwrap();
        let to_all = Grant::new(Grantee::AllUsers, Permission::ReadAcp);
        assert_eq!(config.grants(), [to_all, Grant::all_to("p")]);
        assert!(config.has_acls());
    }

    #[test]
    fn who_owns_where_nobody_says_so() {
        use Ownership::{BucketOwnerEnforced, BucketOwnerPreferred, ObjectWriter};
        for (said, default, expected) in [
            (None, None, BucketOwnerEnforced),
            (None, Some(ObjectWriter), ObjectWriter),
            (
                Some(BucketOwnerEnforced),
                Some(ObjectWriter),
                BucketOwnerEnforced,
            ),
            (Some(BucketOwnerPreferred), None, BucketOwnerPreferred),
        ] {
            let config = BucketConfig {
                ownership: said,
                default_ownership: default,
                ..BucketConfig::new("111111111111", 42)
            };
            assert_eq!(config.ownership(), expected);
            assert_eq!(config.has_acls(), expected != BucketOwnerEnforced);
        }
    }

    #[test]
    fn the_owners_list_is_not_written_down() {
        let mut config = BucketConfig::new("111111111111", 42);
        let owners = config.grants();
        assert_eq!(owners, [Grant::all_to("111111111111")]);
        config.set_grants(vec![]);
        assert_eq!(
            (config.acl.clone(), config.grants()),
            (Some(vec![]), vec![])
        );
        config.set_grants(owners);
        assert_eq!(config, BucketConfig::new("111111111111", 42));
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for text in [
            "",
            "{}",
            r#"{"version":2,"owner":"o","made_by":1}"#,
            r#"{"version":0,"owner":"o","made_by":1}"#,
            r#"{"version":1,"owner":"o","made_by":1,"encryption":{}}"#,
            r#"{"version":1,"owner":"o","made_by":1,"encryption":{"algorithm":"aws:kms"}}"#,
            r#"{"version":1,"owner":"o","made_by":1,"replication":{}}"#,
            r#"{"version":1,"owner":"o","made_by":1,"ownership":"Whoever"}"#,
            r#"{"version":1,"owner":"o","made_by":1,"acl":[{"to":"all_users","may":"all"}]}"#,
            r#"{"version":1,"owner":"o","made_by":1,"lifecycle":[{"id":"x","transition":1}]}"#,
        ] {
            BucketConfig::decode(text.as_bytes()).expect_err(text);
        }
        let mut config = full();
        config.policy = Some("x".repeat(CONFIG_MAX));
        assert_eq!(config.encode().unwrap_err().code, Code::InvalidRequest);
    }
}
