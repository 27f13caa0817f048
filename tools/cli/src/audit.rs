//! `ashlar audit`: a pass over every shard of every object, at once.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::VersionTag;
use ashlar_layout::message::ObjectMeta;
use ashlar_layout::names::SYSTEM_BUCKET;
use ashlar_node_audit::{Asked, LedgerError};
use ashlar_node_client::{Audited, Client, Code, ListOptions, VersionsOptions};
use clap::Args;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::fail::Fail;
use crate::orphans::{self, OrphansRow};
use crate::output::{self, Progress, human};
use crate::process;
use crate::store;

/// Objects that are looked at at the same time.
const AT_ONCE: usize = 8;

/// What to look at.
#[derive(Args)]
pub struct AuditArgs {
    /// Make the pass now. The nodes make passes by themselves as well, at their own pace.
    #[arg(long, required = true)]
    now: bool,
    /// Return when the pass has ended and what it found is mended, as it does in any case.
    #[arg(long)]
    wait: bool,
    /// Only look: mend nothing, and record nothing.
    #[arg(long)]
    look: bool,
    /// Only at this bucket.
    #[arg(long)]
    bucket: Option<String>,
}

/// What a pass came to.
#[derive(Debug, Default, Serialize)]
struct Tally {
    /// Objects, versions among them,
    objects: u64,
    /// and their bytes.
    bytes: u64,
    /// Objects that ride in the journal, whose replicas are not looked at.
    inline: u64,
    stripes: u64,
    shards: u64,
    /// Bad shards by what was wrong with them.
    bad: BTreeMap<&'static str, u64>,
    mended: u64,
    /// Shards that could not be mended, and why.
    failed: Vec<String>,
    /// Shards of devices that did not answer.
    away: u64,
    /// Stripes by how many more shards they can lose now.
    margin: BTreeMap<i64, u64>,
    /// Objects of which bytes are gone, with their stripes.
    lost: Vec<String>,
    /// Objects that were replaced or removed while they were looked at.
    changed: u64,
    /// Objects that could not be looked at, and why.
    unread: Vec<String>,
    /// Shards that no object names, as the nodes' own passes have found them: this one finds none.
    orphans: Vec<OrphansRow>,
}

impl Tally {
    fn take(&mut self, name: &str, bytes: u64, found: Audited) {
        self.objects += 1;
        self.bytes += bytes;
        self.inline += u64::from(found.stripes == 0);
        self.stripes += found.stripes;
        self.shards += found.shards;
        for (kind, count) in found.bad {
            *self.bad.entry(kind).or_default() += count;
        }
        self.mended += found.mended;
        self.away += found.away;
        let failed = found.failed.into_iter();
        self.failed
            .extend(failed.map(|why| format!("{name}: {why}")));
        let lost = found.lost.into_iter();
        self.lost.extend(lost.map(|what| format!("{name}: {what}")));
        self.changed += u64::from(found.changed);
        if let Some(margin) = found.margin {
            *self.margin.entry(margin).or_default() += 1;
        }
    }

    fn is_well(&self) -> bool {
        self.failed.is_empty() && self.lost.is_empty() && self.unread.is_empty()
    }

    fn tell(&self, mends: bool) -> Result<(), Fail> {
        output::line(&format!(
            "{} objects of {} looked at: {} shards in {} stripes; {} objects ride in the journal",
            self.objects,
            human(self.bytes),
            self.shards,
            self.stripes,
            self.inline
        ))?;
        let bad: u64 = self.bad.values().sum();
        let kinds = self
            .bad
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"));
        let kinds: Vec<String> = kinds.collect();
        let kinds = if kinds.is_empty() {
            "none".to_owned()
        } else {
            kinds.join(", ")
        };
        output::line(&format!("bad shards: {kinds}"))?;
        if bad > 0 && mends {
            output::line(&format!("mended, and read back: {}", self.mended))?;
        }
        if self.away > 0 {
            output::line(&format!(
                "{} shards are on devices that do not answer: nothing is known of them",
                self.away
            ))?;
        }
        for (margin, count) in &self.margin {
            let what = match margin {
                ..0 => "cannot be read now".to_owned(),
                0 => "can lose no other shard".to_owned(),
                1 => "can lose one more shard".to_owned(),
                margin => format!("can lose {margin} more shards"),
            };
            output::line(&format!("{count} objects {what}"))?;
        }
        for told in orphans::told(&self.orphans) {
            output::line(&told)?;
        }
        for (what, list) in [("not mended", &self.failed), ("LOST", &self.lost)] {
            for one in list {
                output::line(&format!("{what}: {one}"))?;
            }
        }
        Ok(())
    }
}

/// An object's name, for people.
fn name_of(bucket: &str, key: &str, tag: Option<VersionTag>) -> String {
    match tag {
        None => format!("ashlar://{bucket}/{key}"),
        Some(tag) => format!("ashlar://{bucket}/{key} version {}", tag.slot()),
    }
}

/// What was found of an object, and how long that took.
struct Seen {
    bucket: String,
    key: String,
    name: String,
    found: Result<Option<(ObjectMeta, Audited)>, String>,
    took: Duration,
}

/// Looks at one object.
async fn look(client: Client, at: (String, String, Option<VersionTag>), mends: bool) -> Seen {
    let (bucket, key, tag) = at;
    let version: Option<Seq> = tag.map(VersionTag::slot);
    let name = name_of(&bucket, &key, tag);
    let began = Instant::now();
    let found = client.audit(&bucket, &key, version, mends).await;
    Seen {
        bucket,
        key,
        name,
        found: found.map_err(|error| error.to_string()),
        took: began.elapsed(),
    }
}

/// A pass.
struct Pass {
    client: Client,
    mends: bool,
    tally: Tally,
    /// Where it is recorded, if it mends.
    asked: Option<Asked>,
}

fn unrecorded(error: LedgerError) -> Fail {
    Fail::Refused(format!("the pass cannot be recorded: {error}"))
}

impl Pass {
    /// Takes what was found of one object.
    async fn note(&mut self, progress: &Progress, seen: Seen) -> Result<(), Fail> {
        let name = seen.name;
        match seen.found {
            Ok(Some((meta, found))) => {
                if let Some(asked) = &mut self.asked {
                    let names = (seen.bucket.as_str(), seen.key.as_str());
                    asked.take(names, &meta, &found, seen.took);
                }
                self.tally.take(&name, meta.manifest.size, found);
            }
            // It was removed since it was listed.
            Ok(None) => self.tally.changed += 1,
            Err(why) => {
                progress.note(&format!("{name}: {why}"));
                self.tally.unread.push(format!("{name}: {why}"));
                if let Some(asked) = &mut self.asked {
                    asked.unread();
                }
            }
        }
        progress.inc(1);
        match &mut self.asked {
            Some(asked) => asked.record().await.map_err(unrecorded),
            None => Ok(()),
        }
    }

    /// Looks at all objects of a bucket; says whether there is one.
    async fn walk(&mut self, bucket: &str) -> Result<bool, Fail> {
        let progress = Progress::things(bucket, None);
        let mut tasks: JoinSet<Seen> = JoinSet::new();
        let mut next = (String::new(), None);
        loop {
            let list = ListOptions {
                after: next.0,
                ..ListOptions::default()
            };
            let after_id = next.1;
            let options = VersionsOptions { list, after_id };
            let page = match self.client.list_versions(bucket, options).await {
                Ok(page) => page,
                Err(error) if error.code() == Code::NoSuchBucket => return Ok(false),
                Err(error) => return Err(Fail::store(format!("bucket {bucket}"))(error)),
            };
            for entry in page.versions {
                if entry.tag.is_some_and(|tag| tag.marker) {
                    continue;
                }
                if tasks.len() >= AT_ONCE
                    && let Some(Ok(done)) = tasks.join_next().await
                {
                    self.note(&progress, done).await?;
                }
                let at = (bucket.to_owned(), entry.key, entry.tag);
                tasks.spawn(look(self.client.clone(), at, self.mends));
            }
            match page.next {
                Some(behind) => next = behind,
                None => break,
            }
        }
        while let Some(done) = tasks.join_next().await {
            if let Ok(done) = done {
                self.note(&progress, done).await?;
            }
        }
        progress.finish();
        Ok(true)
    }
}

/// Makes a pass.
pub fn audit(args: &AuditArgs, cluster: Option<&Path>, json: bool) -> Result<(), Fail> {
    let (only, mends) = (args.bucket.clone(), !args.look);
    let mut run = [0u8; 8];
    process::random(&mut run)?;
    let run = u64::from_le_bytes(run);
    let tally = store::with_client(cluster, |client| async move {
        let asked = match mends {
            true => Some(Asked::begin(&client, run).await.map_err(unrecorded)?),
            false => None,
        };
        let mut pass = Pass {
            client: client.clone(),
            mends,
            tally: Tally::default(),
            asked,
        };
        let one = only.is_some();
        let buckets = match only {
            Some(bucket) => vec![bucket],
            None => {
                let all = client.buckets().await.map_err(Fail::store("the buckets"))?;
                let mut all: Vec<String> = all.into_iter().map(|bucket| bucket.name).collect();
                if !all.iter().any(|name| name == SYSTEM_BUCKET) {
                    all.push(SYSTEM_BUCKET.to_owned());
                }
                all
            }
        };
        for bucket in buckets {
            let is_there = pass.walk(&bucket).await?;
            // Of all there are some may be removed meanwhile; and where S3 was never spoken, its bucket is not there.
            if one && !is_there {
                return Err(Fail::Refused(format!("there is no bucket {bucket}")));
            }
        }
        if let Some(asked) = pass.asked {
            asked.end().await.map_err(unrecorded)?;
        }
        // What the pass has seen is told, whether that can be read or not.
        let (orphans, hidden) = orphans::read(&client).await;
        pass.tally.orphans = orphans;
        for why in hidden {
            output::note(&why);
        }
        Ok(pass.tally)
    })?;
    match json {
        true => output::json(&tally)?,
        false => tally.tell(mends)?,
    }
    let failed = tally.failed.len() + tally.lost.len() + tally.unread.len();
    match tally.is_well() {
        true => Ok(()),
        false => Err(Fail::Some {
            failed: failed as u64,
            total: tally.objects,
            things: "objects",
        }),
    }
}
