//! Listing objects, in the three ways that S3 has.
//!
//! Invariant: pages follow each other without gap or repetition, as the store's own do: where one ends is
//! where the next goes on.

use ashlar_cluster_s3::calendar::iso_date;
use ashlar_cluster_s3::conditional::etag_of;
use ashlar_cluster_s3::listing::{Encoding, page_size, parse_token, token};
use ashlar_cluster_s3::operation::Operation;
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::users::canonical;
use ashlar_cluster_s3::xml::Xml;
use ashlar_layout::message::{ListEntry, ListPage};
use ashlar_node_client::ListOptions;

use crate::call::Call;
use crate::faults::{refusal, refused};
use crate::gateway::{Context, Gateway};
use crate::reply::Reply;

/// A page, and what was asked for.
struct Listing<'a> {
    call: &'a Call,
    encoding: Encoding,
    prefix: &'a str,
    delimiter: &'a str,
    max: u32,
    owner: Option<String>,
    /// Whose each object is, where that is told by object.
    owners: Option<Vec<String>>,
    page: ListPage,
}

/// Whose something is, as listings tell it.
pub(crate) fn write_owner(xml: &mut Xml, name: &str, account: &str) {
    xml.element(name, |xml| {
        xml.text("ID", &canonical(account));
        xml.text("DisplayName", account);
    });
}

pub(crate) fn entry_etag(entry: &ListEntry) -> String {
    if entry.etag.is_none() {
        format!("\"{}\"", etag_of(entry.size, entry.crc, entry.id()))
    } else {
        format!("\"{}\"", entry.etag)
    }
}

impl Listing<'_> {
    /// What every way of listing says first.
    fn begin(&self, xml: &mut Xml) {
        xml.text("Name", &self.call.bucket);
        xml.text("Prefix", &self.encoding.write(self.prefix));
    }

    fn limits(&self, xml: &mut Xml) {
        xml.value("MaxKeys", self.max);
        if !self.delimiter.is_empty() {
            xml.text("Delimiter", &self.encoding.write(self.delimiter));
        }
        if self.encoding == Encoding::Url {
            xml.text("EncodingType", "url");
        }
        xml.value("IsTruncated", self.page.next.is_some());
    }

    fn entries(&self, xml: &mut Xml, name: &str) {
        for (i, entry) in self.page.objects.iter().enumerate() {
            let of_object = self.owners.as_ref().and_then(|owners| owners.get(i));
            xml.element(name, |xml| {
                xml.text("Key", &self.encoding.write(&entry.key));
                xml.text("LastModified", &iso_date(entry.modified_ms));
                xml.text("ETag", &entry_etag(entry));
                xml.value("Size", entry.size);
                if let Some(owner) = of_object.or(self.owner.as_ref()) {
                    write_owner(xml, "Owner", owner);
                }
                xml.text("StorageClass", "STANDARD");
            });
        }
        for prefix in &self.page.prefixes {
            xml.element("CommonPrefixes", |xml| {
                xml.text("Prefix", &self.encoding.write(prefix));
            });
        }
    }
}

impl Gateway {
    /// ListObjects, ListObjectsV2, ListObjectVersions.
    pub(crate) async fn list_objects(
        &self,
        operation: Operation,
        context: &Context,
    ) -> Result<Reply, Refusal> {
        let call = &context.call;
        self.check_there(context).await?;
        if operation == Operation::ListObjectsV2 && call.param("list-type") != Some("2") {
            return refused(
                Code::InvalidArgument,
                "Invalid List Type specified in Request",
            );
        }
        let param = |name| call.param(name).unwrap_or_default();
        let max = page_size(call.number("max-keys")?, "max-keys")?;
        let encoding = Encoding::parse(call.param("encoding-type"))?;
        let after = match operation {
            Operation::ListObjects => param("marker").to_owned(),
            Operation::ListObjectsV2 => match call.param("continuation-token") {
                // As S3 has it, a token without anything in it is one from the beginning.
                Some("") => param("start-after").to_owned(),
                Some(given) => parse_token(given)?,
                None => param("start-after").to_owned(),
            },
            _ => return self.list_versions(context).await,
        };
        let page = match max {
            0 => ListPage::default(),
            max => {
                let options = ListOptions {
                    prefix: param("prefix").to_owned(),
                    delimiter: param("delimiter").to_owned(),
                    after,
                    max,
                };
                let page = self.store.list(&call.bucket, options).await;
                page.map_err(|error| refusal(&error))?
            }
        };
        let owner = context.access.owner();
        let told = operation != Operation::ListObjectsV2 || param("fetch-owner") == "true";
        let owners = match told {
            true => self.owners(context, &page.objects).await?,
            false => None,
        };
        let listing = Listing {
            call,
            owners,
            encoding,
            prefix: param("prefix"),
            delimiter: param("delimiter"),
            max,
            owner: (told && !owner.is_empty()).then(|| owner.to_owned()),
            page,
        };
        Ok(Reply::xml(match operation {
            Operation::ListObjects => first(&listing),
            _ => second(&listing),
        }))
    }
}

fn first(listing: &Listing<'_>) -> String {
    Xml::document("ListBucketResult", |xml| {
        listing.begin(xml);
        let marker = listing.call.param("marker").unwrap_or_default();
        xml.text("Marker", &listing.encoding.write(marker));
        // Without a delimiter the last key is where to go on.
        if let Some(next) = listing
            .page
            .next
            .as_ref()
            .filter(|_| !listing.delimiter.is_empty())
        {
            xml.text("NextMarker", &listing.encoding.write(next));
        }
        listing.limits(xml);
        listing.entries(xml, "Contents");
    })
}

fn second(listing: &Listing<'_>) -> String {
    let (call, page) = (listing.call, &listing.page);
    Xml::document("ListBucketResult", |xml| {
        listing.begin(xml);
        xml.some("ContinuationToken", call.param("continuation-token"));
        if let Some(next) = &page.next {
            xml.text("NextContinuationToken", &token(next));
        }
        if let Some(after) = call.param("start-after") {
            xml.text("StartAfter", &listing.encoding.write(after));
        }
        xml.value("KeyCount", page.objects.len() + page.prefixes.len());
        listing.limits(xml);
        listing.entries(xml, "Contents");
    })
}
