//! Devices are what their superblocks say, wherever they are: the kernel may give two of a node each other's names.
//!
//! Invariants:
//! - only the paths of one node's devices change places, and each is used once;
//! - a path is taken for a device on the word of one copy of a superblock. That is only where to look: the device's
//!   opening asks for a quorum of copies, and refuses what is another device;
//! - where two paths hold the same device (one is a copy), none is preferred to what the configuration says;
//! - a device that does not answer keeps no other waiting for long: it is looked for where the configuration has it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ashlar_cluster_map::ClusterMap;
use ashlar_layout::ids::DeviceId;
use ashlar_layout::superblock::{SUPERBLOCK_LEN, Superblock};

use crate::config::Config;

/// How long devices may take to say which they are. Disks that stand still take seconds to turn.
const PATIENCE: Duration = Duration::from_secs(15);

/// The device that stands at a path, as far as its first superblock can be read.
fn at(path: &Path) -> Option<DeviceId> {
    let mut bytes = [0; SUPERBLOCK_LEN];
    let file = File::open(path).ok()?;
    file.read_exact_at(&mut bytes, 0).ok()?;
    Superblock::decode(&bytes)
        .ok()
        .map(|superblock| superblock.device)
}

/// The devices that stand at paths, as far as that is known after so long. Who is not answered by then waits on.
fn found(paths: &[PathBuf], patience: Duration) -> Vec<Option<DeviceId>> {
    let (sender, answers) = mpsc::sync_channel(paths.len());
    for (no, path) in paths.iter().cloned().enumerate() {
        let sender = sender.clone();
        let thread = std::thread::Builder::new().name("identity".to_owned());
        // Without a thread it is not known. Whoever answers late finds nobody to tell.
        let _ = thread.spawn(move || sender.send((no, at(&path))));
    }
    drop(sender);
    let until = Instant::now() + patience;
    let mut found = vec![None; paths.len()];
    while let Ok((no, device)) =
        answers.recv_timeout(until.saturating_duration_since(Instant::now()))
    {
        found[no] = device;
    }
    found
}

/// Which path each device is to have, if paths that hold these are meant for those: its own, but where another one
/// holds it.
fn assign(wanted: &[DeviceId], found: &[Option<DeviceId>]) -> Vec<usize> {
    let holds = |at: usize, device: DeviceId| found.get(at) == Some(&Some(device));
    let place = |(at, device): (usize, &DeviceId)| {
        let all: Vec<usize> = (0..found.len()).filter(|i| holds(*i, *device)).collect();
        match all[..] {
            [one] => Some(one),
            // Nowhere, or in doubt: where it was.
            _ if found.get(at).is_some_and(Option::is_none) || all.contains(&at) => Some(at),
            _ => None,
        }
    };
    let placed: Vec<Option<usize>> = wanted.iter().enumerate().map(place).collect();
    let mut left = (0..found.len()).filter(|at| !placed.contains(&Some(*at)));
    placed
        .iter()
        .enumerate()
        .map(|(at, place)| place.or_else(|| left.next()).unwrap_or(at))
        .collect()
}

/// The configuration with each device at the path where it is, and what there is to be said of that.
pub(crate) fn by_identity(config: &Config, map: &ClusterMap) -> (Config, Vec<String>) {
    let (mut changed, mut said) = (config.clone(), Vec::new());
    let devices = config.devices.iter();
    let wanted: Option<Vec<DeviceId>> = devices
        .clone()
        .map(|it| map.device(it.no).map(|device| device.id))
        .collect();
    // One alone has nobody to change places with.
    let Some(wanted) = wanted.filter(|wanted| wanted.len() > 1) else {
        return (changed, said);
    };
    let paths: Vec<PathBuf> = devices.map(|it| it.path.clone()).collect();
    let found = found(&paths, PATIENCE);
    for (at, path) in assign(&wanted, &found).into_iter().enumerate() {
        if path == at {
            continue;
        }
        // What is known of its cache is known of what stands at the path.
        let other = &config.devices[path];
        changed.devices[at].path.clone_from(&other.path);
        changed.devices[at].cache = other.cache;
        if found[path] == Some(wanted[at]) {
            said.push(format!(
                "device {} ({}) is at {}, where the configuration has device {}: it is used there",
                config.devices[at].no,
                wanted[at],
                other.path.display(),
                other.no
            ));
        }
    }
    (changed, said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_does_not_answer_is_not_waited_for_for_ever() {
        let folder = tempfile::tempdir().expect("a folder");
        let [silent, empty] = ["silent", "empty"].map(|name| folder.path().join(name));
        // Whoever opens it waits until somebody writes to it.
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &silent,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .expect("a pipe with a name");
        std::fs::write(&empty, b"").expect("a file");
        let paths = [silent, empty, folder.path().join("absent")];
        assert_eq!(found(&paths, Duration::from_millis(50)), [None, None, None]);
    }

    #[test]
    fn each_has_the_path_that_holds_it() {
        let id = |n: u8| DeviceId([n; 16]);
        let [a, b, c, other] = [1, 2, 3, 9].map(id);
        let cases: [(&[Option<DeviceId>], [usize; 3]); 9] = [
            (&[Some(a), Some(b), Some(c)], [0, 1, 2]),
            (&[Some(b), Some(a), Some(c)], [1, 0, 2]),
            (&[Some(b), Some(c), Some(a)], [2, 0, 1]),
            // What cannot be read, or is nobody's, stays where it is as long as nobody else is there.
            (&[None, None, None], [0, 1, 2]),
            (&[Some(other), Some(b), Some(c)], [0, 1, 2]),
            (&[None, Some(c), Some(b)], [0, 2, 1]),
            // Where a device is found whose own place is taken, the other one gets what is left.
            (&[Some(b), Some(other), Some(c)], [1, 0, 2]),
            // A copy: what the configuration says holds, and otherwise it is refused when it is opened.
            (&[Some(a), Some(a), Some(c)], [0, 1, 2]),
            (&[Some(b), Some(b), Some(c)], [0, 1, 2]),
        ];
        for (found, expected) in cases {
            let got = assign(&[a, b, c], found);
            assert_eq!(got, expected, "{found:?}");
            let mut once = got.clone();
            once.sort_unstable();
            assert_eq!(once, [0, 1, 2], "{found:?}");
        }
    }
}
