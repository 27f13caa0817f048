//! Stripes of objects that are put elsewhere, as auditors do it with those whose devices are out
//! (`node/client/src/audit.rs`).

use ashlar_cluster_object::tree::decode_node;
use ashlar_cluster_object::{Code, Look, ObjectError, Relocate, Spot, StripeRead};
use ashlar_layout::manifest::{Body, Stripe};
use ashlar_layout::message::ObjectMeta;
use ashlar_tests::history::{Condition, Key, Kind, Outcome};

use crate::client::{Client, Running};
use crate::moves::Move;
use crate::plan::Plan;
use crate::story::{BUCKET, Story, key_name, value_of};
use crate::work::{Doing, Work};

/// A stripe on its way.
pub(crate) struct Moving {
    pub(crate) key: Key,
    pub(crate) step: MoveStep,
}

pub(crate) enum MoveStep {
    /// What is there is asked for,
    Look,
    /// a list of its stripes is read,
    List(Box<ObjectMeta>, Stripe),
    /// and one of them, or the list, is put elsewhere.
    Move(Box<ObjectMeta>),
}

impl Work {
    pub(crate) fn move_one(&mut self, now: u64, client: &mut Client, key: Key) {
        let look = Look::new(client.common.clone(), BUCKET, &key_name(key), false);
        let step = MoveStep::Look;
        let doing = Doing::Move(Moving { key, step });
        self.start(now, client, look.map(Running::Look), doing);
    }

    /// Which stripe of those that a manifest or a list names.
    fn one_of(&mut self, mut stripes: Vec<Stripe>) -> Option<Stripe> {
        let count = stripes.len() as u64;
        (count > 0).then(|| stripes.swap_remove(self.rng.below(count) as usize))
    }

    pub(crate) fn moved(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        story: &mut Story,
        moving: Moving,
    ) {
        let key = moving.key;
        let machine = client.running.get(&self.op);
        match (moving.step, machine) {
            (MoveStep::Look, Some(Running::Look(look))) => {
                let found = look.outcome().cloned();
                let Some(Ok(found)) = found else {
                    story.mark("nothing to be moved");
                    return self.rest(now, client, plan);
                };
                let meta = Box::new(found.meta);
                let stripes = meta.manifest.body.stripes().to_vec();
                let lists = !matches!(meta.manifest.body, Body::Inline | Body::Stripes(_));
                let Some(stripe) = self.one_of(stripes) else {
                    story.mark("nothing to be moved");
                    return self.rest(now, client, plan);
                };
                if !lists || self.rng.chance(40) {
                    let list = None;
                    let spot = Spot { stripe, list };
                    return self.relocate(now, client, plan, story, (key, meta, spot));
                }
                let want = 0..stripe.data_len;
                match StripeRead::new(client.common.clone(), 0, stripe.clone(), want) {
                    Ok(read) => {
                        let step = MoveStep::List(meta, stripe);
                        let doing = Doing::Move(Moving { key, step });
                        return self.start(now, client, Ok(Running::Stripe(read)), doing);
                    }
                    Err(detail) => {
                        let what = format!("key {key}: a list of stripes makes no sense: {detail}");
                        story.wrong(now, what);
                    }
                }
            }
            (MoveStep::List(meta, list), Some(Running::Stripe(read))) => {
                let part = read.outcome().cloned();
                // If it is no more, it was freed meanwhile.
                let Some(Ok(part)) = part else {
                    story.mark("list of stripes not read");
                    return self.rest(now, client, plan);
                };
                match decode_node(&part) {
                    Ok(stripes) => {
                        if let Some(stripe) = self.one_of(stripes) {
                            let list = Some(list);
                            let spot = Spot { stripe, list };
                            return self.relocate(now, client, plan, story, (key, meta, spot));
                        }
                    }
                    Err(detail) => {
                        let what = format!("key {key}: a list of stripes is wrong: {detail}");
                        story.wrong(now, what);
                    }
                }
            }
            (MoveStep::Move(meta), Some(Running::Relocate(relocate))) => {
                let outcome = relocate.outcome().cloned();
                let outcome = outcome.unwrap_or(Err(ObjectError::Aborted));
                let (said, version) = match &outcome {
                    Ok(moved) => {
                        let value = value_of(&meta.manifest.etag);
                        self.seen.insert(key, (value, moved.version));
                        story.mark(match &moved.list {
                            Some(_) => "listed stripe put elsewhere",
                            None => "stripe put elsewhere",
                        });
                        (Outcome::Done, moved.version.0)
                    }
                    // There is nothing any more: that is as good as having read it.
                    Err(error) if error.code() == Code::NotFound => {
                        let read = (Kind::Get, Condition::None);
                        self.record(now, story, key, read, (Outcome::Absent, 0));
                        (Outcome::Refused, 0)
                    }
                    Err(error) => {
                        if error.code() == Code::Corrupt {
                            let what = format!("key {key}: a stripe cannot be moved: {error}");
                            story.lost(now, what);
                        }
                        self.why = error.to_string();
                        (Work::refused(error), 0)
                    }
                };
                story.mark(match said {
                    Outcome::Unknown => "nobody knows where a stripe is",
                    Outcome::Unmet => "changed before its stripe was elsewhere",
                    Outcome::Refused => "stripe not put elsewhere",
                    _ => "change acknowledged",
                });
                self.record_move(now, story, (key, &meta), (said, version));
            }
            _ => {}
        }
        self.rest(now, client, plan);
    }

    fn relocate(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        story: &mut Story,
        (key, meta, spot): (Key, Box<ObjectMeta>, Spot),
    ) {
        let (common, found) = (client.common.clone(), ((*meta).clone(), true));
        match Relocate::new(common, BUCKET, &key_name(key), found, spot) {
            Ok(relocate) => {
                let step = MoveStep::Move(meta);
                let doing = Doing::Move(Moving { key, step });
                self.start(now, client, Ok(Running::Relocate(relocate)), doing);
            }
            Err(error) => {
                story.wrong(now, format!("key {key}: nothing can be moved: {error}"));
                self.rest(now, client, plan);
            }
        }
    }

    /// A move has ended, or its client has.
    pub(crate) fn record_move(
        &self,
        now: u64,
        story: &mut Story,
        (key, meta): (Key, &ObjectMeta),
        (outcome, version): (Outcome, u64),
    ) {
        // It may have been made, and its old stripes be nobody's; or not, and so those that were written.
        story.untidy |= outcome == Outcome::Unknown;
        story.moves.push(Move {
            client: self.place,
            key,
            value: value_of(&meta.manifest.etag),
            seen: meta.version.0,
            version,
            outcome,
            invoke: self.invoke,
            ret: now,
        });
    }
}
