//! Bodies in chunks: the manual's examples, cut anywhere; and bodies that are wrong.

use bytes::Bytes;
use proptest::prelude::*;

use crate::chunked::Chunked;
use crate::refusal::{Code, Refusal};
use crate::signature::{Claim, Payload, Signed};
use crate::signature_tests::{NOW, SECRET, authorization};
use crate::signature_v4::ChunkSigner;

type Trailer = Vec<(String, String)>;

const CHUNK: &str = "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497";

/// The manual's request, its signature checked; what signs its chunks.
fn signer(trailer: bool) -> ChunkSigner {
    let (signed, signature, payload) = if trailer {
        (
            "content-encoding;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;\
             x-amz-storage-class;x-amz-trailer",
            "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
        )
    } else {
        (
            "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;\
             x-amz-decoded-content-length;x-amz-storage-class",
            "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        )
    };
    let authorization = authorization(signed, signature);
    let mut headers = vec![
        ("host", "s3.amazonaws.com"),
        ("content-encoding", "aws-chunked"),
        ("x-amz-content-sha256", payload),
        ("x-amz-date", "20130524T000000Z"),
        ("x-amz-decoded-content-length", "66560"),
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ("authorization", &authorization),
    ];
    if trailer {
        headers.push(("x-amz-trailer", "x-amz-checksum-crc32c"));
    } else {
        headers.push(("content-length", "66824"));
    }
    let request = Signed {
        method: "PUT",
        path: "/examplebucket/chunkObject.txt",
        query: "",
        headers,
        host_bucket: None,
    };
    let claim = Claim::of(&request, &[], "us-east-1", NOW).unwrap();
    claim.check(&request, &[], SECRET).unwrap();
    let Claim::V4(v4) = claim else {
        panic!("it is of version 4, in a header");
    };
    ChunkSigner::new(&v4, SECRET)
}

/// The manual's body.
fn body(trailer: bool) -> String {
    let (first, second, last) = if trailer {
        (
            "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
            "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
            "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
        )
    } else {
        (
            "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
            CHUNK,
            "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
        )
    };
    let end = if trailer {
        "x-amz-checksum-crc32c:sOO8/Q==\r\nx-amz-trailer-signature:\
         d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n"
    } else {
        ""
    };
    format!(
        "10000;chunk-signature={first}\r\n{}\r\n400;chunk-signature={second}\r\n{}\r\n\
         0;chunk-signature={last}\r\n{end}\r\n",
        "a".repeat(65_536),
        "a".repeat(1024),
    )
}

fn payload(trailer: bool) -> Payload {
    Payload::Chunks { trailer }
}

/// What is in a body that comes in pieces of such lengths.
fn read(
    mut chunked: Chunked,
    body: &[u8],
    pieces: &[usize],
) -> Result<(Vec<u8>, Trailer), Refusal> {
    let (mut out, mut rest) = (Vec::new(), Bytes::copy_from_slice(body));
    let mut pieces = pieces.iter().cycle();
    while !rest.is_empty() {
        let len = pieces
            .next()
            .map_or(rest.len(), |len| (*len).clamp(1, rest.len()));
        chunked.push(rest.split_to(len), &mut out)?;
    }
    let trailer = chunked.end()?;
    Ok((out.concat(), trailer))
}

#[test]
fn the_manuals_bodies() {
    for trailer in [false, true] {
        let body = body(trailer);
        for piece in [1, 7, 4096, usize::MAX] {
            let chunked = Chunked::new(payload(trailer), Some(signer(trailer)), 66_560);
            let (data, lines) = read(chunked, body.as_bytes(), &[piece]).unwrap();
            assert_eq!(data, "a".repeat(66_560).as_bytes());
            let expected = ("x-amz-checksum-crc32c".to_owned(), "sOO8/Q==".to_owned());
            assert_eq!(lines, if trailer { vec![expected] } else { vec![] });
        }
    }
}

#[test]
fn signed_bodies_that_are_wrong() {
    let code = |trailer: bool, from: &str, to: &str, promised: u64| {
        let body = body(trailer);
        assert!(body.contains(from), "{from}");
        let body = body.replacen(from, to, 1);
        let chunked = Chunked::new(payload(trailer), Some(signer(trailer)), promised);
        read(chunked, body.as_bytes(), &[1000])
            .map(drop)
            .map_err(|r| r.code)
    };
    assert_eq!(code(false, "400;", "400;", 66_560), Ok(()));
    for (from, to) in [
        ("aaaa\r\n400", "aaab\r\n400"),
        (CHUNK, &CHUNK.replace("0055", "0056")),
        ("0;chunk-signature=b6c6", "0;chunk-signature=b6c7"),
    ] {
        assert_eq!(
            code(false, from, to, 66_560),
            Err(Code::SignatureDoesNotMatch),
            "{from}"
        );
    }
    for (from, to) in [("d81f82fc", "d81f82fd"), ("sOO8/Q==", "sOO8/R==")] {
        assert_eq!(
            code(true, from, to, 66_560),
            Err(Code::SignatureDoesNotMatch),
            "{from}"
        );
    }
    let unsigned = format!(";chunk-signature={CHUNK}");
    for (from, to) in [
        (unsigned.as_str(), ""),
        (";chunk-signature=", ";signature="),
        ("400;", "g00;"),
        ("400;", "00000000000000400;"),
        ("400;", "+400;"),
        ("\r\n400;", "x\r\n400;"),
        ("\r\n400;", "\n400;"),
    ] {
        assert_eq!(
            code(false, from, to, 66_560),
            Err(Code::InvalidRequest),
            "{from} {to}"
        );
    }
    assert_eq!(
        code(false, "400;", "400;", 66_559),
        Err(Code::InvalidRequest),
        "more than promised"
    );
    assert_eq!(
        code(false, "400;", "400;", 66_561),
        Err(Code::IncompleteBody),
        "less than promised"
    );
}

#[test]
fn a_body_that_ends_early_is_none() {
    for trailer in [false, true] {
        let body = body(trailer);
        // Up to where the last chunk's line begins and ends.
        let last = body.rfind("\r\n0;chunk").unwrap() + 2;
        for len in [0, 1, 100, 65_000, last - 1, last, last + 20, last + 83] {
            let chunked = Chunked::new(payload(trailer), Some(signer(trailer)), 66_560);
            let error = read(chunked, &body.as_bytes()[..len], &[999]).unwrap_err();
            assert_eq!(error.code, Code::IncompleteBody, "{trailer} {len}");
        }
    }
}

#[test]
fn unsigned_bodies() {
    let read = |body: &str, promised| {
        let chunked = Chunked::new(Payload::UnsignedChunks, None, promised);
        read(chunked, body.as_bytes(), &[3]).map_err(|r| r.code)
    };
    let line = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(read("0\r\n\r\n", 0), Ok((vec![], vec![])));
    assert_eq!(read("0\r\n", 0), Ok((vec![], vec![])));
    assert_eq!(
        read(
            "5\r\nhello\r\n1\r\n \r\n0\r\nX-Amz-Checksum-CRC32: abc= \r\nx: y\r\n\r\n",
            6
        ),
        Ok((
            b"hello ".to_vec(),
            vec![line("x-amz-checksum-crc32", "abc="), line("x", "y")]
        ))
    );
    // The trailer's last line without its end; lines that end as in Unix.
    let short = Ok((b"a".to_vec(), vec![line("x", "y")]));
    assert_eq!(read("1\r\na\r\n0\r\nx:y", 1), short);
    assert_eq!(read("1\r\na\r\n0\r\nx:y\n\n", 1), short);
    for (body, promised, code) in [
        ("", 0, Code::IncompleteBody),
        ("5\r\nhel", 5, Code::IncompleteBody),
        ("5\r\nhello\r\n", 5, Code::IncompleteBody),
        ("5\r\nhello\r\n0\r\n\r\n", 6, Code::IncompleteBody),
        ("5\r\nhello\r\n0\r\n\r\n", 4, Code::InvalidRequest),
        ("5\r\nhello world\r\n0\r\n\r\n", 5, Code::InvalidRequest),
        ("ffffffffffffffff\r\n", 5, Code::InvalidRequest),
        ("0\r\n\r\nmore", 0, Code::InvalidRequest),
        ("0\r\nno line\r\n\r\n", 0, Code::InvalidRequest),
        ("\r\n", 0, Code::InvalidRequest),
    ] {
        assert_eq!(read(body, promised), Err(code), "{body:?}");
    }
    assert_eq!(read(&"1".repeat(1000), 1), Err(Code::InvalidRequest));
    let long = format!("0\r\n{}", "a:b\r\n".repeat(2000));
    assert_eq!(read(&long, 0), Err(Code::InvalidRequest));
}

proptest! {
    /// However it is cut, a body holds the same.
    #[test]
    fn cut_anywhere(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..8),
        pieces in prop::collection::vec(1usize..40, 1..20),
    ) {
        let mut body = Vec::new();
        for chunk in &chunks {
            body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            body.extend_from_slice(chunk);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"0\r\na:b\r\n\r\n");
        let all = chunks.concat();
        let chunked = Chunked::new(Payload::UnsignedChunks, None, all.len() as u64);
        let (data, trailer) = read(chunked, &body, &pieces).unwrap();
        prop_assert_eq!(data, all);
        prop_assert_eq!(trailer, vec![("a".to_owned(), "b".to_owned())]);
    }

    #[test]
    fn anything_is_taken(body: Vec<u8>, promised in 0u64..100, signed: bool) {
        let (payload, signer) = match signed {
            true => (payload(true), Some(signer(true))),
            false => (Payload::UnsignedChunks, None),
        };
        let _ = read(Chunked::new(payload, signer, promised), &body, &[5]);
    }
}
