//! The uploads to a bucket: listed, and given up with it.

use ashlar_cluster_s3::calendar::iso_date;
use ashlar_cluster_s3::listing::{Encoding, page_size};
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::system::{
    UploadId, UploadRecord, UploadState, upload_marker, uploads_prefix,
};
use ashlar_cluster_s3::xml::Xml;

use crate::acl::owner_of;
use crate::directory::{read_document, reserved};
use crate::faults::{internal, refusal, refused};
use crate::gateway::{Context, Gateway};
use crate::lists::write_owner;
use crate::reply::Reply;
use crate::uploads::Upload;

impl Gateway {
    /// ListMultipartUploads.
    pub(crate) async fn list_uploads(&self, context: &Context) -> Result<Reply, Refusal> {
        let call = &context.call;
        self.check_there(context).await?;
        let param = |name| call.param(name).unwrap_or_default();
        let encoding = Encoding::parse(call.param("encoding-type"))?;
        let most = page_size(call.number("max-uploads")?, "max-uploads")? as usize;
        let (prefix, delimiter) = (param("prefix"), param("delimiter"));
        let (key_marker, id_marker) = (param("key-marker"), param("upload-id-marker"));
        let id = match (id_marker, key_marker) {
            ("", _) | (_, "") => None,
            (text, _) => match UploadId::parse(text) {
                Some(id) => Some(id),
                None => return refused(Code::InvalidArgument, "Invalid uploadId marker"),
            },
        };
        let mut found = Uploads::default();
        let mut after = match key_marker {
            "" => String::new(),
            key => upload_marker(&call.bucket, key, id),
        };
        'pages: loop {
            if most == 0 {
                break;
            }
            let page = reserved(&self.store, uploads_prefix(&call.bucket, prefix), after).await?;
            for entry in page.objects {
                let Some(upload) = self.listed(&call.bucket, &entry.key).await? else {
                    continue;
                };
                if upload.record.state == UploadState::Made {
                    continue;
                }
                if !found.take(upload, prefix, delimiter, key_marker, most) {
                    found.more = true;
                    break 'pages;
                }
            }
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        Ok(Reply::xml(found.document(context, encoding, most)))
    }

    /// The upload whose record has this key, however it stands.
    pub(crate) async fn listed(&self, bucket: &str, key: &str) -> Result<Option<Upload>, Refusal> {
        let upload = self.recorded(key).await?;
        Ok(upload.filter(|upload| upload.record.bucket == bucket))
    }

    /// The upload whose record has this key, whatever it is of.
    pub(crate) async fn recorded(&self, key: &str) -> Result<Option<Upload>, Refusal> {
        let found = read_document(&self.store, key).await;
        let Some((meta, bytes)) = found.map_err(|error| refusal(&error))? else {
            return Ok(None);
        };
        let record = UploadRecord::decode(&bytes).map_err(internal)?;
        let Some(id) = UploadId::parse(&record.id) else {
            return Err(internal("an upload without an id"));
        };
        Ok(Some(Upload {
            id,
            record,
            version: meta.version,
        }))
    }

    /// Gives up all uploads to a bucket that began before it was removed.
    pub(crate) async fn purge_uploads(&self, bucket: &str, before_ms: u64) -> Result<(), Refusal> {
        let mut after = String::new();
        loop {
            let page = reserved(&self.store, uploads_prefix(bucket, ""), after).await?;
            for entry in page.objects {
                if let Some(upload) = self.listed(bucket, &entry.key).await?
                    && upload.record.begun_ms < before_ms
                {
                    match self.abort(upload).await {
                        // Whoever puts it together finds that the bucket is gone, and gives it up.
                        Err(refusal) if refusal.code == Code::OperationAborted => {}
                        aborted => aborted?,
                    }
                }
            }
            match page.next {
                Some(next) => after = next,
                None => return Ok(()),
            }
        }
    }
}

/// A page of uploads.
#[derive(Default)]
struct Uploads {
    uploads: Vec<Upload>,
    prefixes: Vec<String>,
    more: bool,
    last: Option<(String, String)>,
}

impl Uploads {
    /// Takes an upload into the page; false if the page is full.
    fn take(
        &mut self,
        upload: Upload,
        prefix: &str,
        delimiter: &str,
        marker: &str,
        most: usize,
    ) -> bool {
        let key = &upload.record.key;
        let Some(rest) = key.strip_prefix(prefix) else {
            return true;
        };
        let full = self.uploads.len() + self.prefixes.len() >= most;
        let rolled = (!delimiter.is_empty())
            .then(|| rest.find(delimiter))
            .flatten();
        let Some(at) = rolled else {
            if full {
                return false;
            }
            self.last = Some((key.clone(), upload.record.id.clone()));
            self.uploads.push(upload);
            return true;
        };
        let common = key[..prefix.len() + at + delimiter.len()].to_owned();
        // A page that ended with a common prefix goes on behind all of it.
        if self.prefixes.last() == Some(&common) || marker.starts_with(&common) {
            return true;
        }
        if full {
            return false;
        }
        self.last = Some((common.clone(), String::new()));
        self.prefixes.push(common);
        true
    }

    fn document(&self, context: &Context, encoding: Encoding, most: usize) -> String {
        let call = &context.call;
        let param = |name| call.param(name).unwrap_or_default();
        Xml::document("ListMultipartUploadsResult", |xml| {
            xml.text("Bucket", &call.bucket);
            xml.text("KeyMarker", &encoding.write(param("key-marker")));
            xml.text("UploadIdMarker", param("upload-id-marker"));
            if let Some((key, id)) = self.last.as_ref().filter(|_| self.more) {
                xml.text("NextKeyMarker", &encoding.write(key));
                xml.text("NextUploadIdMarker", id);
            }
            xml.text("Prefix", &encoding.write(param("prefix")));
            if !param("delimiter").is_empty() {
                xml.text("Delimiter", &encoding.write(param("delimiter")));
            }
            if encoding == Encoding::Url {
                xml.text("EncodingType", "url");
            }
            xml.value("MaxUploads", most);
            xml.value("IsTruncated", self.more);
            for upload in &self.uploads {
                let record = &upload.record;
                xml.element("Upload", |xml| {
                    xml.text("Key", &encoding.write(&record.key));
                    xml.text("UploadId", &record.id);
                    write_owner(xml, "Initiator", &record.owner);
                    write_owner(xml, "Owner", &owner_of(&context.access, record));
                    xml.text("StorageClass", "STANDARD");
                    xml.text("Initiated", &iso_date(record.begun_ms));
                    if let Some((algorithm, kind)) = record.checksum() {
                        xml.text("ChecksumAlgorithm", algorithm.as_str());
                        xml.text("ChecksumType", kind.as_str());
                    }
                });
            }
            for prefix in &self.prefixes {
                xml.element("CommonPrefixes", |xml| {
                    xml.text("Prefix", &encoding.write(prefix))
                });
            }
        })
    }
}
