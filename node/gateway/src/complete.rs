//! Parts put together to an object, without moving a byte.
//!
//! Invariants:
//! - once an upload is completing, nobody frees a stripe of its parts: they are the object's, or may be;
//! - only who turned it to completing proposes the object; if that certainly failed, the upload is open
//!   again, and if it is not certain, whoever comes later copies the parts instead of naming their stripes
//!   again: what was displaced meanwhile cannot come back;
//! - who is done, or finds that another one is, first changes the record from what it knows of it: who was
//!   overtaken takes nothing away;
//! - what was begun is done to its end, though the client may go away;
//! - the object says which upload it came of, so a request that is sent again is answered as the first was.

use std::collections::HashSet;
use std::sync::Arc;

use ashlar_cluster_s3::attributes::{Attributes, Parts as PartTable};
use ashlar_cluster_s3::checksum::{Algorithm, Checksum, Kind, checksum_of_parts, md5_of_parts};
use ashlar_cluster_s3::conditional::WriteIf;
use ashlar_cluster_s3::documents::{NamedPart, parse_complete};
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::signature::SKEW_MS;
use ashlar_cluster_s3::system::{PARTS_MAX, UploadId, UploadState, part_key};
use ashlar_cluster_s3::xml::Xml;
use ashlar_layout::manifest::{Etag, Precondition, VersionTag};
use ashlar_layout::message::{ListEntry, ObjectMeta};
use ashlar_layout::names::SYSTEM_BUCKET;
use ashlar_node_client::{
    Code as Store, GetOptions, ListOptions, PutOptions, Seal, VersionsOptions,
};

use crate::body::Source;
use crate::call::Call;
use crate::digests::Sent;
use crate::encryption::{Cipher, set_encryption};
use crate::faults::{busy, internal, is_absent, refusal, refused};
use crate::gateway::{Context, Gateway, attributes, now_ms, random, to_the_end};
use crate::inbound::Inbound;
use crate::objects::write_checksum;
use crate::pieces::Pieces;
use crate::places::Peer;
use crate::puts::{Target, write_if};
use crate::reply::Reply;
use crate::uploads::{Upload, encryption_of, no_such_upload};
use crate::versions::set_version;

/// Least bytes of each part but the last.
const PART_MIN: u64 = 5 * 1024 * 1024;
/// Most bytes of an object, as S3 has it.
pub(crate) const OBJECT_MAX: u64 = 50 * 1000 * 1000 * 1000 * 1000;
/// After so long whoever was putting an upload together is taken for gone: much longer than a proposal
/// can be on its way.
const COMPLETING_MAX_MS: u64 = 60_000;
/// So often it is begun anew where somebody else has put the upload together meanwhile.
const TRIES: usize = 4;
/// Versions that are looked at at once for the one that an upload has become,
const MADE_PAGE: u32 = 250;
/// and how many such pages.
const MADE_PAGES: u32 = 40;

/// Parts that are to become an object.
struct Plan {
    keys: Vec<String>,
    metas: Vec<ObjectMeta>,
    etag: Etag,
    attributes: Attributes,
    /// The attributes as a manifest has them.
    encoded: Vec<u8>,
}

/// That an upload is being put together, from now on: what was done before does not count.
pub(crate) fn completing() -> UploadState {
    UploadState::Completing { since_ms: now_ms() }
}

/// Whether whoever was putting an upload together is taken for gone.
fn is_stale(since_ms: u64) -> bool {
    now_ms().saturating_sub(since_ms) > COMPLETING_MAX_MS
}

fn unavailable<T>() -> Result<T, Refusal> {
    refused(
        Code::ServiceUnavailable,
        "The upload is being put together. Please try again.",
    )
}

fn invalid_part<T>() -> Result<T, Refusal> {
    refused(
        Code::InvalidPart,
        "One or more of the specified parts could not be found. The part may not have been uploaded, or \
         the specified entity tag may not match the part's entity tag.",
    )
}

impl Gateway {
    /// CompleteMultipartUpload.
    pub(crate) async fn complete_upload(
        self: &Arc<Self>,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        let call = &context.call;
        let condition = write_if(call)?;
        // The digests that may come along are those of the object, not of this document.
        let document = self.plain_document(context, body).await?;
        let named = parse_complete(&document)?;
        // Its share of the memory is not kept from the copies that may be made below.
        drop(document);
        if named.iter().any(|part| part.number > PARTS_MAX) {
            return invalid_part();
        }
        for _ in 0..TRIES {
            if let Some(reply) = self.complete_once(context, &named, &condition).await? {
                return Ok(reply);
            }
        }
        unavailable()
    }

    /// The same, as the upload stands now; nothing, if somebody else got in the way meanwhile: what is asked for may be
    /// done.
    async fn complete_once(
        self: &Arc<Self>,
        context: &Context,
        named: &[NamedPart],
        condition: &WriteIf,
    ) -> Result<Option<Reply>, Refusal> {
        let call = &context.call;
        let Some(mut upload) = self.named_upload(call).await? else {
            return self.completed(context).await.map(Some);
        };
        let encryption = encryption_of(&upload)?;
        let cipher = self.part_cipher(call, &encryption)?;
        match upload.record.state {
            UploadState::Open => {}
            UploadState::Aborting => return no_such_upload(),
            UploadState::Made => {
                let this = self.clone();
                // Which parts were taken is not known any more: no stripe of any is freed.
                to_the_end(async move { this.clear(&upload, &|_| true).await }).await?;
                return self.completed(context).await.map(Some);
            }
            UploadState::Completing { since_ms } => {
                if let Some(meta) = self.made_of(&upload).await? {
                    let this = self.clone();
                    to_the_end(async move { this.retire(upload, &|_| true).await }).await?;
                    return self.result(context, &meta).map(Some);
                }
                if !is_stale(since_ms) {
                    return unavailable();
                }
                let (this, named, peer) = (self.clone(), named.to_vec(), call.peer());
                let work = async move { this.take_over(peer, upload, &named, cipher).await };
                upload = to_the_end(work).await?;
            }
        }
        let ready = async {
            let plan = self.plan(call, &upload, named).await?;
            let only = self.precondition(&call.bucket, &call.key, condition);
            Ok::<_, Refusal>((plan, only.await?))
        };
        let (plan, precondition) = match ready.await {
            Ok(ready) => ready,
            Err(refusal) => {
                // Its parts are gone, or there is an object: it may be that very one.
                let may_be = matches!(
                    refusal.code,
                    Code::InvalidPart | Code::NoSuchUpload | Code::PreconditionFailed
                );
                if may_be && self.has_changed(call, &upload).await? {
                    return Ok(None);
                }
                return Err(refusal);
            }
        };
        let (this, context) = (self.clone(), context.clone());
        let condition = condition.clone();
        let reply = to_the_end(async move {
            if !this.turn(&mut upload, completing()).await? {
                return unavailable();
            }
            this.put_together(&context, upload, plan, precondition, &condition)
                .await
        });
        reply.await.map(Some)
    }

    /// Whether somebody has changed how an upload stands, or taken it away, since this was read.
    async fn has_changed(&self, call: &Call, upload: &Upload) -> Result<bool, Refusal> {
        let now = self.named_upload(call).await?;
        Ok(now.is_none_or(|now| now.version != upload.version))
    }

    /// A request's document, whose digests are of something else.
    async fn plain_document(
        &self,
        context: &Context,
        body: Inbound,
    ) -> Result<bytes::Bytes, Refusal> {
        let promise = self.promise(context)?;
        let (whole, _) = self.whole(body, promise).await?;
        Ok(whole)
    }

    /// Looks at the parts that were named, and says what comes of them.
    async fn plan(
        &self,
        call: &Call,
        upload: &Upload,
        named: &[NamedPart],
    ) -> Result<Plan, Refusal> {
        let parts = self.parts(upload.id, 0, usize::from(PARTS_MAX)).await?;
        let mut entries: Vec<&ListEntry> = Vec::with_capacity(named.len());
        for part in named {
            match parts.latest.get(&part.number) {
                Some(entry) if entry.etag.to_string() == part.etag => entries.push(entry),
                _ => return invalid_part(),
            }
        }
        let all_but_last = entries.len().saturating_sub(1);
        if entries[..all_but_last]
            .iter()
            .any(|entry| entry.size < PART_MIN)
        {
            return refused(
                Code::EntityTooSmall,
                "Your proposed upload is smaller than the minimum allowed size",
            );
        }
        let size = entries
            .iter()
            .fold(0u64, |sum, entry| sum.saturating_add(entry.size));
        if size > OBJECT_MAX {
            return refused(
                Code::EntityTooLarge,
                "Your proposed upload exceeds the maximum allowed object size.",
            );
        }
        if let Some(said) = call.header("x-amz-mp-object-size")
            && said.parse() != Ok(size)
        {
            return refused(
                Code::InvalidRequest,
                "The provided 'x-amz-mp-object-size' header does not match what was computed.",
            );
        }
        let keys: Vec<String> = entries.iter().map(|entry| entry.key.clone()).collect();
        let metas = self.look_at(keys.clone()).await?;
        if metas.len() != entries.len()
            || metas
                .iter()
                .zip(&entries)
                .any(|(meta, entry)| meta.version != entry.version)
        {
            return invalid_part();
        }
        let checksum = checksum(call, upload, named, &metas)?;
        let mut attributes = upload.record.attributes().map_err(internal)?;
        for meta in &metas {
            // A gateway of before there was encryption takes parts of an encrypted upload as they come.
            if crate::gateway::attributes(meta)?.encryption != attributes.encryption {
                return invalid_part();
            }
        }
        let digests = match &checksum {
            Some(checksum) => part_digests(&metas, checksum.algorithm)?,
            None => None,
        };
        let digests = digests.unwrap_or_default().into_iter();
        let only = digests.map(|(digest, _)| digest).collect();
        attributes.parts = PartTable::new(entries.iter().map(|entry| entry.size), only);
        attributes.upload = Some(upload.id.0);
        attributes.checksums = checksum.into_iter().collect();
        let md5s = metas.iter().map(|meta| &meta.manifest.etag.md5);
        let etag = Etag {
            md5: md5_of_parts(md5s),
            parts: u16::try_from(metas.len()).unwrap_or(u16::MAX),
        };
        // What cannot be kept is known before anything changes.
        let encoded = attributes.encode_fitting()?;
        Ok(Plan {
            keys,
            metas,
            etag,
            attributes,
            encoded,
        })
    }

    async fn put_together(
        &self,
        context: &Context,
        mut upload: Upload,
        plan: Plan,
        precondition: Precondition,
        condition: &WriteIf,
    ) -> Result<Reply, Refusal> {
        let call = &context.call;
        let Plan {
            keys,
            metas,
            etag,
            attributes,
            encoded,
        } = plan;
        // What the bucket wants by now.
        let kept = self.still_kept(&call.bucket, context.known()).await;
        let lock = upload.record.lock;
        let making = kept.and_then(|kept| Ok((kept.keeping, kept.making(lock, now_ms())?)));
        let (keeping, making) = match making {
            Ok(making) => making,
            Err(refusal) => {
                // Nothing was proposed.
                if refusal.code == Code::NoSuchBucket {
                    self.give_up_behind(upload).await?;
                } else {
                    self.turn(&mut upload, UploadState::Open).await?;
                }
                return Err(refusal);
            }
        };
        let options = PutOptions {
            precondition,
            seal: Seal {
                etag,
                attributes: encoded.into(),
            },
            making,
            ..PutOptions::default()
        };
        let manifests = metas.into_iter().map(|meta| meta.manifest).collect();
        let made = self
            .store
            .compose(&call.bucket, &call.key, manifests, options)
            .await;
        match made {
            Ok(made) => {
                let document = result(context, &etag, attributes.checksum(), &self.location(call));
                self.clean(upload, keys).await?;
                let mut reply = Reply::xml(document);
                set_encryption(&mut reply, call, &attributes);
                if let Some(id) = keeping.made(made.version) {
                    reply.set("x-amz-version-id", &id);
                }
                Ok(reply)
            }
            Err(error) if error.is_uncertain() => Err(refusal(&error)),
            Err(error) => {
                // It certainly did not become visible, so the parts are the upload's again.
                if error.code() == Store::NoSuchBucket {
                    self.give_up_behind(upload).await?;
                    return Err(refusal(&error));
                }
                self.turn(&mut upload, UploadState::Open).await?;
                if error.code() == Store::PreconditionFailed {
                    return Err(self.lost(&call.bucket, &call.key, condition).await);
                }
                Err(refusal(&error))
            }
        }
    }

    /// Gives up an upload to a bucket that is gone, of which certainly nothing became visible: whoever removed the
    /// bucket gave its uploads up, all but this one.
    async fn give_up_behind(&self, mut upload: Upload) -> Result<(), Refusal> {
        match self.turn(&mut upload, UploadState::Aborting).await? {
            true => self.clear(&upload, &|_| false).await,
            false => Ok(()),
        }
    }

    /// Takes what an upload that has become an object was made of away. The object is there: if this
    /// fails, whoever looks at the upload next does it.
    pub(crate) async fn clean(&self, upload: Upload, keys: Vec<String>) -> Result<(), Refusal> {
        let keys: HashSet<String> = keys.into_iter().collect();
        let taken = move |key: &str| keys.contains(key);
        match self.retire(upload, &taken).await {
            Err(refusal) if refusal.code == Code::InternalError => Err(refusal),
            _ => Ok(()),
        }
    }

    /// Takes an upload away that is, or may be, an object; the stripes of those parts that were `taken`
    /// stay. If somebody else has changed how it stands meanwhile, that one goes on with it, and the parts
    /// that there are now are none that were looked at here.
    pub(crate) async fn retire(
        &self,
        mut upload: Upload,
        taken: &(dyn Fn(&str) -> bool + Sync),
    ) -> Result<(), Refusal> {
        match self.turn(&mut upload, UploadState::Made).await? {
            true => self.clear(&upload, taken).await,
            false => Ok(()),
        }
    }

    /// The object that an upload has become, if it still stands there.
    async fn made_of(&self, upload: &Upload) -> Result<Option<ObjectMeta>, Refusal> {
        let record = &upload.record;
        // It cannot have been made before it was begun, by whichever clock.
        let since_ms = record.begun_ms.saturating_sub(SKEW_MS);
        self.made_from(&record.bucket, &record.key, upload.id, since_ms)
            .await
    }

    /// What was made of an upload, wherever among the versions of the object that is: others may have come since, and
    /// whoever makes it once more would make it newer than these. Looked for from the newest on, back to this time.
    async fn made_from(
        &self,
        bucket: &str,
        key: &str,
        upload: UploadId,
        since_ms: u64,
    ) -> Result<Option<ObjectMeta>, Refusal> {
        let mut next = (String::new(), None);
        for _ in 0..MADE_PAGES {
            let list = ListOptions {
                prefix: key.to_owned(),
                after: next.0,
                max: MADE_PAGE,
                ..ListOptions::default()
            };
            let after_id = next.1;
            let options = VersionsOptions { list, after_id };
            let page = match self.store.list_versions(bucket, options).await {
                Ok(page) => page,
                Err(error) if error.code() == Store::NoSuchBucket => return Ok(None),
                Err(error) => return Err(refusal(&error)),
            };
            for entry in page.versions {
                if entry.key != key || entry.modified_ms < since_ms {
                    return Ok(None);
                }
                // Only what was put together has an ETag of parts.
                if entry.etag.parts == 0 {
                    continue;
                }
                let version = entry.tag.map(VersionTag::slot);
                let meta = match self.head(bucket, key, version).await {
                    Ok(meta) => meta,
                    Err(error) if is_absent(&error) => continue,
                    Err(error) => return Err(refusal(&error)),
                };
                if attributes(&meta)?.upload == Some(upload.0) {
                    return Ok(Some(meta));
                }
            }
            match page.next {
                Some(behind) if behind.0 == key => next = behind,
                _ => return Ok(None),
            }
        }
        match since_ms {
            // Who asks for what was done so many versions ago is told no more than who asks for what never was.
            0 => Ok(None),
            // Nobody may take it for not made.
            _ => unavailable(),
        }
    }

    /// Settles an upload that somebody is, or was, putting together.
    pub(crate) async fn settle(&self, upload: Upload) -> Result<(), Refusal> {
        let UploadState::Completing { since_ms } = upload.record.state else {
            return Ok(());
        };
        let is_made = self.made_of(&upload).await?.is_some();
        if is_made || is_stale(since_ms) {
            // Which parts were taken is not known: no stripe of any is freed.
            return self.retire(upload, &|_| true).await;
        }
        busy()
    }

    /// Takes an upload over from who was putting it together and is gone: it is open again then.
    async fn take_over(
        &self,
        peer: Peer,
        mut upload: Upload,
        named: &[NamedPart],
        cipher: Option<Cipher>,
    ) -> Result<Upload, Refusal> {
        if !self.turn(&mut upload, completing()).await? {
            return unavailable();
        }
        self.copy_parts(peer, &mut upload, named, cipher).await?;
        if !self.turn(&mut upload, UploadState::Open).await? {
            return unavailable();
        }
        Ok(upload)
    }

    /// Uploads the parts that were named again, out of themselves. The old ones' stripes may be an object's,
    /// or may have been freed with it: then they cannot be read, and the upload is no more.
    async fn copy_parts(
        &self,
        peer: Peer,
        upload: &mut Upload,
        named: &[NamedPart],
        cipher: Option<Cipher>,
    ) -> Result<(), Refusal> {
        let parts = self.parts(upload.id, 0, usize::from(PARTS_MAX)).await?;
        let mut made = HashSet::new();
        for part in named {
            if let UploadState::Completing { since_ms } = upload.record.state
                && now_ms().saturating_sub(since_ms) > COMPLETING_MAX_MS / 4
                && !self.turn(upload, completing()).await?
            {
                // It took long, and somebody took this one for gone.
                return unavailable();
            }
            let Some(entry) = parts.latest.get(&part.number) else {
                return invalid_part();
            };
            let share = self.memory.share(peer, entry.size).await?;
            let stream = self
                .store
                .get(SYSTEM_BUCKET, &entry.key, GetOptions::default())
                .await;
            let mut stream = stream.or(no_such_upload())?;
            if let Some(cipher) = &cipher {
                stream.decipher(cipher.key());
            }
            let found = attributes(stream.meta())?;
            let algorithm = found.checksum().map(|checksum| checksum.algorithm);
            let sent = Sent::default().or_made(algorithm.unwrap_or(Algorithm::Crc64Nvme));
            let key = part_key(upload.id, part.number, random()?);
            let mut target = Target::part(&key);
            target.attributes.encryption = found.encryption;
            target.cipher = cipher.clone();
            let promise = self.own_promise(peer, entry.size, &sent, share);
            let source = Source::Object(Pieces::new(stream));
            self.make(target, source, promise, &sent).await?;
            made.insert(key);
        }
        // Whoever takes the upload over from here on copies what is there now.
        if !self.turn(upload, completing()).await? {
            return unavailable();
        }
        // Of a part that somebody uploads meanwhile, and is told that it does not count, the stripes stay too.
        self.forget_parts(upload.id, &made).await
    }

    /// The answer to who asks again for what is done.
    async fn completed(&self, context: &Context) -> Result<Reply, Refusal> {
        let call = &context.call;
        let Some(id) = UploadId::parse(call.param("uploadId").unwrap_or_default()) else {
            return no_such_upload();
        };
        // When it was begun is not known any more: all versions are looked at, as far as that goes.
        match self.made_from(&call.bucket, &call.key, id, 0).await {
            Ok(Some(meta)) => self.result(context, &meta),
            Ok(None) => no_such_upload(),
            Err(refusal) => Err(refusal),
        }
    }

    fn result(&self, context: &Context, meta: &ObjectMeta) -> Result<Reply, Refusal> {
        let found = attributes(meta)?;
        let location = self.location(&context.call);
        let document = result(context, &meta.manifest.etag, found.checksum(), &location);
        let mut reply = Reply::xml(document);
        set_encryption(&mut reply, &context.call, &found);
        set_version(&mut reply, context.keeping(), meta);
        Ok(reply)
    }

    /// Where an object is, as a URL.
    fn location(&self, call: &Call) -> String {
        let scheme = if call.secure { "https" } else { "http" };
        let host = call.header("host").unwrap_or_default();
        format!("{scheme}://{host}{}", call.path)
    }
}

/// Parts' digests and lengths.
type PartDigests = Vec<(Vec<u8>, u64)>;

/// Those of parts; none if one of the parts has no such digest.
fn part_digests(
    metas: &[ObjectMeta],
    algorithm: Algorithm,
) -> Result<Option<PartDigests>, Refusal> {
    let mut digests = Vec::with_capacity(metas.len());
    for meta in metas {
        let mut checksums = attributes(meta)?.checksums.into_iter();
        match checksums.find(|checksum| checksum.algorithm == algorithm) {
            Some(checksum) => digests.push((checksum.digest, meta.manifest.size)),
            None => return Ok(None),
        }
    }
    Ok(Some(digests))
}

/// The checksum of the whole, if what the request says of it and its parts is so. An upload that named
/// none when it began may have parts with checksums of different kinds: nothing is made of those.
fn checksum(
    call: &Call,
    upload: &Upload,
    named: &[NamedPart],
    metas: &[ObjectMeta],
) -> Result<Option<Checksum>, Refusal> {
    let (algorithm, kind) = match (upload.record.checksum(), metas.first()) {
        (Some(checksum), _) => checksum,
        (None, Some(first)) => {
            let first = attributes(first)?
                .checksums
                .first()
                .map(|checksum| checksum.algorithm);
            let algorithm = first.unwrap_or(Algorithm::Crc64Nvme);
            (algorithm, algorithm.default_kind())
        }
        (None, None) => return invalid_part(),
    };
    for (part, meta) in named.iter().zip(metas) {
        if let Some((algorithm, digest)) = &part.checksum {
            let kept = attributes(meta)?.checksums;
            let same = |c: &Checksum| c.algorithm == *algorithm && c.digest == *digest;
            if !kept.iter().any(same) {
                return invalid_part();
            }
        }
    }
    let digests = part_digests(metas, algorithm)?;
    let made = digests.map(|digests| checksum_of_parts(algorithm, kind, &digests));
    if made.is_none() && upload.record.checksum().is_some() {
        return refused(
            Code::InvalidRequest,
            "A part has no checksum of the kind that the upload named when it began",
        );
    }
    if let Some(said) = call
        .header("x-amz-checksum-type")
        .map(Kind::parse)
        .transpose()?
        && said != kind
    {
        return refused(
            Code::InvalidRequest,
            "The x-amz-checksum-type of the upload is another one",
        );
    }
    for other in Algorithm::ALL {
        let Some(value) = call.header(other.header()) else {
            continue;
        };
        let value = value.rsplit_once('-').map_or(value, |(digest, _)| digest);
        let digest = other.parse_digest(value)?;
        let is_it = |made: &Checksum| other == algorithm && made.digest == digest;
        if !made.as_ref().is_some_and(is_it) {
            let message = format!(
                "The {} you specified did not match the calculated checksum.",
                other.as_str()
            );
            return Err(Refusal::new(Code::BadDigest, message));
        }
    }
    Ok(made)
}

fn result(context: &Context, etag: &Etag, checksum: Option<&Checksum>, location: &str) -> String {
    Xml::document("CompleteMultipartUploadResult", |xml| {
        xml.text("Location", location);
        xml.text("Bucket", &context.call.bucket);
        xml.text("Key", &context.call.key);
        xml.text("ETag", &format!("\"{etag}\""));
        if let Some(checksum) = checksum {
            write_checksum(xml, checksum);
        }
    })
}
