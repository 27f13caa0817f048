//! The reference suite of policies: each case is a policy, a request, and what is to come of it.

#![allow(clippy::unwrap_used)]

use ashlar_cluster_s3::condition::{Keys, time_keys};
use ashlar_cluster_s3::policy::{Asked, Caller, Of, POLICY_MAX, Policy, Standing, Verdict, decide};
use ashlar_cluster_s3::refusal::Code;
use proptest::prelude::*;
use serde_json::{Value, json};

const ADA: &str = "111111111111";
const BOB: &str = "222222222222";

fn user(account: &str, name: &str) -> Caller {
    Caller::User {
        account: account.to_owned(),
        name: name.to_owned(),
        canonical: account.repeat(6)[..64].to_owned(),
    }
}

fn ada() -> Caller {
    user(ADA, "ada")
}

fn bob() -> Caller {
    user(BOB, "bob")
}

fn bucket_policy(statements: Value) -> Policy {
    let text = json!({ "Version": "2012-10-17", "Statement": statements }).to_string();
    Policy::parse(&text, Of::Bucket("b")).unwrap()
}

fn keys(pairs: &[(&str, &str)]) -> Keys {
    let mut keys = Keys::new();
    time_keys(1_700_000_000_000, &mut keys);
    for (key, value) in pairs {
        keys.entry((*key).to_owned())
            .or_default()
            .push((*value).to_owned());
    }
    keys
}

fn verdict(
    policy: &Policy,
    caller: &Caller,
    action: &str,
    resource: &str,
    pairs: &[(&str, &str)],
) -> Verdict {
    let keys = keys(pairs);
    policy.verdict(&Asked {
        caller,
        action,
        resource,
        keys: &keys,
    })
}

const GET: &str = "s3:GetObject";
const PUT: &str = "s3:PutObject";
const LIST: &str = "s3:ListBucket";
const BUCKET: &str = "arn:aws:s3:::b";
const OBJECT: &str = "arn:aws:s3:::b/dir/key";

#[test]
fn who() {
    use Verdict::{Allowed, Silent};
    let about = |principal: Value| {
        bucket_policy(json!({
            "Effect": "Allow", "Principal": principal, "Action": GET, "Resource": "arn:aws:s3:::b/*",
        }))
    };
    let canonical = &ADA.repeat(6)[..64];
    let root = format!("arn:aws:iam::{ADA}:root");
    let arn = format!("arn:aws:iam::{ADA}:user/ada");
    let path = format!("arn:aws:iam::{ADA}:user/team/ada");
    let other = format!("arn:aws:iam::{ADA}:user/eve");
    let role = format!("arn:aws:iam::{ADA}:role/ada");
    for (principal, [of_ada, of_bob, of_nobody]) in [
        (json!("*"), [Allowed, Allowed, Allowed]),
        (json!({ "AWS": "*" }), [Allowed, Allowed, Allowed]),
        (json!({ "AWS": ADA }), [Allowed, Silent, Silent]),
        (json!({ "AWS": root }), [Allowed, Silent, Silent]),
        (json!({ "AWS": arn }), [Allowed, Silent, Silent]),
        (json!({ "AWS": path }), [Allowed, Silent, Silent]),
        (json!({ "AWS": [other, BOB] }), [Silent, Allowed, Silent]),
        (
            json!({ "CanonicalUser": canonical }),
            [Allowed, Silent, Silent],
        ),
        (json!({ "AWS": role }), [Silent, Silent, Silent]),
        (
            json!({ "Service": "logging.s3.amazonaws.com" }),
            [Silent, Silent, Silent],
        ),
        (
            json!({ "Service": "x", "AWS": BOB }),
            [Silent, Allowed, Silent],
        ),
    ] {
        let policy = about(principal.clone());
        for (caller, expected) in [
            (ada(), of_ada),
            (bob(), of_bob),
            (Caller::Anonymous, of_nobody),
        ] {
            assert_eq!(
                verdict(&policy, &caller, GET, OBJECT, &[]),
                expected,
                "{principal} {caller:?}"
            );
        }
    }
    let all_but_ada = bucket_policy(json!({
        "Effect": "Deny", "NotPrincipal": { "AWS": ADA }, "Action": "*", "Resource": [BUCKET, "arn:aws:s3:::b/*"],
    }));
    assert_eq!(verdict(&all_but_ada, &ada(), GET, OBJECT, &[]), Silent);
    assert_eq!(
        verdict(&all_but_ada, &bob(), GET, OBJECT, &[]),
        Verdict::Denied
    );
    assert_eq!(
        verdict(&all_but_ada, &Caller::Anonymous, LIST, BUCKET, &[]),
        Verdict::Denied
    );
}

#[test]
fn what() {
    use Verdict::{Allowed, Denied, Silent};
    let allow = |action: Value, resource: Value| {
        bucket_policy(
            json!({ "Effect": "Allow", "Principal": "*", "Action": action, "Resource": resource }),
        )
    };
    let everything = json!([BUCKET, "arn:aws:s3:::b/*"]);
    for (policy, action, resource, expected) in [
        (
            allow(json!("s3:*"), everything.clone()),
            PUT,
            OBJECT,
            Allowed,
        ),
        (allow(json!("*"), everything.clone()), LIST, BUCKET, Allowed),
        (
            allow(json!("S3:getobject"), everything.clone()),
            GET,
            OBJECT,
            Allowed,
        ),
        (
            allow(json!(["s3:List*", "s3:Get*"]), everything.clone()),
            GET,
            OBJECT,
            Allowed,
        ),
        (
            allow(json!("s3:GetObject?"), everything.clone()),
            GET,
            OBJECT,
            Silent,
        ),
        (
            allow(json!("s3:GetObjectTagging"), everything.clone()),
            GET,
            OBJECT,
            Silent,
        ),
        (allow(json!("s3:*"), json!(BUCKET)), GET, OBJECT, Silent),
        (
            allow(json!("s3:*"), json!("arn:aws:s3:::b/*")),
            LIST,
            BUCKET,
            Silent,
        ),
        (
            allow(json!("s3:*"), json!("arn:aws:s3:::b/dir/*")),
            GET,
            OBJECT,
            Allowed,
        ),
        (
            allow(json!("s3:*"), json!("arn:aws:s3:::b/*/ke?")),
            GET,
            OBJECT,
            Allowed,
        ),
        (
            allow(json!("s3:*"), json!("arn:aws:s3:::b/DIR/*")),
            GET,
            OBJECT,
            Silent,
        ),
        (
            allow(json!("s3:*"), json!("arn:aws:s3:::b*")),
            GET,
            OBJECT,
            Allowed,
        ),
    ] {
        assert_eq!(
            verdict(&policy, &ada(), action, resource, &[]),
            expected,
            "{action} {policy:?}"
        );
    }
    let not = bucket_policy(json!([
        { "Effect": "Allow", "Principal": "*", "NotAction": "s3:Put*", "Resource": "arn:aws:s3:::b/*" },
        { "Effect": "Deny", "Principal": "*", "Action": "s3:*", "NotResource": "arn:aws:s3:::b/dir/*" },
    ]));
    assert_eq!(verdict(&not, &ada(), GET, OBJECT, &[]), Allowed);
    assert_eq!(verdict(&not, &ada(), PUT, OBJECT, &[]), Silent);
    assert_eq!(
        verdict(&not, &ada(), GET, "arn:aws:s3:::b/other", &[]),
        Denied
    );
    assert_eq!(verdict(&not, &ada(), LIST, BUCKET, &[]), Denied);
}

#[test]
fn when() {
    use Verdict::{Allowed, Denied, Silent};
    let policy = bucket_policy(json!([
        {
            "Sid": "list", "Effect": "Allow", "Principal": "*", "Action": LIST, "Resource": BUCKET,
            "Condition": {
                "StringLike": { "s3:prefix": ["home/${aws:username}/*", "public/*"] },
                "NumericLessThanEquals": { "s3:max-keys": 100 },
            },
        },
        {
            "Sid": "home", "Effect": "Allow", "Principal": "*", "Action": "s3:*",
            "Resource": "arn:aws:s3:::b/home/${aws:username}/*",
        },
        {
            "Sid": "tls", "Effect": "Deny", "Principal": "*", "Action": "s3:*",
            "Resource": [BUCKET, "arn:aws:s3:::b/*"], "Condition": { "Bool": { "aws:SecureTransport": false } },
        },
    ]));
    let list = |prefix, max, secure| {
        let pairs = [
            ("aws:username", "ada"),
            ("s3:prefix", prefix),
            ("s3:max-keys", max),
            ("aws:securetransport", secure),
        ];
        verdict(&policy, &ada(), LIST, BUCKET, &pairs)
    };
    assert_eq!(list("home/ada/x", "100", "true"), Allowed);
    assert_eq!(list("public/", "1", "true"), Allowed);
    assert_eq!(list("home/bob/", "100", "true"), Silent);
    assert_eq!(list("home/ada/", "101", "true"), Silent);
    assert_eq!(list("home/ada/", "100", "false"), Denied);
    // What the request does not say: no.
    assert_eq!(verdict(&policy, &ada(), LIST, BUCKET, &[]), Silent);
    let get = |name: &str, key: &str| {
        let resource = format!("arn:aws:s3:::b/home/{key}");
        verdict(&policy, &ada(), GET, &resource, &[("aws:username", name)])
    };
    assert_eq!(get("ada", "ada/x"), Allowed);
    assert_eq!(get("ada", "adah/x"), Silent);
    assert_eq!(get("*", "ada/x"), Silent, "a name is no wildcard");
    let anonymous = verdict(
        &policy,
        &Caller::Anonymous,
        GET,
        "arn:aws:s3:::b/home//x",
        &[],
    );
    assert_eq!(anonymous, Silent, "who has no name has no home");
    // Variables came with the newer version.
    let old = json!({ "Version": "2008-10-17", "Statement": {
        "Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::b/${aws:username}",
    } });
    let old = Policy::parse(&old.to_string(), Of::Bucket("b")).unwrap();
    let literal = "arn:aws:s3:::b/${aws:username}";
    assert_eq!(
        verdict(&old, &ada(), GET, literal, &[("aws:username", "ada")]),
        Allowed
    );
}

fn standing<'a>(user: Option<&'a Policy>, bucket: Option<&'a Policy>) -> Standing<'a> {
    Standing {
        is_admin: false,
        is_owner: false,
        user,
        bucket,
        restrict_public: false,
    }
}

/// Every combination of what the two policies say and what the caller is.
#[test]
fn deny_wins_and_the_default_is_no() {
    let of_bucket = |effect: &str| {
        bucket_policy(json!({
            "Effect": effect, "Principal": "*", "Action": "s3:*", "Resource": [BUCKET, "arn:aws:s3:::b/*"],
        }))
    };
    let of_user = |effect: &str| {
        let text = json!({ "Version": "2012-10-17", "Statement": {
            "Effect": effect, "Action": "s3:*", "Resource": "*",
        } });
        Policy::parse(&text.to_string(), Of::User).unwrap()
    };
    let silent = json!({ "Statement": {
        "Effect": "Allow", "Action": "s3:ListAllMyBuckets", "Resource": "*",
    } });
    let silent = Policy::parse(&silent.to_string(), Of::User).unwrap();
    let bucket_says = [None, Some(of_bucket("Allow")), Some(of_bucket("Deny"))];
    let user_says = [
        None,
        Some(silent),
        Some(of_user("Allow")),
        Some(of_user("Deny")),
    ];
    let keys = keys(&[]);
    let caller = ada();
    let asked = Asked {
        caller: &caller,
        action: GET,
        resource: OBJECT,
        keys: &keys,
    };
    let mut allowed = 0;
    for (b, bucket) in bucket_says.iter().enumerate() {
        for (u, user) in user_says.iter().enumerate() {
            for (is_admin, is_owner) in [(false, false), (false, true), (true, false), (true, true)]
            {
                let standing = Standing {
                    is_admin,
                    is_owner,
                    ..standing(user.as_ref(), bucket.as_ref())
                };
                let denied = b == 2 || u == 3;
                let reason = b == 1 || u == 2 || is_admin || is_owner && u == 0;
                let expected = !denied && reason;
                assert_eq!(
                    decide(&asked, &standing),
                    expected,
                    "{b} {u} {is_admin} {is_owner}"
                );
                allowed += u32::from(expected);
            }
        }
    }
    assert_eq!(allowed, 4 * 3 + 3 + 2 + 4);
}

#[test]
fn nobody_is_locked_out_of_mending_a_policy() {
    let deny = bucket_policy(json!({
        "Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": [BUCKET, "arn:aws:s3:::b/*"],
    }));
    let keys = keys(&[]);
    let caller = ada();
    let may = |action, is_owner, is_admin| {
        let asked = Asked {
            caller: &caller,
            action,
            resource: BUCKET,
            keys: &keys,
        };
        let standing = Standing {
            is_owner,
            is_admin,
            ..standing(None, Some(&deny))
        };
        decide(&asked, &standing)
    };
    for action in [
        "s3:GetBucketPolicy",
        "s3:PutBucketPolicy",
        "s3:DeleteBucketPolicy",
    ] {
        assert!(
            may(action, true, false) && may(action, false, true),
            "{action}"
        );
        assert!(!may(action, false, false), "{action}");
    }
    assert!(!may(LIST, true, false) && !may("s3:DeleteBucket", true, true));
}

#[test]
fn what_is_public() {
    let policy = |principal: Value, condition: Value| {
        bucket_policy(json!({
            "Effect": "Allow", "Principal": principal, "Action": GET, "Resource": "arn:aws:s3:::b/*",
            "Condition": condition,
        }))
    };
    for (principal, condition, expected) in [
        (json!("*"), json!({}), true),
        (json!({ "AWS": "*" }), json!({}), true),
        (json!({ "AWS": ADA }), json!({}), false),
        (
            json!("*"),
            json!({ "IpAddress": { "aws:SourceIp": "10.0.0.0/16" } }),
            false,
        ),
        (
            json!("*"),
            json!({ "IpAddress": { "aws:SourceIp": "0.0.0.0/1" } }),
            true,
        ),
        (
            json!("*"),
            json!({ "StringEquals": { "aws:username": "ada" } }),
            false,
        ),
        (
            json!("*"),
            json!({ "StringLike": { "aws:username": "a*" } }),
            true,
        ),
        (
            json!("*"),
            json!({ "StringNotEquals": { "aws:username": "ada" } }),
            true,
        ),
        (
            json!("*"),
            json!({ "StringEquals": { "s3:prefix": "x" } }),
            true,
        ),
    ] {
        assert_eq!(
            policy(principal.clone(), condition.clone()).is_public(),
            expected,
            "{principal} {condition}"
        );
    }
    let denies = bucket_policy(json!({
        "Effect": "Deny", "Principal": "*", "Action": GET, "Resource": "arn:aws:s3:::b/*",
    }));
    assert!(!denies.is_public());
    // A public policy of a bucket that restricts them lets in its owner only.
    let public = policy(json!("*"), json!({}));
    let keys = keys(&[]);
    for (caller, is_owner, expected) in [
        (ada(), true, true),
        (bob(), false, false),
        (Caller::Anonymous, false, false),
    ] {
        let asked = Asked {
            caller: &caller,
            action: GET,
            resource: OBJECT,
            keys: &keys,
        };
        let open = Standing {
            is_owner,
            ..standing(None, Some(&public))
        };
        assert!(decide(&asked, &open), "{caller:?}");
        let restricted = Standing {
            restrict_public: true,
            ..open
        };
        assert_eq!(decide(&asked, &restricted), expected, "{caller:?}");
    }
}

#[test]
fn policies_that_look_at_tags_say_so() {
    let policy = |resource: &str, condition: Value| {
        bucket_policy(json!({
            "Effect": "Allow", "Principal": "*", "Action": GET, "Resource": resource, "Condition": condition,
        }))
        .looks_at_existing_tags()
    };
    let all = "arn:aws:s3:::b/*";
    assert!(!policy(all, json!({})));
    assert!(!policy(
        all,
        json!({ "StringEquals": { "s3:RequestObjectTag/a": "b" } })
    ));
    assert!(policy(
        all,
        json!({ "StringEquals": { "s3:ExistingObjectTag/a": "b" } })
    ));
    assert!(policy(
        all,
        json!({ "StringEquals": { "aws:username": "${s3:ExistingObjectTag/owner}" } })
    ));
    assert!(policy(
        "arn:aws:s3:::b/${s3:ExistingObjectTag/owner}",
        json!({})
    ));
}

#[test]
fn policies_that_are_refused() {
    let good = json!({ "Effect": "Allow", "Principal": "*", "Action": GET, "Resource": "arn:aws:s3:::b/*" });
    let with = |field: &str, value: Value| {
        let mut statement = good.clone();
        if value.is_null() {
            statement.as_object_mut().unwrap().remove(field);
        } else {
            statement[field] = value;
        }
        json!({ "Version": "2012-10-17", "Statement": [statement] }).to_string()
    };
    Policy::parse(&with("Sid", json!("x")), Of::Bucket("b")).unwrap();
    let twice = json!({ "Statement": [{ "Sid": "a" }, { "Sid": "a" }] }).to_string();
    let long = with("Resource", json!(vec!["arn:aws:s3:::b/x"; POLICY_MAX / 16]));
    for text in [
        "",
        "{}",
        "[]",
        "{\"Statement\": []}",
        "{\"Statement\": [1]}",
        &json!({ "Version": "2012-10-18", "Statement": [good] }).to_string(),
        &json!({ "Version": 1, "Statement": [good] }).to_string(),
        &json!({ "Id": 1, "Statement": [good] }).to_string(),
        &json!({ "Other": 1, "Statement": [good] }).to_string(),
        &twice,
        &long,
        &with("Effect", Value::Null),
        &with("Effect", json!("allow")),
        &with("Principal", Value::Null),
        &with("Principal", json!("ada")),
        &with("Principal", json!({})),
        &with("Principal", json!({ "AWS": [] })),
        &with("Principal", json!({ "AWS": "ada" })),
        &with("Principal", json!({ "AWS": "arn:aws:iam::123:user/ada" })),
        &with("Principal", json!({ "Who": "*" })),
        &with("NotPrincipal", json!("*")),
        &with("Action", Value::Null),
        &with("Action", json!([])),
        &with("Action", json!("ec2:Run")),
        &with("NotAction", json!(GET)),
        &with("Resource", Value::Null),
        &with("Resource", json!("*")),
        &with("Resource", json!("arn:aws:s3:::other/*")),
        &with("Resource", json!("arn:aws:s3:::bb/*")),
        &with("Resource", json!("b/*")),
        &with("NotResource", json!(BUCKET)),
        &with("Condition", json!([])),
        &with("Condition", json!({ "StringEquals": "x" })),
        &with(
            "Condition",
            json!({ "StringEquals": { "aws:username": [] } }),
        ),
        &with(
            "Condition",
            json!({ "StringEquals": { "aws:username": { "a": 1 } } }),
        ),
        &with(
            "Condition",
            json!({ "StringEquals": { "aws:unheard": "x" } }),
        ),
        &with("Condition", json!({ "StringIs": { "aws:username": "x" } })),
        &with("Extra", json!(1)),
    ] {
        let error = Policy::parse(text, Of::Bucket("b")).expect_err(text);
        assert_eq!(error.code, Code::MalformedPolicy, "{text}");
    }
    let user = |text: &str| Policy::parse(text, Of::User);
    user(&with("Principal", Value::Null)).unwrap();
    user(&with("Principal", json!("*"))).expect_err("a user's policy has no principal");
}

proptest! {
    /// Whatever comes is taken or refused.
    #[test]
    fn anything_is_taken(text in "[\\x20-\\x7e]{0,200}") {
        let _ = Policy::parse(&text, Of::Bucket("b"));
    }

    /// One more statement that denies makes nothing allowed that was not, and one that allows makes
    /// nothing denied.
    #[test]
    fn more_statements_go_one_way(
        effects in proptest::collection::vec(any::<bool>(), 1..6),
        actions in proptest::collection::vec(0usize..4, 6),
        asked in 0usize..4,
    ) {
        const ACTIONS: [&str; 4] = ["s3:GetObject", "s3:PutObject", "s3:*", "s3:Get*"];
        let statement = |i: usize| json!({
            "Effect": if effects[i] { "Allow" } else { "Deny" }, "Principal": "*",
            "Action": ACTIONS[actions[i]], "Resource": "arn:aws:s3:::b/*",
        });
        let all: Vec<Value> = (0..effects.len()).map(statement).collect();
        let say = |statements: &[Value]| match statements {
            [] => Verdict::Silent,
            some => verdict(&bucket_policy(json!(some)), &ada(), ACTIONS[asked], OBJECT, &[]),
        };
        let (before, after) = (say(&all[1..]), say(&all));
        if effects[0] {
            prop_assert!(after == before || (before, after) == (Verdict::Silent, Verdict::Allowed));
        } else {
            prop_assert!(after == before || after == Verdict::Denied);
        }
    }
}
