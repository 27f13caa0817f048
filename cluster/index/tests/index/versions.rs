//! Versions of objects: random histories against a plain map, listed page by page, while tables are written out and
//! runs merged, with crashes in between; and cut where a partition is.

use std::collections::BTreeMap;

use ashlar_cluster_index::{Change, Limits, List, Name, Object, Output, Question, Range, Versions};
use ashlar_layout::ids::Seq;
use ashlar_layout::lock::Lock;
use ashlar_layout::manifest::VersionTag;
use ashlar_layout::message::VersionPage;
use ashlar_layout::root::Root;

use crate::device::Dice;
use crate::rig::{ME, Rig, config, object, put, small};

const BUCKET: &str = "bucket";
const KEYS: [&str; 9] = [
    "a",
    "a\0",
    "a\0b",
    "a/",
    "a/b",
    "a/c",
    "b",
    "b/\u{10ffff}",
    "é",
];

/// Key, how much is newer, and which version: where it stands, the entry that wrote it, and whether it is a marker.
type Row = (String, Seq, u64, bool);

#[derive(Default)]
struct Model {
    /// What is current: the entry, and the tag of a version.
    current: BTreeMap<String, (u64, Option<VersionTag>)>,
    kept: BTreeMap<(String, Seq), (u64, VersionTag)>,
}

impl Model {
    /// All that there is, as a listing has it, without a page's bounds.
    fn rows(&self) -> Vec<Row> {
        let plain = self.current.iter().filter(|(_, (_, tag))| tag.is_none());
        let plain = plain.map(|(key, (seq, _))| (key.clone(), Seq(*seq), *seq, false));
        let kept = self.kept.iter();
        let kept = kept.map(|((key, _), (seq, tag))| (key.clone(), tag.id, *seq, tag.marker));
        let mut rows: Vec<Row> = plain.chain(kept).collect();
        rows.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        rows
    }

    /// A change that may come as the next one.
    fn change(&mut self, dice: &mut Dice, seq: u64) -> Change {
        let key = KEYS[dice.below(KEYS.len() as u64) as usize].to_owned();
        let bucket = BUCKET.to_owned();
        let current = self.current.get(&key).copied();
        if dice.once_in(6) && current.is_none_or(|(_, tag)| tag.is_none()) {
            self.current.insert(key.clone(), (seq, None));
            return put(BUCKET, &key, seq);
        }
        let of_key = self.kept.keys().filter(|(it, _)| *it == key);
        let slots: Vec<Seq> = of_key.map(|(_, slot)| *slot).collect();
        if dice.once_in(3) && !slots.is_empty() {
            let slot = slots[dice.below(slots.len() as u64) as usize];
            self.kept.remove(&(key.clone(), slot));
            let gone = Change::DropVersion {
                bucket: bucket.clone(),
                key: key.clone(),
                id: slot,
            };
            if current.is_none_or(|(_, tag)| tag.is_none_or(|tag| tag.slot() != slot)) {
                return gone;
            }
            self.current.remove(&key);
            return Change::All(vec![gone, Change::Delete { bucket, key }]);
        }
        let tag = VersionTag {
            id: Seq(seq),
            null: dice.once_in(4),
            marker: dice.once_in(4),
            lock: Lock {
                retention: None,
                hold: [None, Some(true)][usize::from(dice.once_in(4))],
            },
        };
        self.current.insert(key.clone(), (seq, Some(tag)));
        self.kept.insert((key.clone(), tag.slot()), (seq, tag));
        let made = Object {
            tag: Some(tag),
            ..object(seq)
        };
        Change::All(vec![
            Change::Put {
                bucket: bucket.clone(),
                key: key.clone(),
                object: made.clone(),
            },
            Change::PutVersion {
                bucket,
                key,
                id: tag.slot(),
                object: made,
            },
        ])
    }

    /// The page, said plainly.
    fn page(&self, list: &List, after_id: Option<Seq>) -> (Vec<Row>, Vec<String>, bool) {
        let mut items: Vec<(String, Option<Row>)> = Vec::new();
        for row in self.rows() {
            let Some(rest) = row.0.strip_prefix(&list.prefix) else {
                continue;
            };
            let item = match rest.find(&list.delimiter) {
                Some(at) if !list.delimiter.is_empty() => {
                    let end = list.prefix.len() + at + list.delimiter.len();
                    (row.0[..end].to_owned(), None)
                }
                _ => (row.0.clone(), Some(row)),
            };
            if item.1.is_some() || items.last() != Some(&item) {
                items.push(item);
            }
        }
        items.retain(|(text, row)| {
            let inside = row.is_none() && list.after.starts_with(text.as_str());
            let older = |row: &Row| after_id.is_some_and(|id| row.1 < id);
            let goes_on = *text == list.after && row.as_ref().is_some_and(older);
            list.after.is_empty() || goes_on || (!inside && *text > list.after)
        });
        let more = items.len() > list.max as usize;
        items.truncate(list.max as usize);
        let (mut rows, mut prefixes) = (Vec::new(), Vec::new());
        for (text, row) in items {
            match row {
                Some(row) => rows.push(row),
                None => prefixes.push(text),
            }
        }
        (rows, prefixes, more)
    }
}

fn told(page: &VersionPage) -> Vec<Row> {
    let row = |it: &ashlar_layout::message::ListEntry| {
        let id = it.tag.map_or(it.version, |tag| tag.id);
        let marker = it.tag.is_some_and(|tag| tag.marker);
        (it.key.clone(), id, it.version.0, marker)
    };
    page.versions.iter().map(row).collect()
}

fn ask(rig: &mut Rig, list: List, after_id: Option<Seq>) -> VersionPage {
    let question = Question::Versions(Versions { list, after_id });
    let Ok(Output::Versions(Some(page))) = rig.answer(question, None) else {
        panic!("no page of versions");
    };
    page
}

fn check(rig: &mut Rig, model: &Model, dice: &mut Dice) {
    let prefix = ["", "a", "a/", "é"][dice.below(4) as usize];
    let delimiter = ["", "/", "\0"][dice.below(3) as usize];
    let mut list = List {
        bucket: BUCKET.to_owned(),
        prefix: prefix.to_owned(),
        delimiter: delimiter.to_owned(),
        after: String::new(),
        max: [1, 2, 5, 1000][dice.below(4) as usize],
    };
    // From any place, and from each page to the next.
    let mut after_id = None;
    if dice.once_in(2) {
        let rows = model.rows();
        if let Some(row) = rows.get(dice.below(rows.len().max(1) as u64) as usize) {
            list.after.clone_from(&row.0);
            after_id = dice.once_in(2).then_some(row.1);
        }
    }
    loop {
        let page = ask(rig, list.clone(), after_id);
        let (rows, prefixes, more) = model.page(&list, after_id);
        assert_eq!(told(&page), rows, "{list:?} {after_id:?}");
        assert_eq!((page.prefixes, page.next.is_some()), (prefixes, more));
        let Some((after, id)) = page.next else { break };
        (list.after, after_id) = (after, id);
    }
    let names: Vec<Name> = model
        .kept
        .keys()
        .map(|(key, slot)| name(key, *slot))
        .collect();
    let Ok(Output::Objects(found)) = rig.answer(Question::Named(names), None) else {
        panic!("no versions");
    };
    for (found, (seq, tag)) in found.iter().zip(model.kept.values()) {
        let meta = &found.as_ref().expect("it is kept").meta;
        assert_eq!((meta.version.0, meta.tag), (*seq, Some(*tag)));
    }
    let there = model.current.values();
    let there = there.filter(|(_, tag)| tag.is_none_or(|tag| !tag.marker));
    let all = Question::List(List {
        bucket: BUCKET.to_owned(),
        max: 1000,
        ..List::default()
    });
    let Ok(Output::List(Some(page))) = rig.answer(all, None) else {
        panic!("no page");
    };
    assert_eq!(page.objects.len(), there.count(), "markers are no objects");
    let empty = rig.answer(Question::Empty(BUCKET.to_owned()), None);
    let nothing = model.current.is_empty() && model.kept.is_empty();
    assert_eq!(empty, Ok(Output::Empty(nothing)));
}

fn name(key: &str, slot: Seq) -> Name {
    Name {
        bucket: BUCKET.to_owned(),
        key: key.to_owned(),
        id: Some(slot),
    }
}

#[test]
fn histories_of_versions() {
    for seed in 0..40 {
        let mut dice = Dice::new(seed);
        let limits = Limits {
            table_bytes: 2 << 10,
            ..small()
        };
        let mut rig = Rig::new(seed, limits, 64 << 10);
        let mut model = Model::default();
        rig.apply(
            1,
            Change::PutBucket {
                bucket: BUCKET.to_owned(),
                created_ms: 1,
            },
        );
        for seq in 2..400 {
            let change = model.change(&mut dice, seq);
            rig.apply(seq, change);
            if dice.once_in(20) {
                rig.freeze();
            }
            if dice.once_in(8) {
                check(&mut rig, &model, &mut dice);
            }
            if dice.once_in(100) {
                // What is not durable yet would be lost.
                rig.settle();
                assert!(rig.freeze(), "there is room for another table");
                rig.settle();
                rig.crash().expect("it opens");
                check(&mut rig, &model, &mut dice);
            }
        }
    }
}

#[test]
fn a_bucket_with_nothing_but_a_marker_is_not_empty() {
    let mut rig = Rig::new(1, small(), 1 << 20);
    let bucket = || BUCKET.to_owned();
    rig.apply(
        1,
        Change::PutBucket {
            bucket: bucket(),
            created_ms: 1,
        },
    );
    let empty = |rig: &mut Rig| rig.answer(Question::Empty(bucket()), None);
    assert_eq!(empty(&mut rig), Ok(Output::Empty(true)));
    let id = Seq(2);
    rig.apply(
        2,
        Change::PutVersion {
            bucket: bucket(),
            key: "k".to_owned(),
            id,
            object: object(2),
        },
    );
    assert_eq!(empty(&mut rig), Ok(Output::Empty(false)));
    rig.apply(
        3,
        Change::DropVersion {
            bucket: bucket(),
            key: "k".to_owned(),
            id,
        },
    );
    assert_eq!(empty(&mut rig), Ok(Output::Empty(true)));
}

/// Whatever is told of a partition's part is the part of what is told of all.
#[test]
fn a_partition_has_the_versions_of_its_own_keys() {
    for seed in 0..20 {
        let mut dice = Dice::new(seed);
        let mut rig = Rig::new(seed, small(), 1 << 20);
        let mut model = Model::default();
        rig.apply(
            1,
            Change::PutBucket {
                bucket: BUCKET.to_owned(),
                created_ms: 1,
            },
        );
        for seq in 2..200 {
            let change = model.change(&mut dice, seq);
            rig.apply(seq, change);
        }
        rig.freeze();
        rig.settle();
        let at = (
            BUCKET.to_owned(),
            KEYS[dice.below(KEYS.len() as u64) as usize].to_owned(),
        );
        let above = dice.once_in(2);
        let range = match above {
            true => Range {
                from: Some(at.clone()),
                to: None,
            },
            false => Range {
                from: None,
                to: Some(at.clone()),
            },
        };
        rig.index.narrow(&range, &[BUCKET.to_owned()]);
        model.current.retain(|key, _| (*key >= at.1) == above);
        model.kept.retain(|(key, _), _| (*key >= at.1) == above);
        check(&mut rig, &model, &mut dice);
        let list = List {
            bucket: BUCKET.to_owned(),
            max: 1000,
            ..List::default()
        };
        assert_eq!(told(&ask(&mut rig, list, None)), model.rows());
        // A fork of the part has the same.
        let fork = rig
            .index
            .fork(config(99, small()), &range, &[BUCKET.to_owned()]);
        assert_eq!(fork.stats().runs, rig.index.stats().runs, "of {ME}");
    }
}

fn new_bucket(rig: &mut Rig) {
    let bucket = BUCKET.to_owned();
    rig.apply(
        1,
        Change::PutBucket {
            bucket,
            created_ms: 1,
        },
    );
}

/// A new version, current as well.
fn new(key: &str, seq: u64, null: bool, marker: bool) -> Change {
    let tag = VersionTag {
        id: Seq(seq),
        null,
        marker,
        lock: Lock::NONE,
    };
    let made = Object {
        tag: Some(tag),
        ..object(seq)
    };
    let (bucket, key) = (BUCKET.to_owned(), key.to_owned());
    Change::All(vec![
        Change::Put {
            bucket: bucket.clone(),
            key: key.clone(),
            object: made.clone(),
        },
        Change::PutVersion {
            bucket,
            key,
            id: tag.slot(),
            object: made,
        },
    ])
}

/// Whatever name a page is to begin behind: it ends.
#[test]
fn a_page_behind_any_name_ends() {
    let mut rig = Rig::new(1, small(), 1 << 20);
    new_bucket(&mut rig);
    rig.apply(2, new("k", 2, false, false));
    rig.apply(3, new("k", 3, true, false));
    rig.apply(4, new("k", 4, false, false));
    for (after, expected) in [
        (u64::MAX, 3),
        (u64::MAX - 1, 3),
        (4, 2),
        (3, 1),
        (2, 0),
        (0, 0),
    ] {
        let list = List {
            bucket: BUCKET.to_owned(),
            after: "k".to_owned(),
            max: 10,
            ..List::default()
        };
        let page = ask(&mut rig, list, Some(Seq(after)));
        assert_eq!(page.versions.len(), expected, "behind {after}");
    }
}

/// Where there is nothing but markers a page ends although it shows nothing, and says where the next one begins.
#[test]
fn a_page_passes_over_so_many_markers_and_no_more() {
    let limits = Limits {
        table_bytes: 16 << 20,
        ..small()
    };
    let mut rig = Rig::new(1, limits, 1 << 20);
    new_bucket(&mut rig);
    let mut seq = 1;
    for n in 0..9000 {
        seq += 1;
        rig.apply(seq, new(&format!("m{n:05}"), seq, false, true));
    }
    for key in ["m/1", "n/1"] {
        seq += 1;
        rig.apply(seq, new(key, seq, false, false));
    }
    for delimiter in ["", "/"] {
        let mut list = List {
            bucket: BUCKET.to_owned(),
            delimiter: delimiter.to_owned(),
            max: 10,
            ..List::default()
        };
        let (mut pages, mut shown) = (0, Vec::new());
        loop {
            let Ok(Output::List(Some(page))) = rig.answer(Question::List(list.clone()), None)
            else {
                panic!("no page");
            };
            pages += 1;
            shown.extend(page.objects.into_iter().map(|it| it.key));
            shown.extend(page.prefixes);
            let Some(next) = page.next else { break };
            assert!(next > list.after, "it goes forward");
            list.after = next;
        }
        let expected = match delimiter {
            "" => ["m/1", "n/1"],
            _ => ["m/", "n/"],
        };
        assert_eq!(shown, expected);
        assert_eq!(pages, 3, "of about four thousand markers each");
    }
}

/// A version is counted with its object, and not besides.
#[test]
fn versions_are_no_objects() {
    let mut rig = Rig::new(1, small(), 1 << 20);
    new_bucket(&mut rig);
    for (seq, key) in (2..).zip(["a", "a", "a", "b", "b"]) {
        rig.apply(seq, new(key, seq, false, false));
    }
    assert_eq!(rig.index.stats().objects, 2, "in a table");
    assert!(rig.freeze());
    rig.settle();
    assert_eq!(rig.index.stats().objects, 2, "in a run");
}

/// A program that knows no versions would read an index that has, or had, some, and lose them. So it is told not to.
#[test]
fn older_programs_refuse_an_index_with_versions() {
    let said = |rig: &Rig| {
        let config = config(1, small());
        let (_, bytes) = rig.device.roots[&ME].clone();
        let root = Root::decode(&bytes, config.device, config.partition).unwrap();
        assert_eq!(
            u16::from_le_bytes([bytes[12], bytes[13]]) > 1,
            root.versions
        );
        root.versions
    };
    let mut rig = Rig::new(1, small(), 1 << 20);
    new_bucket(&mut rig);
    rig.apply(2, put(BUCKET, "k", 2));
    assert!(rig.freeze());
    rig.settle();
    assert!(!said(&rig), "it has none");
    rig.apply(3, new("k", 3, false, false));
    assert!(rig.freeze());
    rig.settle();
    assert!(said(&rig));
    // For good, though the last one goes, and whatever is made of it.
    let (bucket, key) = (BUCKET.to_owned(), "k".to_owned());
    let id = Seq(3);
    rig.apply(4, Change::DropVersion { bucket, key, id });
    rig.index.press();
    assert!(rig.freeze());
    rig.settle();
    assert!(said(&rig));
    rig.crash().expect("it opens");
    rig.apply(5, put(BUCKET, "k", 5));
    assert!(rig.freeze());
    rig.settle();
    assert!(said(&rig), "after a restart");
}
