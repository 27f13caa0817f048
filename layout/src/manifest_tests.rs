//! What makes sense of manifests, and what makes none.

use crate::ids::{PgId, StripeId};
use crate::limits::{ATTRIBUTES_MAX, INLINE_MAX};
use crate::manifest::{Body, Etag, Manifest, ManifestError, Stripe, shard_len};

fn stripe(k: u8, m: u8, data_len: u32) -> Stripe {
    let shard_crcs = vec![7; usize::from(k) + usize::from(m)];
    Stripe {
        id: StripeId::default(),
        pg: PgId(1),
        k,
        m,
        data_len,
        shard_crcs,
    }
}

fn manifest(size: u64, body: Body) -> Manifest {
    Manifest::plain(size, 0, body)
}

#[test]
fn shard_lengths() {
    assert_eq!(shard_len(1, 4), 64);
    assert_eq!(shard_len(256, 4), 64);
    assert_eq!(shard_len(257, 4), 128);
    assert_eq!(shard_len(4 << 20, 1), 4 << 20);
    assert_eq!(shard_len(0, 0), 0);
    assert_eq!(
        shard_len(u32::MAX, 1),
        u32::MAX,
        "refused by check, but no overflow"
    );
}

#[test]
fn manifests_that_make_sense() {
    manifest(0, Body::Inline).check().unwrap();
    manifest(100, Body::Stripes(vec![stripe(4, 2, 100)]))
        .check()
        .unwrap();
    let two = vec![stripe(4, 2, 1000), stripe(3, 2, 10)];
    manifest(1010, Body::Stripes(two.clone())).check().unwrap();
    manifest(1 << 40, Body::Tree(two.clone())).check().unwrap();
    let uneven = vec![stripe(4, 2, 8), stripe(4, 2, 7), stripe(4, 2, 9)];
    manifest(24, Body::Stripes(uneven)).check().unwrap();
    let bytes = vec![5 << 20, 7];
    let parts = Body::Parts { nodes: two, bytes };
    manifest((5 << 20) + 7, parts).check().unwrap();
}

#[test]
fn parts_that_make_no_sense() {
    use ManifestError as E;
    let nodes = |n| vec![stripe(4, 2, 1000); n];
    let check = |size, nodes, bytes| manifest(size, Body::Parts { nodes, bytes }).check();
    let (expected, got) = (2, 1);
    assert_eq!(
        check(7, nodes(2), vec![7]),
        Err(E::NodeCount { expected, got })
    );
    assert_eq!(
        check(7, nodes(2), vec![7, 0]),
        Err(E::NodeEmpty { node: 1 })
    );
    let (expected, got) = (8, 7);
    assert_eq!(check(8, nodes(1), vec![7]), Err(E::Size { expected, got }));
    let over = check(8, nodes(2), vec![u64::MAX, 9]);
    assert!(matches!(over, Err(E::Size { got: u64::MAX, .. })));
    assert_eq!(
        check(257, nodes(257), vec![1; 257]),
        Err(E::StripeCount { got: 257 })
    );
    assert_eq!(check(0, nodes(0), vec![]), Err(E::StripeCount { got: 0 }));
}

#[test]
fn the_nodes_of_a_tree_may_differ() {
    let nodes = vec![stripe(4, 2, 70), stripe(3, 2, 4000), stripe(4, 2, 90)];
    manifest(1 << 40, Body::Tree(nodes.clone()))
        .check()
        .unwrap();
    let mut bad = nodes.clone();
    bad[1].data_len = 0;
    let error = manifest(1 << 40, Body::Tree(bad)).check();
    assert_eq!(error, Err(ManifestError::StripeLength { got: 0 }));
    let many = manifest(1 << 40, Body::Tree(vec![stripe(4, 2, 1); 257])).check();
    assert_eq!(many, Err(ManifestError::StripeCount { got: 257 }));
}

#[test]
fn attributes_are_bounded() {
    let mut manifest = manifest(0, Body::Inline);
    manifest.attributes = vec![7; ATTRIBUTES_MAX];
    manifest.check().unwrap();
    manifest.attributes.push(7);
    let got = ATTRIBUTES_MAX + 1;
    assert_eq!(manifest.check(), Err(ManifestError::Attributes { got }));
}

#[test]
fn etags_as_s3_writes_them() {
    let mut etag = Etag::NONE;
    assert!(etag.is_none());
    etag.md5[0] = 0xa5;
    etag.md5[15] = 0x0f;
    assert_eq!(etag.to_string(), "a500000000000000000000000000000f");
    etag.parts = 12;
    assert_eq!(etag.to_string(), "a500000000000000000000000000000f-12");
    assert!(!etag.is_none());
}

#[test]
fn what_stays_is_not_freed() {
    let named = |attempt| Stripe {
        id: StripeId { writer: 1, attempt },
        ..stripe(4, 2, 8)
    };
    let body = |attempts: &[u64]| Body::Stripes(attempts.iter().map(|a| named(*a)).collect());
    assert_eq!(body(&[1, 2]).without(&body(&[3])), Some(body(&[1, 2])));
    assert_eq!(body(&[1, 2, 3]).without(&body(&[2])), Some(body(&[1, 3])));
    assert_eq!(body(&[1, 2]).without(&body(&[2, 1])), None);
    assert_eq!(body(&[1]).without(&Body::Inline), Some(body(&[1])));
    assert_eq!(Body::Inline.without(&body(&[1])), Some(Body::Inline));
    let parts = |attempts: &[u64]| Body::Parts {
        nodes: body(attempts).stripes().to_vec(),
        bytes: attempts.iter().map(|a| a * 100).collect(),
    };
    let rest = parts(&[1, 2, 3]).without(&body(&[2]));
    assert_eq!(rest, Some(parts(&[1, 3])));
    assert_eq!(parts(&[1, 2]).without(&parts(&[1, 2])), None);
}

#[test]
fn manifests_that_make_none() {
    use ManifestError as E;
    let stripes = |size, stripes| manifest(size, Body::Stripes(stripes)).check();
    assert_eq!(stripes(0, vec![]), Err(E::StripeCount { got: 0 }));
    assert_eq!(
        stripes(257, vec![stripe(4, 2, 1); 257]),
        Err(E::StripeCount { got: 257 })
    );
    assert_eq!(
        stripes(9, vec![stripe(0, 2, 9)]),
        Err(E::Class { k: 0, m: 2 })
    );
    assert_eq!(
        stripes(9, vec![stripe(63, 2, 9)]),
        Err(E::Class { k: 63, m: 2 })
    );
    assert_eq!(
        stripes(9, vec![stripe(4, 2, 0)]),
        Err(E::StripeLength { got: 0 })
    );
    assert_eq!(
        stripes(9, vec![stripe(4, 2, u32::MAX)]),
        Err(E::StripeLength { got: u32::MAX })
    );
    assert_eq!(
        stripes(9, vec![stripe(4, 2, 8)]),
        Err(E::Size {
            expected: 9,
            got: 8
        })
    );
    let mut short = stripe(4, 2, 8);
    short.shard_crcs.pop();
    assert_eq!(
        stripes(8, vec![short]),
        Err(E::Checksums {
            expected: 6,
            got: 5
        })
    );
    let most = u64::from(INLINE_MAX);
    let inline = manifest(most + 1, Body::Inline).check();
    assert_eq!(inline, Err(E::InlineLength { got: most + 1 }));
}
