//! A request, taken apart: what it is about, and what it says.
//!
//! Invariant: paths are decoded once, and nothing in them is made simpler: `//`, `.` and `..` are parts of
//! keys like any other.

use std::fmt;
use std::net::SocketAddr;

use ashlar_cluster_s3::operation::Level;
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::signature::{Signed, is_presigned_v4, parse_query};
use ashlar_cluster_s3::text::percent_decode;
use ashlar_layout::limits::KEY_MAX;
use ashlar_layout::names::{SYSTEM_BUCKET, check_bucket};
use hyper::http::request::Parts;

use crate::faults::refused;
use crate::places::Peer;

/// A request.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) method: String,
    /// In percents, as it was sent.
    pub(crate) path: String,
    pub(crate) raw_query: String,
    /// Decoded.
    pub(crate) query: Vec<(String, String)>,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// Those that came in the query, as presigned URLs have them.
    hoisted: Vec<(String, String)>,
    pub(crate) host_bucket: Option<String>,
    pub(crate) level: Level,
    pub(crate) bucket: String,
    pub(crate) key: String,
    /// Who calls: an address.
    pub(crate) address: SocketAddr,
    /// Whether it came through TLS.
    pub(crate) secure: bool,
}

/// What it says in headers and in its query is left out: signatures and keys are among that.
impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Call({} {})", self.method, self.path)
    }
}

/// The bucket that a host names, if it is below one of our names.
fn host_bucket(host: &str, domains: &[String]) -> Option<String> {
    let host = host.to_ascii_lowercase();
    // An address in brackets has colons of its own, and no bucket.
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host.as_str(),
    };
    domains.iter().find_map(|domain| {
        let bucket = name.strip_suffix(domain.as_str())?.strip_suffix('.')?;
        (!bucket.is_empty()).then(|| bucket.to_owned())
    })
}

impl Call {
    /// Who calls.
    pub(crate) fn peer(&self) -> Peer {
        Peer::from(self.address)
    }

    /// Takes a request's head apart.
    pub(crate) fn new(
        parts: &Parts,
        domains: &[String],
        peer: SocketAddr,
        secure: bool,
    ) -> Result<Call, Refusal> {
        let mut headers = Vec::with_capacity(parts.headers.len());
        for (name, value) in &parts.headers {
            let Ok(value) = std::str::from_utf8(value.as_bytes()) else {
                let message = format!("The header {name} is not UTF-8");
                return Err(Refusal::new(Code::InvalidArgument, message));
            };
            headers.push((name.as_str().to_owned(), value.to_owned()));
        }
        let raw_query = parts.uri.query().unwrap_or_default().to_owned();
        let Some(query) = parse_query(&raw_query) else {
            return refused(Code::InvalidURI, "Couldn't parse the specified URI.");
        };
        let path = parts.uri.path().to_owned();
        let host = parts
            .headers
            .get("host")
            .and_then(|host| host.to_str().ok());
        let host = host.or(parts.uri.host());
        let host_bucket = host.and_then(|host| host_bucket(host, domains));
        let (bucket, key) = match &host_bucket {
            Some(bucket) => (bucket.clone(), path.strip_prefix('/').unwrap_or_default()),
            None => {
                let rest = path.strip_prefix('/').unwrap_or_default();
                let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
                let Some(bucket) = percent_decode(bucket) else {
                    return refused(Code::InvalidURI, "Couldn't parse the specified URI.");
                };
                (bucket, key)
            }
        };
        let Some(key) = percent_decode(key) else {
            return refused(Code::InvalidURI, "Couldn't parse the specified URI.");
        };
        let level = match (bucket.is_empty(), key.is_empty()) {
            (true, true) => Level::Service,
            (false, true) => Level::Bucket,
            (false, false) => Level::Object,
            (true, false) => {
                return refused(Code::InvalidBucketName, "There is no bucket in the path.");
            }
        };
        let hoisted: Vec<(String, String)> = query
            .iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .filter(|(name, _)| name.starts_with("x-amz-"))
            .map(|(name, value)| (name, value.clone()))
            .collect();
        // Version 2 does not sign them: whoever holds such a URL could make another request of it.
        if let Some((name, _)) = hoisted.first().filter(|_| !is_presigned_v4(&query)) {
            let message = format!(
                "The query parameter {name} is one of URLs that are presigned with AWS4-HMAC-SHA256. \
                 Please send it as a header."
            );
            return Err(Refusal::new(Code::NotImplemented, message));
        }
        Ok(Call {
            method: parts.method.as_str().to_owned(),
            path,
            raw_query,
            query,
            headers,
            hoisted,
            host_bucket,
            level,
            bucket,
            key,
            address: peer,
            secure,
        })
    }

    /// The put that a form asks for: of this key, with these headers. Of its own headers those stay that tell
    /// who sends it, and how.
    pub(crate) fn of_form(&self, key: String, headers: Vec<(String, String)>) -> Call {
        const KEPT: &[&str] = &["host", "origin", "referer", "user-agent"];
        let mut call = self.clone();
        call.headers
            .retain(|(name, _)| KEPT.contains(&name.as_str()));
        call.headers.extend(headers);
        (call.key, call.level) = (key, Level::Object);
        call
    }

    /// Refuses names that no bucket and no object can have.
    pub(crate) fn check_names(&self) -> Result<(), Refusal> {
        if self.level == Level::Service {
            return Ok(());
        }
        check_bucket_name(&self.bucket)?;
        if self.key.len() > KEY_MAX {
            return refused(Code::KeyTooLongError, "Your key is too long");
        }
        Ok(())
    }

    /// A header's value, or what a presigned URL has in its place; the first, if there are several.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter().chain(&self.hoisted);
        let found = all.find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    /// All values of a header.
    pub(crate) fn joined_header(&self, name: &str) -> Option<String> {
        let all = self.headers.iter().chain(&self.hoisted);
        let found: Vec<&str> = all
            .filter(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
            .collect();
        (!found.is_empty()).then(|| found.join(","))
    }

    /// Headers whose names begin so, without that beginning; those of one name as one.
    pub(crate) fn headers_from(&self, beginning: &str) -> Vec<(String, String)> {
        let mut found: Vec<(String, String)> = Vec::new();
        for (name, value) in self.headers.iter().chain(&self.hoisted) {
            let Some(rest) = name.strip_prefix(beginning) else {
                continue;
            };
            match found.iter_mut().find(|(n, _)| n == rest) {
                Some((_, all)) => {
                    all.push(',');
                    all.push_str(value);
                }
                None => found.push((rest.to_owned(), value.clone())),
            }
        }
        found
    }

    /// A parameter of the query.
    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    /// A parameter that is a number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<i32>, Refusal> {
        match self.param(name).filter(|text| !text.is_empty()) {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => {
                    let message = format!("Provided {name} not an integer or within integer range");
                    Err(Refusal::new(Code::InvalidArgument, message))
                }
            },
        }
    }

    /// What is signed.
    pub(crate) fn signed(&self) -> Signed<'_> {
        Signed {
            method: &self.method,
            path: &self.path,
            query: &self.raw_query,
            headers: self
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect(),
            host_bucket: self.host_bucket.as_deref(),
        }
    }

    /// The names of query and headers that say what is asked for.
    pub(crate) fn query_names(&self) -> impl Iterator<Item = &str> + Clone {
        self.query.iter().map(|(name, _)| name.as_str())
    }

    /// The names of its headers.
    pub(crate) fn header_names(&self) -> impl Iterator<Item = &str> + Clone {
        let both = self.headers.iter().chain(&self.hoisted);
        // What only signs is no header of the operation's.
        both.map(|(name, _)| name.as_str()).filter(|name| {
            !matches!(
                *name,
                "x-amz-algorithm"
                    | "x-amz-credential"
                    | "x-amz-expires"
                    | "x-amz-signature"
                    | "x-amz-signedheaders"
            )
        })
    }

    /// `/bucket/key`, as replies tell it.
    pub(crate) fn resource(&self) -> String {
        match self.level {
            Level::Service => "/".to_owned(),
            Level::Bucket => format!("/{}", self.bucket),
            Level::Object => format!("/{}/{}", self.bucket, self.key),
        }
    }

    /// `arn:aws:s3:::bucket/key`, as policies call it.
    pub(crate) fn arn(&self) -> String {
        arn(&self.bucket, &self.key)
    }
}

/// What policies call a bucket, or an object in it.
pub(crate) fn arn(bucket: &str, key: &str) -> String {
    match (bucket.is_empty(), key.is_empty()) {
        (true, _) => "*".to_owned(),
        (false, true) => format!("arn:aws:s3:::{bucket}"),
        (false, false) => format!("arn:aws:s3:::{bucket}/{key}"),
    }
}

/// Refuses names that no bucket has.
pub(crate) fn check_bucket_name(bucket: &str) -> Result<(), Refusal> {
    if bucket == SYSTEM_BUCKET || check_bucket(bucket).is_err() {
        return refused(
            Code::InvalidBucketName,
            "The specified bucket is not valid.",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn call(host: &str, target: &str) -> Result<Call, Code> {
        let request = Request::builder()
            .uri(target)
            .header("host", host)
            .body(())
            .unwrap();
        let domains = ["s3.example.net".to_owned()];
        let peer = "10.0.0.1:5".parse().unwrap();
        Call::new(&request.into_parts().0, &domains, peer, false).map_err(|r| r.code)
    }

    #[test]
    fn where_the_bucket_stands() {
        for (host, target, bucket, key) in [
            ("s3.example.net", "/", "", ""),
            ("s3.example.net:9000", "/bucket", "bucket", ""),
            ("s3.example.net", "/bucket/", "bucket", ""),
            ("s3.example.net", "/bucket/a/b", "bucket", "a/b"),
            (
                "s3.example.net",
                "/bucket//a//../b%2Fc%20d+e",
                "bucket",
                "/a//../b/c d+e",
            ),
            ("Bucket.S3.example.net", "/", "bucket", ""),
            ("bucket.s3.example.net:9000", "/a/b", "bucket", "a/b"),
            ("my.bucket.s3.example.net", "//a", "my.bucket", "/a"),
            ("other.net", "/bucket/a", "bucket", "a"),
            ("xs3.example.net", "/bucket/a", "bucket", "a"),
            ("127.0.0.1:9000", "/bucket/%C3%A4", "bucket", "ä"),
            ("[::1]:9000", "/bucket/a", "bucket", "a"),
        ] {
            let call = call(host, target).unwrap();
            assert_eq!(
                (call.bucket.as_str(), call.key.as_str()),
                (bucket, key),
                "{host} {target}"
            );
        }
        assert_eq!(call("h", "//a").unwrap_err(), Code::InvalidBucketName);
        assert_eq!(call("h", "/bucket/%ff").unwrap_err(), Code::InvalidURI);
        assert_eq!(call("h", "/bucket/a?x=%zz").unwrap_err(), Code::InvalidURI);
    }

    #[test]
    fn names() {
        let check = |target: &str| call("h", target).unwrap().check_names().map_err(|r| r.code);
        assert_eq!(check("/bucket/key"), Ok(()));
        assert_eq!(check("/Bucket/key"), Err(Code::InvalidBucketName));
        assert_eq!(check("/ashlar-system/key"), Err(Code::InvalidBucketName));
        assert_eq!(check(&format!("/bucket/{}", "k".repeat(1024))), Ok(()));
        assert_eq!(
            check(&format!("/bucket/{}", "k".repeat(1025))),
            Err(Code::KeyTooLongError)
        );
    }

    /// What is not signed there could be added by anybody.
    #[test]
    fn headers_may_not_come_in_other_queries() {
        for query in [
            "AWSAccessKeyId=a&Signature=b&Expires=1&x-amz-copy-source=%2Fb%2Fother",
            "AWSAccessKeyId=a&Signature=b&Expires=1&X-Amz-Tagging=a%3Db",
            "x-amz-acl=private",
            "X-AMZ-META-a=1",
            "%78-amz-acl=private",
        ] {
            let refused = call("h", &format!("/b/k?{query}")).unwrap_err();
            assert_eq!(refused, Code::NotImplemented, "{query}");
        }
        let plain = call(
            "h",
            "/b/k?AWSAccessKeyId=a&Signature=b&Expires=1&x-id=PutObject",
        );
        assert_eq!(plain.unwrap().header("x-amz-copy-source"), None);
    }

    #[test]
    fn headers_may_come_in_the_query() {
        let call = call(
            "h",
            "/b/k?X-Amz-Signature=x&x-amz-acl=private&x-amz-meta-A=1&partNumber=7",
        )
        .unwrap();
        assert_eq!(call.header("x-amz-acl"), Some("private"));
        assert_eq!(
            call.headers_from("x-amz-meta-"),
            [("a".to_owned(), "1".to_owned())]
        );
        assert_eq!(call.number("partNumber"), Ok(Some(7)));
        assert!(call.header_names().all(|name| name != "x-amz-signature"));
        assert_eq!(
            (call.resource(), call.arn()),
            ("/b/k".to_owned(), "arn:aws:s3:::b/k".to_owned())
        );
    }
}
