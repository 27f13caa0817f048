//! Devices that are too small, taken, foreign, cut short or from the future: the node or the command says
//! which, changes nothing, and the store goes on without it (P6, P8).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use ashlar_tests::damage;
use ashlar_tests::folder;
use ashlar_tests::rig::{self, Options, PATIENCE, Rig, eventually};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn file_of(path: &Path, len: u64) {
    let file = File::create(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.set_len(len)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

#[test]
fn format_refuses_what_it_must_not_touch() {
    let rig = Rig::prepare(Options::default());
    let device = rig.scratch().join("device");
    let path = text(&device);

    file_of(&device, 1 << 20);
    rig.fails(&["device", "format", path], 1, &["small|at least"]);
    file_of(&device, (96 << 20) + 100);
    rig.fails(&["device", "format", path], 1, &["multiple|align|block"]);
    rig.fails(
        &["device", "format", "/no/such/device"],
        1,
        &["/no/such/device"],
    );

    // Somebody else's data: a filesystem, a partition table, or just bytes.
    let mut table = [0; 66];
    table[4] = 0x83;
    table[64..].copy_from_slice(&[0x55, 0xaa]);
    let found: [(&str, u64, &[u8]); 5] = [
        ("ext", 1024 + 0x38, &[0x53, 0xef]),
        ("xfs", 0, b"XFSB"),
        ("partition", 446, &table),
        ("boot", 510, &[0x55, 0xaa]),
        ("data|holds|unknown|not empty", 12_345, b"precious"),
    ];
    for (name, at, bytes) in found {
        file_of(&device, 96 << 20);
        let file = OpenOptions::new()
            .write(true)
            .open(&device)
            .expect("writable");
        file.write_all_at(bytes, at).expect("writable");
        let before = crc32fast::hash(&std::fs::read(&device).expect("readable"));
        let error = rig.fails(&["device", "format", path], 1, &["--force", name]);
        eprintln!("{name}: {}", error.trim());
        let after = crc32fast::hash(&std::fs::read(&device).expect("readable"));
        assert_eq!(before, after, "a refused format wrote to the device");
    }
    rig.ok(&["device", "format", "--force", path]);
    rig.fails(&["device", "format", path], 1, &["ashlar", "--force"]);
    rig.ok(&["device", "verify", path]);
    let shown = rig.ok(&["device", "inspect", path]);
    assert!(shown.len() > 50, "inspect says little: {shown}");
}

#[test]
fn a_dead_device_is_inspected_and_verified_without_its_node() {
    let rig = Rig::up(Options::default());
    rig.ok(&["mb", "ashlar://dead"]);
    let source = rig.scratch().join("tree");
    folder::write_tree(&source, 40, 21);
    rig.ok(&["put", "-r", text(&source), "ashlar://dead/"]);
    let device = rig.device(1);
    // In use by its node: neither to be formatted nor to be run twice.
    rig.fails(
        &["device", "format", "--force", text(&device)],
        1,
        &["busy|in use|another"],
    );
    let config = rig.config(1);
    rig.fails(
        &["node", "run", "--config", text(&config)],
        1,
        &["busy|in use|another|address"],
    );
    rig.nodes("kill", &rig.all());
    rig.ok(&["device", "verify", text(&device)]);
    rig.ok(&["device", "inspect", text(&device)]);

    // Rot is found offline too.
    rig.rig(&["corrupt", "1", "--blocks", "300", "--seed", "5"]);
    let output = rig.run(&["device", "verify", text(&device)]);
    assert_eq!(
        output.status.code(),
        Some(1),
        "rot was not found: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    rig.up_again();
    let back = rig.scratch().join("back");
    rig.ok(&["get", "-r", "ashlar://dead/", text(&back)]);
    folder::assert_same(&source, &back);
}

/// Stops a node, spoils its device, and expects the node to refuse it while the others serve.
fn refused_at_start(rig: &Rig, node: u32, words: &[&str], spoil: impl FnOnce(&Path)) {
    let device = rig.device(node);
    rig.nodes("kill", &[node]);
    let saved = rig.scratch().join("saved");
    std::fs::copy(&device, &saved).expect("room for a copy");
    spoil(&device);
    let before = crc32fast::hash(&std::fs::read(&device).expect("readable"));
    let error = rig.fails(&rig.rig_args(&["start", &node.to_string()]), 1, words);
    eprintln!("{words:?}: {}", error.trim());
    let after = crc32fast::hash(&std::fs::read(&device).expect("readable"));
    assert_eq!(before, after, "a refused device was written to");
    assert_eq!(
        rig.ok(&["get", "ashlar://kept/k", "-"]),
        "kept",
        "the others serve on"
    );
    std::fs::copy(&saved, &device).expect("room for a copy");
    rig.nodes("start", &[node]);
    assert_eq!(rig.ok(&["get", "ashlar://kept/k", "-"]), "kept");
}

#[test]
fn a_node_refuses_a_device_that_is_not_its_own() {
    let rig = Rig::up(Options {
        size: "128M",
        ..Options::default()
    });
    let other = Rig::up(Options {
        size: "128M",
        nodes: 3,
        class: "2+1",
        ..Options::default()
    });
    rig.ok(&["mb", "ashlar://kept"]);
    let file = rig.scratch().join("file");
    std::fs::write(&file, b"kept").expect("writable");
    rig.ok(&["put", text(&file), "ashlar://kept/k"]);
    let chain = rig.chain();
    let node = rig
        .all()
        .into_iter()
        .find(|n| !chain.contains(n))
        .expect("six nodes, a chain of three");

    other.nodes("kill", &other.all());
    let foreign = other.device(1);
    refused_at_start(&rig, node, &["cluster"], |device| {
        std::fs::copy(&foreign, device).expect("room for a copy");
    });
    let sibling = rig.device(chain[1]);
    refused_at_start(&rig, node, &["device"], |device| {
        std::fs::copy(&sibling, device).expect("room for a copy");
    });
    refused_at_start(&rig, node, &["bytes|shorter|truncated|small"], |device| {
        let file = OpenOptions::new()
            .write(true)
            .open(device)
            .expect("writable");
        file.set_len(100 << 20).expect("cuttable");
    });
    refused_at_start(
        &rig,
        node,
        &["blank|superblock|not formatted|format"],
        |device| {
            file_of(device, 128 << 20);
        },
    );
    refused_at_start(&rig, node, &["newer|version"], make_newer);
}

/// Turns the major version of every copy of the superblock into one from the future, checksums and all.
fn make_newer(device: &Path) {
    use ashlar_layout::superblock::{SUPERBLOCK_LEN, Superblock, offset};
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(device)
        .expect("writable");
    let mut bytes = vec![0u8; SUPERBLOCK_LEN];
    let mut changed = 0;
    for copy in 0..ashlar_layout::limits::SUPERBLOCK_COPIES as u8 {
        let at = offset(copy, ashlar_layout::limits::EXTENT_SIZE);
        file.read_exact_at(&mut bytes, at).expect("readable");
        if Superblock::decode(&bytes).is_ok() {
            future(&mut bytes);
            file.write_all_at(&bytes, at).expect("writable");
            changed += 1;
        }
    }
    assert!(changed > 0, "no superblock was found to be changed");
}

/// The CRC stands in bytes 8..12 and counts itself as zeros; the major version in 12..14 (FORMAT.md).
fn future(bytes: &mut [u8]) {
    bytes[12..14].copy_from_slice(&(ashlar_layout::version::FORMAT_MAJOR + 1).to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes[..8]);
    crc.update(&[0; 4]);
    crc.update(&bytes[12..]);
    let crc = crc.finalize();
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_rig_that_does_not_fit_is_refused_before_anything_is_made() {
    let rig = Rig::prepare(Options::default());
    rig.fails(
        &rig.rig_args(&["up", "--detach", "--size", "2T"]),
        1,
        &["free|room|space"],
    );
    rig.fails(
        &rig.rig_args(&["up", "--detach", "--nodes", "3", "--size", "128M"]),
        1,
        &["4+2|nodes|devices"],
    );
    rig.fails(
        &rig.rig_args(&["up", "--detach", "--size", "1M"]),
        2,
        &["small|at least"],
    );
    rig.fails(&rig.rig_args(&["status"]), 1, &["rig"]);
    rig.fails(&rig.rig_args(&["wipe"]), 1, &["rig"]);
    assert!(rig.pids().is_empty());
    assert!(
        !rig::is_root() || !rig.dir().join("map.json").exists(),
        "a refused rig left a map"
    );
}

/// A node that is no part of the rig's own, with its log.
struct Joined {
    child: std::process::Child,
    log: std::path::PathBuf,
}

impl Joined {
    fn start(rig: &Rig, folder: &Path) -> Joined {
        let log = folder.join("node.log");
        let file = File::create(&log).expect("a log can be made");
        let config = folder.join("node.toml");
        let mut command = rig.command(&["node", "run", "--config", text(&config)]);
        let child = command.stderr(file).spawn().expect("ashlar starts");
        Joined { child, log }
    }

    fn says(&self, what: &str) -> String {
        rig::eventually(what, rig::PATIENCE, || {
            let said = std::fs::read_to_string(&self.log).ok()?;
            said.contains(what).then_some(said)
        })
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn devices_that_changed_their_names_are_known_by_what_they_hold() {
    let rig = Rig::up(Options {
        size: "128M",
        ..Options::default()
    });
    let folder = rig.dir().join("node-7");
    let images = ["one", "two"].map(|name| folder.join(name));
    // Below those that the kernel gives to outgoing connections.
    let first = 9000 + (std::process::id() % 1000) as u16;
    let free = (first..10_000).find_map(|port| {
        let bound = std::net::TcpListener::bind(("127.0.0.1", port)).ok()?;
        bound.local_addr().ok()
    });
    let address = free.expect("some port is free").to_string();
    let token = rig.ok(&["cluster", "token"]);
    let device = |no: u32, path: &Path| format!("{no}:128M={}", path.display());
    let devices = [device(7, &images[0]), device(8, &images[1])];
    let to = text(&folder);
    let mut join = vec![
        "cluster",
        "join",
        "--token",
        token.trim(),
        "--node",
        "7",
        "--out",
        to,
    ];
    join.extend([
        "--address",
        &address,
        "--device",
        &devices[0],
        "--device",
        &devices[1],
    ]);
    rig.ok(&join);
    let map = folder.join("map.json");
    for (image, no) in images.iter().zip(["7", "8"]) {
        file_of(image, 128 << 20);
        let cluster = ["--cluster", text(&map), "--device-no", no];
        rig.ok(&[&["device", "format", text(image)], &cluster[..]].concat());
    }
    let node = Joined::start(&rig, &folder);
    let said = node.says("node 7 serves");
    assert!(!said.contains("it is used there"), "{said}");
    drop(node);

    // The kernel has named them the other way round.
    damage::swap(&images[0], &images[1]);
    let node = Joined::start(&rig, &folder);
    let said = node.says("node 7 serves");
    for (no, path, other) in [(7, &images[1], 8), (8, &images[0], 7)] {
        let (at, has) = (text(path), format!("the configuration has device {other}"));
        let line = said
            .lines()
            .find(|line| line.starts_with(&format!("device {no} (")));
        let told = line.is_some_and(|line| line.contains(at) && line.contains(&has));
        assert!(told, "device {no} at {at}: {said}");
    }
    drop(node);

    // What is neither is refused, and the other one is not taken for it.
    std::fs::copy(rig.device(1), &images[0]).expect("room for a copy");
    let node = Joined::start(&rig, &folder);
    let said = node.says("this is device");
    assert!(!said.contains("node 7 serves"), "{said}");
}

/// A member of the journal's chain gets a device with nothing on it, under the number of the one that it had: nothing
/// of what was there comes back, and when it has been taught, it is as good as any other one.
#[test]
fn a_device_is_formatted_anew_under_its_number() {
    let rig = Rig::up(Options::default());
    rig.ok(&["mb", "ashlar://anew"]);
    let source = rig.scratch().join("tree");
    folder::write_tree(&source, 120, 22);
    rig.ok(&["put", "-r", text(&source), "ashlar://anew/"]);
    // Some of it is gone again, and its shards with it.
    let large = rig.scratch().join("large");
    file_of(&large, 3 << 20);
    rig.ok(&["put", text(&large), "ashlar://anew/large"]);
    rig.ok(&["rm", "ashlar://anew/large"]);
    let chain = rig.chain_by_role();
    let (head, node, third) = (chain[0], chain[1], chain[2]);
    rig.nodes("kill", &[node]);
    let device = rig.device(node);
    let number = node.to_string();
    let format = [
        "device",
        "format",
        "--force",
        "--device-no",
        &number,
        text(&device),
    ];
    eventually("the device is let go of", PATIENCE, || {
        rig.run(&format).status.success().then_some(())
    });
    rig.nodes("start", &[node]);
    let log = rig.log(node);
    let opened = log
        .lines()
        .rfind(|line| line.contains("recovered") && line.contains("shards"));
    let opened = opened.unwrap_or_else(|| panic!("{log}"));
    let nothing = " 0 shards, 0 tombstones, 0 journal records, 0 chunks and 0 roots of indexes;";
    let came_back = !opened.contains(nothing) || !opened.ends_with(", 0 findings");
    assert!(!came_back, "something came back: {opened}");
    let follows = || {
        let replica = rig.replica(node)?;
        let newest = rig.replica(head)?.committed;
        (replica.state == "following" && replica.committed == newest).then_some(())
    };
    eventually("it follows", PATIENCE, follows);
    rig.ok(&["audit", "--now"]);
    // It remembers that it has all of it, and the chain goes on with it alone beside the head.
    rig.nodes("kill", &[node]);
    rig.nodes("start", &[node]);
    rig.nodes("kill", &[third]);
    rig.ok(&["put", text(&large), "ashlar://anew/large"]);
    rig.nodes("kill", &[head]);
    rig.nodes("start", &[third]);
    rig.ok(&["put", text(&large), "ashlar://anew/again"]);
    let back = rig.scratch().join("back");
    rig.ok(&["get", "-r", "ashlar://anew/", text(&back)]);
    std::fs::remove_file(back.join("large")).expect("it was got");
    std::fs::remove_file(back.join("again")).expect("it was got");
    folder::assert_same(&source, &back);
}
