//! The uploads to a bucket: listed, and given up with it.

use ashlar_cluster_s3::calendar::iso_date;
use ashlar_cluster_s3::listing::{Encoding, page_size};
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::system::{
    UploadId, UploadRecord, UploadState, behind_uploads, upload_marker, uploads_prefix,
};
use ashlar_cluster_s3::xml::Xml;
use ashlar_layout::message::ListEntry;
use ashlar_node_client::Client;
use tokio::task::JoinSet;

use crate::acl::owner_of;
use crate::directory::{read_document, reserved};
use crate::faults::{internal, refusal, refused};
use crate::gateway::{Context, Gateway};
use crate::lists::write_owner;
use crate::reply::Reply;
use crate::uploads::Upload;

/// Records that are read at once for a page.
const AT_ONCE: usize = 16;

/// The upload whose record has this key, whatever it is of.
async fn read_record(store: &Client, key: &str) -> Result<Option<Upload>, Refusal> {
    let found = read_document(store, key).await;
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
        let at_once = AT_ONCE.min(most.saturating_add(1));
        'pages: loop {
            if most == 0 {
                break;
            }
            let page = reserved(&self.store, uploads_prefix(&call.bucket, prefix), after).await?;
            let mut rest = page.objects.as_slice();
            while !rest.is_empty() {
                let (entries, more) = rest.split_at(at_once.min(rest.len()));
                rest = more;
                let mut behind = None;
                for upload in self.listed_together(&call.bucket, entries).await? {
                    if upload.record.state == UploadState::Made {
                        continue;
                    }
                    match found.take(upload, prefix, delimiter, key_marker, most) {
                        Taken::Went => {}
                        Taken::Rolled(common) => behind = behind_uploads(&call.bucket, &common),
                        Taken::Full => {
                            found.more = true;
                            break 'pages;
                        }
                    }
                }
                // Nothing more is told of those under a prefix, however many they are: they are not read.
                if let Some(behind) = behind {
                    let rolled = rest.partition_point(|entry| entry.key <= behind);
                    rest = &rest[rolled..];
                    if rest.is_empty() && page.next.is_some() {
                        after = behind;
                        continue 'pages;
                    }
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

    /// The uploads whose records these are, in their order, as far as they are there.
    async fn listed_together(
        &self,
        bucket: &str,
        entries: &[ListEntry],
    ) -> Result<Vec<Upload>, Refusal> {
        let mut tasks = JoinSet::new();
        let mut uploads: Vec<Option<Upload>> = vec![None; entries.len()];
        for (i, entry) in entries.iter().enumerate() {
            let (store, key) = (self.store.clone(), entry.key.clone());
            tasks.spawn(async move { (i, read_record(&store, &key).await) });
        }
        while let Some(done) = tasks.join_next().await {
            let (i, upload) = done.map_err(internal)?;
            uploads[i] = upload?;
        }
        let mut uploads: Vec<Upload> = uploads.into_iter().flatten().collect();
        uploads.retain(|upload| upload.record.bucket == bucket);
        Ok(uploads)
    }

    /// The upload whose record has this key, whatever it is of.
    pub(crate) async fn recorded(&self, key: &str) -> Result<Option<Upload>, Refusal> {
        read_record(&self.store, key).await
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

/// What became of an upload that a page was offered.
#[derive(Debug, PartialEq, Eq)]
enum Taken {
    /// It is in the page, or is not to be.
    Went,
    /// All that begin with this are told by that.
    Rolled(String),
    /// There is no room for it.
    Full,
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
    /// Takes an upload into the page.
    fn take(
        &mut self,
        upload: Upload,
        prefix: &str,
        delimiter: &str,
        marker: &str,
        most: usize,
    ) -> Taken {
        let key = &upload.record.key;
        let Some(rest) = key.strip_prefix(prefix) else {
            return Taken::Went;
        };
        let full = self.uploads.len() + self.prefixes.len() >= most;
        let rolled = (!delimiter.is_empty())
            .then(|| rest.find(delimiter))
            .flatten();
        let Some(at) = rolled else {
            if full {
                return Taken::Full;
            }
            self.last = Some((key.clone(), upload.record.id.clone()));
            self.uploads.push(upload);
            return Taken::Went;
        };
        let common = key[..prefix.len() + at + delimiter.len()].to_owned();
        // A page that ended with a common prefix goes on behind all of it.
        if self.prefixes.last() == Some(&common) || marker.starts_with(&common) {
            return Taken::Rolled(common);
        }
        if full {
            return Taken::Full;
        }
        self.last = Some((common.clone(), String::new()));
        self.prefixes.push(common.clone());
        Taken::Rolled(common)
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

#[cfg(test)]
mod tests {
    use ashlar_layout::ids::Seq;

    use super::*;

    #[test]
    fn what_rolls_up_is_told_once_and_passed_over() {
        let id = UploadId::new(5, [1; 8]);
        let upload = |key: &str| Upload {
            id,
            record: UploadRecord::new("b", key, id, "111111111111", 5),
            version: Seq(1),
        };
        let rolled = |common: &str| Taken::Rolled(common.to_owned());
        let mut page = Uploads::default();
        let mut take = |key: &str, marker: &str| page.take(upload(key), "p", "/", marker, 3);
        assert_eq!(take("o", ""), Taken::Went);
        assert_eq!(take("p1", ""), Taken::Went);
        assert_eq!(take("p/1", ""), rolled("p/"));
        assert_eq!(take("p/2/3", ""), rolled("p/"));
        // That one the page before has told.
        assert_eq!(take("p2/1", "p2/"), rolled("p2/"));
        assert_eq!(take("p3/1", ""), rolled("p3/"));
        assert_eq!(take("p3/2", ""), rolled("p3/"));
        assert_eq!(take("p4/1", ""), Taken::Full);
        assert_eq!(take("p5", ""), Taken::Full);
        assert_eq!((page.uploads.len(), page.prefixes.len()), (1, 2));
        assert_eq!(page.last, Some(("p3/".to_owned(), String::new())));
    }
}
