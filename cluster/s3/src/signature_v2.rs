//! Signatures of version 2: what boto3 makes for presigned URLs unless it is told otherwise.
//!
//! They sign less than version 4 does: neither the host nor the payload, and not the whole query.

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

use crate::calendar::parse_http_date;
use crate::refusal::{Refusal, refuse};
use crate::signature::{Signed, canonical_header, check_skew, one, same};
use crate::text::to_base64;

/// A signature of version 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V2 {
    /// The key's id.
    pub key_id: String,
    /// The signature, in base64.
    pub signature: String,
    /// Of a presigned one: until when it is good, in seconds since 1970, as it was sent.
    pub expires: Option<String>,
}

pub(crate) fn presigned_v2(query: &[(String, String)], now_ms: u64) -> Result<V2, Refusal> {
    let (Some(key_id), Some(signature), Some(expires)) = (
        one(query, "AWSAccessKeyId"),
        one(query, "Signature"),
        one(query, "Expires"),
    ) else {
        return refuse!(
            AccessDenied,
            "Query-string authentication requires the Signature, Expires and AWSAccessKeyId parameters"
        );
    };
    match expires.parse::<u64>() {
        Ok(at) if at.saturating_mul(1000) >= now_ms => Ok(V2 {
            key_id: key_id.to_owned(),
            signature: signature.to_owned(),
            expires: Some(expires.to_owned()),
        }),
        Ok(_) => refuse!(AccessDenied, "Request has expired"),
        Err(_) => refuse!(
            AccessDenied,
            "Invalid date (should be seconds since epoch): {expires}"
        ),
    }
}

pub(crate) fn in_header_v2(text: &str, request: &Signed<'_>, now_ms: u64) -> Result<V2, Refusal> {
    let Some((key_id, signature)) = text
        .strip_prefix("AWS ")
        .and_then(|rest| rest.split_once(':'))
    else {
        return refuse!(InvalidArgument, "AWS authorization header is invalid");
    };
    let date = request.header("x-amz-date").or(request.header("date"));
    let Some(time) = date.and_then(parse_http_date) else {
        return refuse!(
            AccessDenied,
            "AWS authentication requires a valid Date or x-amz-date header"
        );
    };
    check_skew(time, now_ms)?;
    Ok(V2 {
        key_id: key_id.to_owned(),
        signature: signature.to_owned(),
        expires: None,
    })
}

/// What is signed of a query in version 2.
const V2_QUERIES: &[&str] = &[
    "accelerate",
    "acl",
    "analytics",
    "cors",
    "delete",
    "encryption",
    "inventory",
    "lifecycle",
    "location",
    "logging",
    "metrics",
    "notification",
    "object-lock",
    "ownershipControls",
    "partNumber",
    "policy",
    "policyStatus",
    "publicAccessBlock",
    "replication",
    "requestPayment",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
    "restore",
    "tagging",
    "torrent",
    "uploadId",
    "uploads",
    "versionId",
    "versioning",
    "versions",
    "website",
];

/// What makes a request another one that whoever may do the first may do too.
const HARMLESS: &str = "list-type";

/// Whether a signature of version 2 is good for a request that is what it is by a query parameter of this name.
pub(crate) fn tells_v2(name: &str) -> bool {
    name == HARMLESS || is_signed_v2(name)
}

/// Whether version 2 signs a query parameter of this name.
fn is_signed_v2(name: &str) -> bool {
    V2_QUERIES.contains(&name)
}

impl V2 {
    pub(crate) fn is_right(
        &self,
        request: &Signed<'_>,
        query: &[(String, String)],
        secret: &str,
    ) -> bool {
        let header = |name| request.header(name).unwrap_or_default();
        let date = match &self.expires {
            Some(expires) => expires,
            None if request.header("x-amz-date").is_some() => "",
            None => header("date"),
        };
        let mut text = [
            request.method,
            header("content-md5"),
            header("content-type"),
            date,
        ]
        .join("\n");
        text.push('\n');
        let mut names: Vec<&str> = request.headers.iter().map(|(name, _)| *name).collect();
        names.retain(|name| name.starts_with("x-amz-"));
        names.sort_unstable();
        names.dedup();
        for name in names {
            let value = canonical_header(request, name).unwrap_or_default();
            text.push_str(&format!("{name}:{value}\n"));
        }
        if let Some(bucket) = request.host_bucket {
            text.push('/');
            text.push_str(bucket);
        }
        text.push_str(request.path);
        let rest = v2_query(query);
        // Of a bucket without a key clients sign `/bucket/`, whichever way they ask for it.
        let names_bucket = |path: &str| !path.is_empty() && !path.contains('/');
        let is_bucket = request.host_bucket.is_none()
            && request.path.strip_prefix('/').is_some_and(names_bucket);
        let fits = |path: &str| {
            same(
                &sign_v2(secret, &format!("{text}{path}{rest}")),
                &self.signature,
            )
        };
        fits("") || is_bucket && fits("/")
    }
}

/// What is signed of a query, as it is signed.
fn v2_query(query: &[(String, String)]) -> String {
    let mut text = String::new();
    let mut signed: Vec<&(String, String)> = query
        .iter()
        .filter(|(name, _)| is_signed_v2(name))
        .collect();
    signed.sort_unstable();
    for (i, (name, value)) in signed.into_iter().enumerate() {
        text.push(if i == 0 { '?' } else { '&' });
        text.push_str(name);
        if !value.is_empty() {
            text.push('=');
            text.push_str(value);
        }
    }
    text
}

/// The signature of a text in version 2, in base64.
pub fn sign_v2(secret: &str, text: &str) -> String {
    let Ok(mut mac) = <Hmac<Sha1> as KeyInit>::new_from_slice(secret.as_bytes()) else {
        return String::new();
    };
    mac.update(text.as_bytes());
    to_base64(&mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::Operation;
    use crate::refusal::Code;
    use crate::signature::Claim;

    /// A signed URL is made another operation by what is added to its query: then either the signature is another one,
    /// or it is refused.
    #[test]
    fn no_operation_is_made_of_another_one() {
        let claim = Claim::PresignedV2(V2 {
            key_id: "a".to_owned(),
            signature: "b".to_owned(),
            expires: Some("1".to_owned()),
        });
        for operation in Operation::ALL {
            let query: Vec<(String, String)> = operation
                .needs()
                .iter()
                .map(|name| ((*name).to_owned(), String::new()))
                .collect();
            let said = v2_query(&query).matches(['?', '&']).count();
            match claim.check_names(*operation) {
                Ok(()) => assert!(
                    said == query.len() || *operation == Operation::ListObjectsV2,
                    "{operation:?}"
                ),
                Err(refusal) => {
                    assert_eq!(refusal.code, Code::AccessDenied);
                    assert!(said < query.len(), "{operation:?}");
                }
            }
        }
        for operation in [
            Operation::PutObjectRetention,
            Operation::GetObjectLegalHold,
            Operation::PutObjectLegalHold,
            Operation::GetObjectAttributes,
        ] {
            assert!(claim.check_names(operation).is_err(), "{operation:?}");
            assert_eq!(Claim::None.check_names(operation), Ok(()));
        }
    }
}
