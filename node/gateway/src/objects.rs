//! Reading objects, and what is known of them.
//!
//! Invariants:
//! - conditions are judged on the version whose bytes are then given;
//! - a small object is checked to its end before the reply's head goes out; a large one that turns out to
//!   be damaged ends the connection.

use std::ops::Range;

use ashlar_cluster_s3::attributes::Attributes;
use ashlar_cluster_s3::calendar::http_date;
use ashlar_cluster_s3::checksum::{Checksum, Kind};
use ashlar_cluster_s3::conditional::{ReadIf, etag, range_stands};
use ashlar_cluster_s3::lifecycle::Subject;
use ashlar_cluster_s3::range::{self, Wanted, content_range};
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::xml::Xml;
use ashlar_layout::message::ObjectMeta;
use ashlar_node_client::{ByteRange, Code as Store, GetOptions, GetStream};
use bytes::{Bytes, BytesMut};
use hyper::StatusCode;

use crate::call::Call;
use crate::encryption::set_encryption;
use crate::faults::{internal, is_absent, refusal, refused};
use crate::gateway::{Context, Gateway, attributes, held, modified_ms, quoted_etag};
use crate::lifecycle::expiration_header;
use crate::locks::set_lock;
use crate::memory::{Share, Waited};
use crate::pieces::Pieces;
use crate::reply::{ObjectBody, Reply, ReplyBody};
use crate::versions::{asked_version, missing, set_version};

/// An object of at most so many bytes is read to its end before anything is answered.
const WHOLE: u64 = 1024 * 1024;
/// So often a reading starts over because the object was replaced before a byte was given out.
pub(crate) const TRIES: usize = 8;

/// The part of an object that is asked for.
pub(crate) fn byte_range(wanted: Wanted) -> ByteRange {
    match wanted {
        Wanted::FromTo(first, last) => ByteRange::FromTo(first, last),
        Wanted::From(first) => ByteRange::From(first),
        Wanted::Last(count) => ByteRange::Suffix(count),
    }
}

fn read_if(call: &Call) -> ReadIf {
    ReadIf::parse(
        call.header("if-match"),
        call.header("if-none-match"),
        call.header("if-modified-since"),
        call.header("if-unmodified-since"),
    )
}

/// A condition that does not hold is told with what it was judged on.
fn unmet(
    mut refusal: Refusal,
    meta: &ObjectMeta,
    attributes: &Attributes,
) -> Result<Reply, Refusal> {
    if refusal.code != Code::NotModified {
        return Err(refusal);
    }
    refusal.message = "".into();
    let mut reply = Reply::new(StatusCode::NOT_MODIFIED);
    reply.set("etag", &quoted_etag(meta));
    reply.set("last-modified", &http_date(modified_ms(meta, attributes)));
    if let Some(value) = &attributes.cache_control {
        reply.set("cache-control", value);
    }
    Ok(reply)
}

/// What is said of an object in the reply's head.
fn describe(reply: &mut Reply, call: &Call, meta: &ObjectMeta, attributes: &Attributes) {
    reply.set("etag", &quoted_etag(meta));
    reply.set("last-modified", &http_date(modified_ms(meta, attributes)));
    reply.set("accept-ranges", "bytes");
    let type_ = attributes
        .content_type
        .as_deref()
        .unwrap_or("binary/octet-stream");
    for (header, param, value) in [
        ("content-type", "response-content-type", Some(type_)),
        (
            "content-encoding",
            "response-content-encoding",
            attributes.content_encoding.as_deref(),
        ),
        (
            "content-language",
            "response-content-language",
            attributes.content_language.as_deref(),
        ),
        (
            "content-disposition",
            "response-content-disposition",
            attributes.content_disposition.as_deref(),
        ),
        (
            "cache-control",
            "response-cache-control",
            attributes.cache_control.as_deref(),
        ),
        ("expires", "response-expires", attributes.expires.as_deref()),
    ] {
        if let Some(value) = call.param(param).or(value) {
            reply.set(header, value);
        }
    }
    for (name, value) in &attributes.metadata {
        reply.set_named(&format!("x-amz-meta-{name}"), value);
    }
    if !attributes.tags.is_empty() {
        reply.set("x-amz-tagging-count", &attributes.tags.len().to_string());
    }
}

/// Says an object's checksum.
pub(crate) fn set_checksum(reply: &mut Reply, checksum: &Checksum) {
    reply.set(checksum.algorithm.header(), &checksum.to_string());
    reply.set("x-amz-checksum-type", checksum.kind.as_str());
}

/// What is said where an object was another one each time that it was opened.
pub(crate) fn too_fast<T>() -> Result<T, Refusal> {
    refused(
        Code::ServiceUnavailable,
        "The object changes too fast to be read. Please try again.",
    )
}

/// What is said to who wants bytes of an object that it does not have. Amazon's CRT reads an empty object by what it
/// is told here.
fn beyond(call: &Call, size: u64) -> Refusal {
    Refusal::new(Code::InvalidRange, "The requested range is not satisfiable")
        .saying("RangeRequested", call.header("range").unwrap_or_default())
        .saying("ActualObjectSize", size.to_string())
}

/// What of an object is asked for.
struct Part {
    range: Option<ByteRange>,
    /// Which part of an object of parts, and of how many.
    number: Option<(usize, usize)>,
    /// The version that this was found out of.
    of: Option<ashlar_layout::ids::Seq>,
}

impl Part {
    /// All of it.
    const WHOLE: Part = Part {
        range: None,
        number: None,
        of: None,
    };

    /// Whether it is asked for of another object only: of this one `If-Range` wants all.
    fn is_of_another(&self, call: &Call, etag: &str, modified_ms: u64) -> bool {
        let stands = |if_range| range_stands(if_range, etag, modified_ms);
        let is_part = self.range.is_some() || self.number.is_some();
        is_part && !call.header("if-range").is_none_or(stands)
    }
}

impl Gateway {
    /// Finds the object that a request is about, or the version of it.
    pub(crate) async fn find(&self, context: &Context) -> Result<ObjectMeta, Refusal> {
        let call = &context.call;
        let names = (call.bucket.as_str(), call.key.as_str());
        self.find_version(&context.access, names, asked_version(call)?)
            .await
    }

    /// Which bytes a request wants: those of a part can only be told once the object is known.
    async fn part(&self, context: &Context) -> Result<Part, Refusal> {
        let call = &context.call;
        let wanted = call.header("range").and_then(range::parse);
        let Some(number) = call.number("partNumber")? else {
            return Ok(Part {
                range: wanted.map(byte_range),
                number: None,
                of: None,
            });
        };
        if call.header("range").is_some() {
            return refused(
                Code::InvalidRequest,
                "Cannot specify both Range header and partNumber query parameter",
            );
        }
        let number = match usize::try_from(number) {
            Ok(number) if (1..=10_000).contains(&number) => number,
            _ => {
                return refused(
                    Code::InvalidArgument,
                    "Part number must be an integer between 1 and 10000, inclusive",
                );
            }
        };
        let meta = self.find(context).await?;
        let found = attributes(&meta)?;
        self.check_key(call, &found)?;
        let (place, count) = match &found.parts {
            Some(parts) => (parts.place(number), parts.count()),
            None if meta.manifest.etag.parts > 0 => {
                return refused(
                    Code::NotImplemented,
                    "The parts of this object are too many and too different to be told apart here",
                );
            }
            None => ((number == 1).then_some((0, meta.manifest.size)), 1),
        };
        let Some((at, len)) = place else {
            return refused(
                Code::InvalidPartNumber,
                "The requested partnumber is not satisfiable",
            );
        };
        // A part without bytes is no range: the object has none then, or it is the last one.
        let range = (len > 0).then(|| ByteRange::FromTo(at, at + len - 1));
        Ok(Part {
            range,
            number: Some((number, count)),
            of: Some(meta.version),
        })
    }

    /// Opens an object, or a part of it, as the request's conditions want it.
    async fn open(&self, context: &Context, part: &Part) -> Result<Opened, Refusal> {
        let call = &context.call;
        let asked = asked_version(call)?;
        for _ in 0..TRIES {
            let options = GetOptions {
                range: part.range,
                version: asked,
            };
            match self.store.get(&call.bucket, &call.key, options).await {
                Ok(stream) => {
                    let meta = stream.meta().clone();
                    let found = attributes(&meta)?;
                    let names = (call.bucket.as_str(), call.key.as_str());
                    context.access.check_found(names, &meta)?;
                    return Ok(Opened::Stream(Box::new((stream, meta, found))));
                }
                Err(error) if is_absent(&error) => {
                    let names = (call.bucket.as_str(), call.key.as_str());
                    return Err(missing(&context.access, names, asked, &error));
                }
                Err(error) if error.code() == Store::RangeNotSatisfiable => {
                    return Ok(Opened::OutOfRange(Box::new(self.find(context).await?)));
                }
                // Nothing was given out yet: it is another object now.
                Err(error) if error.code() == Store::ObjectChanged => {}
                Err(error) => return Err(refusal(&error)),
            }
        }
        too_fast()
    }

    /// GetObject and HeadObject.
    pub(crate) async fn get_object(
        &self,
        context: &Context,
        is_head: bool,
    ) -> Result<Reply, Refusal> {
        let call = &context.call;
        if call
            .query
            .iter()
            .any(|(name, _)| name.starts_with("response-"))
            && context.access.key.is_none()
        {
            return refused(
                Code::InvalidRequest,
                "Request specific response headers cannot be used for anonymous GET requests.",
            );
        }
        let mut part = self.part(context).await?;
        if is_head {
            return self.head_object(context, &part).await;
        }
        let mut waited = Waited::default();
        for _ in 0..TRIES {
            let opened = self.open(context, &part).await?;
            let (mut stream, meta, found) = match opened {
                Opened::OutOfRange(meta) if part.of.is_some_and(|of| of != meta.version) => {
                    part = self.part(context).await?;
                    continue;
                }
                Opened::OutOfRange(meta) => match self.out_of_range(call, &part, &meta)? {
                    Some(reply) => return Ok(reply),
                    None => {
                        part = Part::WHOLE;
                        continue;
                    }
                },
                Opened::Stream(opened) => *opened,
            };
            if part.of.is_some_and(|of| of != meta.version) {
                // Who reads and waits to read more may wait for others like it.
                drop(stream);
                part = self.part(context).await?;
                continue;
            }
            self.decrypt(call, &found, &mut stream)?;
            let (tag, modified) = (etag(&meta.manifest, meta.id()), modified_ms(&meta, &found));
            if let Err(refusal) = read_if(call).check(&tag, modified) {
                return unmet(refusal, &meta, &found);
            }
            if part.is_of_another(call, &tag, modified) {
                part = Part::WHOLE;
                continue;
            }
            let range = stream.range();
            let len = range.end - range.start;
            let share = match len {
                0 => None,
                len => self.memory.share_of(call.peer(), len, &mut waited),
            };
            if share.is_none() && len > 0 {
                // Who waits keeps nobody else from reading.
                drop(stream);
                self.memory.wait(call.peer(), len, &mut waited).await?;
                continue;
            }
            return self
                .give(context, &part, (stream, share), &meta, &found)
                .await;
        }
        too_fast()
    }

    /// What is said to who wants bytes of an object that it does not have; nothing if all of this one is wanted.
    fn out_of_range(
        &self,
        call: &Call,
        part: &Part,
        meta: &ObjectMeta,
    ) -> Result<Option<Reply>, Refusal> {
        let found = attributes(meta)?;
        self.check_key(call, &found)?;
        let (tag, modified) = (etag(&meta.manifest, meta.id()), modified_ms(meta, &found));
        if let Err(refusal) = read_if(call).check(&tag, modified) {
            return unmet(refusal, meta, &found).map(Some);
        }
        match part.is_of_another(call, &tag, modified) {
            true => Ok(None),
            false => Err(beyond(call, meta.manifest.size)),
        }
    }

    async fn give(
        &self,
        context: &Context,
        part: &Part,
        (mut stream, share): (GetStream, Option<Share>),
        meta: &ObjectMeta,
        found: &Attributes,
    ) -> Result<Reply, Refusal> {
        let range = stream.range();
        let mut reply = head(context, part, &range, meta, found);
        let len = range.end - range.start;
        if part.number.is_some() && part.range.is_none() {
            // A part without bytes, of an object that may have some.
            return Ok(reply);
        }
        if len <= WHOLE {
            let whole = whole(&mut stream, len).await?;
            reply.body = ReplyBody::Full(held(whole, share));
            return Ok(reply);
        }
        let Some(share) = share else {
            return Err(internal("a body without a share of the memory"));
        };
        let pieces = match stream.next().await {
            Some(Ok(first)) => Pieces::with(stream, first),
            Some(Err(error)) => return Err(refusal(&error)),
            None => return Err(internal("an object without bytes")),
        };
        reply.body = ReplyBody::Object(ObjectBody::new(pieces, len, share));
        Ok(reply)
    }

    async fn head_object(&self, context: &Context, part: &Part) -> Result<Reply, Refusal> {
        let call = &context.call;
        let meta = self.find(context).await?;
        let found = attributes(&meta)?;
        self.check_key(call, &found)?;
        let (tag, modified) = (etag(&meta.manifest, meta.id()), modified_ms(&meta, &found));
        if let Err(refusal) = read_if(call).check(&tag, modified) {
            return unmet(refusal, &meta, &found);
        }
        let size = meta.manifest.size;
        let part = match part.is_of_another(call, &tag, modified) {
            true => &Part::WHOLE,
            false => part,
        };
        let range = match part.range {
            None if part.number.is_some() => 0..0,
            None => 0..size,
            Some(asked) => match asked.resolve(size) {
                Some(range) => range,
                None => {
                    return Err(beyond(call, size));
                }
            },
        };
        let mut reply = head(context, part, &range, &meta, &found);
        reply.set("content-length", &(range.end - range.start).to_string());
        Ok(reply)
    }

    /// GetObjectAttributes.
    pub(crate) async fn get_object_attributes(&self, context: &Context) -> Result<Reply, Refusal> {
        let call = &context.call;
        let asked: Vec<&str> = call
            .headers
            .iter()
            .filter(|(name, _)| name == "x-amz-object-attributes")
            .flat_map(|(_, value)| value.split(','))
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .collect();
        const NAMES: [&str; 5] = [
            "ETag",
            "Checksum",
            "ObjectParts",
            "StorageClass",
            "ObjectSize",
        ];
        if asked.is_empty() || asked.iter().any(|name| !NAMES.contains(name)) {
            return refused(Code::InvalidArgument, "Invalid attribute name specified.");
        }
        let marker = number_header(call, "x-amz-part-number-marker")?.unwrap_or(0);
        let most = number_header(call, "x-amz-max-parts")?
            .unwrap_or(1000)
            .min(1000);
        let meta = self.find(context).await?;
        let found = attributes(&meta)?;
        self.check_key(call, &found)?;
        let document = Xml::document("GetObjectAttributesResponse", |xml| {
            if asked.contains(&"ETag") {
                xml.text("ETag", &etag(&meta.manifest, meta.id()));
            }
            if asked.contains(&"Checksum")
                && let Some(checksum) = found.checksum()
            {
                xml.element("Checksum", |xml| write_checksum(xml, checksum));
            }
            if asked.contains(&"ObjectParts") && meta.manifest.etag.parts > 0 {
                xml.element("ObjectParts", |xml| {
                    write_parts(xml, &meta, &found, marker, most)
                });
            }
            if asked.contains(&"StorageClass") {
                xml.text("StorageClass", "STANDARD");
            }
            if asked.contains(&"ObjectSize") {
                xml.value("ObjectSize", meta.manifest.size);
            }
        });
        let modified = http_date(modified_ms(&meta, &found));
        let mut reply = Reply::xml(document).with("last-modified", &modified);
        set_version(&mut reply, context.keeping(), &meta);
        Ok(reply)
    }
}

/// What came of opening an object.
enum Opened {
    Stream(Box<(GetStream, ObjectMeta, Attributes)>),
    OutOfRange(Box<ObjectMeta>),
}

/// All that is left of a reading.
async fn whole(stream: &mut GetStream, len: u64) -> Result<Bytes, Refusal> {
    let mut all: Option<Bytes> = None;
    let mut more = BytesMut::new();
    // To the end: an object that is read whole is compared with its checksum there.
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| refusal(&error))?;
        match all.take() {
            None if more.is_empty() => all = Some(piece),
            first => {
                more.extend_from_slice(&first.unwrap_or_default());
                more.extend_from_slice(&piece);
            }
        }
    }
    let all = all.unwrap_or_else(|| more.freeze());
    if all.len() as u64 == len {
        Ok(all)
    } else {
        Err(internal("an object of another length than it has"))
    }
}

/// The reply's head of a reading.
fn head(
    context: &Context,
    part: &Part,
    range: &Range<u64>,
    meta: &ObjectMeta,
    found: &Attributes,
) -> Reply {
    let call = &context.call;
    let size = meta.manifest.size;
    let is_part = part.range.is_some();
    let mut reply = Reply::new(if is_part {
        StatusCode::PARTIAL_CONTENT
    } else {
        StatusCode::OK
    });
    describe(&mut reply, call, meta, found);
    set_encryption(&mut reply, call, found);
    set_version(&mut reply, context.keeping(), meta);
    set_lock(&mut reply, context, meta);
    let subject = Subject {
        key: &call.key,
        size,
        tags: &found.tags,
        modified_ms: modified_ms(meta, found),
    };
    if let Some(ends) = expiration_header(context.access.bucket.as_ref(), &subject) {
        reply.set("x-amz-expiration", &ends);
    }
    if is_part {
        reply.set("content-range", &content_range(range, size));
    }
    if let Some((_, count)) = part.number
        && meta.manifest.etag.parts > 0
    {
        reply.set("x-amz-mp-parts-count", &count.to_string());
    }
    let mode = call.header("x-amz-checksum-mode");
    if mode.is_some_and(|mode| mode.eq_ignore_ascii_case("enabled"))
        && let Some(checksum) = found.checksum()
    {
        let whole = *range == (0..size);
        let of_part = part.number.and_then(|(number, _)| {
            let digest = found.parts.as_ref()?.digests.get(number - 1)?.clone();
            Some(Checksum::full(checksum.algorithm, digest))
        });
        match of_part {
            Some(of_part) => {
                reply.set(of_part.algorithm.header(), &of_part.to_string());
                reply.set("x-amz-checksum-type", checksum.kind.as_str());
            }
            None if whole => set_checksum(&mut reply, checksum),
            None => {}
        }
    }
    reply
}

fn number_header(call: &Call, name: &str) -> Result<Option<usize>, Refusal> {
    match call.header(name).map(str::parse) {
        None => Ok(None),
        Some(Ok(number)) => Ok(Some(number)),
        Some(Err(_)) => {
            let message = format!("Argument {name} must be an integer between 0 and 2147483647");
            Err(Refusal::new(Code::InvalidArgument, message))
        }
    }
}

/// Writes a checksum as documents have it.
pub(crate) fn write_checksum(xml: &mut Xml, checksum: &Checksum) {
    write_digest(xml, checksum);
    xml.text("ChecksumType", checksum.kind.as_str());
}

/// The same without what it is of.
pub(crate) fn write_digest(xml: &mut Xml, checksum: &Checksum) {
    let name = format!("Checksum{}", checksum.algorithm.as_str());
    xml.text(&name, &checksum.to_string());
}

fn write_parts(xml: &mut Xml, meta: &ObjectMeta, found: &Attributes, marker: usize, most: usize) {
    let count = usize::from(meta.manifest.etag.parts);
    xml.value("PartsCount", count);
    // S3 tells of each part only if it has a checksum of its own.
    let (Some(parts), Some(checksum)) = (&found.parts, found.checksum()) else {
        return;
    };
    if parts.digests.is_empty() || checksum.kind != Kind::Composite {
        return;
    }
    let last = count.min(marker.saturating_add(most));
    xml.value("PartNumberMarker", marker);
    xml.value("NextPartNumberMarker", last);
    xml.value("MaxParts", most);
    xml.value("IsTruncated", last < count);
    for number in marker.saturating_add(1)..=last {
        let (Some((_, size)), Some(digest)) = (parts.place(number), parts.digests.get(number - 1))
        else {
            return;
        };
        xml.element("Part", |xml| {
            xml.value("PartNumber", number);
            xml.value("Size", size);
            write_digest(xml, &Checksum::full(checksum.algorithm, digest.clone()));
        });
    }
}
