//! Versions of objects: whether a bucket keeps them, which one a request is about, and listing them.
//!
//! Invariants:
//! - an object that was put before its bucket kept versions is made one before another one takes its place: the
//!   journal refuses what would lose it;
//! - a marker is told as what is absent, and that it is one is said as well;
//! - what a version is called comes from the journal: no two of an object are called alike.

use std::time::Duration;

use ashlar_cluster_s3::bucket::{BucketConfig, Versioning};
use ashlar_cluster_s3::calendar::{http_date, iso_date};
use ashlar_cluster_s3::documents::{parse_versioning, write_versioning};
use ashlar_cluster_s3::listing::{Encoding, page_size};
use ashlar_cluster_s3::operation::Operation;
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::version_id;
use ashlar_cluster_s3::xml::Xml;
use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{NULL_VERSION, Precondition, VersionTag};
use ashlar_layout::message::{ListEntry, ObjectMeta, VersionPage};
use ashlar_node_client::{
    ClientError, DeleteOptions, DeleteOutcome, ListOptions, ObjectError, VersionsOptions,
};

use crate::access::Access;
use crate::call::Call;
use crate::directory::OpenBucket;
use crate::faults::{is_absent, refusal, refused};
use crate::gateway::{Context, Gateway};
use crate::inbound::Inbound;
use crate::kept::LEASE;
use crate::lists::{entry_etag, write_owner};
use crate::reply::Reply;

/// For so long a gateway goes by what it was told that a bucket wants. Who asks for something else meanwhile, asks
/// beside the request, not before it.
pub(crate) const STANDS: Duration = LEASE;

/// Whether a bucket keeps versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeping {
    /// It never did.
    Off,
    /// Each put makes one.
    Enabled,
    /// It did: each put makes the null one.
    Suspended,
}

impl Keeping {
    pub(crate) fn of(bucket: Option<&OpenBucket>) -> Keeping {
        match bucket.and_then(|open| open.config.versioning) {
            None => Keeping::Off,
            Some(Versioning::Enabled) => Keeping::Enabled,
            Some(Versioning::Suspended) => Keeping::Suspended,
        }
    }

    /// What a version is called that entry `seq` made; nothing where it has no name of its own.
    pub(crate) fn made(self, seq: Seq) -> Option<String> {
        let tag = VersionTag {
            id: seq,
            ..VersionTag::default()
        };
        (self == Keeping::Enabled).then(|| version_id::write(Some(tag)))
    }

    /// The same of a marker, which is told of wherever there are any.
    pub(crate) fn marked(self, seq: Seq) -> Option<String> {
        match self {
            Keeping::Off => None,
            Keeping::Enabled => self.made(seq),
            Keeping::Suspended => Some(version_id::write(None)),
        }
    }
}

impl Context {
    pub(crate) fn keeping(&self) -> Keeping {
        Keeping::of(self.access.bucket.as_deref())
    }
}

/// Which version a request is about, if it says that.
pub(crate) fn asked_version(call: &Call) -> Result<Option<Seq>, Refusal> {
    call.param("versionId").map(version_id::parse).transpose()
}

/// Says which version an object is, where that means something.
pub(crate) fn set_version(reply: &mut Reply, keeping: Keeping, meta: &ObjectMeta) {
    if keeping != Keeping::Off || meta.tag.is_some() {
        reply.set("x-amz-version-id", &version_id::write(meta.tag));
    }
}

/// What is said of an object, or a version of one, that is not there.
pub(crate) fn missing(
    access: &Access,
    (bucket, key): (&str, &str),
    version: Option<Seq>,
    error: &ClientError,
) -> Refusal {
    let marker = match error {
        ClientError::Object(ObjectError::Marker { meta, .. }) => Some(meta),
        error if is_absent(error) => None,
        error => return refusal(error),
    };
    let absent = access.absent(bucket, key);
    if absent.code == Code::AccessDenied {
        return absent;
    }
    let told = match (marker, version) {
        (None, None) => return absent,
        (None, Some(_)) => {
            let message = "The specified version does not exist.";
            return Refusal::new(Code::NoSuchVersion, message);
        }
        (Some(_), None) => absent,
        (Some(meta), Some(_)) => Refusal::new(
            Code::MethodNotAllowed,
            "The specified method is not allowed against this resource.",
        )
        .with("allow", "DELETE")
        .with("last-modified", http_date(meta.modified_ms)),
    };
    let tag = marker.and_then(|meta| meta.tag);
    told.with("x-amz-delete-marker", "true")
        .with("x-amz-version-id", version_id::write(tag))
}

/// What stands where it was looked, a marker included; none if nothing does.
pub(crate) fn standing(
    found: Result<ObjectMeta, ClientError>,
) -> Result<Option<ObjectMeta>, Refusal> {
    match found {
        Ok(meta) => Ok(Some(meta)),
        Err(ClientError::Object(ObjectError::Marker { meta, .. })) => Ok(Some(*meta)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(refusal(&error)),
    }
}

impl Gateway {
    /// What is known of an object, or of a version of one. An object that is none is the null one: the journal's head
    /// answers by that, in one look.
    pub(crate) async fn head(
        &self,
        bucket: &str,
        key: &str,
        version: Option<Seq>,
    ) -> Result<ObjectMeta, ClientError> {
        match version {
            None => self.store.head(bucket, key).await,
            Some(version) => self.store.head_version(bucket, key, version).await,
        }
    }

    /// Takes what is current away: where versions are kept, by a marker that is current then.
    pub(crate) async fn take_away(
        &self,
        bucket: &str,
        key: &str,
        precondition: Precondition,
        keeping: Keeping,
    ) -> Result<DeleteOutcome, ClientError> {
        if keeping == Keeping::Off {
            let options = DeleteOptions {
                precondition,
                ..DeleteOptions::default()
            };
            return self.store.delete(bucket, key, options).await;
        }
        let null = keeping == Keeping::Suspended;
        self.store
            .mark_deleted(bucket, key, precondition, null)
            .await
    }

    /// Finds an object, or a version of one.
    pub(crate) async fn find_version(
        &self,
        access: &Access,
        (bucket, key): (&str, &str),
        version: Option<Seq>,
    ) -> Result<ObjectMeta, Refusal> {
        let found = self.head(bucket, key, version).await;
        let found = found.map_err(|error| missing(access, (bucket, key), version, &error))?;
        access.check_found((bucket, key), &found)?;
        Ok(found)
    }

    /// GetBucketVersioning, PutBucketVersioning.
    pub(crate) async fn bucket_versioning(
        &self,
        operation: Operation,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        if operation == Operation::GetBucketVersioning {
            let open = context.access.bucket.as_ref();
            let versioning = open.and_then(|open| open.config.versioning);
            return Ok(Reply::xml(write_versioning(versioning)));
        }
        let document = self.document(context, body).await?;
        let versioning = parse_versioning(&document)?;
        let change = |config: &mut BucketConfig| {
            if config.object_lock.is_some() && versioning != Versioning::Enabled {
                return refused(
                    Code::InvalidBucketState,
                    "An Object Lock configuration is present on this bucket, so the versioning state cannot be \
                     changed.",
                );
            }
            config.versioning = Some(versioning);
            Ok(())
        };
        self.change(context, change).await?;
        Ok(Reply::ok())
    }

    /// ListObjectVersions.
    pub(crate) async fn list_versions(&self, context: &Context) -> Result<Reply, Refusal> {
        let call = &context.call;
        self.check_there(context).await?;
        let param = |name| call.param(name).unwrap_or_default();
        let max = page_size(call.number("max-keys")?, "max-keys")?;
        let encoding = Encoding::parse(call.param("encoding-type"))?;
        let (after, after_id) = (param("key-marker"), param("version-id-marker"));
        if !after_id.is_empty() && after.is_empty() {
            return refused(
                Code::InvalidArgument,
                "A version-id marker cannot be specified without a key marker.",
            );
        }
        let after_id = match after_id {
            "" => None,
            text => self.marker_id(&call.bucket, after, text).await?,
        };
        let page = match max {
            0 => VersionPage::default(),
            max => {
                let list = ListOptions {
                    prefix: param("prefix").to_owned(),
                    delimiter: param("delimiter").to_owned(),
                    after: after.to_owned(),
                    max,
                };
                let options = VersionsOptions { list, after_id };
                let page = self.store.list_versions(&call.bucket, options).await;
                page.map_err(|error| refusal(&error))?
            }
        };
        let owners = self.owners(context, &page.versions).await?;
        let listing = Versions {
            call,
            owners,
            encoding,
            max,
            owner: context.access.owner(),
            goes_on: after_id.map(|_| after),
            page,
        };
        Ok(Reply::xml(listing.document()))
    }

    /// The version behind which a page begins. The null one may be any; where there is none the key is passed over.
    async fn marker_id(&self, bucket: &str, key: &str, text: &str) -> Result<Option<Seq>, Refusal> {
        let id = version_id::parse(text)?;
        if id != NULL_VERSION {
            return Ok(Some(id));
        }
        let null = standing(self.store.head_version(bucket, key, id).await)?;
        Ok(null.map(|meta| meta.id()))
    }
}

/// A page of versions, and what was asked for.
struct Versions<'a> {
    call: &'a Call,
    encoding: Encoding,
    max: u32,
    owner: &'a str,
    /// Whose each version is, where that is told by object.
    owners: Option<Vec<String>>,
    /// The key in the middle of whose versions it begins.
    goes_on: Option<&'a str>,
    page: VersionPage,
}

impl Versions<'_> {
    fn document(&self) -> String {
        let (call, page) = (self.call, &self.page);
        let param = |name| call.param(name).unwrap_or_default();
        Xml::document("ListVersionsResult", |xml| {
            xml.text("Name", &call.bucket);
            xml.text("Prefix", &self.encoding.write(param("prefix")));
            xml.text("KeyMarker", &self.encoding.write(param("key-marker")));
            xml.text("VersionIdMarker", param("version-id-marker"));
            if let Some((key, id)) = &page.next {
                xml.text("NextKeyMarker", &self.encoding.write(key));
                if let Some(id) = *id {
                    // The null version, too, is told by its place.
                    let tag = VersionTag {
                        id,
                        ..VersionTag::default()
                    };
                    xml.text("NextVersionIdMarker", &version_id::write(Some(tag)));
                }
            }
            xml.value("MaxKeys", self.max);
            if !param("delimiter").is_empty() {
                xml.text("Delimiter", &self.encoding.write(param("delimiter")));
            }
            if self.encoding == Encoding::Url {
                xml.text("EncodingType", "url");
            }
            xml.value("IsTruncated", page.next.is_some());
            let mut before = self.goes_on;
            for (i, entry) in page.versions.iter().enumerate() {
                let owner = self.owners.as_ref().and_then(|owners| owners.get(i));
                let owner = owner.map_or(self.owner, String::as_str);
                self.entry(xml, entry, before != Some(&entry.key), owner);
                before = Some(&entry.key);
            }
            for prefix in &page.prefixes {
                xml.element("CommonPrefixes", |xml| {
                    xml.text("Prefix", &self.encoding.write(prefix));
                });
            }
        })
    }

    fn entry(&self, xml: &mut Xml, entry: &ListEntry, latest: bool, owner: &str) {
        let marker = entry.tag.is_some_and(|tag| tag.marker);
        let name = if marker { "DeleteMarker" } else { "Version" };
        xml.element(name, |xml| {
            xml.text("Key", &self.encoding.write(&entry.key));
            xml.text("VersionId", &version_id::write(entry.tag));
            xml.value("IsLatest", latest);
            xml.text("LastModified", &iso_date(entry.modified_ms));
            if !marker {
                xml.text("ETag", &entry_etag(entry));
                xml.value("Size", entry.size);
                xml.text("StorageClass", "STANDARD");
            }
            if !owner.is_empty() {
                write_owner(xml, "Owner", owner);
            }
        });
    }
}
