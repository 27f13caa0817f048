//! What the fuzz targets do, each for one thing that a client of S3 sends.
//!
//! Whatever comes is understood or refused, and never ends in a panic. More than that is asked where more can be:
//! - nobody who does not have the secret is taken for who has it;
//! - a body and a form mean the same in whichever pieces they come;
//! - a document that is accepted is accepted again as we write it, and means the same.
//!
//! From `cluster/s3/fuzz`, with <https://github.com/rust-fuzz/cargo-fuzz>:
//!
//! ```sh
//! mkdir -p corpus/form
//! RUSTC_BOOTSTRAP=1 cargo fuzz run form corpus/form seeds/form -- -max_total_time=60
//! ```

use std::collections::BTreeMap;
use std::fmt::Debug;

use ashlar_cluster_s3::acl_document::{parse_acl, parse_grants, write_acl};
use ashlar_cluster_s3::attributes::Attributes;
use ashlar_cluster_s3::bucket::BucketConfig;
use ashlar_cluster_s3::calendar::parse_iso_date;
use ashlar_cluster_s3::checksum::{Algorithm, parse_content_md5};
use ashlar_cluster_s3::chunked::Chunked;
use ashlar_cluster_s3::conditional::{ReadIf, WriteIf};
use ashlar_cluster_s3::form::{Fields, FormHead, Head, boundary};
use ashlar_cluster_s3::form_policy::{self, FormPolicy};
use ashlar_cluster_s3::lifecycle_document::{parse_lifecycle, write_lifecycle};
use ashlar_cluster_s3::operation::{Level, resolve};
use ashlar_cluster_s3::policy::{Asked, Caller, Of, Policy};
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::signature::{Claim, Payload, Signed, check_form, parse_query};
use ashlar_cluster_s3::system::{UploadId, UploadRecord};
use ashlar_cluster_s3::text::{percent_decode, url_encode};
use ashlar_cluster_s3::users::{Key, User};
use ashlar_cluster_s3::{documents, listing, object_lock, range, tags, version_id};
use bytes::Bytes;

/// The time at which requests come: those in the seeds are good then.
const NOW_MS: u64 = 1_700_000_000_000;
const REGION: &str = "us-east-1";
/// Nobody's: no fuzzer finds it.
const SECRET: &str = "a secret that is in no input, 7c1f0d5a9e";

/// The first byte, and the rest.
fn choice(data: &[u8]) -> Option<(u8, &[u8])> {
    data.split_first().map(|(first, rest)| (*first, rest))
}

/// A request: its method, its path and its query in a line, and a header in each of those behind.
pub fn signed(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut lines = text.split('\n');
    let line = lines.next().unwrap_or_default();
    let (method, target) = line.split_once(' ').unwrap_or(("GET", line));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = lines.filter_map(|line| line.split_once(':')).collect();
    let request = Signed {
        method,
        path,
        query,
        headers,
        host_bucket: None,
    };
    let Some(pairs) = parse_query(query) else {
        return;
    };
    if let Ok(claim) = Claim::of(&request, &pairs, REGION, NOW_MS) {
        let right = claim.check(&request, &pairs, SECRET).is_ok();
        assert!(
            !right || claim == Claim::None,
            "signed without the secret: {claim:?}"
        );
        let _ = (
            claim.key_id(),
            claim.version(),
            claim.kind(),
            claim.age_ms(NOW_MS),
        );
    }
    for level in [Level::Service, Level::Bucket, Level::Object] {
        let queries = pairs.iter().map(|(name, _)| name.as_str());
        let names = request.headers.iter().map(|(name, _)| *name);
        let found = resolve(method, level, queries.clone(), names.clone());
        let with = resolve(method, level, queries.chain(["what-nobody-knows"]), names);
        assert!(with.is_err(), "more than is understood is {found:?}");
    }
}

/// Takes a body apart that comes in pieces of so many bytes; gives what is in it, and its trailer.
fn unchunk(
    body: &[u8],
    trailer: bool,
    promised: u64,
    piece: usize,
) -> Result<(Vec<u8>, Vec<(String, String)>), Code> {
    let mut chunked = Chunked::new(Payload::Chunks { trailer }, None, promised);
    let mut out = Vec::new();
    for piece in body.chunks(piece.max(1)) {
        let pushed = chunked.push(Bytes::copy_from_slice(piece), &mut out);
        pushed.map_err(|refusal| refusal.code)?;
    }
    let trailer = chunked.end().map_err(|refusal| refusal.code)?;
    Ok((out.concat(), trailer))
}

/// A body in chunks: whether it has a trailer, how long its pieces are, how much was promised (two bytes), the body.
pub fn chunked(data: &[u8]) {
    let Some(([trailer, piece, low, high], body)) = data.split_first_chunk() else {
        return;
    };
    let promised = u64::from(u16::from_le_bytes([*low, *high]));
    let trailer = trailer & 1 == 1;
    let whole = unchunk(body, trailer, promised, usize::MAX);
    let pieces = unchunk(body, trailer, promised, usize::from(*piece));
    if let Ok((bytes, _)) = &whole {
        assert_eq!(bytes.len() as u64, promised, "less came than was promised");
    }
    match (&whole, &pieces) {
        // Which of two faults is seen first may depend on the pieces.
        (Err(_), Err(_)) => {}
        _ => assert_eq!(whole, pieces),
    }
}

/// A form's fields, and its file, if all is there.
fn take_form(body: &[u8], mark: &str, piece: usize) -> Result<(Fields, Vec<u8>), Code> {
    let mut pieces = body.chunks(piece.max(1));
    let mut head = FormHead::new(mark);
    let (fields, mut file) = loop {
        let piece = pieces.next().ok_or(Code::MalformedPOSTRequest)?;
        match head.push(piece).map_err(|refusal| refusal.code)? {
            Head::More(more) => head = more,
            Head::Whole(fields, file) => break (fields, file),
        }
    };
    let mut out = Vec::new();
    let first = file.first();
    file.push(first, &mut out);
    for piece in pieces {
        file.push(Bytes::copy_from_slice(piece), &mut out);
    }
    file.end().map_err(|refusal| refusal.code)?;
    Ok((fields, out.concat()))
}

/// A form: how long its pieces are, its content type in a line, the form.
pub fn form(data: &[u8]) {
    let Some((piece, rest)) = choice(data) else {
        return;
    };
    let end = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
    let Ok(kind) = std::str::from_utf8(&rest[..end]) else {
        return;
    };
    let Ok(mark) = boundary(kind) else {
        return;
    };
    let body = rest.get(end + 1..).unwrap_or_default();
    let whole = take_form(body, &mark, usize::MAX);
    let pieces = take_form(body, &mark, usize::from(piece));
    match (&whole, &pieces) {
        (Err(_), Err(_)) => {}
        _ => assert_eq!(whole, pieces),
    }
    let Ok((fields, _)) = whole else {
        return;
    };
    let key = form_policy::key(&fields).unwrap_or_default();
    let _ = (form_policy::key_id(&fields), form_policy::headers(&fields));
    let _ = (
        form_policy::redirect(&fields),
        form_policy::success_status(&fields),
    );
    let text = fields.get("policy").unwrap_or_default();
    let field = |name: &str| fields.get(name).map(str::to_owned);
    let right = check_form(field, REGION, NOW_MS, text, SECRET);
    assert!(right.is_err(), "a form that was signed without the secret");
    if let Ok(policy) = FormPolicy::parse(text) {
        let _ = (
            policy.check("bucket", &key, &fields, NOW_MS),
            policy.lengths(),
        );
    }
}

/// What is accepted is accepted as we write it, and means the same.
fn again<T: PartialEq + Debug>(
    bytes: &[u8],
    parse: impl Fn(&[u8]) -> Result<T, Refusal>,
    write: impl Fn(&T) -> String,
) {
    if let Ok(first) = parse(bytes) {
        let text = write(&first);
        match parse(text.as_bytes()) {
            Ok(second) => assert_eq!(first, second, "{text}"),
            Err(refusal) => panic!("{refusal}: {text}"),
        }
    }
}

/// A document in XML: which one, and its bytes.
pub fn document(data: &[u8]) {
    let Some((which, xml)) = choice(data) else {
        return;
    };
    match which % 12 {
        0 => drop(documents::parse_delete(xml)),
        1 => drop(documents::parse_complete(xml)),
        2 => again(
            xml,
            |x| documents::parse_tagging(x, 10),
            documents::write_tagging,
        ),
        3 => again(xml, documents::parse_cors, |rules| {
            documents::write_cors(rules)
        }),
        4 => {
            // Whoever is named is there, and written by an id of our own.
            let all = |_: &str| Some("111122223333");
            let read = |x: &[u8]| parse_acl(x)?.grants(all);
            if let Ok(first) = read(xml) {
                let text = write_acl("111122223333", &first);
                assert_eq!(read(text.as_bytes()), Ok(first), "{text}");
            }
        }
        5 => again(xml, documents::parse_ownership, |kind| {
            documents::write_ownership(*kind)
        }),
        6 => again(xml, documents::parse_versioning, |v| {
            documents::write_versioning(Some(*v))
        }),
        7 => again(
            xml,
            documents::parse_public_access_block,
            documents::write_public_access_block,
        ),
        8 => drop(documents::parse_create_bucket(xml)),
        9 => again(
            xml,
            |x| parse_lifecycle(x, 7),
            |rules| write_lifecycle(rules),
        ),
        10 => again(
            xml,
            object_lock::parse_configuration,
            object_lock::write_configuration,
        ),
        _ => {
            let retention = |x: &[u8]| {
                let found = object_lock::parse_retention(x, NOW_MS)?;
                found.ok_or_else(|| Refusal::new(Code::MalformedXML, "none"))
            };
            again(xml, retention, object_lock::write_retention);
            again(xml, object_lock::parse_legal_hold, |held| {
                object_lock::write_legal_hold(*held)
            });
        }
    }
}

/// A policy in JSON; and a line behind it with what is asked: an action, a resource, a key.
pub fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (json, asked) = text.rsplit_once('\n').unwrap_or((text, ""));
    let mut words = asked.split(' ');
    let mut word = || words.next().unwrap_or_default();
    let (action, resource, key, value) = (word(), word(), word(), word());
    let keys = BTreeMap::from([(key.to_owned(), vec![value.to_owned()])]);
    let keys = keys.into_iter().collect();
    for of in [Of::Bucket("bucket"), Of::User] {
        let Ok(policy) = Policy::parse(json, of) else {
            continue;
        };
        let _ = (policy.is_public(), policy.looks_at_existing_tags());
        let user = Caller::User {
            account: "111122223333".to_owned(),
            name: "user".to_owned(),
            canonical: "0".repeat(64),
        };
        for caller in [Caller::Anonymous, user] {
            let _ = policy.verdict(&Asked {
                caller: &caller,
                action,
                resource,
                keys: &keys,
            });
        }
    }
}

/// Something that the store keeps: which, and its bytes.
pub fn kept(data: &[u8]) {
    let Some((which, bytes)) = choice(data) else {
        return;
    };
    match which % 5 {
        0 => {
            let Ok(first) = Attributes::decode(bytes) else {
                return;
            };
            if let Ok(text) = first.encode() {
                assert_eq!(Attributes::decode(&text).as_ref(), Ok(&first));
            }
        }
        1 => {
            let Ok(first) = UploadRecord::decode(bytes) else {
                return;
            };
            if let Ok(text) = first.encode() {
                assert_eq!(UploadRecord::decode(&text).as_ref(), Ok(&first));
            }
            let _ = (
                first.attributes(),
                first.checksum(),
                UploadId::parse(&first.id),
            );
        }
        2 => {
            if let Ok(first) = BucketConfig::decode(bytes)
                && let Ok(text) = first.encode()
            {
                assert_eq!(BucketConfig::decode(&text).as_ref(), Ok(&first));
            }
        }
        3 => drop(User::decode(bytes).map(|user| (user.canonical(), user.encode().is_ok()))),
        _ => drop(Key::decode(bytes).map(|key| key.encode().is_ok())),
    }
}

/// Values of headers and of query parameters: which, and the text.
pub fn header(data: &[u8]) {
    let Some((which, bytes)) = choice(data) else {
        return;
    };
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match which % 13 {
        0 => {
            if let Some(wanted) = range::parse(text) {
                for size in [0, 1, 1000, u64::MAX] {
                    if let Ok(part) = wanted.resolve(size) {
                        assert!(
                            part.start < part.end && part.end <= size,
                            "{part:?} of {size}"
                        );
                        let _ = range::content_range(&part, size);
                    }
                }
            }
        }
        1 => drop(range::parse_copy(text)),
        2 => {
            if let Ok(tags) = tags::parse_header(text) {
                tags::check(&tags, 10).expect("what is accepted is in order");
            }
        }
        3 => drop(version_id::parse(text)),
        4 => {
            if let Ok(after) = listing::parse_token(text) {
                assert_eq!(
                    listing::parse_token(&listing::token(&after)).ok(),
                    Some(after)
                );
            }
        }
        5 => drop(
            WriteIf::parse(Some(text), None).is_ok() | WriteIf::parse(None, Some(text)).is_ok(),
        ),
        6 => drop(ReadIf::parse(
            Some(text),
            Some(text),
            Some(text),
            Some(text),
        )),
        7 => drop(parse_iso_date(text)),
        8 => {
            drop(parse_content_md5(text));
            for algorithm in Algorithm::ALL {
                drop(algorithm.parse_digest(text));
            }
        }
        9 => drop(Payload::parse(text)),
        10 => {
            if let Some(first) = percent_decode(text) {
                assert_eq!(percent_decode(&url_encode(&first)), Some(first));
            }
        }
        11 => drop(boundary(text)),
        _ => drop(parse_grants(&[("read".to_owned(), text.to_owned())])),
    }
}
