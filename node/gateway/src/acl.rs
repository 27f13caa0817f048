//! Access control lists: asked for, told, changed, and looked at where they have a say.
//!
//! Invariants:
//! - where a bucket's owner owns all that is in it, nothing here asks the store anything, and no list is looked at;
//! - an object's list is judged as it stands in the very version that is then given or changed;
//! - a list is changed of the version that was found, as tags are: nothing else of it changes.

use std::collections::HashMap;
use std::sync::Arc;

use ashlar_cluster_s3::acl::{
    self, Asker, Grant, List, allows, canned, in_order, is_of_object, is_public, of_object,
    owner_of_new, to_keep,
};
use ashlar_cluster_s3::acl_document::{Named, Wanted, parse_acl, parse_grants, write_acl};
use ashlar_cluster_s3::attributes::Attributes;
use ashlar_cluster_s3::bucket::{BucketConfig, Ownership};
use ashlar_cluster_s3::operation::Operation;
use ashlar_cluster_s3::policy::Grounds;
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::system::UploadRecord;
use ashlar_cluster_s3::users::canonical;
use ashlar_layout::manifest::VersionTag;
use ashlar_layout::message::{ListEntry, ObjectMeta};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::access::{Access, denied};
use crate::call::{Call, arn};
use crate::faults::{internal, is_absent, refusal, refused};
use crate::gateway::{Context, Gateway, attributes};
use crate::inbound::Inbound;
use crate::reply::Reply;
use crate::versions::set_version;

/// Objects that are looked at at once for whose they are.
const AT_ONCE: usize = 32;

/// With ACLs off, the one that there is may be asked for, and no other.
fn no_acls<T>() -> Result<T, Refusal> {
    refused(
        Code::AccessControlListNotSupported,
        "The bucket does not allow ACLs",
    )
}

/// Whether a list that is asked for by name is the one that there is where lists mean nothing.
fn is_plain(name: Option<&str>) -> bool {
    matches!(
        name,
        None | Some("" | "private" | "bucket-owner-full-control")
    )
}

/// The list that a request's headers ask for.
#[derive(Debug)]
struct OfHeaders<'a> {
    canned: Option<&'a str>,
    grants: Option<Wanted>,
}

impl OfHeaders<'_> {
    fn of(call: &Call) -> Result<OfHeaders<'_>, Refusal> {
        let canned = call.header("x-amz-acl").filter(|name| !name.is_empty());
        let grants = parse_grants(&call.headers_from("x-amz-grant-"))?;
        if canned.is_some() && grants.is_some() {
            return refused(
                Code::InvalidRequest,
                "Specifying both Canned ACLs and Header Grants is not allowed",
            );
        }
        Ok(OfHeaders { canned, grants })
    }

    fn is_some(&self) -> bool {
        self.canned.is_some() || self.grants.is_some()
    }
}

/// A list that a request asks for, whose accounts are known.
enum Asked {
    Canned(String),
    /// Whose the thing is, if that is said; and the grants.
    Grants(Option<String>, Vec<Grant>),
}

impl Asked {
    /// The grants of a thing of this owner, in a bucket of that one if it is an object.
    fn grants(&self, owner: &str, of_bucket: Option<&str>) -> Result<Vec<Grant>, Refusal> {
        match self {
            Asked::Canned(name) => match canned(name, owner, of_bucket) {
                Some(grants) => Ok(grants),
                None => refused(
                    Code::InvalidArgument,
                    "There is no canned ACL of this name here",
                ),
            },
            Asked::Grants(Some(said), _) if *said != canonical(owner) => denied(),
            Asked::Grants(_, grants) => Ok(grants.clone()),
        }
    }
}

/// Whether a request says who may do what with what it makes.
pub(crate) fn asks_acl(call: &Call) -> Result<bool, Refusal> {
    Ok(OfHeaders::of(call)?.is_some())
}

/// Refuses what lets in the public where that is not to be.
fn check_public(config: &BucketConfig, grants: &[Grant]) -> Result<(), Refusal> {
    let block = config.public_access_block.unwrap_or_default();
    match block.block_public_acls && is_public(grants) {
        true => denied(),
        false => Ok(()),
    }
}

/// Whose an upload's object is to be.
pub(crate) fn owner_of(access: &Access, record: &UploadRecord) -> String {
    let kept = match access.has_acls() {
        Some(_) => record.attributes().ok().and_then(|found| found.acl),
        None => None,
    };
    of_object(kept.as_ref(), access.owner()).0
}

/// Whether a bucket lets in the public by its list.
pub(crate) fn is_open(config: &BucketConfig) -> bool {
    let block = config.public_access_block.unwrap_or_default();
    config.has_acls() && !block.ignore_public_acls && is_public(&config.grants())
}

/// Says whose what is put is to be; a bucket whose list lets others in may not be without one.
pub(crate) fn set_ownership(
    config: &mut BucketConfig,
    ownership: Option<Ownership>,
) -> Result<(), Refusal> {
    config.ownership = ownership;
    if !config.has_acls() && config.acl.is_some() {
        return refused(
            Code::InvalidBucketAclWithObjectOwnership,
            "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting",
        );
    }
    Ok(())
}

impl Access {
    /// The bucket's configuration, if lists mean something in it.
    pub(crate) fn has_acls(&self) -> Option<&BucketConfig> {
        let config = self.bucket.as_ref().map(|open| &open.config);
        config.filter(|config| config.has_acls())
    }

    /// Whether an answer is a yes, by a list if by nothing else.
    pub(crate) fn by_list(
        &self,
        grounds: Grounds,
        action: &str,
        found: Option<&Attributes>,
    ) -> bool {
        let Some(config) = self.has_acls() else {
            return !matches!(grounds, Grounds::Denied | Grounds::None);
        };
        let asker = Asker {
            account: self.account(),
            bounded: self.is_bounded(),
        };
        let block = config.public_access_block.unwrap_or_default();
        let ignores = block.ignore_public_acls;
        match found.filter(|_| is_of_object(action)) {
            Some(found) => {
                let (owner, grants) = of_object(found.acl.as_ref(), &config.owner);
                let list = List::Object(&owner, &grants);
                allows(grounds, action, asker, &config.owner, list, ignores)
            }
            None => {
                let grants = config.grants();
                let list = List::Bucket(&grants);
                allows(grounds, action, asker, &config.owner, list, ignores)
            }
        }
    }

    /// Whether what the caller may do is bounded by a policy of their own.
    pub(crate) fn is_bounded(&self) -> bool {
        self.key.as_ref().is_some_and(|open| open.policy.is_some())
    }

    /// Whether the answer is the object owner's to give, and so waits until the object is found.
    pub(crate) fn waits_for_object(&self, action: &str, resource: &str) -> bool {
        let decided = |grounds| matches!(grounds, Grounds::Denied | Grounds::Certain);
        self.has_acls().is_some()
            && is_of_object(action)
            && !decided(self.grounds(action, resource, false))
    }

    /// Refuses what the caller may not do with the object that was found.
    pub(crate) fn check_of(
        &self,
        action: &str,
        resource: &str,
        found: &Attributes,
    ) -> Result<(), Refusal> {
        let grounds = self.grounds(action, resource, false);
        match self.by_list(grounds, action, Some(found)) {
            true => Ok(()),
            false => denied(),
        }
    }

    /// Whether the caller may do this to an object, as far as that is known before it is found. What is not is asked of
    /// the one that is found: of its owner, and by the tags that it has then.
    pub(crate) fn may_wait(&mut self, action: &'static str, resource: &str) -> bool {
        let waits = self.waits_for_object(action, resource);
        let may = waits || self.may(action, resource);
        if waits || may && self.looks_at_existing_tags() {
            self.waiting.push(action);
        }
        may
    }

    /// The same of what the request asks for, if that waited for the object.
    pub(crate) fn check_found(
        &self,
        (bucket, key): (&str, &str),
        meta: &ObjectMeta,
    ) -> Result<(), Refusal> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let (found, resource) = (attributes(meta)?, arn(bucket, key));
        let by_tags = self.looks_at_existing_tags().then(|| {
            let mut access = self.clone();
            access.say_existing_tags(&found.tags);
            access
        });
        let access = by_tags.as_ref().unwrap_or(self);
        let mut waiting = self.waiting.iter();
        waiting.try_for_each(|action| access.check_of(action, &resource, &found))
    }
}

impl Gateway {
    /// The grants that a request asks for, of accounts that there are.
    async fn resolve(&self, access: &Access, wanted: &Wanted) -> Result<Vec<Grant>, Refusal> {
        let known = [access.account().unwrap_or_default(), access.owner()];
        let mut accounts: HashMap<String, String> = known
            .into_iter()
            .filter(|account| !account.is_empty())
            .map(|account| (canonical(account), account.to_owned()))
            .collect();
        let unknown: Vec<&str> = wanted
            .ids()
            .filter(|id| !accounts.contains_key(*id))
            .collect();
        accounts.extend(self.directory.accounts(&unknown).await?);
        wanted.grants(|id| accounts.get(id).map(String::as_str))
    }

    /// The list that a request's headers ask for.
    async fn asked_acl(
        &self,
        access: &Access,
        of: OfHeaders<'_>,
    ) -> Result<Option<Asked>, Refusal> {
        Ok(match (of.canned, of.grants) {
            (Some(name), _) => Some(Asked::Canned(name.to_owned())),
            (None, Some(wanted)) => {
                let grants = self.resolve(access, &wanted).await?;
                Some(Asked::Grants(None, grants))
            }
            (None, None) => None,
        })
    }

    /// Says whose a new object is, and what others may do with it.
    pub(crate) async fn set_acl(
        &self,
        access: &Access,
        call: &Call,
        attributes: &mut Attributes,
    ) -> Result<(), Refusal> {
        let of = OfHeaders::of(call)?;
        attributes.acl = None;
        let Some(config) = access.has_acls() else {
            return match is_plain(of.canned) && of.grants.is_none() {
                true => Ok(()),
                false => no_acls(),
            };
        };
        let of_bucket = config.owner.as_str();
        let owner = owner_of_new(config.ownership(), access.account(), of.canned, of_bucket);
        // Who may put an object may say what its list is, as its owner may, unless a policy is against it. Whom nothing
        // but the bucket's policy lets in, to put what is another one's then, may give it to that one altogether, and
        // needs leave for anything else.
        let gives = of.canned == Some("bucket-owner-full-control");
        let by_policy = || access.grounds("s3:PutObject", &call.arn(), false) == Grounds::Bucket;
        let may = match access.account() == Some(owner) || gives || !by_policy() {
            true => access.may_as_owner("s3:PutObjectAcl", &call.arn()),
            false => access.may("s3:PutObjectAcl", &call.arn()),
        };
        if of.is_some() && !may {
            return denied();
        }
        let grants = match self.asked_acl(access, of).await? {
            Some(asked) => asked.grants(owner, Some(of_bucket))?,
            None => vec![Grant::all_to(owner)],
        };
        check_public(config, &grants)?;
        attributes.acl = to_keep(owner, grants, of_bucket);
        // What does not fit is refused before the body comes.
        attributes.encode().map(drop)
    }

    /// Says what a new bucket's list is, and whose what is put into it.
    pub(crate) async fn set_new_acl(
        &self,
        context: &Context,
        config: &mut BucketConfig,
    ) -> Result<(), Refusal> {
        let default = self.options.ownership;
        config.default_ownership = (default != Ownership::default()).then_some(default);
        let of = OfHeaders::of(&context.call)?;
        if !config.has_acls() {
            return match matches!(of.canned, None | Some("private")) && of.grants.is_none() {
                true => Ok(()),
                false => refused(
                    Code::InvalidBucketAclWithObjectOwnership,
                    "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting",
                ),
            };
        }
        let access = &context.access;
        let bucket = &context.call.bucket;
        if of.is_some() && !access.may_create("s3:PutBucketAcl", bucket) {
            return denied();
        }
        if let Some(asked) = self.asked_acl(access, of).await? {
            config.set_grants(asked.grants(&config.owner, None)?);
        }
        Ok(())
    }

    /// GetBucketAcl, PutBucketAcl, GetObjectAcl, PutObjectAcl.
    pub(crate) async fn acl(
        &self,
        operation: Operation,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        let (access, owner) = (&context.access, context.access.owner());
        match operation {
            Operation::GetBucketAcl => {
                let config = access.has_acls();
                let grants = config.map_or_else(|| vec![Grant::all_to(owner)], |c| c.grants());
                Ok(Reply::xml(write_acl(owner, &grants)))
            }
            Operation::GetObjectAcl => {
                let meta = self.find(context).await?;
                let kept = match access.has_acls() {
                    Some(_) => attributes(&meta)?.acl,
                    None => None,
                };
                let (owner, grants) = of_object(kept.as_ref(), owner);
                let mut reply = Reply::xml(write_acl(&owner, &grants));
                set_version(&mut reply, context.keeping(), &meta);
                Ok(reply)
            }
            operation => self.put_acl(operation, context, body).await,
        }
    }

    async fn put_acl(
        &self,
        operation: Operation,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        let (call, access) = (&context.call, &context.access);
        let of_object = operation == Operation::PutObjectAcl;
        if of_object {
            self.find(context).await?;
        }
        let of = OfHeaders::of(call)?;
        let Some(config) = access.has_acls() else {
            return self.put_no_acl(context, of, body).await;
        };
        let document = self.document(context, body).await?;
        let asked = match (self.asked_acl(access, of).await?, document.is_empty()) {
            (Some(asked), true) => asked,
            (Some(_), false) => {
                return refused(
                    Code::UnexpectedContent,
                    "This request does not support content",
                );
            }
            (None, true) => {
                return refused(
                    Code::MissingSecurityHeader,
                    "Your request was missing a required header: an ACL, or headers that grant something",
                );
            }
            (None, false) => {
                let wanted = parse_acl(&document)?;
                let grants = self.resolve(access, &wanted).await?;
                Asked::Grants(wanted.owner, grants)
            }
        };
        if !of_object {
            let change = |config: &mut BucketConfig| {
                if !config.has_acls() {
                    return no_acls();
                }
                let grants = asked.grants(&config.owner, None)?;
                check_public(config, &grants)?;
                config.set_grants(grants);
                Ok(())
            };
            self.change(context, change).await?;
            return Ok(Reply::ok());
        }
        let set = |attributes: &mut Attributes| {
            let (owner, _) = acl::of_object(attributes.acl.as_ref(), &config.owner);
            let grants = in_order(asked.grants(&owner, Some(&config.owner))?);
            check_public(config, &grants)?;
            attributes.acl = to_keep(&owner, grants, &config.owner);
            Ok(())
        };
        self.rewrite(context, set, Reply::ok()).await
    }

    /// Takes the one list that there is where lists mean nothing: the owner's.
    async fn put_no_acl(
        &self,
        context: &Context,
        of: OfHeaders<'_>,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        if of.is_some() {
            return match is_plain(of.canned) && of.grants.is_none() {
                true => Ok(Reply::ok()),
                false => no_acls(),
            };
        }
        let document = self.document(context, body).await?;
        let id = canonical(context.access.owner());
        let owners = (Named::Id(id), acl::Permission::FullControl);
        match parse_acl(&document)?.grants == [owners] {
            true => Ok(Reply::ok()),
            false => no_acls(),
        }
    }

    /// Whose listed objects are: none where that is not told by object. A list does not say it, so each is looked at;
    /// one that is gone meanwhile, and a marker, is the bucket owner's.
    pub(crate) async fn owners(
        &self,
        context: &Context,
        entries: &[ListEntry],
    ) -> Result<Option<Vec<String>>, Refusal> {
        let (access, bucket) = (&context.access, context.call.bucket.as_str());
        if access.has_acls().is_none() {
            return Ok(None);
        }
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        let mut tasks = JoinSet::new();
        let mut owners = vec![access.owner().to_owned(); entries.len()];
        for (i, entry) in entries.iter().enumerate() {
            if entry.tag.is_some_and(|tag| tag.marker) {
                continue;
            }
            let (store, at_once) = (self.store.clone(), at_once.clone());
            let (bucket, key, tag) = (bucket.to_owned(), entry.key.clone(), entry.tag);
            tasks.spawn(async move {
                // Nobody closes it.
                let _permit = at_once.acquire_owned().await;
                let found = match tag.map(VersionTag::slot) {
                    None => store.head(&bucket, &key).await,
                    Some(version) => store.head_version(&bucket, &key, version).await,
                };
                (i, found)
            });
        }
        while let Some(done) = tasks.join_next().await {
            match done.map_err(internal)? {
                // What is remembered of it may be a newer gateway's, which this one does not understand: it is listed
                // all the same, as the bucket owner's.
                (i, Ok(meta)) => {
                    if let Ok(found) = attributes(&meta) {
                        owners[i] = of_object(found.acl.as_ref(), access.owner()).0;
                    }
                }
                (_, Err(error)) if is_absent(&error) => {}
                (_, Err(error)) => return Err(refusal(&error)),
            }
        }
        Ok(Some(owners))
    }

    /// Whether the caller began the upload that a request names: who did may end it, and look at its parts.
    pub(crate) async fn began(&self, access: &Access, call: &Call) -> Result<bool, Refusal> {
        let Some(account) = access.account().filter(|_| !access.is_bounded()) else {
            return Ok(false);
        };
        let upload = self.named_upload(call).await?;
        Ok(upload.is_some_and(|upload| upload.record.owner == account))
    }
}
