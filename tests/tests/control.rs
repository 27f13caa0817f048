//! The control plane of a real rig, through `ashlar cluster`: nodes join and are refused, members of chains are
//! replaced by command and by silence, and the store goes on without a quorum.

use std::path::Path;
use std::time::Duration;

use ashlar_cluster_map::{ClusterMap, Core, Device, Node};
use ashlar_layout::ids::{ClusterId, DeviceNo, NodeId, PartitionId};
use ashlar_node_client::{Client, ClientOptions, PutOptions};
use ashlar_node_control::{ClientError, ControlClient, Status, Token};
use ashlar_tests::by_hand::{Process, free_address};
use ashlar_tests::content::{Content, seed};
use ashlar_tests::load;
use ashlar_tests::rig::{self, Options, PATIENCE, Rig, eventually};
use bytes::Bytes;

const BUCKET: &str = "control";
const DEVICE: u64 = 256 << 20;

/// A rig of six nodes whose silent ones are replaced after so many seconds.
fn up(replace_after: &str) -> Rig {
    let rig = Rig::prepare(Options::default());
    rig.rig(&[
        "up",
        "--detach",
        "--no-gateway",
        "--reserve-only",
        "--size",
        "256M",
        "--replace-after",
        replace_after,
    ]);
    rig
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

/// The newest map, by the control plane.
fn newest(rig: &Rig) -> ClusterMap {
    let json = rig.ok(&["cluster", "map"]);
    ClusterMap::from_json(json.as_bytes()).unwrap_or_else(|e| panic!("{e}: {json}"))
}

/// How the cluster is, if a quorum says so.
fn status(rig: &Rig) -> Option<Status> {
    let output = rig.run(&["cluster", "status", "--json"]);
    let said = || serde_json::from_slice(&output.stdout);
    let read = |e| {
        panic!(
            "cluster status: {e}: {}",
            String::from_utf8_lossy(&output.stdout)
        )
    };
    output.status.success().then(|| said().unwrap_or_else(read))
}

/// Waits until every node that is meant to be there is heard from.
fn all_heard(rig: &Rig, nodes: usize) {
    eventually(
        "all nodes are heard from, and all members count",
        PATIENCE,
        || {
            let status = status(rig)?;
            let there = status.nodes.iter().filter(|n| n.there).count();
            let count = status.members.iter().all(|it| it.counts == Some(true));
            (there == nodes && count).then_some(())
        },
    );
}

fn chain(map: &ClusterMap) -> Vec<DeviceNo> {
    map.partitions[0].chain.devices.clone()
}

fn node_of(map: &ClusterMap, device: DeviceNo) -> u32 {
    map.device(device)
        .expect("chains name devices of the map")
        .node
        .0
}

/// Waits until the chain itself says that it is what the map wants, and that this holds `with` and not `without`.
fn settled(rig: &Rig, without: DeviceNo, with: Option<DeviceNo>) -> ClusterMap {
    let what = format!("the chain rests without device {without}, with {with:?}");
    let mut last = String::new();
    let map = eventually(&what, PATIENCE, || {
        let status = status(rig)?;
        let map = newest(rig);
        let report = status
            .reports
            .iter()
            .find(|r| r.partition == PartitionId(0))?;
        let (mut is, mut wanted) = (report.members.clone(), chain(&map));
        is.sort_unstable();
        wanted.sort_unstable();
        let seen = format!("{report:?}, wanted {wanted:?}, {:?}", status.chains);
        if seen != last {
            eprintln!("{seen}");
            last = seen;
        }
        let rests = report.config % 2 == 1 && is == wanted;
        let fits = !is.contains(&without) && with.is_none_or(|with| is.contains(&with));
        (rests && fits).then_some(map)
    });
    eprintln!("settled: {:?}", chain(&map));
    map
}

/// Objects of all sorts of lengths, and what they hold.
struct Store {
    client: Client,
    held: Vec<(String, Content)>,
    seed: u64,
}

impl Store {
    async fn new(rig: &Rig, seed: u64) -> Store {
        let client = rig.client(ClientOptions {
            unavailable_wait: PATIENCE,
            ..ClientOptions::default()
        });
        let made = client.create_bucket(BUCKET).await;
        made.unwrap_or_else(|e| panic!("no bucket: {e}"));
        Store {
            client,
            held: Vec::new(),
            seed,
        }
    }

    async fn put(&mut self, count: u64) {
        for _ in 0..count {
            let number = self.held.len() as u64;
            let content = Content {
                seed: self.seed << 20 | number,
                len: [100, 5_000, 60_000, 300_000][(number % 4) as usize],
            };
            let key = load::key_name(number);
            let body = Bytes::from(content.bytes());
            let put = self
                .client
                .put_bytes(BUCKET, &key, body, PutOptions::default())
                .await;
            put.unwrap_or_else(|e| panic!("{key} cannot be put: {e}"));
            self.held.push((key, content));
        }
    }

    /// Reads everything back, and lists it.
    async fn verify(&self) {
        for (key, content) in &self.held {
            let back = load::read(&self.client, BUCKET, key).await;
            let back = back.unwrap_or_else(|e| panic!("{key} cannot be read: {e}"));
            let (bytes, _) = back.unwrap_or_else(|| panic!("{key} is gone"));
            assert_eq!(
                content.difference(&bytes),
                None,
                "{key} came back different"
            );
        }
        let mut wanted: Vec<&str> = self.held.iter().map(|(key, _)| key.as_str()).collect();
        wanted.sort_unstable();
        let listed = load::list(&self.client, BUCKET, 100).await;
        assert_eq!(listed.unwrap_or_else(|e| panic!("no listing: {e}")), wanted);
    }
}

/// The arguments of a join.
fn joining<'a>(
    token: &'a str,
    node: &'a str,
    address: &'a str,
    device: &'a str,
    out: &'a Path,
) -> Vec<&'a str> {
    vec![
        "cluster",
        "join",
        "--token",
        token,
        "--node",
        node,
        "--address",
        address,
        "--device",
        device,
        "--out",
        text(out),
    ]
}

fn device_file(path: &Path) {
    let file = std::fs::File::create(path).expect("a file can be made");
    file.set_len(DEVICE).expect("a file can be long");
}

#[test]
fn a_seventh_node_joins_and_serves() {
    let seed = seed("join");
    let rig = up("30");
    let folder = rig.dir().join("node-7");
    let (address, out) = (free_address(), rig.scratch().join("refused"));
    let token = rig.ok(&["cluster", "token"]);
    let token = token.trim();
    let refused = |args: &[&str], words: &[&str]| rig.fails(args, 1, words);

    // Tokens that let nobody in.
    let last = if token.ends_with('0') { "1" } else { "0" };
    let unknown = format!("{}{last}", &token[..token.len() - 1]);
    refused(
        &joining(&unknown, "7", &address, "7:256M", &out),
        &["node 7 has not joined", "does not know the token"],
    );
    let elsewhere = Token::new(ClusterId([7; 16]), [7; 16]).to_string();
    refused(
        &joining(&elsewhere, "7", &address, "7:256M", &out),
        &["the token is for cluster 07070707"],
    );
    let before = newest(&rig);
    let mut there = joining(&elsewhere, "7", &address, "7:256M", &out);
    there.extend(["--control", &before.control[0].address]);
    refused(&there, &["belongs to cluster 07070707"]);
    rig.fails(
        &joining("ashlar1.x", "7", &address, "7:256M", &out),
        2,
        &["not a join token"],
    );
    rig.fails(
        &joining(token, "7", "nowhere", "7:256M", &out),
        2,
        &["not an address"],
    );
    rig.fails(
        &joining(token, "7", &address, "7:256M:1", &out),
        2,
        &["device 7 is for core 1"],
    );
    rig.fails(
        &joining(token, "7", &address, "7:1M", &out),
        2,
        &["the least is"],
    );
    let short = rig.ok(&["cluster", "token", "--life", "1s"]);
    eventually("a token expires", PATIENCE, || {
        let args = joining(short.trim(), "3", &address, "7:256M", &out);
        rig::says(&rig.run(&args), &["expired", "make a new one"]).ok()
    });

    // What is or was somebody's.
    refused(
        &joining(token, "3", &address, "7:256M", &out),
        &["node number 3 is in use"],
    );
    refused(
        &joining(token, "7", &address, "3:256M", &out),
        &["device number 3 is in use"],
    );
    let taken = before.nodes[0].cores[0].address.clone();
    refused(&joining(token, "7", &taken, "7:256M", &out), &[&taken]);
    assert_eq!(newest(&rig), before, "what was refused has changed the map");

    // It joins; said again it has joined; nobody else does with the same token.
    let device = format!("7:256M={}", folder.join("device.img").display());
    let told = rig.ok(&joining(token, "7", &address, &device, &folder));
    assert!(
        told.contains("device format") && told.contains("node run"),
        "{told}"
    );
    let joined = newest(&rig);
    assert_eq!(joined.epoch.0, before.epoch.0 + 1);
    rig.ok(&joining(token, "7", &address, &device, &folder));
    assert_eq!(
        newest(&rig),
        joined,
        "a join that is said again changes nothing"
    );
    refused(
        &joining(token, "8", &free_address(), "8:256M", &out),
        &["node 7 has joined with this token"],
    );

    // A device of another cluster is not taken.
    let image = folder.join("device.img");
    device_file(&image);
    rig.ok(&["device", "format", text(&image)]);
    let (well, log) = Process::start(&folder).end();
    assert!(
        !well && log.contains("cluster"),
        "a foreign device was taken: {log}"
    );
    rig.ok(&[
        "device",
        "format",
        "--force",
        "--cluster",
        text(&folder.join("map.json")),
        "--device-no",
        "7",
        text(&image),
    ]);
    let seventh = Process::start(&folder).serves();
    all_heard(&rig, 7);

    // It stores shards of new objects.
    let runtime = rig::runtime();
    runtime.block_on(async {
        let mut store = Store::new(&rig, seed).await;
        let mut shards = 0;
        for _ in 0..50 {
            store.put(8).await;
            let status = Client::connect(newest(&rig), ClientOptions::default())
                .unwrap_or_else(|e| panic!("no client: {e}"))
                .node_status(NodeId(7))
                .await;
            let status = status.unwrap_or_else(|e| panic!("node 7 tells no status: {e}"));
            shards = status
                .iter()
                .flat_map(|s| &s.devices)
                .map(|d| d.shards)
                .sum();
            if shards > 0 {
                break;
            }
        }
        assert!(
            shards > 0,
            "no shard has come to node 7 in {} objects",
            store.held.len()
        );
        eprintln!(
            "{shards} shards on node 7 after {} objects",
            store.held.len()
        );
        store.verify().await;
        drop(seventh);
        store.verify().await;
    });
}

#[test]
fn what_belongs_to_others_is_refused_by_the_control_plane() {
    let rig = up("30");
    let map = newest(&rig);
    let runtime = rig::runtime();
    let node = |id: u32| Node {
        id: NodeId(id),
        domains: Default::default(),
        cores: vec![Core {
            address: free_address(),
        }],
    };
    runtime.block_on(async {
        let ours = ControlClient::of(&map);
        let token = ours.create_token(Duration::from_secs(60)).await;
        let token = token.unwrap_or_else(|e| panic!("no token: {e}"));
        let reused = Device {
            no: DeviceNo(8),
            id: map.devices[2].id,
            node: NodeId(8),
            core: 0,
            size: DEVICE,
        };
        let error = ours.join(token, node(8), vec![reused]).await;
        let error = error.expect_err("the name of a device was taken twice");
        assert!(error.to_string().contains("format it anew"), "{error}");

        let addresses: Vec<String> = map.control.iter().map(|m| m.address.clone()).collect();
        let theirs = ControlClient::new(ClusterId([9; 16]), addresses);
        let error = theirs.heartbeat(NodeId(1), Vec::new(), None).await;
        let error = error.expect_err("a node of another cluster was heard");
        assert!(matches!(error, ClientError::Control(_)), "{error}");
        assert!(
            error.to_string().contains("belongs to cluster 0909"),
            "{error}"
        );
        let error = ours.heartbeat(NodeId(8), Vec::new(), None).await;
        let error = error.expect_err("a node that is not in the map was heard");
        assert!(error.to_string().contains("no node 8"), "{error}");
    });
    assert_eq!(newest(&rig), map);

    // The same by the command: a map of another cluster leads nowhere.
    let mut other = map;
    other.cluster = ClusterId([9; 16]);
    let path = rig.scratch().join("other.json");
    std::fs::write(&path, other.to_json()).expect("writable");
    let other = |verb| vec!["cluster", verb, "--cluster", text(&path)];
    rig.fails(
        &other("status"),
        1,
        &["belongs to cluster 0909", "is meant"],
    );
    rig.fails(
        &other("token"),
        1,
        &["no token was made", "belongs to cluster 0909"],
    );
}

#[test]
fn members_of_a_chain_are_replaced_by_command() {
    let seed = seed("replace");
    let rig = up("600");
    all_heard(&rig, 6);
    let runtime = rig::runtime();
    let mut store = runtime.block_on(async {
        let mut store = Store::new(&rig, seed).await;
        store.put(60).await;
        store
    });
    // A follower first, then the head.
    for by_role in [1, 0] {
        let map = newest(&rig);
        let node = {
            let head = rig.head();
            let follower = chain(&map)
                .into_iter()
                .map(|no| node_of(&map, no))
                .find(|n| *n != head);
            [head, follower.expect("a chain of three")][by_role]
        };
        let out = chain(&map)
            .into_iter()
            .find(|no| node_of(&map, *no) == node)
            .expect("it is in the chain");
        let spare = map
            .devices
            .iter()
            .map(|d| d.no)
            .find(|no| !chain(&map).contains(no))
            .expect("a spare");
        let (out_text, spare_text) = (out.to_string(), spare.to_string());
        let replace = [
            "cluster",
            "replace",
            "--partition",
            "0",
            "--out",
            &out_text,
            "--with",
            &spare_text,
        ];
        eprintln!("replacing device {out} of node {node} by {spare}");
        rig.ok(&replace);
        // Said again it is about a member that the chain has no more.
        rig.fails(
            &replace,
            1,
            &[
                "is not replaced",
                "is not in the chain",
                "nothing was changed",
            ],
        );
        let map = settled(&rig, out, Some(spare));
        runtime.block_on(async {
            store.put(20).await;
            store.verify().await;
        });
        assert!(chain(&map).contains(&spare));
    }

    // Changes for an epoch that is over, and changes that cannot be.
    let before = newest(&rig);
    rig.fails(
        &["cluster", "drain", "6", "--epoch", "1"],
        1,
        &[
            "node 6 is not drained",
            "for epoch 1",
            "nothing was changed",
        ],
    );
    rig.fails(&["cluster", "undrain", "6"], 1, &["not draining"]);
    rig.fails(&["cluster", "drain", "77"], 1, &["no node 77"]);
    rig.fails(&["cluster", "remove", "6"], 1, &["not removed", "drain it"]);
    rig.fails(&["cluster", "set-domains", "6"], 2, &["--zone"]);
    let unknown = [
        "cluster",
        "replace",
        "--partition",
        "9",
        "--out",
        "1",
        "--with",
        "2",
    ];
    rig.fails(&unknown, 1, &["no partition 9"]);
    assert_eq!(newest(&rig), before);

    // A node that is emptied leaves its chain.
    let map = newest(&rig);
    let out = chain(&map)[0];
    let node = node_of(&map, out).to_string();
    rig.ok(&["cluster", "drain", &node]);
    settled(&rig, out, None);
    rig.fails(&["cluster", "drain", &node], 1, &["draining already"]);
    rig.ok(&["cluster", "undrain", &node]);
    runtime.block_on(async {
        store.put(20).await;
        store.verify().await;
    });

    // The replicas of now count: one of them may die at once, with a node that only stores shards.
    let map = newest(&rig);
    let head = rig.head();
    let outside = map
        .devices
        .iter()
        .find(|d| !chain(&map).contains(&d.no))
        .expect("a spare");
    rig.nodes("kill", &[head, outside.node.0]);
    runtime.block_on(async {
        store.put(20).await;
        store.verify().await;
    });
}

#[test]
fn a_member_that_stays_silent_is_replaced_and_then_another_may_die() {
    let seed = seed("silence");
    let rig = up("3");
    all_heard(&rig, 6);
    let runtime = rig::runtime();
    let mut store = runtime.block_on(async {
        let mut store = Store::new(&rig, seed).await;
        store.put(60).await;
        store
    });
    let map = newest(&rig);
    let head = rig.head();
    let devices = chain(&map);
    let lost = devices
        .into_iter()
        .find(|no| node_of(&map, *no) != head)
        .expect("a follower");
    eprintln!("head {head}; killing node {} for good", node_of(&map, lost));
    rig.nodes("kill", &[node_of(&map, lost)]);
    runtime.block_on(store.put(20));
    let map = settled(&rig, lost, None);
    assert_eq!(chain(&map).len(), 3);
    runtime.block_on(store.put(20));

    // The spare counts: with the lost one and this one two of the first three are gone.
    let head = rig.head();
    eprintln!("killing the head {head}");
    rig.nodes("kill", &[head]);
    runtime.block_on(async {
        store.verify().await;
        store.put(20).await;
        store.verify().await;
    });
}

#[test]
fn without_a_quorum_the_store_goes_on_and_changes_say_so() {
    let seed = seed("quorum");
    let rig = up("600");
    all_heard(&rig, 6);
    // Two of the three that hold control members are to die, at most one of the chain among them.
    let mut map = newest(&rig);
    let in_chain =
        |map: &ClusterMap, node: u32| chain(map).iter().any(|no| node_of(map, *no) == node);
    if (1..=3).all(|node| in_chain(&map, node)) {
        rig.ok(&[
            "cluster",
            "replace",
            "--partition",
            "0",
            "--out",
            "3",
            "--with",
            "5",
        ]);
        map = settled(&rig, DeviceNo(3), Some(DeviceNo(5)));
    }
    let mut members: Vec<u32> = (1..=3).collect();
    members.sort_by_key(|node| in_chain(&map, *node));
    let dead = [members[0], members[1]];
    let runtime = rig::runtime();
    let mut store = runtime.block_on(async {
        let mut store = Store::new(&rig, seed).await;
        store.put(40).await;
        store
    });
    eprintln!("chain {:?}; killing nodes {dead:?}", chain(&map));
    rig.nodes("kill", &dead);
    let words = ["no quorum", "2 of 3 control members are away"];
    rig.fails(
        &["cluster", "drain", "6"],
        1,
        &["node 6 is not drained", words[0], words[1], "start"],
    );
    rig.fails(&["cluster", "token"], 1, &words);
    rig.fails(
        &["cluster", "status"],
        1,
        &["one control member knows", words[1]],
    );
    let known = rig.ok(&["cluster", "map", "--any"]);
    let known = ClusterMap::from_json(known.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(known, map, "the last map stays");
    runtime.block_on(async {
        store.put(40).await;
        store.verify().await;
    });
    rig.nodes("start", &dead);
    rig.ok(&["cluster", "drain", "6"]);
    let drained = newest(&rig);
    assert_eq!(drained.draining, [NodeId(6)]);
    rig.ok(&["cluster", "undrain", "6"]);
    all_heard(&rig, 6);
    runtime.block_on(async {
        store.put(8).await;
        store.verify().await;
    });

    // With none of them left it is told which were asked.
    rig.nodes("kill", &[1, 2, 3]);
    rig.fails(
        &["cluster", "drain", "6"],
        1,
        &["no control member answers", "--control"],
    );
}
