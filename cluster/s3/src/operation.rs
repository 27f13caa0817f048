//! Which operation a request is; and whether all that it says is understood.
//!
//! Invariant: a request with a query key, an `x-amz-` header or a condition that its operation does not
//! take is refused before anything is looked at. S3 grows: what is new there must not be taken for a
//! plain put here, and overwrite what it was about.

use crate::refusal::{Code, Refusal, refuse};

/// What the path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nothing: the service.
    Service,
    /// A bucket.
    Bucket,
    /// An object.
    Object,
}

/// A rule: how a request of an operation looks.
struct Rule {
    operation: Operation,
    method: &'static str,
    level: Level,
    /// Query keys that it must have.
    needs: &'static [&'static str],
    /// A header that it must have.
    header: Option<&'static str>,
    /// Query keys that it may have.
    queries: &'static [&'static str],
    /// `x-amz-` headers (without that beginning) and conditions that it may have.
    headers: &'static [&'static [&'static str]],
}

macro_rules! operations {
    ($(
        $(#[$doc:meta])*
        $name:ident $action:literal $method:literal $level:ident
            needs $needs:tt header $header:expr, queries $queries:tt headers $headers:tt;
    )*) => {
        /// An operation that is there.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Operation {
            $($(#[$doc])* $name,)*
        }

        impl Operation {
            /// All of them.
            pub const ALL: &'static [Operation] = &[$(Operation::$name),*];

            /// Its name.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Operation::$name => stringify!($name),)*
                }
            }

            /// What a policy calls it.
            pub fn action(self) -> &'static str {
                match self {
                    $(Operation::$name => $action,)*
                }
            }
        }

        const RULES: &[Rule] = &[$(Rule {
            operation: Operation::$name,
            method: $method,
            level: Level::$level,
            needs: &$needs,
            header: $header,
            queries: &$queries,
            headers: &$headers,
        }),*];
    };
}

const COPY_SOURCE: Option<&str> = Some("x-amz-copy-source");

/// Query keys that any request may have: signatures, and what SDKs tell of themselves.
const ANY_QUERY: &[&str] = &[
    "AWSAccessKeyId",
    "Expires",
    "Signature",
    "X-Amz-Algorithm",
    "X-Amz-Content-Sha256",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-Security-Token",
    "X-Amz-Signature",
    "X-Amz-SignedHeaders",
    "x-id",
];
/// Headers that any request may have.
const ANY_HEADER: &[&str] = &[
    // Of S3's interface, of which there has been one: the SDK for C++ says it, and all that stands on that.
    "api-version",
    "content-sha256",
    "date",
    "expected-bucket-owner",
    "request-payer",
    "security-token",
    "user-agent",
];
/// Digests, and how they come.
const CHECKSUMS: &[&str] = &[
    "checksum-algorithm",
    "checksum-crc32",
    "checksum-crc32c",
    "checksum-crc64nvme",
    "checksum-sha1",
    "checksum-sha256",
    "checksum-type",
    "sdk-checksum-algorithm",
];
/// Bodies in chunks.
const CHUNKED: &[&str] = &["decoded-content-length", "trailer"];
/// What is kept with an object; `meta-` stands for all that begin so.
const KEPT: &[&str] = &["acl", "meta-", "storage-class", "tagging"];
/// What keeps a version.
const LOCKED: &[&str] = &[
    "object-lock-legal-hold",
    "object-lock-mode",
    "object-lock-retain-until-date",
];
const READ_CONDITIONS: &[&str] = &[
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
];
const WRITE_CONDITIONS: &[&str] = &["if-match", "if-none-match"];
const COPIED: &[&str] = &[
    "copy-source",
    "copy-source-if-match",
    "copy-source-if-modified-since",
    "copy-source-if-none-match",
    "copy-source-if-unmodified-since",
    "source-expected-bucket-owner",
];
const OVERRIDES_CHECKSUM_MODE: &[&str] = &["checksum-mode"];

operations! {
    /// The caller's buckets.
    ListBuckets "s3:ListAllMyBuckets" "GET" Service
        needs [] header None,
        queries ["bucket-region", "continuation-token", "max-buckets", "prefix"] headers [];
    /// Makes one.
    CreateBucket "s3:CreateBucket" "PUT" Bucket
        needs [] header None,
        queries [] headers [&["acl", "bucket-object-lock-enabled", "object-ownership"], CHECKSUMS];
    /// Is it there?
    HeadBucket "s3:ListBucket" "HEAD" Bucket
        needs [] header None, queries [] headers [];
    /// Removes an empty one.
    DeleteBucket "s3:DeleteBucket" "DELETE" Bucket
        needs [] header None, queries [] headers [];
    /// Its region.
    GetBucketLocation "s3:GetBucketLocation" "GET" Bucket
        needs ["location"] header None, queries [] headers [];
    /// The first way to list.
    ListObjects "s3:ListBucket" "GET" Bucket
        needs [] header None,
        queries ["delimiter", "encoding-type", "marker", "max-keys", "prefix"]
        headers [&["optional-object-attributes"]];
    /// The second.
    ListObjectsV2 "s3:ListBucket" "GET" Bucket
        needs ["list-type"] header None,
        queries [
            "continuation-token", "delimiter", "encoding-type", "fetch-owner", "max-keys", "prefix",
            "start-after",
        ]
        headers [&["optional-object-attributes"]];
    /// With versions.
    ListObjectVersions "s3:ListBucketVersions" "GET" Bucket
        needs ["versions"] header None,
        queries ["delimiter", "encoding-type", "key-marker", "max-keys", "prefix", "version-id-marker"]
        headers [&["optional-object-attributes"]];
    /// Uploads under way.
    ListMultipartUploads "s3:ListBucketMultipartUploads" "GET" Bucket
        needs ["uploads"] header None,
        queries ["delimiter", "encoding-type", "key-marker", "max-uploads", "prefix", "upload-id-marker"]
        headers [];
    /// Removes many.
    DeleteObjects "s3:DeleteObject" "POST" Bucket
        needs ["delete"] header None,
        queries [] headers [CHECKSUMS, CHUNKED, &["bypass-governance-retention"]];
    /// An upload by a form.
    PostObject "s3:PutObject" "POST" Bucket
        needs [] header None, queries [] headers [];
    /// Its tags.
    GetBucketTagging "s3:GetBucketTagging" "GET" Bucket
        needs ["tagging"] header None, queries [] headers [];
    /// Its tags.
    PutBucketTagging "s3:PutBucketTagging" "PUT" Bucket
        needs ["tagging"] header None, queries [] headers [CHECKSUMS, CHUNKED];
    /// Its tags.
    DeleteBucketTagging "s3:PutBucketTagging" "DELETE" Bucket
        needs ["tagging"] header None, queries [] headers [];
    /// Its policy.
    GetBucketPolicy "s3:GetBucketPolicy" "GET" Bucket
        needs ["policy"] header None, queries [] headers [];
    /// Whether its policy is a public one.
    GetBucketPolicyStatus "s3:GetBucketPolicyStatus" "GET" Bucket
        needs ["policyStatus"] header None, queries [] headers [];
    /// Its policy.
    PutBucketPolicy "s3:PutBucketPolicy" "PUT" Bucket
        needs ["policy"] header None,
        queries [] headers [CHECKSUMS, CHUNKED, &["confirm-remove-self-bucket-access"]];
    /// Its policy.
    DeleteBucketPolicy "s3:DeleteBucketPolicy" "DELETE" Bucket
        needs ["policy"] header None, queries [] headers [];
    /// Who may call from other sites.
    GetBucketCors "s3:GetBucketCORS" "GET" Bucket
        needs ["cors"] header None, queries [] headers [];
    /// Who may call from other sites.
    PutBucketCors "s3:PutBucketCORS" "PUT" Bucket
        needs ["cors"] header None, queries [] headers [CHECKSUMS, CHUNKED];
    /// Who may call from other sites.
    DeleteBucketCors "s3:PutBucketCORS" "DELETE" Bucket
        needs ["cors"] header None, queries [] headers [];
    /// Who owns what is put.
    GetBucketOwnershipControls "s3:GetBucketOwnershipControls" "GET" Bucket
        needs ["ownershipControls"] header None, queries [] headers [];
    /// Who owns what is put.
    PutBucketOwnershipControls "s3:PutBucketOwnershipControls" "PUT" Bucket
        needs ["ownershipControls"] header None, queries [] headers [CHECKSUMS, CHUNKED];
    /// Who owns what is put.
    DeleteBucketOwnershipControls "s3:PutBucketOwnershipControls" "DELETE" Bucket
        needs ["ownershipControls"] header None, queries [] headers [];
    /// What keeps the public out.
    GetPublicAccessBlock "s3:GetBucketPublicAccessBlock" "GET" Bucket
        needs ["publicAccessBlock"] header None, queries [] headers [];
    /// What keeps the public out.
    PutPublicAccessBlock "s3:PutBucketPublicAccessBlock" "PUT" Bucket
        needs ["publicAccessBlock"] header None, queries [] headers [CHECKSUMS, CHUNKED];
    /// What keeps the public out.
    DeletePublicAccessBlock "s3:PutBucketPublicAccessBlock" "DELETE" Bucket
        needs ["publicAccessBlock"] header None, queries [] headers [];
    /// Whether versions are kept.
    GetBucketVersioning "s3:GetBucketVersioning" "GET" Bucket
        needs ["versioning"] header None, queries [] headers [];
    /// Whether versions are kept.
    PutBucketVersioning "s3:PutBucketVersioning" "PUT" Bucket
        needs ["versioning"] header None, queries [] headers [CHECKSUMS, CHUNKED];
    /// Nobody but its owner.
    GetBucketAcl "s3:GetBucketAcl" "GET" Bucket
        needs ["acl"] header None, queries [] headers [];
    /// Off.
    PutBucketAcl "s3:PutBucketAcl" "PUT" Bucket
        needs ["acl"] header None,
        queries []
        headers [CHECKSUMS, CHUNKED, &[
            "acl", "grant-full-control", "grant-read", "grant-read-acp", "grant-write", "grant-write-acp",
        ]];
    /// Not encrypted by itself.
    GetBucketEncryption "s3:GetEncryptionConfiguration" "GET" Bucket
        needs ["encryption"] header None, queries [] headers [];
    /// No website.
    GetBucketWebsite "s3:GetBucketWebsite" "GET" Bucket
        needs ["website"] header None, queries [] headers [];
    /// No logs.
    GetBucketLogging "s3:GetBucketLogging" "GET" Bucket
        needs ["logging"] header None, queries [] headers [];
    /// No notifications.
    GetBucketNotificationConfiguration "s3:GetBucketNotification" "GET" Bucket
        needs ["notification"] header None, queries [] headers [];
    /// The owner pays.
    GetBucketRequestPayment "s3:GetBucketRequestPayment" "GET" Bucket
        needs ["requestPayment"] header None, queries [] headers [];
    /// Not accelerated.
    GetBucketAccelerateConfiguration "s3:GetAccelerateConfiguration" "GET" Bucket
        needs ["accelerate"] header None, queries [] headers [];
    /// Not copied elsewhere.
    GetBucketReplication "s3:GetReplicationConfiguration" "GET" Bucket
        needs ["replication"] header None, queries [] headers [];
    /// What is kept that is put.
    GetObjectLockConfiguration "s3:GetBucketObjectLockConfiguration" "GET" Bucket
        needs ["object-lock"] header None, queries [] headers [];
    /// What is kept that is put.
    PutObjectLockConfiguration "s3:PutBucketObjectLockConfiguration" "PUT" Bucket
        needs ["object-lock"] header None, queries [] headers [CHECKSUMS, CHUNKED];
    /// What becomes of objects as they grow old.
    GetBucketLifecycleConfiguration "s3:GetLifecycleConfiguration" "GET" Bucket
        needs ["lifecycle"] header None, queries [] headers [];
    /// What becomes of objects as they grow old.
    PutBucketLifecycleConfiguration "s3:PutLifecycleConfiguration" "PUT" Bucket
        needs ["lifecycle"] header None, queries [] headers [CHECKSUMS, CHUNKED];
    /// The same.
    DeleteBucketLifecycle "s3:PutLifecycleConfiguration" "DELETE" Bucket
        needs ["lifecycle"] header None, queries [] headers [];

    /// Reads one.
    GetObject "s3:GetObject" "GET" Object
        needs [] header None,
        queries [
            "partNumber", "response-cache-control", "response-content-disposition",
            "response-content-encoding", "response-content-language", "response-content-type",
            "response-expires", "versionId",
        ]
        headers [OVERRIDES_CHECKSUM_MODE, READ_CONDITIONS];
    /// What is known of one.
    HeadObject "s3:GetObject" "HEAD" Object
        needs [] header None,
        queries [
            "partNumber", "response-cache-control", "response-content-disposition",
            "response-content-encoding", "response-content-language", "response-content-type",
            "response-expires", "versionId",
        ]
        headers [OVERRIDES_CHECKSUM_MODE, READ_CONDITIONS];
    /// Makes one.
    PutObject "s3:PutObject" "PUT" Object
        needs [] header None,
        queries []
        headers [CHECKSUMS, CHUNKED, KEPT, LOCKED, WRITE_CONDITIONS, &["write-offset-bytes"]];
    /// Makes one of another.
    CopyObject "s3:PutObject" "PUT" Object
        needs [] header COPY_SOURCE,
        queries []
        headers [
            CHECKSUMS, KEPT, LOCKED, WRITE_CONDITIONS, COPIED, &["metadata-directive", "tagging-directive"],
        ];
    /// Removes one.
    DeleteObject "s3:DeleteObject" "DELETE" Object
        needs [] header None,
        queries ["versionId"] headers [&["bypass-governance-retention", "if-match"]];
    /// Parts of what is known of one.
    GetObjectAttributes "s3:GetObjectAttributes" "GET" Object
        needs ["attributes"] header None,
        queries ["versionId"] headers [&["max-parts", "object-attributes", "part-number-marker"]];
    /// Its tags.
    GetObjectTagging "s3:GetObjectTagging" "GET" Object
        needs ["tagging"] header None, queries ["versionId"] headers [];
    /// Its tags.
    PutObjectTagging "s3:PutObjectTagging" "PUT" Object
        needs ["tagging"] header None, queries ["versionId"] headers [CHECKSUMS, CHUNKED];
    /// Its tags.
    DeleteObjectTagging "s3:DeleteObjectTagging" "DELETE" Object
        needs ["tagging"] header None, queries ["versionId"] headers [];
    /// Until when it is kept.
    GetObjectRetention "s3:GetObjectRetention" "GET" Object
        needs ["retention"] header None, queries ["versionId"] headers [];
    /// Until when it is kept.
    PutObjectRetention "s3:PutObjectRetention" "PUT" Object
        needs ["retention"] header None,
        queries ["versionId"] headers [CHECKSUMS, CHUNKED, &["bypass-governance-retention"]];
    /// Whether somebody holds it.
    GetObjectLegalHold "s3:GetObjectLegalHold" "GET" Object
        needs ["legal-hold"] header None, queries ["versionId"] headers [];
    /// Whether somebody holds it.
    PutObjectLegalHold "s3:PutObjectLegalHold" "PUT" Object
        needs ["legal-hold"] header None, queries ["versionId"] headers [CHECKSUMS, CHUNKED];
    /// Nobody but its owner.
    GetObjectAcl "s3:GetObjectAcl" "GET" Object
        needs ["acl"] header None, queries ["versionId"] headers [];
    /// Off.
    PutObjectAcl "s3:PutObjectAcl" "PUT" Object
        needs ["acl"] header None,
        queries ["versionId"]
        headers [CHECKSUMS, CHUNKED, &[
            "acl", "grant-full-control", "grant-read", "grant-read-acp", "grant-write", "grant-write-acp",
        ]];
    /// Begins an upload of parts.
    CreateMultipartUpload "s3:PutObject" "POST" Object
        needs ["uploads"] header None, queries [] headers [CHECKSUMS, KEPT, LOCKED];
    /// Uploads a part.
    UploadPart "s3:PutObject" "PUT" Object
        needs ["partNumber", "uploadId"] header None, queries [] headers [CHECKSUMS, CHUNKED];
    /// Makes a part of another object.
    UploadPartCopy "s3:PutObject" "PUT" Object
        needs ["partNumber", "uploadId"] header COPY_SOURCE,
        queries [] headers [COPIED, &["copy-source-range"]];
    /// Puts the parts together.
    CompleteMultipartUpload "s3:PutObject" "POST" Object
        needs ["uploadId"] header None,
        queries [] headers [CHECKSUMS, WRITE_CONDITIONS, &["mp-object-size"]];
    /// Gives an upload up.
    AbortMultipartUpload "s3:AbortMultipartUpload" "DELETE" Object
        needs ["uploadId"] header None, queries [] headers [];
    /// The parts so far.
    ListParts "s3:ListMultipartUploadParts" "GET" Object
        needs ["uploadId"] header None, queries ["max-parts", "part-number-marker"] headers [];
}

/// Whether a query key, as it was sent, is one of a list.
fn among(list: &[&str], key: &str) -> bool {
    list.contains(&key)
}

/// Whether a header may come with an operation, given all in lower case.
fn takes_header(rule: &Rule, name: &str) -> bool {
    let plain = match name.strip_prefix("x-amz-") {
        Some(plain) => plain,
        None if name.starts_with("if-") => name,
        None => return true,
    };
    // A condition has no such beginning, and nothing else has the name of one.
    let is_condition = name.starts_with("if-");
    let meant = |listed: &&str| match listed.strip_suffix('-') {
        Some(_) => plain.starts_with(*listed) && !is_condition,
        None => *listed == plain && listed.starts_with("if-") == is_condition,
    };
    ANY_HEADER.contains(&plain) && !is_condition
        || rule.headers.iter().any(|list| list.iter().any(&meant))
}

/// Which operation a request is. `queries` are the decoded keys of the query, `headers` the names of its
/// headers in lower case.
pub fn resolve<'a>(
    method: &str,
    level: Level,
    queries: impl Iterator<Item = &'a str> + Clone,
    headers: impl Iterator<Item = &'a str> + Clone,
) -> Result<Operation, Refusal> {
    let has = |key: &str| queries.clone().any(|q| q == key);
    let fits = |rule: &&Rule| {
        let header = |name| headers.clone().any(|h| h == name);
        rule.method == method
            && rule.level == level
            && rule.needs.iter().all(|key| has(key))
            && rule.header.is_none_or(header)
    };
    let weight = |rule: &&Rule| (rule.needs.len(), rule.header.is_some());
    let Some(rule) = RULES.iter().filter(fits).max_by_key(weight) else {
        return none_such(method, level, queries);
    };
    let known = |key: &str| {
        among(ANY_QUERY, key)
            || among(rule.needs, key)
            || among(rule.queries, key)
            // Presigned URLs carry headers in the query.
            || key.to_ascii_lowercase().starts_with("x-amz-")
                && takes_header(rule, &key.to_ascii_lowercase())
    };
    if let Some(key) = queries.clone().find(|key| !known(key)) {
        return refuse!(
            NotImplemented,
            "{} with the query parameter {key:?} is not implemented",
            rule.operation.as_str()
        );
    }
    if let Some(name) = headers.clone().find(|name| !takes_header(rule, name)) {
        return refuse!(
            NotImplemented,
            "{} with the header {name} is not implemented",
            rule.operation.as_str()
        );
    }
    Ok(rule.operation)
}

/// A request that is no operation: of a method that there is not, or one that is not there yet.
fn none_such<'a>(
    method: &str,
    level: Level,
    queries: impl Iterator<Item = &'a str> + Clone,
) -> Result<Operation, Refusal> {
    let subresource = queries.clone().find(|key| !among(ANY_QUERY, key));
    let known = matches!(method, "GET" | "HEAD" | "PUT" | "POST" | "DELETE");
    match subresource {
        None if !known || level == Level::Service => Err(Refusal::new(
            Code::MethodNotAllowed,
            "The specified method is not allowed against this resource.",
        )),
        None => refuse!(NotImplemented, "{method} of this is not implemented"),
        Some(key) => refuse!(
            NotImplemented,
            "{method} with the query parameter {key:?} is not implemented"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn ask(
        method: &str,
        level: Level,
        queries: &[&str],
        headers: &[&str],
    ) -> Result<Operation, Code> {
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
            ("PUT", Object, &["renameObject"], &[]),
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
            ("PUT", Object, &[], &["x-amz-server-side-encryption"]),
            (
                "PUT",
                Object,
                &[],
                &["x-amz-server-side-encryption-customer-key"],
            ),
            (
                "PUT",
                Object,
                &["partNumber", "uploadId"],
                &["x-amz-object-lock-mode"],
            ),
            ("PUT", Object, &[], &["x-amz-bypass-governance-retention"]),
            ("PUT", Object, &[], &["x-amz-website-redirect-location"]),
            ("PUT", Object, &[], &["x-amz-grant-read"]),
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

    #[test]
    fn every_rule_is_found_by_what_it_needs() {
        for rule in RULES {
            let queries = rule.needs.iter().copied();
            let found = resolve(rule.method, rule.level, queries, rule.header.into_iter());
            assert_eq!(found, Ok(rule.operation));
        }
        let names: BTreeSet<&str> = Operation::ALL.iter().map(|o| o.as_str()).collect();
        assert_eq!(names.len(), Operation::ALL.len());
        assert!(Operation::ALL.iter().all(|o| o.action().starts_with("s3:")));
    }
}
