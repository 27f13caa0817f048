//! Pages and roots of an index: golden images, damage, forgery, and random entries.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::PathBuf;

use ashlar_layout::control::ControlError;
use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{DeviceId, PartitionId, PgId, Seq, StripeId, Term};
use ashlar_layout::limits::{INLINE_MAX, MANIFEST_STRIPES_MAX};
use ashlar_layout::lock::{Lock, Retention, RetentionMode};
use ashlar_layout::manifest::{Body, Etag, Manifest, Stripe, VersionTag};
use ashlar_layout::page::{
    Child, EntryKind, GRAIN, INDEX_KEY_MAX, INDEX_VALUE_MAX, PAGE_MAX, PAGE_TARGET, Page,
    PageBuilder, PageFault, PageKind, PageName, RunId, Spot, claimed_grains, seal_raw,
};
use ashlar_layout::root::{
    AttachmentRecord, Chunk, InlinePlace, ObjectBrief, ObjectValue, Root, RootError, RunRecord,
    Section, Window, decode_pins, encode_pins, place,
};
use proptest::prelude::*;

const DEVICE: DeviceId = DeviceId(*b"device-0123456\xff\x01");
const PARTITION: PartitionId = PartitionId(9);
const NAME: PageName = PageName {
    device: DEVICE,
    partition: PARTITION,
    run: RunId {
        life: 0x0102_0304_0506,
        no: 77,
    },
    grain: 515,
};

type Entry = (Vec<u8>, u64, EntryKind, Vec<u8>);

fn compared(name: &str, today: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name);
    if std::env::var_os("ASHLAR_GOLDEN").is_some_and(|what| what == "write") {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, today).unwrap();
    }
    let image = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(image == today, "{name}: the format has changed");
    image
}

fn value(n: u64) -> ObjectValue {
    let stripe = Stripe {
        id: StripeId {
            writer: 0x1111,
            attempt: n,
        },
        pg: PgId(3),
        k: 4,
        m: 2,
        data_len: 4096,
        shard_crcs: (0..6).map(|i| 0xc0c0_0000 + i).collect(),
    };
    let body = if n.is_multiple_of(2) {
        Body::Inline
    } else {
        Body::Stripes(vec![stripe])
    };
    ObjectValue {
        modified_ms: 1_700_000_000_000 + n,
        manifest: Manifest {
            etag: Etag {
                md5: [n as u8; 16],
                parts: n as u16 % 3,
            },
            attributes: vec![n as u8; n as usize % 5],
            ..Manifest::plain(4096, n as u32, body)
        },
        tag: None,
        place: n.is_multiple_of(4).then_some(InlinePlace {
            term: Term(5),
            at: 1 << 30,
            len: 4200,
        }),
        payload: if n % 4 == 2 {
            vec![n as u8; 5]
        } else {
            Vec::new()
        },
    }
}

fn leaf_entries() -> Vec<Entry> {
    let mut entries = vec![(
        b"\x01photos".to_vec(),
        3,
        EntryKind::Bucket,
        7u64.to_le_bytes().to_vec(),
    )];
    for n in 0..75u64 {
        let key = format!("\x02photos\0album/{:02}/å.jpg", n);
        entries.push((
            key.clone().into_bytes(),
            100 + n,
            EntryKind::Object,
            value(n).encode(),
        ));
        if n.is_multiple_of(7) {
            entries.push((key.into_bytes(), 50, EntryKind::Tombstone, Vec::new()));
        }
    }
    entries
}

fn build(entries: &[Entry], kind: PageKind) -> Vec<u8> {
    let mut builder = PageBuilder::default();
    for (key, seq, kind, value) in entries {
        builder.push(key, *seq, *kind, value);
    }
    let grains = builder.grains();
    let mut out = Vec::new();
    builder.finish(&NAME, kind, &mut out);
    assert_eq!(out.len(), usize::from(grains) * GRAIN);
    assert!(builder.is_empty());
    out
}

fn read(page: &Page<&[u8]>) -> Vec<Entry> {
    let mut spot = Spot::default();
    let mut all = Vec::new();
    let mut more = page.first(&mut spot);
    while more {
        let value = page.value(&spot).to_vec();
        all.push((spot.key.clone(), spot.seq, spot.kind, value));
        more = page.next(&mut spot);
    }
    all
}

fn fences() -> Vec<Entry> {
    let child = |n: u32| Child {
        grain: 2 * n,
        grains: 2,
    };
    (0..20u32)
        .map(|n| {
            let value = child(n).encode().to_vec();
            (vec![2, n as u8], u64::MAX, EntryKind::Child, value)
        })
        .collect()
}

fn windows(n: u32) -> Vec<Window> {
    let window = |from: &[u8], to: &[u8]| Window {
        from: from.to_vec(),
        to: to.to_vec(),
    };
    let all = [
        window(b"\x01a", b"\x01b"),
        window(b"\x02a\0key", b"\x02b\0"),
        window(b"\x02c", b""),
    ];
    all[..n as usize % 4].to_vec()
}

fn root() -> Root {
    let chunk = |n: u64| Chunk {
        at: n << 20,
        grains: 200 + n as u16,
    };
    Root {
        device: DEVICE,
        partition: PARTITION,
        generation: 0x1234,
        covered: Seq(0x5678),
        attachment: Some(AttachmentRecord {
            id: RunId { life: 6, no: 2 },
            len: 70_000,
            chunks: vec![chunk(9)],
            pages: Section { grain: 0, pages: 2 },
        }),
        runs: (1..4u32)
            .map(|n| RunRecord {
                id: RunId { life: 6, no: n },
                origin: PartitionId(7 + n),
                level: n as u8,
                entries: 1000 * u64::from(n),
                tombstones: u64::from(n),
                objects: 900,
                embedded: 5000 * u64::from(n),
                placed: 70_000 * u64::from(n),
                first: Seq(10),
                last: Seq(20 + u64::from(n)),
                lowest: b"\x01photos".to_vec(),
                highest: b"\x02photos\0zoo".to_vec(),
                clip: windows(n),
                chunks: (0..u64::from(n)).map(|i| chunk(i + 3)).collect(),
                leaves_end: 180,
                top: Section {
                    grain: 180,
                    pages: 1,
                },
                filter: Section {
                    grain: 182,
                    pages: 3,
                },
                pins: Section {
                    grain: 190,
                    pages: n - 1,
                },
            })
            .collect(),
        versions: false,
    }
}

#[test]
fn golden_pages() {
    let image = compared(
        "tests/golden/index-leaf.v1.bin",
        &build(&leaf_entries(), PageKind::Leaf),
    );
    let page = Page::decode(&image[..], &NAME, PageKind::Leaf).unwrap();
    assert_eq!(read(&page), leaf_entries());
    let image = compared(
        "tests/golden/index-fence.v1.bin",
        &build(&fences(), PageKind::Fence),
    );
    let page = Page::decode(&image[..], &NAME, PageKind::Fence).unwrap();
    assert_eq!(read(&page), fences());
    let raw: Vec<u8> = (0..5000u32).map(|i| (i * 31) as u8).collect();
    let mut image = Vec::new();
    seal_raw(&NAME, PageKind::Filter, &raw, &mut image);
    let image = compared("tests/golden/index-filter.v1.bin", &image);
    let page = Page::decode(&image[..], &NAME, PageKind::Filter).unwrap();
    assert_eq!(page.raw(), raw);
}

#[test]
fn golden_root() {
    let image = compared("tests/golden/index-root.v1.bin", &root().encode().unwrap());
    assert_eq!(Root::decode(&image, DEVICE, PARTITION), Ok(root()));
    let mut padded = image.clone();
    padded.resize(8192, 0);
    assert_eq!(Root::decode(&padded, DEVICE, PARTITION), Ok(root()));
    assert_eq!(root().chunks().count(), 1 + 2 + 3 + 1);
}

/// A program that knows no versions refuses what has any, and reads all else.
#[test]
fn golden_root_of_versions() {
    let versions = Root {
        versions: true,
        ..root()
    };
    let image = compared(
        "tests/golden/index-root.v2.bin",
        &versions.encode().unwrap(),
    );
    assert_eq!(Root::decode(&image, DEVICE, PARTITION), Ok(versions));
    let version = |image: &[u8]| u16::from_le_bytes([image[12], image[13]]);
    assert_eq!(version(&image), 2);
    assert_eq!(version(&root().encode().unwrap()), 1);
}

#[test]
fn fuzz_seeds() {
    let seed = |name: &str, bytes: &[u8]| {
        compared(&format!("fuzz/seeds/{name}"), bytes);
    };
    seed("page/0", &build(&leaf_entries()[..20], PageKind::Leaf));
    seed("page/1", &build(&fences(), PageKind::Top));
    seed("root/0", &root().encode().unwrap());
}

#[test]
fn values() {
    let plain = (0..4).map(value);
    let tagged = (0..4).map(|n| ObjectValue {
        tag: Some(VersionTag {
            id: Seq(n << 40),
            null: n == 1,
            marker: n == 2,
            lock: Lock::NONE,
        }),
        ..value(n)
    });
    let locked = (0..4).map(|n| ObjectValue {
        tag: Some(VersionTag {
            id: Seq(n << 41),
            null: n == 1,
            marker: false,
            lock: Lock {
                retention: (n > 1).then_some(Retention {
                    mode: RetentionMode::Compliance,
                    until_ms: n,
                }),
                hold: (n < 3).then_some(n == 0),
            },
        }),
        ..value(n)
    });
    for (n, value) in plain.chain(tagged).chain(locked).enumerate() {
        let bytes = value.encode();
        assert_eq!(ObjectValue::decode(&bytes), Ok(value.clone()));
        let brief = ObjectBrief {
            modified_ms: value.modified_ms,
            size: value.manifest.size,
            crc: value.manifest.crc,
            etag: value.manifest.etag,
            tag: value.tag,
        };
        assert_eq!(ObjectValue::brief(&bytes), Some(brief));
        assert_eq!(ObjectValue::brief(&bytes[..38]), None);
        let inline = Some((value.place, value.payload.len()));
        assert_eq!(ObjectValue::inline(&bytes), inline);
        let whole = bytes.len() - value.payload.len();
        for cut in 0..whole {
            assert!(ObjectValue::decode(&bytes[..cut]).is_err(), "{n}: {cut}");
        }
    }
}

#[test]
fn the_largest_values_fit_into_a_page() {
    let stripe = Stripe {
        id: StripeId::default(),
        pg: PgId(1),
        k: 62,
        m: 2,
        data_len: 1,
        shard_crcs: vec![7; 64],
    };
    let embedded = ObjectValue {
        payload: vec![7; INLINE_MAX as usize],
        ..value(2)
    };
    let mut striped = value(1);
    striped.manifest.body = Body::Stripes(vec![stripe; MANIFEST_STRIPES_MAX]);
    for value in [embedded, striped] {
        let bytes = value.encode();
        assert!(bytes.len() <= INDEX_VALUE_MAX, "{}", bytes.len());
        assert_eq!(ObjectValue::decode(&bytes), Ok(value));
        let image = build(
            &[(vec![2; INDEX_KEY_MAX], u64::MAX, EntryKind::Object, bytes)],
            PageKind::Leaf,
        );
        assert!(image.len() <= PAGE_MAX);
    }
    let longest = vec![0; INDEX_VALUE_MAX];
    let entry = (vec![2; INDEX_KEY_MAX], u64::MAX, EntryKind::Object, longest);
    let image = build(std::slice::from_ref(&entry), PageKind::Leaf);
    let page = Page::decode(&image[..], &NAME, PageKind::Leaf).unwrap();
    assert_eq!(read(&page), [entry]);
    let too_long = ObjectValue::decode(&vec![0; INDEX_VALUE_MAX + 1]);
    assert!(matches!(too_long, Err(ControlError::TooLong { .. })));
}

#[test]
fn lists_of_extents() {
    let list = |extents: &[u32]| encode_pins(&extents.iter().copied().collect());
    for extents in [
        &[][..],
        &[0],
        &[5],
        &[0, 1, 2],
        &[7, 200, 70_000],
        &[0, u32::MAX],
    ] {
        assert_eq!(decode_pins(&list(extents)).as_deref(), Some(extents));
    }
    let dense: Vec<u32> = (1000..11_000).collect();
    assert_eq!(list(&dense).len(), 2 + 9_999, "a byte for each");
    // Cut in a number, twice the same, and beyond 32 bits.
    assert_eq!(decode_pins(&[0x80]), None);
    assert_eq!(decode_pins(&[5, 0]), None);
    assert_eq!(decode_pins(&[&list(&[u32::MAX])[..], &[1]].concat()), None);
    assert_eq!(decode_pins(&[0xff, 0xff, 0xff, 0xff, 0x7f]), None);
}

#[test]
fn every_flipped_bit_is_noticed() {
    let image = build(&leaf_entries()[..10], PageKind::Leaf);
    for byte in 0..image.len() {
        let mut bytes = image.clone();
        bytes[byte] ^= 1 << (byte % 8);
        assert!(Page::decode_any(&bytes[..], &NAME).is_err(), "byte {byte}");
    }
    let image = root().encode().unwrap();
    for byte in 0..image.len() {
        let mut bytes = image.clone();
        bytes[byte] ^= 1 << (byte % 8);
        let root = Root::decode(&bytes, DEVICE, PARTITION);
        assert!(root.is_err(), "byte {byte}");
    }
}

#[test]
fn torn_stale_and_misdirected_pages_are_recognised() {
    let image = build(&leaf_entries(), PageKind::Leaf);
    let fault = |bytes: &[u8], name: &PageName| Page::decode_any(bytes, name).unwrap_err();
    for cut in [0, 1, 63, 64, 512, GRAIN, GRAIN + 512] {
        let mut bytes = image.clone();
        bytes[cut..].fill(0);
        let torn = fault(&bytes, &NAME);
        assert!(
            matches!(torn, PageFault::BadCrc { .. } | PageFault::Absent { .. }),
            "{torn}"
        );
    }
    assert_eq!(fault(&image[..100], &NAME), PageFault::Length { got: 100 });
    assert_eq!(fault(&[], &NAME), PageFault::Length { got: 0 });
    let others = [
        PageName { grain: 514, ..NAME },
        PageName {
            partition: PartitionId(8),
            ..NAME
        },
        PageName {
            device: DeviceId([1; 16]),
            ..NAME
        },
        PageName {
            run: RunId { no: 78, ..NAME.run },
            ..NAME
        },
        PageName {
            run: RunId {
                life: 1,
                ..NAME.run
            },
            ..NAME
        },
    ];
    for other in others {
        assert_eq!(fault(&image, &other), PageFault::Other { got: NAME });
    }
    let kind = Page::decode(&image[..], &NAME, PageKind::Fence).unwrap_err();
    assert_eq!(kind, PageFault::OtherKind { got: 1 });
}

/// Sets bytes of a page, and puts its CRC right again.
fn forged(image: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = image.to_vec();
    bytes[at..][..value.len()].copy_from_slice(value);
    bytes[8..12].fill(0);
    let crc = crc32(&bytes);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn forged_pages_are_refused() {
    let image = build(&leaf_entries(), PageKind::Leaf);
    let fault =
        |at, value: &[u8]| Page::decode_any(&forged(&image, at, value)[..], &NAME).unwrap_err();
    let newer = PageFault::NewerVersion {
        expected: 1,
        got: 2,
    };
    assert_eq!(fault(12, &[2, 0]), newer);
    assert_eq!(fault(14, &[9, 0]), PageFault::OtherKind { got: 9 });
    for (at, value) in [
        (52, &[1, 0][..]),
        (52, &[0xff, 0xff]),
        (54, &[0, 0]),
        (54, &[0xff, 0xff]),
        (56, &[0xff, 0xff, 0xff, 0x7f]),
        (56, &[0, 0, 0, 0]),
        (64, &[5]),
        (
            65,
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
        ),
        (14, &[2, 0]),
        (14, &[4, 0]),
    ] {
        let got = fault(at, value);
        assert!(
            matches!(got, PageFault::Malformed { .. }),
            "{at} {value:?}: {got}"
        );
    }
    // Out of order, and twice the same.
    let mut entries = leaf_entries();
    entries.swap(3, 4);
    let swapped = Page::decode_any(&build(&entries, PageKind::Leaf)[..], &NAME).map(|_| ());
    assert!(matches!(swapped, Err(PageFault::Malformed { .. })));
    let mut entries = leaf_entries();
    entries[4] = entries[3].clone();
    let twice = Page::decode_any(&build(&entries, PageKind::Leaf)[..], &NAME).map(|_| ());
    assert!(matches!(twice, Err(PageFault::Malformed { .. })));
    // A page that reaches out of its chunk.
    let child = Child {
        grain: 255,
        grains: 2,
    };
    assert_eq!(Child::decode(&child.encode()), None);
    let mut entries = fences();
    entries[3].3 = child.encode().to_vec();
    let outside = Page::decode_any(&build(&entries, PageKind::Fence)[..], &NAME).map(|_| ());
    assert!(matches!(outside, Err(PageFault::Malformed { .. })));
    assert_eq!(claimed_grains(&image), Some(2));
    assert_eq!(claimed_grains(&forged(&image, 52, &[0, 0])), None);
    assert_eq!(claimed_grains(&forged(&image, 52, &[129, 0])), None);
    assert_eq!(claimed_grains(&image[..50]), None);
}

#[test]
fn roots_that_make_no_sense_are_refused() {
    let decode = |root: &Root| Root::decode(&root.encode().unwrap(), DEVICE, PARTITION);
    let changes: [fn(&mut Root); 13] = [
        |root| root.runs[0].chunks[0].grains = 0,
        |root| root.runs[0].chunks[0].grains = 257,
        |root| root.runs[0].top.grain = 256,
        |root| root.runs[1].filter.pages = 5000,
        |root| root.runs[0].leaves_end = 257,
        |root| root.runs[0].first = Seq(1 << 40),
        |root| root.runs[0].pins.pages = 257,
        |root| root.runs[0].lowest = b"\x03".to_vec(),
        |root| root.runs[1].clip[0].to = root.runs[1].clip[0].from.clone(),
        |root| root.runs[1].clip[0].to = root.runs[1].clip[1].from.clone(),
        |root| root.runs[1].clip[0].to.clear(),
        |root| root.runs[1].clip[1].to = vec![9; INDEX_KEY_MAX + 2],
        |root| {
            (root.runs[1].id, root.runs[1].origin) = (root.runs[0].id, root.runs[0].origin);
        },
    ];
    for (n, change) in changes.iter().enumerate() {
        let mut root = root();
        change(&mut root);
        assert!(
            matches!(decode(&root), Err(RootError::Malformed { .. })),
            "{n}"
        );
    }
    let other = Root::decode(&root().encode().unwrap(), DEVICE, PartitionId(1));
    assert!(matches!(other, Err(RootError::Other { .. })));
    let mut huge = root();
    huge.runs[0].chunks = vec![Chunk { at: 1, grains: 1 }; 200_000];
    assert!(matches!(huge.encode(), Err(RootError::Length { .. })));
    let mut bytes = root().encode().unwrap();
    bytes.truncate(100);
    let cut = Root::decode(&bytes, DEVICE, PARTITION);
    assert!(matches!(cut, Err(RootError::Length { .. })));
}

#[test]
fn places_of_pages() {
    let chunks = [
        Chunk {
            at: 1 << 20,
            grains: 255,
        },
        Chunk {
            at: 9 << 20,
            grains: 10,
        },
    ];
    let at = |grain, grains| place(&chunks, Child { grain, grains });
    assert_eq!(at(0, 2), Some(1 << 20));
    assert_eq!(at(253, 2), Some((1 << 20) + 253 * 4096));
    assert_eq!(at(254, 2), None, "the chunk is not that long");
    assert_eq!(at(257, 9), Some((9 << 20) + 4096));
    assert_eq!(at(512, 1), None);
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let key = proptest::collection::vec(0u8..4, 0..12);
    let entry = (
        key,
        0u64..5,
        0u8..3,
        proptest::collection::vec(any::<u8>(), 0..40),
    );
    proptest::collection::vec(entry, 1..90).prop_map(|entries| {
        let mut entries: Vec<Entry> = entries
            .into_iter()
            .map(|(key, seq, kind, value)| {
                let kind =
                    [EntryKind::Tombstone, EntryKind::Object, EntryKind::Bucket][usize::from(kind)];
                (key, seq, kind, value)
            })
            .collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        entries.dedup_by(|a, b| (&a.0, a.1) == (&b.0, b.1));
        entries
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn what_goes_in_comes_out(
        entries in entries(),
        key in proptest::collection::vec(0u8..4, 0..12),
        seq in 0u64..5,
    ) {
        let image = build(&entries, PageKind::Leaf);
        let page = Page::decode(&image[..], &NAME, PageKind::Leaf).unwrap();
        prop_assert_eq!(read(&page), entries.clone());
        let mut spot = Spot::default();
        let behind = |e: &&Entry| e.0.cmp(&key).then(seq.cmp(&e.1)).is_ge();
        let first = entries.iter().find(behind);
        prop_assert_eq!(page.seek(&key, seq, &mut spot), first.is_some());
        if let Some(first) = first {
            prop_assert_eq!((&spot.key, spot.seq, page.value(&spot)), (&first.0, first.1, &first.3[..]));
        }
        let before = |e: &&Entry| e.0.cmp(&key).then(seq.cmp(&e.1)).is_le();
        let last = entries.iter().rev().find(before);
        prop_assert_eq!(page.seek_last(&key, seq, &mut spot), last.is_some());
        let last = last.unwrap_or(&entries[0]);
        prop_assert_eq!((&spot.key, spot.seq), (&last.0, last.1));
    }

    #[test]
    fn any_list_of_extents(extents in proptest::collection::btree_set(any::<u32>(), 0..200)) {
        let bytes = encode_pins(&extents);
        let decoded = decode_pins(&bytes).unwrap();
        prop_assert!(decoded.iter().eq(&extents));
    }

    #[test]
    fn bytes_that_are_a_list_are_its_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..30)) {
        if let Some(extents) = decode_pins(&bytes) {
            prop_assert!(extents.is_sorted_by(|a, b| a < b));
            let again = encode_pins(&extents.iter().copied().collect());
            prop_assert!(again.len() <= bytes.len());
        }
    }

    #[test]
    fn pages_are_as_large_as_they_should_be(lens in proptest::collection::vec(0usize..20_000, 1..60)) {
        let mut builder = PageBuilder::default();
        for (n, len) in lens.iter().enumerate() {
            let key = format!("{n:08}").into_bytes();
            if !builder.fits(&key, *len) {
                break;
            }
            builder.push(&key, 1, EntryKind::Object, &vec![1; *len]);
            let most = PAGE_TARGET.max((lens[0] + 200).next_multiple_of(GRAIN));
            prop_assert!(usize::from(builder.grains()) * GRAIN <= most);
            prop_assert!(most <= PAGE_MAX);
        }
    }
}
