//! wincode's bytes are those of bincode 1.3.3, whose format ours is said to be.

use ashlar_layout::control;
use ashlar_layout::manifest::{Body, Manifest, Op, Stripe};
use ashlar_layout::message::{ChainMessage, ErrorCode, FindingKind, Reply, Request};
use proptest::prelude::*;

use crate::random;
use crate::samples::*;

/// The value's bytes, which are bincode's too, and are read back by both.
macro_rules! agree {
    ($value:expr, $type:ty) => {{
        let value: &$type = $value;
        let ours = control::encode(value);
        assert_eq!(ours, bincode::serialize(value).unwrap(), "{value:?}");
        assert_eq!(&bincode::deserialize::<$type>(&ours).unwrap(), value);
        assert_eq!(&control::decode::<$type>(&ours).unwrap(), value);
        ours
    }};
}

/// The samples are one of each variant: their tags count up, and the next tag is unknown.
fn tags(encoded: Vec<Vec<u8>>) -> u32 {
    let mut tags: Vec<u32> = encoded
        .iter()
        .map(|b| u32::from_le_bytes(b[..4].try_into().unwrap()))
        .collect();
    tags.dedup();
    let count = tags.len() as u32;
    assert_eq!(tags, (0..count).collect::<Vec<_>>());
    count
}

#[test]
fn requests_are_as_bincode_has_them() {
    let next = tags(requests().iter().map(|m| agree!(m, Request)).collect());
    let mut bytes = vec![0; 200];
    bytes[..4].copy_from_slice(&next.to_le_bytes());
    let error = control::decode::<Request>(&bytes).unwrap_err().to_string();
    assert!(error.contains("tag"), "a variant has no sample: {error}");
}

#[test]
fn replies_are_as_bincode_has_them() {
    let next = tags(replies().iter().map(|m| agree!(m, Reply)).collect());
    let mut bytes = vec![0; 200];
    bytes[..4].copy_from_slice(&next.to_le_bytes());
    let error = control::decode::<Reply>(&bytes).unwrap_err().to_string();
    assert!(error.contains("tag"), "a variant has no sample: {error}");
}

#[test]
fn chain_messages_are_as_bincode_has_them() {
    for message in chain_messages() {
        agree!(&message, ChainMessage);
    }
    tags(
        chain_messages()
            .iter()
            .map(|m| control::encode(&m.body))
            .collect(),
    );
}

#[test]
fn ops_are_as_bincode_has_them() {
    let all = ops().into_iter().chain(parting_ops()).chain(locked_ops());
    let all = all.chain(renames().map(|(op, _)| op));
    let all = all.chain(relocations());
    tags(all.map(|op| agree!(&op, Op)).collect());
}

#[test]
fn numbers_of_codes_stand() {
    // Scripts and other versions rely on these numbers: new ones go to the end.
    let tag = |bytes: Vec<u8>| u32::from_le_bytes(bytes[..4].try_into().unwrap());
    assert_eq!(tag(agree!(&ErrorCode::BadFrame, ErrorCode)), 0);
    assert_eq!(tag(agree!(&ErrorCode::NotFound, ErrorCode)), 6);
    assert_eq!(tag(agree!(&ErrorCode::Internal, ErrorCode)), 18);
    assert_eq!(tag(agree!(&ErrorCode::OutcomeUnknown, ErrorCode)), 19);
    assert_eq!(tag(agree!(&ErrorCode::NotHead, ErrorCode)), 20);
    assert_eq!(tag(agree!(&ErrorCode::BucketSpans, ErrorCode)), 22);
    assert_eq!(tag(agree!(&ErrorCode::Apart, ErrorCode)), 25);
    assert_eq!(tag(agree!(&ErrorCode::NotYet, ErrorCode)), 27);
    let damaged = ErrorCode::Damaged(FindingKind::StaleIncarnation);
    assert_eq!(agree!(&damaged, ErrorCode), [26, 0, 0, 0, 8, 0, 0, 0]);
    for (number, kind) in (0..).zip(FindingKind::ALL) {
        assert_eq!(tag(agree!(&kind, FindingKind)), number);
    }
}

proptest! {
    #[test]
    fn random_ones_too(request in random::request(), stripes in random::stripes()) {
        agree!(&request, Request);
        agree!(&stripes, Vec<Stripe>);
        let manifest = Manifest::plain(1, 2, Body::Tree(stripes));
        agree!(&Reply::Committed { seq: ashlar_layout::ids::Seq(3), displaced: Some(manifest) }, Reply);
    }
}
