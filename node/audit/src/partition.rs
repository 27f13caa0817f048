//! One partition's auditor, carried out.

use std::collections::BTreeSet;
use std::sync::Arc;

use ashlar_cluster_audit::audit::Now;
use ashlar_cluster_audit::record::now_key;
use ashlar_cluster_audit::{
    Action, Audit, Charge, Event, Finding, Item, Looked, Loss, Record, World,
};
use ashlar_layout::ids::{DeviceNo, PartitionId, Seq};
use ashlar_layout::manifest::Stripe;
use ashlar_node_client::{Client, ClientError, Mends, ObjectAudit, Step};
use tokio::sync::watch;
use tokio::time::sleep_until;

use crate::ledger::{self, LedgerError};
use crate::look::{charges, looked, prey};
use crate::node::Node;
use crate::walk::{self, Range};

/// Bytes that asking for an object counts as.
const ASKING: u64 = 4096;
/// Stripes that are told at once of an object that is gone through.
const TRACKED: usize = 64;
/// With no more margin than this, a repair does not wait for its turn.
const URGENT: i32 = 1;
/// With no more margin than this, a move does not. With more there are as many of them as a device had stripes: while
/// others want the devices too, those go at the pace of audits, which has a floor; otherwise one after the other.
const URGENT_MOVE: i32 = 0;

/// A partition that a node leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Led {
    pub(crate) partition: PartitionId,
    pub(crate) range: Range,
    /// The partitions that it was made of, and whether there are none of them any more.
    pub(crate) parents: Vec<(PartitionId, bool)>,
    /// The devices of its chain.
    pub(crate) chain: Vec<DeviceNo>,
}

struct Driver {
    node: Arc<Node>,
    led: Led,
    version: Option<Seq>,
    object: Option<(ObjectAudit, u64)>,
}

/// Audits a partition, for ever. It may be dropped at any time.
pub(crate) async fn run(node: Arc<Node>, led: Led, mut world: watch::Receiver<World>) {
    let mut audit = Audit::new(led.partition, node.options.node, node.options.limits());
    let mut driver = Driver {
        node,
        led,
        version: None,
        object: None,
    };
    let mut actions = Vec::new();
    let mut event = Event::Start;
    loop {
        if world.has_changed().unwrap_or(false) {
            let seen = Event::World(world.borrow_and_update().clone());
            audit.on_event(driver.now(), seen, &mut actions);
        }
        audit.on_event(driver.now(), event, &mut actions);
        event = match actions.pop() {
            Some(action) => driver.carry_out(action).await,
            None => {
                let deadline = audit.next_deadline().map(|at| driver.node.clock.at(at));
                let due = async {
                    match deadline {
                        Some(at) => sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    changed = world.changed() => match changed {
                        Ok(()) => Event::World(world.borrow_and_update().clone()),
                        // The node ends.
                        Err(_) => return,
                    },
                    () = due => Event::Deadline,
                }
            }
        };
    }
}

impl Driver {
    fn now(&self) -> Now {
        Now {
            at: self.node.clock.now(),
            wall_ms: ledger::wall_ms(),
        }
    }

    fn client(&self) -> &Client {
        &self.node.client
    }

    fn tell(&self, what: &str) {
        (self.node.options.tell)(&format!(
            "audit of partition {}: {what}",
            self.led.partition
        ));
    }

    fn failed(&self, doing: &str, error: &dyn std::fmt::Display) -> Event {
        let why = format!("{doing}: {error}");
        self.tell(&why);
        Event::Failed(why)
    }

    async fn carry_out(&mut self, action: Action) -> Event {
        match action {
            Action::Load => match self.load().await {
                Ok(record) => Event::Loaded(record.map(Box::new)),
                Err(error) => self.failed("the ledger cannot be read", &error),
            },
            Action::List(after) => match walk::page(self.client(), &self.led.range, after).await {
                Ok((items, next)) => Event::Listed(items, next),
                Err(error) => self.failed("its objects cannot be listed", &error),
            },
            Action::Look(item, done) => {
                self.object = None;
                self.look(&item, done).await
            }
            Action::Next => self.next().await,
            Action::Mend(finding, mends) => match self.mend(&finding, mends).await {
                Ok(looked) => Event::Mended(looked),
                Err(error) => {
                    let item = &finding.item;
                    let what = format!("ashlar://{}/{} cannot be mended", item.bucket, item.key);
                    self.failed(&what, &error)
                }
            },
            Action::Track(item, from, gone) => match self.track(&item, from, &gone).await {
                Ok(found) => found,
                Err(error) => {
                    let what = format!(
                        "ashlar://{}/{} cannot be gone through",
                        item.bucket, item.key
                    );
                    self.failed(&what, &error)
                }
            },
            Action::Move(finding, gone) => match self.relocate(&finding, &gone).await {
                Ok(event) => event,
                Err(error) => {
                    let item = &finding.item;
                    let what = format!("ashlar://{}/{} cannot be moved", item.bucket, item.key);
                    self.failed(&what, &error)
                }
            },
            Action::Record(record, losses) => match self.record(&record, &losses).await {
                Ok(true) => Event::Recorded,
                Ok(false) => {
                    self.tell("somebody else has written its record: it is read again");
                    Event::Outdated
                }
                Err(error) => self.failed("the ledger cannot be written", &error),
            },
            Action::KeepDay(closed) => {
                match ledger::keep_day(self.client(), self.led.partition, &closed).await {
                    Ok(()) => Event::DayKept,
                    Err(error) => self.failed("a day of the ledger cannot be kept", &error),
                }
            }
        }
    }

    async fn load(&mut self) -> Result<Option<Record>, LedgerError> {
        self.object = None;
        ledger::found(self.client()).await?;
        let found = ledger::read(self.client(), &now_key(self.led.partition)).await?;
        self.version = found.as_ref().map(|(version, _)| *version);
        if let Some((_, record)) = found {
            return Ok(Some(record));
        }
        let mut parents = Vec::new();
        for (parent, gone) in &self.led.parents {
            let found = ledger::read::<Record>(self.client(), &now_key(*parent)).await?;
            parents.extend(found.map(|(_, record)| (record, *gone)));
        }
        Ok(Record::of_parents(
            parents.iter().map(|(record, gone)| (record, *gone)),
        ))
    }

    async fn record(&mut self, record: &Record, losses: &[Loss]) -> Result<bool, LedgerError> {
        for loss in losses {
            if ledger::keep_loss(self.client(), loss).await? {
                self.tell(&format!(
                    "LOST: ashlar://{}/{} version {}: of stripe {} {} shards are left, and it takes {}",
                    loss.item.bucket,
                    loss.item.key,
                    loss.item.version,
                    loss.stripe,
                    loss.whole,
                    loss.needed
                ));
            }
        }
        let key = now_key(self.led.partition);
        match ledger::write(self.client(), &key, record, self.version).await? {
            Some(version) => {
                self.version = Some(version);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Waits until an object may be asked for.
    async fn ask_chain(&self) {
        let chain = self.led.chain.iter();
        let asking = chain.map(|device| Charge {
            device: *device,
            bytes: ASKING,
        });
        self.node.pay(&asking.collect::<Vec<_>>(), false).await;
    }

    async fn look(&mut self, item: &Item, done: u64) -> Event {
        self.ask_chain().await;
        let slot = item.slot.map(Seq);
        let opened = self.client().audit_object(&item.bucket, &item.key, slot);
        let mut object = match opened.await {
            Ok(Some(object)) => object,
            Ok(None) => return Event::Changed,
            Err(error) => return self.unread(item, &error),
        };
        if object.meta().version.0 != item.version {
            return Event::Changed;
        }
        for _ in 0..done {
            match object.next().await {
                Ok(Step::Stripe(_)) => {}
                Ok(Step::Over) => return Event::Over(false),
                Ok(Step::Changed) => return Event::Changed,
                Err(error) => return self.unread(item, &error),
            }
        }
        self.object = Some((object, done));
        self.next().await
    }

    fn unread(&self, item: &Item, error: &ClientError) -> Event {
        let what = format!("ashlar://{}/{} cannot be looked at", item.bucket, item.key);
        self.failed(&what, error)
    }

    async fn next(&mut self) -> Event {
        let Some((object, nth)) = &mut self.object else {
            return Event::Failed("no object is being looked at".to_owned());
        };
        let found = match object.next().await {
            Ok(Step::Over) => {
                let none = *nth == 0;
                self.object = None;
                return Event::Over(none);
            }
            Ok(Step::Changed) => {
                self.object = None;
                return Event::Changed;
            }
            Ok(Step::Stripe(stripe)) => {
                let charges = charges(&self.node.client.map(), &stripe, 1);
                self.node.pay(&charges, false).await;
                let found = object.look(&stripe, false).await;
                found.map(|found| found.map(|found| looked(&stripe, *nth, &found)))
            }
            Err(error) => Err(error),
        };
        match found {
            Ok(Some(looked)) => {
                *nth += 1;
                Event::Stripe(looked)
            }
            Ok(None) => Event::Changed,
            Err(error) => {
                self.object = None;
                self.failed("an object cannot be looked at", &error)
            }
        }
    }

    /// The stripe of a finding, where its object names it; none if that does not have it any more.
    async fn find(
        &self,
        finding: &Finding,
        urgent: bool,
    ) -> Result<Option<(ObjectAudit, Stripe)>, ClientError> {
        let item = &finding.item;
        let slot = item.slot.map(Seq);
        let opened = self.client().audit_object(&item.bucket, &item.key, slot);
        let Some(mut object) = opened.await? else {
            return Ok(None);
        };
        if urgent {
            object.hurry();
        }
        // Another version may have the stripe too: an object that was made longer, or whose tags were changed.
        let mut unread = None;
        loop {
            match object.next().await {
                Ok(Step::Stripe(stripe)) if stripe.id == finding.stripe => {
                    return Ok(Some((object, stripe)));
                }
                Ok(Step::Stripe(_)) => {}
                Ok(Step::Changed) => return Ok(None),
                Ok(Step::Over) => match unread {
                    Some(error) => return Err(error),
                    None => return Ok(None),
                },
                // A list of stripes that is lost: what others list is found all the same.
                Err(error) if unread.is_none() => unread = Some(error),
                Err(error) => return Err(error),
            }
        }
    }

    /// The stripes of an object, from so many on, that are on devices which are gone.
    async fn track(
        &self,
        item: &Item,
        from: u64,
        gone: &BTreeSet<DeviceNo>,
    ) -> Result<Event, ClientError> {
        self.ask_chain().await;
        let slot = item.slot.map(Seq);
        let opened = self.client().audit_object(&item.bucket, &item.key, slot);
        let Some(mut object) = opened.await? else {
            return Ok(Event::Changed);
        };
        let map = self.client().map();
        let (mut found, mut nth) = (Vec::new(), 0);
        loop {
            let stripe = match object.next().await? {
                Step::Stripe(stripe) => stripe,
                Step::Over => return Ok(Event::Tracked(found, None)),
                Step::Changed => return Ok(Event::Changed),
            };
            let prey = prey(&map, &stripe, nth, gone).filter(|_| nth >= from);
            if found.len() >= TRACKED && prey.is_some() {
                return Ok(Event::Tracked(found, Some(nth)));
            }
            found.extend(prey);
            nth += 1;
        }
    }

    /// Looks at a stripe of an object, and puts it elsewhere if devices that are gone are all that is wrong with it.
    async fn relocate(
        &self,
        finding: &Finding,
        gone: &BTreeSet<DeviceNo>,
    ) -> Result<Event, ClientError> {
        let first = finding.margin <= URGENT_MOVE;
        let Some((mut object, stripe)) = self.find(finding, first).await? else {
            return Ok(Event::Mended(None));
        };
        // It is looked at, read once more, written and read back.
        let charges = charges(&self.client().map(), &stripe, 4);
        let alone = finding.margin <= URGENT && !self.node.is_wanted(&charges);
        self.node.pay(&charges, alone || first).await;
        let Some(found) = object.look(&stripe, false).await? else {
            return Ok(Event::Mended(None));
        };
        let found = looked(&stripe, finding.nth, &found);
        let is_gone = found.away.iter().any(|(_, device)| gone.contains(device));
        if !is_gone || !found.bad.is_empty() || found.is_lost() {
            return Ok(Event::Mended(Some(found)));
        }
        let Some(moved) = object.relocate(&stripe).await? else {
            return Ok(Event::Mended(None));
        };
        self.tell(&format!(
            "ashlar://{}/{}: stripe {}, with {} shards on devices that are gone, is stripe {} now",
            finding.item.bucket,
            finding.item.key,
            finding.stripe,
            found.away.len(),
            moved.stripe.id
        ));
        Ok(Event::Moved(found))
    }

    /// Looks at a stripe of an object, and mends it; none if the object does not have it any more.
    async fn mend(&self, finding: &Finding, mends: bool) -> Result<Option<Looked>, ClientError> {
        let item = &finding.item;
        let urgent = finding.margin <= URGENT;
        let Some((mut object, stripe)) = self.find(finding, urgent).await? else {
            return Ok(None);
        };
        let times = if mends { 3 } else { 1 };
        let charges = charges(&self.client().map(), &stripe, times);
        self.node.pay(&charges, urgent).await;
        // What has become bad since is counted before it is mended.
        let mends = match mends {
            true => Mends::Only(finding.bad.keys().copied().collect()),
            false => Mends::None,
        };
        let found = object.look(&stripe, mends).await?;
        let Some(found) = found.map(|found| looked(&stripe, finding.nth, &found)) else {
            return Ok(None);
        };
        if !found.mended.is_empty() {
            self.tell(&format!(
                "ashlar://{}/{}: {} shards of stripe {} were made again and read back",
                item.bucket,
                item.key,
                found.mended.len(),
                finding.stripe
            ));
        }
        Ok(Some(found))
    }
}
