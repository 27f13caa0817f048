//! Digests of stretches: the same of the same map, however it lies; another of another.

use ashlar_cluster_index::{
    Answer, Change, Event, Limits, Output, Question, Range, Snapshot, Stretch,
};
use ashlar_layout::digest::{DIGEST_BYTES, DIGEST_SCHEME, Digest};
use ashlar_layout::ids::Seq;

use crate::device::Dice;
use crate::model::{change, key};
use crate::rig::{Rig, looked_at, object, put, restored, small};

fn digest(rig: &mut Rig, stretch: Stretch, at: Option<Snapshot>) -> Digest {
    match rig.answer(Question::Digest(stretch), at) {
        Ok(Output::Digest(digest)) => digest,
        other => panic!("{other:?}"),
    }
}

fn stretch(after: &[u8], max: u32) -> Stretch {
    Stretch {
        after: after.to_vec(),
        max,
        ..Stretch::default()
    }
}

/// All digests of so many entries each.
fn all(rig: &mut Rig, max: u32, at: Option<Snapshot>) -> Vec<Digest> {
    let mut digests = vec![digest(rig, stretch(b"", max), at)];
    while let Some(last) = digests.last().filter(|last| last.more) {
        let next = stretch(&last.last, max);
        digests.push(digest(rig, next, at));
    }
    digests
}

/// Bounds by which the same entries lie otherwise.
fn other() -> Limits {
    Limits {
        table_bytes: 2 << 10,
        fanout: 2,
        step: 7,
        ..small()
    }
}

#[test]
fn the_same_map_has_the_same_digest_however_it_lies() {
    for seed in 0..6 {
        let mut dice = Dice::new(seed);
        let mut rigs = [
            Rig::new(seed, small(), 64 << 10),
            Rig::new(seed + 100, other(), 0),
        ];
        let (mut kept, mut names) = (Vec::new(), Vec::new());
        for seq in 1..=400 {
            let change = change(&mut dice, seq);
            if let Change::Put { bucket, key, .. } = &change {
                names.push((seq, bucket.clone(), key.clone()));
            }
            for rig in &mut rigs {
                rig.apply(seq, change.clone());
            }
            if seq % 90 == 0 {
                let now = rigs.each_mut().map(|rig| rig.index.snapshot().unwrap());
                let sums = rigs.each_mut().map(|rig| all(rig, 9, None));
                kept.push((now, sums));
                if seq == 180 {
                    // One of the two is written out.
                    rigs[1].freeze();
                    rigs[1].settle();
                }
            }
            // A payload that one of them had to fetch from the other.
            if seq % 60 == 0
                && let Some((version, bucket, key)) = names.last().cloned()
            {
                let change = Change::Put {
                    bucket,
                    key,
                    object: restored(version),
                };
                let rig = &mut rigs[0];
                while rig.index.amend(Seq(version), change.clone()).is_err() {
                    let frozen = rig.index.wants_freeze() && rig.freeze();
                    assert!(frozen || rig.step(), "full, and nothing happens");
                }
            }
        }
        for rig in &mut rigs {
            rig.freeze();
            rig.settle();
        }
        for (at, [one, two]) in &kept {
            assert_eq!(one, two, "seed {seed}");
            assert!(one.iter().map(|it| it.entries).sum::<u32>() > 20);
            // What it was then, it is for who kept that state.
            for (rig, at) in rigs.iter_mut().zip(at) {
                assert_eq!(&all(rig, 9, Some(*at)), one, "seed {seed}");
            }
        }
        let [one, two] = rigs.each_mut().map(|rig| all(rig, 1000, None));
        assert_eq!(one, two, "seed {seed}");
        let items = looked_at(crate::rig::ME, &rigs[0].index, &rigs[0].device).unwrap();
        assert_eq!(one[0].entries as usize, items.len());
        rigs[1].apply(401, put("abc", "z", 401));
        assert_ne!(one, all(&mut rigs[1], 1000, None));
    }
}

#[test]
fn each_field_counts_but_for_what_is_each_replicas_own() {
    let of = |change: Change, seq: u64| {
        let mut rig = Rig::new(1, small(), 64 << 10);
        rig.apply(seq, change);
        digest(&mut rig, stretch(b"", 10), None)
    };
    let with = |change: fn(&mut ashlar_cluster_index::Object)| {
        let mut object = object(2);
        change(&mut object);
        Change::Put {
            bucket: "bucket".to_owned(),
            key: "key".to_owned(),
            object,
        }
    };
    let whole = of(with(|_| {}), 2);
    let first = whole.first.clone().unwrap();
    assert_eq!(
        (first.bucket.as_str(), first.key.as_str()),
        ("bucket", "key")
    );
    assert_eq!(
        (first.version, first.size),
        (Seq(2), object(2).manifest.size)
    );
    assert_eq!((whole.entries, whole.more), (1, false));
    assert_eq!(first.at, whole.last);
    // Where the payload is.
    assert_eq!(of(with(|it| it.place = None), 2), whole);
    let embedded = with(|it| (it.place, it.payload) = (None, vec![7; 702].into()));
    assert_eq!(of(embedded, 2), whole);
    for (nth, other) in [
        with(|it| it.modified_ms += 1),
        with(|it| it.manifest.size += 1),
        with(|it| it.manifest.crc ^= 1),
        with(|it| it.manifest.etag.md5[3] ^= 1),
        with(|it| it.manifest.attributes = vec![1]),
        put("bucket", "kez", 2),
        put("buckeu", "key", 2),
    ]
    .into_iter()
    .enumerate()
    {
        assert_ne!(of(other, 2).sum, whole.sum, "{nth}");
    }
    assert_ne!(
        of(with(|_| {}), 3).sum,
        whole.sum,
        "the entry that wrote it"
    );
}

#[test]
fn a_stretch_is_in_its_range_and_ends_at_its_bounds() {
    let mut rig = Rig::new(1, small(), 64 << 10);
    let mut dice = Dice::new(3);
    let mut seq = 0;
    for bucket in ["aaa", "bbb", "ccc"] {
        seq += 1;
        let bucket = bucket.to_owned();
        let created_ms = 5;
        rig.apply(seq, Change::PutBucket { bucket, created_ms });
    }
    for _ in 0..60 {
        seq += 1;
        let name = key(&mut dice);
        rig.apply(seq, put("bbb", &name, seq));
        seq += 1;
        rig.apply(seq, put("ccc", &name, seq));
    }
    let whole = digest(&mut rig, stretch(b"", 1000), None);
    let place = |bucket: &str, key: &str| Some((bucket.to_owned(), key.to_owned()));
    let ranged = |from, to, carry: &[&str]| Stretch {
        range: Range { from, to },
        carry: carry.iter().map(|it| (*it).to_owned()).collect(),
        ..stretch(b"", 1000)
    };
    let halves = [
        ranged(None, place("ccc", "b"), &[]),
        ranged(place("ccc", "b"), None, &["ccc"]),
    ];
    let halves = halves.map(|it| digest(&mut rig, it, None));
    // The record of the bucket that the border is in belongs to both.
    let parts = halves[0].entries + halves[1].entries;
    assert_eq!(parts, whole.entries + 1);
    assert_eq!(halves[1].first.as_ref().unwrap().bucket, "ccc");
    assert!(halves[0].entries > 60 && halves[1].entries > 5);
    // A range without anything, and what is behind all of it.
    let none = ranged(place("zzz", ""), None, &[]);
    assert_eq!(digest(&mut rig, none, None).entries, 0);
    let behind = stretch(&whole.last, 10);
    let behind = digest(&mut rig, behind, None);
    assert_eq!(
        (behind.entries, behind.first, behind.more),
        (0, None, false)
    );
    // Bytes bound it too, but one entry there is.
    let mut rig = Rig::new(1, small(), 64 << 10);
    put_wide(&mut rig, 200);
    let most = digest(&mut rig, stretch(b"", 1000), None);
    let per = DIGEST_BYTES / (8 << 10);
    assert!(most.more && most.entries as usize <= per && most.entries as usize > per - 10);
}

/// So many objects of which 8 KiB are remembered.
fn put_wide(rig: &mut Rig, count: u64) {
    for seq in 1..=count {
        let mut object = object(2);
        object.manifest.attributes = vec![1; 8 << 10];
        let (bucket, key) = ("bucket".to_owned(), format!("{seq:03}"));
        rig.apply(
            seq,
            Change::Put {
                bucket,
                key,
                object,
            },
        );
    }
}

#[test]
fn a_turn_goes_through_so_many_bytes_and_no_more() {
    let mut rig = Rig::new(1, Limits::default(), 64 << 10);
    put_wide(&mut rig, 100);
    // All of it is in memory, and far fewer entries than a call may work through.
    let Answer::Pending(id) = rig.ask(Question::Digest(stretch(b"", 1000)), None) else {
        panic!("it takes more than one turn");
    };
    let mut turns = 1;
    while !rig.done.contains_key(&id) {
        assert!(rig.index.wants_turn());
        rig.event(Event::Turn);
        turns += 1;
    }
    let entries = DIGEST_BYTES / (8 << 10);
    assert!(turns >= entries / 4 && turns <= entries, "{turns}");
}

#[test]
fn what_this_scheme_says_stays_what_it_is() {
    // Another sum: programs of before would take every entry for another one. Then the scheme is to be another, too.
    let mut rig = Rig::new(1, small(), 64 << 10);
    let bucket = "bucket".to_owned();
    let created_ms = 5;
    rig.apply(1, Change::PutBucket { bucket, created_ms });
    rig.apply(2, put("bucket", "key", 2));
    let made = digest(&mut rig, stretch(b"", 10), None);
    assert_eq!((DIGEST_SCHEME, made.entries), (1, 2));
    let hex: String = made.sum.iter().map(|it| format!("{it:02x}")).collect();
    assert_eq!(
        hex,
        "bba3c9e90c4f6dbbc1d783a88e4521e0fd286fc0e1411836260837dc3a5d5313"
    );
}
