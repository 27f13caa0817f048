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
const KEPT: &[&str] = &["meta-", "storage-class", "tagging"];
/// Who may do what with what is made.
const ACL: &[&str] = &[
    "acl",
    "grant-full-control",
    "grant-read",
    "grant-read-acp",
    "grant-write",
    "grant-write-acp",
];
/// What keeps a version.
const LOCKED: &[&str] = &[
    "object-lock-legal-hold",
    "object-lock-mode",
    "object-lock-retain-until-date",
];
/// How what is made is to be encrypted.
const ENCRYPTED: &[&str] = &[
    "server-side-encryption",
    "server-side-encryption-aws-kms-key-id",
];
/// The customer's own key.
const CUSTOMER_KEY: &[&str] = &[
    "server-side-encryption-customer-algorithm",
    "server-side-encryption-customer-key",
    "server-side-encryption-customer-key-md5",
];
/// The same, of what is copied.
const SOURCE_KEY: &[&str] = &[
    "copy-source-server-side-encryption-customer-algorithm",
    "copy-source-server-side-encryption-customer-key",
    "copy-source-server-side-encryption-customer-key-md5",
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
const RENAMED: &[&str] = &[
    "client-token",
    "rename-source",
    "rename-source-if-match",
    "rename-source-if-modified-since",
    "rename-source-if-none-match",
    "rename-source-if-unmodified-since",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-unmodified-since",
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
        queries [] headers [ACL, &["bucket-object-lock-enabled", "object-ownership"], CHECKSUMS];
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
    /// Who may do what with it.
    GetBucketAcl "s3:GetBucketAcl" "GET" Bucket
        needs ["acl"] header None, queries [] headers [];
    /// Who may do what with it.
    PutBucketAcl "s3:PutBucketAcl" "PUT" Bucket
        needs ["acl"] header None,
        queries []
        headers [CHECKSUMS, CHUNKED, ACL];
    /// How what is put is encrypted.
    GetBucketEncryption "s3:GetEncryptionConfiguration" "GET" Bucket
        needs ["encryption"] header None, queries [] headers [];
    /// How what is put is encrypted.
    PutBucketEncryption "s3:PutEncryptionConfiguration" "PUT" Bucket
        needs ["encryption"] header None, queries [] headers [CHECKSUMS, CHUNKED];
    /// How what is put is encrypted.
    DeleteBucketEncryption "s3:PutEncryptionConfiguration" "DELETE" Bucket
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
        headers [OVERRIDES_CHECKSUM_MODE, READ_CONDITIONS, CUSTOMER_KEY, ENCRYPTED];
    /// What is known of one.
    HeadObject "s3:GetObject" "HEAD" Object
        needs [] header None,
        queries [
            "partNumber", "response-cache-control", "response-content-disposition",
            "response-content-encoding", "response-content-language", "response-content-type",
            "response-expires", "versionId",
        ]
        headers [OVERRIDES_CHECKSUM_MODE, READ_CONDITIONS, CUSTOMER_KEY, ENCRYPTED];
    /// Makes one.
    PutObject "s3:PutObject" "PUT" Object
        needs [] header None,
        queries []
        headers [
            ACL, CHECKSUMS, CHUNKED, KEPT, LOCKED, WRITE_CONDITIONS, &["write-offset-bytes"],
            ENCRYPTED, CUSTOMER_KEY,
        ];
    /// Makes one of another.
    CopyObject "s3:PutObject" "PUT" Object
        needs [] header COPY_SOURCE,
        queries []
        headers [
            ACL, CHECKSUMS, KEPT, LOCKED, WRITE_CONDITIONS, COPIED,
            &["metadata-directive", "tagging-directive"], ENCRYPTED, CUSTOMER_KEY, SOURCE_KEY,
        ];
    /// Gives one another key.
    RenameObject "s3:PutObject" "PUT" Object
        needs ["renameObject"] header None, queries [] headers [RENAMED];
    /// Removes one.
    DeleteObject "s3:DeleteObject" "DELETE" Object
        needs [] header None,
        queries ["versionId"] headers [&["bypass-governance-retention", "if-match"]];
    /// Parts of what is known of one.
    GetObjectAttributes "s3:GetObjectAttributes" "GET" Object
        needs ["attributes"] header None,
        queries ["versionId"]
        headers [&["max-parts", "object-attributes", "part-number-marker"], CUSTOMER_KEY];
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
    /// Who may do what with it.
    GetObjectAcl "s3:GetObjectAcl" "GET" Object
        needs ["acl"] header None, queries ["versionId"] headers [];
    /// Who may do what with it.
    PutObjectAcl "s3:PutObjectAcl" "PUT" Object
        needs ["acl"] header None,
        queries ["versionId"]
        headers [CHECKSUMS, CHUNKED, ACL];
    /// Begins an upload of parts.
    CreateMultipartUpload "s3:PutObject" "POST" Object
        needs ["uploads"] header None,
        queries [] headers [ACL, CHECKSUMS, KEPT, LOCKED, ENCRYPTED, CUSTOMER_KEY];
    /// Uploads a part.
    UploadPart "s3:PutObject" "PUT" Object
        needs ["partNumber", "uploadId"] header None, queries [] headers [CHECKSUMS, CHUNKED, CUSTOMER_KEY];
    /// Makes a part of another object.
    UploadPartCopy "s3:PutObject" "PUT" Object
        needs ["partNumber", "uploadId"] header COPY_SOURCE,
        queries [] headers [COPIED, &["copy-source-range"], CUSTOMER_KEY, SOURCE_KEY];
    /// Puts the parts together.
    CompleteMultipartUpload "s3:PutObject" "POST" Object
        needs ["uploadId"] header None,
        queries [] headers [CHECKSUMS, WRITE_CONDITIONS, CUSTOMER_KEY, &["mp-object-size"]];
    /// Gives an upload up.
    AbortMultipartUpload "s3:AbortMultipartUpload" "DELETE" Object
        needs ["uploadId"] header None, queries [] headers [];
    /// The parts so far.
    ListParts "s3:ListMultipartUploadParts" "GET" Object
        needs ["uploadId"] header None,
        queries ["max-parts", "part-number-marker"] headers [CUSTOMER_KEY];
}

impl Operation {
    /// The query keys that make a request one of this operation.
    pub(crate) fn needs(self) -> &'static [&'static str] {
        let rule = RULES.iter().find(|rule| rule.operation == self);
        rule.map_or(&[], |rule| rule.needs)
    }
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
