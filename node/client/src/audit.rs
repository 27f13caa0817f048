//! Objects looked at whole, shard by shard, and mended.
//!
//! Invariants:
//! - a shard counts as bad only if its object still stands behind that: what is freed is missing rightly;
//! - it is mended only then as well. An object that is removed at that very moment may leave a shard behind; none that
//!   is needed is ever taken away, since a stripe may be another object's by then;
//! - a list of stripes is mended before it is read;
//! - a stripe is put elsewhere by what the object is at that moment: if that names another one, nothing is done.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ashlar_cluster_object::stripe_read::StripeRead;
use ashlar_cluster_object::tree::decode_node;
use ashlar_cluster_object::{
    Code, Fault, Mend, Mended, Mends, ObjectError, Relocate, Relocated, Spot,
};
use ashlar_layout::frame::Haste;
use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{Body, Stripe};
use ashlar_layout::message::{FindingKind, ObjectMeta};

use crate::client::Turn;
use crate::drive::Drive;
use crate::error::ClientError;
use crate::inner::Inner;
use crate::list;

/// What was found of an object's shards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audited {
    /// Stripes that were looked at, lists of stripes among them,
    pub stripes: u64,
    /// and their shards.
    pub shards: u64,
    /// Shards that were not whole on devices that answered, by what was wrong: names of
    /// [`FindingKind`].
    pub bad: BTreeMap<&'static str, u64>,
    /// Bad ones that were made again, and read back.
    pub mended: u64,
    /// Why bad ones could not be made again.
    pub failed: Vec<String>,
    /// Shards of devices that did not answer.
    pub away: u64,
    /// The fewest shards that some stripe could still lose; none where there are no stripes.
    pub margin: Option<i64>,
    /// Stripes whose bytes are gone, whatever comes back.
    pub lost: Vec<String>,
    /// The same with what was found of each.
    pub gone: Vec<Gone>,
    /// What was wrong with each bad shard of the others.
    pub faults: Vec<Fault>,
    /// Bytes of the shards that were read.
    pub shard_bytes: u64,
    /// It was replaced or removed meanwhile: what it is now is not looked at.
    pub changed: bool,
}

/// A stripe whose bytes are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Which,
    pub stripe: Stripe,
    /// the how many-th of those that were looked at,
    pub nth: u64,
    /// and what was found of it.
    pub found: Mended,
}

impl Audited {
    fn add(&mut self, stripe: &Stripe, found: &Mended) {
        let nth = self.stripes;
        self.stripes += 1;
        let read = u64::from(found.whole) + found.bad.len() as u64;
        self.shard_bytes += read * u64::from(stripe.shard_len());
        self.shards += stripe.shard_crcs.len() as u64;
        for fault in &found.bad {
            let kind = fault.fault.kind().unwrap_or(FindingKind::Rot);
            *self.bad.entry(kind.name()).or_default() += 1;
        }
        self.mended += u64::from(found.mended);
        self.away += found.away.len() as u64;
        let failed = found.failed.iter();
        self.failed
            .extend(failed.map(|fault| format!("stripe {}: {fault}", stripe.id)));
        let margin = found.margin();
        self.margin = Some(self.margin.map_or(margin, |least| least.min(margin)));
        if found.is_lost() {
            let (whole, needed) = (found.whole, found.needed);
            self.lost
                .push(format!("stripe {}: {whole} shards of {needed}", stripe.id));
            self.gone.push(Gone {
                stripe: stripe.clone(),
                nth,
                found: found.clone(),
            });
        } else {
            let faults = found.bad.iter().map(|fault| fault.fault.clone());
            self.faults.extend(faults);
        }
    }
}

/// Runs the machine for one stripe.
async fn look(
    inner: &Arc<Inner>,
    stripe: &Stripe,
    mends: Mends,
    haste: Haste,
) -> Result<Mended, ClientError> {
    let mend = Mend::new(inner.common.clone(), stripe.clone(), mends);
    let mend = mend.map_err(|detail| ObjectError::BadRequest { detail })?;
    let mut drive = Drive::hasting(inner.clone(), mend, None, haste);
    drive.until_answered().await;
    let outcome = drive.machine().and_then(Mend::outcome).cloned();
    Ok(outcome.unwrap_or(Err(ObjectError::Aborted))?)
}

/// What is known of an object, if there is one.
async fn known(
    inner: &Arc<Inner>,
    name: (&str, &str),
    id: Option<Seq>,
) -> Result<Option<ObjectMeta>, ClientError> {
    match list::head(inner, name, id, Turn::Within).await {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if matches!(error.code(), Code::NotFound | Code::NoSuchBucket) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What comes next of an object that is looked at stripe by stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// This stripe: of the object's bytes, or a list of stripes.
    Stripe(Stripe),
    /// There are no more.
    Over,
    /// The object was replaced or removed meanwhile.
    Changed,
}

/// An object whose stripes are looked at one after another, in their order, lists of stripes before what they list.
pub struct ObjectAudit {
    inner: Arc<Inner>,
    bucket: String,
    key: String,
    id: Option<Seq>,
    meta: ObjectMeta,
    todo: VecDeque<Stripe>,
    /// What is still to be looked at are lists of stripes.
    lists: VecDeque<Stripe>,
    /// The list that was looked at last, and is to be read.
    list: Option<Stripe>,
    /// The list that names what is to be looked at.
    from: Option<Stripe>,
    /// Whether devices may hold back what is asked of them.
    haste: Haste,
}

impl ObjectAudit {
    /// Begins to look at an object, or a version of it. None if there is no such object.
    ///
    /// It has no turn of its own among the client's readings: whoever audits may hold many of these for long, and do
    /// other things meanwhile. What asks for them is bounded by itself.
    pub(crate) async fn open(
        inner: &Arc<Inner>,
        (bucket, key): (&str, &str),
        id: Option<Seq>,
    ) -> Result<Option<ObjectAudit>, ClientError> {
        let Some(meta) = known(inner, (bucket, key), id).await? else {
            return Ok(None);
        };
        let (todo, lists) = match &meta.manifest.body {
            Body::Inline => (VecDeque::new(), VecDeque::new()),
            Body::Stripes(stripes) => (stripes.clone().into(), VecDeque::new()),
            Body::Tree(nodes) | Body::Parts { nodes, .. } => {
                (VecDeque::new(), nodes.clone().into())
            }
        };
        Ok(Some(ObjectAudit {
            inner: inner.clone(),
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            id,
            meta,
            todo,
            lists,
            list: None,
            from: None,
            haste: Haste::Background,
        }))
    }

    /// From now on devices hold nothing of it back: there is hardly any margin left.
    pub fn hurry(&mut self) {
        self.haste = Haste::Urgent;
    }

    /// What is known of the object.
    pub fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    /// Its bucket and key.
    pub fn name(&self) -> (&str, &str) {
        (&self.bucket, &self.key)
    }

    /// Whether the stripe that [`ObjectAudit::next`] gave last is a list of others, which come next.
    pub fn is_list(&self, stripe: &Stripe) -> bool {
        self.list.as_ref() == Some(stripe)
    }

    /// What has come in the place of an object that has changed, from its first stripe on; none if there is nothing.
    pub async fn again(&self) -> Result<Option<ObjectAudit>, ClientError> {
        let again = ObjectAudit::open(&self.inner, self.name(), self.id).await?;
        Ok(again.map(|again| ObjectAudit {
            haste: self.haste,
            ..again
        }))
    }

    /// Whether the object is what it was.
    async fn stands(&self) -> Result<bool, ClientError> {
        let meta = known(&self.inner, (&self.bucket, &self.key), self.id).await?;
        Ok(meta.is_some_and(|meta| meta.version == self.meta.version))
    }

    fn bad(&self, detail: String) -> ObjectError {
        ObjectError::BadManifest {
            bucket: self.bucket.clone(),
            key: self.key.clone(),
            detail,
        }
    }

    /// The next stripe that is to be looked at.
    pub async fn next(&mut self) -> Result<Step, ClientError> {
        if let Some(list) = self.list.take() {
            match self.listed(&list).await? {
                Some(stripes) => (self.todo, self.from) = (stripes.into(), Some(list)),
                None => return Ok(Step::Changed),
            }
        }
        if let Some(stripe) = self.todo.pop_front() {
            return Ok(Step::Stripe(stripe));
        }
        let Some(list) = self.lists.pop_front() else {
            return Ok(Step::Over);
        };
        self.list = Some(list.clone());
        Ok(Step::Stripe(list))
    }

    /// Looks at a stripe, and mends what it is told to; none if the object does not stand any more.
    pub async fn look(
        &mut self,
        stripe: &Stripe,
        mends: impl Into<Mends>,
    ) -> Result<Option<Mended>, ClientError> {
        let mends = mends.into();
        let mut found = look(&self.inner, stripe, Mends::None, self.haste).await?;
        if !found.bad.is_empty() && !self.stands().await? {
            return Ok(None);
        }
        if !found.bad.is_empty() && mends != Mends::None {
            found = look(&self.inner, stripe, mends, self.haste).await?;
            // It may have been removed since: then what is missing is so rightly.
            let all = found.mended as usize == found.bad.len();
            if !all && !self.stands().await? {
                return Ok(None);
            }
        }
        if found.is_lost() && self.is_list(stripe) {
            // What it listed is lost with it.
            self.list = None;
        }
        Ok(Some(found))
    }

    /// What is known of the object now, and whether it is the current one: of a version that is, both are to be
    /// changed.
    async fn standing(&self) -> Result<Option<(ObjectMeta, bool)>, ClientError> {
        let name = (&self.bucket[..], &self.key[..]);
        let current = known(&self.inner, name, None).await?;
        let Some(slot) = self.id else {
            return Ok(current.map(|meta| (meta, true)));
        };
        let is_it = |meta: &ObjectMeta| meta.tag.is_some_and(|tag| tag.slot() == slot);
        if let Some(meta) = current.filter(is_it) {
            return Ok(Some((meta, true)));
        }
        let meta = known(&self.inner, name, Some(slot)).await?;
        Ok(meta.map(|meta| (meta, false)))
    }

    /// Puts the stripe that [`ObjectAudit::next`] gave last elsewhere: onto devices that serve, read back, and named by
    /// the object instead of the old one, which is freed. None if the object does not name it any more.
    pub async fn relocate(&self, stripe: &Stripe) -> Result<Option<Relocated>, ClientError> {
        let Some(found) = self.standing().await? else {
            return Ok(None);
        };
        // A list that was not read yet is named by the manifest.
        let is_list = self.is_list(stripe);
        let spot = Spot {
            stripe: stripe.clone(),
            list: self.from.clone().filter(|_| !is_list),
        };
        let common = self.inner.common.clone();
        let relocate = match Relocate::new(common, &self.bucket, &self.key, found, spot) {
            Ok(relocate) => relocate,
            Err(error) if error.code() == Code::ObjectChanged => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut drive = Drive::hasting(self.inner.clone(), relocate, None, self.haste);
        drive.until_answered().await;
        let outcome = drive.machine().and_then(Relocate::outcome).cloned();
        Ok(Some(outcome.unwrap_or(Err(ObjectError::Aborted))?))
    }

    /// The stripes that a list of them names; none if the object does not stand any more.
    async fn listed(&self, node: &Stripe) -> Result<Option<Vec<Stripe>>, ClientError> {
        let want = 0..node.data_len;
        let read = StripeRead::new(self.inner.common.clone(), 0, node.clone(), want);
        let read = read.map_err(|detail| self.bad(detail))?;
        let mut drive = Drive::hasting(self.inner.clone(), read, None, self.haste);
        drive.until_answered().await;
        let part = match drive.machine().and_then(StripeRead::outcome).cloned() {
            Some(Ok(part)) => part,
            Some(Err(error)) if self.stands().await? => return Err(error.into()),
            _ => return Ok(None),
        };
        let stripes = decode_node(&part).map_err(|detail| self.bad(detail))?;
        Ok(Some(stripes))
    }
}

/// Looks at all shards of an object, or of a version of it, and mends them if `mends`. None if there is no such object.
pub(crate) async fn audit(
    inner: &Arc<Inner>,
    name: (&str, &str),
    id: Option<Seq>,
    mends: bool,
) -> Result<Option<(ObjectMeta, Audited)>, ClientError> {
    let Some(mut object) = ObjectAudit::open(inner, name, id).await? else {
        return Ok(None);
    };
    let mut all = Audited::default();
    loop {
        match object.next().await? {
            Step::Stripe(stripe) => match object.look(&stripe, mends).await? {
                Some(found) => all.add(&stripe, &found),
                None => break all.changed = true,
            },
            Step::Over => break,
            Step::Changed => break all.changed = true,
        }
    }
    Ok(Some((object.meta, all)))
}
