//! Objects looked at whole, shard by shard, and mended.
//!
//! Invariants:
//! - a shard counts as bad only if its object still stands behind that: what is freed is missing rightly;
//! - it is mended only then as well. An object that is removed at that very moment may leave a shard behind; none that
//!   is needed is ever taken away, since a stripe may be another object's by then;
//! - a list of stripes is mended before it is read.

use std::collections::BTreeMap;
use std::sync::Arc;

use ashlar_cluster_object::stripe_read::StripeRead;
use ashlar_cluster_object::tree::decode_node;
use ashlar_cluster_object::{Code, Fault, Mend, Mended, ObjectError};
use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{Body, Stripe};
use ashlar_layout::message::ObjectMeta;

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
    /// Shards that were not whole on devices that answered, by what was wrong: `missing`, `rot`, `wrong-record`,
    /// `unreadable`.
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
    /// It was replaced or removed meanwhile: what it is now is not looked at.
    pub changed: bool,
}

fn kind(fault: &Fault) -> &'static str {
    match fault {
        Fault::Missing => "missing",
        Fault::Mismatch(_) => "wrong-record",
        Fault::Device(_) => "unreadable",
        _ => "rot",
    }
}

impl Audited {
    fn add(&mut self, stripe: &Stripe, found: &Mended) {
        self.stripes += 1;
        self.shards += stripe.shard_crcs.len() as u64;
        for fault in &found.bad {
            *self.bad.entry(kind(&fault.fault)).or_default() += 1;
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
        }
    }
}

/// Runs the machine for one stripe.
async fn look(inner: &Arc<Inner>, stripe: &Stripe, mends: bool) -> Result<Mended, ClientError> {
    let mend = Mend::new(inner.common.clone(), stripe.clone(), mends);
    let mend = mend.map_err(|detail| ObjectError::BadRequest { detail })?;
    let mut drive = Drive::start(inner.clone(), mend, None);
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

/// An object that is being looked at.
struct Auditor<'a> {
    inner: &'a Arc<Inner>,
    name: (&'a str, &'a str),
    id: Option<Seq>,
    version: Seq,
    mends: bool,
    all: Audited,
}

impl Auditor<'_> {
    /// Whether the object is what it was: if not, that is noted.
    async fn stands(&mut self) -> Result<bool, ClientError> {
        let meta = known(self.inner, self.name, self.id).await?;
        let stands = meta.is_some_and(|meta| meta.version == self.version);
        self.all.changed |= !stands;
        Ok(stands)
    }

    fn bad(&self, detail: String) -> ObjectError {
        ObjectError::BadManifest {
            bucket: self.name.0.to_owned(),
            key: self.name.1.to_owned(),
            detail,
        }
    }

    /// Looks at a stripe, and mends it; false if the object does not stand any more.
    async fn stripe(&mut self, stripe: &Stripe) -> Result<bool, ClientError> {
        let mut found = look(self.inner, stripe, false).await?;
        if !found.bad.is_empty() && !self.stands().await? {
            return Ok(false);
        }
        if !found.bad.is_empty() && self.mends {
            found = look(self.inner, stripe, true).await?;
            // It may have been removed since: then what is missing is so rightly.
            let all = found.mended as usize == found.bad.len();
            if !all && !self.stands().await? {
                return Ok(false);
            }
        }
        self.all.add(stripe, &found);
        Ok(true)
    }

    /// The stripes that a list of them names; none if the object does not stand any more.
    async fn listed(&mut self, node: &Stripe) -> Result<Option<Vec<Stripe>>, ClientError> {
        let want = 0..node.data_len;
        let read = StripeRead::new(self.inner.common.clone(), 0, node.clone(), want);
        let read = read.map_err(|detail| self.bad(detail))?;
        let mut drive = Drive::start(self.inner.clone(), read, None);
        drive.until_answered().await;
        let part = match drive.machine().and_then(StripeRead::outcome).cloned() {
            Some(Ok(part)) => part,
            Some(Err(error)) if self.stands().await? => return Err(error.into()),
            _ => return Ok(None),
        };
        let stripes = decode_node(&part).map_err(|detail| self.bad(detail))?;
        Ok(Some(stripes))
    }

    async fn body(&mut self, body: &Body) -> Result<(), ClientError> {
        let nodes = match body {
            Body::Inline => return Ok(()),
            Body::Stripes(stripes) => {
                for stripe in stripes {
                    if !self.stripe(stripe).await? {
                        return Ok(());
                    }
                }
                return Ok(());
            }
            Body::Tree(nodes) | Body::Parts { nodes, .. } => nodes,
        };
        for node in nodes {
            let lost = self.all.lost.len();
            if !self.stripe(node).await? {
                return Ok(());
            }
            if self.all.lost.len() > lost {
                // What it listed is lost with it.
                continue;
            }
            let Some(stripes) = self.listed(node).await? else {
                return Ok(());
            };
            for stripe in &stripes {
                if !self.stripe(stripe).await? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Looks at all shards of an object, or of a version of it, and mends them if `mends`. None if there is no such object.
pub(crate) async fn audit(
    inner: &Arc<Inner>,
    name: (&str, &str),
    id: Option<Seq>,
    mends: bool,
) -> Result<Option<(ObjectMeta, Audited)>, ClientError> {
    let _permit = Turn::Own.reader(inner).await?;
    let Some(meta) = known(inner, name, id).await? else {
        return Ok(None);
    };
    let mut auditor = Auditor {
        inner,
        name,
        id,
        version: meta.version,
        mends,
        all: Audited::default(),
    };
    auditor.body(&meta.manifest.body).await?;
    let all = auditor.all;
    Ok(Some((meta, all)))
}
