//! Access control lists: who is let in, by which of them, and how they are kept.

use proptest::prelude::*;

use crate::acl::*;
use crate::bucket::Ownership;
use crate::policy::Grounds;

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
