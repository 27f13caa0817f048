//! Objects that are looked at stripe by stripe, and mended.

use ashlar_cluster_object::tree::decode_node;
use ashlar_cluster_object::{Code, Look, Mend, Mended, ObjectError, StripeRead};
use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{Body, Stripe};
use ashlar_tests::history::Key;

use crate::client::{Client, Running};
use crate::plan::Plan;
use crate::story::{BUCKET, Story, key_name};
use crate::work::{Doing, LastStep, Task, Work};

/// A pass over the stripes of an object.
pub(crate) struct Audit {
    pub(crate) key: Key,
    /// Which version of it; none: what is current.
    pub(crate) slot: Option<Seq>,
    pub(crate) version: Seq,
    /// Stripes to be looked at; whether each lists others.
    pub(crate) queue: Vec<(Stripe, bool)>,
    pub(crate) phase: AuditPhase,
}

pub(crate) enum AuditPhase {
    Look,
    See,
    Check,
    Mend,
    CheckAgain(Box<Mended>),
    Read,
}

/// Whether there is nothing to be looked at, or a marker that says so.
fn is_gone(error: &ObjectError) -> bool {
    error.code() == Code::NotFound || matches!(error, ObjectError::Marker { .. })
}

impl Work {
    pub(crate) fn audit(&mut self, now: u64, client: &mut Client, key: Key, slot: Option<Seq>) {
        let audit = Audit {
            key,
            slot,
            version: Seq(0),
            queue: Vec::new(),
            phase: AuditPhase::Look,
        };
        self.audit_look(now, client, audit);
    }

    pub(crate) fn audited(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        story: &mut Story,
        mut audit: Audit,
    ) {
        let key = audit.key;
        let step = LastStep::Audit(key, audit.slot);
        let machine = client.running.get(&self.op);
        match (&audit.phase, machine) {
            (AuditPhase::Look, Some(Running::Look(look))) => match look.outcome().cloned() {
                Some(Ok(found)) => {
                    audit.version = found.meta.version;
                    audit.queue = match found.meta.manifest.body {
                        Body::Inline => Vec::new(),
                        Body::Stripes(stripes) => {
                            stripes.into_iter().map(|it| (it, false)).collect()
                        }
                        Body::Tree(nodes) | Body::Parts { nodes, .. } => {
                            nodes.into_iter().map(|it| (it, true)).collect()
                        }
                    };
                    return self.audit_next(now, client, plan, story, audit);
                }
                Some(Err(error)) if is_gone(&error) => {
                    self.step_done(step);
                }
                _ => {}
            },
            (AuditPhase::See, Some(Running::Mend(mend))) => match mend.outcome().cloned() {
                Some(Ok(found)) if found.bad.is_empty() => {
                    let margin = found.margin();
                    let away = !found.away.is_empty();
                    return self.audit_seen(now, client, plan, story, audit, (margin, away));
                }
                Some(Ok(_)) => {
                    // Only what stands still is bad rather than freed.
                    audit.phase = AuditPhase::Check;
                    return self.audit_look(now, client, audit);
                }
                _ => {}
            },
            (AuditPhase::Check, Some(Running::Look(look))) => match look.outcome().cloned() {
                Some(Ok(found)) if found.meta.version == audit.version => {
                    audit.phase = AuditPhase::Mend;
                    return self.audit_mend(now, client, plan, story, audit, true);
                }
                Some(Ok(_)) => self.step_done(step),
                Some(Err(error)) if is_gone(&error) => self.step_done(step),
                _ => {}
            },
            (AuditPhase::Mend, Some(Running::Mend(mend))) => {
                if let Some(Ok(found)) = mend.outcome().cloned() {
                    for _ in 0..found.mended {
                        story.mark("shard mended");
                    }
                    audit.phase = AuditPhase::CheckAgain(Box::new(found));
                    return self.audit_look(now, client, audit);
                }
            }
            (AuditPhase::CheckAgain(found), Some(Running::Look(look))) => {
                match look.outcome().cloned() {
                    Some(Ok(now_is)) if now_is.meta.version == audit.version => {
                        if found.is_lost() {
                            story.lost(now, format!("key {key}: a stripe is lost: {found:?}"));
                        }
                        let (margin, away) = (
                            found.margin(),
                            !found.away.is_empty() || !found.failed.is_empty(),
                        );
                        return self.audit_seen(now, client, plan, story, audit, (margin, away));
                    }
                    Some(Ok(_)) => self.step_done(step),
                    Some(Err(error)) if is_gone(&error) => self.step_done(step),
                    _ => {}
                }
            }
            (AuditPhase::Read, Some(Running::Stripe(read))) => match read.outcome().cloned() {
                Some(Ok(part)) => match decode_node(&part) {
                    Ok(stripes) => {
                        audit
                            .queue
                            .extend(stripes.into_iter().map(|it| (it, false)));
                        return self.audit_next(now, client, plan, story, audit);
                    }
                    Err(detail) => story.wrong(
                        now,
                        format!("key {key}: a list of stripes is wrong: {detail}"),
                    ),
                },
                _ => story.mark("list of stripes not read"),
            },
            _ => {}
        }
        story.mark("audit ended early");
        self.rest(now, client, plan);
    }

    pub(crate) fn audit_look(&mut self, now: u64, client: &mut Client, audit: Audit) {
        let look = Look::new(client.common.clone(), BUCKET, &key_name(audit.key), false);
        let look = look.map(|look| look.of_version(audit.slot));
        self.start(now, client, look.map(Running::Look), Doing::Audit(audit));
    }

    pub(crate) fn audit_mend(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        story: &mut Story,
        audit: Audit,
        mends: bool,
    ) {
        let Some((stripe, _)) = audit.queue.first() else {
            return self.rest(now, client, plan);
        };
        match Mend::new(client.common.clone(), stripe.clone(), mends) {
            Ok(mend) => self.start(now, client, Ok(Running::Mend(mend)), Doing::Audit(audit)),
            Err(detail) => {
                story.wrong(
                    now,
                    format!("key {}: a stripe makes no sense: {detail}", audit.key),
                );
                self.rest(now, client, plan);
            }
        }
    }

    pub(crate) fn audit_next(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        story: &mut Story,
        mut audit: Audit,
    ) {
        if audit.queue.is_empty() {
            story.mark("object audited");
            self.step_done(LastStep::Audit(audit.key, audit.slot));
            return self.rest(now, client, plan);
        }
        audit.phase = AuditPhase::See;
        self.audit_mend(now, client, plan, story, audit, false);
    }

    /// A stripe has been seen, and mended if need be; some device was perhaps away.
    pub(crate) fn audit_seen(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        story: &mut Story,
        mut audit: Audit,
        (margin, away): (i64, bool),
    ) {
        let (stripe, lists) = audit.queue.remove(0);
        if self.task == Task::Last {
            story.named.insert(stripe.id, stripe.shard_crcs.len());
        }
        if margin < i64::from(stripe.m) {
            if !away {
                story.lost(
                    now,
                    format!(
                        "key {}: stripe {} has margin {margin} though all is mended",
                        audit.key, stripe.id
                    ),
                );
            } else if self.task == Task::Last {
                // Again, when its devices are back.
                story.mark("audit waits for a device");
                self.rest(now, client, plan);
                self.doing = Doing::Rest {
                    until: now + 200_000_000,
                };
                return;
            }
        }
        if !lists {
            return self.audit_next(now, client, plan, story, audit);
        }
        let want = 0..stripe.data_len;
        match StripeRead::new(client.common.clone(), 0, stripe, want) {
            Ok(read) => {
                audit.phase = AuditPhase::Read;
                self.start(now, client, Ok(Running::Stripe(read)), Doing::Audit(audit));
            }
            Err(detail) => {
                story.wrong(
                    now,
                    format!(
                        "key {}: a list of stripes makes no sense: {detail}",
                        audit.key
                    ),
                );
                self.rest(now, client, plan);
            }
        }
    }
}
