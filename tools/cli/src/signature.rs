//! What a device holds already: the marks that filesystems, partition tables, volume managers, RAID and
//! Ashlar itself leave, at the places where they leave them.
//!
//! Our own table rather than a library's: it must also say "something, but nothing known", for a device
//! is only blank if the places where things begin and end are zeros.

use ashlar_layout::superblock::{SUPERBLOCK_LEN, Superblock, SuperblockError};

/// Bytes at the start and at the end of a device that must be zeros for it to be blank.
pub const ZONE: usize = 1 << 20;

/// A mark: a name, where it is, and the bytes of it.
struct Mark {
    what: &'static str,
    offset: usize,
    bytes: &'static [u8],
}

const fn mark(what: &'static str, offset: usize, bytes: &'static [u8]) -> Mark {
    Mark {
        what,
        offset,
        bytes,
    }
}

/// Marks at fixed places from the start. The more telling ones first: an ext4 filesystem
/// may have a boot sector's mark as well.
const MARKS: &[Mark] = &[
    mark("a LUKS encrypted volume", 0, b"LUKS\xba\xbe"),
    mark(
        "a LUKS encrypted volume (second header)",
        16_384,
        b"SKUL\xba\xbe",
    ),
    mark("a BitLocker volume", 3, b"-FVE-FS-"),
    mark("an LVM physical volume", 536, b"LVM2 001"),
    mark("an LVM physical volume", 24, b"LVM2 001"),
    mark("an LVM physical volume", 1_048, b"LVM2 001"),
    mark("an LVM physical volume", 1_560, b"LVM2 001"),
    mark("a Linux RAID member (md 1.1)", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    mark(
        "a Linux RAID member (md 1.2)",
        4_096,
        &[0xfc, 0x4e, 0x2b, 0xa9],
    ),
    mark("a Ceph BlueStore device", 0, b"bluestore block device"),
    mark("an ext2, ext3 or ext4 filesystem", 1_080, &[0x53, 0xef]),
    mark("an XFS filesystem", 0, b"XFSB"),
    mark("a Btrfs filesystem", 65_600, b"_BHRfS_M"),
    mark(
        "a bcache device",
        4_120,
        &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca],
    ),
    mark(
        "a bcachefs filesystem",
        4_120,
        &[0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9],
    ),
    mark("an F2FS filesystem", 1_024, &[0x10, 0x20, 0xf5, 0xf2]),
    mark("a GFS2 filesystem", 65_536, &[0x01, 0x16, 0x19, 0x70]),
    mark("an OCFS2 filesystem", 8_192, b"OCFSV2"),
    mark("a NILFS2 filesystem", 1_030, &[0x34, 0x34]),
    mark("a ReiserFS filesystem", 65_588, b"ReIsEr"),
    mark("a JFS filesystem", 32_768, b"JFS1"),
    mark("an NTFS filesystem", 3, b"NTFS    "),
    mark("an exFAT filesystem", 3, b"EXFAT   "),
    mark("a FAT filesystem", 82, b"FAT32   "),
    mark("a FAT filesystem", 54, b"FAT16   "),
    mark("a FAT filesystem", 54, b"FAT12   "),
    mark("an HFS+ filesystem", 1_024, b"H+\0\x04"),
    mark("an APFS container", 32, b"NXSB"),
    mark("an ISO 9660 filesystem", 32_769, b"CD001"),
    mark("a UDF filesystem", 32_769, b"BEA01"),
    mark("a Squashfs filesystem", 0, b"hsqs"),
    mark("an EROFS filesystem", 1_024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    mark("swap space", 4_086, b"SWAPSPACE2"),
    mark("a suspended system's memory", 4_086, b"S1SUSPEND"),
    mark("a GPT partition table", 512, b"EFI PART"),
    mark("a GPT partition table", 4_096, b"EFI PART"),
];

/// Where the parts that are looked at come from.
pub struct Sample<'a> {
    /// The first MiB of the device, or all of it.
    pub first: &'a [u8],
    /// The last MiB.
    pub last: &'a [u8],
    /// Bytes of the device.
    pub size: u64,
    /// What stands in the places of the second to fourth copies of our superblock.
    pub copies: &'a [Vec<u8>],
}

/// What the device holds; none if it is blank.
pub fn find(sample: &Sample<'_>) -> Option<String> {
    let own = std::iter::once(sample.first)
        .chain(sample.copies.iter().map(Vec::as_slice))
        .find_map(own);
    own.or_else(|| {
        MARKS
            .iter()
            .find_map(|m| at(sample.first, m).then(|| m.what.to_owned()))
    })
    .or_else(|| zfs(sample.first))
    .or_else(|| from_the_end(sample))
    .or_else(|| partitions(sample.first))
    .or_else(|| not_blank(sample))
}

fn at(bytes: &[u8], mark: &Mark) -> bool {
    bytes
        .get(mark.offset..)
        .is_some_and(|rest| rest.starts_with(mark.bytes))
}

/// Our own label, of this version or another.
fn own(bytes: &[u8]) -> Option<String> {
    match Superblock::decode(bytes.get(..SUPERBLOCK_LEN)?) {
        Ok(superblock) => Some(format!(
            "an Ashlar label: device {} of cluster {}",
            superblock.device, superblock.cluster
        )),
        Err(SuperblockError::NewerVersion {
            got_major,
            got_minor,
            ..
        }) => Some(format!(
            "an Ashlar label of the newer format {got_major}.{got_minor}"
        )),
        Err(SuperblockError::Blank | SuperblockError::Foreign { .. }) => None,
        Err(SuperblockError::Short { .. }) => None,
        Err(why) => Some(format!("an Ashlar label that is damaged ({why})")),
    }
}

/// ZFS: no mark at a fixed place, but uberblocks every KiB in the second half of its first label.
fn zfs(first: &[u8]) -> Option<String> {
    const MAGIC: u64 = 0x00ba_b10c;
    let label = first.get(128 << 10..256 << 10)?;
    let found = label.chunks_exact(1024).any(|slot| {
        let magic: [u8; 8] = slot.first_chunk().copied().unwrap_or_default();
        u64::from_le_bytes(magic) == MAGIC || u64::from_be_bytes(magic) == MAGIC
    });
    found.then(|| "a ZFS pool member".to_owned())
}

/// What stands at the end of the device: backups, and RAID marks of the older kind.
fn from_the_end(sample: &Sample<'_>) -> Option<String> {
    let last = sample.last;
    let start = sample.size.checked_sub(last.len() as u64)?;
    let at = |offset: u64, bytes: &[u8]| {
        let from = offset
            .checked_sub(start)
            .and_then(|from| usize::try_from(from).ok());
        from.and_then(|from| last.get(from..))
            .is_some_and(|rest| rest.starts_with(bytes))
    };
    const MD: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];
    let sectors = sample.size / 512;
    let md_0_90 = (sample.size & !0xffff).checked_sub(0x1_0000);
    let md_1_0 = sectors.checked_sub(16).map(|s| (s & !7) * 512);
    let table: [(&str, Option<u64>, &[u8]); 6] = [
        (
            "the backup of a GPT partition table",
            sample.size.checked_sub(512),
            b"EFI PART",
        ),
        (
            "the backup of a GPT partition table",
            sample.size.checked_sub(4096),
            b"EFI PART",
        ),
        ("a Linux RAID member (md 0.90)", md_0_90, MD),
        ("a Linux RAID member (md 1.0)", md_1_0, MD),
        (
            "an Intel RAID member",
            sample.size.checked_sub(1024),
            b"Intel Raid ISM Cfg Sig. ",
        ),
        (
            "a DDF RAID member",
            sample.size.checked_sub(512),
            &[0xde, 0x11, 0xde, 0x11],
        ),
    ];
    table
        .iter()
        .find(|(_, offset, bytes)| offset.is_some_and(|offset| at(offset, bytes)))
        .map(|(what, _, _)| (*what).to_owned())
}

/// A boot sector: with partitions, or with code alone.
fn partitions(first: &[u8]) -> Option<String> {
    if first.get(510..512)? != [0x55, 0xaa] {
        return None;
    }
    let used = first
        .get(446..510)?
        .chunks_exact(16)
        .any(|entry| entry.get(4) != Some(&0));
    let what = if used {
        "an MBR partition table"
    } else {
        "a boot sector"
    };
    Some(what.to_owned())
}

fn not_blank(sample: &Sample<'_>) -> Option<String> {
    let nonzero = |bytes: &[u8]| bytes.iter().position(|b| *b != 0);
    let start = sample.size.saturating_sub(sample.last.len() as u64);
    let at = nonzero(sample.first)
        .map(|at| at as u64)
        .or_else(|| nonzero(sample.last).map(|at| start + at as u64))?;
    Some(format!(
        "data of an unknown kind (the first byte that is not zero is at {at})"
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SIZE: usize = 64 << 20;

    fn look(device: &[u8]) -> Option<String> {
        let copies: Vec<Vec<u8>> = [16, 32, 48]
            .iter()
            .map(|m| device[m << 20..][..SUPERBLOCK_LEN].to_vec())
            .collect();
        find(&Sample {
            first: &device[..ZONE],
            last: &device[device.len() - ZONE..],
            size: device.len() as u64,
            copies: &copies,
        })
    }

    #[test]
    fn a_blank_device_is_blank() {
        assert_eq!(look(&vec![0; SIZE]), None);
    }

    #[test]
    fn every_mark_is_found() {
        for mark in MARKS {
            let mut device = vec![0; SIZE];
            device[mark.offset..][..mark.bytes.len()].copy_from_slice(mark.bytes);
            assert_eq!(look(&device).as_deref(), Some(mark.what));
        }
        for (offset, bytes, want) in [
            (510, &[0x55, 0xaa][..], "a boot sector"),
            (
                SIZE - 512,
                b"EFI PART",
                "the backup of a GPT partition table",
            ),
            (
                SIZE - 8192,
                &[0xfc, 0x4e, 0x2b, 0xa9],
                "a Linux RAID member (md 1.0)",
            ),
            (
                SIZE - 65_536,
                &[0xfc, 0x4e, 0x2b, 0xa9],
                "a Linux RAID member (md 0.90)",
            ),
            (
                (128 << 10) + 7 * 1024,
                &[0x0c, 0xb1, 0xba, 0],
                "a ZFS pool member",
            ),
        ] {
            let mut device = vec![0; SIZE];
            device[offset..][..bytes.len()].copy_from_slice(bytes);
            assert_eq!(look(&device).as_deref(), Some(want), "at {offset}");
        }
        let mut device = vec![0; SIZE];
        device[510..512].copy_from_slice(&[0x55, 0xaa]);
        device[450] = 0x83;
        assert_eq!(look(&device).as_deref(), Some("an MBR partition table"));
    }

    #[test]
    fn any_byte_at_either_end_is_something() {
        for at in [0, 1000, ZONE - 1, SIZE - ZONE, SIZE - 1] {
            let mut device = vec![0; SIZE];
            device[at] = 1;
            let found = look(&device).unwrap();
            assert!(found.contains(&format!("is at {at})")), "{found}");
        }
    }

    #[test]
    fn our_own_label_is_found_on_any_copy_and_in_any_state() {
        use ashlar_layout::ids::{ClusterId, DeviceId, DeviceNo, NodeId};
        let params = ashlar_node_engine::format::FormatParams {
            cluster: ClusterId([1; 16]),
            device: DeviceId([2; 16]),
            device_size: SIZE as u64,
            block_size: 4096,
            extent_size: 16 << 20,
            node: NodeId(1),
            device_no: DeviceNo(1),
            labels: Default::default(),
            first_number: 1,
        };
        let plan = ashlar_node_engine::format::format_plan(&params).unwrap();
        for (offset, bytes) in &plan {
            let mut device = vec![0; SIZE];
            device[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
            let found = look(&device).unwrap();
            assert!(found.contains(&params.device.to_string()), "{found}");
            device[*offset as usize + 200] ^= 1;
            let found = look(&device).unwrap();
            assert!(found.contains("damaged"), "{found}");
        }
    }
}
