//! Whether the deeds of keys with versions have an order: whether each can be given one moment between its call and its
//! answer, so that, one after another at these moments, they have the answers that they had.
//!
//! As in [`crate::linear`] it is Wing and Gong's search, with memory. What is different: changes are numbered by the
//! store, and S3 shows these numbers as an order (what is newest is current), so that order is *held to*, and not only
//! tried first. What is left to be searched for is when each look was, and which changes of unknown outcome were made.
//!
//! Invariants:
//! - keys between which objects were renamed are judged together;
//! - what is left out of the search cannot matter: a look, or a refusal, that fits is taken at once;
//! - a put of unknown outcome whose value was seen was made, by the entry that was shown. One that was never seen, in
//!   a bucket that keeps it under a name of its own, was not, if all versions were listed behind all changes;
//! - the work is bounded, and what was not decided in it is said, which is no pass.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::history::{Key, Value};
use crate::linear::Verdict;
use crate::search::{Front, Search, insert};
use crate::shelf::{Deed, Id, Making, Said, Shelf, Tag, View, What};

/// Steps of one search.
pub const STEPS_MAX: u64 = 400_000;

/// Checks all deeds: what is wrong or undecided.
pub fn check_all(deeds: &[Deed]) -> Vec<String> {
    let mut wrong = Vec::new();
    for group in groups(deeds) {
        let of_group: Vec<Deed> = deeds
            .iter()
            .filter(|it| group.contains(&it.key))
            .cloned()
            .collect();
        let keys: Vec<String> = group.iter().map(|key| format!("key {key}:")).collect();
        let name = keys.join(" ");
        match check(&of_group, STEPS_MAX) {
            Verdict::Linearizable => {}
            Verdict::Violation(story) => wrong.push(format!("{name} {story}")),
            Verdict::Undecided(steps) => wrong.push(format!(
                "{name} undecided after {steps} steps over {} deeds",
                of_group.len()
            )),
        }
    }
    wrong
}

/// Keys that have to be judged together.
fn groups(deeds: &[Deed]) -> Vec<BTreeSet<Key>> {
    let mut groups: Vec<BTreeSet<Key>> = Vec::new();
    for deed in deeds {
        let mut keys = BTreeSet::from([deed.key]);
        if let What::Rename { to, .. } = deed.what {
            keys.insert(to);
        }
        let (touched, others): (Vec<_>, Vec<_>) = groups
            .into_iter()
            .partition(|group| !group.is_disjoint(&keys));
        groups = others;
        keys.extend(touched.into_iter().flatten());
        groups.push(keys);
    }
    groups
}

/// Which entry made what, as far as it was shown.
struct Seen {
    /// By key and value: of versions,
    versions: HashMap<(Key, Value), Id>,
    /// and of what was put as none: that is called otherwise each time that it is written anew.
    fresh: HashMap<(Key, Value), Id>,
    /// Markers with names of their own that were shown, and are of no mark that was acknowledged.
    orphans: BTreeMap<Key, BTreeSet<Id>>,
}

fn views(deed: &Deed) -> &[View] {
    match &deed.said {
        Said::Found(view) => std::slice::from_ref(view),
        Said::Page(page) => page,
        _ => &[],
    }
}

impl Seen {
    fn of(deeds: &[Deed]) -> Seen {
        let mut seen = Seen {
            versions: HashMap::new(),
            fresh: HashMap::new(),
            orphans: BTreeMap::new(),
        };
        for deed in deeds {
            for view in views(deed) {
                match view.value {
                    Some(value) => {
                        let name = (deed.key, value);
                        seen.versions.entry(name).or_insert(view.id);
                        if view.tags == Some(0) {
                            seen.fresh.entry(name).or_insert(view.id);
                        }
                    }
                    None if view.tag == Tag::Own => {
                        seen.orphans.entry(deed.key).or_default().insert(view.id);
                    }
                    None => {}
                }
            }
        }
        for deed in deeds {
            if let (What::Mark { null: false }, Said::Done(id)) = (deed.what, &deed.said)
                && let Some(orphans) = seen.orphans.get_mut(&deed.key)
            {
                orphans.remove(id);
            }
        }
        seen
    }
}

/// Where the search is.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    /// Which deeds of known outcome are done,
    front: Front,
    /// how many of the numbered changes of each key are done,
    turns: Vec<usize>,
    /// and which unknown ones, in order.
    used: Vec<usize>,
    shelves: Vec<Shelf>,
}

#[derive(Clone, Copy)]
enum Choice {
    /// A deed of known outcome, by this entry.
    Certain(usize, Id),
    Unknown(usize, Id),
}

struct Deeds {
    keys: Vec<Key>,
    /// Deeds of known outcome, by their calls; unknown ones whose entry was shown are among them.
    certain: Vec<(Deed, Id)>,
    /// The numbered changes of each key, in their order.
    turns: Vec<Vec<usize>>,
    unknown: Vec<Deed>,
    seen: Seen,
}

impl Deeds {
    fn new(deeds: &[Deed]) -> Deeds {
        let keys: BTreeSet<Key> = groups(deeds).into_iter().flatten().collect();
        let keys: Vec<Key> = keys.into_iter().collect();
        let seen = Seen::of(deeds);
        let (mut certain, mut unknown) = (Vec::new(), Vec::new());
        for deed in deeds {
            match (&deed.said, deed.what) {
                (Said::Unknown, What::Look(_) | What::List { .. }) => {}
                (Said::Unknown, What::Put { value, making }) => {
                    let made = match making {
                        Making::Plain => &seen.fresh,
                        Making::Version { .. } => &seen.versions,
                    };
                    match made.get(&(deed.key, value)) {
                        Some(id) => certain.push((deed.clone(), *id)),
                        None if is_over(deeds, deed, making) => {}
                        None => unknown.push(deed.clone()),
                    }
                }
                (Said::Unknown, _) => unknown.push(deed.clone()),
                (Said::Done(id), _) => certain.push((deed.clone(), *id)),
                _ => certain.push((deed.clone(), 0)),
            }
        }
        certain.sort_by_key(|(it, _)| (it.invoke, it.ret));
        unknown.sort_by_key(|it| it.invoke);
        let mut turns = vec![Vec::new(); keys.len()];
        for (index, (deed, entry)) in certain.iter().enumerate().filter(|(_, it)| it.1 > 0) {
            for place in places(&keys, deed) {
                turns[place].push((*entry, index));
            }
        }
        let sorted = |mut turns: Vec<(Id, usize)>| {
            turns.sort_unstable();
            turns.into_iter().map(|(_, index)| index).collect()
        };
        Deeds {
            keys,
            certain,
            turns: turns.into_iter().map(sorted).collect(),
            unknown,
            seen,
        }
    }

    /// Deeds of known outcome that nothing undone precedes, and the first answer among the undone.
    fn open(&self, place: &Place) -> (Vec<usize>, u64) {
        let spans = self.certain.iter().map(|(it, _)| (it.invoke, it.end()));
        place.front.open(spans)
    }

    /// What all keys have behind a deed; none if it cannot have gone so.
    fn after(&self, place: &Place, deed: &Deed, entry: Id) -> Option<Vec<Shelf>> {
        let at = self.at(deed.key);
        let shelf = &place.shelves[at];
        let fits = match &deed.said {
            Said::Refused(no) => shelf.refuses(deed, *no),
            Said::Found(_) | Said::Nothing | Said::Page(_) => shelf.shows(deed),
            Said::Done(_) | Said::Unknown => {
                let mut shelves = place.shelves.clone();
                if let What::Rename { to, found } = &deed.what {
                    let to = self.at(*to);
                    shelves[to] = place.shelves[to].given(found, deed.need, entry)?;
                }
                shelves[at] = shelf.after(deed, entry)?;
                return Some(shelves);
            }
        };
        fits.then(|| place.shelves.clone())
    }

    fn at(&self, key: Key) -> usize {
        self.keys.binary_search(&key).unwrap_or(0)
    }

    /// Whether it is the turn of a numbered change, at all keys that it is about.
    fn is_next(&self, place: &Place, index: usize) -> bool {
        let mut at = places(&self.keys, &self.certain[index].0).into_iter();
        at.all(|at| self.turns[at].get(place.turns[at]) == Some(&index))
    }

    /// By which entries an unknown change may have been made now.
    fn entries(&self, place: &Place, deed: &Deed) -> Vec<Id> {
        if deed.what != (What::Mark { null: false }) {
            return vec![0];
        }
        // It would be seen: nobody can have removed what nobody has seen.
        let at = self.at(deed.key);
        let next = self.turns[at].get(place.turns[at]);
        let next = next.map_or(Id::MAX, |index| self.certain[*index].1);
        let orphans = self.seen.orphans.get(&deed.key).into_iter().flatten();
        let last = place.shelves[at].last;
        orphans
            .copied()
            .filter(|id| (last + 1..next).contains(id))
            .collect()
    }
}

impl Search for Deeds {
    type Place = Place;
    type Choice = Choice;

    fn whole(&self) -> usize {
        self.certain.len()
    }

    fn front<'a>(&self, place: &'a Place) -> &'a Front {
        &place.front
    }

    fn choices(&self, place: &Place) -> Vec<Choice> {
        let (open, first_end) = self.open(place);
        let quiet = open.iter().find(|index| {
            let (deed, entry) = &self.certain[**index];
            *entry == 0 && self.after(place, deed, 0).is_some()
        });
        if let Some(index) = quiet {
            return vec![Choice::Certain(*index, 0)];
        }
        let mut choices = Vec::new();
        for (index, deed) in self.unknown.iter().enumerate() {
            if deed.invoke > first_end {
                break;
            }
            if place.used.binary_search(&index).is_ok() {
                continue;
            }
            for entry in self.entries(place, deed) {
                let after = self.after(place, deed, entry);
                if after.is_some_and(|it| it != place.shelves) {
                    choices.push(Choice::Unknown(index, entry));
                }
            }
        }
        let mut changes: Vec<usize> = open
            .into_iter()
            .filter(|index| self.certain[*index].1 > 0 && self.is_next(place, *index))
            .collect();
        changes.sort_by_key(|index| std::cmp::Reverse(self.certain[*index].0.end()));
        for index in changes {
            let (deed, entry) = &self.certain[index];
            if self.after(place, deed, *entry).is_some() {
                choices.push(Choice::Certain(index, *entry));
            }
        }
        choices
    }

    fn take(&self, place: &Place, choice: Choice) -> Place {
        let mut next = place.clone();
        match choice {
            Choice::Unknown(index, entry) => {
                if let Some(shelves) = self.after(place, &self.unknown[index], entry) {
                    next.shelves = shelves;
                }
                insert(&mut next.used, index);
            }
            Choice::Certain(index, entry) => {
                let deed = &self.certain[index].0;
                if let Some(shelves) = self.after(place, deed, entry) {
                    next.shelves = shelves;
                }
                if entry > 0 {
                    for at in places(&self.keys, deed) {
                        next.turns[at] += 1;
                    }
                }
                next.front.take(index);
            }
        }
        next
    }

    fn story(&self, best: &Place) -> String {
        let (open, _) = self.open(best);
        let mut story = format!(
            "not linearizable: {} of {} deeds can be put in order, then there is",
            best.front.done(),
            self.certain.len()
        );
        for (key, shelf) in self.keys.iter().zip(&best.shelves) {
            story += &format!("\n  of key {key}: current {:?}", shelf.current);
            for held in &shelf.kept {
                story += &format!("\n    {held:?}");
            }
        }
        story += "\n  and none of these can follow:";
        for index in open {
            story += &format!("\n    {:?}", self.certain[index].0);
        }
        story += "\n  done before:";
        for (deed, _) in &self.certain[best.front.next.saturating_sub(8)..best.front.next] {
            story += &format!("\n    {deed:?}");
        }
        if !self.unknown.is_empty() {
            story += "\n  unknown:";
        }
        for (index, deed) in self.unknown.iter().enumerate().take(12) {
            let used = best.used.binary_search(&index).is_ok();
            story += &format!("\n    {deed:?}{}", if used { " (done)" } else { "" });
        }
        story
    }
}

/// The places among the keys that a deed changes.
fn places(keys: &[Key], deed: &Deed) -> Vec<usize> {
    let mut all = vec![deed.key];
    if let What::Rename { to, .. } = deed.what {
        all.push(to);
    }
    let at = all.iter().map(|key| keys.binary_search(key).unwrap_or(0));
    at.collect()
}

/// Whether a put of unknown outcome that nobody saw certainly was not made before all else was done.
fn is_over(deeds: &[Deed], deed: &Deed, making: Making) -> bool {
    if !matches!(making, Making::Version { null: false, .. }) {
        return false;
    }
    let of_key = || deeds.iter().filter(|it| it.key == deed.key);
    let changes = of_key().filter(|it| !it.what.is_look() && it.said != Said::Unknown);
    let last = changes.map(|it| it.ret).max().unwrap_or(0).max(deed.invoke);
    let all = |it: &Deed| {
        let whole = What::List {
            below: None,
            bottom: true,
        };
        it.what == whole && it.invoke > last && matches!(it.said, Said::Page(_))
    };
    of_key().any(all)
}

/// Checks deeds of keys that nothing was done to before.
pub fn check(deeds: &[Deed], steps_max: u64) -> Verdict {
    let deeds = Deeds::new(deeds);
    let start = Place {
        front: Front::default(),
        turns: vec![0; deeds.keys.len()],
        used: Vec::new(),
        shelves: vec![Shelf::default(); deeds.keys.len()],
    };
    deeds.run(start, steps_max)
}
