//! Shards that no object names are found by the nodes' own passes, by name and each once; and what is put, replaced,
//! made longer, put together of parts, renamed and deleted meanwhile is not taken for one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ashlar_cluster_map::ClusterMap;
use ashlar_layout::ids::{DeviceNo, ShardId};
use ashlar_layout::manifest::{Body, Manifest};
use ashlar_layout::names::{SYSTEM_BUCKET, SYSTEM_PARTS};
use ashlar_node_client::{Client, ClientOptions, DeleteOptions, PutOptions, RenameOptions, Seal};
use ashlar_tests::content::Content;
use ashlar_tests::damage::leak;
use ashlar_tests::rig::{Options, PATIENCE, Rig, eventually, runtime};
use serde_json::Value;

const BUCKET: &str = "data";
/// Seconds from one pass to the next.
const PASS: &str = "3";
/// Objects that stand all the time.
const STANDING: u64 = 30;

fn content(seed: u64) -> bytes::Bytes {
    let len = 70_000 + (seed % 7) as usize * 9000;
    Content { seed, len }.bytes().into()
}

fn striped() -> PutOptions {
    PutOptions {
        striped: true,
        ..PutOptions::default()
    }
}

async fn put(client: &Client, key: &str, seed: u64) {
    let done = client.put_bytes(BUCKET, key, content(seed), striped());
    done.await.unwrap_or_else(|e| panic!("{key}: {e}"));
}

/// The shards that an object has, and on which devices.
fn shards(map: &ClusterMap, manifest: &Manifest) -> BTreeMap<String, DeviceNo> {
    let Body::Stripes(stripes) = &manifest.body else {
        panic!("no stripes: {manifest:?}");
    };
    let mut all = BTreeMap::new();
    for stripe in stripes {
        let group = map.group(stripe.pg).expect("a group of the map");
        for (index, device) in (0..).zip(&group.devices) {
            let stripe = stripe.id;
            all.insert(ShardId { stripe, index }.to_string(), *device);
        }
    }
    all
}

/// An object whose name is taken away, and whose stripes stay: as a client does that ends right before it frees them.
async fn abandon(client: &Client, key: &str, seed: u64) -> BTreeMap<String, DeviceNo> {
    put(client, key, seed).await;
    let meta = client.head(BUCKET, key).await.expect("it was put");
    let taken = DeleteOptions {
        taken: true,
        ..DeleteOptions::default()
    };
    client
        .delete(BUCKET, key, taken)
        .await
        .expect("it is there");
    shards(&client.map(), &meta.manifest)
}

/// Somebody who does with objects all that can be done.
struct Busy {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

async fn round(client: &Client, number: u64) {
    let name = |what: &str| format!("{what}-{number:06}");
    let seed = number * 100;
    // Put, replaced, copied under another name, and deleted a while later.
    put(client, &name("put"), seed).await;
    put(client, &name("put"), seed + 1).await;
    if number >= 5 {
        let old = format!("put-{:06}", number - 5);
        let none = DeleteOptions::default();
        client
            .delete(BUCKET, &old, none)
            .await
            .expect("it is there");
    }
    // Put together of parts, which stand for a while before that.
    let parts = |number: u64| [0, 1].map(|part| format!("{SYSTEM_PARTS}test/{number:06}/{part}"));
    for (at, part) in (0..).zip(parts(number)) {
        let bytes = content(seed + 10 + at);
        let done = client.put_bytes(SYSTEM_BUCKET, &part, bytes, striped());
        done.await.unwrap_or_else(|e| panic!("{part}: {e}"));
    }
    if number < 3 {
        return;
    }
    let (before, mut manifests) = (number - 3, Vec::new());
    for part in parts(before) {
        let meta = client.head(SYSTEM_BUCKET, &part).await;
        manifests.push(meta.unwrap_or_else(|e| panic!("{part}: {e}")).manifest);
    }
    let key = format!("whole-{:02}", before % 40);
    let options = PutOptions::default();
    // What stood there before is replaced now and then, and otherwise made longer.
    let done = match client.head(BUCKET, &key).await {
        Ok(meta) if before % 3 > 0 => {
            let seal = Seal::default();
            client.append(BUCKET, &key, meta, manifests, seal).await
        }
        _ => client.compose(BUCKET, &key, manifests, options).await,
    };
    done.unwrap_or_else(|e| panic!("{key}: {e}"));
    for part in parts(before) {
        let taken = DeleteOptions {
            taken: true,
            ..DeleteOptions::default()
        };
        let done = client.delete(SYSTEM_BUCKET, &part, taken).await;
        done.unwrap_or_else(|e| panic!("{part}: {e}"));
    }
    // One that has stood for long gets another name, once, and stays.
    let (from, to) = (format!("old-{before:06}"), format!("a-renamed-{before:06}"));
    if let Ok(meta) = client.head(BUCKET, &from).await {
        let names = (from.as_str(), to.as_str());
        let done = client.rename(BUCKET, names, meta, RenameOptions::default());
        done.await.unwrap_or_else(|e| panic!("{from}: {e}"));
    }
}

impl Busy {
    fn start(rig: &Rig) -> Busy {
        let (stop, rounds) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (map, ended, count) = (rig.map(), stop.clone(), rounds.clone());
        let options = ClientOptions {
            unavailable_wait: Duration::from_secs(30),
            ..ClientOptions::default()
        };
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                let client = Client::connect(map, options).expect("the map is the rig's");
                let mut due = tokio::time::interval(Duration::from_millis(150));
                while !ended.load(Ordering::Relaxed) {
                    due.tick().await;
                    round(&client, count.load(Ordering::Relaxed)).await;
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        Busy {
            stop,
            rounds,
            thread,
        }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("nothing fails that it does");
        self.rounds.load(Ordering::Relaxed)
    }
}

fn asked(rig: &Rig, args: &[&str]) -> Option<Value> {
    let output = rig.run(args);
    let told = serde_json::from_slice(&output.stdout);
    output.status.success().then(|| told.expect("JSON"))
}

/// What is told of orphans: which, on which devices, and how many censuses of each device have ended.
fn told(rig: &Rig) -> Option<(BTreeMap<String, DeviceNo>, Vec<u64>)> {
    let status = asked(rig, &["repair", "status", "--json"])?;
    let (mut all, mut censuses) = (BTreeMap::new(), Vec::new());
    for row in status["orphans"].as_array()? {
        let device = DeviceNo(row["device"].as_u64()? as u32);
        censuses.push(row["censuses"].as_u64()?);
        for name in row["names"].as_array()? {
            let before = all.insert(name[0].as_str()?.to_owned(), device);
            assert_eq!(before, None, "{name} is told twice");
        }
    }
    Some((all, censuses))
}

/// How many were counted.
fn counted(rig: &Rig) -> Option<u64> {
    let ledger = asked(rig, &["durability", "--json"])?;
    let found = &ledger["measured"]["counted"]["found"];
    Some(
        found
            .get("orphan")
            .map_or(0, |it| it.as_u64().expect("a count")),
    )
}

/// Waits until so many censuses more of each device have ended.
fn censuses(rig: &Rig, more: u64) -> BTreeMap<String, DeviceNo> {
    let devices = rig.all().len();
    let least = |censuses: &[u64]| censuses.iter().min().copied().unwrap_or(0);
    let (_, now) = told(rig).expect("it is told");
    let from = if now.len() < devices { 0 } else { least(&now) };
    eventually("censuses come to their ends", PATIENCE, || {
        let (all, now) = told(rig)?;
        (now.len() == devices && least(&now) >= from + more).then_some(all)
    })
}

#[test]
fn what_no_object_names_is_found_and_nothing_else() {
    let mut rig = Rig::up(Options::default());
    rig.ok(&["mb", "ashlar://data"]);
    let mut expected = BTreeMap::new();
    runtime().block_on(async {
        let client = rig.client(ClientOptions::default());
        let made = client.create_bucket(SYSTEM_BUCKET).await;
        made.expect("no node looks at anything yet");
        for number in 0..STANDING {
            put(&client, &format!("old-{number:06}"), 7000 + number).await;
        }
        for number in 0..3 {
            expected.extend(abandon(&client, "given-up", 9000 + number).await);
        }
    });
    let map = rig.map();
    let leaks = [(1, 1), (1, 2), (4, 3)].map(|(node, number)| leak(&map, node, number));
    expected.extend(leaks.map(|(shard, device)| (shard.to_string(), device)));
    eprintln!("{} orphans were made", expected.len());

    rig.again_with_audit(Some(PASS));
    let busy = Busy::start(&rig);
    let found = censuses(&rig, 2);
    let unexpected: BTreeSet<_> = found
        .keys()
        .filter(|it| !expected.contains_key(*it))
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
    // Each census hides a few, by chance.
    eventually("all of them are found", PATIENCE, || {
        (told(&rig)?.0 == expected).then_some(())
    });
    assert_eq!(counted(&rig), Some(expected.len() as u64));

    // They are counted once, and no others are.
    assert_eq!(censuses(&rig, 2), expected);
    let rounds = busy.end();
    assert!(rounds > 20, "{rounds} rounds");
    rig.again_with_audit(Some(PASS));
    assert_eq!(censuses(&rig, 3), expected, "after {rounds} rounds");
    assert_eq!(counted(&rig), Some(expected.len() as u64));
    let said = rig.ok(&["durability"]);
    let want = format!("shards that no object names, each once: {}", expected.len());
    assert!(said.contains(&want), "{said}");
    for args in [&["repair", "status"][..], &["audit", "--now", "--look"]] {
        let said = rig.ok(args);
        assert!(said.contains("orphans on device "), "{args:?}: {said}");
    }
    eprintln!("{rounds} rounds of somebody who changes things meanwhile");
}
