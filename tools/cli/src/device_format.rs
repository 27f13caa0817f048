//! `ashlar device format`: makes a raw device one of ours, unless it is somebody's already.
//!
//! Invariants:
//! - the device is claimed for the whole time (O_EXCL or a file lock): a mounted or served one is refused;
//! - nothing is written before everything has been checked;
//! - without --force only zeros are overwritten;
//! - what a device had that was formatted under the same name before does not come back: all of it is zeroed, and its
//!   numbers go on above all that were ever used.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ashlar_cluster_map::ClusterMap;
use ashlar_layout::extent::Geometry;
use ashlar_layout::ids::{ClusterId, DeviceId, DeviceNo, NodeId};
use ashlar_layout::limits::{BLOCK_SIZE, BLOCK_SIZE_MIN, EXTENT_SIZE};
use ashlar_layout::superblock::{Label, Labels, SUPERBLOCK_LEN};
use ashlar_node_engine::format::{FormatParams, format_plan};
use clap::Args;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock};

use crate::fail::Fail;
use crate::output::{self, human, parse_size};
use crate::process::random;
use crate::rig_files::{Aligned, open_direct};
use crate::signature::{self, Sample, ZONE};

/// Bytes that are zeroed by one call.
const ERASED_AT_ONCE: u64 = 1 << 30;

/// How to format.
#[derive(Args)]
pub struct FormatArgs {
    /// A block device, or a file that stands for one.
    pub path: PathBuf,
    /// Format even if the device holds something: it is lost, and with --device-no erased first.
    #[arg(long)]
    pub force: bool,
    /// Take the identity of this device of the map that --cluster names.
    #[arg(long, value_name = "N")]
    pub device_no: Option<u32>,
    /// Without a map: the cluster that it is for. [default: a new random one]
    #[arg(long, conflicts_with = "device_no")]
    pub cluster_id: Option<ClusterId>,
    /// Bytes of a block, 512 to 4096.
    #[arg(long, default_value_t = BLOCK_SIZE)]
    pub block_size: u32,
    /// Bytes of an extent. [default: 16M, or more on very large devices]
    #[arg(long, value_parser = parse_size)]
    pub extent_size: Option<u64>,
}

/// Who a device is to be.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Of which cluster.
    pub cluster: ClusterId,
    /// Its own name.
    pub device: DeviceId,
    /// For which node.
    pub node: NodeId,
    /// Its number in the map.
    pub no: DeviceNo,
}

/// Formats a device.
pub fn format(args: &FormatArgs, map: Option<&ClusterMap>, json: bool) -> Result<(), Fail> {
    let path = &args.path;
    let (file, size) = claim(path)?;
    let (identity, labels) = identity(args, map, size)?;
    let logical = logical_block(&file, path)?;
    if args.block_size < logical {
        return Err(Fail::Refused(format!(
            "{} has blocks of {logical} bytes: --block-size must be at least that",
            path.display()
        )));
    }
    let extent_size = args
        .extent_size
        .unwrap_or_else(|| Geometry::extent_size_for(args.block_size, size));
    let mut params = params(&identity, labels, size, args.block_size, extent_size);
    if args.device_no.is_some() {
        params.first_number = first_number(SystemTime::now())?;
    }
    let plan = format_plan(&params)
        .map_err(|e| Fail::Refused(format!("{} cannot be formatted: {e}", path.display())))?;
    let found = look(&file, path, size)?;
    if let Some(found) = &found
        && !args.force
    {
        return Err(Fail::Refused(format!(
            "{} holds {found}: nothing was written; if it may be lost, say --force",
            path.display()
        )));
    }
    if found.is_some() && args.device_no.is_some() {
        // It may be the very device that had this name.
        erase(&file, size - size % 4096).map_err(Fail::io("cannot write", path))?;
    }
    write(&file, path, size, &plan)?;
    if json {
        return output::json(&serde_json::json!({
            "path": path, "size": size, "cluster": identity.cluster, "device": identity.device,
            "node": identity.node, "device_no": identity.no, "block_size": args.block_size,
            "extent_size": extent_size, "overwritten": found,
        }));
    }
    output::line(&format!(
        "formatted {} ({}) as device {} of cluster {}",
        path.display(),
        human(size),
        identity.device,
        identity.cluster
    ))
}

/// Formats a file of a rig that has just been made: there is nothing to look for.
pub fn format_image(path: &Path, identity: &Identity) -> Result<(), Fail> {
    let (file, size) = claim(path)?;
    let params = params(identity, Labels::default(), size, BLOCK_SIZE, EXTENT_SIZE);
    let plan = format_plan(&params)
        .map_err(|e| Fail::Refused(format!("{} cannot be formatted: {e}", path.display())))?;
    write(&file, path, size, &plan)
}

/// Whether a device of this size could be formatted with the defaults.
pub fn check_size(size: u64) -> Result<(), Fail> {
    let geometry = Geometry {
        block_size: BLOCK_SIZE,
        extent_size: EXTENT_SIZE,
        device_size: size,
    };
    geometry
        .check()
        .map_err(|e| Fail::Usage(format!("--size {size}: {e}")))
}

fn params(
    identity: &Identity,
    labels: Labels,
    size: u64,
    block_size: u32,
    extent_size: u64,
) -> FormatParams {
    FormatParams {
        cluster: identity.cluster,
        device: identity.device,
        device_size: size,
        block_size,
        extent_size,
        node: identity.node,
        device_no: identity.no,
        labels,
        first_number: 1,
    }
}

/// A number above all that a device has used which was formatted before this time: nobody uses 2^16 in a millisecond.
fn first_number(now: SystemTime) -> Result<u64, Fail> {
    let since = now
        .duration_since(UNIX_EPOCH)
        .map(|since| since.as_millis());
    let ms = since.ok().and_then(|ms| u64::try_from(ms).ok());
    let ms = ms.filter(|ms| (1 << 40..1 << 45).contains(ms));
    let ms = ms.ok_or_else(|| {
        Fail::Refused(
            "this machine's clock is not set: the numbers of a device that takes another one's place begin at the \
             present time, to be above those of that one"
                .into(),
        )
    })?;
    Ok(ms << 16)
}

/// Zeros all of a device. Opening looks for records wherever there may be some, for one whose extents' headers are
/// damaged is read as well: what had this name before would come back.
fn erase(file: &File, size: u64) -> io::Result<()> {
    let progress = output::Progress::bytes("erasing", Some(size));
    let zeros = Aligned::zeroed(ZONE);
    let mut at = 0;
    while at < size {
        let len = ERASED_AT_ONCE.min(size - at);
        let by_device = [
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        ];
        let mut by_device = by_device.into_iter();
        if !by_device.any(|how| fallocate(file, how, at, len).is_ok()) {
            let mut done = 0;
            while done < len {
                let part = (len - done).min(ZONE as u64);
                file.write_all_at(&zeros[..part as usize], at + done)?;
                done += part;
            }
        }
        at += len;
        progress.inc(len);
    }
    progress.finish();
    file.sync_all()
}

fn identity(
    args: &FormatArgs,
    map: Option<&ClusterMap>,
    size: u64,
) -> Result<(Identity, Labels), Fail> {
    let Some(number) = args.device_no else {
        let mut device = DeviceId::default();
        random(&mut device.0)?;
        let mut cluster = args.cluster_id.unwrap_or_default();
        if args.cluster_id.is_none() {
            random(&mut cluster.0)?;
        }
        let identity = Identity {
            cluster,
            device,
            node: NodeId(1),
            no: DeviceNo(1),
        };
        return Ok((identity, Labels::default()));
    };
    let map = map.ok_or_else(|| {
        Fail::Usage("--device-no needs the map: name it with --cluster or ASHLAR_CLUSTER".into())
    })?;
    let device = map
        .device(DeviceNo(number))
        .ok_or_else(|| Fail::Usage(format!("the map has no device {number}")))?;
    if size < device.size {
        return Err(Fail::Refused(format!(
            "{} has {size} bytes; the map says that device {number} has {}",
            args.path.display(),
            device.size
        )));
    }
    let domains = map
        .node(device.node)
        .map(|n| n.domains.clone())
        .unwrap_or_default();
    let label = |text: &str| {
        Label::new(text).map_err(|e| Fail::Refused(format!("the map's domain '{text}': {e}")))
    };
    let labels = Labels {
        region: label(&domains.region)?,
        zone: label(&domains.zone)?,
        rack: label(&domains.rack)?,
        host: label(&format!("node-{}", device.node))?,
    };
    let identity = Identity {
        cluster: map.cluster,
        device: device.id,
        node: device.node,
        no: device.no,
    };
    Ok((identity, labels))
}

/// Opens a device for ourselves alone; gives its size.
pub fn claim(path: &Path) -> Result<(File, u64), Fail> {
    let kind = std::fs::metadata(path)
        .map_err(Fail::io("cannot look at", path))?
        .file_type();
    let busy = || {
        Fail::Refused(format!(
            "{} is busy: it is mounted, or another process has it open; end that first",
            path.display()
        ))
    };
    let file = if kind.is_block_device() {
        let flags = i32::try_from((OFlags::DIRECT | OFlags::EXCL).bits()).unwrap_or_default();
        match File::options()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)
        {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => return Err(busy()),
            result => result.map_err(Fail::io("cannot open", path))?,
        }
    } else if kind.is_file() {
        open_direct(path, true).map_err(Fail::io("cannot open", path))?
    } else {
        return Err(Fail::Refused(format!(
            "{} is neither a block device nor a file",
            path.display()
        )));
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(busy()),
        Err(e) => return Err(Fail::io("cannot lock", path)(e.into())),
    }
    let size = (&file)
        .seek(SeekFrom::End(0))
        .map_err(Fail::io("cannot look at", path))?;
    let block = u64::from(BLOCK_SIZE_MIN);
    if size % block != 0 {
        return Err(Fail::Refused(format!(
            "{} has {size} bytes, which is not a whole number of blocks: make it a multiple of {block} bytes",
            path.display()
        )));
    }
    Ok((file, size))
}

fn logical_block(file: &File, path: &Path) -> Result<u32, Fail> {
    use std::os::unix::fs::MetadataExt;
    let metadata = file.metadata().map_err(Fail::io("cannot look at", path))?;
    if !metadata.file_type().is_block_device() {
        return Ok(512);
    }
    let (major, minor) = (
        rustix::fs::major(metadata.rdev()),
        rustix::fs::minor(metadata.rdev()),
    );
    let folder = format!("/sys/dev/block/{major}:{minor}");
    // A partition's queue is that of the disk, one folder up.
    for queue in ["queue", "../queue"] {
        let name = format!("{folder}/{queue}/logical_block_size");
        if let Ok(text) = std::fs::read_to_string(&name) {
            return Ok(text.trim().parse().unwrap_or(512));
        }
    }
    Ok(512)
}

/// What the device holds; none if it is blank.
pub fn look(file: &File, path: &Path, size: u64) -> Result<Option<String>, Fail> {
    let read = |offset: u64, len: usize| -> Result<Vec<u8>, Fail> {
        // Direct reads begin and end at whole blocks; the device's end may be no multiple of 4096.
        let start = offset - offset % 4096;
        let wanted = (offset - start) as usize + len;
        let mut buffer = Aligned::zeroed(wanted.next_multiple_of(4096));
        let mut done = 0;
        while done < wanted {
            match file.read_at(&mut buffer[done..], start + done as u64) {
                Ok(0) => break,
                Ok(got) => done += got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Fail::io("cannot read", path)(e)),
            }
        }
        let end = done.min(wanted);
        Ok(buffer
            .get((offset - start) as usize..end)
            .unwrap_or_default()
            .to_vec())
    };
    let zone = ZONE.min(usize::try_from(size).unwrap_or(ZONE));
    let first = read(0, zone)?;
    let last = read(size - zone as u64, zone)?;
    let mut copies = Vec::new();
    let mut stride = EXTENT_SIZE;
    for _ in 0..7 {
        for copy in 1..4 {
            if copy * stride + SUPERBLOCK_LEN as u64 <= size {
                copies.push(read(copy * stride, SUPERBLOCK_LEN)?);
            }
        }
        stride *= 2;
    }
    Ok(signature::find(&Sample {
        first: &first,
        last: &last,
        size,
        copies: &copies,
    }))
}

fn write(file: &File, path: &Path, size: u64, plan: &[(u64, Vec<u8>)]) -> Result<(), Fail> {
    let put = |offset: u64, bytes: &[u8]| {
        let mut buffer = Aligned::zeroed(bytes.len());
        buffer.copy_from_slice(bytes);
        file.write_all_at(&buffer, offset)
    };
    let result = || -> io::Result<()> {
        // Marks of what was there would make other programs take the device for theirs. Copies of an
        // older superblock of ours are zeroed by the plan.
        let zeros = Aligned::zeroed(ZONE);
        let whole = size - size % 4096;
        put(0, &zeros)?;
        put(whole.saturating_sub(ZONE as u64), &zeros)?;
        if size > whole {
            // Less than a block at the end: a file. Its cache is dropped by the next direct read.
            let rest = vec![0u8; (size - whole) as usize];
            File::options()
                .write(true)
                .open(path)?
                .write_all_at(&rest, whole)?;
        }
        file.sync_all()?;
        for (offset, bytes) in plan {
            put(*offset, bytes)?;
        }
        file.sync_all()
    };
    result().map_err(Fail::io("cannot write", path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::device_read;

    fn device(folder: &Path, size: u64) -> PathBuf {
        let path = folder.join("device.img");
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    }

    fn arguments(path: &Path, force: bool) -> FormatArgs {
        FormatArgs {
            path: path.to_owned(),
            force,
            device_no: None,
            cluster_id: Some(ClusterId([9; 16])),
            block_size: 4096,
            extent_size: None,
        }
    }

    #[test]
    fn what_is_formatted_can_be_read_and_is_not_formatted_again() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let path = device(folder.path(), 64 << 20);
        format(&arguments(&path, false), None, true).unwrap();
        let (file, _) = claim(&path).unwrap();
        let first = device_read::superblock(&file, &path).unwrap();
        assert_eq!(first.cluster, ClusterId([9; 16]));
        drop(file);
        let error = format(&arguments(&path, false), None, true).unwrap_err();
        assert!(
            error.to_string().contains(&first.device.to_string()),
            "{error}"
        );
        format(&arguments(&path, true), None, true).unwrap();
        let (file, _) = claim(&path).unwrap();
        assert_ne!(
            device_read::superblock(&file, &path).unwrap().device,
            first.device
        );
    }

    #[test]
    fn copies_of_another_stride_do_not_outlive_a_format() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let path = device(folder.path(), 300 << 20);
        let strided = |extent_size| FormatArgs {
            extent_size: Some(extent_size),
            ..arguments(&path, true)
        };
        for extent_size in [16 << 20, 64 << 20, 16 << 20, 32 << 20] {
            format(&strided(extent_size), None, true).unwrap();
            let (file, _) = claim(&path).unwrap();
            let now = device_read::superblock(&file, &path).unwrap();
            assert_eq!(now.extent_size, extent_size);
        }
    }

    #[test]
    fn what_cannot_be_a_device_is_refused() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let path = device(folder.path(), 32 << 20);
        let error = format(&arguments(&path, true), None, true).unwrap_err();
        assert!(error.to_string().contains("takes at least"), "{error}");
        let error = format(&arguments(folder.path(), true), None, true).unwrap_err();
        assert!(error.to_string().contains("neither"), "{error}");
        let error = format(&arguments(&folder.path().join("no"), true), None, true).unwrap_err();
        assert!(matches!(error, Fail::Io { .. }), "{error}");
        let path = device(folder.path(), 64 << 20);
        let (_held, _) = claim(&path).unwrap();
        let error = format(&arguments(&path, true), None, true).unwrap_err();
        assert!(error.to_string().contains("busy"), "{error}");
    }

    #[test]
    fn a_size_that_is_no_multiple_of_a_block_is_cut() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let path = device(folder.path(), (64 << 20) + 512);
        format(&arguments(&path, false), None, true).unwrap();
        let (file, size) = claim(&path).unwrap();
        assert_eq!(
            look(&file, &path, size).unwrap().unwrap().split(':').next(),
            Some("an Ashlar label")
        );
        assert_eq!(
            device_read::superblock(&file, &path).unwrap().device_size,
            64 << 20
        );
    }
}
