//! Whether a caller may do what a request asks for.
//!
//! Invariant: every operation asks here, with the action and the resource that it is about, before it
//! reads or changes anything; what is decided is decided by [`ashlar_cluster_s3::policy::decide`].

use std::borrow::Cow;
use std::sync::Arc;

use ashlar_cluster_s3::bucket::Ownership;
use ashlar_cluster_s3::condition::{EXISTING_TAG, Keys, REQUESTED_TAG, time_keys};
use ashlar_cluster_s3::policy::{Asked, Caller, Grounds, Policy, Standing, decide, grounds};
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::signature::Claim;
use ashlar_cluster_s3::tags::Tags;

use crate::acl::is_open;
use crate::call::{Call, arn};
use crate::directory::{OpenBucket, OpenKey};
use crate::faults::refused;

/// Who calls, and what is known of the bucket that the call is about.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) caller: Caller,
    pub(crate) key: Option<Arc<OpenKey>>,
    pub(crate) bucket: Option<Arc<OpenBucket>>,
    /// What the request is to do with an object, if whether it may is the object owner's to say, or depends on the tags
    /// that it has: that is asked when the object is found.
    pub(crate) waiting: Vec<&'static str>,
    /// What the request says of itself.
    keys: Keys,
}

/// Whether a request makes an object, of those that need the right to: parts of one come without a condition, and
/// policies tell them apart by this.
pub(crate) const CREATES: &str = "s3:objectcreationoperation";
/// Bytes of a value that a policy looks at: a request of which it would have to look at a longer one is denied. Amazon
/// takes 8 KB of headers in all.
const VALUE_MAX: usize = 4096;
/// Headers that policies know, and what they call them.
const HEADERS: &[(&str, &str)] = &[
    ("referer", "aws:referer"),
    ("user-agent", "aws:useragent"),
    ("if-match", "s3:if-match"),
    ("if-none-match", "s3:if-none-match"),
    ("x-amz-acl", "s3:x-amz-acl"),
    ("x-amz-content-sha256", "s3:x-amz-content-sha256"),
    ("x-amz-copy-source", "s3:x-amz-copy-source"),
    ("x-amz-grant-full-control", "s3:x-amz-grant-full-control"),
    ("x-amz-grant-read", "s3:x-amz-grant-read"),
    ("x-amz-grant-read-acp", "s3:x-amz-grant-read-acp"),
    ("x-amz-grant-write", "s3:x-amz-grant-write"),
    ("x-amz-grant-write-acp", "s3:x-amz-grant-write-acp"),
    ("x-amz-object-ownership", "s3:x-amz-object-ownership"),
    ("x-amz-metadata-directive", "s3:x-amz-metadata-directive"),
    (
        "x-amz-server-side-encryption",
        "s3:x-amz-server-side-encryption",
    ),
    (
        "x-amz-server-side-encryption-customer-algorithm",
        "s3:x-amz-server-side-encryption-customer-algorithm",
    ),
    ("x-amz-storage-class", "s3:x-amz-storage-class"),
];
/// Parameters of the query that policies know.
const PARAMS: &[(&str, &str)] = &[
    ("delimiter", "s3:delimiter"),
    ("max-keys", "s3:max-keys"),
    ("prefix", "s3:prefix"),
    ("versionId", "s3:versionid"),
];

impl Access {
    pub(crate) fn new(
        call: &Call,
        claim: &Claim,
        key: Option<Arc<OpenKey>>,
        bucket: Option<Arc<OpenBucket>>,
        now_ms: u64,
    ) -> Access {
        let mut keys = Keys::new();
        time_keys(now_ms, &mut keys);
        let mut say = |key: &str, value: &str| {
            keys.insert(key.to_owned(), vec![value.to_owned()]);
        };
        say(
            "aws:sourceip",
            &call.address.ip().to_canonical().to_string(),
        );
        say(
            "aws:securetransport",
            if call.secure { "true" } else { "false" },
        );
        for (name, key) in HEADERS {
            // What is then done goes by the first one that came; of grants, by all of them.
            let value = match name.starts_with("x-amz-grant-") {
                true => call.joined_header(name).map(Cow::Owned),
                false => call.header(name).map(Cow::Borrowed),
            };
            if let Some(value) = value {
                say(key, &value);
            }
        }
        for (name, key) in PARAMS {
            if let Some(value) = call.param(name) {
                say(key, value);
            }
        }
        if let (Some(version), Some(kind)) = (claim.version(), claim.kind()) {
            say("s3:signatureversion", version);
            say("s3:authtype", kind);
        }
        if let Some(age) = claim.age_ms(now_ms) {
            say("s3:signatureage", &age.to_string());
        }
        let caller = match &key {
            None => Caller::Anonymous,
            Some(open) => {
                let user = &open.key.user;
                say("aws:username", &user.name);
                say("aws:userid", &user.account);
                say("aws:principalaccount", &user.account);
                user.caller()
            }
        };
        say(
            "aws:principaltype",
            if key.is_some() { "User" } else { "Anonymous" },
        );
        if let Some(arn) = caller.arn() {
            say("aws:principalarn", &arn);
        }
        Access {
            caller,
            key,
            bucket,
            waiting: Vec::new(),
            keys,
        }
    }

    /// Says something of the request that only its operation knows.
    pub(crate) fn say(&mut self, key: &str, value: &str) {
        self.keys.insert(key.to_owned(), vec![value.to_owned()]);
    }

    /// Says which version of an object is asked for: of many, and of what is copied, the query does not say it.
    pub(crate) fn say_version(&mut self, version: Option<&str>) {
        self.keys.remove("s3:versionid");
        if let Some(version) = version {
            self.say("s3:versionid", version);
        }
    }

    /// Says which tags the object has that the request is about.
    pub(crate) fn say_existing_tags(&mut self, tags: &Tags) {
        // Those of another object, or of an earlier version, say nothing of this one.
        self.keys.retain(|key, _| !key.starts_with(EXISTING_TAG));
        self.say_tags(EXISTING_TAG, tags);
    }

    /// Policies know tags' names in any case. Where names differ by nothing else, all their values are
    /// said: see [`Access::may`].
    fn say_tags(&mut self, beginning: &str, tags: &Tags) {
        for (name, value) in tags {
            let key = format!("{beginning}{}", name.to_ascii_lowercase());
            let values = self.keys.entry(key).or_default();
            if !values.contains(value) {
                values.push(value.clone());
            }
        }
    }

    /// Says which tags an object is to have.
    pub(crate) fn say_requested_tags(&mut self, tags: &Tags) {
        self.keys.retain(|key, _| !key.starts_with(REQUESTED_TAG));
        self.say_tags(REQUESTED_TAG, tags);
        if !tags.is_empty() {
            let names = tags.iter().map(|(name, _)| name.clone()).collect();
            self.keys
                .insert("s3:requestobjecttagkeys".to_owned(), names);
        }
    }

    /// Whether the answer depends on which tags the object has.
    pub(crate) fn looks_at_existing_tags(&self) -> bool {
        self.policies().any(Policy::looks_at_existing_tags)
    }

    /// The same of one of these actions.
    pub(crate) fn looks_at_tags_to(&self, actions: &[&str]) -> bool {
        self.policies().any(|p| p.looks_at_tags_to(actions))
    }

    /// The policies that have a say.
    fn policies(&self) -> impl Iterator<Item = &Policy> {
        let of_bucket = self.bucket.as_ref().and_then(|open| open.policy.as_ref());
        let of_user = self.key.as_ref().and_then(|open| open.policy.as_ref());
        of_bucket.into_iter().chain(of_user)
    }

    /// Whether a policy looks at what cannot be judged: at a tag of which there are two values, of names that differ by
    /// case only, for which one is meant cannot be told; or at more than it is worth to look through.
    fn is_unclear(&self) -> bool {
        let tag = |key: &str| key.starts_with(EXISTING_TAG) || key.starts_with(REQUESTED_TAG);
        let long = |values: &[String]| values.iter().any(|value| value.len() > VALUE_MAX);
        let unclear =
            |(key, values): &(&String, &Vec<String>)| tag(key) && values.len() > 1 || long(values);
        let mut many = self.keys.iter().filter(unclear);
        many.any(|(key, _)| self.policies().any(|p| p.looks_at(|looked| looked == key)))
    }

    /// Whether the caller is nobody in particular, and the bucket lets in nobody like that.
    pub(crate) fn is_nobody(&self) -> bool {
        let lets_in = |open: &Arc<OpenBucket>| open.policy.is_some() || is_open(&open.config);
        self.key.is_none() && !self.bucket.as_ref().is_some_and(lets_in)
    }

    /// The caller's account, if it has one.
    pub(crate) fn account(&self) -> Option<&str> {
        self.key.as_ref().map(|open| open.key.user.account.as_str())
    }

    /// Whether the caller may do everything.
    pub(crate) fn is_admin(&self) -> bool {
        self.key.as_ref().is_some_and(|open| open.key.user.admin)
    }

    /// Whether the bucket is the caller's.
    pub(crate) fn is_owner(&self) -> bool {
        match (&self.bucket, self.account()) {
            (Some(open), Some(account)) => open.config.owner == account,
            _ => false,
        }
    }

    /// The bucket's owner, if it has one.
    pub(crate) fn owner(&self) -> &str {
        self.bucket
            .as_ref()
            .map_or("", |open| open.config.owner.as_str())
    }

    /// Whether the caller may do this to that: of an object, before it is known whose that is.
    pub(crate) fn may(&self, action: &str, resource: &str) -> bool {
        let grounds = self.grounds(action, resource, false);
        self.by_list(grounds, action, None)
    }

    /// The same, if it is the caller's.
    pub(crate) fn may_as_owner(&self, action: &str, resource: &str) -> bool {
        let grounds = self.grounds(action, resource, true);
        !matches!(grounds, Grounds::Denied | Grounds::None)
    }

    /// What policies and who has the bucket say to this.
    pub(crate) fn grounds(&self, action: &str, resource: &str, as_owner: bool) -> Grounds {
        if self.is_unclear() {
            return Grounds::Denied;
        }
        let asked = Asked {
            caller: &self.caller,
            action,
            resource,
            keys: &self.keys,
        };
        let block = self
            .bucket
            .as_ref()
            .and_then(|open| open.config.public_access_block);
        let to_no_bucket = resource == "*";
        let standing = Standing {
            is_admin: self.is_admin(),
            is_owner: if to_no_bucket {
                self.key.is_some()
            } else {
                as_owner || self.is_owner()
            },
            user: self.key.as_ref().and_then(|open| open.policy.as_ref()),
            bucket: self.bucket.as_ref().and_then(|open| open.policy.as_ref()),
            restrict_public: block.is_some_and(|block| block.restrict_public_buckets),
        };
        grounds(&asked, &standing)
    }

    /// Whether the caller may make a bucket of this name. One that there is, and what its policy says, is
    /// nothing to it.
    pub(crate) fn may_create(&self, action: &str, bucket: &str) -> bool {
        let asked = Asked {
            caller: &self.caller,
            action,
            resource: &arn(bucket, ""),
            keys: &self.keys,
        };
        let standing = Standing {
            is_admin: self.is_admin(),
            is_owner: true,
            user: self.key.as_ref().and_then(|open| open.policy.as_ref()),
            bucket: None,
            restrict_public: false,
        };
        self.key.is_some() && decide(&asked, &standing)
    }

    /// Refuses what the caller may not.
    pub(crate) fn check(&self, action: &str, resource: &str) -> Result<(), Refusal> {
        if self.may(action, resource) {
            Ok(())
        } else {
            denied()
        }
    }

    /// Refuses an ACL where the bucket's owner has said that there are none: even the one that says what is so
    /// anyway. Where nobody has said so it is taken, for clients send it without being asked.
    pub(crate) fn check_acl(&self, call: &Call) -> Result<(), Refusal> {
        let acl = call.header("x-amz-acl").unwrap_or_default();
        let named = !matches!(acl, "" | "bucket-owner-full-control");
        let asks = named || !call.headers_from("x-amz-grant-").is_empty();
        let enforced =
            |open: &Arc<OpenBucket>| open.config.ownership == Some(Ownership::BucketOwnerEnforced);
        match self.bucket.as_ref().is_some_and(enforced) {
            true if asks => refused(
                Code::AccessControlListNotSupported,
                "The bucket does not allow ACLs",
            ),
            _ => Ok(()),
        }
    }

    /// What is said of an object that is not there: to who may not list the bucket, not even that. Who may
    /// list what begins with its key may know.
    pub(crate) fn absent(&self, bucket: &str, key: &str) -> Refusal {
        let mut listing = self.clone();
        listing.say("s3:prefix", key);
        if listing.may("s3:ListBucket", &arn(bucket, "")) {
            Refusal::new(Code::NoSuchKey, "The specified key does not exist.")
        } else {
            Refusal::new(Code::AccessDenied, "Access Denied")
        }
    }

    /// Refuses a request that expects the bucket to be another one's.
    pub(crate) fn check_expected_owner(&self, expected: Option<&str>) -> Result<(), Refusal> {
        match expected {
            Some(expected) if expected != self.owner() => denied(),
            _ => Ok(()),
        }
    }
}

pub(crate) fn denied<T>() -> Result<T, Refusal> {
    refused(Code::AccessDenied, "Access Denied")
}

#[cfg(test)]
mod tests {
    use ashlar_cluster_s3::acl::{Grant, Grantee, ObjectAcl, Permission};
    use ashlar_cluster_s3::attributes::Attributes;
    use ashlar_cluster_s3::bucket::BucketConfig;
    use ashlar_cluster_s3::policy::Of;
    use ashlar_layout::ids::Seq;

    use super::*;

    /// Somebody without a key, before a bucket with this statement's condition.
    fn anyone(condition: &str) -> Access {
        let text = format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":"*","Action":"s3:*",
            "Resource":"arn:aws:s3:::b/*","Condition":{condition}}}]}}"#
        );
        let open = OpenBucket {
            version: Seq(1),
            policy: Some(Policy::parse(&text, Of::Bucket("b")).unwrap()),
            config: BucketConfig::new("111111111111", 1),
        };
        Access {
            caller: Caller::Anonymous,
            key: None,
            bucket: Some(Arc::new(open)),
            waiting: Vec::new(),
            keys: Keys::new(),
        }
    }

    fn tags(pairs: &[(&str, &str)]) -> Tags {
        let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        pairs.iter().map(own).collect()
    }

    #[test]
    fn tags_that_differ_by_case_only() {
        let condition = r#"{"StringEquals":{"s3:ExistingObjectTag/Open":"yes"}}"#;
        let may = |pairs: &[(&str, &str)]| {
            let mut access = anyone(condition);
            access.say_existing_tags(&tags(pairs));
            access.may("s3:GetObject", "arn:aws:s3:::b/k")
        };
        assert!(may(&[("open", "yes")]));
        assert!(may(&[("open", "yes"), ("OPEN", "yes")]));
        assert!(may(&[("open", "yes"), ("other", "1"), ("Other", "2")]));
        assert!(!may(&[("open", "no")]));
        assert!(!may(&[("open", "yes"), ("Open", "no")]));
        assert!(!may(&[("Open", "no"), ("open", "yes")]));
        assert!(!may(&[]));
        let mut access = anyone(r#"{"StringNotEquals":{"s3:RequestObjectTag/a":"1"}}"#);
        access.say_requested_tags(&tags(&[("a", "2"), ("A", "3")]));
        assert!(!access.may("s3:PutObject", "arn:aws:s3:::b/k"));
    }

    #[test]
    fn what_is_too_long_to_be_looked_at_is_denied() {
        let may = |condition: &str, len: usize| {
            let mut access = anyone(condition);
            access.say("aws:useragent", &"a".repeat(len));
            access.may("s3:GetObject", "arn:aws:s3:::b/k")
        };
        let looks = r#"{"StringNotLike":{"aws:UserAgent":"*b"}}"#;
        assert!(may(looks, VALUE_MAX));
        assert!(!may(looks, VALUE_MAX + 1));
        assert!(may("{}", VALUE_MAX + 1));
    }

    #[test]
    fn tags_are_those_of_one_object() {
        let mut access = anyone(r#"{"StringEquals":{"s3:ExistingObjectTag/open":"yes"}}"#);
        access.say_existing_tags(&tags(&[("open", "yes")]));
        assert!(access.may("s3:GetObject", "arn:aws:s3:::b/k"));
        access.say_existing_tags(&tags(&[("x", "y")]));
        assert!(!access.may("s3:GetObject", "arn:aws:s3:::b/other"));
    }

    #[test]
    fn somebody_and_nobody() {
        let mut access = anyone("{}");
        assert!(!access.is_nobody());
        access.bucket = None;
        assert!(access.is_nobody());
    }

    /// Somebody without a key, before a bucket in which lists mean something, and which has this one.
    fn before_lists(effect: &str, grants: Vec<Grant>) -> Access {
        let mut access = anyone("{}");
        let text = format!(
            r#"{{"Statement":[{{"Effect":"{effect}","Principal":"*","Action":"s3:GetObject","Resource":
            "arn:aws:s3:::b/denied"}}]}}"#
        );
        access.bucket = Some(Arc::new(OpenBucket {
            version: Seq(1),
            policy: Some(Policy::parse(&text, Of::Bucket("b")).unwrap()),
            config: BucketConfig {
                ownership: Some(Ownership::ObjectWriter),
                acl: Some(grants),
                ..BucketConfig::new("111111111111", 1)
            },
        }));
        access
    }

    /// Whoever forgets to ask again when the object is known lets nobody in.
    #[test]
    fn an_objects_list_is_asked_when_it_is_found() {
        let open = vec![Grant::new(Grantee::AllUsers, Permission::FullControl)];
        let access = before_lists("Deny", open.clone());
        let (there, denied) = ("arn:aws:s3:::b/k", "arn:aws:s3:::b/denied");
        assert!(access.may("s3:ListBucket", "arn:aws:s3:::b") && access.may("s3:PutObject", there));
        assert!(!access.may("s3:GetObject", there));
        assert!(access.waits_for_object("s3:GetObject", there));
        assert!(!access.waits_for_object("s3:GetObject", denied));
        assert!(!access.waits_for_object("s3:PutObject", there));
        let of = |acl| Attributes {
            acl,
            ..Attributes::default()
        };
        let public = of(Some(ObjectAcl {
            owner: Some("222222222222".to_owned()),
            grants: open,
        }));
        access.check_of("s3:GetObject", there, &public).unwrap();
        for (action, resource, found) in [
            ("s3:GetObject", there, of(None)),
            ("s3:GetObject", denied, public.clone()),
            ("s3:GetObjectTagging", there, public.clone()),
        ] {
            access.check_of(action, resource, &found).unwrap_err();
        }
        // What a policy allows, it allows of what is the bucket owner's.
        let access = before_lists("Allow", vec![]);
        access.check_of("s3:GetObject", denied, &of(None)).unwrap();
        let private = of(Some(ObjectAcl {
            owner: Some("222222222222".to_owned()),
            grants: vec![],
        }));
        access
            .check_of("s3:GetObject", denied, &private)
            .unwrap_err();
        // And where there are no lists, none opens anything.
        let mut access = anyone("{}");
        access.bucket = None;
        access.check_of("s3:GetObject", there, &public).unwrap_err();
        assert!(!access.waits_for_object("s3:GetObject", there));
    }

    #[test]
    fn nobody_is_let_in_by_a_list() {
        let open = vec![Grant::new(Grantee::AllUsers, Permission::Write)];
        let mut access = before_lists("Deny", open);
        let config = access.bucket.as_ref().unwrap().config.clone();
        for (ownership, lets_in) in [(config.ownership, true), (None, false)] {
            access.bucket = Some(Arc::new(OpenBucket {
                version: Seq(2),
                policy: None,
                config: BucketConfig {
                    ownership,
                    ..config.clone()
                },
            }));
            assert_eq!(access.is_nobody(), !lets_in);
        }
    }

    #[test]
    fn nobody_makes_buckets() {
        let access = anyone("{}");
        assert!(!access.may_create("s3:CreateBucket", "b"));
    }
}
