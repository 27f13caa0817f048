//! The index of a partition on its devices: it is written out all the time, the journal forgets what is in it, and
//! whoever was away for too long, or lost it, learns it anew. Nothing that was acknowledged is missing, nothing else
//! is there (P1, P4, P5), and the journal does not grow for ever.
//!
//! `ASHLAR_INDEX_KEYS`: keys of the first test (20,000). `ASHLAR_INDEX_OVERWRITES`: overwrites of a hundred keys of the
//! second (120,000). `ASHLAR_SEED`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ashlar_layout::crc::crc32;
use ashlar_node_client::{Client, ClientOptions, ListOptions, PutOptions};
use ashlar_tests::content::{Content, Random, seed, setting};
use ashlar_tests::load;
use ashlar_tests::rig::{self, Options, PATIENCE, Rig, eventually};
use bytes::Bytes;

const BUCKET: &str = "indexed";
/// Puts under way at a time.
const LANES: u64 = 48;
const BLOCK: u64 = 4096;

/// Three nodes, all of them in the chain, whose indexes are written out every few hundred entries.
fn small() -> Options {
    Options {
        nodes: 3,
        class: "2+1",
        index_table: Some("64K"),
        journal_keep: Some("256K"),
        ..Options::default()
    }
}

/// What a key holds, once it was put: empty, embedded in the index, or beside the journal entry.
fn content(key: u64) -> Content {
    let lens = [0, 1, 100, 512, 513, 2000, 5000];
    Content {
        seed: key,
        len: lens[(key % 7) as usize],
    }
}

/// What was put, by name.
#[derive(Clone, Default)]
struct Books {
    acknowledged: BTreeMap<String, Content>,
    /// Nobody knows.
    unknown: BTreeMap<String, Content>,
}

/// Puts keys from `next` on, up to `end`, or until the store is said to be dead.
async fn fill(
    client: &Client,
    books: &Arc<Mutex<Books>>,
    next: &Arc<AtomicU64>,
    end: u64,
    dead: &Arc<AtomicBool>,
) {
    let mut lanes = tokio::task::JoinSet::new();
    for _ in 0..LANES {
        let (client, books, next) = (client.clone(), books.clone(), next.clone());
        let dead = dead.clone();
        lanes.spawn(async move {
            while !dead.load(Ordering::Relaxed) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return;
                }
                let (key, content) = (load::key_name(number), content(number));
                let body = Bytes::from(content.bytes());
                let put = client.put_bytes(BUCKET, &key, body, PutOptions::default());
                let result = put.await;
                let mut books = books.lock().expect("books");
                if result.is_ok() {
                    books.acknowledged.insert(key, content);
                } else {
                    books.unknown.insert(key, content);
                }
            }
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane.expect("no lane panics");
    }
}

/// Lists the bucket and compares: each acknowledged key with its length and checksum, and no other that was not
/// tried.
async fn compare(client: &Client, books: &Books) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut listed = BTreeMap::new();
    let mut after = String::new();
    loop {
        let options = ListOptions {
            after,
            max: 1000,
            ..ListOptions::default()
        };
        let page = client.list(BUCKET, options).await;
        let page = page.unwrap_or_else(|e| panic!("no list: {e}"));
        for object in page.objects {
            listed.insert(object.key, (object.size, object.crc));
        }
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    let told = |content: &Content| (content.len as u64, crc32(&content.bytes()));
    for (key, content) in &books.acknowledged {
        match listed.get(key) {
            Some(found) if *found == told(content) => {}
            other => wrong.push(format!("{key}: {other:?}, not {:?}", told(content))),
        }
    }
    for (key, found) in &listed {
        let known = books.acknowledged.get(key).or(books.unknown.get(key));
        if known.map(told) != Some(*found) {
            wrong.push(format!("{key}: listed as {found:?}, and nobody put that"));
        }
    }
    wrong.truncate(20);
    wrong
}

/// Reads some of the keys.
async fn read_some(client: &Client, books: &Books, random: &mut Random, count: usize) {
    let keys: Vec<(&String, &Content)> = books.acknowledged.iter().collect();
    for _ in 0..count {
        let (key, content) = random.pick(&keys);
        let read = load::read(client, BUCKET, key).await;
        let read = read.unwrap_or_else(|e| panic!("{key}: {e}"));
        let (bytes, _) = read.unwrap_or_else(|| panic!("{key}: lost"));
        assert_eq!(content.difference(&bytes), None, "{key}: other bytes");
    }
}

/// What a device that nobody serves says of its index: the root's number, and the last entry that it covers.
fn root(rig: &Rig, node: u32) -> (u64, u64) {
    let device = rig.device(node);
    let text = rig.ok(&[
        "--json",
        "device",
        "inspect",
        device.to_str().expect("UTF-8"),
    ]);
    let told: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("inspect: {e}: {text}"));
    let index = &told["indexes"][0];
    let number = |name: &str| index[name].as_u64();
    number("generation")
        .zip(number("covered"))
        .unwrap_or_else(|| panic!("node {node} has no index: {told}"))
}

#[test]
fn keys_survive_deaths_over_many_flushes() {
    let mut random = Random::new(seed("index"));
    let keys = setting("ASHLAR_INDEX_KEYS", 20_000);
    let rig = Rig::up(small());
    let runtime = rig::runtime();
    let books = Arc::new(Mutex::new(Books::default()));
    let next = Arc::new(AtomicU64::new(0));
    runtime.block_on(async {
        let client = rig.client(ClientOptions::default());
        client.create_bucket(BUCKET).await.expect("a bucket");
    });
    let rounds = 4;
    for round in 1..=rounds {
        let end = keys * round / rounds;
        let dead = Arc::new(AtomicBool::new(false));
        let death = next.load(Ordering::Relaxed) + keys / rounds / 2 + random.below(keys / 10);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                runtime.block_on(fill(&rig.client(load::hasty()), &books, &next, end, &dead));
            });
            eventually("the puts get on", PATIENCE, || {
                (next.load(Ordering::Relaxed) >= death.min(end)).then_some(())
            });
            rig.nodes("kill", &rig.all());
            dead.store(true, Ordering::Relaxed);
        });
        let roots: Vec<(u64, u64)> = rig.all().iter().map(|node| root(&rig, *node)).collect();
        rig.up_again();
        // What the death of the store left undone, in peace.
        runtime.block_on(async {
            let client = rig.client(ClientOptions::default());
            let alive = Arc::default();
            fill(&client, &books, &next, end, &alive).await;
            let books = books.lock().expect("books").clone();
            let wrong = compare(&client, &books).await;
            assert_eq!(wrong, Vec::<String>::new(), "round {round}\n{}", rig.logs());
            read_some(&client, &books, &mut random, 100).await;
            eprintln!(
                "round {round}: {} acknowledged, {} unknown; roots (number, covered) at the death: {roots:?}",
                books.acknowledged.len(),
                books.unknown.len()
            );
        });
    }
    let books = books.lock().expect("books");
    assert!(books.acknowledged.len() as u64 > keys / 2);
    rig.rig(&["down"]);
    for node in rig.all() {
        let (generation, covered) = root(&rig, node);
        assert!(
            generation > 10 && covered > keys / 2,
            "node {node}: root {generation} covers {covered}: too few flushes to prove anything"
        );
        let device = rig.device(node);
        rig.ok(&["device", "verify", device.to_str().expect("UTF-8")]);
    }
}

#[test]
fn overwrites_do_not_fill_the_devices() {
    let overwrites = setting("ASHLAR_INDEX_OVERWRITES", 120_000);
    let keys = 100;
    let rig = Rig::up(small());
    let runtime = rig::runtime();
    let used = || -> u64 {
        let of = |node: &u32| -> u64 {
            let devices = rig.status(*node).into_iter().flat_map(|core| core.devices);
            devices.map(|device| device.bytes_used).sum()
        };
        rig.all().iter().map(of).max().unwrap_or(0)
    };
    let body = |number: u64| {
        Content {
            seed: number,
            len: 4096,
        }
        .bytes()
    };
    let mut most = 0;
    let mut early = 0;
    runtime.block_on(async {
        let client = rig.client(ClientOptions::default());
        client.create_bucket(BUCKET).await.expect("a bucket");
    });
    let steps = 10;
    for step in 0..steps {
        let (from, to) = (overwrites * step / steps, overwrites * (step + 1) / steps);
        runtime.block_on(async {
            let client = rig.client(ClientOptions::default());
            let next = Arc::new(AtomicU64::new(from));
            let mut lanes = tokio::task::JoinSet::new();
            for lane in 0..keys.min(50) {
                let (client, next) = (client.clone(), next.clone());
                lanes.spawn(async move {
                    // Each lane has keys of its own, so that the last one put is known.
                    let mut last = BTreeMap::new();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= to {
                            return last;
                        }
                        let key = format!("key {:03}", lane * 2 + number % 2);
                        let put = client.put_bytes(
                            BUCKET,
                            &key,
                            Bytes::from(body(number)),
                            PutOptions::default(),
                        );
                        put.await.unwrap_or_else(|e| panic!("put {number}: {e}"));
                        last.insert(key, number);
                    }
                });
            }
            let mut last = BTreeMap::new();
            while let Some(lane) = lanes.join_next().await {
                last.extend(lane.expect("no lane panics"));
            }
            for (key, number) in last {
                let read = load::read(&client, BUCKET, &key).await;
                let read = read.unwrap_or_else(|e| panic!("{key}: {e}"));
                let (bytes, _) = read.unwrap_or_else(|| panic!("{key}: lost"));
                assert_eq!(bytes, body(number), "{key} after {number}");
            }
        });
        let now = used();
        eprintln!("{to} overwrites: {} MiB used", now >> 20);
        most = most.max(now);
        if step == 1 {
            early = now;
        }
    }
    let written = overwrites * 4096;
    assert!(
        written > 2 * most || written < 64 << 20,
        "{written} bytes were written, and {most} are used"
    );
    // 64 MiB of what is outdated may wait, in extents that hold something else as well; one each of journal and
    // index may be open, and one sealed.
    assert!(
        most <= early + (128 << 20),
        "{early} bytes were used after {} overwrites, {most} after {overwrites}",
        overwrites / 5
    );
    // And it is the same after a restart.
    rig.nodes("kill", &rig.all());
    rig.up_again();
    runtime.block_on(async {
        let client = rig.client(ClientOptions::default());
        let listed = load::list(&client, BUCKET, 1000).await.expect("a list");
        let names: BTreeSet<String> = listed.into_iter().collect();
        assert_eq!(names.len() as u64, keys);
    });
    assert!(used() <= early + (128 << 20), "{} after a restart", used());
}

/// Puts keys of these numbers, which must succeed.
fn put_all(rig: &Rig, books: &Arc<Mutex<Books>>, from: u64, to: u64) {
    let next = Arc::new(AtomicU64::new(from));
    rig::runtime().block_on(async {
        let client = rig.client(ClientOptions::default());
        let alive = Arc::default();
        fill(&client, books, &next, to, &alive).await;
    });
    let books = books.lock().expect("books");
    assert_eq!(books.unknown.len(), 0, "{}", rig.logs());
}

fn all_there(rig: &Rig, books: &Arc<Mutex<Books>>, random: &mut Random) {
    rig::runtime().block_on(async {
        let client = rig.client(ClientOptions {
            unavailable_wait: PATIENCE,
            ..ClientOptions::default()
        });
        let books = books.lock().expect("books").clone();
        let wrong = compare(&client, &books).await;
        assert_eq!(wrong, Vec::<String>::new(), "{}", rig.logs());
        read_some(&client, &books, random, 100).await;
    });
}

/// Waits until a node's replica follows its head and has all that the head has committed, or is the head.
fn caught_up(rig: &Rig, node: u32) {
    let committed = rig.replica(rig.head()).map_or(0, |head| head.committed.0);
    eventually("it catches up", PATIENCE, || {
        let replica = rig.replica(node)?;
        let settled = replica.state == "following" || replica.state == "serving";
        (settled && replica.committed.0 >= committed).then_some(())
    });
}

/// Kills heads until this node is one.
fn make_head(rig: &Rig, node: u32) {
    for _ in 0..12 {
        let head = rig.head();
        if head == node {
            return;
        }
        // One that learns is no candidate, and begins anew with each new head: it has to get to the end of it.
        caught_up(rig, node);
        rig.nodes("kill", &[head]);
        eventually("another head", PATIENCE, || {
            (rig.head() != head).then_some(())
        });
        rig.nodes("start", &[head]);
        caught_up(rig, head);
    }
    panic!("node {node} does not become the head\n{}", rig.logs());
}

#[test]
fn who_was_away_for_long_learns_a_snapshot() {
    let mut random = Random::new(seed("snapshot"));
    let rig = Rig::up(Options {
        index_table: Some("16K"),
        journal_keep: Some("16K"),
        ..small()
    });
    rig.ok(&["mb", &format!("ashlar://{BUCKET}")]);
    let books = Arc::new(Mutex::new(Books::default()));
    put_all(&rig, &books, 0, 500);
    let head = rig.head();
    let away = *rig.all().iter().find(|node| **node != head).expect("three");
    rig.nodes("kill", &[away]);
    put_all(&rig, &books, 500, 3500);
    rig.nodes("start", &[away]);
    caught_up(&rig, away);
    let log = rig.log(away);
    assert!(log.contains("learns a snapshot"), "it did not: {log}");

    // Without either of the others it serves, as a follower or as the head.
    for other in rig.all().into_iter().filter(|node| *node != away) {
        rig.nodes("kill", &[other]);
        all_there(&rig, &books, &mut random);
        rig.nodes("start", &[other]);
        caught_up(&rig, other);
    }
    make_head(&rig, away);
    all_there(&rig, &books, &mut random);
    put_all(&rig, &books, 3500, 3600);
    // And with everything down in between.
    rig.nodes("kill", &rig.all());
    rig.up_again();
    all_there(&rig, &books, &mut random);
}

/// Chooses blocks by what is in them.
type Which = fn(&[u8]) -> bool;

/// Spoils every block of a device that `which` says is one to be spoilt; how many.
fn spoil(device: &Path, which: Which) -> u64 {
    let file = OpenOptions::new().read(true).write(true).open(device);
    let file = file.unwrap_or_else(|e| panic!("{}: {e}", device.display()));
    let len = file.metadata().expect("a size").len();
    let mut bytes = vec![0; 1 << 20];
    let mut spoilt = 0;
    for at in (0..len).step_by(bytes.len()) {
        file.read_exact_at(&mut bytes, at).expect("readable");
        for (block, bytes) in bytes.chunks_exact(BLOCK as usize).enumerate() {
            if which(bytes) {
                let at = at + block as u64 * BLOCK + 100;
                file.write_all_at(&[0xa5; 40], at).expect("writable");
                spoilt += 1;
            }
        }
    }
    file.sync_all().expect("writable");
    spoilt
}

/// A page of this kind, as FORMAT.md numbers them.
fn is_page(bytes: &[u8], kind: u8) -> bool {
    bytes.starts_with(b"ASHLPAGE") && bytes[14] == kind
}

const LEAF: u8 = 1;
const TOP: u8 = 3;
const ATTACHMENT: u8 = 5;

#[test]
fn rot_of_the_index_heals() {
    let mut random = Random::new(seed("rot"));
    let rig = Rig::up(small());
    rig.ok(&["mb", &format!("ashlar://{BUCKET}")]);
    let books = Arc::new(Mutex::new(Books::default()));
    put_all(&rig, &books, 0, 4000);

    // Under the head, found when somebody reads.
    let head = rig.head();
    rig.nodes("kill", &rig.all());
    let spoilt = spoil(&rig.device(head), |bytes| is_page(bytes, LEAF));
    assert!(spoilt > 0, "node {head} has no leaf pages");
    rig.up_again();
    make_head(&rig, head);
    all_there(&rig, &books, &mut random);
    let findings = rig.findings(head);
    assert!(findings.get("rot") > Some(&0), "node {head}: {findings:?}");
    caught_up(&rig, head);
    // It keeps up all the while, and asks to be taught when it follows.
    eventually("it learns a snapshot", PATIENCE, || {
        rig.log(head).contains("learns a snapshot").then_some(())
    });
    make_head(&rig, head);
    all_there(&rig, &books, &mut random);

    // What an index cannot be opened without, found at the start of a follower.
    let rotten: [(&str, Which); 3] = [
        ("tops", |bytes| is_page(bytes, TOP)),
        ("attachments", |bytes| is_page(bytes, ATTACHMENT)),
        ("roots", |bytes| bytes.starts_with(b"ASHLROOT")),
    ];
    for (name, which) in rotten {
        put_all(&rig, &books, 0, 1000);
        let head = rig.head();
        let victim = *rig.all().iter().find(|node| **node != head).expect("three");
        rig.nodes("kill", &[victim]);
        let spoilt = spoil(&rig.device(victim), which);
        assert!(spoilt > 0, "node {victim} has no {name}");
        let before = rig.log(victim).matches("learned anew").count();
        rig.nodes("start", &[victim]);
        caught_up(&rig, victim);
        let log = rig.log(victim);
        let anew = log.matches("learned anew").count();
        assert_eq!(anew, before + 1, "{name} of node {victim}: {log}");
        assert!(
            rig.findings(victim).values().sum::<u64>() > 0,
            "{name}: {log}"
        );
        make_head(&rig, victim);
        all_there(&rig, &books, &mut random);
        eprintln!("{spoilt} {name} of node {victim} spoilt, and learned anew");
    }
}
