//! Looking at objects of a page, the next ones before they are asked for: devices are read by many at a time, or they
//! are slow.
//!
//! Invariants:
//! - what is handed out was seen after whatever was mended of it: a look that was begun before is made once more;
//! - who goes on from where another one ended looks at one after the other first, so that what ends it each time is
//!   come upon in order, and is known by its place.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ashlar_cluster_audit::{Charge, Event, Item, Looked};
use ashlar_layout::ids::{DeviceNo, PartitionId, Seq, StripeId};
use ashlar_layout::time::Instant;
use ashlar_node_client::{ClientError, ObjectAudit, Step};
use tokio::task::JoinHandle;

use crate::asked::item;
use crate::look::{charges, looked};
use crate::node::Node;

/// Bytes that asking for an object counts as.
const ASKING: u64 = 4096;
/// Objects that are looked at at the same time.
const AHEAD: usize = 16;
/// A look that ended longer ago, and saw something bad, is made again: whoever else audits may have mended it, and
/// counted it.
const FRESH: Duration = Duration::from_secs(1);
/// Objects that are looked at one by one after somebody else's pass was gone on with: then it is recorded how far it
/// came.
const ALONE: u64 = 256;

/// An object that is being looked at, and how many of its stripes were.
pub(crate) type Open = (ObjectAudit, u64);
/// What came of looking, and the object if there may be more of it.
type Seen = (Option<Open>, Event);

/// Who looks, in a partition.
#[derive(Clone)]
pub(crate) struct Eye {
    pub(crate) node: Arc<Node>,
    pub(crate) partition: PartitionId,
    /// The devices of its chain.
    pub(crate) chain: Vec<DeviceNo>,
}

impl Eye {
    fn failed(&self, doing: &str, error: &ClientError) -> Event {
        let why = format!("{doing}: {error}");
        self.node.tell(self.partition, &why);
        Event::Failed(why)
    }

    fn unread(&self, item: &Item, error: &ClientError) -> Seen {
        let what = format!("ashlar://{}/{} cannot be looked at", item.bucket, item.key);
        (None, self.failed(&what, error))
    }

    /// Waits until an object may be asked for.
    pub(crate) async fn ask_chain(&self) {
        let asking = self.chain.iter().map(|device| Charge {
            device: *device,
            bytes: ASKING,
        });
        self.node.pay(&asking.collect::<Vec<_>>(), false).await;
    }

    /// Looks at the first stripe of an object behind so many.
    async fn look(&self, item: &Item, done: u64) -> Seen {
        self.ask_chain().await;
        let slot = item.slot.map(Seq);
        let client = &self.node.client;
        let opened = client.audit_object(&item.bucket, &item.key, slot);
        let mut object = match opened.await {
            Ok(Some(object)) => object,
            Ok(None) => return (None, Event::Changed),
            Err(error) => return self.unread(item, &error),
        };
        if object.meta().version.0 != item.version {
            return replaced(object);
        }
        for _ in 0..done {
            match object.next().await {
                Ok(Step::Stripe(_)) => {}
                Ok(Step::Over) => return (None, Event::Over(false)),
                Ok(Step::Changed) => return self.again(&object).await,
                Err(error) => return self.unread(item, &error),
            }
        }
        self.next((object, done)).await
    }

    /// The object is not what it was: what it is now is looked at. What that names may have been there before.
    async fn again(&self, object: &ObjectAudit) -> Seen {
        match object.again().await {
            Ok(Some(object)) => replaced(object),
            Ok(None) => (None, Event::Changed),
            Err(error) => (None, self.failed("an object that changed", &error)),
        }
    }

    /// Looks at an object's next stripe.
    pub(crate) async fn next(&self, (mut object, nth): Open) -> Seen {
        let found = match object.next().await {
            Ok(Step::Over) => return (None, Event::Over(nth == 0)),
            Ok(Step::Changed) => return self.again(&object).await,
            Ok(Step::Stripe(stripe)) => {
                let charges = charges(&self.node.client.map(), &stripe, 1);
                self.node.pay(&charges, false).await;
                let _room = self.node.room(&stripe, 1).await;
                let lists = object.is_list(&stripe);
                let found = object.look(&stripe, false).await;
                let looked = |found| Looked {
                    lists,
                    ..looked(&stripe, nth, &found)
                };
                found.map(|found| found.map(looked))
            }
            Err(error) => Err(error),
        };
        match found {
            Ok(Some(looked)) => (Some((object, nth + 1)), Event::Stripe(looked)),
            Ok(None) => self.again(&object).await,
            Err(error) => (None, self.failed("an object cannot be looked at", &error)),
        }
    }
}

fn replaced(object: ObjectAudit) -> Seen {
    let (bucket, key) = object.name();
    let item = item(bucket, key, object.meta());
    (Some((object, 0)), Event::Replaced(Box::new(item)))
}

/// A look that is under way; given up if nobody waits for it.
struct Begun {
    item: Item,
    /// When it ended, and what came of it.
    task: JoinHandle<(Instant, Seen)>,
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The next objects of a page, and looks at the first of them.
#[derive(Default)]
pub(crate) struct Ahead {
    begun: VecDeque<Begun>,
    items: VecDeque<Item>,
    /// What was mended since the first of those looks was begun.
    mended: BTreeSet<StripeId>,
    /// Objects that are looked at one by one.
    alone: u64,
}

impl Ahead {
    /// The record was read: whether there was a pass to go on with.
    pub(crate) fn loaded(&mut self, goes_on: bool) {
        *self = Ahead {
            alone: if goes_on { ALONE } else { 0 },
            ..Ahead::default()
        };
    }

    /// What comes next, in order.
    pub(crate) fn listed(&mut self, items: &[Item]) {
        self.begun.clear();
        self.mended.clear();
        self.items = items.iter().cloned().collect();
    }

    /// Something is about to be done about these stripes.
    pub(crate) fn mends(&mut self, stripes: impl Iterator<Item = StripeId>) {
        if !self.begun.is_empty() {
            self.mended.extend(stripes);
        }
    }

    /// Looks at the first stripe of an object behind so many, and begins to look at the next ones.
    pub(crate) async fn look(&mut self, eye: &Eye, item: &Item, done: u64) -> Seen {
        // What was passed over is not asked for. One that is tried once more is not among them.
        let at = self.begun.iter().position(|it| it.item == *item);
        self.begun.drain(..at.unwrap_or(0));
        let known = at.and_then(|_| self.begun.pop_front());
        if let Some(at) = self.items.iter().position(|next| next == item) {
            self.items.drain(..=at);
        }
        if self.begun.is_empty() && known.is_none() {
            self.mended.clear();
        }
        self.alone = self.alone.saturating_sub(1);
        self.begin(eye);
        if let Some(mut known) = known.filter(|_| done == 0)
            && let Ok((ended, seen)) = (&mut known.task).await
            && !self.is_stale(eye, ended, &seen.1)
        {
            return seen;
        }
        eye.look(item, done).await
    }

    fn is_stale(&self, eye: &Eye, ended: Instant, event: &Event) -> bool {
        let Event::Stripe(looked) = event else {
            return false;
        };
        let old = eye.node.clock.now().since(ended) > FRESH;
        self.mended.contains(&looked.stripe) || old && !looked.bad.is_empty()
    }

    fn begin(&mut self, eye: &Eye) {
        while self.alone == 0
            && self.begun.len() < AHEAD
            && let Some(item) = self.items.pop_front()
        {
            let (eye, of) = (eye.clone(), item.clone());
            let task = tokio::spawn(async move {
                let seen = eye.look(&of, 0).await;
                (eye.node.clock.now(), seen)
            });
            self.begun.push_back(Begun { item, task });
        }
    }
}
