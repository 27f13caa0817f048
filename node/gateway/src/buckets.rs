//! Making, finding, removing and listing buckets.
//!
//! Invariant: the store decides who made a bucket; its document is written by who did, and says by which
//! entry of the journal it was made: one that is about an earlier bucket of the name gives way.

use std::sync::Arc;

use ashlar_cluster_s3::bucket::{BucketConfig, Versioning};
use ashlar_cluster_s3::calendar::iso_date;
use ashlar_cluster_s3::documents::{check_ownership, parse_create_bucket};
use ashlar_cluster_s3::listing::{page_size, parse_token, token};
use ashlar_cluster_s3::object_lock::ObjectLock;
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::sweep::sweep_key;
use ashlar_cluster_s3::system::BUCKETS;
use ashlar_cluster_s3::xml::Xml;
use ashlar_layout::manifest::Precondition;
use ashlar_layout::message::BucketMeta;
use ashlar_layout::names::SYSTEM_BUCKET;
use ashlar_node_client::Code as Store;

use crate::access::denied;
use crate::acl::asks_acl;
use crate::directory::{owner_etag, reserved};
use crate::faults::{refusal, refused};
use crate::gateway::{Context, Gateway, to_the_end};
use crate::inbound::Inbound;
use crate::kept::settle;
use crate::lists::write_owner;
use crate::locks::wants_locks;
use crate::reply::Reply;
use crate::uploads::remove;

/// Most buckets of a page, as S3 has it.
const PAGE_MAX: usize = 10_000;
/// The region where who makes a bucket again that is the caller's already is not refused.
const LENIENT_REGION: &str = "us-east-1";

impl Gateway {
    /// CreateBucket.
    pub(crate) async fn create_bucket(
        self: &Arc<Self>,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        let (call, access) = (&context.call, &context.access);
        let Some(account) = access.account() else {
            return denied();
        };
        let ownership = call
            .header("x-amz-object-ownership")
            .map(check_ownership)
            .transpose()?;
        let document = self.document(context, body).await?;
        let (region, tags) = parse_create_bucket(&document)?;
        let ours = &self.options.region;
        // The first region there was has no name in this document.
        let named = region
            .as_deref()
            .map(|region| if region == "EU" { "eu-west-1" } else { region });
        if named.is_some_and(|region| region != ours) {
            let message = format!(
                "The {} location constraint is incompatible for the region specific endpoint this \
                 request was sent to.",
                named.unwrap_or_default()
            );
            return Err(Refusal::new(
                Code::IllegalLocationConstraintException,
                message,
            ));
        }
        let locks = wants_locks(call)?;
        let mut config = BucketConfig {
            ownership,
            tags,
            versioning: locks.then_some(Versioning::Enabled),
            object_lock: locks.then(ObjectLock::default),
            ..BucketConfig::new(account, 0)
        };
        self.set_new_acl(context, &mut config).await?;
        let acl = asks_acl(call)?.then(|| config.grants());
        let asked = (ownership, acl);
        let (this, bucket) = (self.clone(), call.bucket.clone());
        // A bucket that nobody says the owner of would be nobody's.
        let is_new = to_the_end(async move {
            match this.store.create_bucket(&bucket).await {
                Ok(made_by) => config.made_by = made_by.0,
                Err(error) if error.code() == Store::BucketExists => {
                    // Who made it may not have been told yet: another attempt of the same, for instance.
                    settle().await;
                    return Ok(false);
                }
                Err(error) => return Err(refusal(&error)),
            }
            this.directory.found_bucket(&bucket, &config).await?;
            Ok(true)
        })
        .await?;
        let open = access.bucket.as_ref();
        // What is asked for is there, or is not asked for.
        let as_asked = open.is_some_and(|open| {
            let (config, (ownership, acl)) = (&open.config, asked);
            (!locks || config.object_lock.is_some())
                && ownership.is_none_or(|asked| asked == config.ownership())
                && acl.is_none_or(|asked| asked == config.grants())
        });
        match access.is_owner() {
            // The first region there was takes it for done, and its clients count on that.
            owns if is_new || owns && *ours == LENIENT_REGION && as_asked => {
                Ok(Reply::ok().with("location", &format!("/{}", call.bucket)))
            }
            true => refused(
                Code::BucketAlreadyOwnedByYou,
                "Your previous request to create the named bucket succeeded and you already own it.",
            ),
            false => refused(
                Code::BucketAlreadyExists,
                "The requested bucket name is not available. The bucket namespace is shared by all users of the \
                 system. Please select a different name and try again.",
            ),
        }
    }

    /// HeadBucket.
    pub(crate) async fn head_bucket(&self, context: &Context) -> Result<Reply, Refusal> {
        self.check_bucket_there(&context.call.bucket).await?;
        let region = &self.options.region;
        Ok(Reply::ok()
            .with("x-amz-bucket-region", region)
            .with("x-amz-access-point-alias", "false")
            .with("content-type", "application/xml"))
    }

    /// DeleteBucket.
    pub(crate) async fn delete_bucket(
        self: &Arc<Self>,
        context: &Context,
    ) -> Result<Reply, Refusal> {
        let bucket = context.call.bucket.clone();
        let (open, before_ms) = (context.access.bucket.clone(), context.now_ms);
        let this = self.clone();
        // Nobody can ask for the rest again once the bucket is gone.
        to_the_end(async move {
            let deleted = this.store.delete_bucket(&bucket).await;
            deleted.map_err(|error| refusal(&error))?;
            this.directory.forget_bucket(&bucket, open.as_ref()).await?;
            // What is recorded of its lifecycle is of no use to anybody.
            remove(&this.store, &sweep_key(&bucket), Precondition::None, false).await?;
            // What was uploaded to it, and never put together, belongs to nobody now.
            this.purge_uploads(&bucket, before_ms).await
        })
        .await?;
        Ok(Reply::no_content())
    }

    /// The buckets that the caller may know of: all, or the caller's own.
    async fn buckets_of(&self, context: &Context) -> Result<Vec<BucketMeta>, Refusal> {
        let all = self
            .store
            .buckets()
            .await
            .map_err(|error| refusal(&error))?;
        let mut all: Vec<BucketMeta> = all
            .into_iter()
            .filter(|b| b.name != SYSTEM_BUCKET)
            .collect();
        if context.access.is_admin() {
            return Ok(all);
        }
        let own = owner_etag(context.access.account().unwrap_or_default());
        let mut names = std::collections::HashSet::new();
        let mut after = String::new();
        loop {
            let page = reserved(&self.store, BUCKETS, after).await?;
            let owned = page.objects.into_iter().filter(|o| o.etag == own);
            names.extend(owned.filter_map(|o| Some(o.key.strip_prefix(BUCKETS)?.to_owned())));
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        all.retain(|bucket| names.contains(&bucket.name));
        Ok(all)
    }

    /// ListBuckets.
    pub(crate) async fn list_buckets(&self, context: &Context) -> Result<Reply, Refusal> {
        let call = &context.call;
        let Some(account) = context.access.account() else {
            return denied();
        };
        let most = match call.number("max-buckets")? {
            None => PAGE_MAX,
            Some(0) => {
                return refused(
                    Code::InvalidArgument,
                    "Argument max-buckets must be an integer between 1 and 10000",
                );
            }
            Some(asked) => {
                page_size(Some(asked), "max-buckets")?;
                usize::try_from(asked).unwrap_or(PAGE_MAX).min(PAGE_MAX)
            }
        };
        let after = call
            .param("continuation-token")
            .map(parse_token)
            .transpose()?;
        let prefix = call.param("prefix").unwrap_or_default();
        let region = call.param("bucket-region").unwrap_or(&self.options.region);
        let mut buckets = match region == self.options.region {
            true => self.buckets_of(context).await?,
            false => Vec::new(),
        };
        buckets.retain(|bucket| {
            bucket.name.starts_with(prefix)
                && after.as_ref().is_none_or(|after| bucket.name > *after)
        });
        let more = buckets.len() > most;
        buckets.truncate(most);
        let document = Xml::document("ListAllMyBucketsResult", |xml| {
            write_owner(xml, "Owner", account);
            xml.element("Buckets", |xml| {
                for bucket in &buckets {
                    xml.element("Bucket", |xml| {
                        xml.text("Name", &bucket.name);
                        xml.text("CreationDate", &iso_date(bucket.created_ms));
                        if call.param("max-buckets").is_some() {
                            xml.text("BucketRegion", &self.options.region);
                        }
                    });
                }
            });
            if let Some(last) = buckets.last().filter(|_| more) {
                xml.text("ContinuationToken", &token(&last.name));
            }
            xml.some("Prefix", call.param("prefix"));
        });
        Ok(Reply::xml(document))
    }
}
