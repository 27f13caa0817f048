//! Objects that get another key of their bucket. Amazon has this in directory buckets only; here, in every bucket that
//! never kept versions (see `decisions/2026-11-28-rename.md`).
//!
//! Invariants:
//! - whoever renames may read the object and remove it where it is, and put one where it is to be;
//! - conditions are judged on the very objects that are changed: the journal refuses it if either is another one by
//!   then;
//! - a request that comes again with its token is answered as the first was, and does nothing, for as long as the
//!   object that it gave a key is found under that.

use std::sync::Arc;

use ashlar_cluster_s3::conditional::{Current, etag};
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::rename::Rename;
use ashlar_layout::message::ObjectMeta;
use ashlar_node_client::{ClientError, Code as Store, RenameOptions, Seal};

use crate::call::arn;
use crate::faults::{busy, is_absent, refusal, refused};
use crate::gateway::{Context, Gateway, attributes, modified_ms, to_the_end};
use crate::reply::Reply;
use crate::tagging::kept_etag;
use crate::versions::{Keeping, missing, standing};

/// So often a rename is tried again that others got in the way of.
const TRIES: usize = 8;

fn not_of_versions<T>() -> Result<T, Refusal> {
    refused(
        Code::InvalidRequest,
        "Objects of a bucket that keeps versions, or has done so, cannot be renamed",
    )
}

fn current(meta: &ObjectMeta) -> Result<(Current, u64), Refusal> {
    let current = Current {
        etag: etag(&meta.manifest, meta.id()),
        version: meta.version,
    };
    Ok((current, modified_ms(meta, &attributes(meta)?)))
}

impl Gateway {
    /// RenameObject.
    pub(crate) async fn rename_object(
        self: &Arc<Self>,
        context: &Context,
    ) -> Result<Reply, Refusal> {
        let call = &context.call;
        self.check_there(context).await?;
        let account = context.access.account().unwrap_or_default();
        let names = (call.bucket.as_str(), call.key.as_str());
        let rename = Rename::parse(|name| call.header(name), account, names)?;
        if context.keeping() != Keeping::Off {
            return not_of_versions();
        }
        self.may_take(context, &rename.source, None)?;
        let (this, context) = (self.clone(), context.clone());
        to_the_end(async move { this.give_key(&context, &rename).await }).await
    }

    /// Refuses who may not read and remove an object, as far as that depends on this.
    fn may_take(
        &self,
        context: &Context,
        source: &str,
        found: Option<&ObjectMeta>,
    ) -> Result<(), Refusal> {
        let mut access = context.access.clone();
        let by_object = access.looks_at_existing_tags() || access.has_acls().is_some();
        if by_object != found.is_some() {
            return Ok(());
        }
        let source = arn(&context.call.bucket, source);
        match found {
            Some(meta) => {
                let found = attributes(meta)?;
                access.say_existing_tags(&found.tags);
                access.check_of("s3:GetObject", &source, &found)?;
            }
            None => access.check("s3:GetObject", &source)?,
        }
        access.check("s3:DeleteObject", &source)
    }

    async fn give_key(&self, context: &Context, rename: &Rename) -> Result<Reply, Refusal> {
        let call = &context.call;
        let (bucket, source) = (call.bucket.as_str(), rename.source.as_str());
        for _ in 0..TRIES {
            // The source first: if it is gone because this very request was done before, that is seen then.
            let found = self.store.head(bucket, source).await;
            let there = standing(self.store.head(bucket, &call.key).await)?;
            if let (Some(token), Some(there)) = (rename.token, &there)
                && token.is(attributes(there)?.renamed)?
            {
                return Ok(Reply::ok());
            }
            let meta = match found {
                Ok(meta) => meta,
                Err(error) => return Err(self.no_source(context, source, &error)),
            };
            self.may_take(context, source, Some(&meta))?;
            let is_version = |meta: &ObjectMeta| meta.tag.is_some();
            if is_version(&meta) || there.as_ref().is_some_and(is_version) {
                return not_of_versions();
            }
            let (of_source, made_ms) = current(&meta)?;
            rename.check_source(&of_source.etag, made_ms)?;
            let replaced = there.as_ref().map(current).transpose()?;
            let precondition = rename.decide(replaced.as_ref().map(|(it, ms)| (it, *ms)))?;
            let kept = self.still_kept(bucket, context.known()).await?;
            if kept.keeping != Keeping::Off {
                return not_of_versions();
            }
            let mut kept = attributes(&meta)?;
            kept.renamed = rename.token.map(|token| token.0);
            let options = RenameOptions {
                precondition,
                seal: Seal {
                    etag: kept_etag(&meta),
                    attributes: kept.encode()?.into(),
                },
            };
            let names = (source, call.key.as_str());
            match self.store.rename(bucket, names, meta, options).await {
                Ok(_) => return Ok(Reply::ok()),
                // One of the two is another one by now: what is asked of them is asked again.
                Err(error) if error.code() == Store::PreconditionFailed => {}
                Err(error) if error.code() == Store::Apart => return apart(),
                Err(error) => return Err(refusal(&error)),
            }
        }
        busy()
    }

    /// What is said of an object that cannot be found under the key that it is to lose.
    fn no_source(&self, context: &Context, source: &str, error: &ClientError) -> Refusal {
        match is_absent(error) {
            true => missing(&context.access, (&context.call.bucket, source), None, error),
            false => refusal(error),
        }
    }
}

fn apart<T>() -> Result<T, Refusal> {
    refused(
        Code::NotImplemented,
        "The two keys are in different partitions of this store: an object is renamed within one partition only. \
         Nothing was changed. You can use CopyObject and DeleteObject instead.",
    )
}
