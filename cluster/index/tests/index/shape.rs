//! What it costs: pages for a listing, memory for a key, bytes written for a byte; and what is bounded.

use ashlar_cluster_index::{Answer, Change, Found, Limits, List, Object, Output, Question, Range};
use ashlar_layout::ids::{PgId, StripeId};
use ashlar_layout::manifest::{Body, Manifest, Stripe};

use crate::rig::{ME, Rig, objects, put, small};

fn limits() -> Limits {
    Limits {
        table_bytes: 256 << 10,
        fanout: 4,
        chunk_bytes: 600 << 10,
        step: 512,
        span_bytes: 128 << 10,
        reads: 64,
        ..small()
    }
}

/// `folders` folders of `each` keys.
fn filled(folders: u64, each: u64) -> Rig {
    let mut rig = Rig::new(1, limits(), 4 << 20);
    let bucket = Change::PutBucket {
        bucket: "bucket".to_owned(),
        created_ms: 1,
    };
    rig.apply(1, bucket);
    let mut seq = 1;
    for n in 0..folders * each {
        seq += 1;
        // Scattered, so that each run reaches over all folders.
        let at = n * 7919 % (folders * each);
        let key = format!("folder-{:04}/object-{:06}", at / each, at % each);
        rig.apply(seq, put("bucket", &key, seq));
    }
    rig.freeze();
    rig.settle();
    rig
}

fn list(rig: &mut Rig, delimiter: &str, prefix: &str, max: u32) -> (usize, u64) {
    rig.cache.clear();
    let before = rig.index.stats().pages_read;
    let question = Question::List(List {
        bucket: "bucket".to_owned(),
        delimiter: delimiter.to_owned(),
        prefix: prefix.to_owned(),
        max,
        ..List::default()
    });
    let Ok(Output::List(Some(page))) = rig.answer(question, None) else {
        panic!("no page");
    };
    let items = page.objects.len() + page.prefixes.len();
    (items, rig.index.stats().pages_read - before)
}

#[test]
fn a_page_costs_what_is_in_it_and_not_what_is_in_the_bucket() {
    let mut pages = Vec::new();
    for each in [50, 2000] {
        let mut rig = filled(30, each);
        let runs = rig.index.stats().runs as u64;
        let (items, rolled) = list(&mut rig, "/", "", 1000);
        assert_eq!(items, 30);
        let (items, plain) = list(&mut rig, "", "folder-0007/", 40);
        assert_eq!(items, 40);
        // Of each run: a fence page and a leaf for each seek.
        assert!(rolled <= 2 * 31 * runs, "{rolled} pages, {runs} runs");
        assert!(plain <= 4 * runs + 2, "{plain} pages, {runs} runs");
        pages.push((rolled, plain, runs));
    }
    let per_run = |at: usize| pages[at].0 as f64 / pages[at].2 as f64;
    assert!(per_run(1) < 70.0, "{pages:?}");
}

#[test]
fn memory_and_writing_are_bounded() {
    let keys = 60_000u64;
    let rig = filled(60, keys / 60);
    let stats = rig.index.stats();
    let memory = stats.run_memory as f64 / stats.run_entries as f64;
    assert!(memory < 1.5, "{memory} bytes a key: {stats:?}");
    let written = (stats.bytes_flushed + stats.bytes_merged) as f64 / stats.run_bytes as f64;
    let tables = stats.bytes_in as f64 / (256u64 << 10) as f64;
    let levels = 1.0 + (tables.max(4.0)).log(4.0).ceil();
    assert!(written <= levels + 0.5, "{written} of {levels}: {stats:?}");
}

#[test]
fn keys_that_are_overwritten_all_the_time_do_not_pile_up() {
    let mut rig = filled(1, 100);
    let mut seq = rig.index.applied().0;
    let before = rig.index.stats();
    for round in 0..400u64 {
        for n in 0..100 {
            seq += 1;
            let key = format!("folder-0000/object-{n:06}");
            rig.apply(seq, put("bucket", &key, seq));
        }
        rig.freeze();
        rig.settle();
        let stats = rig.index.stats();
        assert!(stats.runs <= 5, "round {round}: {stats:?}");
    }
    let stats = rig.index.stats();
    let flushed = stats.bytes_flushed - before.bytes_flushed;
    let merged = stats.bytes_merged - before.bytes_merged;
    assert!(merged < flushed, "{merged} bytes merged, {flushed} flushed");
    let pins = rig.index.pins().len() as u64;
    // Each run points to what its hundred entries are in, and to nothing else.
    assert!(pins <= 5 * 100, "{pins} extents");
}

#[test]
fn deleted_things_go_in_the_end() {
    let mut rig = filled(10, 1000);
    let full = rig.index.stats().run_bytes;
    let mut seq = rig.index.applied().0;
    for n in 0..10_000u64 {
        seq += 1;
        let key = format!("folder-{:04}/object-{:06}", n / 1000, n % 1000);
        let bucket = "bucket".to_owned();
        rig.apply(seq, Change::Delete { bucket, key });
    }
    rig.settle();
    assert!(rig.freeze());
    rig.settle();
    let stats = rig.index.stats();
    assert!(stats.run_bytes < full / 10, "{full}, then {stats:?}");
    assert!(stats.run_entries < 10, "{stats:?}");
    let empty = rig.answer(Question::Empty("bucket".to_owned()), None);
    assert_eq!(empty, Ok(Output::Empty(true)));
}

#[test]
fn questions_for_one_page_share_one_read() {
    let mut rig = filled(4, 200);
    rig.cache.clear();
    let before = rig.index.stats().pages_read;
    let name = || ("bucket".to_owned(), "folder-0001/object-000007".to_owned());
    let pending: Vec<u64> = (0..50)
        .map(|_| match rig.ask(objects(vec![name()]), None) {
            Answer::Pending(id) => id,
            other => panic!("{other:?}"),
        })
        .collect();
    rig.settle();
    assert!(pending.iter().all(|id| rig.done.contains_key(id)));
    let reads = rig.index.stats().pages_read - before;
    assert!(reads <= 2 * rig.index.stats().runs as u64, "{reads} reads");
}

#[test]
fn what_waits_is_bounded() {
    let mut rig = filled(4, 200);
    rig.cache.clear();
    let name = || ("bucket".to_owned(), "folder-0001/object-000007".to_owned());
    let answers: Vec<Answer> = (0..80)
        .map(|_| rig.ask(objects(vec![name()]), None))
        .collect();
    assert_eq!(
        answers.iter().filter(|a| **a == Answer::Busy).count(),
        80 - 64
    );
    rig.settle();
    // Changes: a device that does nothing stops them, and not memory.
    let mut seq = rig.index.applied().0;
    let full = loop {
        seq += 1;
        let key = format!("new-{seq}");
        match rig
            .index
            .apply(ashlar_layout::ids::Seq(seq), put("bucket", &key, seq))
        {
            Ok(()) if rig.index.wants_freeze() => drop(rig.freeze()),
            Ok(()) => {}
            Err(full) => break full,
        }
    };
    assert!(full.waiting <= 4 * (256 << 10) + 4096, "{full}");
    let kept: Vec<_> = (0..10).map_while(|_| rig.index.snapshot()).collect();
    assert_eq!(kept.len(), 8);
}

/// A manifest of `stripes` stripes of 64 shards each: up to 74 KiB.
fn large(stripes: u64) -> Manifest {
    let stripe = |attempt| Stripe {
        id: StripeId { writer: 5, attempt },
        pg: PgId(1),
        k: 48,
        m: 16,
        data_len: 4096,
        shard_crcs: (0..64).map(|i| attempt as u32 * 64 + i).collect(),
    };
    let body = Body::Stripes((0..stripes).map(stripe).collect());
    Manifest::plain(stripes * 4096, 1, body)
}

#[test]
fn entries_larger_than_a_page_and_long_keys_that_share_almost_all() {
    let mut rig = Rig::new(3, limits(), 1 << 20);
    let key = |n: u64| format!("{}/{n:06}", "x".repeat(1000));
    let mut seq = 0;
    for n in 0..1200u64 {
        seq += 1;
        let n = n * 7919 % 1200;
        let manifest = match n % 50 {
            0 => large(256),
            1 => large(20),
            _ => large(1),
        };
        let put = Change::Put {
            bucket: "bucket".to_owned(),
            key: key(n),
            object: Object {
                modified_ms: n,
                manifest,
                tag: None,
                place: None,
                payload: Default::default(),
            },
        };
        rig.apply(seq, put);
    }
    rig.settle();
    assert!(rig.freeze());
    rig.settle();
    assert!(rig.index.stats().bytes_merged > 0);
    rig.crash().unwrap();
    let stats = rig.index.stats();
    assert_eq!(stats.run_entries, 1200);
    assert!(
        stats.run_memory < 1200 * 40,
        "fences in memory are few: {stats:?}"
    );
    for n in 0..1200 {
        let names = vec![("bucket".to_owned(), key(n))];
        let Ok(Output::Objects(found)) = rig.answer(objects(names), None) else {
            panic!("no answer");
        };
        let meta = &found[0].as_ref().unwrap().meta;
        let stripes = match n % 50 {
            0 => 256,
            1 => 20,
            _ => 1,
        };
        assert_eq!((meta.modified_ms, &meta.manifest), (n, &large(stripes)));
    }
    let absent = vec![("bucket".to_owned(), key(1200))];
    let absent = rig.answer(objects(absent), None);
    assert_eq!(absent, Ok(Output::Objects(vec![None])));
}

/// The share of the keys that a border leaves below it.
fn below(keys: &[String], border: &(String, String)) -> f64 {
    let below = keys
        .iter()
        .filter(|key| ("bucket", key.as_str()) < (&border.0, &border.1));
    below.count() as f64 / keys.len() as f64
}

#[test]
fn the_middle_is_about_in_the_middle() {
    let limits = Limits {
        table_bytes: 4 << 20,
        ..limits()
    };
    let mut rig = Rig::new(8, limits.clone(), 1 << 20);
    let keys: Vec<String> = (0..30_000).map(|at| format!("key-{at:06}")).collect();
    for n in 0..30_000u64 {
        let key = &keys[n as usize * 7919 % 30_000];
        rig.apply(n + 1, sized(key, n + 1, 2000));
    }
    rig.settle();
    let border = rig.index.middle().expect("large enough");
    let share = below(&keys, &border);
    assert!(
        (0.4..0.6).contains(&share),
        "{share} of the keys are below {border:?}"
    );
    // Of a part of it.
    let (from, to) = (Some(("bucket".to_owned(), keys[3_000].clone())), None);
    let config = crate::rig::config(99, limits);
    let fork = rig.index.fork(config, &Range { from, to }, &[]);
    let objects = fork.stats().objects as f64;
    assert!(
        (25_000.0..29_500.0).contains(&objects),
        "{objects} of 27000"
    );
    let border = fork.middle().expect("large enough");
    let share = below(&keys[3_000..], &border);
    assert!(
        (0.4..0.6).contains(&share),
        "{share} of the keys are below {border:?}"
    );
    rig.freeze();
    rig.settle();
    rig.crash().unwrap();
    let border = rig
        .index
        .middle()
        .expect("what it takes is read when it is opened");
    let share = below(&keys, &border);
    assert!(
        (0.4..0.6).contains(&share),
        "{share} of the keys are below {border:?}"
    );
}

#[test]
fn what_is_small_or_one_key_has_no_middle() {
    assert_eq!(filled(2, 100).index.middle(), None);
    // Versions of one key alone, for snapshots: many pages, and nothing to divide.
    let limits = Limits {
        table_bytes: 64 << 20,
        snapshots: 10_000,
        ..limits()
    };
    let mut rig = Rig::new(4, limits.clone(), 1 << 20);
    for seq in 1..=6000u64 {
        rig.apply(seq, sized("key", seq, 3000));
        rig.index.snapshot().unwrap();
    }
    rig.freeze();
    rig.settle();
    assert_eq!(rig.index.stats().run_entries, 6000);
    assert_eq!(rig.index.middle(), None);
    // Buckets alone.
    let mut rig = Rig::new(5, limits, 1 << 20);
    for seq in 1..=80_000u64 {
        let bucket = format!("{:040}-bucket-{seq}", seq * 7919 % 80_000);
        rig.apply(
            seq,
            Change::PutBucket {
                bucket,
                created_ms: 1,
            },
        );
    }
    rig.freeze();
    rig.settle();
    assert_eq!(rig.index.middle(), None);
    assert_eq!(rig.index.stats().objects, 0);
}

fn sized(key: &str, seq: u64, len: u64) -> Change {
    Change::Put {
        bucket: "bucket".to_owned(),
        key: key.to_owned(),
        object: Object {
            modified_ms: seq,
            manifest: Manifest::plain(len, 1, Body::Inline),
            tag: None,
            place: None,
            payload: vec![seq as u8; len as usize].into(),
        },
    }
}

#[test]
fn of_a_run_that_is_visible_in_part_only_that_part_is_merged() {
    let limits = Limits {
        table_bytes: 128 << 20,
        fanout: 2,
        ..limits()
    };
    let mut rig = Rig::new(6, limits, 1 << 20);
    let keys = 30_000u64;
    let key = |at: u64| format!("key-{at:06}");
    let (bucket, created_ms) = ("bucket".to_owned(), 1);
    rig.apply(1, Change::PutBucket { bucket, created_ms });
    for n in 0..keys {
        rig.apply(n + 2, sized(&key(n * 7919 % keys), n + 2, 2000));
    }
    rig.freeze();
    rig.settle();
    let whole = rig.index.stats();
    assert_eq!(whole.runs, 1);
    // An eighth of it stays, which begins where a fence page's leaves do, and the bucket before all of them; and it
    // is merged with a little more.
    let border = rig.index.middle().expect("large enough");
    let first = (0..keys).find(|at| key(*at) >= border.1).unwrap();
    let range = Range {
        from: Some(border),
        to: Some(("bucket".to_owned(), key(first + 3750))),
    };
    rig.index.narrow(&range, &["bucket".to_owned()]);
    let share = rig.index.stats().objects as f64 / keys as f64;
    assert!((0.1..0.25).contains(&share), "{share}");
    let read = rig.device.bytes_read;
    rig.apply(keys + 2, sized(&key(first + 1000), keys + 2, 100));
    rig.freeze();
    rig.settle();
    let stats = rig.index.stats();
    let entries = (stats.run_entries, stats.objects);
    assert_eq!((stats.runs, entries), (1, (3751, 3750)));
    let share = (rig.device.bytes_read - read) as f64 / whole.run_bytes as f64;
    assert!(share < 0.25, "{share} of the run was read");
    rig.device.check_use(ME, &rig.index.live());
    let at = [-1, 0, 1000, 3749, 3750].map(|off| first.strict_add_signed(off));
    let names = at.map(|at| ("bucket".to_owned(), key(at)));
    let Ok(Output::Objects(found)) = rig.answer(objects(names.to_vec()), None) else {
        panic!("no answer");
    };
    let size = |it: &Option<Found>| it.as_ref().map(|it| it.meta.manifest.size);
    let sizes: Vec<Option<u64>> = found.iter().map(size).collect();
    assert_eq!(sizes, [None, Some(2000), Some(100), Some(2000), None]);
}

#[test]
fn payloads_cost_a_listing_their_pages() {
    let mut pages = Vec::new();
    // Without a cache as well: what a walk has read ahead it keeps until it comes to it.
    for (len, cache) in [(0, 16 << 20), (512, 16 << 20), (512, 0)] {
        let mut rig = Rig::new(7, limits(), cache);
        let bucket = "bucket".to_owned();
        rig.apply(
            1,
            Change::PutBucket {
                bucket,
                created_ms: 1,
            },
        );
        for n in 0..3000u64 {
            rig.apply(
                n + 2,
                sized(&format!("key-{:06}", n * 7919 % 3000), n + 2, len),
            );
        }
        rig.settle();
        rig.freeze();
        rig.settle();
        let runs = rig.index.stats().runs as u64;
        let (items, read) = list(&mut rig, "", "", 1000);
        assert_eq!(items, 1000);
        // What the entries take in pages of 8 KiB, and for each run two ends and two fence pages.
        let entries = 1000 * (60 + len);
        let most = entries / 8000 + (6 + limits().ahead as u64) * runs;
        assert!(read <= most, "{read} pages, {runs} runs");
        pages.push(read);
    }
    assert!(pages[1] > pages[0], "{pages:?}");
}

/// How often a question waits for the device until it is answered, when all reads that are asked for are done at once.
fn rounds(rig: &mut Rig, question: Question) -> (usize, u64) {
    rig.cache.clear();
    let before = rig.index.stats().pages_read;
    let Answer::Pending(id) = rig.ask(question, None) else {
        panic!("nothing is cached");
    };
    let mut rounds = 0;
    while !rig.done.contains_key(&id) {
        rounds += usize::from(!rig.device.idle());
        let reads = rig.device.under_way().max(1);
        (0..reads).for_each(|_| assert!(rig.step()));
    }
    (rounds, rig.index.stats().pages_read - before)
}

/// A bucket with folders of a hundred keys each, fourteen on a leaf, all in one run.
fn folders(keys: u64, cache: usize) -> Rig {
    let limits = Limits {
        table_bytes: 64 << 20,
        ahead: 15,
        step: 5000,
        ..limits()
    };
    let mut rig = Rig::new(7, limits, cache);
    let (bucket, created_ms) = ("bucket".to_owned(), 1);
    rig.apply(1, Change::PutBucket { bucket, created_ms });
    for n in 0..keys {
        let key = format!("folder-{:03}/key-{n:06}", n / 100);
        rig.apply(n + 2, sized(&key, n + 2, 512));
    }
    rig.freeze();
    rig.settle();
    rig
}

#[test]
fn a_walk_reads_ahead_and_a_short_one_does_not() {
    let list = |max, delimiter: &str| {
        Question::List(List {
            bucket: "bucket".to_owned(),
            delimiter: delimiter.to_owned(),
            max,
            ..List::default()
        })
    };
    for cache in [0, 16 << 20] {
        let mut rig = folders(3000, cache);
        let (often, pages) = rounds(&mut rig, list(1000, ""));
        assert!(often < 15 && pages < 110, "{often} rounds, {pages} pages");
        let (often, pages) = rounds(&mut rig, list(10, ""));
        assert!(often <= 4 && pages <= 6, "{often} rounds, {pages} pages");
        // What is stepped over is not read.
        let (_, pages) = rounds(&mut rig, list(1000, "/"));
        assert!(pages <= 70, "{pages} pages for 30 folders");
    }
}

#[test]
fn what_is_not_visible_is_not_read() {
    let mut rig = folders(1000, 0);
    let mut leaves = |from: u64, to: u64| {
        let key = |at: u64| format!("folder-{:03}/key-{at:06}", at / 100);
        let range = Range {
            from: Some(("bucket".to_owned(), key(from))),
            to: Some(("bucket".to_owned(), key(to))),
        };
        rig.index.narrow(&range, &["bucket".to_owned()]);
        let (items, pages) = list(&mut rig, "", "", 1000);
        assert_eq!(items as u64, to - from);
        pages
    };
    // Fourteen are on a leaf; and there are the fence page, and the leaf that the bucket is on.
    assert_eq!(leaves(0, 1000), 1 + 1000_u64.div_ceil(14));
    assert_eq!(leaves(345, 366), 2 + 3);
    assert_eq!(leaves(345, 365), 2 + 3);
    assert_eq!(
        leaves(345, 364),
        2 + 2,
        "the next leaf begins with what is not visible"
    );
    assert_eq!(leaves(350, 364), 2 + 1, "so did the one before");
}
