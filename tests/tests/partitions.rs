//! Partitions are split, merged and moved under full load, while nodes die: nothing that was acknowledged is missing,
//! nothing is stale, done twice or listed wrongly (P1, P2, P4), and a bucket that reached over several partitions can
//! be removed when it is empty.
//!
//! `ASHLAR_PARTITIONS_STEPS`: changes of the map (24). `ASHLAR_PARTITIONS_DEATHS`: of how many changes one goes with a
//! death (2; 0: none). `ASHLAR_SEED`. What changes in peace cost those that ask is told; no time is asserted.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ashlar_cluster_map::{ClusterMap, Partition};
use ashlar_layout::ids::{NodeId, PartitionId};
use ashlar_node_client::{Client, ClientOptions, DeleteOptions, ListOptions, PutOptions};
use ashlar_tests::content::{Random, seed, setting};
use ashlar_tests::history::{Clock, History, Kind, Operation, Outcome, gap};
use ashlar_tests::linear;
use ashlar_tests::rig::{self, Options, PATIENCE, Rig, eventually};
use ashlar_tests::storm::{Shape, Storm};
use bytes::Bytes;

const BUCKET: &str = "parted";
const STEPS: u64 = 24;

/// The newest map that the control plane knows.
fn newest(rig: &Rig) -> ClusterMap {
    let json = rig.ok(&["cluster", "map"]);
    ClusterMap::from_json(json.as_bytes()).unwrap_or_else(|e| panic!("{e}: {json}"))
}

/// Which partitions have a head that serves.
fn served(rig: &Rig, nodes: &[u32]) -> BTreeSet<PartitionId> {
    let runtime = rig::runtime();
    runtime.block_on(async {
        let client = rig.client(ClientOptions::default());
        let mut served = BTreeSet::new();
        for node in nodes {
            let answer = client.node_status(NodeId(*node));
            let Ok(Ok(cores)) = tokio::time::timeout(Duration::from_secs(1), answer).await else {
                continue;
            };
            let replicas = cores.into_iter().flat_map(|core| core.replicas);
            let heads = replicas.filter(|r| r.role == "head" && r.state == "serving");
            served.extend(heads.map(|r| r.partition));
        }
        served
    })
}

/// Waits until what the map wants has been made: all its partitions serve, and none is ending.
fn settled(rig: &Rig) -> ClusterMap {
    eventually("all partitions of the map serve", PATIENCE, || {
        let map = newest(rig);
        let serve = served(rig, &rig.all());
        let all = map.partitions.iter().all(|p| serve.contains(&p.id));
        (all && map.ending.is_empty()).then_some(map)
    })
}

fn goes_on(storm: &Storm) {
    let (reads, writes) = storm.served();
    eventually("the load goes on", PATIENCE, || {
        let (reads_now, writes_now) = storm.served();
        (reads_now > reads + 20 && writes_now > writes + 20).then_some(())
    });
}

fn devices(partition: &Partition) -> BTreeSet<u32> {
    partition.chain.devices.iter().map(|no| no.0).collect()
}

/// Asks for a change of the map, which may be refused: whatever another one has done since.
fn ask(rig: &Rig, args: &[String]) -> bool {
    let mut all = vec!["cluster".to_owned()];
    all.extend_from_slice(args);
    let output = rig.run(&all);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    eprintln!(
        "{}: {}",
        all.join(" "),
        if output.status.success() {
            "done"
        } else {
            said.trim()
        }
    );
    output.status.success()
}

/// A change of the map that went without a death.
struct Made {
    what: &'static str,
    /// From when it was asked for until all partitions served, by the history's clock.
    from: u64,
    to: u64,
}

/// Prints what changes of each kind cost those that asked for something meanwhile.
fn tell(history: &History, made: &[Made]) {
    let is_write = |o: &Operation| o.kind != Kind::Get;
    let longest = |of: &Made, writes: bool| {
        let within = |o: &&Operation| o.ret >= of.from && o.invoke <= of.to;
        let asked = history.operations.iter().filter(within);
        let took = asked.filter(|o| o.served() && is_write(o) == writes);
        took.map(|o| o.ret - o.invoke).max().unwrap_or(0) as f64 / 1e6
    };
    let times = history.served(is_write);
    for what in ["split", "merge", "replace"] {
        let of = || made.iter().filter(|m| m.what == what);
        let row = |value: &dyn Fn(&Made) -> f64| {
            let mut values: Vec<f64> = of().map(value).collect();
            values.sort_by(f64::total_cmp);
            let at = |n: usize| values.get(n).copied().unwrap_or(0.0);
            let (middle, last) = (values.len() / 2, values.len().saturating_sub(1));
            format!("{:.1}, {:.1}", at(middle), at(last))
        };
        eprintln!(
            "{what}: {} in peace; middle and longest, ms: a write {}; a read {}; nobody wrote {}",
            of().count(),
            row(&|m| longest(m, true)),
            row(&|m| longest(m, false)),
            row(&|m| {
                let (from, to) = gap(&times, m.from, m.to);
                (to - from) as f64 / 1e6
            }),
        );
    }
}

/// One change of the map: which, if it was made.
fn change(rig: &Rig, map: &ClusterMap, random: &mut Random, keys: u64) -> Option<&'static str> {
    let partitions = &map.partitions;
    let (nth, few) = (
        random.below(partitions.len() as u64) as usize,
        partitions.len() < 5,
    );
    let partition = &partitions[nth];
    match random.below(10) {
        0..5 if few => {
            // Keys as the load names them: the hot ones come first.
            let below = if random.below(2) == 0 {
                48
            } else {
                keys.max(49)
            };
            let key = format!("key/{:08}", 1 + random.below(below));
            let place = (BUCKET.to_owned(), key.clone());
            let holder = map
                .partition(&place.0, &place.1)
                .map_or(partition.id, |p| p.id);
            let args = [
                "split".into(),
                holder.to_string(),
                format!("{BUCKET}/{key}"),
            ];
            ask(rig, &args).then_some("split")
        }
        5..7 => {
            let inside = devices(partition);
            let spare = map.devices.iter().filter(|d| !inside.contains(&d.no.0));
            let spares = spares_of(map, spare.map(|d| d.no.0).collect(), &inside);
            let out: Vec<u32> = inside.into_iter().collect();
            let (out, with) = (random.pick(&out), random.pick(&spares));
            let of = partition.id.to_string();
            let args = [
                "replace".into(),
                "--partition".into(),
                of,
                "--out".into(),
                out.to_string(),
                "--with".into(),
                with.to_string(),
                "--crowd".into(),
            ];
            ask(rig, &args).then_some("replace")
        }
        _ => {
            let right = partitions.get(nth + 1)?;
            if devices(partition) != devices(right) {
                let to: Vec<String> = devices(partition).iter().map(u32::to_string).collect();
                let to = to.join(",");
                ask(
                    rig,
                    &["move".into(), right.id.to_string(), "--to".into(), to],
                );
            }
            let (left, right) = (partition.id.to_string(), right.id.to_string());
            ask(rig, &["merge".into(), left, right]).then_some("merge")
        }
    }
}

/// Spares in nodes that hold no member.
fn spares_of(map: &ClusterMap, spares: Vec<u32>, inside: &BTreeSet<u32>) -> Vec<u32> {
    let node = |no: u32| map.devices.iter().find(|d| d.no.0 == no).map(|d| d.node);
    let taken: BTreeSet<_> = inside.iter().filter_map(|no| node(*no)).collect();
    let free = spares
        .into_iter()
        .filter(|no| node(*no).is_some_and(|n| !taken.contains(&n)));
    free.collect()
}

#[test]
fn partitions_are_split_merged_and_moved_while_they_serve_and_nodes_die() {
    let seed = seed("partitions");
    let steps = setting("ASHLAR_PARTITIONS_STEPS", STEPS);
    let rig = Rig::up(Options {
        size: "1G",
        index_table: Some("64K"),
        journal_keep: Some("256K"),
        ..Options::default()
    });
    let runtime = rig::runtime();
    let clock = Clock::start();
    let shape = Shape {
        bucket: BUCKET.to_owned(),
        writers: 4,
        readers: 4,
        hot: 48,
        seed,
    };
    let storm = Storm::new(shape, clock);
    let (clients, tasks) = runtime.block_on(async {
        let clients: Vec<Client> = (0..3)
            .map(|_| rig.client(ClientOptions::default()))
            .collect();
        let made = clients[0].create_bucket(BUCKET).await;
        made.unwrap_or_else(|e| panic!("no bucket: {e}"));
        let tasks = storm.begin(&clients);
        (clients, tasks)
    });
    let mut random = Random::new(seed ^ 0x5b117);
    let deaths = setting("ASHLAR_PARTITIONS_DEATHS", 2);
    let (mut done, mut killed, mut most) = (0, 0, 0);
    let mut made = Vec::new();
    for step in 0..steps {
        goes_on(&storm);
        let map = newest(&rig);
        let from = clock.now();
        let changed = change(&rig, &map, &mut random, storm.served().1 / 3);
        done += u64::from(changed.is_some());
        // Half of all changes go with a death, some of them at once.
        let dies = changed.is_some() && step.checked_rem(deaths) == Some(0);
        if dies {
            rig::pause(Duration::from_millis(random.below(3) * random.below(40)));
            let victims = devices(&map.partitions[0]);
            let victims: Vec<u32> = victims.into_iter().collect();
            let node = *random.pick(&victims);
            eprintln!("kill node {node}");
            rig.nodes("kill", &[node]);
            goes_on(&storm);
            rig.nodes("start", &[node]);
            killed += 1;
        }
        most = most.max(settled(&rig).partitions.len());
        if let (Some(what), false) = (changed, dies) {
            let to = clock.now();
            made.push(Made { what, from, to });
        }
    }
    goes_on(&storm);
    let mut history = runtime.block_on(storm.end(tasks));
    tell(&history, &made);
    let writes = history.count(|o| o.kind != Kind::Get && o.served());
    let unknown = history.count(|o| o.outcome == Outcome::Unknown);
    let refused = history.count(|o| o.outcome == Outcome::Refused);
    history.merge(runtime.block_on(storm.look(&clients[0])));
    rig.nodes("kill", &rig.all());
    rig.up_again();
    let fresh = runtime.block_on(async { rig.client(ClientOptions::default()) });
    history.merge(runtime.block_on(storm.look(&fresh)));
    let mut wrong = linear::check_all(&history);
    println!("doubt: 1 histories checked");
    println!(
        "doubt: {} operations checked of real processes",
        history.operations.len()
    );
    wrong.extend(linear::listings(&history));
    eprintln!(
        "{done} changes of the map, {most} partitions at most, {killed} deaths; {writes} writes answered, {unknown} \
         unknown, {refused} operations refused; {} keys, {} pages",
        history.by_key().len(),
        history.listings.len()
    );
    linear::assert_right(&wrong, &format!("seed {seed}"));
    assert!(
        done >= steps / 3 && most > 1,
        "too little happened: {done} changes"
    );
}

#[test]
fn an_empty_bucket_that_reaches_over_partitions_is_removed_when_they_are_merged() {
    let rig = Rig::up(Options {
        nodes: 3,
        class: "2+1",
        // On a slow machine they would be merged again before all has been looked at.
        merge_objects: Some("0"),
        ..Options::default()
    });
    let runtime = rig::runtime();
    let client = runtime.block_on(async { rig.client(ClientOptions::default()) });
    let name = |n: u64| format!("k{n:03}");
    runtime.block_on(async {
        client.create_bucket(BUCKET).await.unwrap();
        for n in 0..100 {
            let body = Bytes::from(name(n));
            client
                .put_bytes(BUCKET, &name(n), body, PutOptions::default())
                .await
                .unwrap();
        }
    });
    for (partition, key) in [(0, "k030"), (1, "k060")] {
        let at = format!("{BUCKET}/{key}");
        assert!(ask(&rig, &["split".into(), partition.to_string(), at]));
        let map = settled(&rig);
        assert_eq!(map.partitions.len(), partition + 2);
    }
    rig.fails(
        &["cluster", "split", "0", &format!("{BUCKET}/k060")],
        1,
        &["cannot be split"],
    );
    rig.fails(&["cluster", "split", "9", "x"], 1, &["no partition 9"]);
    eventually(
        "chains rest, and no neighbours are refused",
        PATIENCE,
        || {
            let output = rig.run(&["cluster", "merge", "0", "2"]);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            rig::says(&output, &["cannot be merged"]).ok()
        },
    );
    runtime.block_on(async {
        // A page goes over all three, and so do pages of seven.
        let all = client.list(BUCKET, ListOptions::default()).await.unwrap();
        let keys: Vec<String> = all.objects.iter().map(|o| o.key.clone()).collect();
        assert_eq!(keys, (0..100).map(name).collect::<Vec<_>>());
        let (mut after, mut paged) = (String::new(), Vec::new());
        loop {
            let options = ListOptions {
                after: after.clone(),
                max: 7,
                ..ListOptions::default()
            };
            let page = client.list(BUCKET, options).await.unwrap();
            paged.extend(page.objects.iter().map(|o| o.key.clone()));
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        assert_eq!(paged, keys);
        let rolled = ListOptions {
            delimiter: "0".to_owned(),
            ..ListOptions::default()
        };
        let rolled = client.list(BUCKET, rolled).await.unwrap();
        assert_eq!(rolled.prefixes, ["k0"]);
        let buckets = client.buckets().await.unwrap();
        assert_eq!(
            buckets.len(),
            1,
            "its record is in each of them, and it is one bucket"
        );
        let error = client.delete_bucket(BUCKET).await.unwrap_err();
        assert_eq!(
            error.code(),
            ashlar_node_client::Code::BucketNotEmpty,
            "{error}"
        );
        for n in 0..100 {
            client
                .delete(BUCKET, &name(n), DeleteOptions::default())
                .await
                .unwrap();
        }
    });
    // The control plane hears that somebody wants it, and merges what is in the way.
    let begun = Instant::now();
    eventually("the bucket is removed", PATIENCE, || {
        let removed = runtime.block_on(client.delete_bucket(BUCKET));
        removed
            .map_err(|e| eprintln!("{:?}: {e}", begun.elapsed()))
            .ok()
    });
    runtime.block_on(async {
        assert_eq!(client.buckets().await.unwrap(), []);
        client.create_bucket(BUCKET).await.unwrap();
        let page = client.list(BUCKET, ListOptions::default()).await.unwrap();
        assert_eq!(page.objects, [], "nothing of the old one is in the new one");
    });
    settled(&rig);
}
