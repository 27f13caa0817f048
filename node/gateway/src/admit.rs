//! Who is let in, and what is read for them before that is known.
//!
//! Invariants:
//! - nothing is told or done before the store has said by which documents it is judged: after the request came, or so
//!   shortly before that nobody was told yet of a change since (see [`crate::kept`]);
//! - what is read ahead of that is judged by documents that are kept here, and given out only if the store says that
//!   the very same still stand; otherwise it is dropped, and all is done by the new ones;
//! - nothing is read ahead for somebody whom the kept documents do not let in.

use std::pin::pin;

use ashlar_cluster_s3::operation::{Level, Operation};
use ashlar_cluster_s3::policy::Grounds;
use ashlar_cluster_s3::refusal::Refusal;
use ashlar_cluster_s3::signature::Claim;
use ashlar_node_client::ListOptions;

use crate::access::{Access, CREATES, denied};
use crate::call::Call;
use crate::copies::says_tags;
use crate::directory::Documents;
use crate::faults::refusal;
use crate::gateway::{Context, Gateway};
use crate::locks::{authorize_lock, wants_locks};
use crate::reply::Reply;
use crate::versions::asked_version;

/// A request of which nobody knows yet whether it may be served.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) operation: Operation,
    pub(crate) call: Call,
    pub(crate) claim: Claim,
    pub(crate) now_ms: u64,
}

impl Asked {
    /// Refuses a request that its key's owner has not signed.
    pub(crate) fn check_signature(&self, documents: &Documents) -> Result<(), Refusal> {
        match &documents.key {
            Some(open) => {
                let secret = open.secret.reveal();
                self.claim
                    .check(&self.call.signed(), &self.call.query, secret)
            }
            None => Ok(()),
        }
    }
}

/// What changes nothing, and can be done before anybody knows whether it is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reading {
    Object { head: bool },
    Attributes,
    List(Operation),
}

impl Reading {
    pub(crate) fn of(operation: Operation) -> Option<Reading> {
        use Operation as O;
        match operation {
            O::GetObject => Some(Reading::Object { head: false }),
            O::HeadObject => Some(Reading::Object { head: true }),
            O::GetObjectAttributes => Some(Reading::Attributes),
            O::ListObjects | O::ListObjectsV2 | O::ListObjectVersions => {
                Some(Reading::List(operation))
            }
            _ => None,
        }
    }
}

/// What policies call an operation on an object, or on a version of it that is named.
pub(crate) fn of_version(operation: Operation, named: bool) -> &'static str {
    use Operation as O;
    match (operation, named) {
        (O::GetObject | O::HeadObject, true) => "s3:GetObjectVersion",
        (O::DeleteObject, true) => "s3:DeleteObjectVersion",
        (O::GetObjectTagging, true) => "s3:GetObjectVersionTagging",
        (O::PutObjectTagging, true) => "s3:PutObjectVersionTagging",
        (O::DeleteObjectTagging, true) => "s3:DeleteObjectVersionTagging",
        (O::GetObjectAttributes, true) => "s3:GetObjectVersionAttributes",
        (O::GetObjectAcl, true) => "s3:GetObjectVersionAcl",
        (O::PutObjectAcl, true) => "s3:PutObjectVersionAcl",
        _ => operation.action(),
    }
}

/// Whether an operation makes an object, if that is what it needs a right for.
fn creates(operation: Operation) -> Option<&'static str> {
    use Operation as O;
    match operation {
        O::CreateMultipartUpload | O::UploadPart | O::UploadPartCopy => Some("false"),
        _ => (operation.action() == "s3:PutObject").then_some("true"),
    }
}

impl Gateway {
    /// By which documents a request is judged, as the store has them now; and what it reads, if that could be done
    /// meanwhile, by the very same documents: whoever is answered with that was let in.
    pub(crate) async fn read_ahead(
        &self,
        request: &Asked,
    ) -> Result<(Documents, Option<Result<Reply, Refusal>>), Refusal> {
        let confirmed = self.directory.documents(request);
        let kept = self.directory.kept(request);
        let kept = kept.filter(|kept| request.check_signature(kept).is_ok());
        let (Some(reading), Some(kept)) = (Reading::of(request.operation), kept) else {
            return Ok((confirmed.await?, None));
        };
        let by = kept.clone();
        let ahead = async {
            let context = self.admit(request.clone(), by).await?;
            self.read(reading, &context).await
        };
        let (mut confirmed, mut ahead) = (pin!(confirmed), pin!(ahead));
        let mut result = None;
        let documents = loop {
            tokio::select! {
                biased;
                documents = &mut confirmed => break documents?,
                done = &mut ahead, if result.is_none() => result = Some(done),
            }
        };
        if !documents.are(&kept) {
            return Ok((documents, None));
        }
        let result = match result {
            Some(result) => result,
            None => ahead.await,
        };
        Ok((documents, Some(result)))
    }

    /// Lets in a request whose signature is right, by what the policies say.
    pub(crate) async fn admit(
        &self,
        request: Asked,
        documents: Documents,
    ) -> Result<Context, Refusal> {
        let Asked {
            operation,
            call,
            claim,
            now_ms,
        } = request;
        let Documents { key, bucket, asked } = documents;
        let mut access = Access::new(&call, &claim, key, bucket, now_ms);
        if let Some(creates) = creates(operation) {
            access.say(CREATES, creates);
        }
        access.check_expected_owner(call.header("x-amz-expected-bucket-owner"))?;
        let mut context = Context {
            call,
            claim,
            access,
            now_ms,
            asked,
        };
        self.authorize(operation, &mut context).await?;
        Ok(context)
    }

    /// Refuses what the caller may not do, as far as the request's head says what that is.
    async fn authorize(&self, operation: Operation, context: &mut Context) -> Result<(), Refusal> {
        let Context {
            call,
            access,
            now_ms,
            ..
        } = context;
        if operation == Operation::PostObject {
            // Who calls, and for what, stands in the form.
            return Ok(());
        }
        if call.level == Level::Object && access.looks_at_existing_tags() {
            let version = asked_version(call)?;
            self.say_tags_of(access, &call.bucket, &call.key, version)
                .await?;
        }
        let makes = matches!(
            operation,
            Operation::PutObject | Operation::CopyObject | Operation::CreateMultipartUpload
        );
        if makes {
            authorize_lock(access, call, *now_ms)?;
        }
        if makes
            && let Some(tagging) = call.header("x-amz-tagging")
            && says_tags(operation, call)?
        {
            let tags = ashlar_cluster_s3::tags::parse_header(tagging)?;
            access.say_requested_tags(&tags);
            if !tags.is_empty() {
                access.check("s3:PutObjectTagging", &call.arn())?;
            }
        }
        if operation == Operation::CreateBucket {
            access.say("s3:locationconstraint", &self.options.region);
            let mut actions = vec![operation.action()];
            if wants_locks(call)? {
                actions.extend([
                    "s3:PutBucketObjectLockConfiguration",
                    "s3:PutBucketVersioning",
                ]);
            }
            if call.header("x-amz-object-ownership").is_some() {
                actions.push("s3:PutBucketOwnershipControls");
            }
            let may = |action: &&str| access.may_create(action, &call.bucket);
            return match actions.iter().all(may) {
                true => Ok(()),
                false => denied(),
            };
        }
        if matches!(
            operation,
            Operation::DeleteObjects
                | Operation::PutObjectRetention
                | Operation::PutObjectLegalHold
                | Operation::PutObjectTagging
        ) {
            // Each of the keys is asked for, or the lock or the tags that the document says. That is not read for
            // somebody who may do nothing.
            let nothing = access.is_nobody();
            self.check_there(context).await?;
            return if nothing { denied() } else { Ok(()) };
        }
        let has_version = call.param("versionId").is_some();
        let resource = call.arn();
        let of_upload = matches!(
            operation,
            Operation::AbortMultipartUpload | Operation::ListParts
        );
        // What attributes tell, whoever reads the object is told too.
        let reads = operation == Operation::GetObjectAttributes;
        for asked in std::iter::once(operation).chain(reads.then_some(Operation::GetObject)) {
            let action = of_version(asked, has_version);
            if !access.may_wait(action, &resource) {
                let open = of_upload && access.has_acls().is_some();
                let denies = access.grounds(action, &resource, false) == Grounds::Denied;
                if !open || denies || !self.began(access, call).await? {
                    self.check_there(context).await?;
                    return denied();
                }
            }
        }
        access.check_acl(call)
    }

    /// Refuses what is about a bucket that is not there.
    pub(crate) async fn check_there(&self, context: &Context) -> Result<(), Refusal> {
        let call = &context.call;
        if call.level == Level::Service || context.access.bucket.is_some() {
            return Ok(());
        }
        self.check_bucket_there(&call.bucket).await
    }

    /// The same, of any bucket.
    pub(crate) async fn check_bucket_there(&self, bucket: &str) -> Result<(), Refusal> {
        let options = ListOptions {
            max: 1,
            ..ListOptions::default()
        };
        let page = self.store.list(bucket, options).await;
        page.map(drop).map_err(|error| refusal(&error))
    }

    /// Does what changes nothing.
    pub(crate) async fn read(&self, reading: Reading, context: &Context) -> Result<Reply, Refusal> {
        match reading {
            Reading::Object { head } => self.get_object(context, head).await,
            Reading::Attributes => self.get_object_attributes(context).await,
            Reading::List(operation) => self.list_objects(operation, context).await,
        }
    }
}
