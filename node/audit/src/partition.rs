//! One partition's auditor, carried out.

use std::collections::BTreeSet;
use std::sync::Arc;

use ashlar_cluster_audit::audit::Now;
use ashlar_cluster_audit::record::now_key;
use ashlar_cluster_audit::{Action, Audit, Event, Item, Loss, Record, World};
use ashlar_layout::ids::{DeviceNo, PartitionId, Seq};
use ashlar_node_client::{Client, ClientError, Step};
use tokio::sync::watch;
use tokio::time::sleep_until;

use crate::ahead::{Ahead, Eye, Open};
use crate::ledger::{self, LedgerError};
use crate::look::prey;
use crate::mend::Mender;
use crate::node::Node;
use crate::walk::{self, Range};

/// Stripes that are told at once of an object that is gone through.
const TRACKED: usize = 64;

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
    object: Option<Open>,
    eye: Eye,
    ahead: Ahead,
    mender: Mender,
}

/// Audits a partition, for ever. It may be dropped at any time.
pub(crate) async fn run(node: Arc<Node>, led: Led, mut world: watch::Receiver<World>) {
    let mut audit = Audit::new(led.partition, node.options.node, node.options.limits());
    let partition = led.partition;
    let mut driver = Driver {
        eye: Eye {
            node: node.clone(),
            partition,
            chain: led.chain.clone(),
        },
        ahead: Ahead::default(),
        mender: Mender {
            node: node.clone(),
            partition,
        },
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
        self.node.tell(self.led.partition, what);
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
                Ok((items, next)) => {
                    self.ahead.listed(&items);
                    Event::Listed(items, next)
                }
                Err(error) => self.failed("its objects cannot be listed", &error),
            },
            Action::Look(item, done) => {
                let (object, event) = self.ahead.look(&self.eye, &item, done).await;
                self.object = object;
                event
            }
            Action::Next => {
                let Some(object) = self.object.take() else {
                    return Event::Failed("no object is being looked at".to_owned());
                };
                let (object, event) = self.eye.next(object).await;
                self.object = object;
                event
            }
            Action::Mend(jobs) => {
                self.ahead.mends(jobs.iter().map(|job| job.finding.stripe));
                Event::Mended(self.mender.mend_all(jobs).await)
            }
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
        let found = ledger::read::<Record>(self.client(), &now_key(self.led.partition)).await?;
        self.version = found.as_ref().map(|(version, _)| *version);
        let goes_on = found.as_ref().is_some_and(|(_, it)| it.pass.is_some());
        self.ahead.loaded(goes_on);
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

    /// The stripes of an object, from so many on, that are on devices which are gone.
    async fn track(
        &self,
        item: &Item,
        from: u64,
        gone: &BTreeSet<DeviceNo>,
    ) -> Result<Event, ClientError> {
        self.eye.ask_chain().await;
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
}
