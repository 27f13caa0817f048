//! On a real file, with real reads and writes.

use std::fs::File;
use std::os::unix::fs::FileExt;

use ashlar_cluster_index::{Action, Answer, Cache, Change, Event, Index, Limits, Opening, Output};
use ashlar_layout::ids::Seq;
use bytes::Bytes;

use crate::rig::{config, objects, put};

/// Two slots for roots, then chunks one after another.
struct Disk {
    file: File,
    end: u64,
}

const ROOTS: u64 = 2 << 20;

impl Disk {
    fn carry_out(&mut self, action: Action) -> Option<Event> {
        Some(match action {
            Action::Read { token, at, len } => {
                let mut bytes = vec![0; len as usize];
                let read = self.file.read_exact_at(&mut bytes, at);
                let bytes = read.is_ok().then(|| Bytes::from(bytes));
                Event::Read { token, bytes }
            }
            Action::Write { token, bytes } => {
                let at = self.end;
                self.file.write_all_at(&bytes, at).unwrap();
                self.end += bytes.len() as u64;
                Event::Written {
                    token,
                    result: Ok(at),
                }
            }
            Action::Sync { token } => {
                let ok = self.file.sync_data().is_ok();
                Event::Synced { token, ok }
            }
            Action::WriteRoot {
                token,
                generation,
                bytes,
            } => {
                let at = generation % 2 * (ROOTS / 2);
                self.file.write_all_at(&bytes, at).unwrap();
                let ok = self.file.sync_data().is_ok();
                Event::RootWritten { token, ok }
            }
            Action::Free { .. } | Action::Rooted => return None,
            Action::Done { .. } | Action::Damaged(_) => panic!("{action:?}"),
        })
    }

    fn run(
        &mut self,
        index: &mut Index,
        cache: &mut Cache,
        mut actions: Vec<Action>,
    ) -> Vec<Action> {
        let mut done = Vec::new();
        loop {
            for action in std::mem::take(&mut actions) {
                if matches!(action, Action::Done { .. }) {
                    done.push(action);
                } else if let Some(event) = self.carry_out(action) {
                    index.on_event(event, cache, &mut actions);
                }
            }
            if actions.is_empty() {
                if !index.wants_turn() {
                    return done;
                }
                index.on_event(Event::Turn, cache, &mut actions);
            }
        }
    }

    fn open(&mut self, life: u64, limits: Limits) -> (Index, Bytes) {
        let config = config(life, limits);
        let mut roots: Vec<Vec<u8>> = Vec::new();
        for slot in 0..2 {
            let mut bytes = vec![0; (ROOTS / 2) as usize];
            if self
                .file
                .read_exact_at(&mut bytes, slot * ROOTS / 2)
                .is_ok()
            {
                roots.push(bytes);
            }
        }
        let generation = |bytes: &Vec<u8>| {
            let root = ashlar_layout::root::Root::decode(bytes, config.device, config.partition);
            root.map_or(0, |root| root.generation)
        };
        let newest = roots.iter().max_by_key(|bytes| generation(bytes));
        let newest = newest.filter(|bytes| generation(bytes) > 0);
        let mut opening = Opening::new(config.clone(), newest.map(Vec::as_slice)).unwrap();
        let mut actions = Vec::new();
        let mut opened = opening.start(&mut actions);
        while opened.is_none() {
            let action = actions.pop().unwrap();
            let event = self.carry_out(action).unwrap();
            opened = opening.on_event(event, &mut actions);
        }
        let opened = opened.unwrap().unwrap();
        (opened.index, opened.attachment)
    }
}

#[test]
fn on_a_file() {
    let file = tempfile::tempfile().unwrap();
    let mut disk = Disk { file, end: ROOTS };
    let limits = Limits {
        table_bytes: 128 << 10,
        ..Limits::default()
    };
    let (mut index, _) = disk.open(1, limits.clone());
    let mut cache = Cache::new(256 << 10);
    let keys = 20_000u64;
    for seq in 1..=keys {
        let change = if seq == 1 {
            Change::PutBucket {
                bucket: "bucket".to_owned(),
                created_ms: 1,
            }
        } else {
            put("bucket", &format!("{:08}", seq * 7919 % keys), seq)
        };
        index.apply(Seq(seq), change).unwrap();
        if index.wants_freeze() {
            let mut out = Vec::new();
            assert!(index.freeze(Bytes::from_static(b"the owner's"), &mut out));
            disk.run(&mut index, &mut cache, out);
        }
    }
    let covered = index.covered();
    assert!(
        covered.0 > keys / 2 && index.stats().levels > 1,
        "{:?}",
        index.stats()
    );
    drop(index);
    let (mut index, attachment) = disk.open(2, limits);
    assert_eq!(
        (index.covered(), &*attachment),
        (covered, &b"the owner's"[..])
    );
    let mut seen = 0;
    for seq in 2..=keys {
        let mut out = Vec::new();
        let key = format!("{:08}", seq * 7919 % keys);
        let names = vec![("bucket".to_owned(), key)];
        let answer = index.ask(objects(names), None, &mut cache, &mut out);
        let result = match answer {
            Answer::Ready(result) => result,
            Answer::Pending(_) => match disk.run(&mut index, &mut cache, out).pop() {
                Some(Action::Done { result, .. }) => result,
                other => panic!("{other:?}"),
            },
            Answer::Busy => panic!("busy"),
        };
        let Ok(Output::Objects(found)) = result else {
            panic!("{result:?}");
        };
        let version = found[0].as_ref().map(|found| found.meta.version);
        assert_eq!(version, (seq <= covered.0).then_some(Seq(seq)));
        seen += u64::from(version.is_some());
    }
    assert_eq!(seen, covered.0 - 1);
}
