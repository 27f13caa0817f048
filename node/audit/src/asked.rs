//! A pass that somebody asked for, recorded beside those that nobody asked for.
//!
//! Invariants:
//! - its document is its own: nobody else writes it;
//! - it tells of what was looked at and mended when that is over: what was mended in the last moments before whoever
//!   asked was killed is not told of by anyone. It counts no years: the passes that nobody asks for do.

use std::time::Duration;

use ashlar_cluster_audit::record::{DAY_MS, day_key};
use ashlar_cluster_audit::{Closed, Item, Loss, Tally};
use ashlar_layout::ids::Seq;
use ashlar_layout::message::ObjectMeta;
use ashlar_node_client::{Audited, Client};

use crate::ledger::{self, LedgerError};
use crate::look::kind;

/// How long at the most is not recorded what was found.
const RECORD_MS: u64 = 5000;

/// The record of such a pass.
#[derive(Debug)]
pub struct Asked {
    client: Client,
    run: u64,
    version: Option<Seq>,
    closed: Closed,
    recorded_ms: u64,
    losses: Vec<Loss>,
}

/// What an object is called in the ledger.
pub(crate) fn item(bucket: &str, key: &str, meta: &ObjectMeta) -> Item {
    Item {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        slot: meta.tag.map(|tag| tag.slot().0),
        id: meta.tag.map_or(meta.version, |tag| tag.id).0,
        version: meta.version.0,
        modified_ms: meta.modified_ms,
        size: meta.manifest.size,
    }
}

impl Asked {
    /// Of a pass that begins now; `run` is a number that no other pass has.
    pub async fn begin(client: &Client, run: u64) -> Result<Asked, LedgerError> {
        ledger::found(client).await?;
        let now_ms = ledger::wall_ms();
        let closed = Closed {
            day: now_ms / DAY_MS,
            tally: Tally::default(),
        };
        let mut asked = Asked {
            client: client.clone(),
            run,
            version: None,
            closed,
            recorded_ms: now_ms,
            losses: Vec::new(),
        };
        // What could not be recorded is not begun.
        asked.write(now_ms).await?;
        Ok(asked)
    }

    /// Takes what was found of an object, which was looked at and mended for so long.
    pub fn take(
        &mut self,
        (bucket, key): (&str, &str),
        meta: &ObjectMeta,
        found: &Audited,
        took: Duration,
    ) {
        let item = item(bucket, key, meta);
        let tally = &mut self.closed.tally;
        tally.objects += 1;
        tally.bytes += meta.manifest.size;
        tally.inline += u64::from(found.stripes == 0 && !found.changed);
        tally.stripes += found.stripes;
        tally.shards += found.shards;
        tally.shard_bytes += found.shard_bytes;
        tally.repaired += found.mended;
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        tally.repair_ms += found.mended.saturating_mul(took_ms);
        if found.mended > 0 {
            tally.repair_longest_ms = tally.repair_longest_ms.max(took_ms);
        }
        tally.away += found.away;
        tally.changed += u64::from(found.changed);
        // A part's stripe may have been moved under the object that it became: that one tells of it.
        let tells = item.may_move();
        for gone in found.gone.iter().filter(|_| tells) {
            let bad = gone.found.bad.iter();
            self.losses.push(Loss {
                item: item.clone(),
                stripe: gone.stripe.id,
                nth: gone.nth,
                found_ms: ledger::wall_ms(),
                whole: gone.found.whole,
                needed: gone.found.needed,
                bad: bad
                    .map(|it| (it.index, (kind(&it.fault), it.device)))
                    .collect(),
            });
        }
        // Bad shards of stripes that are lost stand with the losses.
        for fault in &found.faults {
            *tally.found.entry(kind(fault)).or_default() += 1;
        }
    }

    /// An object could not be looked at.
    pub fn unread(&mut self) {
        self.closed.tally.unread += 1;
    }

    /// Records what was counted, if it is time to.
    pub async fn record(&mut self) -> Result<(), LedgerError> {
        let now_ms = ledger::wall_ms();
        match now_ms.abs_diff(self.recorded_ms) >= RECORD_MS || !self.losses.is_empty() {
            true => self.write(now_ms).await,
            false => Ok(()),
        }
    }

    /// Records the rest.
    pub async fn end(mut self) -> Result<(), LedgerError> {
        self.closed.tally.passes += 1;
        self.write(ledger::wall_ms()).await
    }

    async fn write(&mut self, now_ms: u64) -> Result<(), LedgerError> {
        for loss in std::mem::take(&mut self.losses) {
            ledger::keep_loss(&self.client, &loss).await?;
        }
        let key = day_key(self.closed.day, &format!("run-{:016x}", self.run));
        let written = ledger::write(&self.client, &key, &self.closed, self.version).await?;
        // Nobody else writes it: if it is another one, then by an answer of ours that was lost.
        self.version = match written {
            Some(version) => Some(version),
            None => ledger::read::<Closed>(&self.client, &key)
                .await?
                .map(|(version, _)| version),
        };
        self.recorded_ms = now_ms;
        Ok(())
    }
}
