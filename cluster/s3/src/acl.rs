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
const BY_OBJECT: [(&str, Option<Permission>); 14] = [
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ADA: &str = "111111111111";
    const BOB: &str = "222222222222";
    const EVE: &str = "333333333333";

    fn asker(account: Option<&str>) -> Asker<'_> {
        Asker {
            account,
            bounded: false,
        }
    }

    fn by(grants: &[Grant], action: &str, account: Option<&str>) -> bool {
        let list = match is_of_object(action) {
            true => List::Object(ADA, grants),
            false => List::Bucket(grants),
        };
        allows(Grounds::None, action, asker(account), ADA, list, false)
    }

    #[test]
    fn what_permissions_are_of() {
        use Permission::{FullControl, Read, ReadAcp, Write, WriteAcp};
        for (action, needed) in [
            ("s3:ListBucket", Some(Read)),
            ("s3:ListBucketVersions", Some(Read)),
            ("s3:ListBucketMultipartUploads", Some(Read)),
            ("s3:PutObject", Some(Write)),
            ("s3:DeleteObject", Some(Write)),
            ("s3:GetBucketAcl", Some(ReadAcp)),
            ("s3:PutBucketAcl", Some(WriteAcp)),
            ("s3:GetObject", Some(Read)),
            ("s3:GetObjectVersion", Some(Read)),
            ("s3:GetObjectAcl", Some(ReadAcp)),
            ("s3:GetObjectVersionAcl", Some(ReadAcp)),
            ("s3:PutObjectAcl", Some(WriteAcp)),
            ("s3:PutObjectVersionAcl", Some(WriteAcp)),
            ("s3:DeleteObjectVersion", None),
            ("s3:DeleteBucket", None),
            ("s3:PutBucketPolicy", None),
            ("s3:GetBucketPolicy", None),
            ("s3:PutObjectRetention", None),
            ("s3:BypassGovernanceRetention", None),
            ("s3:AbortMultipartUpload", None),
            ("s3:GetObjectAttributes", None),
            ("s3:GetObjectTagging", None),
            ("s3:PutObjectVersionTagging", None),
            ("s3:NoSuchAction", None),
        ] {
            for may in Permission::ALL {
                let expected = needed.is_some() && (needed == Some(may) || may == FullControl);
                for to in [
                    Grantee::AllUsers,
                    Grantee::AuthenticatedUsers,
                    Grantee::Account(BOB.into()),
                ] {
                    let grants = [Grant::new(to.clone(), may)];
                    assert_eq!(
                        by(&grants, action, Some(BOB)),
                        expected,
                        "{action} {grants:?}"
                    );
                    let anyone = expected && to == Grantee::AllUsers;
                    assert_eq!(by(&grants, action, None), anyone, "{action} {grants:?}");
                    let any_user = expected && to != Grantee::Account(BOB.into());
                    assert_eq!(
                        by(&grants, action, Some(EVE)),
                        any_user,
                        "{action} {grants:?}"
                    );
                }
                let logs = [Grant::new(Grantee::LogDelivery, may)];
                assert!(!by(&logs, action, Some(BOB)) && !by(&logs, action, None));
            }
        }
    }

    #[test]
    fn who_is_let_in() {
        use Grounds::{Bucket, Certain, Denied, None as Nothing, Owner};
        let open = [Grant::new(Grantee::AllUsers, Permission::FullControl)];
        let shut: [Grant; 0] = [];
        let read = "s3:GetObject";
        // What policies say; who asks; whose the object is; whether its list is open; whether it is allowed.
        for (grounds, account, owner, list, expected) in [
            (Denied, Some(ADA), ADA, &open[..], false),
            (Denied, Some(BOB), BOB, &open, false),
            (Certain, Some(EVE), BOB, &shut, true),
            (Owner, Some(ADA), ADA, &shut, true),
            // The bucket's owner, before somebody else's object.
            (Owner, Some(ADA), BOB, &shut, false),
            (Owner, Some(ADA), BOB, &open, true),
            // The bucket's policy speaks for its owner's objects only.
            (Bucket, Some(EVE), ADA, &shut, true),
            (Bucket, Some(EVE), BOB, &shut, false),
            (Bucket, None, BOB, &shut, false),
            (Bucket, None, ADA, &shut, true),
            (Bucket, Some(BOB), BOB, &shut, true),
            // The object's owner, in another one's bucket.
            (Nothing, Some(BOB), BOB, &shut, true),
            (Nothing, Some(EVE), BOB, &shut, false),
            (Nothing, None, BOB, &shut, false),
            (Nothing, None, BOB, &open, true),
        ] {
            let list = List::Object(owner, list);
            let allowed = allows(grounds, read, asker(account), ADA, list, false);
            assert_eq!(allowed, expected, "{grounds:?} {account:?} {list:?}");
        }
        for (grounds, expected) in [
            (Denied, false),
            (Certain, true),
            (Owner, true),
            (Bucket, true),
            (Nothing, false),
        ] {
            let list = List::Bucket(&shut);
            let asked = allows(grounds, "s3:PutObject", asker(Some(BOB)), ADA, list, false);
            assert_eq!(asked, expected, "{grounds:?}");
        }
    }

    #[test]
    fn who_is_bounded_and_what_is_ignored() {
        let may = |to: Grantee, account, bounded, ignores| {
            let grants = [Grant::new(to, Permission::Read)];
            let asker = Asker { account, bounded };
            let list = List::Object(ADA, &grants);
            allows(Grounds::None, "s3:GetObject", asker, ADA, list, ignores)
        };
        let bob = || Grantee::Account(BOB.into());
        assert!(may(bob(), Some(BOB), false, true));
        assert!(!may(bob(), Some(BOB), true, false));
        assert!(may(Grantee::AllUsers, Some(BOB), true, false));
        assert!(!may(Grantee::AllUsers, Some(BOB), false, true));
        assert!(!may(Grantee::AllUsers, None, false, true));
        assert!(may(Grantee::AuthenticatedUsers, Some(BOB), false, false));
        assert!(!may(Grantee::AuthenticatedUsers, Some(BOB), true, false));
        assert!(!may(Grantee::AuthenticatedUsers, Some(BOB), false, true));
        // An owner whom a policy bounds may not pass it by.
        let bounded = Asker {
            account: Some(BOB),
            bounded: true,
        };
        let list = List::Object(BOB, &[]);
        assert!(!allows(
            Grounds::None,
            "s3:GetObject",
            bounded,
            ADA,
            list,
            false
        ));
    }

    #[test]
    fn lists_that_have_names() {
        let words = |name, owner, of_bucket| {
            let grants = canned(name, owner, of_bucket)?;
            let word = |g: &Grant| match &g.to {
                Grantee::Account(account) => format!("{} {account}", g.may.as_str()),
                group => {
                    let uri = group.uri().unwrap();
                    format!("{} {}", g.may.as_str(), uri.rsplit('/').next().unwrap())
                }
            };
            Some(grants.iter().map(word).collect::<Vec<_>>().join(", "))
        };
        let ada = format!("FULL_CONTROL {ADA}");
        for (name, bucket, object) in [
            ("private", "", Some("")),
            ("public-read", "READ AllUsers, ", Some("READ AllUsers, ")),
            (
                "public-read-write",
                "READ AllUsers, WRITE AllUsers, ",
                Some("READ AllUsers, WRITE AllUsers, "),
            ),
            (
                "authenticated-read",
                "READ AuthenticatedUsers, ",
                Some("READ AuthenticatedUsers, "),
            ),
            (
                "log-delivery-write",
                "WRITE LogDelivery, READ_ACP LogDelivery, ",
                None,
            ),
            ("bucket-owner-read", "", Some("")),
            ("bucket-owner-full-control", "", Some("")),
        ] {
            assert_eq!(
                words(name, ADA, None),
                Some(format!("{bucket}{ada}")),
                "{name}"
            );
            let expected = object.map(|object| format!("{object}{ada}"));
            assert_eq!(words(name, ADA, Some(ADA)), expected, "{name}");
        }
        let of_bob = |may: &str| Some(format!("FULL_CONTROL {BOB}, {may} {ADA}"));
        assert_eq!(words("bucket-owner-read", BOB, Some(ADA)), of_bob("READ"));
        assert_eq!(
            words("bucket-owner-full-control", BOB, Some(ADA)),
            of_bob("FULL_CONTROL")
        );
        for none in ["", "public", "public-ready", "Private", "aws-exec-read"] {
            assert_eq!(canned(none, ADA, None), None);
            assert_eq!(canned(none, ADA, Some(BOB)), None);
        }
    }

    #[test]
    fn whose_new_objects_are() {
        use Ownership::{BucketOwnerEnforced, BucketOwnerPreferred, ObjectWriter};
        let full = Some("bucket-owner-full-control");
        for (ownership, writer, acl, expected) in [
            (BucketOwnerEnforced, Some(BOB), None, ADA),
            (BucketOwnerPreferred, Some(BOB), None, BOB),
            (BucketOwnerPreferred, Some(BOB), Some("private"), BOB),
            (BucketOwnerPreferred, Some(BOB), full, ADA),
            (BucketOwnerPreferred, None, None, ADA),
            (ObjectWriter, Some(BOB), None, BOB),
            (ObjectWriter, Some(BOB), full, BOB),
            (ObjectWriter, None, full, ADA),
            (ObjectWriter, Some(ADA), None, ADA),
        ] {
            let owner = owner_of_new(ownership, writer, acl, ADA);
            assert_eq!(owner, expected, "{ownership:?} {writer:?} {acl:?}");
        }
    }

    #[test]
    fn what_is_kept() {
        assert_eq!(to_keep(ADA, vec![Grant::all_to(ADA)], ADA), None);
        assert_eq!(of_object(None, ADA), (ADA.into(), vec![Grant::all_to(ADA)]));
        for (owner, grants) in [
            (ADA, vec![]),
            (BOB, vec![Grant::all_to(BOB)]),
            (BOB, vec![Grant::all_to(ADA)]),
            (ADA, canned("public-read", ADA, Some(ADA)).unwrap()),
        ] {
            let kept = to_keep(owner, grants.clone(), ADA);
            assert!(kept.is_some());
            assert_eq!(of_object(kept.as_ref(), ADA), (owner.into(), grants));
        }
    }

    /// The bytes stand in manifests on devices: they may not change.
    #[test]
    fn the_bytes_stand() {
        let acl = ObjectAcl {
            owner: Some("000000000258".into()),
            grants: vec![
                Grant::new(Grantee::AllUsers, Permission::Read),
                Grant::new(Grantee::AuthenticatedUsers, Permission::Write),
                Grant::new(Grantee::LogDelivery, Permission::ReadAcp),
                Grant::new(
                    Grantee::Account("000000000001".into()),
                    Permission::WriteAcp,
                ),
                Grant::all_to("999999999999"),
            ],
        };
        let bytes = [
            &[2, 1, 0, 0, 0, 0x00, 0x11, 0x22][..],
            &[0x33, 1, 0, 0, 0, 0, 0x34, 0xff, 0x0f, 0xa5, 0xd4, 0xe8],
        ]
        .concat();
        assert_eq!(acl.encode().unwrap(), bytes);
        assert_eq!(ObjectAcl::decode(&bytes), Some(acl));
        let nobodys = ObjectAcl::default();
        assert_eq!(nobodys.encode().unwrap(), [0xff; 5]);
        for bad in [
            &[][..],
            &[1, 2, 3, 4],
            &[0, 0x10, 0xa5, 0xd4, 0xe8],
            &[0, 0, 0, 0, 0, 0x05],
            &[0, 0, 0, 0, 0, 0x40],
            &[0, 0, 0, 0, 0, 0x30, 1, 2],
            &[0, 0, 0, 0, 0, 0x30, 0xff, 0xff, 0xff, 0xff, 0xff],
        ] {
            assert_eq!(ObjectAcl::decode(bad), None, "{bad:?}");
        }
        for bad in ["", "1", "11111111111x", "1111111111111"] {
            let acl = ObjectAcl {
                owner: Some(bad.into()),
                grants: vec![],
            };
            acl.encode().expect_err(bad);
        }
    }

    fn accounts() -> impl Strategy<Value = String> {
        (0u64..1_000_000_000_000).prop_map(|number| format!("{number:012}"))
    }

    fn grants() -> impl Strategy<Value = Vec<Grant>> {
        let to = prop_oneof![
            Just(Grantee::AllUsers),
            Just(Grantee::AuthenticatedUsers),
            Just(Grantee::LogDelivery),
            accounts().prop_map(Grantee::Account),
        ];
        let grant = (to, proptest::sample::select(&Permission::ALL[..]))
            .prop_map(|(to, may)| Grant::new(to, may));
        proptest::collection::vec(grant, 0..20)
    }

    proptest! {
        #[test]
        fn there_and_back(owner in proptest::option::of(accounts()), grants in grants()) {
            let acl = ObjectAcl { owner, grants };
            prop_assert_eq!(ObjectAcl::decode(&acl.encode().unwrap()), Some(acl));
        }

        #[test]
        fn anything_is_taken(bytes: Vec<u8>) {
            if let Some(acl) = ObjectAcl::decode(&bytes) {
                prop_assert_eq!(acl.encode().unwrap(), bytes);
            }
        }

        /// Nothing that is granted opens what a policy denies, and each grant more opens no less.
        #[test]
        fn denial_wins(mut grants in grants(), one in grants(), action in 0usize..14) {
            let (action, _) = BY_OBJECT[action];
            let asked = |grounds, grants: &[Grant]| {
                let list = List::Object(BOB, grants);
                allows(grounds, action, asker(Some(EVE)), ADA, list, false)
            };
            prop_assert!(!asked(Grounds::Denied, &grants));
            let before = asked(Grounds::None, &grants);
            grants.extend(one);
            prop_assert!(!before || asked(Grounds::None, &grants));
        }
    }
}
