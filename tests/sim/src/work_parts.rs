//! Objects that are put, and objects that are put together of two.

use ashlar_cluster_object::{Compose, Delete, Look, ObjectError, Put};
use ashlar_layout::manifest::{Manifest, Precondition};
use ashlar_tests::history::{Condition, Key, Kind, Outcome, Value};
use bytes::Bytes;

use crate::client::{Client, Running};
use crate::plan::Plan;
use crate::story::{BUCKET, Story, etag, key_name};
use crate::work::{Doing, Feed, Work};

/// An object that is put together of two.
pub(crate) struct Parts {
    pub(crate) key: Key,
    pub(crate) value: Value,
    pub(crate) condition: Condition,
    pub(crate) names: Vec<String>,
    pub(crate) bodies: Vec<Bytes>,
    pub(crate) manifests: Vec<Manifest>,
    /// Their stripes are the object's.
    pub(crate) taken: bool,
    pub(crate) step: PartStep,
}

#[derive(Clone, Copy)]
pub(crate) enum PartStep {
    Put(usize),
    Look(usize),
    Compose,
    Drop(usize),
}

impl Work {
    pub(crate) fn put(
        &mut self,
        now: u64,
        client: &mut Client,
        name: &str,
        value: Value,
        (precondition, body): (Precondition, Bytes),
        doing: impl FnOnce(()) -> Doing,
    ) {
        let put = Put::new(client.common.clone(), BUCKET, name, precondition);
        self.start(now, client, put.map(Running::Put), doing(()));
        self.feed = Some(Feed {
            body,
            taken: 0,
            whole: false,
            striped: false,
        });
        client.with(now, self.op, |running, _, _| {
            if let Running::Put(put) = running {
                put.describe(etag(value), value.to_le_bytes().to_vec());
            }
        });
    }

    /// The next step of putting an object together.
    pub(crate) fn part(&mut self, now: u64, client: &mut Client, parts: Parts) {
        let common = client.common.clone();
        match parts.step {
            PartStep::Put(part) => {
                let (name, body) = (parts.names[part].clone(), parts.bodies[part].clone());
                let what = (Precondition::None, body);
                self.put(now, client, &name, parts.value, what, |()| {
                    Doing::Parts(parts)
                });
            }
            PartStep::Look(part) => {
                let look = Look::new(common, BUCKET, &parts.names[part], false);
                self.start(now, client, look.map(Running::Look), Doing::Parts(parts));
            }
            PartStep::Compose => {
                let (key, value) = (parts.key, parts.value);
                let kept = (etag(value), value.to_le_bytes().to_vec());
                let precondition = self.precondition(key, parts.condition);
                let of = parts.manifests.clone();
                let compose = Compose::new(common, BUCKET, &key_name(key), precondition, of, kept);
                self.start(
                    now,
                    client,
                    compose.map(Running::Compose),
                    Doing::Parts(parts),
                );
            }
            PartStep::Drop(part) => {
                let delete = Delete::new(common, BUCKET, &parts.names[part], Precondition::None);
                let delete = match parts.taken {
                    true => delete.map(Delete::of_taken),
                    false => delete,
                };
                let delete = delete.map(Running::Delete);
                self.start(now, client, delete, Doing::Parts(parts));
            }
        }
    }

    pub(crate) fn parted(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        story: &mut Story,
        mut parts: Parts,
    ) {
        let machine = client.running.get(&self.op);
        parts.step = match (parts.step, machine) {
            (PartStep::Put(part), Some(Running::Put(put))) => match put.outcome() {
                Some(Ok(_)) => PartStep::Look(part),
                _ => return self.parts_end(now, client, plan, story),
            },
            (PartStep::Look(part), Some(Running::Look(look))) => match look.outcome() {
                Some(Ok(found)) => {
                    parts.manifests.push(found.meta.manifest.clone());
                    match part + 1 == parts.names.len() {
                        true => PartStep::Compose,
                        false => PartStep::Put(part + 1),
                    }
                }
                _ => return self.parts_end(now, client, plan, story),
            },
            (PartStep::Compose, Some(Running::Compose(compose))) => {
                let outcome = compose
                    .outcome()
                    .cloned()
                    .unwrap_or(Err(ObjectError::Aborted));
                let (said, version) = match &outcome {
                    Ok(done) => {
                        self.seen.insert(parts.key, (parts.value, done.version));
                        story.mark("put together of parts");
                        (Outcome::Done, done.version.0)
                    }
                    Err(error) => (Work::refused(error), 0),
                };
                self.note(story, &said);
                let (key, kind) = (parts.key, Kind::Put(parts.value));
                self.record(now, story, key, (kind, parts.condition), (said, version));
                if said == Outcome::Unknown {
                    // The parts stay: their stripes may be the object's.
                    return self.parts_end(now, client, plan, story);
                }
                parts.taken = said == Outcome::Done;
                PartStep::Drop(0)
            }
            (PartStep::Drop(part), Some(Running::Delete(delete))) => {
                let dropped = matches!(delete.outcome(), Some(Ok(_)));
                if !dropped || part + 1 == parts.names.len() {
                    story.untidy |= !dropped;
                    return self.rest(now, client, plan);
                }
                PartStep::Drop(part + 1)
            }
            _ => return self.parts_end(now, client, plan, story),
        };
        self.part(now, client, parts);
    }

    pub(crate) fn parts_end(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        story: &mut Story,
    ) {
        story.untidy = true;
        self.rest(now, client, plan);
    }
}
