//! Uploads in parts: begun, fed, listed, given up. How they are put together is in [`crate::complete`].
//!
//! An upload is a record in the reserved bucket, and each part an object there; see
//! `decisions/2026-11-27-multipart.md`.
//!
//! Invariants:
//! - a part that is uploaded again displaces nothing: which one counts is decided when they are put
//!   together;
//! - an upload goes from open to completing or to aborting, and which, one change of its record decides;
//! - only an aborting upload's parts are freed, and those that no object took over;
//! - nobody takes parts away before one change of the record has said that nobody else will put them
//!   together.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use ashlar_cluster_s3::attributes::Attributes;
use ashlar_cluster_s3::calendar::iso_date;
use ashlar_cluster_s3::checksum::{Algorithm, Checksum, Kind};
use ashlar_cluster_s3::range::parse_copy;
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::system::{
    PARTS_MAX, UploadId, UploadRecord, UploadState, part_key, part_marker, part_number,
    parts_prefix, upload_key,
};
use ashlar_cluster_s3::xml::Xml;
use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{Etag, Precondition};
use ashlar_layout::message::{ListEntry, ObjectMeta};
use ashlar_layout::names::SYSTEM_BUCKET;
use ashlar_node_client::{Client, Code as Store, DeleteOptions};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::acl::owner_of;
use crate::body::Source;
use crate::call::Call;
use crate::copies::{CopySource, copy_result, set_source_version};
use crate::digests::Sent;
use crate::directory::{reserved, write_document};
use crate::encryption::{Cipher, has_default, set_encryption};
use crate::faults::{busy, internal, is_absent, refusal, refused};
use crate::gateway::{Context, Gateway, attributes, random, to_the_end};
use crate::inbound::Inbound;
use crate::late::{Late, OnItsWay};
use crate::lists::write_owner;
use crate::locks::asked_lock;
use crate::objects::{byte_range, set_checksum, write_digest};
use crate::pieces::Pieces;
use crate::puts::{Made, PUT_MAX, Target, attributes_of};
use crate::reply::Reply;

/// Parts that are looked at, or removed, at once.
pub(crate) const AT_ONCE: usize = 32;

/// An upload, as its record was found.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    pub(crate) id: UploadId,
    pub(crate) record: UploadRecord,
    /// The record's version.
    pub(crate) version: Seq,
}

/// The parts of an upload: the latest one of each number, and those that it took the place of.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pub(crate) latest: BTreeMap<u16, ListEntry>,
    superseded: Vec<ListEntry>,
    /// Whether those are wanted. A client may make as many as it likes, so they are not kept for who does
    /// not need them.
    all: bool,
    /// Whether there are more behind them.
    pub(crate) more: bool,
}

impl Parts {
    /// Takes a part. Of a number's the last one counts, as the journal has them: clocks may be set back.
    fn take(&mut self, number: u16, entry: ListEntry) {
        match self.latest.entry(number) {
            Entry::Vacant(place) => {
                place.insert(entry);
            }
            Entry::Occupied(mut place) => {
                let later = entry.version > place.get().version;
                let other = if later { place.insert(entry) } else { entry };
                if self.all {
                    self.superseded.push(other);
                }
            }
        }
    }
}

pub(crate) fn no_such_upload<T>() -> Result<T, Refusal> {
    refused(
        Code::NoSuchUpload,
        "The specified upload does not exist. The upload ID may be invalid, or the upload may have been \
         aborted or completed.",
    )
}

fn part_number_of(call: &Call) -> Result<u16, Refusal> {
    let number = call.param("partNumber").map(str::parse::<u16>);
    match number {
        Some(Ok(number)) if (1..=PARTS_MAX).contains(&number) => Ok(number),
        _ => refused(
            Code::InvalidArgument,
            "Part number must be an integer between 1 and 10000, inclusive",
        ),
    }
}

/// The checksum that an upload's parts have and what is made of it, as the request asks.
fn checksum_of(call: &Call) -> Result<(Option<Algorithm>, Option<Kind>), Refusal> {
    let algorithm = call
        .header("x-amz-checksum-algorithm")
        .map(Algorithm::parse)
        .transpose()?;
    let kind = call
        .header("x-amz-checksum-type")
        .map(Kind::parse)
        .transpose()?;
    match (algorithm, kind) {
        (None, Some(_)) => refused(
            Code::InvalidRequest,
            "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.",
        ),
        (Some(algorithm), Some(kind)) if !algorithm.takes(kind) => {
            let message = format!(
                "The {} checksum type cannot be used with the {} checksum algorithm.",
                kind.as_str(),
                algorithm.as_str().to_ascii_lowercase()
            );
            Err(Refusal::new(Code::InvalidRequest, message))
        }
        checksum => Ok(checksum),
    }
}

/// How an upload is encrypted, and nothing else of what is remembered of it.
pub(crate) fn encryption_of(upload: &Upload) -> Result<Attributes, Refusal> {
    let encryption = upload.record.attributes().map_err(internal)?.encryption;
    Ok(Attributes {
        encryption,
        ..Attributes::default()
    })
}

impl Gateway {
    /// CreateMultipartUpload.
    pub(crate) async fn create_upload(&self, context: &Context) -> Result<Reply, Refusal> {
        let call = &context.call;
        self.check_there(context).await?;
        let mut attributes = attributes_of(call)?;
        self.set_acl(&context.access, call, &mut attributes).await?;
        // Its key is opened again for each part.
        let by_default = has_default(context.access.bucket.as_deref());
        self.encrypt(call, by_default, &mut attributes)?;
        let (algorithm, kind) = checksum_of(call)?;
        let id = UploadId::new(context.now_ms, random()?);
        let owner = context.access.account().unwrap_or_default();
        let mut record = UploadRecord {
            algorithm: algorithm.map(|algorithm| algorithm.as_str().to_owned()),
            kind: kind.map(|kind| kind.as_str().to_owned()),
            lock: asked_lock(context, call)?,
            ..UploadRecord::new(&call.bucket, &call.key, id, owner, context.now_ms)
        };
        // What is added when the parts are put together has to fit as well.
        let whole = Attributes {
            upload: Some(id.0),
            checksums: vec![Checksum::full(Algorithm::Sha256, vec![0; 32])],
            ..attributes.clone()
        };
        whole.encode()?;
        record.set_attributes(&attributes)?;
        let upload = self.begin(record, id).await?;
        let record = &upload.record;
        let document = Xml::document("InitiateMultipartUploadResult", |xml| {
            xml.text("Bucket", &call.bucket);
            xml.text("Key", &call.key);
            xml.text("UploadId", &record.id);
        });
        let mut reply = Reply::xml(document);
        set_encryption(&mut reply, call, &attributes);
        if let Some((algorithm, kind)) = record.checksum() {
            reply.set("x-amz-checksum-algorithm", algorithm.as_str());
            reply.set("x-amz-checksum-type", kind.as_str());
        }
        Ok(reply)
    }

    /// Writes the record of an upload down, before there are any parts.
    pub(crate) async fn begin(
        &self,
        record: UploadRecord,
        id: UploadId,
    ) -> Result<Upload, Refusal> {
        let (key, bytes) = (record.stands_at(id), record.encode()?);
        let written =
            write_document(&self.store, &key, bytes, Etag::NONE, Precondition::Absent).await;
        let version = written.map_err(|error| refusal(&error))?;
        Ok(Upload {
            id,
            record,
            version,
        })
    }

    /// An upload, however it stands; none if there is none.
    pub(crate) async fn upload(
        &self,
        bucket: &str,
        key: &str,
        id: UploadId,
    ) -> Result<Option<Upload>, Refusal> {
        self.recorded(&upload_key(bucket, key, id)).await
    }

    /// The upload that a request names.
    pub(crate) async fn named_upload(&self, call: &Call) -> Result<Option<Upload>, Refusal> {
        match UploadId::parse(call.param("uploadId").unwrap_or_default()) {
            Some(id) => self.upload(&call.bucket, &call.key, id).await,
            None => Ok(None),
        }
    }

    /// The same, if parts may come.
    async fn open_upload(&self, call: &Call) -> Result<Upload, Refusal> {
        match self.named_upload(call).await? {
            Some(upload) if upload.record.state == UploadState::Open => Ok(upload),
            _ => no_such_upload(),
        }
    }

    /// Changes how an upload stands; false if somebody else did so first.
    pub(crate) async fn turn(
        &self,
        upload: &mut Upload,
        state: UploadState,
    ) -> Result<bool, Refusal> {
        let record = &mut upload.record;
        record.state = state;
        let key = record.stands_at(upload.id);
        let bytes = record.encode()?;
        let only = Precondition::Version(upload.version);
        match write_document(&self.store, &key, bytes, Etag::NONE, only).await {
            Ok(version) => {
                upload.version = version;
                Ok(true)
            }
            Err(error) if error.code() == Store::PreconditionFailed => Ok(false),
            Err(error) => Err(refusal(&error)),
        }
    }

    /// What is promised of a part's digests: those that were sent, and the one that the whole needs.
    fn part_sent(&self, call: &Call, upload: &Upload) -> Result<Sent, Refusal> {
        let sent = Sent::of(call)?;
        let wanted = upload.record.checksum().map(|(algorithm, _)| algorithm);
        Ok(sent.fitting(wanted)?.or_made(Algorithm::Crc64Nvme))
    }

    /// Makes a part of a body.
    async fn make_part(
        self: &Arc<Self>,
        (upload, cipher): (&Upload, Option<Cipher>),
        number: u16,
        source: Source,
        promise: crate::body::Promise,
        sent: &Sent,
    ) -> Result<Made, Refusal> {
        let key = part_key(upload.id, number, random()?);
        let mut target = Target::part(&key);
        target.attributes.encryption = encryption_of(upload)?.encryption;
        target.cipher = cipher;
        let coming = OnItsWay::new(self, upload, &key);
        let made = self.make(target, source, promise, sent).await?;
        match coming.came().await? {
            Late::Part => Ok(made),
            Late::Left | Late::Freed => no_such_upload(),
        }
    }

    /// UploadPart.
    pub(crate) async fn upload_part(
        self: &Arc<Self>,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        let call = &context.call;
        let number = part_number_of(call)?;
        let upload = self.open_upload(call).await?;
        let encryption = encryption_of(&upload)?;
        let cipher = self.part_cipher(call, &encryption)?;
        let sent = self.part_sent(call, &upload)?;
        let mut promise = self.promise(context)?;
        if promise.len > PUT_MAX {
            return refused(
                Code::EntityTooLarge,
                "Your proposed upload exceeds the maximum allowed size",
            );
        }
        promise.algorithms = sent.algorithms();
        let made = self
            .make_part(
                (&upload, cipher),
                number,
                Source::Http(body),
                promise,
                &sent,
            )
            .await?;
        let mut reply = Reply::ok().with("etag", &format!("\"{}\"", made.etag));
        set_encryption(&mut reply, call, &encryption);
        if let Some(checksum) = &made.checksum {
            set_checksum(&mut reply, checksum);
            reply.headers.remove("x-amz-checksum-type");
        }
        Ok(reply)
    }

    /// UploadPartCopy.
    pub(crate) async fn upload_part_copy(
        self: &Arc<Self>,
        context: &Context,
    ) -> Result<Reply, Refusal> {
        let call = &context.call;
        let number = part_number_of(call)?;
        let from = CopySource::of(call)?;
        let range = call
            .header("x-amz-copy-source-range")
            .map(parse_copy)
            .transpose()?;
        let upload = self.open_upload(call).await?;
        let encryption = encryption_of(&upload)?;
        let cipher = self.part_cipher(call, &encryption)?;
        let sent = self.part_sent(call, &upload)?;
        let asked = range.map(byte_range);
        let ((stream, meta, _), share) = self.open_to_copy(context, &from, asked, false).await?;
        if let Some(ashlar_node_client::ByteRange::FromTo(_, last)) = asked
            && last >= meta.manifest.size
        {
            return refused(
                Code::InvalidArgument,
                "Range specified is not valid for source object",
            );
        }
        let len = stream.range().end - stream.range().start;
        if len > PUT_MAX {
            return refused(
                Code::InvalidRequest,
                "The specified copy source is larger than the maximum allowable size for a copy source: \
                 5368709120",
            );
        }
        let promise = self.own_promise(call.peer(), len, &sent, share);
        let source = Source::Object(Pieces::new(stream));
        let made = self
            .make_part((&upload, cipher), number, source, promise, &sent)
            .await?;
        let mut reply = Reply::xml(copy_result("CopyPartResult", &made, context.now_ms));
        set_encryption(&mut reply, call, &encryption);
        set_source_version(&mut reply, &meta);
        Ok(reply)
    }

    /// An upload's parts behind `after`, about `most` numbers of them.
    pub(crate) async fn parts(
        &self,
        id: UploadId,
        after: u16,
        most: usize,
    ) -> Result<Parts, Refusal> {
        self.list_of_parts(id, after, most, Parts::default()).await
    }

    async fn list_of_parts(
        &self,
        id: UploadId,
        after: u16,
        most: usize,
        mut parts: Parts,
    ) -> Result<Parts, Refusal> {
        let mut mark = match after {
            0 => String::new(),
            after => part_marker(id, after),
        };
        loop {
            let page = reserved(&self.store, parts_prefix(id), mark).await?;
            for entry in page.objects {
                let Some(number) = part_number(&entry.key) else {
                    continue;
                };
                let full = parts.latest.len() >= most && !parts.latest.contains_key(&number);
                if full || parts.superseded.len() >= most {
                    parts.more = true;
                    return Ok(parts);
                }
                parts.take(number, entry);
            }
            match page.next {
                Some(next) => mark = next,
                None => return Ok(parts),
            }
        }
    }

    /// What is known of each of these parts, in their order. One that is gone went with its upload.
    pub(crate) async fn look_at(&self, keys: Vec<String>) -> Result<Vec<ObjectMeta>, Refusal> {
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        let mut tasks = JoinSet::new();
        let mut metas: Vec<Option<ObjectMeta>> = vec![None; keys.len()];
        for (i, key) in keys.into_iter().enumerate() {
            let (store, at_once) = (self.store.clone(), at_once.clone());
            tasks.spawn(async move {
                // Nobody closes it.
                let _permit = at_once.acquire_owned().await;
                (i, store.head(SYSTEM_BUCKET, &key).await)
            });
        }
        while let Some(done) = tasks.join_next().await {
            let (i, meta) = done.map_err(internal)?;
            metas[i] = match meta {
                Ok(meta) => Some(meta),
                Err(error) if is_absent(&error) => return no_such_upload(),
                Err(error) => return Err(refusal(&error)),
            };
        }
        Ok(metas.into_iter().flatten().collect())
    }

    /// ListParts.
    pub(crate) async fn list_parts(&self, context: &Context) -> Result<Reply, Refusal> {
        let call = &context.call;
        let number = |name: &str, default: i32| -> Result<usize, Refusal> {
            let asked = call.number(name)?.unwrap_or(default);
            usize::try_from(asked).or(refused(
                Code::InvalidArgument,
                "Argument must be an integer between 0 and 2147483647",
            ))
        };
        let most = number("max-parts", 1000)?.min(1000);
        let marker = number("part-number-marker", 0)?;
        let after = u16::try_from(marker).unwrap_or(u16::MAX);
        let upload = match self.named_upload(call).await? {
            Some(upload) if upload.record.state.has_parts() => upload,
            _ => return no_such_upload(),
        };
        let parts = match most {
            0 => Parts::default(),
            most => self.parts(upload.id, after, most).await?,
        };
        let checksum = upload.record.checksum();
        let metas = match checksum {
            Some(_) => {
                // Checksums are of what is hidden: as on Amazon's they are for who has the key.
                self.part_cipher(call, &encryption_of(&upload)?)?;
                let keys = parts.latest.values().map(|entry| entry.key.clone());
                self.look_at(keys.collect()).await?
            }
            None => Vec::new(),
        };
        let owner = owner_of(&context.access, &upload.record);
        let last = parts.latest.keys().next_back().copied();
        let document = Xml::document("ListPartsResult", |xml| {
            xml.text("Bucket", &call.bucket);
            xml.text("Key", &call.key);
            xml.text("UploadId", &upload.record.id);
            write_owner(xml, "Initiator", &upload.record.owner);
            write_owner(xml, "Owner", &owner);
            xml.text("StorageClass", "STANDARD");
            xml.value("PartNumberMarker", marker);
            if let Some(last) = last {
                xml.value("NextPartNumberMarker", last);
            }
            xml.value("MaxParts", most);
            xml.value("IsTruncated", parts.more);
            if let Some((algorithm, kind)) = checksum {
                xml.text("ChecksumAlgorithm", algorithm.as_str());
                xml.text("ChecksumType", kind.as_str());
            }
            for (i, (number, entry)) in parts.latest.iter().enumerate() {
                xml.element("Part", |xml| {
                    xml.value("PartNumber", number);
                    xml.text("LastModified", &iso_date(entry.modified_ms));
                    xml.text("ETag", &format!("\"{}\"", entry.etag));
                    xml.value("Size", entry.size);
                    let found = metas.get(i).and_then(|meta| attributes(meta).ok());
                    if let Some(checksum) = found.as_ref().and_then(Attributes::checksum) {
                        write_digest(xml, checksum);
                    }
                });
            }
        });
        Ok(Reply::xml(document))
    }

    /// AbortMultipartUpload.
    pub(crate) async fn abort_upload(
        self: &Arc<Self>,
        context: &Context,
    ) -> Result<Reply, Refusal> {
        let Some(upload) = self.named_upload(&context.call).await? else {
            return no_such_upload();
        };
        let this = self.clone();
        to_the_end(async move { this.abort(upload).await }).await?;
        Ok(Reply::no_content())
    }

    /// Gives an upload up, whatever state it is in, but for one that is being put together now.
    pub(crate) async fn abort(&self, mut upload: Upload) -> Result<(), Refusal> {
        match upload.record.state {
            UploadState::Aborting => {}
            UploadState::Open => {
                if !self.turn(&mut upload, UploadState::Aborting).await? {
                    return busy();
                }
            }
            UploadState::Completing { .. } => return self.settle(upload).await,
            UploadState::Made => return self.clear(&upload, &|_| true).await,
        }
        self.clear(&upload, &|_| false).await
    }

    /// Takes an upload's parts and its record away. The stripes of those that were `taken` stay. Only for
    /// who has turned the upload to [`UploadState::Made`] or [`UploadState::Aborting`], or found it so.
    pub(crate) async fn clear(
        &self,
        upload: &Upload,
        taken: &(dyn Fn(&str) -> bool + Sync),
    ) -> Result<(), Refusal> {
        self.clear_parts(upload, taken).await?;
        let key = upload.record.stands_at(upload.id);
        let only = Precondition::Version(upload.version);
        remove(&self.store, &key, only, false).await?;
        // A part that came while it was put together was left alone by who made it. Whoever makes one now
        // sees that the record is gone.
        self.clear_parts(upload, taken).await
    }

    /// Takes the names of an upload's parts away, but for those that are `kept`; all stripes stay.
    pub(crate) async fn forget_parts(
        &self,
        id: UploadId,
        kept: &HashSet<String>,
    ) -> Result<(), Refusal> {
        let mut after = String::new();
        loop {
            let page = reserved(&self.store, parts_prefix(id), after).await?;
            for entry in page
                .objects
                .iter()
                .filter(|entry| !kept.contains(&entry.key))
            {
                remove(&self.store, &entry.key, Precondition::None, true).await?;
            }
            match page.next {
                Some(next) => after = next,
                None => return Ok(()),
            }
        }
    }

    async fn clear_parts(
        &self,
        upload: &Upload,
        taken: &(dyn Fn(&str) -> bool + Sync),
    ) -> Result<(), Refusal> {
        loop {
            let all = Parts {
                all: true,
                ..Parts::default()
            };
            let parts = self.list_of_parts(upload.id, 0, 1000, all).await?;
            let at_once = Arc::new(Semaphore::new(AT_ONCE));
            let mut tasks = JoinSet::new();
            for entry in parts.latest.into_values().chain(parts.superseded) {
                let (store, at_once) = (self.store.clone(), at_once.clone());
                let taken = taken(&entry.key);
                tasks.spawn(async move {
                    // Nobody closes it.
                    let _permit = at_once.acquire_owned().await;
                    remove(&store, &entry.key, Precondition::None, taken).await
                });
            }
            while let Some(done) = tasks.join_next().await {
                done.map_err(internal)??;
            }
            if !parts.more {
                return Ok(());
            }
        }
    }
}

/// Takes an object of the reserved bucket away; its stripes stay if they were taken. One that is not as
/// the precondition has it is somebody else's to take away.
pub(crate) async fn remove(
    store: &Client,
    key: &str,
    precondition: Precondition,
    taken: bool,
) -> Result<(), Refusal> {
    let options = DeleteOptions {
        precondition,
        taken,
    };
    match store.delete(SYSTEM_BUCKET, key, options).await {
        Err(error) if error.code() == Store::PreconditionFailed => Ok(()),
        removed => removed.map(drop).map_err(|error| refusal(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_counts_whatever_the_clocks_say() {
        let entry = |version, modified_ms| ListEntry {
            key: format!("parts/x/00001/{version}"),
            version: Seq(version),
            size: 1,
            crc: 0,
            modified_ms,
            etag: Etag::NONE,
            tag: None,
        };
        for order in [[5, 9, 7], [9, 7, 5], [7, 5, 9]] {
            let mut parts = Parts {
                all: true,
                ..Parts::default()
            };
            for version in order {
                parts.take(1, entry(version, 1000 - version));
            }
            let latest: Vec<u64> = parts.latest.values().map(|e| e.version.0).collect();
            let mut others: Vec<u64> = parts.superseded.iter().map(|e| e.version.0).collect();
            others.sort_unstable();
            assert_eq!((latest, others), (vec![9], vec![5, 7]), "{order:?}");
        }
    }
}
