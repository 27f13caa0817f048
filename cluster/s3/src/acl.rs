//! Access control lists: what a bucket and an object say of who may do what with them, where a bucket's owner lets
//! them say anything.
//!
//! Invariants:
//! - whether a request is allowed is [`allows`]'s answer, a function of its arguments alone: policies first, and what
//!   one of them denies no list allows;
//! - accounts stand in lists as themselves, and never as ids: an id that nobody has is refused where it is asked for;
//! - what is kept of a list is all understood, or an error.

use serde::{Deserialize, Serialize};

use crate::bucket::Ownership;
use crate::policy::Grounds;
use crate::refusal::{Refusal, refuse};

/// Most grants of a list, as S3 has it.
pub const GRANTS_MAX: usize = 100;

/// Whom something is granted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grantee {
    /// Whoever comes.
    AllUsers,
    /// Whoever has a key.
    AuthenticatedUsers,
    /// Who delivers logs: there is nobody like that here.
    LogDelivery,
    /// An account.
    Account(String),
}

const GROUPS: [(Grantee, &str); 3] = [
    (
        Grantee::AllUsers,
        "http://acs.amazonaws.com/groups/global/AllUsers",
    ),
    (
        Grantee::AuthenticatedUsers,
        "http://acs.amazonaws.com/groups/global/AuthenticatedUsers",
    ),
    (
        Grantee::LogDelivery,
        "http://acs.amazonaws.com/groups/s3/LogDelivery",
    ),
];

impl Grantee {
    /// The group that has this URI.
    pub fn group(uri: &str) -> Option<Grantee> {
        let found = GROUPS.iter().find(|(_, known)| *known == uri);
        found.map(|(group, _)| group.clone())
    }

    /// Its URI, if it is a group.
    pub fn uri(&self) -> Option<&'static str> {
        let found = GROUPS.iter().find(|(group, _)| group == self);
        found.map(|(_, uri)| *uri)
    }

    /// Whether it is nobody in particular.
    fn is_public(&self) -> bool {
        matches!(self, Grantee::AllUsers | Grantee::AuthenticatedUsers)
    }
}

macro_rules! permissions {
    ($($(#[$doc:meta])* $name:ident $text:literal $header:literal,)*) => {
        /// What is granted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Permission {
            $($(#[$doc])* $name,)*
        }

        impl Permission {
            /// All of them.
            pub const ALL: [Permission; 5] = [$(Permission::$name),*];

            /// As documents have it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Permission::$name => $text,)*
                }
            }

            /// The header that grants it, without `x-amz-grant-`.
            pub fn header(self) -> &'static str {
                match self {
                    $(Permission::$name => $header,)*
                }
            }
        }
    };
}

permissions! {
    /// To list a bucket, or to read an object.
    Read "READ" "read",
    /// To put into a bucket, and to remove from it. Of an object it means nothing.
    Write "WRITE" "write",
    /// To read the list.
    ReadAcp "READ_ACP" "read-acp",
    /// To write the list.
    WriteAcp "WRITE_ACP" "write-acp",
    /// All of that.
    FullControl "FULL_CONTROL" "full-control",
}

impl Permission {
    /// From what a document has.
    pub fn parse(text: &str) -> Option<Permission> {
        Permission::ALL.into_iter().find(|p| p.as_str() == text)
    }
}

/// That something is granted to somebody.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// To whom.
    pub to: Grantee,
    /// What.
    pub may: Permission,
}

impl Grant {
    /// This, to that one.
    pub fn new(to: Grantee, may: Permission) -> Grant {
        Grant { to, may }
    }

    /// All, to an account.
    pub fn all_to(account: &str) -> Grant {
        Grant::new(
            Grantee::Account(account.to_owned()),
            Permission::FullControl,
        )
    }
}

/// Grants as they are kept: each once, those of groups first, as clients of Ceph's expect them.
pub fn in_order(grants: impl IntoIterator<Item = Grant>) -> Vec<Grant> {
    let mut all: Vec<Grant> = Vec::new();
    for grant in grants {
        if !all.contains(&grant) {
            all.push(grant);
        }
    }
    all.sort_by_key(|grant| grant.to.uri().is_none());
    all
}

/// Whether grants let in somebody who is nobody in particular.
pub fn is_public(grants: &[Grant]) -> bool {
    grants.iter().any(|grant| grant.to.is_public())
}

/// What is kept of an object's list, if it is not that of the bucket's owner alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectAcl {
    /// The account whose the object is; none if it is the bucket owner's.
    pub owner: Option<String>,
    /// What is granted.
    pub grants: Vec<Grant>,
}

/// The list of an object, as it is told: whose the object is, and what is granted. Nothing kept is the bucket owner's.
pub fn of_object(kept: Option<&ObjectAcl>, bucket_owner: &str) -> (String, Vec<Grant>) {
    match kept {
        None => (bucket_owner.to_owned(), vec![Grant::all_to(bucket_owner)]),
        Some(acl) => {
            let owner = acl.owner.as_deref().unwrap_or(bucket_owner);
            (owner.to_owned(), acl.grants.clone())
        }
    }
}

/// What is to be kept of an object of this owner with these grants.
pub fn to_keep(owner: &str, grants: Vec<Grant>, bucket_owner: &str) -> Option<ObjectAcl> {
    let others = (owner != bucket_owner).then(|| owner.to_owned());
    let plain = others.is_none() && grants == [Grant::all_to(owner)];
    (!plain).then_some(ObjectAcl {
        owner: others,
        grants,
    })
}

/// Bytes of an account: twelve digits are less than 2^40.
const ACCOUNT: usize = 5;
/// In an account's place: it is the bucket owner's.
const NOBODY: [u8; ACCOUNT] = [0xff; ACCOUNT];

fn account_bytes(account: &str) -> Result<[u8; ACCOUNT], Refusal> {
    let digits = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
    match account.parse::<u64>() {
        Ok(number) if digits => {
            let [a, b, c, d, e, ..] = number.to_le_bytes();
            Ok([a, b, c, d, e])
        }
        _ => refuse!(
            InternalError,
            "the account {account:?} is not of twelve digits"
        ),
    }
}

fn account_of(bytes: &[u8; ACCOUNT]) -> Option<String> {
    let [a, b, c, d, e] = *bytes;
    let number = u64::from_le_bytes([a, b, c, d, e, 0, 0, 0]);
    (number < 1_000_000_000_000).then(|| format!("{number:012}"))
}

impl ObjectAcl {
    /// As bytes: the owner, and of each grant a byte with what is granted and to which kind of grantee, and the account
    /// if it is one.
    pub fn encode(&self) -> Result<Vec<u8>, Refusal> {
        let mut out = match &self.owner {
            Some(owner) => account_bytes(owner)?.to_vec(),
            None => NOBODY.to_vec(),
        };
        for grant in &self.grants {
            let kind = match &grant.to {
                Grantee::AllUsers => 0,
                Grantee::AuthenticatedUsers => 1,
                Grantee::LogDelivery => 2,
                Grantee::Account(_) => 3,
            };
            out.push(kind << 4 | grant.may as u8);
            if let Grantee::Account(account) = &grant.to {
                out.extend_from_slice(&account_bytes(account)?);
            }
        }
        Ok(out)
    }

    /// From its bytes; None if they are none.
    pub fn decode(bytes: &[u8]) -> Option<ObjectAcl> {
        let (owner, mut rest) = bytes.split_first_chunk::<ACCOUNT>()?;
        let owner = match owner {
            &NOBODY => None,
            owner => Some(account_of(owner)?),
        };
        let mut grants = Vec::new();
        while let Some((byte, behind)) = rest.split_first() {
            rest = behind;
            let may = *Permission::ALL.get(usize::from(byte & 0x0f))?;
            let to = match byte >> 4 {
                0 => Grantee::AllUsers,
                1 => Grantee::AuthenticatedUsers,
                2 => Grantee::LogDelivery,
                3 => {
                    let (account, behind) = rest.split_first_chunk::<ACCOUNT>()?;
                    rest = behind;
                    Grantee::Account(account_of(account)?)
                }
                _ => return None,
            };
            grants.push(Grant { to, may });
        }
        Some(ObjectAcl { owner, grants })
    }
}

/// The list of this name. `of_bucket`: whose the bucket is, if the list is to be an object's. None if there is no such
/// list of it.
pub fn canned(name: &str, owner: &str, of_bucket: Option<&str>) -> Option<Vec<Grant>> {
    use Grantee::{AllUsers, AuthenticatedUsers, LogDelivery};
    use Permission::{FullControl, Read, ReadAcp, Write};
    let to = |to: Grantee, may| Grant::new(to, may);
    let more = match (name, of_bucket) {
        ("private", _) => vec![],
        ("public-read", _) => vec![to(AllUsers, Read)],
        ("public-read-write", _) => vec![to(AllUsers, Read), to(AllUsers, Write)],
        ("authenticated-read", _) => vec![to(AuthenticatedUsers, Read)],
        ("log-delivery-write", None) => vec![to(LogDelivery, Write), to(LogDelivery, ReadAcp)],
        // S3 passes over them where a bucket is made.
        ("bucket-owner-read" | "bucket-owner-full-control", None) => vec![],
        (name @ ("bucket-owner-read" | "bucket-owner-full-control"), Some(of_bucket)) => {
            let may = match name {
                "bucket-owner-read" => Read,
                _ => FullControl,
            };
            match of_bucket == owner {
                true => vec![],
                false => vec![to(Grantee::Account(of_bucket.to_owned()), may)],
            }
        }
        _ => return None,
    };
    Some(in_order(std::iter::once(Grant::all_to(owner)).chain(more)))
}

/// Whose an object is that is put into another one's bucket. What nobody in particular puts is the bucket owner's, who
/// else could do nothing with it; and so it is if the bucket's owner is to have it, and is let have all of it.
pub fn owner_of_new<'a>(
    ownership: Ownership,
    writer: Option<&'a str>,
    acl: Option<&str>,
    bucket_owner: &'a str,
) -> &'a str {
    match (ownership, acl) {
        (Ownership::ObjectWriter, _) => writer.unwrap_or(bucket_owner),
        (Ownership::BucketOwnerPreferred, acl) if acl != Some("bucket-owner-full-control") => {
            writer.unwrap_or(bucket_owner)
        }
        _ => bucket_owner,
    }
}

/// What a bucket's list has to grant for an action.
const BY_BUCKET: [(&str, Permission); 8] = [
    ("s3:ListBucket", Permission::Read),
    ("s3:ListBucketVersions", Permission::Read),
    ("s3:ListBucketMultipartUploads", Permission::Read),
    ("s3:PutObject", Permission::Write),
    // Of what is put, not of what is there.
    ("s3:PutObjectTagging", Permission::Write),
    ("s3:DeleteObject", Permission::Write),
    ("s3:GetBucketAcl", Permission::ReadAcp),
    ("s3:PutBucketAcl", Permission::WriteAcp),
];

/// The actions that are the object owner's to allow, and what an object's list has to grant for them, if it can.
pub(crate) const BY_OBJECT: [(&str, Option<Permission>); 14] = [
    ("s3:GetObject", Some(Permission::Read)),
    ("s3:GetObjectVersion", Some(Permission::Read)),
    ("s3:GetObjectAcl", Some(Permission::ReadAcp)),
    ("s3:GetObjectVersionAcl", Some(Permission::ReadAcp)),
    ("s3:PutObjectAcl", Some(Permission::WriteAcp)),
    ("s3:PutObjectVersionAcl", Some(Permission::WriteAcp)),
    ("s3:GetObjectAttributes", None),
    ("s3:GetObjectVersionAttributes", None),
    ("s3:GetObjectTagging", None),
    ("s3:GetObjectVersionTagging", None),
    ("s3:PutObjectTagging", None),
    ("s3:PutObjectVersionTagging", None),
    ("s3:DeleteObjectTagging", None),
    ("s3:DeleteObjectVersionTagging", None),
];

/// Whether an action on an object that is there is its owner's to allow.
pub fn is_of_object(action: &str) -> bool {
    BY_OBJECT.iter().any(|(known, _)| *known == action)
}

/// Who asks, as lists know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker<'a> {
    /// The account, if it is one.
    pub account: Option<&'a str>,
    /// What the account may do is bounded by a policy of its own, which does not allow this.
    pub bounded: bool,
}

/// The list that has a say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List<'a> {
    /// The bucket's: what is asked is about the bucket, or makes or removes an object.
    Bucket(&'a [Grant]),
    /// An object's, whose this is. It is asked what its owner has a say in: see [`is_of_object`].
    Object(&'a str, &'a [Grant]),
}

/// Whether a request is allowed where lists mean something.
///
/// What a policy denies is not. What the caller's own policy allows is, and what an administrator asks for. A bucket's
/// owner, and the bucket's policy, speak for the bucket and for the objects that are its owner's; of others' objects
/// only those others do. What is left, a list may grant: to everybody, also to who is bounded by a policy of their own;
/// to some, only if no such policy bounds them.
pub fn allows(
    grounds: Grounds,
    action: &str,
    asker: Asker<'_>,
    bucket_owner: &str,
    list: List<'_>,
    ignores_public: bool,
) -> bool {
    match grounds {
        Grounds::Denied => return false,
        Grounds::Certain => return true,
        Grounds::Bucket | Grounds::Owner | Grounds::None => {}
    }
    let of_bucket = grounds != Grounds::None;
    let (grants, needed) = match list {
        List::Bucket(_) if of_bucket => return true,
        List::Bucket(grants) => {
            let found = BY_BUCKET.iter().find(|(known, _)| *known == action);
            (grants, found.map(|(_, needed)| *needed))
        }
        List::Object(owner, _) if of_bucket && owner == bucket_owner => return true,
        List::Object(owner, _) if asker.account == Some(owner) && !asker.bounded => return true,
        List::Object(_, grants) => {
            let found = BY_OBJECT.iter().find(|(known, _)| *known == action);
            (grants, found.and_then(|(_, needed)| *needed))
        }
    };
    let Some(needed) = needed else {
        return false;
    };
    grants.iter().any(|grant| {
        let to_them = match &grant.to {
            Grantee::AllUsers => !ignores_public,
            Grantee::AuthenticatedUsers => {
                !ignores_public && asker.account.is_some() && !asker.bounded
            }
            Grantee::LogDelivery => false,
            Grantee::Account(account) => asker.account == Some(account) && !asker.bounded,
        };
        to_them && (grant.may == needed || grant.may == Permission::FullControl)
    })
}
