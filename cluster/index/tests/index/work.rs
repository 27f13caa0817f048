//! A plain map that remembers every state, and what it says to each question.

use std::collections::BTreeMap;

use ashlar_cluster_index::{Change, Found, Item, List, Output, Question, Range};
use ashlar_layout::ids::Seq;
use ashlar_layout::message::{BucketMeta, ListEntry, ListPage, ObjectMeta};

use crate::rig::{object, restored};

type Versions<T> = Vec<(u64, Option<T>)>;
pub type Name = (String, String);

/// Names, and what there is of them: versions, and objects.
pub type Contents = BTreeMap<Name, (u64, Option<Found>)>;

/// The same of what an index tells.
pub fn contents(items: &[Item]) -> Contents {
    let entry = |item: &Item| match item.change().unwrap() {
        Change::PutBucket { bucket, .. } => ((bucket, String::new()), (item.version.0, None)),
        Change::Put {
            bucket,
            key,
            object,
        } => {
            let found = Found {
                meta: ObjectMeta {
                    version: item.version,
                    modified_ms: object.modified_ms,
                    manifest: object.manifest,
                    tag: object.tag,
                },
                place: object.place,
                payload: object.payload,
            };
            ((bucket, key), (item.version.0, Some(found)))
        }
        other => panic!("{other:?}"),
    };
    let all: Contents = items.iter().map(entry).collect();
    assert_eq!(all.len(), items.len(), "each once");
    all
}

/// The journal behind an entry, and what each entry made of the map.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The log begins behind this one.
    pub base: u64,
    pub log: Vec<Change>,
    buckets: BTreeMap<String, Versions<u64>>,
    objects: BTreeMap<Name, Versions<()>>,
    /// Versions whose payload was put anew, and whether that is durable for certain.
    pub amended: BTreeMap<(u64, Name), bool>,
}

impl Model {
    pub fn last(&self) -> u64 {
        self.base + self.log.len() as u64
    }

    /// What comes behind an entry.
    pub fn tail(&self, from: u64) -> Vec<(u64, Change)> {
        let tail = self.log[(from - self.base) as usize..].to_vec();
        (from + 1..).zip(tail).collect()
    }

    pub fn apply(&mut self, change: Change) {
        self.log.push(change.clone());
        let seq = self.last();
        match change {
            Change::Nothing => {}
            Change::PutBucket { bucket, created_ms } => {
                let versions = self.buckets.entry(bucket).or_default();
                versions.push((seq, Some(created_ms)));
            }
            Change::DropBucket { bucket } => {
                self.buckets.entry(bucket).or_default().push((seq, None));
            }
            Change::Put { bucket, key, .. } => {
                let versions = self.objects.entry((bucket, key)).or_default();
                versions.push((seq, Some(())));
            }
            Change::Delete { bucket, key } => {
                let versions = self.objects.entry((bucket, key)).or_default();
                versions.push((seq, None));
            }
            Change::PutVersion { .. } | Change::DropVersion { .. } | Change::All(_) => {
                unreachable!("versions have a model of their own")
            }
        }
    }

    /// Objects whose bytes are in the journal: name and newest version.
    pub fn placed(&self) -> Vec<(Name, u64)> {
        let newest = self.objects.iter().filter_map(|(name, versions)| {
            let (seq, there) = versions.last()?;
            let placed = there.is_some() && object(*seq).place.is_some();
            let amended = self.amended.contains_key(&(*seq, name.clone()));
            (placed && !amended).then(|| (name.clone(), *seq))
        });
        newest.collect()
    }

    /// The newest version of an object.
    pub fn newest(&self, name: &Name) -> Option<u64> {
        Some(seen(self.objects.get(name)?, u64::MAX)?.0)
    }

    /// What a fork of it has: the newest of all that is in a range, and of the buckets that are carried.
    pub fn fork(&self, range: &Range, carry: &[String]) -> Model {
        let mut fork = self.clone();
        fork.base = self.last();
        fork.log.clear();
        fork.narrow(range, carry);
        fork
    }

    /// Leaves of it only this.
    pub fn narrow(&mut self, range: &Range, carry: &[String]) {
        self.buckets
            .retain(|name, _| range.contains(name, "") || carry.contains(name));
        self.objects
            .retain(|(bucket, key), _| range.contains(bucket, key));
        self.amended
            .retain(|(_, (bucket, key)), _| range.contains(bucket, key));
    }

    fn is_amended(&self, seq: u64, name: &Name) -> bool {
        self.amended.contains_key(&(seq, name.clone()))
    }

    /// All that there is: buckets, as (name, ""), with their versions, and objects.
    pub fn contents(&self) -> Contents {
        let mut all = Contents::new();
        for (name, versions) in &self.buckets {
            if let Some((seq, _)) = seen(versions, u64::MAX) {
                all.insert((name.clone(), String::new()), (seq, None));
            }
        }
        for (name, versions) in &self.objects {
            if let Some((seq, ())) = seen(versions, u64::MAX) {
                let found = found(seq, self.is_amended(seq, name));
                all.insert(name.clone(), (seq, Some(found)));
            }
        }
        all
    }

    /// What two neighbours have together, the right one without the bucket that it carries.
    pub fn union(left: &Model, right: &Model, border: &Name, base: u64) -> Model {
        let below = Range {
            from: None,
            to: Some(border.clone()),
        };
        let above = Range {
            from: Some(border.clone()),
            to: None,
        };
        let mut union = left.fork(&below, &[]);
        let right = right.fork(&above, &[]);
        union.base = base;
        union.buckets.extend(right.buckets);
        union.objects.extend(right.objects);
        union.amended.extend(right.amended);
        union
    }

    /// Names that there are or were.
    pub fn names(&self) -> Vec<Name> {
        self.objects.keys().cloned().collect()
    }

    fn keys(&self, bucket: &str, at: u64) -> Vec<(&str, u64)> {
        let all = self.objects.iter().filter(|((b, _), _)| b == bucket);
        all.filter_map(|((_, key), versions)| Some((key.as_str(), seen(versions, at)?.0)))
            .collect()
    }

    pub fn says(&self, question: &Question, at: u64) -> Output {
        match question {
            Question::Named(names) => Output::Objects(
                names
                    .iter()
                    .map(|ashlar_cluster_index::Name { bucket, key, id }| {
                        assert_eq!(*id, None, "there are no versions here");
                        let name = (bucket.clone(), key.clone());
                        let (seq, ()) = seen(self.objects.get(&name)?, at)?;
                        Some(found(seq, self.is_amended(seq, &name)))
                    })
                    .collect(),
            ),
            Question::Bucket(name) => Output::Bucket(self.bucket(name, at)),
            Question::Empty(name) => Output::Empty(self.keys(name, at).is_empty()),
            Question::Buckets { after, max } => {
                let all = self.buckets.keys().filter(|name| *name > after);
                let all: Vec<_> = all.filter_map(|name| self.bucket(name, at)).collect();
                let more = *max > 0 && all.len() > *max as usize;
                let buckets = all.into_iter().take(*max as usize).collect();
                Output::Buckets { buckets, more }
            }
            Question::List(params) => {
                let page = self
                    .bucket(&params.bucket, at)
                    .map(|_| self.page(params, at));
                Output::List(page)
            }
            Question::Items { .. } => unreachable!("compared in whole"),
            Question::Versions(_) | Question::Digest(_) => unreachable!("not asked here"),
        }
    }

    fn bucket(&self, name: &str, at: u64) -> Option<BucketMeta> {
        let (_, created_ms) = seen(self.buckets.get(name)?, at)?;
        let name = name.to_owned();
        Some(BucketMeta { name, created_ms })
    }

    /// What S3 says, said plainly: roll everything up, cut.
    fn page(&self, params: &List, at: u64) -> ListPage {
        let mut items: Vec<(String, Option<u64>)> = Vec::new();
        let keys = self.keys(&params.bucket, at);
        for (key, seq) in keys.iter().filter(|(k, _)| k.starts_with(&params.prefix)) {
            let rest = &key[params.prefix.len()..];
            let item = match rest.find(&params.delimiter) {
                Some(at) if !params.delimiter.is_empty() => {
                    let end = params.prefix.len() + at + params.delimiter.len();
                    (key[..end].to_owned(), None)
                }
                _ => ((*key).to_owned(), Some(*seq)),
            };
            if items.last() != Some(&item) {
                items.push(item);
            }
        }
        items.retain(|(text, seq)| {
            let inside = seq.is_none() && params.after.starts_with(text.as_str());
            params.after.is_empty() || (!inside && text.as_bytes() > params.after.as_bytes())
        });
        let more = items.len() > params.max as usize;
        items.truncate(params.max as usize);
        let mut page = ListPage::default();
        if more {
            page.next = items.last().map(|(text, _)| text.clone());
        }
        for (key, seq) in items {
            let Some(seq) = seq else {
                page.prefixes.push(key);
                continue;
            };
            let object = object(seq);
            page.objects.push(ListEntry {
                key,
                size: object.manifest.size,
                crc: object.manifest.crc,
                etag: object.manifest.etag,
                version: Seq(seq),
                modified_ms: object.modified_ms,
                tag: None,
            });
        }
        page
    }

    /// How many entries a snapshot has.
    pub fn count(&self, at: u64) -> usize {
        let objects = self.objects.values().filter(|v| seen(v, at).is_some());
        let buckets = self.buckets.values().filter(|v| seen(v, at).is_some());
        objects.count() + buckets.count()
    }
}

fn seen<T: Copy>(versions: &Versions<T>, at: u64) -> Option<(u64, T)> {
    let (seq, value) = versions.iter().rev().find(|(seq, _)| *seq <= at)?;
    value.map(|value| (*seq, value))
}

pub fn found(seq: u64, amended: bool) -> Found {
    let object = if amended { restored(seq) } else { object(seq) };
    Found {
        meta: ObjectMeta {
            version: Seq(seq),
            modified_ms: object.modified_ms,
            manifest: object.manifest,
            tag: object.tag,
        },
        place: object.place,
        payload: object.payload,
    }
}

/// What is said while payloads are put anew may be of before or after.
pub fn as_before_amending(output: Output) -> Output {
    let Output::Objects(objects) = output else {
        return output;
    };
    let before = |it: Found| {
        let seq = it.meta.version.0;
        if object(seq).place.is_some() && it == found(seq, true) {
            found(seq, false)
        } else {
            it
        }
    };
    Output::Objects(objects.into_iter().map(|it| it.map(before)).collect())
}
