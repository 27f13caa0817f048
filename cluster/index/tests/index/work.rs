//! A plain map that remembers every state, and what it says to each question.

use std::collections::BTreeMap;

use ashlar_cluster_index::{Change, Found, List, Output, Question};
use ashlar_layout::ids::Seq;
use ashlar_layout::message::{BucketMeta, ListEntry, ListPage, ObjectMeta};

use crate::rig::object;

type Versions<T> = Vec<(u64, Option<T>)>;

/// The journal, and what each entry made of the map.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub log: Vec<Change>,
    buckets: BTreeMap<String, Versions<u64>>,
    objects: BTreeMap<(String, String), Versions<()>>,
}

impl Model {
    pub fn last(&self) -> u64 {
        self.log.len() as u64
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
        }
    }

    fn keys(&self, bucket: &str, at: u64) -> Vec<(&str, u64)> {
        let all = self.objects.iter().filter(|((b, _), _)| b == bucket);
        all.filter_map(|((_, key), versions)| Some((key.as_str(), seen(versions, at)?.0)))
            .collect()
    }

    pub fn says(&self, question: &Question, at: u64) -> Output {
        match question {
            Question::Objects(names) => Output::Objects(
                names
                    .iter()
                    .map(|name| {
                        let (seq, ()) = seen(self.objects.get(name)?, at)?;
                        Some(found(seq))
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
                version: Seq(seq),
                modified_ms: object.modified_ms,
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

fn found(seq: u64) -> Found {
    let object = object(seq);
    Found {
        meta: ObjectMeta {
            version: Seq(seq),
            modified_ms: object.modified_ms,
            manifest: object.manifest,
        },
        place: object.place,
    }
}
