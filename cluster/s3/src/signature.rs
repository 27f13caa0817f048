//! Signatures of requests: who signed, and whether it is right. Version 4 is in [`crate::signature_v4`],
//! version 2 in [`crate::signature_v2`].
//!
//! Invariants:
//! - a signature is compared in a time that does not depend on how much of it is right;
//! - a request is good for a quarter of an hour around its own time, a presigned one as long as it says:
//!   a week at most.

use crate::calendar::DAY_MS;
use crate::operation::Operation;
use crate::refusal::{Code, Refusal, refuse};
use crate::signature_v2::{V2, in_header_v2, presigned_v2, sign_v2, tells_v2};
use crate::signature_v4::{V4, credential, in_header, presigned, sign, signing_key, stamp_ms};
use crate::text::percent_decode;

/// How far a request's time may be from ours.
pub const SKEW_MS: u64 = 15 * 60 * 1000;
pub(crate) const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// What stands for a payload that is not signed.
pub const UNSIGNED: &str = "UNSIGNED-PAYLOAD";
/// A request, as it was sent.
#[derive(Clone, Debug, Default)]
pub struct Signed<'a> {
    /// The method.
    pub method: &'a str,
    /// The path, in percents as it was sent.
    pub path: &'a str,
    /// The query, as it was sent.
    pub query: &'a str,
    /// Headers: names in lower case, in the order in which they came.
    pub headers: Vec<(&'a str, &'a str)>,
    /// The bucket that the host names, if it does.
    pub host_bucket: Option<&'a str>,
}

impl<'a> Signed<'a> {
    /// A header's value; the first one, if there are several.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        let found = self.headers.iter().find(|(n, _)| *n == name);
        found.map(|(_, value)| *value)
    }
}

/// The parameters of a query, decoded, in the order in which they came. None if it is no query.
pub fn parse_query(query: &str) -> Option<Vec<(String, String)>> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = |text: &str| percent_decode(&text.replace('+', " "));
            Some((decoded(name)?, decoded(value)?))
        })
        .collect()
}

/// What a client says of its payload in `x-amz-content-sha256`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing.
    Unsigned,
    /// Its SHA-256.
    Sha256([u8; 32]),
    /// It comes in chunks, each of them signed; with a trailer or not.
    Chunks {
        /// Whether a trailer comes.
        trailer: bool,
    },
    /// It comes in chunks that are not signed, with a trailer.
    UnsignedChunks,
}

impl Payload {
    /// From the header.
    pub fn parse(value: &str) -> Result<Payload, Refusal> {
        match value {
            UNSIGNED => Ok(Payload::Unsigned),
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" => Ok(Payload::Chunks { trailer: false }),
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => Ok(Payload::Chunks { trailer: true }),
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => Ok(Payload::UnsignedChunks),
            _ if value.starts_with("STREAMING-") => {
                refuse!(NotImplemented, "The payload {value} is not implemented")
            }
            hash => match crate::text::from_hex(hash).map(<[u8; 32]>::try_from) {
                Some(Ok(digest)) => Ok(Payload::Sha256(digest)),
                _ => refuse!(
                    InvalidArgument,
                    "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, \
                     STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a \
                     valid sha256 value."
                ),
            },
        }
    }

    /// Whether the body is in chunks of S3's kind.
    pub fn is_chunked(self) -> bool {
        matches!(self, Payload::Chunks { .. } | Payload::UnsignedChunks)
    }
}

/// What a request says of its signature. It is right if [`Claim::check`] says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nothing: it is anonymous.
    None,
    /// Version 4, in a header.
    V4(V4),
    /// Version 4, in the query.
    Presigned(V4),
    /// Version 2, in a header.
    V2(V2),
    /// Version 2, in the query.
    PresignedV2(V2),
}

pub(crate) fn malformed<T>(message: &str) -> Result<T, Refusal> {
    Err(Refusal::new(
        Code::AuthorizationHeaderMalformed,
        format!("The authorization header is malformed; {message}"),
    ))
}

pub(crate) fn query_error<T>(message: &str) -> Result<T, Refusal> {
    Err(Refusal::new(
        Code::AuthorizationQueryParametersError,
        message.to_owned(),
    ))
}

pub(crate) fn one<'q>(query: &'q [(String, String)], name: &str) -> Option<&'q str> {
    let found = query.iter().find(|(n, _)| n == name);
    found.map(|(_, value)| value.as_str())
}

/// Whether a query claims to be presigned in version 4, which signs all of it.
pub fn is_presigned_v4(query: &[(String, String)]) -> bool {
    ["X-Amz-Algorithm", "X-Amz-Signature", "X-Amz-Credential"]
        .iter()
        .any(|name| one(query, name).is_some())
}

impl Claim {
    /// What a request claims; an error if it claims nothing that could be right now. `query` is the
    /// request's query, decoded.
    pub fn of(
        request: &Signed<'_>,
        query: &[(String, String)],
        region: &str,
        now_ms: u64,
    ) -> Result<Claim, Refusal> {
        let in_query = is_presigned_v4(query);
        let v2_in_query =
            one(query, "AWSAccessKeyId").is_some() && one(query, "Signature").is_some();
        let authorization = request.header("authorization");
        if authorization.is_some() && (in_query || v2_in_query) {
            return refuse!(
                InvalidArgument,
                "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature \
                 query string parameter or the Authorization header should be specified"
            );
        }
        if in_query {
            return presigned(request, query, region, now_ms).map(Claim::Presigned);
        }
        if v2_in_query {
            return presigned_v2(query, now_ms).map(Claim::PresignedV2);
        }
        match authorization {
            None => Ok(Claim::None),
            Some(text) if text.starts_with(ALGORITHM) => {
                in_header(text, request, region, now_ms).map(Claim::V4)
            }
            Some(text) if text.starts_with("AWS ") => {
                in_header_v2(text, request, now_ms).map(Claim::V2)
            }
            Some(text) if text.starts_with("AWS4-ECDSA-") => {
                refuse!(NotImplemented, "AWS4-ECDSA-P256-SHA256 is not implemented")
            }
            Some(_) => refuse!(InvalidArgument, "Unsupported Authorization Type"),
        }
    }

    /// The key that it names.
    pub fn key_id(&self) -> Option<&str> {
        match self {
            Claim::None => None,
            Claim::V4(v4) | Claim::Presigned(v4) => Some(&v4.key_id),
            Claim::V2(v2) | Claim::PresignedV2(v2) => Some(&v2.key_id),
        }
    }

    /// Whether it is right, if the key has this secret.
    pub fn check(
        &self,
        request: &Signed<'_>,
        query: &[(String, String)],
        secret: &str,
    ) -> Result<(), Refusal> {
        let right = match self {
            Claim::None => true,
            Claim::V4(v4) => v4.is_right(request, query, secret, false),
            Claim::Presigned(v4) => v4.is_right(request, query, secret, true),
            Claim::V2(v2) | Claim::PresignedV2(v2) => v2.is_right(request, query, secret),
        };
        if right {
            return Ok(());
        }
        refuse!(
            SignatureDoesNotMatch,
            "The request signature we calculated does not match the signature you provided. Check your \
             key and signing method."
        )
    }

    /// Refuses an operation of whose name the signature says nothing: who may put an object would make of that whatever
    /// has another name in the query.
    pub fn check_names(&self, operation: Operation) -> Result<(), Refusal> {
        let (Claim::V2(_) | Claim::PresignedV2(_)) = self else {
            return Ok(());
        };
        match operation.needs().iter().find(|name| !tells_v2(name)) {
            None => Ok(()),
            Some(name) => refuse!(
                AccessDenied,
                "{} needs a signature of version 4 (AWS4-HMAC-SHA256): version 2 does not cover the query \
                 parameter {name:?}",
                operation.as_str()
            ),
        }
    }

    /// How it was signed, as policies call it.
    pub fn version(&self) -> Option<&'static str> {
        match self {
            Claim::None => None,
            Claim::V4(_) | Claim::Presigned(_) => Some(ALGORITHM),
            Claim::V2(_) | Claim::PresignedV2(_) => Some("AWS"),
        }
    }

    /// How old it is, if it says when it was made.
    pub fn age_ms(&self, now_ms: u64) -> Option<u64> {
        match self {
            Claim::V4(v4) | Claim::Presigned(v4) => {
                stamp_ms(&v4.scope.stamp).map(|at| now_ms.saturating_sub(at))
            }
            _ => None,
        }
    }

    /// Where the signature stands, as policies call it.
    pub fn kind(&self) -> Option<&'static str> {
        match self {
            Claim::None => None,
            Claim::V4(_) | Claim::V2(_) => Some("REST-HEADER"),
            Claim::Presigned(_) | Claim::PresignedV2(_) => Some("REST-QUERY-STRING"),
        }
    }
}

pub(crate) fn check_skew(time: u64, now_ms: u64) -> Result<(), Refusal> {
    if time.abs_diff(now_ms) <= SKEW_MS {
        return Ok(());
    }
    refuse!(
        RequestTimeTooSkewed,
        "The difference between the request time and the server's time is too large."
    )
}

/// What a form's fields claim: its policy, signed in version 4 or 2. The policy's text is what is signed.
pub fn check_form(
    field: impl Fn(&str) -> Option<String>,
    region: &str,
    now_ms: u64,
    policy: &str,
    secret: &str,
) -> Result<(), Refusal> {
    let right = if let Some(signature) = field("x-amz-signature") {
        let stamp = field("x-amz-date").unwrap_or_default();
        let (Some(of), Some(time)) = (field("x-amz-credential"), stamp_ms(&stamp)) else {
            return refuse!(AccessDenied, "A form needs x-amz-credential and x-amz-date");
        };
        if field("x-amz-algorithm").as_deref() != Some(ALGORITHM) {
            return refuse!(
                InvalidArgument,
                "x-amz-algorithm only supports \"{ALGORITHM}\""
            );
        }
        // How long the form is good for, its policy says.
        if time > now_ms + SKEW_MS || now_ms > time + 7 * DAY_MS {
            return refuse!(AccessDenied, "The form's x-amz-date is too far from now");
        }
        let (_, scope) = match credential(&of, &stamp, region) {
            Ok(found) => found,
            Err(message) => return malformed(&message),
        };
        same(&sign(&signing_key(secret, &scope), policy), &signature)
    } else {
        same(
            &sign_v2(secret, policy),
            &field("signature").unwrap_or_default(),
        )
    };
    if right {
        return Ok(());
    }
    refuse!(
        SignatureDoesNotMatch,
        "The request signature we calculated does not match the signature you provided. Check your key \
         and signing method."
    )
}

/// Whether two texts are the same, in a time that depends on their lengths alone.
pub fn same(a: &str, b: &str) -> bool {
    let differ = a.bytes().zip(b.bytes()).fold(0, |d, (a, b)| d | (a ^ b));
    a.len() == b.len() && differ == 0
}

/// A header's values, as they are signed: joined, trimmed, with single spaces. None if it did not come.
pub(crate) fn canonical_header(request: &Signed<'_>, name: &str) -> Option<String> {
    let mut all = String::new();
    let mut found = false;
    for (_, value) in request.headers.iter().filter(|(n, _)| *n == name) {
        if found {
            all.push(',');
        }
        found = true;
        let words: Vec<&str> = value.split(' ').filter(|word| !word.is_empty()).collect();
        all.push_str(&words.join(" "));
    }
    found.then_some(all)
}
