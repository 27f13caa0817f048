//! What the store says, in S3's words.

use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_node_client::{ClientError, Code as Store};

const BUSY: &str = "A conflicting conditional operation is currently in progress against this resource. \
     Please try again.";

/// The refusal that an error of the store's means to a client of S3.
pub(crate) fn refusal(error: &ClientError) -> Refusal {
    let (code, message) = match error.code() {
        Store::NotFound => (Code::NoSuchKey, "The specified key does not exist."),
        Store::NoSuchBucket => (Code::NoSuchBucket, "The specified bucket does not exist"),
        Store::BucketExists => (
            Code::BucketAlreadyExists,
            "The requested bucket name is not available.",
        ),
        Store::BucketNotEmpty => (
            Code::BucketNotEmpty,
            "The bucket you tried to delete is not empty",
        ),
        Store::PreconditionFailed => (
            Code::PreconditionFailed,
            "At least one of the pre-conditions you specified did not hold",
        ),
        Store::NotKept => (Code::OperationAborted, BUSY),
        Store::Locked => (
            Code::AccessDenied,
            "Access Denied because object protected by object lock.",
        ),
        Store::RangeNotSatisfiable => {
            (Code::InvalidRange, "The requested range is not satisfiable")
        }
        Store::TooLarge => (
            Code::EntityTooLarge,
            "Your proposed upload exceeds the maximum allowed size",
        ),
        Store::Busy => (Code::SlowDown, "Please reduce your request rate."),
        Store::DeviceFull => (
            Code::InsufficientStorage,
            "The store is full: nothing was written.",
        ),
        Store::PartitionUnavailable | Store::DevicesAway | Store::Unreadable => (
            Code::ServiceUnavailable,
            "The store cannot serve this now. Please try again.",
        ),
        Store::NotYet => (
            Code::ServiceUnavailable,
            "The store is being upgraded, and cannot do this before that is done. Please try again later.",
        ),
        Store::BadRequest => {
            return Refusal::new(Code::InvalidArgument, error.to_string());
        }
        // Whatever else it is, the caller can do nothing but try again; the log has it all.
        _ => {
            return Refusal::new(
                Code::InternalError,
                format!("We encountered an internal error. Please try again. ({error})"),
            );
        }
    };
    Refusal::new(code, message)
}

/// Whether an error says that there is no such object: known to be absent, not merely unreadable.
pub(crate) fn is_absent(error: &ClientError) -> bool {
    error.code() == Store::NotFound
}

/// An internal error, of something that should not be.
pub(crate) fn internal(detail: impl std::fmt::Display) -> Refusal {
    Refusal::new(
        Code::InternalError,
        format!("We encountered an internal error. ({detail})"),
    )
}

/// A refusal with a message that does not change.
pub(crate) fn refused<T>(code: Code, message: &'static str) -> Result<T, Refusal> {
    Err(Refusal::new(code, message))
}

/// Others got in the way each time.
pub(crate) fn busy<T>() -> Result<T, Refusal> {
    refused(Code::OperationAborted, BUSY)
}
