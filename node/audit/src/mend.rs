//! What is done about stripes of the queue, about several at the same time.
//!
//! Invariants:
//! - nothing of a stripe is written that is not in its finding, and nothing is put elsewhere that is bad otherwise;
//! - bytes of stripes are held by all auditors of a node together up to [`crate::node::ROOM`] only.

use std::collections::BTreeSet;
use std::sync::Arc;

use ashlar_cluster_audit::queue::{URGENT, URGENT_MOVE};
use ashlar_cluster_audit::{Finding, How, Job, Looked, Outcome};
use ashlar_layout::ids::{DeviceNo, PartitionId, Seq, StripeId};
use ashlar_layout::manifest::Stripe;
use ashlar_layout::version::ENTRY_VERSION_RELOCATE;
use ashlar_node_client::{ClientError, Mends, ObjectAudit, Step};
use tokio::task::JoinSet;

use crate::look::{charges, looked};
use crate::node::Node;

/// Who does that, in a partition.
#[derive(Clone)]
pub(crate) struct Mender {
    pub(crate) node: Arc<Node>,
    pub(crate) partition: PartitionId,
}

impl Mender {
    fn tell(&self, what: &str) {
        self.node.tell(self.partition, what);
    }

    /// Does all of it, and says what came of each. It may be dropped at any time: then what was begun is given up.
    pub(crate) async fn mend_all(&self, jobs: Vec<Job>) -> Vec<(StripeId, Outcome)> {
        let mut tasks = JoinSet::new();
        for job in jobs {
            let mender = self.clone();
            tasks.spawn(async move { (job.finding.stripe, mender.mend_one(&job).await) });
        }
        let mut outcomes = Vec::new();
        while let Some(done) = tasks.join_next().await {
            // Of one that panicked it is not said what came of it: that is a failure.
            outcomes.extend(done.ok());
        }
        outcomes
    }

    async fn mend_one(&self, Job { finding, how }: &Job) -> Outcome {
        let (done, doing) = match how {
            How::Look => (self.mend(finding, false).await, "looked at"),
            How::Mend => (self.mend(finding, true).await, "mended"),
            How::Move(gone) => (self.relocate(finding, gone).await, "moved"),
        };
        done.unwrap_or_else(|error| {
            let item = &finding.item;
            let why = format!(
                "stripe {} of ashlar://{}/{} cannot be {doing}: {error}",
                finding.stripe, item.bucket, item.key
            );
            self.tell(&why);
            Outcome::Failed(why)
        })
    }

    /// The stripe of a finding, where its object names it; none if that does not have it any more.
    async fn find(
        &self,
        finding: &Finding,
        urgent: bool,
    ) -> Result<Option<(ObjectAudit, Stripe)>, ClientError> {
        let (item, client) = (&finding.item, &self.node.client);
        let slot = item.slot.map(Seq);
        let opened = client.audit_object(&item.bucket, &item.key, slot);
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

    /// Looks at a stripe of an object, and puts it elsewhere if devices that are gone are all that is wrong with it.
    async fn relocate(
        &self,
        finding: &Finding,
        gone: &BTreeSet<DeviceNo>,
    ) -> Result<Outcome, ClientError> {
        let first = finding.margin <= URGENT_MOVE;
        if self.node.client.map().entries < ENTRY_VERSION_RELOCATE {
            // The head would refuse it when all of it is written: it is tried again.
            let why = "not before all nodes of the cluster are of the newest version".to_owned();
            return Ok(Outcome::Failed(why));
        }
        let Some((mut object, stripe)) = self.find(finding, first).await? else {
            return Ok(Outcome::Seen(None));
        };
        // It is looked at, read once more, written and read back.
        let mut charges = charges(&self.node.client.map(), &stripe, 4);
        // Nobody reads those.
        charges.retain(|charge| !gone.contains(&charge.device));
        let alone = finding.margin <= URGENT && !self.node.is_wanted(&charges);
        self.node.pay(&charges, alone || first).await;
        let _room = self.node.room(&stripe, 2).await;
        let Some(found) = object.look(&stripe, false).await? else {
            return Ok(Outcome::Seen(None));
        };
        let found = looked(&stripe, finding.nth, &found);
        let is_gone = found.away.iter().any(|(_, device)| gone.contains(device));
        if !is_gone || !found.bad.is_empty() || found.is_lost() {
            return Ok(Outcome::Seen(Some(found)));
        }
        let Some(moved) = object.relocate(&stripe).await? else {
            return Ok(Outcome::Seen(None));
        };
        self.tell(&format!(
            "ashlar://{}/{}: stripe {}, with {} shards on devices that are gone, is stripe {} now",
            finding.item.bucket,
            finding.item.key,
            finding.stripe,
            found.away.len(),
            moved.stripe.id
        ));
        Ok(Outcome::Moved(found))
    }

    /// Looks at a stripe of an object, and mends it; none if the object does not have it any more.
    async fn mend(&self, finding: &Finding, mends: bool) -> Result<Outcome, ClientError> {
        let item = &finding.item;
        let urgent = finding.margin <= URGENT;
        let Some((mut object, stripe)) = self.find(finding, urgent).await? else {
            return Ok(Outcome::Seen(None));
        };
        let times = if mends { 3 } else { 1 };
        let charges = charges(&self.node.client.map(), &stripe, times);
        self.node.pay(&charges, urgent).await;
        let _room = self.node.room(&stripe, 2).await;
        // What has become bad since is counted before it is mended.
        let mends = match mends {
            true => Mends::Only(finding.bad.keys().copied().collect()),
            false => Mends::None,
        };
        let found = object.look(&stripe, mends).await?;
        let found: Option<Looked> = found.map(|found| looked(&stripe, finding.nth, &found));
        if let Some(found) = found.as_ref().filter(|found| !found.mended.is_empty()) {
            self.tell(&format!(
                "ashlar://{}/{}: {} shards of stripe {} were made again and read back",
                item.bucket,
                item.key,
                found.mended.len(),
                finding.stripe
            ));
        }
        Ok(Outcome::Seen(found))
    }
}
