//! Signatures: the examples of Amazon's manuals, and what must not pass.

use proptest::prelude::*;

use crate::refusal::Code;
use crate::signature::{Claim, Payload, SKEW_MS, Signed, check_form, parse_query};
use crate::signature_v2::sign_v2;
use crate::signature_v4::{Scope, authorize, sign, signing_key, stamp};

pub(crate) const KEY_ID: &str = "AKIAIOSFODNN7EXAMPLE";
pub(crate) const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
/// 24 May 2013.
pub(crate) const NOW: u64 = 1_369_353_600_000;
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// A request with an `Authorization` of the manual's scope.
pub(crate) fn authorization(signed: &str, signature: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential={KEY_ID}/20130524/us-east-1/s3/aws4_request, \
         SignedHeaders={signed}, Signature={signature}"
    )
}

fn request<'a>(method: &'a str, target: &'a str, headers: &[(&'a str, &'a str)]) -> Signed<'a> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Signed {
        method,
        path,
        query,
        headers: headers.to_vec(),
        host_bucket: None,
    }
}

fn check(request: &Signed<'_>, now: u64) -> Result<Claim, Code> {
    let query = parse_query(request.query).unwrap();
    let claim = Claim::of(request, &query, "us-east-1", now).map_err(|r| r.code)?;
    claim.check(request, &query, SECRET).map_err(|r| r.code)?;
    Ok(claim)
}

const HOST: (&str, &str) = ("host", "examplebucket.s3.amazonaws.com");
const DATE: (&str, &str) = ("x-amz-date", "20130524T000000Z");

#[test]
fn the_manuals_requests() {
    let get = authorization(
        "host;range;x-amz-content-sha256;x-amz-date",
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    );
    let put = authorization(
        "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    );
    let plain = "host;x-amz-content-sha256;x-amz-date";
    let lifecycle = authorization(
        plain,
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
    );
    let list = authorization(
        plain,
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
    );
    let empty = ("x-amz-content-sha256", EMPTY);
    let body = (
        "x-amz-content-sha256",
        "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
    );
    let date = ("date", "Fri, 24 May 2013 00:00:00 GMT");
    let class = ("x-amz-storage-class", "REDUCED_REDUNDANCY");
    for (method, target, headers) in [
        (
            "GET",
            "/test.txt",
            vec![
                HOST,
                ("range", "bytes=0-9"),
                empty,
                DATE,
                ("authorization", get.as_str()),
            ],
        ),
        (
            "PUT",
            "/test%24file.text",
            vec![HOST, date, body, DATE, class, ("authorization", &put)],
        ),
        // Sent in another encoding than it was signed in.
        (
            "PUT",
            "/test$file.text",
            vec![HOST, date, body, DATE, class, ("authorization", &put)],
        ),
        (
            "GET",
            "/?lifecycle",
            vec![HOST, empty, DATE, ("authorization", &lifecycle)],
        ),
        (
            "GET",
            "/?lifecycle=",
            vec![HOST, empty, DATE, ("authorization", &lifecycle)],
        ),
        (
            "GET",
            "/?prefix=J&max-keys=2",
            vec![HOST, empty, DATE, ("authorization", &list)],
        ),
    ] {
        let request = request(method, target, &headers);
        let claim = check(&request, NOW).unwrap();
        assert_eq!(claim.key_id(), Some(KEY_ID), "{method} {target}");
        assert_eq!(claim.kind(), Some("REST-HEADER"));
        // Anything else than what was signed.
        for change in 0..5 {
            let mut other = request.clone();
            match change {
                0 => other.method = "DELETE",
                1 => other.path = "/other",
                2 => other.query = "acl",
                3 => other.headers[0].1 = "other.s3.amazonaws.com",
                _ => other.headers.retain(|(name, _)| *name != "host"),
            }
            let code = check(&other, NOW).unwrap_err();
            assert_eq!(
                code,
                Code::SignatureDoesNotMatch,
                "{method} {target} {change}"
            );
        }
        let query = parse_query(request.query).unwrap();
        let wrong = claim.check(&request, &query, "wrong").unwrap_err();
        assert_eq!(wrong.code, Code::SignatureDoesNotMatch);
    }
}

#[test]
fn a_client_signs_as_in_the_manual() {
    let headers = [
        HOST,
        ("range", "bytes=0-9"),
        ("x-amz-content-sha256", EMPTY),
        DATE,
    ];
    let scope = Scope {
        stamp: stamp(NOW),
        region: "us-east-1".to_owned(),
    };
    let request = request("GET", "/test.txt", &headers);
    let expected = authorization(
        "host;range;x-amz-content-sha256;x-amz-date",
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    );
    let signed = authorize(&request, EMPTY, scope.clone(), KEY_ID, SECRET);
    assert_eq!(signed, expected);
    let headers = [HOST, ("x-amz-content-sha256", EMPTY), DATE];
    let request = self::request("GET", "/?max-keys=2&prefix=J", &headers);
    let expected = authorization(
        "host;x-amz-content-sha256;x-amz-date",
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
    );
    let signed = authorize(&request, EMPTY, scope, KEY_ID, SECRET);
    assert_eq!(signed, expected);
}

#[test]
fn the_manuals_presigned_url() {
    let target = "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE\
        %2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400\
        &X-Amz-SignedHeaders=host&X-Amz-Signature=\
        aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";
    let presigned = request("GET", target, &[HOST]);
    let end = NOW + 86_400_000;
    for now in [NOW - SKEW_MS, NOW, end] {
        let claim = check(&presigned, now).unwrap();
        assert_eq!(claim.kind(), Some("REST-QUERY-STRING"));
    }
    assert_eq!(check(&presigned, end + 1).unwrap_err(), Code::AccessDenied);
    assert_eq!(
        check(&presigned, NOW - SKEW_MS - 1).unwrap_err(),
        Code::AccessDenied
    );
    let more = format!("{target}&acl");
    assert_eq!(
        check(&request("GET", &more, &[HOST]), NOW).unwrap_err(),
        Code::SignatureDoesNotMatch
    );
    let acl = [HOST, ("x-amz-acl", "private")];
    assert_eq!(
        check(&request("GET", target, &acl), NOW).unwrap_err(),
        Code::AccessDenied
    );
    let payload = [HOST, ("x-amz-content-sha256", "UNSIGNED-PAYLOAD")];
    check(&request("GET", target, &payload), NOW).unwrap();
    for other in [EMPTY, "STREAMING-UNSIGNED-PAYLOAD-TRAILER"] {
        let other = [HOST, payload[1], ("x-amz-content-sha256", other)];
        assert_eq!(
            check(&request("GET", target, &other), NOW).unwrap_err(),
            Code::AccessDenied,
            "another payload than was signed"
        );
    }
    let both = [HOST, ("authorization", "AWS a:b")];
    assert_eq!(
        check(&request("GET", target, &both), NOW).unwrap_err(),
        Code::InvalidArgument
    );
    for (from, to) in [
        ("X-Amz-Expires=86400", "X-Amz-Expires=604801"),
        ("X-Amz-Expires=86400", "X-Amz-Expires=soon"),
        ("X-Amz-Expires=86400", "X-Amz-Expires=-1"),
        ("&X-Amz-SignedHeaders=host", ""),
        ("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"),
        ("X-Amz-Date=2013", "X-Amz-Date=x2013"),
        ("us-east-1", "eu-west-1"),
        ("%2Fs3%2F", "%2Fec2%2F"),
    ] {
        let target = target.replace(from, to);
        let code = check(&request("GET", &target, &[HOST]), NOW).unwrap_err();
        assert_eq!(code, Code::AuthorizationQueryParametersError, "{from} {to}");
    }
}

#[test]
fn the_manuals_version_2() {
    let date = ("date", "Tue, 27 Mar 2007 19:36:42 +0000");
    let now = 1_175_024_202_000;
    let signed = (
        "authorization",
        "AWS AKIAIOSFODNN7EXAMPLE:qgk2+6Sv9/oM7G3qLEjTH1a1l1g=",
    );
    let mut get = request("GET", "/photos/puppy.jpg", &[date, signed]);
    get.host_bucket = Some("awsexamplebucket1");
    let claim = check(&get, now).unwrap();
    assert_eq!(
        (claim.key_id(), claim.version()),
        (Some(KEY_ID), Some("AWS"))
    );
    assert_eq!(
        check(&get, now + SKEW_MS + 1000).unwrap_err(),
        Code::RequestTimeTooSkewed
    );
    get.host_bucket = None;
    assert_eq!(check(&get, now).unwrap_err(), Code::SignatureDoesNotMatch);
    let in_path = request(
        "GET",
        "/awsexamplebucket1/photos/puppy.jpg",
        &[date, signed],
    );
    check(&in_path, now).unwrap();
    let target = "/photos/puppy.jpg?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE\
        &Signature=NpgCjnDzrM%2BWFzoENXmpNDUsSn8%3D&Expires=1175139620";
    let mut presigned = request("GET", target, &[]);
    presigned.host_bucket = Some("johnsmith");
    check(&presigned, 1_175_139_620_000).unwrap();
    assert_eq!(
        check(&presigned, 1_175_139_620_001).unwrap_err(),
        Code::AccessDenied
    );
    let acl = format!("{target}&acl");
    let mut other = request("GET", &acl, &[]);
    other.host_bucket = Some("johnsmith");
    assert_eq!(
        check(&other, now).unwrap_err(),
        Code::SignatureDoesNotMatch,
        "a subresource is signed"
    );
}

#[test]
fn headers_that_are_wrong() {
    let right = authorization("host;x-amz-content-sha256;x-amz-date", &"0".repeat(64));
    let empty = ("x-amz-content-sha256", EMPTY);
    let code = |authorization: &str, more: &[(&str, &str)]| {
        let mut headers = vec![HOST, DATE, empty, ("authorization", authorization)];
        headers.extend_from_slice(more);
        check(&request("GET", "/", &headers), NOW).unwrap_err()
    };
    assert_eq!(code(&right, &[]), Code::SignatureDoesNotMatch);
    assert_eq!(
        code(&right, &[("x-amz-acl", "private")]),
        Code::AccessDenied,
        "not signed"
    );
    assert_eq!(code("Basic x", &[]), Code::InvalidArgument);
    assert_eq!(code("AWS4-ECDSA-P256-SHA256 x", &[]), Code::NotImplemented);
    for (from, to) in [
        ("us-east-1", "eu-west-1"),
        ("/s3/", "/iam/"),
        ("aws4_request", "aws5_request"),
        ("20130524", "20130523"),
        ("SignedHeaders=host;", "SignedHeaders="),
        ("Signature=", "Sig="),
        ("Credential=", "Credential"),
    ] {
        let code = code(&right.replace(from, to), &[]);
        assert_eq!(code, Code::AuthorizationHeaderMalformed, "{from} {to}");
    }
    let late = request("GET", "/", &[HOST, DATE, empty, ("authorization", &right)]);
    for now in [NOW + SKEW_MS + 1, NOW - SKEW_MS - 1] {
        assert_eq!(check(&late, now).unwrap_err(), Code::RequestTimeTooSkewed);
    }
    let without = |name: &str| {
        let mut request = late.clone();
        request.headers.retain(|(n, _)| *n != name);
        check(&request, NOW).unwrap_err()
    };
    assert_eq!(without("x-amz-date"), Code::AccessDenied);
    assert_eq!(without("x-amz-content-sha256"), Code::InvalidRequest);
    let anonymous = request("GET", "/", &[HOST]);
    assert_eq!(check(&anonymous, NOW).unwrap(), Claim::None);
}

#[test]
fn payloads() {
    for (value, expected) in [
        ("UNSIGNED-PAYLOAD", Payload::Unsigned),
        (
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            Payload::UnsignedChunks,
        ),
        (
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
            Payload::Chunks { trailer: false },
        ),
        (
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
            Payload::Chunks { trailer: true },
        ),
    ] {
        assert_eq!(Payload::parse(value), Ok(expected));
        assert_eq!(expected.is_chunked(), value.starts_with("STREAMING"));
    }
    assert!(matches!(Payload::parse(EMPTY), Ok(Payload::Sha256(_))));
    let code = |value| Payload::parse(value).unwrap_err().code;
    assert_eq!(
        code("STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"),
        Code::NotImplemented
    );
    assert_eq!(code("abc"), Code::InvalidArgument);
}

#[test]
fn forms() {
    let policy = "eyJleHBpcmF0aW9uIjoiMjAxMyJ9";
    let stamp = stamp(NOW);
    assert_eq!(stamp, "20130524T000000Z");
    let scope = Scope {
        stamp: stamp.clone(),
        region: "us-east-1".into(),
    };
    let v4 = sign(&signing_key(SECRET, &scope), policy);
    let v2 = sign_v2(SECRET, policy);
    let check = |signature: &str, region: &str, secret: &str, now: u64| {
        let field = |name: &str| {
            let value = match name {
                "x-amz-signature" if signature.len() == 64 => signature,
                "signature" if signature.len() != 64 => signature,
                "x-amz-algorithm" => "AWS4-HMAC-SHA256",
                "x-amz-date" => &stamp,
                "x-amz-credential" => {
                    return Some(format!("{KEY_ID}/20130524/us-east-1/s3/aws4_request"));
                }
                _ => return None,
            };
            Some(value.to_owned())
        };
        check_form(field, region, now, policy, secret).map_err(|r| r.code)
    };
    assert_eq!(check(&v4, "us-east-1", SECRET, NOW), Ok(()));
    assert_eq!(check(&v2, "us-east-1", SECRET, NOW), Ok(()));
    assert_eq!(
        check(&v4, "us-east-1", "x", NOW),
        Err(Code::SignatureDoesNotMatch)
    );
    assert_eq!(
        check(&v2, "us-east-1", "x", NOW),
        Err(Code::SignatureDoesNotMatch)
    );
    assert_eq!(
        check(&v4, "eu", SECRET, NOW),
        Err(Code::AuthorizationHeaderMalformed)
    );
    assert_eq!(
        check(&v4, "us-east-1", SECRET, NOW + (8 << 30)),
        Err(Code::AccessDenied)
    );
}

proptest! {
    #[test]
    fn anything_is_taken(target in "[/?&=%a-zA-Z0-9+;-]{0,80}", text in "[\\x20-\\x7e]{0,120}", v4: bool) {
        let text = if v4 { format!("AWS4-HMAC-SHA256 {text}") } else { text };
        let headers = [HOST, DATE, ("authorization", text.as_str()), ("x-amz-content-sha256", "x")];
        let request = request("GET", &target, &headers);
        if let Some(query) = parse_query(request.query) {
            let claim = Claim::of(&request, &query, "us-east-1", NOW);
            if let Ok(claim) = claim {
                prop_assert!(claim.check(&request, &query, SECRET).is_err());
            }
        }
    }
}
