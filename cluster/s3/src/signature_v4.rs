//! Signatures of version 4: of requests, and of the chunks of their bodies.
//!
//! Invariant: what changes a request's meaning is signed: the host, each `x-amz-` header, the query.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::calendar::{iso_date, parse_http_date, parse_iso_date};
use crate::refusal::{Refusal, refuse};
use crate::signature::{
    ALGORITHM, SKEW_MS, Signed, UNSIGNED, canonical_header, check_skew, malformed, one,
    parse_query, query_error, same,
};
use crate::text::{percent_decode, to_hex};

/// How long a presigned request may be good for, in seconds.
const EXPIRES_MAX: u64 = 7 * 24 * 60 * 60;
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// Headers that need not be signed although they begin with `x-amz-`: they change nothing, or they say
/// of the payload what is checked anyway.
const NEED_NOT_BE_SIGNED: &[&str] = &["x-amz-content-sha256", "x-amz-user-agent"];

/// When and for what a signature is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The time as it was sent: `20240506T070809Z`.
    pub stamp: String,
    /// The region.
    pub region: String,
}

impl Scope {
    fn date(&self) -> &str {
        self.stamp.get(..8).unwrap_or_default()
    }

    fn text(&self) -> String {
        format!("{}/{}/s3/aws4_request", self.date(), self.region)
    }
}

/// A signature of version 4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V4 {
    /// The key's id.
    pub key_id: String,
    /// What it is good for.
    pub scope: Scope,
    /// Names of what was signed.
    pub signed: Vec<String>,
    /// The signature, in hexadecimal.
    pub signature: String,
    /// What stands for the payload in it.
    pub payload: String,
}

/// A credential: a key's id and a scope. The region has to be ours.
pub(crate) fn credential(text: &str, stamp: &str, region: &str) -> Result<(String, Scope), String> {
    let fields: Vec<&str> = text.rsplitn(5, '/').collect();
    let ["aws4_request", service, of_region, date, key_id] = fields[..] else {
        return Err(
            "the Credential is mal-formed; expecting \"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request\"."
                .to_owned(),
        );
    };
    if service != "s3" {
        return Err(format!(
            "incorrect service \"{service}\". This endpoint belongs to \"s3\"."
        ));
    }
    if of_region != region {
        return Err(format!(
            "the region '{of_region}' is wrong; expecting '{region}'"
        ));
    }
    if Some(date) != stamp.get(..8) {
        return Err(format!(
            "the date of the Credential, \"{date}\", is not that of the request"
        ));
    }
    let scope = Scope {
        stamp: stamp.to_owned(),
        region: of_region.to_owned(),
    };
    Ok((key_id.to_owned(), scope))
}

/// The time that a stamp means.
/// The time of a stamp as version 4 has it, in milliseconds since 1970.
pub fn stamp_ms(stamp: &str) -> Option<u64> {
    let (date, time) = stamp.split_once('T')?;
    let time = time.strip_suffix('Z')?;
    let digits = |text: &str, len| text.len() == len && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(date, 8) || !digits(time, 6) {
        return None;
    }
    let iso = format!(
        "{}-{}-{}T{}:{}:{}Z",
        &date[..4],
        &date[4..6],
        &date[6..],
        &time[..2],
        &time[2..4],
        &time[4..]
    );
    parse_iso_date(&iso)
}

/// A time as stamps have it.
pub fn stamp(ms: u64) -> String {
    let iso = iso_date(ms);
    let plain: String = iso.chars().filter(|c| *c != '-' && *c != ':').collect();
    format!("{}Z", &plain[..15])
}

/// All that begins so is signed.
fn check_signed(signed: &[String], request: &Signed<'_>) -> Result<(), Refusal> {
    let has = |name: &str| signed.iter().any(|s| s == name);
    if !has("host") {
        return malformed("the SignedHeaders do not include host");
    }
    let open = request.headers.iter().map(|(name, _)| *name).find(|name| {
        name.starts_with("x-amz-") && !has(name) && !NEED_NOT_BE_SIGNED.contains(name)
    });
    match open {
        Some(name) => refuse!(
            AccessDenied,
            "There were headers present in the request which were not signed: {name}"
        ),
        None => Ok(()),
    }
}

pub(crate) fn in_header(
    text: &str,
    request: &Signed<'_>,
    region: &str,
    now_ms: u64,
) -> Result<V4, Refusal> {
    let rest = text.strip_prefix(ALGORITHM).unwrap_or_default();
    let mut fields = [None; 3];
    for pair in rest.split(',').map(str::trim) {
        let Some((name, value)) = pair.split_once('=') else {
            return malformed("it has a field without a value");
        };
        let at = match name.trim() {
            "Credential" => 0,
            "SignedHeaders" => 1,
            "Signature" => 2,
            _ => continue,
        };
        fields[at] = Some(value.trim());
    }
    let [Some(of), Some(signed), Some(signature)] = fields else {
        return malformed("it needs Credential, SignedHeaders and Signature");
    };
    let (stamp, time) = match (request.header("x-amz-date"), request.header("date")) {
        (Some(date), _) => (date.to_owned(), stamp_ms(date)),
        (None, Some(date)) => {
            let ms = stamp_ms(date).or_else(|| parse_http_date(date));
            (ms.map(stamp).unwrap_or_default(), ms)
        }
        (None, None) => (String::new(), None),
    };
    let Some(time) = time else {
        return refuse!(
            AccessDenied,
            "AWS authentication requires a valid Date or x-amz-date header"
        );
    };
    check_skew(time, now_ms)?;
    let (key_id, scope) = match credential(of, &stamp, region) {
        Ok(found) => found,
        Err(message) => return malformed(&message),
    };
    let signed: Vec<String> = signed.split(';').map(str::to_ascii_lowercase).collect();
    check_signed(&signed, request)?;
    let Some(payload) = request.header("x-amz-content-sha256") else {
        return refuse!(
            InvalidRequest,
            "Missing required header for this request: x-amz-content-sha256"
        );
    };
    Ok(V4 {
        key_id,
        scope,
        signed,
        signature: signature.to_owned(),
        payload: payload.to_owned(),
    })
}

pub(crate) fn presigned(
    request: &Signed<'_>,
    query: &[(String, String)],
    region: &str,
    now_ms: u64,
) -> Result<V4, Refusal> {
    let mut fields = [""; 6];
    const NAMES: [&str; 6] = [
        "X-Amz-Algorithm",
        "X-Amz-Credential",
        "X-Amz-Date",
        "X-Amz-Expires",
        "X-Amz-SignedHeaders",
        "X-Amz-Signature",
    ];
    for (field, name) in fields.iter_mut().zip(NAMES) {
        match one(query, name) {
            Some(value) => *field = value,
            None => {
                return query_error(
                    "Query-string authentication version 4 requires the X-Amz-Algorithm, \
                     X-Amz-Credential, X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and \
                     X-Amz-Expires parameters.",
                );
            }
        }
    }
    let [algorithm, of, stamp, expires, signed, signature] = fields;
    if algorithm != ALGORITHM {
        return query_error("X-Amz-Algorithm only supports \"AWS4-HMAC-SHA256\"");
    }
    let Some(time) = stamp_ms(stamp) else {
        return query_error(
            "X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"",
        );
    };
    let Ok(expires) = expires.parse::<i64>() else {
        return query_error("X-Amz-Expires should be a number");
    };
    let Ok(expires) = u64::try_from(expires) else {
        return query_error("X-Amz-Expires must be non-negative");
    };
    if expires > EXPIRES_MAX {
        return query_error(
            "X-Amz-Expires must be less than a week (in seconds) that is less than 604800",
        );
    }
    if time > now_ms + SKEW_MS {
        return refuse!(AccessDenied, "Request is not yet valid");
    }
    if now_ms > time + expires * 1000 {
        return refuse!(AccessDenied, "Request has expired");
    }
    let (key_id, scope) = match credential(of, stamp, region) {
        Ok(found) => found,
        Err(message) => {
            return query_error(&format!(
                "Error parsing the X-Amz-Credential parameter; {message}"
            ));
        }
    };
    let signed: Vec<String> = signed.split(';').map(str::to_ascii_lowercase).collect();
    check_signed(&signed, request)?;
    // A presigned payload is as a rule unknown when it is signed.
    let in_query = one(query, "X-Amz-Content-Sha256");
    let in_header = request
        .header("x-amz-content-sha256")
        .filter(|_| signed.iter().any(|s| s == "x-amz-content-sha256"));
    let payload = in_query.or(in_header).unwrap_or(UNSIGNED);
    let said = |(name, value): &(&str, &str)| *name == "x-amz-content-sha256" && *value != payload;
    if request.headers.iter().any(said) {
        return refuse!(
            AccessDenied,
            "The x-amz-content-sha256 of the request is not what the presigned URL was signed with: \
             {payload}"
        );
    }
    Ok(V4 {
        key_id,
        scope,
        signature: signature.to_owned(),
        payload: payload.to_owned(),
        signed,
    })
}

/// With everything but letters, digits and `-_.~` (and `/`, if it is kept) in percents.
fn encode(text: &str, keep_slash: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            b'/' if keep_slash => out.push('/'),
            _ => {
                out.push('%');
                out.push_str(&to_hex(&[byte]).to_ascii_uppercase());
            }
        }
    }
    out
}

fn canonical_query(query: &[(String, String)], presigned: bool) -> String {
    let mut pairs: Vec<(String, String)> = query
        .iter()
        .filter(|(name, _)| !presigned || name != "X-Amz-Signature")
        .map(|(name, value)| (encode(name, false), encode(value, false)))
        .collect();
    pairs.sort_unstable();
    let pairs: Vec<String> = pairs.into_iter().map(|(n, v)| format!("{n}={v}")).collect();
    pairs.join("&")
}

pub(crate) fn hmac(key: &[u8], text: &[u8]) -> [u8; 32] {
    // A key of any length is taken.
    let Ok(mut mac) = <Hmac<Sha256> as KeyInit>::new_from_slice(key) else {
        return [0; 32];
    };
    mac.update(text);
    mac.finalize().into_bytes().into()
}

/// The key that a day's requests are signed with.
pub fn signing_key(secret: &str, scope: &Scope) -> [u8; 32] {
    let key = hmac(format!("AWS4{secret}").as_bytes(), scope.date().as_bytes());
    let key = hmac(&key, scope.region.as_bytes());
    let key = hmac(&key, b"s3");
    hmac(&key, b"aws4_request")
}

/// The signature of a text, in hexadecimal.
pub fn sign(key: &[u8; 32], text: &str) -> String {
    to_hex(&hmac(key, text.as_bytes()))
}

fn sha256(text: &[u8]) -> String {
    to_hex(&Sha256::digest(text))
}

impl V4 {
    /// What the signature is of a request that is signed as this says, by the path that is signed. None if a
    /// header is not there.
    fn signing<'a>(
        &'a self,
        request: &'a Signed<'_>,
        query: &[(String, String)],
        secret: &str,
        presigned: bool,
    ) -> Option<impl Fn(&str) -> String + use<'a>> {
        let mut headers = String::new();
        for name in &self.signed {
            let value = canonical_header(request, name)?;
            headers.push_str(name);
            headers.push(':');
            headers.push_str(&value);
            headers.push('\n');
        }
        let query = canonical_query(query, presigned);
        let key = signing_key(secret, &self.scope);
        Some(move |path: &str| {
            let canonical = [
                request.method,
                path,
                &query,
                &headers,
                &self.signed.join(";"),
                &self.payload,
            ]
            .join("\n");
            let text = [
                ALGORITHM,
                &self.scope.stamp,
                &self.scope.text(),
                &sha256(canonical.as_bytes()),
            ];
            sign(&key, &text.join("\n"))
        })
    }

    pub(crate) fn is_right(
        &self,
        request: &Signed<'_>,
        query: &[(String, String)],
        secret: &str,
        presigned: bool,
    ) -> bool {
        let Some(signature_of) = self.signing(request, query, secret, presigned) else {
            return false;
        };
        let decoded = percent_decode(request.path);
        let path = decoded.map(|path| encode(&path, true));
        if path
            .as_deref()
            .is_some_and(|path| same(&signature_of(path), &self.signature))
        {
            return true;
        }
        // Some clients sign the path as they send it.
        path.as_deref() != Some(request.path) && same(&signature_of(request.path), &self.signature)
    }
}

/// The `authorization` header with which a client signs a request: all headers that it has, in the order of their
/// names, its path as it is, and its query; none, if that is no query.
pub fn authorize(
    request: &Signed<'_>,
    payload: &str,
    scope: Scope,
    key_id: &str,
    secret: &str,
) -> String {
    let v4 = V4 {
        key_id: key_id.to_owned(),
        scope,
        signed: request
            .headers
            .iter()
            .map(|(n, _)| (*n).to_owned())
            .collect(),
        signature: String::new(),
        payload: payload.to_owned(),
    };
    let query = parse_query(request.query).unwrap_or_default();
    let signing = v4.signing(request, &query, secret, false);
    let signature = signing.map_or_else(String::new, |signature_of| signature_of(request.path));
    format!(
        "{ALGORITHM} Credential={key_id}/{}, SignedHeaders={}, Signature={signature}",
        v4.scope.text(),
        v4.signed.join(";")
    )
}

/// The signatures of a body's chunks, each of which depends on the one before.
#[derive(Clone)]
pub struct ChunkSigner {
    key: [u8; 32],
    scope: Scope,
    last: String,
}

impl std::fmt::Debug for ChunkSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChunkSigner(…)")
    }
}

impl ChunkSigner {
    /// Of the body of a request with this signature.
    pub fn new(v4: &V4, secret: &str) -> ChunkSigner {
        ChunkSigner {
            key: signing_key(secret, &v4.scope),
            scope: v4.scope.clone(),
            last: v4.signature.clone(),
        }
    }

    fn next(&mut self, kind: &str, hashes: &[&str], signature: &str) -> bool {
        let scope = self.scope.text();
        let mut text = vec![kind, &self.scope.stamp, &scope, &self.last];
        text.extend_from_slice(hashes);
        let expected = sign(&self.key, &text.join("\n"));
        let right = same(&expected, signature);
        self.last = expected;
        right
    }

    /// Whether the next chunk, with this SHA-256, has this signature.
    pub fn chunk(&mut self, sha256: &[u8; 32], signature: &str) -> bool {
        let hashes = [EMPTY_SHA256, &to_hex(sha256)];
        self.next("AWS4-HMAC-SHA256-PAYLOAD", &hashes, signature)
    }

    /// Whether the trailer (`name:value` and a line's end for each) has this signature.
    pub fn trailer(&mut self, trailer: &str, signature: &str) -> bool {
        let hash = sha256(trailer.as_bytes());
        self.next("AWS4-HMAC-SHA256-TRAILER", &[&hash], signature)
    }
}
