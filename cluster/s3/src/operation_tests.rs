//! Which operation requests are, and which are refused.

use crate::operation::{Level, Operation, resolve};
use crate::refusal::Code;

fn ask(method: &str, level: Level, queries: &[&str], headers: &[&str]) -> Result<Operation, Code> {
    resolve(
        method,
        level,
        queries.iter().copied(),
        headers.iter().copied(),
    )
    .map_err(|refusal| refusal.code)
}

#[test]
fn plain_requests() {
    use Level::{Bucket, Object, Service};
    for (method, level, queries, headers, expected) in [
        ("GET", Service, &[][..], &[][..], Operation::ListBuckets),
        ("PUT", Bucket, &[], &["x-amz-acl"], Operation::CreateBucket),
        (
            "GET",
            Bucket,
            &["list-type", "prefix"],
            &[],
            Operation::ListObjectsV2,
        ),
        (
            "GET",
            Bucket,
            &["prefix", "marker"],
            &["x-amz-date"],
            Operation::ListObjects,
        ),
        (
            "POST",
            Bucket,
            &["delete"],
            &["content-md5"],
            Operation::DeleteObjects,
        ),
        ("POST", Bucket, &[], &[], Operation::PostObject),
        (
            "PUT",
            Object,
            &["x-id"],
            &["x-amz-meta-a", "if-none-match"],
            Operation::PutObject,
        ),
        (
            "PUT",
            Object,
            &[],
            &["x-amz-copy-source"],
            Operation::CopyObject,
        ),
        (
            "PUT",
            Object,
            &["partNumber", "uploadId"],
            &["x-amz-checksum-crc32"],
            Operation::UploadPart,
        ),
        (
            "PUT",
            Object,
            &["partNumber", "uploadId"],
            &["x-amz-copy-source"],
            Operation::UploadPartCopy,
        ),
        (
            "POST",
            Object,
            &["uploads"],
            &[],
            Operation::CreateMultipartUpload,
        ),
        (
            "POST",
            Object,
            &["uploadId"],
            &["if-match"],
            Operation::CompleteMultipartUpload,
        ),
        ("GET", Object, &["uploadId"], &[], Operation::ListParts),
        (
            "GET",
            Object,
            &["partNumber"],
            &["if-modified-since", "range"],
            Operation::GetObject,
        ),
        (
            "GET",
            Object,
            &["X-Amz-Signature", "x-amz-checksum-mode"],
            &[],
            Operation::GetObject,
        ),
        (
            "PUT",
            Object,
            &["X-Amz-Signature", "x-amz-meta-a", "x-amz-acl"],
            &[],
            Operation::PutObject,
        ),
        (
            "PUT",
            Object,
            &["renameObject"],
            &[
                "x-amz-rename-source",
                "if-modified-since",
                "x-amz-client-token",
            ],
            Operation::RenameObject,
        ),
        (
            "DELETE",
            Object,
            &["versionId"],
            &[],
            Operation::DeleteObject,
        ),
        (
            "DELETE",
            Object,
            &["uploadId"],
            &[],
            Operation::AbortMultipartUpload,
        ),
    ] {
        assert_eq!(
            ask(method, level, queries, headers),
            Ok(expected),
            "{method} {queries:?}"
        );
    }
}

/// What other servers took for the plain operation, and lost an object by.
#[test]
fn what_is_not_understood_is_not_done() {
    use Level::{Bucket, Object, Service};
    for (method, level, queries, headers) in [
        ("PUT", Object, &["annotation"][..], &[][..]),
        ("PUT", Object, &["renameObject"], &["x-amz-copy-source"]),
        ("PUT", Object, &["renameObject"], &["x-amz-meta-a"]),
        ("PUT", Object, &["renameObject", "versionId"], &[]),
        ("POST", Object, &["renameObject"], &[]),
        ("DELETE", Object, &["retention"], &[]),
        ("DELETE", Object, &["legal-hold"], &[]),
        ("PUT", Object, &["append"], &[]),
        ("PUT", Object, &["encryption"], &[]),
        ("PUT", Object, &["versionId"], &[]),
        ("PUT", Object, &["partNumber"], &[]),
        ("PUT", Object, &["uploadId"], &[]),
        ("PUT", Object, &["Tagging"], &[]),
        ("POST", Object, &["uploads"], &["x-amz-write-offset-bytes"]),
        ("PUT", Object, &[], &["x-amz-rename-source"]),
        (
            "PUT",
            Object,
            &[],
            &["x-amz-server-side-encryption-context"],
        ),
        (
            "PUT",
            Object,
            &[],
            &["x-amz-server-side-encryption-bucket-key-enabled"],
        ),
        (
            "PUT",
            Object,
            &[],
            &["x-amz-copy-source-server-side-encryption-customer-key"],
        ),
        (
            "PUT",
            Object,
            &["partNumber", "uploadId"],
            &["x-amz-server-side-encryption"],
        ),
        (
            "PUT",
            Object,
            &["partNumber", "uploadId"],
            &["x-amz-object-lock-mode"],
        ),
        ("PUT", Object, &[], &["x-amz-bypass-governance-retention"]),
        ("PUT", Object, &[], &["x-amz-website-redirect-location"]),
        ("PUT", Object, &[], &["x-amz-grant-everything"]),
        ("PUT", Object, &[], &["if-modified-since"]),
        ("PUT", Object, &[], &["if-unmodified-since"]),
        ("PUT", Object, &[], &["x-amz-if-match"]),
        (
            "PUT",
            Object,
            &["X-Amz-Signature", "x-amz-rename-source"],
            &[],
        ),
        ("POST", Object, &[], &[]),
        ("POST", Object, &["select"], &[]),
        ("POST", Object, &["restore"], &[]),
        ("GET", Object, &["torrent"], &[]),
        ("GET", Object, &["uploads"], &[]),
        ("GET", Object, &["prefix"], &[]),
        ("DELETE", Object, &[], &["x-amz-if-match-size"]),
        ("DELETE", Object, &[], &["x-amz-mfa"]),
        ("DELETE", Object, &[], &["if-none-match"]),
        ("DELETE", Bucket, &["website"], &[]),
        ("DELETE", Bucket, &["versionId"], &[]),
        ("PUT", Bucket, &["versioning"], &["x-amz-mfa"]),
        ("DELETE", Bucket, &["object-lock"], &[]),
        (
            "PUT",
            Bucket,
            &["object-lock"],
            &["x-amz-bucket-object-lock-token"],
        ),
        ("GET", Bucket, &["inventory"], &[]),
        ("GET", Bucket, &["session"], &[]),
        ("GET", Bucket, &["list-type", "versions"], &[]),
        ("GET", Service, &["location"], &[]),
    ] {
        let said = ask(method, level, queries, headers);
        assert_eq!(
            said,
            Err(Code::NotImplemented),
            "{method} {level:?} {queries:?} {headers:?}"
        );
    }
    assert_eq!(ask("PATCH", Object, &[], &[]), Err(Code::MethodNotAllowed));
    assert_eq!(ask("PUT", Service, &[], &[]), Err(Code::MethodNotAllowed));
}
