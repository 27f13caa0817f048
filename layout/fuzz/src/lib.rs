//! What the fuzz targets do, each for one decoder.
//!
//! A fuzzer does not guess CRCs. So each target decodes its input twice: as it is, and once more with
//! every CRC put right and the place taken from the input itself, so that what lies behind those
//! checks is reached. Whatever is then accepted must come back the same when it is encoded and decoded.
//!
//! From `layout/fuzz`, with <https://github.com/rust-fuzz/cargo-fuzz>:
//!
//! ```sh
//! mkdir -p corpus/record
//! RUSTC_BOOTSTRAP=1 cargo fuzz run record corpus/record seeds/record -- -max_total_time=60
//! ```
//!
//! The seeds are made by `ASHLAR_GOLDEN=write cargo test -p ashlar-layout --test format`, with the golden images.

use ashlar_layout::checkpoint::Checkpoint;
use ashlar_layout::control;
use ashlar_layout::crc::crc32;
use ashlar_layout::extent::ExtentHeader;
use ashlar_layout::footer::{Footer, Trailer, footer_len, trailer_at};
use ashlar_layout::frame::FrameHeader;
use ashlar_layout::ids::{DeviceId, ExtentNo, Incarnation, PartitionId};
use ashlar_layout::journal;
use ashlar_layout::manifest::{Manifest, Stripe};
use ashlar_layout::page::{GRAIN, Page, PageBuilder, PageName, RunId, Spot, claimed_grains};
use ashlar_layout::record::{RecordHeader, cover, header_len, piece_count};
use ashlar_layout::root::{ObjectValue, Root, decode_pins, encode_pins};
use ashlar_layout::stamp::{HEAD_LEN, Place};
use ashlar_layout::superblock::{CheckpointRef, Superblock};
use ashlar_layout::version::ENTRY_VERSION_LOCKS;

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Puts the CRC at `at` right, over the first `len` bytes.
fn reseal(bytes: &mut [u8], len: usize, at: usize) -> Option<()> {
    bytes.get_mut(at..at + 4)?.fill(0);
    let crc = crc32(bytes.get(..len)?);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    Some(())
}

/// Puts the CRCs of a table of `table` bytes and of the head in front of it right, and the magic number.
fn reseal_head(bytes: &mut [u8], magic: &[u8; 8], table: usize) -> Option<()> {
    bytes.get_mut(..8)?.copy_from_slice(magic);
    let crc = crc32(bytes.get(HEAD_LEN..HEAD_LEN.checked_add(table)?)?);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    reseal(bytes, HEAD_LEN, 8)
}

/// Where a head says that it stands.
fn own_place(bytes: &[u8]) -> Option<Place> {
    Some(Place {
        device: DeviceId(number(bytes, 24)?),
        extent: ExtentNo(u32::from_le_bytes(number(bytes, 20)?)),
        incarnation: Some(Incarnation(u64::from_le_bytes(number(bytes, 40)?))),
        address: u64::from_le_bytes(number(bytes, 56)?),
    })
}

const NOWHERE: Place = Place {
    device: DeviceId([0; 16]),
    extent: ExtentNo(0),
    incarnation: None,
    address: 0,
};

pub fn superblock(data: &[u8]) {
    let check = |bytes: &[u8]| {
        if let Ok(superblock) = Superblock::decode(bytes) {
            let again = Superblock::decode(&superblock.encode(superblock.copy));
            assert_eq!(again, Ok(superblock));
        }
    };
    check(data);
    let mut bytes = data.to_vec();
    bytes.resize(4096, 0);
    bytes[..8].copy_from_slice(b"ASHLSUPR");
    let body = crc32(&bytes[64..]);
    bytes[16..20].copy_from_slice(&body.to_le_bytes());
    reseal(&mut bytes, 4096, 8);
    check(&bytes);
}

pub fn extent(data: &[u8]) {
    let _ = ExtentHeader::decode(data, &NOWHERE);
    let mut bytes = data.to_vec();
    bytes.resize(HEAD_LEN, 0);
    reseal_head(&mut bytes, b"ASHLEXTN", 0);
    if let Some(place) = own_place(&bytes)
        && let Ok(header) = ExtentHeader::decode(&bytes, &place)
    {
        assert_eq!(ExtentHeader::decode(&header.encode(), &place), Ok(header));
    }
}

pub fn record(data: &[u8]) {
    let _ = RecordHeader::decode(data, &NOWHERE);
    let mut bytes = data.to_vec();
    let Some(len) = number(&bytes, 92).map(u32::from_le_bytes) else {
        return;
    };
    let table = piece_count(len) as usize * 4;
    if reseal_head(&mut bytes, b"ASHLRECD", table).is_none() {
        reseal_head(&mut bytes, b"ASHLRECD", 0);
    }
    let Some(place) = own_place(&bytes) else {
        return;
    };
    let Ok(header) = RecordHeader::decode(&bytes, &place) else {
        return;
    };
    let room = header_len(header.payload_len, 512) as usize;
    let payload = bytes.get(room..).unwrap_or_default();
    let _ = header.verify_payload(payload);
    let Ok(pieces) = header.pieces(&bytes) else {
        return;
    };
    let _ = pieces.verify(0, payload);
    if let Some(range) = cover(
        header.payload_len,
        u32::from(data[0]) << 8,
        header.payload_len / 2,
    ) {
        let part = payload
            .get(range.start as usize..range.end as usize)
            .unwrap_or_default();
        let _ = pieces.verify(range.start, part);
    }
    let crcs: Vec<u32> = (0..pieces.count() as u32)
        .filter_map(|piece| pieces.crc(piece))
        .collect();
    let mut again = vec![0; room];
    let mut copy = header;
    copy.encode_into(&crcs, &mut again, 512)
        .expect("what was decoded can be encoded");
    assert_eq!(RecordHeader::decode(&again, &place), Ok(header));
    assert!(header.pieces(&again).is_ok());
}

pub fn footer(data: &[u8]) {
    let _ = Footer::decode(data, &NOWHERE);
    let mut bytes = data.to_vec();
    let Some(count) = number(&bytes, 72).map(u32::from_le_bytes) else {
        return;
    };
    if reseal_head(&mut bytes, b"ASHLFOOT", (count as usize).saturating_mul(48)).is_none() {
        reseal_head(&mut bytes, b"ASHLFOOT", 0);
    }
    let Some(place) = own_place(&bytes) else {
        return;
    };
    let Ok(footer) = Footer::decode(&bytes, &place) else {
        return;
    };
    assert_eq!(footer.entries.len(), count as usize);
    let len = footer_len(footer.entries.len(), 512);
    let Some(end) = place.address.checked_add(len) else {
        return;
    };
    assert_eq!(Footer::decode(&footer.encode(end, 512), &place), Ok(footer));
}

pub fn trailer(data: &[u8]) {
    let _ = Trailer::decode(data, &NOWHERE);
    let mut bytes = data.to_vec();
    bytes.resize(HEAD_LEN, 0);
    reseal_head(&mut bytes, b"ASHLTRLR", 0);
    let Some(place) = own_place(&bytes) else {
        return;
    };
    if let Ok(trailer) = Trailer::decode(&bytes, &place) {
        let end = trailer.footer + u64::from(trailer.len);
        assert_eq!(trailer_at(end), place.address);
        assert!(footer_len(trailer.count as usize, 1) <= u64::from(trailer.len));
    }
}

pub fn checkpoint(data: &[u8]) {
    let mut bytes = data.to_vec();
    let Some(table) = bytes.len().checked_sub(HEAD_LEN) else {
        return;
    };
    let named = |bytes: &[u8], place: &Place| CheckpointRef {
        extent: place.extent,
        incarnation: place.incarnation.unwrap_or_default(),
        offset: place.address,
        len: bytes.len() as u32,
        crc: crc32(bytes),
    };
    let Some(place) = own_place(&bytes) else {
        return;
    };
    let _ = Checkpoint::decode(&bytes, place.device, &named(&bytes, &place));
    reseal_head(&mut bytes, b"ASHLCKPT", table);
    let Some(place) = own_place(&bytes) else {
        return;
    };
    let Ok(checkpoint) = Checkpoint::decode(&bytes, place.device, &named(&bytes, &place)) else {
        return;
    };
    let (again, named) = checkpoint.encode(512);
    assert_eq!(
        Checkpoint::decode(&again, place.device, &named),
        Ok(checkpoint)
    );
}

pub fn entry(data: &[u8]) {
    let check = |bytes: &[u8]| {
        let mut at = 0;
        for entry in journal::entries(bytes) {
            let Ok(entry) = entry else { break };
            assert_eq!(&bytes[at..at + entry.len()], entry.bytes);
            assert_eq!(&entry.bytes[entry.inline_offset()..], entry.inline);
            at += entry.len();
            let Ok(op) = entry.op() else { continue };
            let header = entry.header;
            let mut again = Vec::new();
            let encoded = journal::encode_entry(
                &mut again,
                header.seq,
                header.term,
                header.client,
                header.request,
                header.time_ms,
                &op,
                entry.inline,
            );
            let old = entry.version < ENTRY_VERSION_LOCKS;
            if old && matches!(encoded, Err(journal::EntryError::TooLong { .. })) {
                // Manifests and names of versions have grown since: nothing writes such an entry again.
                continue;
            }
            encoded.expect("what was decoded can be encoded");
            let mut again = journal::Entry::decode(&again).expect("and decoded again");
            if old {
                again.header.op_len = header.op_len;
            }
            assert_eq!((again.op(), again.header), (Ok(op), header));
        }
    };
    check(data);
    let mut bytes = data.to_vec();
    let (Some(op), Some(inline)) = (number(data, 48), number(data, 52)) else {
        return;
    };
    let [op, inline] = [op, inline].map(|len| u32::from_le_bytes(len) as usize);
    bytes[..4].copy_from_slice(b"ASHJ");
    reseal(&mut bytes, 64 + op + inline, 4);
    check(&bytes);
}

pub fn frame(data: &[u8]) {
    let mut bytes = [0; 64];
    let len = data.len().min(64);
    bytes[..len].copy_from_slice(&data[..len]);
    let _ = FrameHeader::decode(&bytes);
    bytes[..4].copy_from_slice(b"ASHF");
    reseal(&mut bytes, 64, 4);
    if let Ok(header) = FrameHeader::decode(&bytes) {
        assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
        let rest = &data[len..];
        let _ = header.verify_control(rest);
        let _ = header.verify_payload(rest);
        assert!(header.frame_len() <= 64 + (256 << 10) + (4 << 20));
    }
}

/// What a control part decodes to is encoded to the same bytes: there is one encoding of each value.
macro_rules! control {
    ($name:ident, $type:ty) => {
        pub fn $name(data: &[u8]) {
            if let Ok(value) = control::decode::<$type>(data) {
                assert_eq!(control::encode(&value), data);
            }
        }
    };
}

control!(request, ashlar_layout::message::Request);
control!(reply, ashlar_layout::message::Reply);
control!(chain, ashlar_layout::message::ChainMessage);

pub fn stripes(data: &[u8]) {
    if let Ok(stripes) = control::decode_stripes(data) {
        assert_eq!(control::encode_stripes(&stripes), data);
        let size = stripes
            .iter()
            .map(|stripe: &Stripe| u64::from(stripe.data_len))
            .sum();
        let body = ashlar_layout::manifest::Body::Stripes(stripes);
        let _ = Manifest::plain(size, 0, body).check();
    }
}

/// Every step on a page stays within it, and its entries make the same page again.
pub fn page(data: &[u8]) {
    let mut bytes = data.to_vec();
    bytes.resize(data.len().clamp(64, 4 * GRAIN).next_multiple_of(GRAIN), 0);
    let _ = claimed_grains(&bytes);
    bytes[..8].copy_from_slice(b"ASHLPAGE");
    let grains = (bytes.len() / GRAIN) as u16;
    bytes[52..54].copy_from_slice(&grains.to_le_bytes());
    let len = bytes.len();
    let fields = (
        number(&bytes, 32),
        number(&bytes, 40),
        number(&bytes, 44),
        number(&bytes, 48),
    );
    let (Some(life), Some(no), Some(partition), Some(grain)) = fields else {
        return;
    };
    let name = PageName {
        device: DeviceId(number(&bytes, 16).unwrap_or_default()),
        partition: PartitionId(u32::from_le_bytes(partition)),
        run: RunId {
            life: u64::from_le_bytes(life),
            no: u32::from_le_bytes(no),
        },
        grain: u32::from_le_bytes(grain),
    };
    let _ = Page::decode_any(&bytes[..], &name);
    reseal(&mut bytes, len, 8);
    let Ok(page) = Page::decode_any(&bytes[..], &name) else {
        return;
    };
    if let Some(extents) = decode_pins(page.raw()) {
        let again = encode_pins(&extents.iter().copied().collect());
        assert_eq!(decode_pins(&again), Some(extents));
    }
    let mut spot = Spot::default();
    let mut builder = PageBuilder::default();
    let mut more = page.first(&mut spot);
    while more {
        let mut found = Spot::default();
        assert!(page.seek(&spot.key, spot.seq, &mut found));
        assert_eq!((&found.key, found.seq), (&spot.key, spot.seq));
        assert!(page.seek_last(&spot.key, spot.seq, &mut found));
        assert_eq!(page.value(&found), page.value(&spot));
        let _ = ObjectValue::brief(page.value(&spot));
        let _ = ObjectValue::inline(page.value(&spot));
        if let Ok(value) = ObjectValue::decode(page.value(&spot)) {
            assert_eq!(ObjectValue::decode(&value.encode()), Ok(value));
        }
        builder.push(&spot.key, spot.seq, spot.kind, page.value(&spot));
        more = page.next(&mut spot);
    }
    if !builder.is_empty() {
        let mut again = Vec::new();
        builder.finish(&name, page.kind(), &mut again);
        let again = Page::decode(again, &name, page.kind()).expect("what was read can be written");
        let mut other = Spot::default();
        let (mut a, mut b) = (page.first(&mut spot), again.first(&mut other));
        while a && b {
            assert_eq!(
                (&spot.key, spot.seq, spot.kind),
                (&other.key, other.seq, other.kind)
            );
            assert_eq!(page.value(&spot), again.value(&other));
            (a, b) = (page.next(&mut spot), again.next(&mut other));
        }
        assert_eq!(a, b);
    }
}

pub fn root(data: &[u8]) {
    let mut bytes = data.to_vec();
    bytes.resize(data.len().max(64), 0);
    bytes[..8].copy_from_slice(b"ASHLROOT");
    let (device, partition) = (number(&bytes, 16), number(&bytes, 48));
    let device = DeviceId(device.unwrap_or_default());
    let partition = PartitionId(u32::from_le_bytes(partition.unwrap_or_default()));
    let _ = Root::decode(&bytes, device, partition);
    let body = bytes.len() as u32 - 64;
    bytes[52..56].copy_from_slice(&body.to_le_bytes());
    let len = bytes.len();
    reseal(&mut bytes, len, 8);
    if let Ok(root) = Root::decode(&bytes, device, partition) {
        let again = root.encode().expect("what was read can be written");
        assert_eq!(Root::decode(&again, device, partition), Ok(root));
    }
}
