//! Whatever a client sends: what reads it gives a value or a refusal, and never panics.
//!
//! Texts are made of the pieces that each decoder looks for, in any order, with anything between them; and of any
//! bytes at all.

use ashlar_cluster_s3::acl_document::parse_acl;
use ashlar_cluster_s3::attributes::Attributes;
use ashlar_cluster_s3::calendar::{parse_http_date, parse_iso_date};
use ashlar_cluster_s3::checksum::{Algorithm, parse_content_md5};
use ashlar_cluster_s3::chunked::Chunked;
use ashlar_cluster_s3::conditional::{Etags, ReadIf, WriteIf, range_stands};
use ashlar_cluster_s3::form::{FormHead, Head, boundary};
use ashlar_cluster_s3::form_policy::{self, FormPolicy};
use ashlar_cluster_s3::lifecycle_document::parse_lifecycle;
use ashlar_cluster_s3::policy::{Of, Policy};
use ashlar_cluster_s3::signature::{Claim, Payload, Signed, parse_query};
use ashlar_cluster_s3::system::{UploadId, UploadRecord, part_number};
use ashlar_cluster_s3::text::{from_base64, from_hex, percent_decode, to_base64};
use ashlar_cluster_s3::{documents, listing, operation, range, tags};
use bytes::Bytes;
use proptest::prelude::*;

/// Pieces of a kind, or anything, in any order.
fn made_of(pieces: &'static [&'static str]) -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => proptest::sample::select(pieces).prop_map(str::to_owned),
        1 => ".{0,6}",
        1 => "[0-9]{1,22}",
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

const HEADERS: &[&str] = &[
    "bytes=",
    "-",
    ",",
    "=",
    "\"",
    "*",
    "W/",
    " ",
    "Sun, ",
    "06 Nov 1994 ",
    "08:49:37 ",
    "GMT",
    "-0000",
    "T",
    "Z",
    ":",
    ".",
    "+",
    "1994-11-06",
    "%",
    "%2",
    "%ff",
    "&",
    "a=b",
    "/",
    "null",
    "AWS4-HMAC-SHA256 ",
    "Credential=",
    "/s3/aws4_request",
    "SignedHeaders=",
    "Signature=",
    "AWS ",
    "STREAMING-",
    "UNSIGNED-PAYLOAD",
    "ä",
    "\u{0}",
];
const XML: &[&str] = &[
    "<",
    ">",
    "/",
    "</",
    "/>",
    "<Delete>",
    "</Delete>",
    "<Object>",
    "</Object>",
    "<Key>",
    "</Key>",
    "&lt;",
    "&#x41;",
    "&#0;",
    "&x;",
    "<!--",
    "-->",
    "<![CDATA[",
    "]]>",
    "<?xml ",
    "?>",
    "<!DOCTYPE a [",
    "]>",
    "<Tagging>",
    "<TagSet>",
    "<LifecycleConfiguration>",
    "<Rule>",
    "<Status>Enabled</Status>",
    "<Filter>",
    "<And>",
    "<Expiration>",
    "<Days>",
    "<CompleteMultipartUpload>",
    "<Part>",
    "<PartNumber>",
    "<CORSConfiguration>",
    "a",
    "=",
    "\"",
    "'",
    "xmlns",
];
const JSON: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\u",
    "\"Version\":",
    "\"2012-10-17\"",
    "\"Statement\":",
    "\"Effect\":",
    "\"Allow\"",
    "\"Principal\":",
    "\"*\"",
    "\"Action\":",
    "\"s3:*\"",
    "\"Resource\":",
    "\"arn:aws:s3:::b/*\"",
    "\"Condition\":",
    "\"StringLike\":",
    "\"IpAddress\":",
    "\"NumericLessThan\":",
    "\"DateGreaterThan\":",
    "\"aws:SourceIp\":",
    "\"10.0.0.0/",
    "${",
    "}",
    "null",
    "true",
    "-",
    "1e999",
    "\"expiration\":",
    "\"conditions\":",
    "\"starts-with\"",
    "\"content-length-range\"",
    "\"$key\"",
];
const CHUNKS: &[&str] = &[
    "\r\n",
    "\r",
    "\n",
    "0",
    "1",
    "a",
    "ffffffffffffffff",
    ";",
    "chunk-signature=",
    "x-amz-checksum-crc32:",
    ":",
    "x-amz-trailer-signature:",
    "AAAAAA==",
    "abc",
];
const FORM: &[&str] = &[
    "--b",
    "--b--",
    "\r\n",
    "\r",
    "\n",
    "Content-Disposition: ",
    "form-data",
    ";",
    " name=",
    "filename=",
    "\"key\"",
    "\"file\"",
    "\"",
    "\\",
    "Content-Type: a/b",
    "multipart/form-data",
    "boundary=",
    "b",
];

fn headers(text: &str) {
    let _ = (range::parse(text), range::parse_copy(text));
    if let Some(wanted) = range::parse(text) {
        for size in [0, 1, 5, u64::MAX] {
            let resolved = wanted.resolve(size);
            assert!(resolved.is_err() || resolved.is_ok_and(|r| r.start < r.end && r.end <= size));
        }
    }
    let _ = (
        parse_http_date(text),
        parse_iso_date(text),
        parse_query(text),
        percent_decode(text),
    );
    let _ = (
        from_base64(text),
        from_hex(text),
        parse_content_md5(text),
        tags::parse_header(text),
    );
    let _ = (
        Etags::parse(text).name("a"),
        range_stands(text, "a", 5),
        listing::parse_token(text),
    );
    let read = ReadIf::parse(Some(text), Some(text), Some(text), Some(text));
    let _ = (
        read.check("a", 5),
        read.check_copy("a", 5),
        WriteIf::parse(Some(text), Some(text)),
    );
    let _ = (
        Payload::parse(text),
        UploadId::parse(text),
        part_number(text),
        boundary(text),
    );
    for algorithm in Algorithm::ALL {
        let _ = algorithm.parse_digest(text);
    }
    for level in [
        operation::Level::Service,
        operation::Level::Bucket,
        operation::Level::Object,
    ] {
        for method in ["GET", "PUT", "POST", "DELETE", text] {
            let _ = operation::resolve(method, level, [text].into_iter(), [text].into_iter());
        }
    }
    let signed = Signed {
        method: "GET",
        path: text,
        query: text,
        headers: vec![
            ("authorization", text),
            ("x-amz-date", text),
            ("date", text),
            ("host", text),
        ],
        host_bucket: None,
    };
    let query = parse_query(text).unwrap_or_default();
    if let Ok(claim) = Claim::of(&signed, &query, "r", 1_700_000_000_000) {
        let _ = (
            claim.check(&signed, &query, "secret"),
            claim.age_ms(5),
            claim.key_id(),
        );
    }
}

fn documents(bytes: &[u8]) {
    let _ = (
        documents::parse_delete(bytes),
        documents::parse_complete(bytes),
    );
    let _ = (
        documents::parse_tagging(bytes, 10),
        documents::parse_cors(bytes),
    );
    let _ = (parse_acl(bytes), documents::parse_ownership(bytes));
    let _ = (
        documents::parse_public_access_block(bytes),
        documents::parse_create_bucket(bytes),
    );
    let _ = (
        parse_lifecycle(bytes, 1),
        Attributes::decode(bytes),
        UploadRecord::decode(bytes),
    );
}

fn policies(text: &str) {
    for of in [Of::User, Of::Bucket("b")] {
        if let Ok(policy) = Policy::parse(text, of) {
            let _ = (policy.is_public(), policy.looks_at_existing_tags());
        }
    }
    let _ = (
        FormPolicy::parse(text),
        FormPolicy::parse(&to_base64(text.as_bytes())),
    );
}

fn chunks(bytes: &[u8], piece: usize) {
    for name in [
        "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
    ] {
        let Ok(payload) = Payload::parse(name) else {
            continue;
        };
        for promised in [0, 3, u64::MAX] {
            let mut chunked = Chunked::new(payload, None, promised);
            let mut out = Vec::new();
            let push = |part: &[u8]| chunked.push(Bytes::copy_from_slice(part), &mut out);
            if bytes.chunks(piece).try_for_each(push).is_ok() {
                let _ = chunked.end();
            }
            // It gives no more than came.
            assert!(out.iter().map(Bytes::len).sum::<usize>() <= bytes.len());
        }
    }
}

fn forms(bytes: &[u8], piece: usize) {
    let mut head = FormHead::new("b");
    let mut pieces = bytes.chunks(piece);
    let (fields, mut file) = loop {
        let Some(part) = pieces.next() else { return };
        match head.push(part) {
            Err(_) => return,
            Ok(Head::More(more)) => head = more,
            Ok(Head::Whole(fields, file)) => break (fields, file),
        }
    };
    let _ = (
        form_policy::key(&fields),
        form_policy::key_id(&fields),
        form_policy::headers(&fields),
    );
    let mut out = Vec::new();
    let first = file.first();
    file.push(first, &mut out);
    for part in pieces {
        file.push(Bytes::copy_from_slice(part), &mut out);
    }
    let _ = file.end();
    assert!(out.iter().map(Bytes::len).sum::<usize>() <= bytes.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn of_headers(text in made_of(HEADERS)) {
        headers(&text);
    }

    #[test]
    fn of_documents(text in made_of(XML)) {
        documents(text.as_bytes());
    }

    #[test]
    fn of_policies(text in made_of(JSON)) {
        policies(&text);
    }

    #[test]
    fn of_chunks(text in made_of(CHUNKS), piece in 1usize..30) {
        chunks(text.as_bytes(), piece);
    }

    #[test]
    fn of_forms(text in made_of(FORM), piece in 1usize..30) {
        forms(text.as_bytes(), piece);
        forms(format!("--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\
             \r\n{text}").as_bytes(), piece);
    }

    #[test]
    fn of_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200), piece in 1usize..30) {
        documents(&bytes);
        chunks(&bytes, piece);
        forms(&bytes, piece);
        let text = String::from_utf8_lossy(&bytes);
        headers(&text);
        policies(&text);
    }
}
