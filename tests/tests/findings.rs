//! All that can happen to shards is found as what it was, made good and counted, to the unit, while somebody reads; and
//! what is gone is told by name, and stays told.
//!
//! In CI with some thousand shards. `cargo xtask findings --shards 2000000` does the same with as many as that.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ashlar_layout::ids::{ShardId, StripeId};
use ashlar_layout::manifest::Body;
use ashlar_layout::message::FindingKind;
use ashlar_layout::names::SYSTEM_BUCKET;
use ashlar_layout::record::{RecordHeader, Subject};
use ashlar_node_client::{Client, ClientOptions, Code, GetOptions, ListOptions, PutOptions};
use ashlar_tests::content::{Content, Random, setting};
use ashlar_tests::damage::{self, Harm, Image};
use ashlar_tests::rig::{Options, Rig, eventually, runtime};
use serde_json::Value;
use tokio::task::JoinSet;

const BUCKET: &str = "data";
const SEED: u64 = 6;
/// Data and parity shards of a stripe, and so nodes.
const SHARDS: usize = 6;
const PARITY: usize = 2;
/// Objects of which more shards are damaged in the end than may be.
const LOST: usize = 3;
/// Bytes of the front of a device that are remembered, to drop writes there.
const REMEMBERED: usize = 32 << 20;
/// Shards from which on larger objects are rare.
const MANY: usize = 300_000;
/// What shards are called that no object names.
const ORPHAN: &str = "orphan";
/// Seconds from one pass to the next.
const PASS: &str = "3";

/// Bad shards by kind.
type Counts = BTreeMap<&'static str, u64>;

fn key(number: usize) -> String {
    format!("k{number:07}")
}

fn shards() -> usize {
    static SHARDS: OnceLock<usize> = OnceLock::new();
    *SHARDS.get_or_init(|| setting("ASHLAR_FINDINGS_SHARDS", 2700) as usize)
}

/// What an object holds: too much to ride in the journal, now and then in shards of several pieces; of very many, not
/// so often that they would need larger disks than people have.
fn content(number: usize) -> Content {
    let every = if shards() < MANY { 16 } else { 160 };
    let len = match number % every {
        5 => 300_000,
        9 => 150_000,
        _ => 36_000 + number % 7 * 500,
    };
    let seed = number as u64;
    Content { seed, len }
}

fn add(counts: &mut Counts, kind: FindingKind, count: usize) {
    if count > 0 {
        *counts.entry(kind.name()).or_default() += count as u64;
    }
}

/// How much there is of everything.
struct Size {
    objects: usize,
    /// Shards of which one bit is turned,
    bits: usize,
    /// and those to which each other thing is done.
    others: usize,
    patience: Duration,
    device: &'static str,
}

fn size() -> Size {
    let shards = shards();
    let objects = (shards / SHARDS).max(450);
    Size {
        objects,
        bits: (objects / 2).min(5000),
        others: (objects / 40).min(100),
        patience: Duration::from_secs(120 + shards as u64 / 100),
        device: match shards {
            ..20_000 => "256M",
            20_000..MANY => "2G",
            _ => "8G",
        },
    }
}

/// Somebody who reads all the time.
struct Reader {
    stop: Arc<AtomicBool>,
    read: Arc<AtomicU64>,
    thread: JoinHandle<Vec<String>>,
}

async fn get(client: &Client, number: usize) -> Result<(), String> {
    let name = key(number);
    let failed = |e| format!("{name}: {e}");
    let found = client.get(BUCKET, &name, GetOptions::default()).await;
    let mut found = found.map_err(failed)?;
    let mut all = Vec::new();
    while let Some(piece) = found.next().await {
        all.extend_from_slice(&piece.map_err(failed)?);
    }
    match content(number).difference(&all) {
        None => Ok(()),
        Some(at) => Err(format!("{name}: byte {at} is WRONG")),
    }
}

impl Reader {
    fn start(rig: &Rig, objects: usize) -> Reader {
        let (stop, read) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let options = ClientOptions {
            unavailable_wait: Duration::from_secs(30),
            ..ClientOptions::default()
        };
        let map = rig.map();
        let (ended, count) = (stop.clone(), read.clone());
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                let client = Client::connect(map, options).expect("the map is the rig's");
                let (mut random, mut wrong) = (Random::new(SEED), Vec::new());
                while !ended.load(Ordering::Relaxed) && wrong.len() < 10 {
                    let number = random.below(objects as u64) as usize;
                    wrong.extend(get(&client, number).await.err());
                    count.fetch_add(1, Ordering::Relaxed);
                }
                wrong
            })
        });
        Reader { stop, read, thread }
    }

    /// Waits until it has read so many more.
    fn reads(&self, more: u64, patience: Duration) {
        let until = self.read.load(Ordering::Relaxed) + more;
        eventually("somebody reads on", patience, || {
            let done = self.read.load(Ordering::Relaxed) >= until || self.thread.is_finished();
            done.then_some(())
        });
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let wrong = self.thread.join().expect("it does not panic");
        assert_eq!(wrong, Vec::<String>::new(), "reads that were not right");
        self.read.load(Ordering::Relaxed)
    }
}

/// A shard that is stored: of which object, and on which node.
struct Shard {
    object: usize,
    node: u32,
}

/// All shards of all objects, and stripes of each object.
struct Stored {
    shards: HashMap<ShardId, Shard>,
    stripes: Vec<Vec<StripeId>>,
}

async fn put(client: &Client, objects: &[usize]) {
    let mut tasks = JoinSet::new();
    for &number in objects {
        if tasks.len() >= 16 {
            tasks.join_next().await;
        }
        let client = client.clone();
        tasks.spawn(async move {
            let (name, bytes) = (key(number), content(number).bytes().into());
            let done = client
                .put_bytes(BUCKET, &name, bytes, PutOptions::default())
                .await;
            done.unwrap_or_else(|e| panic!("{name}: {e}"));
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("an object is put");
    }
}

/// What is stored, and the objects that lie narrower than they could: a device that is slow for a moment takes no
/// shards until it has shown itself.
async fn stored(client: &Client, objects: usize) -> (Stored, Vec<usize>) {
    let mut tasks = JoinSet::new();
    let mut narrow = Vec::new();
    let mut found = Stored {
        shards: HashMap::new(),
        stripes: vec![Vec::new(); objects],
    };
    let map = client.map();
    let mut numbers = 0..objects;
    loop {
        while tasks.len() < 16
            && let Some(number) = numbers.next()
        {
            let client = client.clone();
            tasks.spawn(async move {
                let meta = client.head(BUCKET, &key(number)).await;
                (
                    number,
                    meta.unwrap_or_else(|e| panic!("{}: {e}", key(number))),
                )
            });
        }
        let Some(done) = tasks.join_next().await else {
            return (found, narrow);
        };
        let (object, meta) = done.expect("an object is known");
        let Body::Stripes(stripes) = &meta.manifest.body else {
            panic!("{} has no stripes: {:?}", key(object), meta.manifest.body);
        };
        for stripe in stripes {
            found.stripes[object].push(stripe.id);
            let group = map.group(stripe.pg).expect("a group of the map");
            if group.devices.len() < SHARDS {
                narrow.push(object);
            }
            for (index, device) in (0..).zip(&group.devices) {
                let stripe = stripe.id;
                let node = map.device(*device).expect("a device of the map").node.0;
                found
                    .shards
                    .insert(ShardId { stripe, index }, Shard { object, node });
            }
        }
    }
}

/// Stores all objects, each in stripes of full width.
async fn fill(client: &Client, objects: usize, patience: Duration) -> Stored {
    let deadline = Instant::now() + patience;
    let mut left: Vec<usize> = (0..objects).collect();
    loop {
        put(client, &left).await;
        let (all, mut narrow) = stored(client, objects).await;
        if narrow.is_empty() {
            return all;
        }
        narrow.dedup();
        assert!(Instant::now() < deadline, "not in full width: {narrow:?}");
        eprintln!("{} objects are put again: a device was slow", narrow.len());
        left = narrow;
    }
}

/// The ledger's own documents ride in the journal: then nobody can lose shards of them.
async fn ledger_has_no_shards(client: &Client) {
    let page = client.list(SYSTEM_BUCKET, ListOptions::default()).await;
    for entry in page.expect("the ledger is there").objects {
        let meta = client.head(SYSTEM_BUCKET, &entry.key).await;
        // A document may be written anew meanwhile.
        let body = meta.map(|meta| meta.manifest.body);
        assert!(
            body.as_ref().map_or(true, |body| *body == Body::Inline),
            "{}: {body:?}",
            entry.key
        );
    }
}

/// What the ledger has; none while it cannot be read.
fn ledger(rig: &Rig) -> Option<Value> {
    let output = rig.run(&["durability", "--json"]);
    let read = output.status.success();
    read.then(|| serde_json::from_slice(&output.stdout).expect("it is told as JSON"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a count")
}

fn found(ledger: &Value) -> Counts {
    let found = ledger["measured"]["counted"]["found"].as_object();
    let mut counts = Counts::new();
    for (name, count) in found.expect("counts by kind") {
        // They are found when two censuses have ended, whatever else happens meanwhile.
        if name == ORPHAN {
            continue;
        }
        let known = FindingKind::ALL
            .into_iter()
            .find(|kind| kind.name() == name);
        let kind = known.unwrap_or_else(|| panic!("{name} is no kind of finding"));
        counts.insert(kind.name(), number(count));
    }
    counts
}

fn orphans(ledger: &Value) -> u64 {
    let found = &ledger["measured"]["counted"]["found"];
    found.get(ORPHAN).map_or(0, number)
}

fn repaired(ledger: &Value) -> u64 {
    number(&ledger["measured"]["counted"]["repaired"])
}

/// Waits until as much was found and mended as this, and nothing waits; what the ledger has then.
fn settled(rig: &Rig, what: &str, expected: &Counts, mended: u64, patience: Duration) -> Value {
    let all: u64 = expected.values().sum();
    let mut told = 0;
    let it = eventually(what, patience, || {
        let it = ledger(rig)?;
        let is: (u64, u64) = (found(&it).values().sum(), repaired(&it));
        if is.0 + is.1 > told {
            eprintln!(
                "{what}: {} of {all} found, {} of {mended} mended",
                is.0, is.1
            );
            told = is.0 + is.1 + all / 4;
        }
        if is.0 < all || is.1 < mended {
            return None;
        }
        let status = rig.ok(&["repair", "status", "--json"]);
        let status: Value = serde_json::from_str(&status).expect("it is told as JSON");
        let rows = status["partitions"].as_array()?;
        let waits = |row: &Value| row["waiting"].as_object().is_some_and(|it| !it.is_empty());
        (!rows.is_empty() && !rows.iter().any(waits)).then_some(it)
    });
    eprintln!("{what}: {:?}, {} mended", found(&it), repaired(&it));
    assert_eq!(found(&it), *expected, "{what}: {it}");
    assert_eq!(repaired(&it), mended, "{what}: {it}");
    it
}

/// Waits for a pass that began after this, and ended.
fn pass(rig: &Rig, patience: Duration) {
    let passes = |it: Value| number(&it["measured"]["counted"]["passes"]);
    let before = eventually("the ledger can be read", patience, || ledger(rig));
    let enough = passes(before) + 2;
    eventually("a pass ends", patience, || {
        ledger(rig).filter(|it| passes(it.clone()) >= enough)
    });
}

/// Damage of all kinds is done to shards of different stripes, while nodes serve; how much of each kind.
fn damage(rig: &Rig, stored: &Stored, size: &Size, before: (u32, &[u8])) -> Counts {
    let images: BTreeMap<u32, Image> = rig
        .all()
        .into_iter()
        .map(|node| (node, Image::open(&rig.device(node))))
        .collect();
    let all: BTreeMap<u32, Vec<RecordHeader>> = images
        .iter()
        .map(|(node, image)| (*node, image.shards()))
        .collect();
    let known = |header: &RecordHeader| match header.subject {
        Subject::Shard(shard) => stored.shards.get(&shard),
        _ => None,
    };
    let mut counts = Counts::new();
    // Of each object one shard at the most, and none of those that are to be lost.
    let mut hurt: BTreeSet<usize> = (size.objects - LOST..size.objects).collect();
    let (dropped, front) = before;
    let mut left = size.others;
    for header in &all[&dropped] {
        let Some(shard) = known(header).filter(|it| left > 0 && !hurt.contains(&it.object)) else {
            continue;
        };
        if let Some(kind) = images[&dropped].drop_write(header, front) {
            hurt.insert(shard.object);
            left -= 1;
            add(&mut counts, kind, 1);
        }
    }
    assert_eq!(left, 0, "too few writes could be dropped");
    // A region that is all shards of objects which have no other damage.
    let (node, records) = all.iter().next_back().expect("there are nodes");
    let fits = |it: &RecordHeader| known(it).is_some_and(|it| !hurt.contains(&it.object));
    let region = records.windows(size.others).find(|run| {
        let follows =
            |pair: &[RecordHeader]| pair[0].address + pair[0].record_len(4096) == pair[1].address;
        run.iter().all(fits) && run.windows(2).all(follows)
    });
    let region = region.expect("records without a gap");
    hurt.extend(region.iter().filter_map(known).map(|it| it.object));
    images[node].zero(region);
    add(&mut counts, FindingKind::LostWrite, region.len());
    // And the rest, each somewhere.
    let mut random = Random::new(SEED);
    let nodes = rig.all();
    for harm in Harm::ALL {
        let mut left = match harm {
            Harm::Bit => size.bits,
            _ => size.others,
        };
        while left > 0 {
            let (node, other) = (*random.pick(&nodes), *random.pick(&nodes));
            let header = random.pick(&all[&node]);
            let Some(shard) = known(header).filter(|it| !hurt.contains(&it.object)) else {
                continue;
            };
            // Of an object that is not hurt: what is taken from it is whole.
            let donor = random.pick(&all[&other]);
            let whole = known(donor).is_some_and(|it| !hurt.contains(&it.object));
            if !whole || donor == header {
                continue;
            }
            assert_eq!(shard.node, node, "the map says where it is");
            images[&node].harm(header, harm, &mut random, (&images[&other], donor));
            hurt.insert(shard.object);
            left -= 1;
            add(&mut counts, harm.is_found_as(), 1);
        }
    }
    eprintln!(
        "done to {} objects of {}: {counts:?}",
        hurt.len() - LOST,
        size.objects
    );
    counts
}

/// Two devices change their names while their nodes are down: each is refused as what it is. Then it is made good.
fn swap(rig: &Rig, (a, b): (u32, u32), reader: &Reader, patience: Duration) {
    let paths = [rig.device(a), rig.device(b)];
    let ids = paths.each_ref().map(|path| Image::open(path).device());
    rig.nodes("kill", &[a, b]);
    damage::swap(&paths[0], &paths[1]);
    for (node, got, expected) in [(a, ids[1], ids[0]), (b, ids[0], ids[1])] {
        let told = format!("this is device {got}, not {expected}");
        let start = rig.rig_args(&["start", &node.to_string()]);
        let said = rig.fails(&start, 1, &[&told]);
        eprintln!("node {node}: {}", said.trim());
    }
    reader.reads(50, patience);
    damage::swap(&paths[0], &paths[1]);
    rig.nodes("start", &[a, b]);
}

/// A device is taken away, and another one is formatted in its place.
fn format_anew(rig: &Rig, node: u32, reader: &Reader, patience: Duration) {
    let path = rig.device(node);
    let map = rig.map();
    let device = map.devices.iter().find(|it| it.node.0 == node);
    let device = device.expect("a node has a device").no.to_string();
    rig.nodes("kill", &[node]);
    let len = std::fs::metadata(&path).map_or(0, |it| it.len());
    std::fs::remove_file(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = std::fs::File::create(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.set_len(len).expect("a file may be sparse");
    reader.reads(20, patience);
    let text = path.to_str().expect("UTF-8");
    rig.ok(&["device", "format", "--device-no", &device, text]);
    rig.nodes("start", &[node]);
}

/// More shards of some stripes are damaged than may be, all in one moment; the names of what is lost.
fn lose(rig: &Rig, stored: &Stored, objects: std::ops::Range<usize>) -> BTreeSet<String> {
    rig.nodes("stop", &rig.all());
    let (mut random, mut left) = (Random::new(SEED), HashMap::new());
    for node in rig.all() {
        let image = Image::open(&rig.device(node));
        for header in image.shards() {
            let Subject::Shard(id) = header.subject else {
                continue;
            };
            let Some(shard) = stored
                .shards
                .get(&id)
                .filter(|it| objects.contains(&it.object))
            else {
                continue;
            };
            let left = left.entry(id.stripe).or_insert(PARITY + 1);
            if *left > 0 && shard.node == node {
                *left -= 1;
                image.harm(&header, Harm::Sector, &mut random, (&image, &header));
            }
        }
    }
    rig.nodes("cont", &rig.all());
    assert!(left.values().all(|left| *left == 0), "{left:?}");
    let stripes = objects.flat_map(|object| {
        let stripes = stored.stripes[object].iter();
        stripes.map(move |it| format!("{} {}.{}", key(object), it.writer, it.attempt))
    });
    stripes.collect()
}

/// The names of what the ledger has as lost.
fn losses(ledger: &Value) -> BTreeSet<String> {
    let losses = ledger["losses"].as_array().expect("losses").iter();
    let name = |loss: &Value| {
        let key = loss["item"]["key"].as_str().expect("a key");
        let (writer, attempt) = (&loss["stripe"]["writer"], &loss["stripe"]["attempt"]);
        format!("{key} {}.{}", number(writer), number(attempt))
    };
    losses.map(name).collect()
}

#[test]
fn all_that_happens_is_found_as_what_it_was_made_good_and_counted() {
    let size = size();
    let patience = size.patience;
    let rig = Rig::up(Options {
        size: size.device,
        audit: Some(PASS),
        // Of many all is read several times, while somebody reads as fast as he can: he is to be right, not quick.
        audit_floor: (shards() > 20_000).then_some("1G"),
        ..Options::default()
    });
    rig.ok(&["mb", &format!("ashlar://{BUCKET}")]);
    let chain = rig.chain();
    let outside = rig.all().into_iter().filter(|node| !chain.contains(node));
    let outside: Vec<u32> = outside.collect();
    let before = Image::open(&rig.device(outside[1])).first(REMEMBERED);
    let runtime = runtime();
    // Made within the runtime, for it starts tasks there.
    let client = runtime.block_on(async { rig.client(ClientOptions::default()) });
    let stored = runtime.block_on(fill(&client, size.objects, size.patience));
    eprintln!("{} objects, {} shards", size.objects, stored.shards.len());
    let reader = Reader::start(&rig, size.objects - LOST);

    // On devices that are not formatted anew.
    let (map, nodes) = (rig.map(), rig.all());
    let nodes: Vec<u32> = nodes.into_iter().filter(|it| *it != outside[2]).collect();
    for number in 0..size.others {
        damage::leak(&map, nodes[number % nodes.len()], number as u64);
    }

    let mut counts = damage(&rig, &stored, &size, (outside[1], &before));
    drop(before);
    let all: u64 = counts.values().sum();
    settled(&rig, "damage of all kinds", &counts, all, patience);
    reader.reads(100, patience);

    swap(&rig, (outside[0], outside[1]), &reader, patience);
    pass(&rig, patience);
    settled(&rig, "devices swapped", &counts, all, patience);

    runtime.block_on(ledger_has_no_shards(&client));
    format_anew(&rig, outside[2], &reader, patience);
    let of_it = stored.shards.values().filter(|it| it.node == outside[2]);
    add(&mut counts, FindingKind::Missing, of_it.count());
    let all: u64 = counts.values().sum();
    settled(&rig, "a device formatted anew", &counts, all, patience);
    pass(&rig, patience);
    settled(&rig, "nothing is counted twice", &counts, all, patience);
    let looked = rig.ok(&["audit", "--now", "--look", "--json"]);
    let looked: Value = serde_json::from_str(&looked).expect("it is told as JSON");
    assert_eq!(
        looked["bad"].as_object().map(|it| it.len()),
        Some(0),
        "{looked}"
    );

    // One shard too many: that is told by name, is what it was, and stays told.
    let gone = size.objects - LOST..size.objects;
    let names = lose(&rig, &stored, gone.clone());
    add(&mut counts, FindingKind::Rot, names.len() * (PARITY + 1));
    let is_lost = |it: &Value, what: &str| {
        assert_eq!(losses(it), names, "{what}");
        assert_eq!(
            number(&it["measured"]["lost_objects"]),
            LOST as u64,
            "{what}"
        );
    };
    let it = settled(&rig, "stripes are lost", &counts, all, patience);
    is_lost(&it, "found");
    for object in gone {
        let read = runtime.block_on(client.get(BUCKET, &key(object), GetOptions::default()));
        let code = read.map(|_| ()).map_err(|error| error.code());
        assert_eq!(
            code,
            Err(Code::Unreadable),
            "what is lost is neither absent nor wrong"
        );
    }
    pass(&rig, patience);
    let it = settled(&rig, "after another pass", &counts, all, patience);
    is_lost(&it, "after another pass");
    // Not one that is damaged, mended or lost is among them.
    let others = size.others as u64;
    eventually("what no object names is found", patience, || {
        ledger(&rig).filter(|it| orphans(it) >= others)
    });
    let read = reader.end();
    eprintln!("{read} reads beside it, all of them right");
    assert!(read > 200, "only {read} reads");

    rig.nodes("kill", &rig.all());
    rig.up_again();
    pass(&rig, patience);
    let it = settled(&rig, "after a restart", &counts, all, patience);
    is_lost(&it, "after a restart");
    assert_eq!(orphans(&it), others, "shards that no object names: {it}");
    rig.ok(&["rm", "-r", &format!("ashlar://{BUCKET}/")]);
    let it = eventually("the ledger can be read", patience, || ledger(&rig));
    is_lost(&it, "after its objects were removed");
}
