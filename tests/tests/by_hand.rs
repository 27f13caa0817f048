//! A cluster that is made as on hosts of their own: a spec, its map, devices, configurations and nodes, one by one.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ashlar_cluster_map::ClusterMap;
use ashlar_layout::version::{ENTRY_VERSION, ENTRY_VERSION_LEAST};
use ashlar_node_control::error::WireError;
use ashlar_node_control::wire::{self, Answer, Call};
use ashlar_node_control::{ControlError, Status};
use ashlar_tests::binary;
use ashlar_tests::by_hand::{Process, free_addresses};
use ashlar_tests::rig::{PATIENCE, eventually, runtime, scratch};
use tokio::net::{TcpListener, TcpStream};

fn run(folder: &Path, args: &[&str]) -> Output {
    Command::new(binary::ashlar())
        .current_dir(folder)
        .args(args)
        .output()
        .expect("the command can be started")
}

fn ok(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}{error}");
    said
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn map_in(path: &Path) -> ClusterMap {
    let json = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    ClusterMap::from_json(&json).expect("a map")
}

/// How the cluster is, if a quorum of its control plane says so.
fn status(folder: &Path) -> Option<Status> {
    let output = run(
        folder,
        &["--cluster", "map.json", "cluster", "status", "--json"],
    );
    let said = output.status.success().then_some(output.stdout)?;
    Some(serde_json::from_slice(&said).expect("it is told as JSON"))
}

/// Makes the map of three nodes at these addresses, the first of which have control members at those; what is told.
fn made(dir: &Path, cores: &[String], control: &[String]) -> String {
    let mut spec = "class = \"1+1\"\n".to_owned();
    for (nth, address) in cores.iter().enumerate() {
        let node = nth + 1;
        writeln!(spec, "[[node]]\nid = {node}\ncores = [\"{address}\"]").expect("it is text");
        if let Some(control) = control.get(nth) {
            writeln!(spec, "control = \"{control}\"").expect("it is text");
        }
        writeln!(spec, "[[node.device]]\nno = {node}\nsize = \"256M\"").expect("it is text");
    }
    write(&dir.join("cluster.toml"), &spec);
    ok(dir, &["map", "new", "cluster.toml"])
}

/// The folder of a node: a copy of the map, a device that is formatted, and a configuration with this at its end.
fn prepared(dir: &Path, node: u32, more: &str) -> PathBuf {
    let folder = dir.join(format!("node-{node}"));
    std::fs::create_dir(&folder).expect("a folder can be made");
    std::fs::copy(dir.join("map.json"), folder.join("map.json")).expect("a copy of the map");
    let device = folder.join("device.img");
    let file = std::fs::File::create(&device).expect("a file can be made");
    file.set_len(256 << 20).expect("a file can be long");
    let (number, device) = (node.to_string(), device.to_str().expect("UTF-8"));
    let format = ["device", "format", "--cluster", "map.json", "--device-no"];
    ok(dir, &[&format[..], &[&number, device]].concat());
    let config = format!(
        "node = {node}\nmap = \"map.json\"\n[[device]]\nno = {node}\npath = \"device.img\"\n{more}"
    );
    write(&folder.join("node.toml"), &config);
    folder
}

#[test]
fn a_cluster_made_from_a_spec_has_a_control_plane() {
    let scratch = scratch();
    let dir = scratch.path();
    let addresses = free_addresses(6);
    let told = made(dir, &addresses[..3], &addresses[3..]);
    assert!(told.contains("control   members 1, 2, 3"), "{told}");
    assert!(told.contains("[control], id = 3"), "{told}");
    // As one of before there was anything that says which entries of the journal may be written.
    let mut map = map_in(&dir.join("map.json"));
    assert_eq!(
        map.entries, ENTRY_VERSION,
        "a new cluster writes everything"
    );
    map.entries = ENTRY_VERSION_LEAST;
    let json = String::from_utf8(map.to_json()).expect("JSON is UTF-8");
    write(&dir.join("map.json"), &json);

    let nodes = (1..=3).map(|node| {
        let control =
            format!("[control]\nid = {node}\ndir = \"control\"\nreplace_after_secs = 2\n");
        Process::start(&prepared(dir, node, &control))
    });
    let mut nodes: Vec<Option<Process>> = nodes.collect::<Vec<_>>().into_iter().map(Some).collect();
    for node in &mut nodes {
        *node = node.take().map(Process::serves);
    }

    write(&dir.join("object"), &"what is stored ".repeat(9000));
    ok(dir, &["--cluster", "map.json", "mb", "ashlar://made"]);
    ok(
        dir,
        &[
            "--cluster",
            "map.json",
            "put",
            "object",
            "ashlar://made/object",
        ],
    );
    let newest = || {
        let json = ok(dir, &["--cluster", "map.json", "cluster", "map"]);
        ClusterMap::from_json(json.as_bytes()).expect("a map")
    };
    eventually("all nodes read it, so it may be written", PATIENCE, || {
        (newest().entries == ENTRY_VERSION).then_some(())
    });

    let leader = eventually("the members agree, and hear all nodes", PATIENCE, || {
        let status = status(dir)?;
        let there = status.nodes.iter().filter(|node| node.there).count();
        let count = status.members.iter().filter(|it| it.counts == Some(true));
        let all = there == 3 && count.count() == 3;
        status.leader.filter(|_| all)
    });
    // With its leader gone they choose another one, which notices; and the store goes on.
    drop(nodes[leader as usize - 1].take());
    eventually(
        "another member leads, and misses the node",
        PATIENCE,
        || {
            let status = status(dir)?;
            let away = status.nodes.iter().filter(|node| !node.there);
            let away: Vec<u32> = away.map(|node| node.node.0).collect();
            (status.leader.is_some_and(|it| it != leader) && away == [leader]).then_some(())
        },
    );
    ok(
        dir,
        &[
            "--cluster",
            "map.json",
            "get",
            "ashlar://made/object",
            "again",
        ],
    );
    let read = |name: &str| std::fs::read(dir.join(name)).expect("a file can be read");
    assert!(read("object") == read("again"));
    // What it knows of the map is what it would start with.
    let mut map = newest();
    assert_eq!(map.entries, ENTRY_VERSION);

    // Who reads less than others write does not start.
    map.entries += 1;
    let json = String::from_utf8(map.to_json()).expect("JSON is UTF-8");
    let folder = dir.join(format!("node-{leader}"));
    write(&folder.join("map.json"), &json);
    let (well, said) = Process::start(&folder).end();
    assert!(
        !well && said.contains("start the node with the version"),
        "{said}"
    );
}

/// A control member that has one map to tell of.
async fn member(listener: TcpListener, map: ClusterMap) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(converse(stream, map.clone()));
    }
}

async fn converse(mut stream: TcpStream, map: ClusterMap) -> Result<(), WireError> {
    while let Some(header) = wire::read_header(&mut stream, 1 << 20).await? {
        let payload = wire::read_payload(&mut stream, &header).await?;
        let answer = match wire::decode(&payload)? {
            Call::Hello(_) => Answer::Welcome { member: 1 },
            Call::Watch { after, .. } => Answer::Map((map.epoch > after).then(|| map.clone())),
            _ => Answer::Failed(ControlError::NotLeader),
        };
        let frame = wire::encode(header.request, map.epoch, &answer)?;
        wire::write(&mut stream, &frame).await?;
    }
    Ok(())
}

#[test]
fn a_node_that_serves_stops_when_it_hears_of_entries_that_it_does_not_read() {
    let scratch = scratch();
    let dir = scratch.path();
    let addresses = free_addresses(4);
    made(dir, &addresses[..3], &addresses[3..]);
    let folder = prepared(dir, 1, "");
    let node = Process::start(&folder).serves();

    // As a newer leader does once all nodes have said that they read it: since then an older program was started here.
    let mut map = map_in(&dir.join("map.json"));
    map.epoch.0 += 1;
    map.entries = ENTRY_VERSION + 1;
    let runtime = runtime();
    let listener = runtime.block_on(TcpListener::bind(&addresses[3]));
    runtime.spawn(member(listener.expect("the port is free"), map.clone()));
    let (well, said) = node.end();
    assert!(!well && said.contains("this node stops"), "{said}");
    assert!(said.contains("start the node with the version"), "{said}");
    // It does not start again by the map that it had before.
    assert_eq!(map_in(&folder.join("map.json")), map);
    let (well, said) = Process::start(&folder).end();
    assert!(!well && !said.contains("serves"), "{said}");
}
