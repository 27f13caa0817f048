//! What is kept of a bucket beside its objects: read and changed.
//!
//! Invariant: what is kept is done. What this gateway does not do is refused, and what nobody can have
//! set is told as S3 tells it of a bucket where nobody has.

use ashlar_cluster_s3::bucket::BucketConfig;
use ashlar_cluster_s3::documents::{
    parse_cors, parse_ownership, parse_public_access_block, parse_tagging, write_cors,
    write_ownership, write_public_access_block, write_tagging,
};
use ashlar_cluster_s3::operation::Operation;
use ashlar_cluster_s3::policy::{Of, Policy};
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::tags::BUCKET_TAGS_MAX;
use ashlar_cluster_s3::xml::Xml;

use crate::acl::{is_open, set_ownership};
use crate::faults::refused;
use crate::gateway::{Context, Gateway};
use crate::inbound::Inbound;
use crate::reply::Reply;

impl Gateway {
    /// Whatever is about a bucket's configuration.
    pub(crate) async fn configure(
        &self,
        operation: Operation,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        use Operation as O;
        let bucket = &context.call.bucket;
        self.check_bucket_there(bucket).await?;
        match operation {
            O::GetBucketTagging | O::PutBucketTagging | O::DeleteBucketTagging => {
                self.bucket_tagging(operation, context, body).await
            }
            O::GetBucketPolicy
            | O::GetBucketPolicyStatus
            | O::PutBucketPolicy
            | O::DeleteBucketPolicy => self.bucket_policy(operation, context, body).await,
            O::GetBucketCors | O::PutBucketCors | O::DeleteBucketCors => {
                self.bucket_cors(operation, context, body).await
            }
            O::GetBucketOwnershipControls
            | O::PutBucketOwnershipControls
            | O::DeleteBucketOwnershipControls => self.ownership(operation, context, body).await,
            O::GetPublicAccessBlock | O::PutPublicAccessBlock | O::DeletePublicAccessBlock => {
                self.public_access_block(operation, context, body).await
            }
            O::GetBucketLifecycleConfiguration
            | O::PutBucketLifecycleConfiguration
            | O::DeleteBucketLifecycle => self.bucket_lifecycle(operation, context, body).await,
            O::GetBucketVersioning | O::PutBucketVersioning => {
                self.bucket_versioning(operation, context, body).await
            }
            O::GetBucketEncryption | O::PutBucketEncryption | O::DeleteBucketEncryption => {
                self.bucket_encryption(operation, context, body).await
            }
            O::GetObjectLockConfiguration | O::PutObjectLockConfiguration => {
                self.bucket_object_lock(operation, context, body).await
            }
            O::GetBucketAcl | O::GetObjectAcl | O::PutBucketAcl | O::PutObjectAcl => {
                self.acl(operation, context, body).await
            }
            _ => self.unset(operation),
        }
    }

    /// Changes the configuration of the bucket that the caller was found to be allowed to change.
    pub(crate) async fn change(
        &self,
        context: &Context,
        change: impl Fn(&mut BucketConfig) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let authorized = context.access.bucket.as_ref();
        let bucket = &context.call.bucket;
        self.directory
            .change_bucket(bucket, authorized, change)
            .await
    }

    /// The same, of a change that is always right.
    async fn assign(
        &self,
        context: &Context,
        set: impl Fn(&mut BucketConfig),
    ) -> Result<(), Refusal> {
        let change = |config: &mut BucketConfig| {
            set(config);
            Ok(())
        };
        self.change(context, change).await
    }

    /// Sets what the request's document says.
    pub(crate) async fn take<T>(
        &self,
        context: &Context,
        body: Inbound,
        parse: impl FnOnce(&[u8]) -> Result<T, Refusal>,
        set: impl Fn(&mut BucketConfig, &T),
    ) -> Result<(), Refusal> {
        let document = self.document(context, body).await?;
        let said = parse(&document)?;
        self.assign(context, |config| set(config, &said)).await
    }

    /// Takes something out of it.
    pub(crate) async fn reset(
        &self,
        context: &Context,
        clear: impl Fn(&mut BucketConfig),
    ) -> Result<Reply, Refusal> {
        self.assign(context, clear).await?;
        Ok(Reply::no_content())
    }

    /// What nobody can set here, as S3 tells of it.
    fn unset(&self, operation: Operation) -> Result<Reply, Refusal> {
        use Operation as O;
        let empty = |name| Ok(Reply::xml(Xml::document(name, |_| {})));
        match operation {
            O::GetBucketLocation => {
                let region = self.options.region.as_str();
                // The first region there was has no name.
                let region = if region == "us-east-1" { "" } else { region };
                Ok(Reply::xml(Xml::text_document("LocationConstraint", region)))
            }
            O::GetBucketLogging => empty("BucketLoggingStatus"),
            O::GetBucketNotificationConfiguration => empty("NotificationConfiguration"),
            O::GetBucketAccelerateConfiguration => empty("AccelerateConfiguration"),
            O::GetBucketRequestPayment => {
                let document = Xml::document("RequestPaymentConfiguration", |xml| {
                    xml.text("Payer", "BucketOwner");
                });
                Ok(Reply::xml(document))
            }
            O::GetBucketWebsite => refused(
                Code::NoSuchWebsiteConfiguration,
                "The specified bucket does not have a website configuration",
            ),
            O::GetBucketReplication => refused(
                Code::ReplicationConfigurationNotFoundError,
                "The replication configuration was not found",
            ),
            other => {
                let message = format!("{} is not implemented", other.as_str());
                Err(Refusal::new(Code::NotImplemented, message))
            }
        }
    }

    async fn bucket_tagging(
        &self,
        operation: Operation,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        match operation {
            Operation::GetBucketTagging => match &context.access.bucket {
                Some(open) if !open.config.tags.is_empty() => {
                    Ok(Reply::xml(write_tagging(&open.config.tags)))
                }
                _ => refused(Code::NoSuchTagSet, "The TagSet does not exist"),
            },
            Operation::PutBucketTagging => {
                let parse = |document: &[u8]| parse_tagging(document, BUCKET_TAGS_MAX);
                self.take(context, body, parse, |config, tags| {
                    config.tags.clone_from(tags);
                })
                .await?;
                Ok(Reply::no_content())
            }
            _ => self.reset(context, |config| config.tags.clear()).await,
        }
    }

    async fn bucket_policy(
        &self,
        operation: Operation,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        let bucket = &context.call.bucket;
        let open = context.access.bucket.as_ref();
        let policy = open.and_then(|open| open.config.policy.as_ref());
        let none = || refused(Code::NoSuchBucketPolicy, "The bucket policy does not exist");
        match operation {
            Operation::GetBucketPolicy => match policy {
                Some(text) => {
                    let mut reply = Reply::ok().with("content-type", "application/json");
                    reply.body = crate::reply::ReplyBody::Full(text.clone().into());
                    Ok(reply)
                }
                None => none(),
            },
            Operation::GetBucketPolicyStatus => {
                let policy = open.and_then(|open| open.policy.as_ref());
                let of_acl = context.access.has_acls().map(is_open);
                if policy.is_none() && of_acl.is_none() {
                    return none();
                }
                let is_public = policy.is_some_and(Policy::is_public) || of_acl == Some(true);
                let document = Xml::document("PolicyStatus", |xml| {
                    xml.value("IsPublic", is_public);
                });
                Ok(Reply::xml(document))
            }
            Operation::PutBucketPolicy => {
                let document = self.document(context, body).await?;
                let Ok(text) = std::str::from_utf8(&document) else {
                    return refused(Code::MalformedPolicy, "Policies must be valid JSON");
                };
                let parsed = Policy::parse(text, Of::Bucket(bucket))?;
                let change = |config: &mut BucketConfig| {
                    let block = config.public_access_block.unwrap_or_default();
                    if block.block_public_policy && parsed.is_public() {
                        return crate::access::denied();
                    }
                    config.policy = Some(text.to_owned());
                    Ok(())
                };
                self.change(context, change).await?;
                Ok(Reply::no_content())
            }
            _ => self.reset(context, |config| config.policy = None).await,
        }
    }

    async fn bucket_cors(
        &self,
        operation: Operation,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        match operation {
            Operation::GetBucketCors => match &context.access.bucket {
                Some(open) if !open.config.cors.is_empty() => {
                    Ok(Reply::xml(write_cors(&open.config.cors)))
                }
                _ => refused(
                    Code::NoSuchCORSConfiguration,
                    "The CORS configuration does not exist",
                ),
            },
            Operation::PutBucketCors => {
                self.take(context, body, parse_cors, |config, rules| {
                    config.cors.clone_from(rules);
                })
                .await?;
                Ok(Reply::ok())
            }
            _ => self.reset(context, |config| config.cors.clear()).await,
        }
    }

    async fn ownership(
        &self,
        operation: Operation,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        match operation {
            Operation::GetBucketOwnershipControls => {
                let open = context.access.bucket.as_ref();
                match open.and_then(|open| open.config.ownership) {
                    Some(ownership) => Ok(Reply::xml(write_ownership(ownership))),
                    None => refused(
                        Code::OwnershipControlsNotFoundError,
                        "The bucket ownership controls were not found",
                    ),
                }
            }
            Operation::PutBucketOwnershipControls => {
                let document = self.document(context, body).await?;
                let ownership = parse_ownership(&document)?;
                let change = |config: &mut BucketConfig| set_ownership(config, Some(ownership));
                self.change(context, change).await?;
                Ok(Reply::ok())
            }
            // What the bucket was made with is so again.
            _ => {
                let change = |config: &mut BucketConfig| set_ownership(config, None);
                self.change(context, change).await?;
                Ok(Reply::no_content())
            }
        }
    }

    async fn public_access_block(
        &self,
        operation: Operation,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        match operation {
            Operation::GetPublicAccessBlock => {
                let open = context.access.bucket.as_ref();
                match open.and_then(|open| open.config.public_access_block.as_ref()) {
                    Some(block) => Ok(Reply::xml(write_public_access_block(block))),
                    None => refused(
                        Code::NoSuchPublicAccessBlockConfiguration,
                        "The public access block configuration was not found",
                    ),
                }
            }
            Operation::PutPublicAccessBlock => {
                self.take(context, body, parse_public_access_block, |config, block| {
                    config.public_access_block = Some(*block);
                })
                .await?;
                Ok(Reply::ok())
            }
            _ => {
                self.reset(context, |config| config.public_access_block = None)
                    .await
            }
        }
    }
}
