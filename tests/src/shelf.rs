//! Keys whose objects have versions: what was asked of them, what came of it, and the plainest store that does the
//! same.
//!
//! A deed is one change or one look, as a partition's head takes it: what a client puts together of several is several
//! deeds. [`crate::shelf_order`] looks for an order of them, [`crate::shelf_locks`] and [`crate::shelf_names`] for what
//! is wrong in any order.
//!
//! Invariants:
//! - times are as in [`crate::history`]: a deed took effect, if it did, between its `invoke` and its `ret`, and one of
//!   unknown outcome at any time after its `invoke`, or never;
//! - a value is put by one deed and no other, but an object that gets another key, or becomes a version, keeps it;
//! - a number of an entry that nobody was told is 0: it may be any.

use std::fmt;

use ashlar_layout::lock::{Lock, RetentionMode};

use crate::history::{Key, NEVER, Value, write_span};

/// The number of an entry, which is what it made is called by; 0: nobody was told.
pub type Id = u64;

/// A place among the versions of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// Of the version that S3 calls `null`,
    Null,
    /// and of any other one.
    Own(Id),
}

/// What an object is among the versions of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tag {
    /// None of them: it was put when its bucket kept none, and answers to `null`.
    Plain,
    /// The `null` one.
    Null,
    /// One with a name of its own.
    Own,
}

/// An object, a version or a marker, as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The entry that made it,
    pub id: Id,
    /// and the one that wrote it last.
    pub entry: Id,
    /// What it is.
    pub tag: Tag,
    /// What was put there; none: it is a marker.
    pub value: Option<Value>,
    /// What else is remembered of it; none if that was not shown.
    pub tags: Option<u64>,
    /// What keeps it.
    pub lock: Lock,
}

impl View {
    /// Where it stands.
    pub fn slot(&self) -> Slot {
        match self.tag {
            Tag::Own => Slot::Own(self.id),
            Tag::Plain | Tag::Null => Slot::Null,
        }
    }
}

/// How an object is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Making {
    /// As no version.
    Plain,
    /// As a new version.
    Version {
        /// Whether it is the `null` one,
        null: bool,
        /// and what keeps it.
        lock: Lock,
    },
}

/// Why a version is written anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// It is none yet, and is made one.
    Keep,
    /// Something else is to be remembered of it.
    Tags,
    /// Something else is to keep it.
    Lock,
}

/// A version that is written anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rewrite {
    /// What for.
    pub why: Why,
    /// Whether it is the current one.
    pub current: bool,
    /// What was found, and stands there still if this is done.
    pub found: View,
    /// What it is then,
    pub tag: Tag,
    /// what is remembered of it,
    pub tags: u64,
    /// and what keeps it.
    pub lock: Lock,
    /// Whether governance does not keep it.
    pub bypass: bool,
}

/// What is current when a version is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Then {
    /// What was.
    Same,
    /// Nothing: there is no other one.
    Nothing,
    /// The next one, as it was found: in this place, written by this entry.
    Version(Slot, Id),
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// An object of this value.
    Put {
        /// The value.
        value: Value,
        /// How it is put.
        making: Making,
    },
    /// What is current is to go, and is no version.
    Remove,
    /// A marker.
    Mark {
        /// Whether it is the `null` version.
        null: bool,
    },
    /// A version, written anew.
    Rewrite(Rewrite),
    /// The end of a version.
    Drop {
        /// Where it stands,
        slot: Slot,
        /// and what was found there.
        id: Id,
        /// What is current then.
        then: Then,
        /// Whether governance does not keep it.
        bypass: bool,
    },
    /// Another key for an object that is no version. What has to hold, has to hold of that one.
    Rename {
        /// That key.
        to: Key,
        /// What was found.
        found: View,
    },
    /// What is current, or what stands somewhere.
    Look(Option<Slot>),
    /// A page of the versions: those that are older than this one, or all.
    List {
        /// That one.
        below: Option<Id>,
        /// Whether nothing comes behind the page.
        bottom: bool,
    },
}

impl What {
    /// Whether it changes nothing, whatever comes of it.
    pub fn is_look(&self) -> bool {
        matches!(self, What::Look(_) | What::List { .. })
    }
}

/// What has to hold of what is current.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Need {
    /// Nothing.
    #[default]
    None,
    /// There is no object.
    Absent,
    /// There is one.
    Present,
    /// This entry wrote it.
    Entry(Id),
}

/// Why nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum No {
    /// What has to hold does not.
    Unmet,
    /// What is current has to be made a version first.
    NotKept,
    /// A lock is in the way.
    Locked,
    /// There is no such version.
    Absent,
    /// Something that says nothing of the key.
    Other,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// It was done, by this entry.
    Done(Id),
    /// It was certainly not done.
    Refused(No),
    /// Nobody knows.
    Unknown,
    /// A look found this,
    Found(View),
    /// or nothing.
    Nothing,
    /// A page shows these.
    Page(Vec<View>),
}

/// Something that was asked, and what came of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Deed {
    /// Who asked.
    pub client: u32,
    /// Of which key.
    pub key: Key,
    /// What.
    pub what: What,
    /// If what held.
    pub need: Need,
    /// The answer.
    pub said: Said,
    /// Before it was sent.
    pub invoke: u64,
    /// After it was answered, or given up.
    pub ret: u64,
    /// What the clocks that judge locks may have shown until its end, at the least and at the most, in milliseconds.
    pub clock: (u64, u64),
}

impl Deed {
    /// The last moment at which it may have taken effect.
    pub fn end(&self) -> u64 {
        match self.said {
            Said::Unknown => NEVER,
            _ => self.ret,
        }
    }

    /// Whether it was asked for after the other one was answered.
    pub fn is_behind(&self, other: &Deed) -> bool {
        other.end() < self.invoke
    }
}

impl fmt::Debug for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_span(f, self.invoke, self.end())?;
        write!(f, ", client {}, key {}", self.client, self.key)?;
        write!(f, ": {:?}", self.what)?;
        if self.need != Need::None {
            write!(f, " if {:?}", self.need)?;
        }
        write!(f, " -> {:?}", self.said)
    }
}

/// What a key has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shelf {
    /// What is current.
    pub current: Option<View>,
    /// All that are versions, the newest first. The current one stands here as well.
    pub kept: Vec<View>,
    /// The newest entry that is known to have been about it.
    pub last: Id,
}

/// Whether two numbers of entries may be one.
fn may_be(one: Id, other: Id) -> bool {
    one == other || one == 0 || other == 0
}

fn same(held: &View, shown: &View) -> bool {
    let tags = |a: &View, b: &View| a.tags == b.tags || a.tags.is_none() || b.tags.is_none();
    may_be(held.id, shown.id)
        && (held.tag, held.value, held.lock) == (shown.tag, shown.value, shown.lock)
        && tags(held, shown)
}

/// Whether a lock may become another one, told in the plainest way.
pub fn may_become(old: &Lock, new: &Lock, now_ms: u64, bypass: bool) -> bool {
    match (old.retention, new.retention) {
        (None, _) => true,
        (Some(was), _) if was.until_ms <= now_ms => true,
        (Some(was), _) if bypass && was.mode == RetentionMode::Governance => true,
        (Some(was), Some(is)) => was.mode == is.mode && was.until_ms <= is.until_ms,
        (Some(_), None) => false,
    }
}

impl Shelf {
    /// What stands in a place among the versions.
    pub fn kept(&self, slot: Slot) -> Option<&View> {
        self.kept.iter().find(|held| held.slot() == slot)
    }

    fn is_at(&self, slot: Slot) -> bool {
        self.current.is_some_and(|held| held.slot() == slot)
    }

    fn is_plain(&self) -> bool {
        self.current.is_some_and(|held| held.tag == Tag::Plain)
    }

    fn is_there(&self) -> bool {
        self.current.is_some_and(|held| held.value.is_some())
    }

    fn has_null(&self) -> bool {
        self.kept(Slot::Null).is_some()
    }

    /// What is shown of all versions.
    fn shown(&self) -> Vec<View> {
        let plain = self.current.filter(|held| held.tag == Tag::Plain);
        plain.into_iter().chain(self.kept.iter().copied()).collect()
    }

    fn holds(&self, need: Need) -> bool {
        match need {
            Need::None => true,
            Need::Absent => !self.is_there(),
            Need::Present => self.is_there(),
            Need::Entry(entry) => self.current.is_some_and(|held| may_be(held.entry, entry)),
        }
    }

    /// Takes note of an entry; false if it cannot come now.
    fn count(&mut self, entry: Id) -> bool {
        let comes = entry == 0 || entry > self.last;
        self.last = self.last.max(entry);
        comes
    }

    fn put(&mut self, new: View, made: Making, late: u64) -> bool {
        let Making::Version { null, .. } = made else {
            self.current = Some(new);
            return true;
        };
        let kept = self.kept(Slot::Null);
        let not_kept = self.is_plain() && (!null || kept.is_some());
        if not_kept || null && kept.is_some_and(|held| held.lock.keeps(late, false)) {
            return false;
        }
        if null {
            self.kept.retain(|held| held.slot() != Slot::Null);
        }
        self.kept.insert(0, new);
        self.current = Some(new);
        true
    }

    fn rewrite(&mut self, rewrite: &Rewrite, entry: Id, late: u64) -> bool {
        let slot = rewrite.found.slot();
        let target = match rewrite.current {
            true => self.current,
            false if self.is_at(slot) => None,
            false => self.kept(slot).copied(),
        };
        let Some(target) = target else {
            return false;
        };
        let found = &rewrite.found;
        let is_it = may_be(target.entry, found.entry) && same(&target, found);
        let first = self.kept(Slot::Null).filter(|_| target.tag == Tag::Plain);
        let lets = match rewrite.why {
            Why::Keep if rewrite.tag == Tag::Null => {
                first.is_none_or(|held| !held.lock.keeps(late, false))
            }
            Why::Keep => true,
            Why::Tags => rewrite.lock == target.lock,
            Why::Lock => {
                first.is_none() && may_become(&target.lock, &rewrite.lock, late, rewrite.bypass)
            }
        };
        if !is_it || !lets {
            return false;
        }
        let new = View {
            id: match rewrite.tag {
                Tag::Plain => entry,
                _ => target.id,
            },
            entry,
            tag: rewrite.tag,
            tags: Some(rewrite.tags),
            lock: rewrite.lock,
            value: target.value,
        };
        if target.tag == Tag::Plain && new.tag != Tag::Plain {
            self.kept.retain(|held| held.slot() != new.slot());
            self.kept.insert(0, new);
        } else if new.tag != Tag::Plain
            && let Some(held) = self.kept.iter_mut().find(|held| held.slot() == slot)
        {
            *held = new;
        }
        if rewrite.current {
            self.current = Some(new);
        }
        true
    }

    fn drop(&mut self, slot: Slot, then: Then, entry: Id, late: u64, bypass: bool) -> bool {
        let first = self.kept(slot).copied();
        if first.is_some_and(|held| held.lock.keeps(late, bypass)) {
            return false;
        }
        let at = self.is_at(slot);
        if then == Then::Same {
            if at || first.is_none() {
                return false;
            }
            self.kept.retain(|held| held.slot() != slot);
            return true;
        }
        if !at || self.is_plain() && first.is_some() {
            return false;
        }
        self.kept.retain(|held| held.slot() != slot);
        // What is current then is the newest that there is, and no other one.
        match (then, self.kept.first()) {
            (Then::Nothing, None) => self.current = None,
            (Then::Version(next, seen), Some(newest))
                if newest.slot() == next && may_be(newest.entry, seen) =>
            {
                self.current = Some(View { entry, ..*newest });
            }
            _ => return false,
        }
        true
    }

    /// Does what a deed does to its own key by this entry; none if it cannot have been done here.
    pub fn after(&self, deed: &Deed, entry: Id) -> Option<Shelf> {
        let mut shelf = self.clone();
        let renames = matches!(deed.what, What::Rename { .. });
        if !shelf.count(entry) || !renames && !self.holds(deed.need) {
            return None;
        }
        let late = deed.clock.1;
        let new = |value, tag, lock| View {
            id: entry,
            entry,
            tag,
            value,
            tags: Some(0),
            lock,
        };
        let named = |null| if null { Tag::Null } else { Tag::Own };
        let done = match &deed.what {
            What::Put { value, making } => {
                let (tag, lock) = match *making {
                    Making::Plain => (Tag::Plain, Lock::NONE),
                    Making::Version { null, lock } => (named(null), lock),
                };
                shelf.put(new(Some(*value), tag, lock), *making, late)
            }
            What::Remove => {
                shelf.current = None;
                true
            }
            What::Mark { null } => {
                let making = Making::Version {
                    null: *null,
                    lock: Lock::NONE,
                };
                shelf.put(new(None, named(*null), Lock::NONE), making, late)
            }
            What::Rewrite(rewrite) => shelf.rewrite(rewrite, entry, late),
            What::Drop {
                slot, then, bypass, ..
            } => shelf.drop(*slot, *then, entry, late, *bypass),
            What::Rename { found, .. } => {
                let is_it = |held: &View| may_be(held.entry, found.entry) && same(held, found);
                let there = shelf.current.as_ref().is_some_and(is_it);
                shelf.current = None;
                there
            }
            What::Look(_) | What::List { .. } => false,
        };
        done.then_some(shelf)
    }

    /// What another key has when an object was given it by this entry; none if that cannot be.
    pub fn given(&self, found: &View, need: Need, entry: Id) -> Option<Shelf> {
        let mut shelf = self.clone();
        let version = self.current.is_some_and(|held| held.tag != Tag::Plain);
        if !shelf.count(entry) || version || !self.holds(need) {
            return None;
        }
        shelf.current = Some(View {
            id: entry,
            entry,
            ..*found
        });
        Some(shelf)
    }

    /// Whether a look may have shown this.
    pub fn shows(&self, deed: &Deed) -> bool {
        match (&deed.what, &deed.said) {
            (What::Look(slot), said) => {
                let held = match slot {
                    None => self.current,
                    Some(Slot::Null) if self.is_plain() => self.current,
                    Some(slot) => self.kept(*slot).copied(),
                };
                match (held, said) {
                    (None, Said::Nothing) => true,
                    (Some(held), Said::Found(view)) => {
                        same(&held, view) && may_be(held.entry, view.entry)
                    }
                    _ => false,
                }
            }
            (What::List { below, bottom }, Said::Page(page)) => {
                let shown = self.shown();
                // Where the page begins: behind the one that was named, which may be gone.
                let behind = |held: &View, sure: bool| {
                    below.is_none_or(|below| held.id < below && (held.id > 0 || !sure))
                };
                let first = |sure| {
                    let at = shown.iter().position(|held| behind(held, sure));
                    at.unwrap_or(shown.len())
                };
                let is_page = |from: usize| {
                    let part = shown.get(from..from + page.len());
                    part.is_some_and(|part| part.iter().zip(page).all(|(a, b)| same(a, b)))
                        && (!*bottom || from + page.len() == shown.len())
                };
                (first(false)..=first(true)).any(is_page)
            }
            _ => false,
        }
    }

    /// Whether a change may have been refused for this.
    pub fn refuses(&self, deed: &Deed, no: No) -> bool {
        let early = deed.clock.0;
        let null_is_locked = || {
            self.kept(Slot::Null)
                .is_some_and(|held| held.lock.keeps(early, false))
        };
        let target = |rewrite: &Rewrite| match rewrite.current {
            true => self.current,
            false => self.kept(rewrite.found.slot()).copied(),
        };
        match (no, &deed.what) {
            (No::Other, _) => true,
            (No::Unmet, What::Put { .. } | What::Remove | What::Mark { .. }) => match deed.need {
                Need::None => false,
                Need::Absent => self.is_there(),
                Need::Present => !self.is_there(),
                Need::Entry(entry) => self
                    .current
                    .is_none_or(|held| held.entry != entry || held.entry == 0),
            },
            (No::Unmet, _) => true,
            (No::NotKept, What::Put { making, .. }) => match making {
                Making::Plain => false,
                Making::Version { null, .. } => self.is_plain() && (!null || self.has_null()),
            },
            (No::NotKept, What::Mark { null }) => self.is_plain() && (!null || self.has_null()),
            (No::NotKept, What::Rewrite(_) | What::Drop { .. }) => {
                self.is_plain() && self.has_null()
            }
            (
                No::Locked,
                What::Put {
                    making: Making::Version { null: true, .. },
                    ..
                }
                | What::Mark { null: true },
            ) => null_is_locked(),
            (No::Locked, What::Rewrite(rewrite)) => match rewrite.why {
                Why::Keep => rewrite.tag == Tag::Null && null_is_locked(),
                Why::Tags => false,
                Why::Lock => target(rewrite).is_some_and(|held| {
                    !may_become(&held.lock, &rewrite.lock, early, rewrite.bypass)
                }),
            },
            (No::Locked, What::Drop { slot, bypass, .. }) => self
                .kept(*slot)
                .is_some_and(|held| held.lock.keeps(early, *bypass)),
            (No::Absent, What::Rewrite(rewrite)) => target(rewrite).is_none(),
            (No::Absent, What::Drop { slot, .. }) => self.kept(*slot).is_none(),
            (No::Absent | No::NotKept | No::Locked, _) => false,
        }
    }
}
