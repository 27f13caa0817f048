//! What a key may hold after a history: the reference that the store is compared with.
//!
//! Every change is *begun* before it is sent. It ends acknowledged (with the version that the
//! journal gave it), refused (it certainly did not happen), or never: then it may have happened or
//! may yet happen, until everything was down at once and the key was read again.
//!
//! Invariants:
//! - the state of a key is its newest acknowledged change, by version, or a change of unknown outcome;
//!   with none acknowledged since it was last settled, also what it was then;
//! - versions of a key never go back;
//! - what was read when nothing was under way settles the key: every other possibility is gone (P4).

use std::collections::BTreeMap;

use crate::content::Content;

/// What a key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No object.
    Absent,
    /// This object.
    Holds(Content),
}

/// A change that has been begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChangeId(u64);

/// What was read of a key.
#[derive(Clone, Copy, Debug)]
pub enum Read<'a> {
    /// No object.
    Absent,
    /// These bytes, at this version.
    Found(&'a [u8], u64),
}

#[derive(Clone, Debug)]
struct Key {
    /// What it was when it was last read in peace, and the highest version known by then.
    settled: State,
    version: u64,
    /// The newest acknowledged change since.
    acknowledged: Option<State>,
    /// Changes of unknown outcome since.
    unknown: BTreeMap<ChangeId, State>,
}

/// Every key's possible states.
#[derive(Clone, Debug, Default)]
pub struct Model {
    keys: BTreeMap<String, Key>,
    changes: u64,
    /// Changes that were acknowledged, for reports.
    pub acknowledged: u64,
    /// Changes whose outcome a crash decided, for reports.
    pub unknown: u64,
}

impl Model {
    /// A change is about to be sent.
    pub fn begin(&mut self, key: &str, to: State) -> ChangeId {
        self.changes += 1;
        let id = ChangeId(self.changes);
        let key = self.keys.entry(key.to_owned()).or_insert(Key {
            settled: State::Absent,
            version: 0,
            acknowledged: None,
            unknown: BTreeMap::new(),
        });
        key.unknown.insert(id, to);
        id
    }

    /// It was acknowledged as this version.
    pub fn acknowledge(&mut self, key: &str, id: ChangeId, version: u64) {
        self.acknowledged += 1;
        let Some(entry) = self.keys.get_mut(key) else {
            return;
        };
        let Some(to) = entry.unknown.remove(&id) else {
            return;
        };
        if version > entry.version {
            entry.version = version;
            entry.acknowledged = Some(to);
        }
    }

    /// It was refused: it did not and will not happen.
    pub fn refuse(&mut self, key: &str, id: ChangeId) {
        if let Some(entry) = self.keys.get_mut(key) {
            entry.unknown.remove(&id);
        }
    }

    /// Every key that was ever changed.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// Keys that must hold an object now, as far as is known: those with one possible state.
    pub fn held(&self) -> impl Iterator<Item = &str> {
        let held = |key: &&String| {
            let possible = self.possible(key);
            possible.len() == 1 && possible[0] != State::Absent
        };
        self.keys.keys().filter(held).map(String::as_str)
    }

    /// The states that a key may be in.
    pub fn possible(&self, key: &str) -> Vec<State> {
        let Some(entry) = self.keys.get(key) else {
            return vec![State::Absent];
        };
        let known = entry.acknowledged.unwrap_or(entry.settled);
        let mut states = vec![known];
        for state in entry.unknown.values() {
            if !states.contains(state) {
                states.push(*state);
            }
        }
        states
    }

    /// Compares what was read with what may be.
    pub fn check(&self, key: &str, read: Read<'_>) -> Result<State, String> {
        let possible = self.possible(key);
        let version = self.keys.get(key).map_or(0, |k| k.version);
        match read {
            Read::Absent if possible.contains(&State::Absent) => Ok(State::Absent),
            Read::Absent => Err(format!("{key}: lost; it must be one of {possible:?}")),
            Read::Found(bytes, found_version) => {
                let is = |content: &Content| {
                    content.len == bytes.len() && content.difference(bytes).is_none()
                };
                let matching = possible
                    .iter()
                    .find(|state| matches!(state, State::Holds(content) if is(content)));
                let Some(state) = matching else {
                    let crc = crc32fast::hash(bytes);
                    return Err(format!(
                        "{key}: {} bytes (crc {crc:08x}) at version {found_version} that nobody put there; \
                         it must be one of {possible:?}{}",
                        bytes.len(),
                        nearest(&possible, bytes),
                    ));
                };
                if found_version < version {
                    return Err(format!(
                        "{key}: version went back from {version} to {found_version}"
                    ));
                }
                Ok(*state)
            }
        }
    }

    /// What was read in peace, after everything was down at once, is the state from now on.
    pub fn settle(&mut self, key: &str, read: Read<'_>) -> Result<(), String> {
        let state = self.check(key, read)?;
        if let Some(entry) = self.keys.get_mut(key) {
            self.unknown += entry.unknown.len() as u64;
            entry.unknown.clear();
            entry.acknowledged = None;
            entry.settled = state;
            if let Read::Found(_, version) = read {
                entry.version = entry.version.max(version);
            }
        }
        Ok(())
    }
}

fn nearest(possible: &[State], bytes: &[u8]) -> String {
    let best = possible.iter().filter_map(|state| match state {
        State::Holds(content) => Some((content.difference(bytes).unwrap_or(bytes.len()), *content)),
        State::Absent => None,
    });
    match best.max_by_key(|(same, _)| *same) {
        Some((same, content)) if same > 0 => {
            format!("; it starts like {content:?} for {same} bytes")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Content = Content { seed: 1, len: 100 };
    const B: Content = Content { seed: 2, len: 100 };

    #[test]
    fn an_acknowledged_change_must_be_there() {
        let mut model = Model::default();
        let id = model.begin("k", State::Holds(A));
        assert!(model.check("k", Read::Absent).is_ok(), "not answered yet");
        model.acknowledge("k", id, 5);
        assert!(model.check("k", Read::Found(&A.bytes(), 5)).is_ok());
        assert!(model.check("k", Read::Absent).is_err(), "lost");
        assert!(
            model.check("k", Read::Found(&A.bytes(), 4)).is_err(),
            "an older version"
        );
        assert!(
            model.check("k", Read::Found(&A.bytes()[..99], 5)).is_err(),
            "torn"
        );
        assert!(
            model.check("k", Read::Found(&B.bytes(), 6)).is_err(),
            "somebody else's"
        );
    }

    #[test]
    fn the_newest_version_wins_whatever_the_order_of_answers() {
        let mut model = Model::default();
        let (a, b) = (
            model.begin("k", State::Holds(A)),
            model.begin("k", State::Holds(B)),
        );
        model.acknowledge("k", b, 7);
        model.acknowledge("k", a, 6);
        assert_eq!(model.possible("k"), [State::Holds(B)]);
        assert!(model.check("k", Read::Found(&A.bytes(), 6)).is_err());
    }

    #[test]
    fn an_unknown_change_is_decided_once() {
        let mut model = Model::default();
        let a = model.begin("k", State::Holds(A));
        model.acknowledge("k", a, 1);
        model.begin("k", State::Absent);
        model.begin("k", State::Holds(B));
        assert!(model.clone().settle("k", Read::Absent).is_ok());
        assert!(
            model
                .clone()
                .settle("k", Read::Found(&A.bytes(), 1))
                .is_ok()
        );
        model
            .settle("k", Read::Found(&B.bytes(), 3))
            .expect("possible");
        assert!(model.check("k", Read::Absent).is_err(), "decided: it was B");
        assert!(
            model.check("k", Read::Found(&A.bytes(), 4)).is_err(),
            "decided: it was B"
        );
    }

    #[test]
    fn a_refused_change_must_not_appear() {
        let mut model = Model::default();
        let id = model.begin("k", State::Holds(A));
        model.refuse("k", id);
        assert!(model.check("k", Read::Found(&A.bytes(), 1)).is_err());
        assert!(model.check("k", Read::Absent).is_ok());
    }
}
