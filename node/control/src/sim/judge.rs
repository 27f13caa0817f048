//! What was said and what was seen, and whether it fits together.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use ashlar_cluster_map::{ClusterMap, MapChange};
use ashlar_layout::ids::{Epoch, NodeId};
use openraft::EntryPayload;

use crate::client::ClientError;
use crate::state::{Command, State};
use crate::types::Entry;

/// What a caller heard of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Nothing yet, or that nobody knows.
    Open,
    /// The map's epoch with it.
    Done(Epoch),
    /// That it was not made, and why.
    No(String),
}

impl Heard {
    /// What an answer means.
    pub(crate) fn of(answer: &Result<Epoch, ClientError>) -> Heard {
        match answer {
            Ok(epoch) => Heard::Done(*epoch),
            Err(error) if error.is_uncertain() => Heard::Open,
            Err(error) => Heard::No(error.to_string()),
        }
    }
}

#[derive(Debug, Default)]
struct Seen {
    maps: BTreeMap<Epoch, ClusterMap>,
    /// The newest epoch that anybody was told of.
    floor: Epoch,
    changes: BTreeMap<String, Heard>,
    joins: BTreeMap<NodeId, (u64, Heard)>,
    tally: BTreeMap<&'static str, u64>,
    wrong: Option<String>,
    begun: Option<tokio::time::Instant>,
    traced: bool,
}

/// The judge.
#[derive(Debug)]
pub(crate) struct Judge(Mutex<Seen>);

impl Judge {
    pub(crate) fn new() -> Judge {
        Judge(Mutex::new(Seen {
            begun: Some(tokio::time::Instant::now()),
            traced: std::env::var_os("ASHLAR_CONTROL_TRACE").is_some(),
            ..Seen::default()
        }))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap()
    }

    /// What is wrong so far, in the first place.
    pub(crate) fn wrong(&self) -> Option<String> {
        self.seen().wrong.clone()
    }

    /// Something is wrong.
    pub(crate) fn object(&self, what: String) {
        self.tell(format_args!("WRONG: {what}"));
        self.seen().wrong.get_or_insert(what);
    }

    /// Something happened: shown if `ASHLAR_CONTROL_TRACE` is set.
    pub(crate) fn tell(&self, what: std::fmt::Arguments<'_>) {
        let seen = self.seen();
        if seen.traced {
            let since = seen.begun.map_or(0, |it| it.elapsed().as_millis());
            println!("{since:>8} ms {what}");
        }
    }

    /// One more of these.
    pub(crate) fn count(&self, thing: &'static str) {
        *self.seen().tally.entry(thing).or_default() += 1;
    }

    /// How many of what there were.
    pub(crate) fn tally(&self) -> BTreeMap<&'static str, u64> {
        self.seen().tally.clone()
    }

    /// The newest epoch that somebody was told of before now.
    pub(crate) fn floor(&self) -> Epoch {
        self.seen().floor
    }

    /// A member, or somebody whom it answered, has this map.
    pub(crate) fn saw(&self, by: &str, map: &ClusterMap) {
        let mut seen = self.seen();
        let known = seen
            .maps
            .entry(map.epoch)
            .or_insert_with(|| map.clone())
            .clone();
        drop(seen);
        if known != *map {
            let epoch = map.epoch.0;
            self.object(format!("{by} has another map of epoch {epoch} than others"));
        }
    }

    /// Somebody was told, by a quorum, that the map is of this epoch; `floor` is from before it was asked.
    pub(crate) fn newest(&self, by: &str, floor: Epoch, epoch: Epoch) {
        if epoch < floor {
            self.object(format!(
                "{by} was told that the map is of epoch {}, after somebody was of {}",
                epoch.0, floor.0
            ));
        }
        let mut seen = self.seen();
        seen.floor = seen.floor.max(epoch);
    }

    /// A change under this label is asked for, or what came of it.
    pub(crate) fn change(&self, label: &str, expected: Epoch, heard: Heard) {
        if let Heard::Done(epoch) = heard {
            if epoch.0 != expected.0 + 1 {
                let (epoch, expected) = (epoch.0, expected.0);
                self.object(format!(
                    "{label}, for epoch {expected}, was made in {epoch}"
                ));
            }
            let mut seen = self.seen();
            seen.floor = seen.floor.max(epoch);
        }
        self.seen().changes.insert(label.to_owned(), heard);
    }

    /// A join with a token is asked for, or what came of it.
    pub(crate) fn join(&self, node: NodeId, token: u64, heard: Heard) {
        let mut seen = self.seen();
        if let Heard::Done(epoch) = heard {
            seen.floor = seen.floor.max(epoch);
        }
        seen.joins.insert(node, (token, heard));
    }

    /// All is over: all entries that members have applied, and the state that they have in common.
    pub(crate) fn end(&self, agreed: &BTreeMap<u64, Entry>, state: &State) {
        let map = state.map.as_ref().unwrap();
        let gap = agreed.keys().zip(0..).find(|(index, nth)| **index != *nth);
        if let Some((_, nth)) = gap {
            self.object(format!("nobody has applied entry {nth}"));
        }
        let made = self.replay(agreed.values(), state);
        let seen = self.seen();
        let (changes, joins) = (seen.changes.clone(), seen.joins.clone());
        drop(seen);
        for (label, heard) in &changes {
            let made = made.get(label).map_or(&[][..], Vec::as_slice);
            let fits = match heard {
                Heard::Open => made.len() <= 1,
                Heard::No(_) => made.is_empty(),
                Heard::Done(epoch) => made == [*epoch],
            };
            if !fits {
                self.object(format!("{label}: heard {heard:?}, made in {made:?}"));
            }
        }
        let mut used = BTreeMap::new();
        for (node, (token, heard)) in &joins {
            let there = map.node(*node).is_some();
            if there && let Some(other) = used.insert(*token, *node) {
                let (other, node) = (other.0, node.0);
                self.object(format!(
                    "nodes {other} and {node} have joined by the same token"
                ));
            }
            let fits = match heard {
                Heard::Open => true,
                Heard::Done(_) => there,
                Heard::No(_) => !there,
            };
            if !fits {
                self.object(format!("node {}: heard {heard:?}, there: {there}", node.0));
            }
        }
    }

    /// Applies a whole log once more.
    fn replay<'a>(
        &self,
        log: impl Iterator<Item = &'a Entry>,
        state: &State,
    ) -> BTreeMap<String, Vec<Epoch>> {
        let mut made: BTreeMap<String, Vec<Epoch>> = BTreeMap::new();
        let mut own = State::default();
        for entry in log {
            let EntryPayload::Normal(command) = &entry.payload else {
                continue;
            };
            let outcome = own.apply(command);
            if let Some(map) = &own.map {
                self.saw("the log", map);
            }
            if let (Ok(epoch), Some(label)) = (outcome, label(command)) {
                made.entry(label.to_owned()).or_default().push(epoch);
            }
        }
        if own != *state {
            let (own, state) = (format!("{own:#?}"), format!("{state:#?}"));
            let differs = own
                .lines()
                .zip(state.lines())
                .find(|(own, theirs)| own != theirs);
            self.object(format!(
                "the log gives another state than the members': {differs:?}"
            ));
        }
        made
    }
}

fn label(command: &Command) -> Option<&str> {
    match command {
        Command::Change {
            change: MapChange::SetDomains { domains, .. },
            ..
        } => Some(&domains.rack),
        _ => None,
    }
}
