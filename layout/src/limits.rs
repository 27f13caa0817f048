//! Every limit of the store, and how they relate. Relations are asserted when this compiles.

/// Default size of a device block, in bytes.
pub const BLOCK_SIZE: u32 = 4096;
/// Smallest block size that a device may be formatted with, in bytes.
pub const BLOCK_SIZE_MIN: u32 = 512;
/// Bytes of payload that one CRC covers: what a ranged read must verify at the least.
pub const PIECE_SIZE: u32 = 16 * 1024;
/// Largest payload of one shard record, in bytes.
pub const SHARD_SIZE_MAX: u32 = 4 * 1024 * 1024;
/// Largest payload of one journal batch record, in bytes.
pub const JOURNAL_BATCH_MAX: u32 = 1024 * 1024;
/// Largest object that rides in the journal, in bytes.
pub const INLINE_MAX: u32 = 32 * 1024;
/// Data bytes of a full stripe, unless the class asks otherwise.
pub const STRIPE_DATA: u32 = 4 * 1024 * 1024;
/// Shard lengths are a multiple of this many bytes (the wide codec wants even lengths; cache lines like 64).
pub const SHARD_ALIGN: u32 = 64;
/// Most shards (k + m) of a stripe.
pub const SHARDS_MAX: usize = 64;
/// Default extent size, in bytes.
pub const EXTENT_SIZE: u64 = 16 * 1024 * 1024;
/// Smallest extent size, in bytes.
pub const EXTENT_SIZE_MIN: u64 = 1024 * 1024;
/// Largest extent size, in bytes.
pub const EXTENT_SIZE_MAX: u64 = 1024 * 1024 * 1024;
/// Copies of the superblock on a device.
pub const SUPERBLOCK_COPIES: usize = 4;
/// Copies that must agree before a superblock is believed.
pub const SUPERBLOCK_QUORUM: usize = 2;
/// Least distance between copies of the superblock, in bytes.
pub const SUPERBLOCK_STRIDE_MIN: u64 = 16 * 1024 * 1024;
/// Bytes kept free for a copy of the superblock at the start of its extent.
pub const SUPERBLOCK_ZONE: u64 = 64 * 1024;
/// Smallest device, in bytes: room for the four copies.
pub const DEVICE_SIZE_MIN: u64 = 64 * 1024 * 1024;
/// Longest object key, in bytes of UTF-8.
pub const KEY_MAX: usize = 1024;
/// Longest and shortest bucket name, in bytes.
pub const BUCKET_MIN: usize = 3;
/// Longest bucket name, in bytes.
pub const BUCKET_MAX: usize = 63;
/// Largest attributes of a manifest, in bytes: what S3 wants remembered of an object.
pub const ATTRIBUTES_MAX: usize = 8 * 1024;
/// Stripes named in a manifest's root; more make it a tree.
pub const MANIFEST_STRIPES_MAX: usize = 256;
/// Largest control part of a frame, in bytes.
pub const FRAME_CONTROL_MAX: u32 = 256 * 1024;
/// Largest payload of a frame, in bytes.
pub const FRAME_PAYLOAD_MAX: u32 = 4 * 1024 * 1024;
/// Entries in one page of a listing, at most.
pub const LIST_PAGE_MAX: u32 = 1000;
/// Requests that one connection may have under way.
pub const CONNECTION_REQUESTS_MAX: usize = 256;

const _: () = assert!(SHARD_SIZE_MAX <= FRAME_PAYLOAD_MAX);
const _: () = assert!(STRIPE_DATA <= SHARD_SIZE_MAX, "a 1+m stripe is one shard");
const _: () = assert!(INLINE_MAX < JOURNAL_BATCH_MAX / 4);
const _: () = assert!(SUPERBLOCK_STRIDE_MIN > 10 * 1024 * 1024);
const _: () = assert!(DEVICE_SIZE_MIN >= SUPERBLOCK_STRIDE_MIN * SUPERBLOCK_COPIES as u64);
const _: () = assert!(2 * SUPERBLOCK_QUORUM >= SUPERBLOCK_COPIES);
const _: () = assert!(PIECE_SIZE.is_multiple_of(BLOCK_SIZE));
const _: () = assert!(SHARD_SIZE_MAX as u64 * 2 < EXTENT_SIZE);
const _: () = assert!(
    MANIFEST_STRIPES_MAX * (64 + 4 * SHARDS_MAX) + ATTRIBUTES_MAX + 4 * KEY_MAX
        < FRAME_CONTROL_MAX as usize,
    "the largest manifest fits a control part"
);
