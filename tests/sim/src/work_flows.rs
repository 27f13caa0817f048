//! What clients do to keys with versions, and to keys whose objects are renamed and made longer: which of it, and what
//! they make of the answers.

use ashlar_cluster_object::Making;
use ashlar_layout::ids::Seq;
use ashlar_layout::lock::{Lock, Retention, RetentionMode};
use ashlar_layout::manifest::{NULL_VERSION, Precondition, VersionTag};
use ashlar_tests::history::{Key, Value};
use ashlar_tests::shelf::{Said, Slot, What};
use bytes::Bytes;

use crate::client::Client;
use crate::desk::{Desk, Ended, Flow, News};
use crate::plan::Plan;
use crate::story::{PAIR, SHELVES, Story, content};
use crate::work::{Doing, LastStep, Task, Work};
use crate::work_versions::{Whole, seq_of};

/// A client that knows of so many versions of a key removes some.
const MANY: usize = 7;

/// The least that a node's clock can show at this moment, in milliseconds,
pub(crate) fn earliest_ms(now: u64) -> u64 {
    (now / 100 * 99 / 1_000_000).saturating_sub(20)
}

/// and the most, when no clock was ever ahead by more than this.
pub(crate) fn latest_ms(now: u64, lead_ms: u64) -> u64 {
    now / 100 * 101 / 1_000_000 + lead_ms + 20
}

/// Everybody's keys with versions.
pub(crate) fn all_keys() -> [Key; 4] {
    [SHELVES[0], SHELVES[1], PAIR[0], PAIR[1]]
}

/// What has to hold of what a change is made of.
#[derive(Clone, Copy)]
pub(crate) enum If {
    Now(Precondition),
    /// What is current when it is asked for is current still.
    Same,
}

impl Desk {
    /// What has to hold, as it is proposed.
    pub(crate) async fn condition(&self, key: Key, only: If) -> Result<Precondition, Ended> {
        Ok(match only {
            If::Now(precondition) => precondition,
            If::Same => match self.find(key, None).await? {
                Some(meta) if meta.tag.is_none_or(|tag| !tag.marker) => {
                    Precondition::Version(meta.version)
                }
                _ => Precondition::Absent,
            },
        })
    }
}

impl Work {
    fn begin_flow(
        &mut self,
        (now, client): (u64, &Client),
        plan: &Plan,
        name: String,
        flow: impl AsyncFnOnce(Desk) -> Result<(), Ended> + 'static,
    ) {
        let desk = Desk::new(client.common.clone(), self.place, plan.mistake);
        let flow = Flow::new(name, desk.clone(), flow(desk));
        self.invoke = now;
        self.doing = Doing::Flow(flow);
    }

    /// What comes last, of keys with versions.
    pub(crate) fn last_flow(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        _: &mut Story,
        step: LastStep,
    ) {
        let place = (now, &*client);
        match step {
            LastStep::Versions(key) => {
                self.begin_flow(
                    place,
                    plan,
                    format!("reading key {key}"),
                    async move |desk| {
                        let all = desk.all_versions(key).await?;
                        for entry in all {
                            let slot = entry.tag.map_or(NULL_VERSION, VersionTag::slot);
                            desk.get(key, Some(slot)).await?;
                        }
                        desk.get(key, None).await?;
                        Ok(())
                    },
                );
            }
            _ => self.begin_flow(place, plan, "listing versions".to_owned(), async |desk| {
                desk.walk(&all_keys()).await
            }),
        }
    }

    /// Whether the bucket keeps versions, as this client knows it: not at first, then it does, and now and then new
    /// ones are the null one. None: not; or whether each is the null one.
    fn keeping(&mut self, now: u64, plan: &Plan) -> Option<bool> {
        let stale = if self.rng.chance(10) {
            3_000_000_000
        } else {
            200_000_000
        };
        let at = now.saturating_sub(1_000_000_000 + self.rng.below(stale));
        match at / (plan.length / 12).max(1) {
            0 => None,
            1 | 2 | 4 | 5 | 7 | 8 | 9 => Some(false),
            3 | 6 => Some(true),
            _ => Some(self.rng.chance(20)),
        }
    }

    /// A lock, as somebody may want it.
    fn some_lock(&mut self, now: u64, plan: &Plan) -> Lock {
        let mode = match self.rng.chance(70) {
            true => RetentionMode::Governance,
            false => RetentionMode::Compliance,
        };
        let ms = match self.rng.chance(30) {
            true => 86_400_000,
            false => 300 + self.rng.below(6000 * plan.longer),
        };
        let retention = Retention {
            mode,
            until_ms: now / 1_000_000 + ms,
        };
        Lock {
            retention: self.rng.chance(80).then_some(retention),
            hold: self.rng.chance(25).then_some(true),
        }
    }

    fn some_condition(&mut self, key: Key) -> If {
        let entry = self.entries.get(&key).copied();
        match (self.rng.below(10), entry) {
            (0, _) => If::Now(Precondition::Absent),
            (1, _) => If::Now(Precondition::Present),
            (2, Some(entry)) => If::Now(Precondition::Version(Seq(entry))),
            (3 | 4, _) => If::Same,
            _ => If::Now(Precondition::None),
        }
    }

    fn some_version(&mut self, key: Key) -> Option<Seq> {
        let known = self.known.get(&key).map_or(&[][..], Vec::as_slice);
        let at = self.rng.below(known.len() as u64 + 1) as usize;
        Some(known.get(at).map_or(NULL_VERSION, |slot| seq_of(*slot)))
    }

    /// Bytes that nobody put yet.
    pub(crate) fn some_bytes(&mut self, plan: &Plan, story: &mut Story) -> (Value, Bytes) {
        let most = if self.rng.chance(50) {
            plan.inline
        } else {
            plan.largest
        };
        let size = self.rng.below(u64::from(most) + 1) as usize;
        let value = self.new_value();
        story.pieces.insert(value, vec![(value, size)]);
        (value, content(value, size))
    }

    /// Whatever chance brings.
    pub(crate) fn some_flow(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        story: &mut Story,
    ) {
        if self.rng.chance(35) {
            return self.some_pair_flow(now, client, plan, story);
        }
        let key = SHELVES[self.rng.below(2) as usize];
        let many = self.known.get(&key).is_some_and(|it| it.len() > MANY);
        let what = match many && self.rng.chance(50) {
            true => 12,
            false => self.rng.below(23),
        };
        let keeping = self.keeping(now, plan);
        let place = (now, &*client);
        match what {
            0..=6 => {
                let lock = match keeping {
                    Some(null) if self.rng.chance(if null { 5 } else { 15 }) => {
                        self.some_lock(now, plan)
                    }
                    _ => Lock::NONE,
                };
                let making = keeping.map_or(Making::Object, |null| Making::Version { null, lock });
                let only = self.some_condition(key);
                let value = self.new_value();
                let parts = (what == 5).then(|| [(); 2].map(|()| self.some_bytes(plan, story)));
                let source = (what == 6).then(|| self.some_version(key)).flatten();
                let (piece, body) = self.some_bytes(plan, story);
                if let Some(parts) = &parts {
                    let of = parts.iter().map(|(value, body)| (*value, body.len()));
                    story.pieces.insert(value, of.collect());
                } else {
                    story.pieces.insert(value, vec![(piece, body.len())]);
                }
                self.begin_flow(
                    place,
                    plan,
                    format!("putting {value:x} to key {key}"),
                    async move |desk| match (parts, source) {
                        (Some(parts), _) => desk.complete((key, value), only, making, parts).await,
                        (_, Some(source)) => {
                            desk.copy((key, Some(source)), (key, value), only, making)
                                .await
                        }
                        _ => {
                            let precondition = desk.condition(key, only).await?;
                            let whole = Whole::Bytes(body);
                            let put = desk.put((key, value), precondition, making, whole);
                            if put.await.is_ok() && lock != Lock::NONE {
                                desk.mark("put with a lock");
                            }
                            Ok(())
                        }
                    },
                );
            }
            7 | 8 => self.begin_flow(
                place,
                plan,
                format!("getting key {key}"),
                async move |desk| desk.get(key, None).await.map(drop),
            ),
            9 | 10 => {
                let slot = self.some_version(key);
                self.begin_flow(
                    place,
                    plan,
                    format!("getting {slot:?} of key {key}"),
                    async move |desk| {
                        if desk.get(key, slot).await?.is_some() {
                            desk.mark(if slot == Some(NULL_VERSION) {
                                "null version read"
                            } else {
                                "version read"
                            });
                        }
                        Ok(())
                    },
                );
            }
            11 | 17 => {
                let only = self.some_condition(key);
                self.begin_flow(
                    place,
                    plan,
                    format!("removing key {key}"),
                    async move |desk| {
                        let precondition = desk.condition(key, only).await?;
                        let _ = desk.take_away(key, precondition, keeping).await;
                        Ok(())
                    },
                );
            }
            12..=14 => {
                let slot = self.some_version(key).unwrap_or(NULL_VERSION);
                let (bypass, seen) = (self.rng.chance(20), self.rng.chance(30));
                self.begin_flow(
                    place,
                    plan,
                    format!("removing {slot} of key {key}"),
                    async move |desk| {
                        let mut entry = None;
                        if seen {
                            // What a version with a name is made of never changes: the null one may be another.
                            let found = desk.find(key, Some(slot)).await?;
                            entry = found
                                .filter(|_| slot == NULL_VERSION)
                                .map(|meta| meta.version);
                        }
                        if !desk.drop_version(key, slot, entry, bypass).await? {
                            desk.mark("version to be removed is not there");
                        }
                        Ok(())
                    },
                );
            }
            15 | 16 => {
                let asked = self
                    .rng
                    .chance(70)
                    .then(|| self.some_version(key))
                    .flatten();
                let (lock, bypass) = (self.some_lock(now, plan), self.rng.chance(30));
                let (hold, off) = (self.rng.chance(50), self.rng.chance(60));
                let set = move |before: Lock| match hold {
                    true => Lock {
                        hold: Some(!off),
                        ..before
                    },
                    false => Lock {
                        retention: lock.retention.filter(|_| !bypass),
                        ..before
                    },
                };
                self.begin_flow(
                    place,
                    plan,
                    format!("locking {asked:?} of key {key}"),
                    async move |desk| desk.relock(key, asked, set, bypass).await,
                );
            }
            18 => {
                let asked = self
                    .rng
                    .chance(60)
                    .then(|| self.some_version(key))
                    .flatten();
                let tags = self.new_value();
                self.begin_flow(
                    place,
                    plan,
                    format!("tagging {asked:?} of key {key}"),
                    async move |desk| desk.retag(key, asked, tags).await,
                );
            }
            19 => self.begin_flow(place, plan, "listing versions".to_owned(), async |desk| {
                desk.walk(&all_keys()).await
            }),
            21 => self.begin_flow(
                place,
                plan,
                format!("ageing key {key}"),
                async move |desk| desk.end_oldest(key).await,
            ),
            20 => {
                let slot = self
                    .rng
                    .chance(60)
                    .then(|| self.some_version(key))
                    .flatten();
                self.audit(now, client, key, slot);
            }
            _ => self.begin_flow(
                place,
                plan,
                format!("listing key {key}"),
                async move |desk| desk.all_versions(key).await.map(drop),
            ),
        }
    }

    fn some_pair_flow(&mut self, now: u64, client: &mut Client, plan: &Plan, story: &mut Story) {
        let at = self.rng.below(2) as usize;
        let (key, other) = (PAIR[at], PAIR[1 - at]);
        let what = self.rng.below(20);
        let only = self.some_condition(key);
        let place = (now, &*client);
        match what {
            0..=2 => {
                let (value, body) = self.some_bytes(plan, story);
                self.begin_flow(
                    place,
                    plan,
                    format!("putting {value:x} to key {key}"),
                    async move |desk| {
                        let precondition = desk.condition(key, only).await?;
                        let whole = Whole::Bytes(body);
                        let _ = desk
                            .put((key, value), precondition, Making::Object, whole)
                            .await;
                        Ok(())
                    },
                );
            }
            3 | 4 => {
                let parts = [(); 2].map(|()| self.some_bytes(plan, story));
                let value = self.new_value();
                let of = parts.iter().map(|(value, body)| (*value, body.len()));
                story.pieces.insert(value, of.collect());
                self.begin_flow(
                    place,
                    plan,
                    format!("completing key {key}"),
                    async move |desk| {
                        desk.complete((key, value), only, Making::Object, parts)
                            .await
                    },
                );
            }
            5 | 6 => {
                let value = self.new_value();
                let (shelf, slot) = (SHELVES[at], self.some_version(SHELVES[at]));
                let from = match self.rng.chance(50) {
                    true => (other, None),
                    false => (shelf, slot),
                };
                self.begin_flow(
                    place,
                    plan,
                    format!("copying to key {key}"),
                    async move |desk| desk.copy(from, (key, value), only, Making::Object).await,
                );
            }
            7..=9 => {
                let (piece, body) = self.some_bytes(plan, story);
                let value = self.new_value();
                self.begin_flow(
                    place,
                    plan,
                    format!("appending to key {key}"),
                    async move |desk| desk.append((key, value), (piece, body)).await,
                );
            }
            10..=12 => self.begin_flow(
                place,
                plan,
                format!("renaming key {key}"),
                async move |desk| desk.rename(key, other, only).await,
            ),
            13 => {
                let tags = self.new_value();
                self.begin_flow(
                    place,
                    plan,
                    format!("tagging key {key}"),
                    async move |desk| desk.retag(key, None, tags).await,
                );
            }
            14 | 15 => self.begin_flow(
                place,
                plan,
                format!("removing key {key}"),
                async move |desk| {
                    let precondition = desk.condition(key, only).await?;
                    let _ = desk.take_away(key, precondition, None).await;
                    Ok(())
                },
            ),
            16 => self.audit(now, client, key, None),
            17 => self.begin_flow(
                place,
                plan,
                format!("listing key {key}"),
                async move |desk| desk.all_versions(key).await.map(drop),
            ),
            _ => self.begin_flow(
                place,
                plan,
                format!("getting key {key}"),
                async move |desk| desk.get(key, None).await.map(drop),
            ),
        }
    }

    /// Goes on with what is put together of several operations; false if one of them is under way.
    pub(crate) fn flow(
        &mut self,
        now: u64,
        client: &mut Client,
        plan: &Plan,
        story: &mut Story,
    ) -> bool {
        let Doing::Flow(flow) = &mut self.doing else {
            return true;
        };
        let ended = flow.go_on(now, client, &mut self.op, &mut self.feed);
        let news = flow.news();
        self.hear(now, story, news);
        let ended = match ended {
            Ok(ended) => ended,
            // What was begun is handed something, and may be answered already.
            Err(begun) => return begun,
        };
        if let (Task::Last, Some(step), Ok(())) = (self.task, self.last.first().copied(), ended) {
            if let LastStep::Versions(key) = step {
                self.last_audits(key);
            }
            self.step_done(step);
        }
        self.rest(now, client, plan);
        true
    }

    /// All versions of a key are to be audited.
    fn last_audits(&mut self, key: Key) {
        let known = self.known.get(&key).into_iter().flatten();
        let audits = known.map(|slot| LastStep::Audit(key, Some(seq_of(*slot))));
        self.last.extend(audits);
    }

    /// Takes note of what was found out.
    pub(crate) fn hear(&mut self, now: u64, story: &mut Story, news: News) {
        for mark in news.marks {
            story.mark(mark);
        }
        for (value, of) in news.pieces {
            let of = of.iter().filter_map(|value| story.pieces.get(value));
            let of: Vec<(Value, usize)> = of.flatten().copied().collect();
            story.pieces.insert(value, of);
        }
        for read in news.reads {
            let range = 0..read.meta.manifest.size;
            self.check(now, story, read.key, &read.meta, &range, &read.bytes);
        }
        for lost in news.lost {
            story.lost(now, lost);
        }
        for wrong in news.wrong {
            story.wrong(now, wrong);
        }
        story.untidy |= news.untidy;
        if let Some(why) = news.why {
            self.why = why;
        }
        for mut deed in news.deeds {
            let known = self.known.entry(deed.key).or_default();
            match (&deed.what, &deed.said) {
                (What::List { below: None, .. }, Said::Page(page)) => {
                    *known = page.iter().map(|view| view.slot()).collect();
                }
                (What::Put { .. } | What::Mark { .. }, Said::Done(id)) => {
                    known.push(Slot::Own(*id));
                }
                (What::Drop { slot, .. }, Said::Done(_)) => known.retain(|it| it != slot),
                (What::Look(Some(slot)), Said::Nothing) => known.retain(|it| it != slot),
                (What::Look(None), Said::Found(view)) => {
                    self.entries.insert(deed.key, view.entry);
                }
                _ => {}
            }
            deed.clock = (earliest_ms(deed.invoke), latest_ms(now, story.lead_ms));
            story.deeds.push(deed);
        }
    }
}
