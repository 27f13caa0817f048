//! Why a request is refused, in S3's words: clients branch on the code.

use std::borrow::Cow;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident $status:literal,)*) => {
        /// An S3 error code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// As it stands in the reply.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Code::$name => stringify!($name),)*
                }
            }

            /// The HTTP status that goes with it.
            pub fn status(self) -> u16 {
                match self {
                    $(Code::$name => $status,)*
                }
            }
        }
    };
}

codes! {
    /// The bucket has no ACLs, as S3 has it since 2023.
    AccessControlListNotSupported 400,
    /// Another site's page may not call.
    AccessForbidden 403,
    /// Nothing allows it, or something denies it.
    AccessDenied 403,
    /// The signature's scope is not ours.
    AuthorizationHeaderMalformed 400,
    /// A presigned URL lacks something.
    AuthorizationQueryParametersError 400,
    /// A digest that was sent is not that of what was sent.
    BadDigest 400,
    /// Somebody else has a bucket of this name.
    BucketAlreadyExists 409,
    /// The caller has a bucket of this name.
    BucketAlreadyOwnedByYou 409,
    /// It still holds objects.
    BucketNotEmpty 409,
    /// The race was lost to another writer.
    ConditionalRequestConflict 409,
    /// More than is allowed.
    EntityTooLarge 400,
    /// A part, but for the last one, that is too small.
    EntityTooSmall 400,
    /// Neither Enabled nor Suspended.
    IllegalVersioningConfigurationException 400,
    /// A region that is not ours.
    IllegalLocationConstraintException 400,
    /// What a token was used for already, and this is something else.
    IdempotencyParameterMismatch 400,
    /// The body ended early.
    IncompleteBody 400,
    /// No room. S3 has no such error: it never ends.
    InsufficientStorage 507,
    /// A broken invariant.
    InternalError 500,
    /// No such access key.
    InvalidAccessKeyId 403,
    /// A value that makes no sense.
    InvalidArgument 400,
    /// A bucket that has no ACLs is to have one, or one that has one is to have none.
    InvalidBucketAclWithObjectOwnership 400,
    /// Not a bucket's name.
    InvalidBucketName 400,
    /// The bucket is not in the state for this.
    InvalidBucketState 409,
    /// A digest that is none.
    InvalidDigest 400,
    /// A part that was not uploaded, or is another one.
    InvalidPart 400,
    /// An object has no such part.
    InvalidPartNumber 416,
    /// Parts out of order.
    InvalidPartOrder 400,
    /// A form's policy that is none, or does not allow this.
    InvalidPolicyDocument 400,
    /// Outside of the object.
    InvalidRange 416,
    /// No time that anything is kept for.
    InvalidRetentionPeriod 400,
    /// It contradicts itself, or lacks something.
    InvalidRequest 400,
    /// No such storage class here.
    InvalidStorageClass 400,
    /// A tag that is not allowed.
    InvalidTag 400,
    /// There are no security tokens here.
    InvalidToken 400,
    /// A path that is none.
    InvalidURI 400,
    /// What is to be added does not begin where the object ends.
    InvalidWriteOffset 400,
    /// More than 1024 bytes.
    KeyTooLongError 400,
    /// An ACL that makes no sense.
    MalformedACLError 400,
    /// A policy that makes no sense.
    MalformedPolicy 400,
    /// A form that makes no sense.
    MalformedPOSTRequest 400,
    /// XML that makes no sense.
    MalformedXML 400,
    /// A body that is longer than its operation takes.
    MaxMessageLengthExceeded 400,
    /// Too much of a form comes before its file.
    MaxPostPreDataLengthExceededError 400,
    /// More than 2 KiB of metadata.
    MetadataTooLarge 400,
    /// Not on this.
    MethodNotAllowed 405,
    /// A body without a length.
    MissingContentLength 411,
    /// A header that this operation takes is not there.
    MissingSecurityHeader 400,
    /// No such bucket.
    NoSuchBucket 404,
    /// It has no policy.
    NoSuchBucketPolicy 404,
    /// It has no CORS rules.
    NoSuchCORSConfiguration 404,
    /// No such object.
    NoSuchKey 404,
    /// It has no lifecycle rules.
    NoSuchLifecycleConfiguration 404,
    /// It is not locked, and nobody ever said that it is not.
    NoSuchObjectLockConfiguration 404,
    /// It blocks nothing.
    NoSuchPublicAccessBlockConfiguration 404,
    /// It has no tags.
    NoSuchTagSet 404,
    /// No such upload.
    NoSuchUpload 404,
    /// No such version.
    NoSuchVersion 404,
    /// It is no website.
    NoSuchWebsiteConfiguration 404,
    /// Not there (yet). Nothing was done.
    NotImplemented 501,
    /// It is as the caller knows it.
    NotModified 304,
    /// It has no lock.
    ObjectLockConfigurationNotFoundError 404,
    /// Something else is being done to it.
    OperationAborted 409,
    /// Nobody said who owns objects.
    OwnershipControlsNotFoundError 404,
    /// A condition does not hold.
    PreconditionFailed 412,
    /// It is not copied elsewhere.
    ReplicationConfigurationNotFoundError 404,
    /// The body did not come in time.
    RequestTimeout 400,
    /// The signature is too old, or from the future.
    RequestTimeTooSkewed 403,
    /// It is not encrypted by itself.
    ServerSideEncryptionConfigurationNotFoundError 404,
    /// The store cannot serve now.
    ServiceUnavailable 503,
    /// A wrong signature.
    SignatureDoesNotMatch 403,
    /// Saturated: come back later.
    SlowDown 503,
    /// More buckets than are allowed.
    TooManyBuckets 400,
    /// An object was made longer too often.
    TooManyParts 400,
    /// A body where none is wanted.
    UnexpectedContent 400,
    /// An address that is nobody's.
    UnresolvableGrantByEmailAddress 400,
    /// A digest of the payload that is not that of the payload.
    XAmzContentSHA256Mismatch 400,
}

/// A refusal: its code, and what it is about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct Refusal {
    /// What clients branch on.
    pub code: Code,
    /// For a person.
    pub message: Cow<'static, str>,
    /// Headers that go with it.
    pub headers: Vec<(&'static str, String)>,
    /// What else is said of it in the document, by name.
    pub details: Vec<(&'static str, String)>,
}

impl Refusal {
    /// Of this code, because of this.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal {
            code,
            message: message.into(),
            headers: Vec::new(),
            details: Vec::new(),
        }
    }

    /// The same, with one more thing said of it.
    #[must_use]
    pub fn saying(mut self, name: &'static str, value: impl Into<String>) -> Refusal {
        self.details.push((name, value.into()));
        self
    }

    /// The same, with a header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Refusal {
        self.headers.push((name, value.into()));
        self
    }
}

/// Refuses: `refuse!(InvalidArgument, "the key {key} …")` is an `Err`.
macro_rules! refuse {
    ($code:ident, $($message:tt)+) => {
        Err(crate::refusal::Refusal::new(crate::refusal::Code::$code, format!($($message)+)))
    };
}

pub(crate) use refuse;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn said_as_s3_says_it() {
        assert_eq!(Code::NoSuchKey.as_str(), "NoSuchKey");
        assert_eq!(Code::NoSuchKey.status(), 404);
        let refused: Result<(), Refusal> = refuse!(SlowDown, "at {} requests", 9);
        assert_eq!(refused.unwrap_err().to_string(), "SlowDown: at 9 requests");
    }
}
