//! Partitions that are split and put together, on one device, against plain maps: with changes, questions, payloads put
//! anew and crashes in between. A partition that is not durable yet is gone after a crash, and those that it comes
//! from have all that they had.

use std::collections::BTreeMap;

use ashlar_cluster_index::{
    Action, Answer, Cache, Change, Config, Event, Index, IndexError, Limits, Opening, Question,
    Range,
};
use ashlar_layout::ids::{PartitionId, Seq};
use ashlar_layout::root::{Root, RootError};
use bytes::Bytes;

use crate::device::{Device, Dice, Who};
use crate::model::{amend, bucket, change, key, question, settle_amended};
use crate::rig::{DEVICE, EXTENT, ME, Rig, Told, config, looked_at, open, placed, put, small};
use crate::work::{Model, Name, as_before_amending, contents};

/// A question that waits.
struct Waiting {
    question: Question,
    at: u64,
    /// The partition was narrowed meanwhile: the answer may be of before.
    stale: bool,
}

/// A partition.
struct Member {
    index: Index,
    model: Model,
    /// What it takes changes for; its index may have more, until those that it was split off to are durable.
    serves: Range,
    carry: Vec<String>,
    /// Of what it was made, until it is durable.
    parents: Vec<Who>,
    /// Another one is being made of it.
    parent: bool,
    told: Told,
    asked: BTreeMap<u64, Waiting>,
}

impl Member {
    fn new(index: Index, model: Model, serves: Range, carry: Vec<String>) -> Self {
        Self {
            index,
            model,
            serves,
            carry,
            parents: Vec::new(),
            parent: false,
            told: (0, Vec::new()),
            asked: BTreeMap::new(),
        }
    }

    fn busy(&self) -> bool {
        self.parent || !self.parents.is_empty()
    }

    fn narrow(&mut self) {
        self.index.narrow(&self.serves, &self.carry);
        self.model.narrow(&self.serves, &self.carry);
        self.asked.values_mut().for_each(|it| it.stale = true);
    }
}

struct Family {
    device: Device,
    cache: Cache,
    members: BTreeMap<Who, Member>,
    dice: Dice,
    next: Who,
    life: u64,
    /// Answers that were right, partitions that came to be durable, and those that a crash undid.
    answers: u64,
    splits: u64,
    unions: u64,
    undone: u64,
}

impl Family {
    fn new(seed: u64, cache: usize) -> Self {
        let mut device = Device::new(seed);
        let (index, _) = open(&mut device, config_of(1, 1)).unwrap();
        let first = Member::new(index, Model::default(), Range::default(), Vec::new());
        Self {
            device,
            cache: Cache::new(cache),
            members: BTreeMap::from([(1, first)]),
            dice: Dice::new(seed + 5),
            next: 2,
            life: 2,
            answers: 0,
            splits: 0,
            unions: 0,
            undone: 0,
        }
    }

    fn member(&mut self, who: Who) -> &mut Member {
        self.members.get_mut(&who).unwrap()
    }

    fn all(&self) -> Vec<Who> {
        self.members.keys().copied().collect()
    }

    fn some(&mut self) -> Who {
        let all = self.all();
        all[self.dice.below(all.len() as u64) as usize]
    }

    fn give(&mut self, who: Who, out: Vec<Action>) {
        let mut out = out;
        while !out.is_empty() {
            for action in std::mem::take(&mut out) {
                let member = self.members.get_mut(&who).unwrap();
                match action {
                    Action::Done { question, result } => {
                        let waiting = member.asked.remove(&question);
                        let waiting = waiting.expect("asked once, answered once");
                        let says = as_before_amending(result.unwrap());
                        if !waiting.stale {
                            let (question, at) = (waiting.question, waiting.at);
                            let expected = as_before_amending(member.model.says(&question, at));
                            assert_eq!(says, expected, "{question:?} at {at} of {who}");
                            self.answers += 1;
                        }
                    }
                    Action::Damaged(error) => panic!("{error}"),
                    Action::Rooted => self.rooted(who),
                    other => {
                        if let Some(event) = self.device.submit(who, other) {
                            let index = &mut member.index;
                            index.on_event(event, &mut self.cache, &mut out);
                        }
                    }
                }
            }
        }
    }

    /// A root is durable: the first one of a new partition makes those that it comes from smaller.
    fn rooted(&mut self, who: Who) {
        let member = self.member(who);
        member.told = (member.index.covered().0, member.index.pins());
        if member.told.0 > 0 {
            self.settled(who);
        }
    }

    fn settled(&mut self, who: Who) {
        let parents = std::mem::take(&mut self.member(who).parents);
        match parents[..] {
            [parent] => {
                self.splits += 1;
                let parent = self.member(parent);
                parent.parent = false;
                parent.narrow();
            }
            [left, right] => {
                self.unions += 1;
                for gone in [left, right] {
                    self.members.remove(&gone);
                    self.device.forget(gone);
                }
            }
            _ => {}
        }
    }

    fn event(&mut self, who: Who, event: Event) {
        let mut out = Vec::new();
        let member = self.members.get_mut(&who).unwrap();
        member.index.on_event(event, &mut self.cache, &mut out);
        self.give(who, out);
    }

    fn step(&mut self) -> bool {
        let wants = |(_, member): &(&Who, &Member)| member.index.wants_turn();
        let turns = self.members.iter().filter(wants);
        let turns: Vec<Who> = turns.map(|(who, _)| *who).collect();
        if !turns.is_empty() && (self.device.idle() || self.dice.once_in(2)) {
            let who = turns[self.dice.below(turns.len() as u64) as usize];
            self.event(who, Event::Turn);
            return true;
        }
        match self.device.complete() {
            Some((who, event)) => {
                self.event(who, event);
                true
            }
            None => false,
        }
    }

    fn settle(&mut self) {
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps < 5_000_000, "it does not come to rest");
        }
    }

    fn freeze(&mut self, who: Who) -> bool {
        let mut out = Vec::new();
        let frozen = self.member(who).index.freeze(Bytes::new(), &mut out);
        self.give(who, out);
        frozen
    }

    fn apply(&mut self, who: Who, seq: u64, change: &Change) {
        while self
            .member(who)
            .index
            .apply(Seq(seq), change.clone())
            .is_err()
        {
            if !self.member(who).index.wants_freeze() || !self.freeze(who) {
                assert!(self.step(), "full, and nothing happens");
            }
        }
        if self.member(who).index.wants_freeze() {
            self.freeze(who);
        }
    }

    /// Who takes changes for a name: of a union and what it is made of, the union.
    fn serving(&self, name: &Name) -> Who {
        let mut all = self.members.iter().rev();
        let serving = all.find(|(_, member)| member.serves.contains(&name.0, &name.1));
        *serving.expect("somebody serves every name").0
    }

    fn change(&mut self) {
        let what = change(&mut self.dice, 0);
        let name = match &what {
            Change::Nothing => (bucket(&mut self.dice), String::new()),
            Change::PutBucket { bucket, .. } | Change::DropBucket { bucket } => {
                (bucket.clone(), String::new())
            }
            Change::Put { bucket, key, .. } | Change::Delete { bucket, key } => {
                (bucket.clone(), key.clone())
            }
            Change::PutVersion { .. } | Change::DropVersion { .. } | Change::All(_) => {
                unreachable!("versions have a model of their own")
            }
        };
        let who = self.serving(&name);
        let model = &mut self.member(who).model;
        let seq = model.last() + 1;
        let change = match what {
            Change::Put { bucket, key, .. } => put(&bucket, &key, seq),
            other => other,
        };
        model.apply(change.clone());
        self.apply(who, seq, &change);
    }

    fn ask(&mut self) {
        let who = self.some();
        let question = question(&mut self.dice);
        let member = self.members.get_mut(&who).unwrap();
        if member.asked.len() > 40 {
            return;
        }
        let at = member.model.last();
        let mut out = Vec::new();
        let index = &mut member.index;
        match index.ask(question.clone(), None, &mut self.cache, &mut out) {
            Answer::Ready(result) => {
                assert_eq!(
                    result.unwrap(),
                    member.model.says(&question, at),
                    "{question:?}"
                );
                self.answers += 1;
            }
            Answer::Pending(id) => {
                let waiting = Waiting {
                    question,
                    at,
                    stale: false,
                };
                assert!(member.asked.insert(id, waiting).is_none());
            }
            Answer::Busy => {}
        }
        self.give(who, out);
    }

    fn new_config(&mut self) -> (Who, Config) {
        let new = self.next;
        (self.next, self.life) = (self.next + 1, self.life + 1);
        (new, config_of(self.life, new))
    }

    fn add(&mut self, who: Who, member: Member) {
        self.device.hold(who, &member.index.shared_chunks());
        for parent in &member.parents {
            self.members.get_mut(parent).unwrap().parent = true;
        }
        self.members.insert(who, member);
        self.check(who);
        assert!(self.freeze(who));
    }

    /// A partition gives its upper part to a new one.
    fn split(&mut self) {
        let who = self.some();
        let middle = self.member(who).index.middle();
        let bucket = bucket(&mut self.dice);
        let border = match (self.dice.below(4), middle) {
            (0, _) => (bucket, String::new()),
            (1, Some(middle)) => middle,
            _ => (bucket, key(&mut self.dice)),
        };
        let parent = &self.members[&who];
        let within = parent.serves.contains(&border.0, &border.1);
        if parent.busy() || !within || parent.serves.from.as_ref() == Some(&border) {
            return;
        }
        let (mut below, mut above) = (parent.serves.clone(), parent.serves.clone());
        (below.to, above.from) = (Some(border.clone()), Some(border.clone()));
        let inside = !border.1.is_empty();
        let carry: Vec<String> = inside.then_some(border.0).into_iter().collect();
        let (new, config) = self.new_config();
        let parent = self.members.get_mut(&who).unwrap();
        let index = parent.index.fork(config, &above, &carry);
        assert_eq!(
            (index.applied(), index.covered()),
            (parent.index.applied(), Seq(0))
        );
        parent.serves = below;
        let model = parent.model.fork(&above, &carry);
        let mut child = Member::new(index, model, above, carry);
        child.parents = vec![who];
        self.add(new, child);
    }

    /// Two neighbours become a new one.
    fn unite(&mut self) -> bool {
        let left = self.some();
        let to = self.members[&left].serves.to.clone();
        let right = self
            .members
            .iter()
            .find(|(_, it)| to.is_some() && it.serves.from == to);
        let Some((&right, _)) = right else {
            return false;
        };
        let (a, b) = (&self.members[&left], &self.members[&right]);
        if a.busy() || b.busy() {
            return false;
        }
        let last = a.model.last().max(b.model.last());
        let applied = last + self.dice.below(3);
        let (new, config) = self.new_config();
        let (a, b) = (&self.members[&left], &self.members[&right]);
        let border = to.unwrap();
        let at = (border.0.as_str(), border.1.as_str());
        let index = Index::union(config, &a.index, &b.index, at, Seq(applied)).unwrap();
        let model = Model::union(&a.model, &b.model, &border, applied);
        let serves = Range {
            from: a.serves.from.clone(),
            to: b.serves.to.clone(),
        };
        let mut child = Member::new(index, model, serves, a.carry.clone());
        child.parents = vec![left, right];
        self.add(new, child);
        true
    }

    /// What a partition has is what its model has.
    fn check(&self, who: Who) {
        let member = &self.members[&who];
        let items = looked_at(who, &member.index, &self.device).unwrap();
        assert_eq!(contents(&items), member.model.contents(), "partition {who}");
    }

    fn crash(&mut self) {
        self.device.crash();
        self.cache = Cache::new(0);
        let told = self.members.iter().map(|(who, it)| (*who, it.told.clone()));
        let told: BTreeMap<Who, Told> = told.collect();
        // The newest first: of one that is gone, what it was made of is there.
        for who in self.all().into_iter().rev() {
            self.life += 1;
            let (index, _) = open(&mut self.device, config_of(self.life, who)).unwrap();
            let member = self.members.get_mut(&who).unwrap();
            member.asked.clear();
            member.index = index;
            let covered = member.index.covered().0;
            assert!(covered >= member.told.0);
            if covered == 0 && !member.parents.is_empty() {
                self.undone(who);
                continue;
            }
            // What is needed was pinned: by itself, or by those that it comes from.
            let sources = match &member.parents[..] {
                [] => vec![who],
                parents => parents.to_vec(),
            };
            let items = looked_at(who, &member.index, &self.device).unwrap();
            for (version, at) in placed(&items) {
                let pinned = |(covered, pins): &Told| {
                    version > *covered || pins.binary_search(&((at / EXTENT) as u32)).is_ok()
                };
                let kept = sources.iter().any(|source| pinned(&told[source]));
                assert!(
                    kept,
                    "version {version} of {who} is at {at}, which was free"
                );
            }
            member.told = (covered, member.index.pins());
        }
        for who in self.all().into_iter().rev() {
            let Some(member) = self.members.get(&who) else {
                continue;
            };
            let covered = member.index.covered().0;
            for (seq, change) in member.model.tail(covered.max(member.model.base)) {
                self.apply(who, seq, &change);
            }
            if covered > 0 {
                self.settled(who);
            }
            let Some(member) = self.members.get_mut(&who) else {
                continue;
            };
            // Whatever it was narrowed to before.
            if !member.parent {
                member.narrow();
            }
            let items = looked_at(who, &member.index, &self.device).unwrap();
            settle_amended(&mut member.model, &items);
        }
        self.all().into_iter().for_each(|who| self.check(who));
    }

    /// One that was not durable when the power went.
    fn undone(&mut self, who: Who) {
        let gone = self.members.remove(&who).unwrap();
        self.device.forget(who);
        self.undone += 1;
        if let [parent] = gone.parents[..] {
            self.member(parent).serves.to = gone.serves.to;
        }
        for parent in gone.parents {
            self.member(parent).parent = false;
        }
    }
}

fn config_of(life: u64, who: Who) -> Config {
    Config {
        partition: PartitionId(who),
        ..config(life, small())
    }
}

fn history(seed: u64, rounds: u64, cache: usize, crashes: bool) -> Family {
    let mut family = Family::new(seed, cache);
    for _ in 0..rounds {
        match family.dice.below(40) {
            0..=19 => family.change(),
            20..=23 => family.ask(),
            24 if family.dice.once_in(5) => family.split(),
            25 if family.dice.once_in(5) => drop(family.unite()),
            26 if family.dice.once_in(4) => {
                let who = family.some();
                let Member { index, model, .. } = family.members.get_mut(&who).unwrap();
                amend(&mut family.dice, index, model);
            }
            27 if crashes && family.dice.once_in(8) => family.crash(),
            28 if family.dice.once_in(10) => {
                let who = family.some();
                family.check(who);
            }
            _ => drop(family.step()),
        }
    }
    family.settle();
    for who in family.all() {
        family.check(who);
        let member = &family.members[&who];
        assert!(member.asked.is_empty());
        family.device.check_use(who, &member.index.live());
    }
    // And all of it together again.
    let mut tries = 0;
    while family.members.len() > 1 {
        tries += 1;
        assert!(tries < 10_000, "they do not come together");
        if family.unite() {
            family.settle();
        }
    }
    let who = family.some();
    family.check(who);
    family.freeze(who);
    family.settle();
    family.check(who);
    let member = &family.members[&who];
    assert_eq!(member.index.covered().0, member.model.last());
    family.device.check_use(who, &member.index.live());
    assert_eq!(
        family.device.used(),
        member.index.live().len(),
        "nobody else has any"
    );
    family
}

#[test]
fn histories_of_splits_and_unions() {
    let (mut answers, mut splits, mut unions) = (0, 0, 0);
    for seed in 1..=12 {
        let family = history(seed, 6000, 64 << 10, false);
        answers += family.answers;
        splits += family.splits;
        unions += family.unions;
    }
    assert!(
        answers > 3000 && splits > 60 && unions > 60,
        "{answers} {splits} {unions}"
    );
}

#[test]
fn histories_of_splits_and_unions_with_crashes() {
    let (mut splits, mut unions, mut undone) = (0, 0, 0);
    for seed in 100..=115 {
        let family = history(seed, 6000, 16 << 10, true);
        splits += family.splits;
        unions += family.unions;
        undone += family.undone;
    }
    assert!(
        splits > 50 && unions > 50 && undone > 10,
        "{splits} {unions} {undone}"
    );
}

/// Two runs of one key each on a device, and an index of them whose root was changed.
fn opened(change: impl Fn(&mut Root)) -> Index {
    let limits = Limits {
        fanout: 10,
        ..small()
    };
    let mut rig = Rig::new(1, limits, 0);
    for seq in 1..=2 {
        rig.apply(seq, put("bucket", &format!("key-{seq}"), seq));
        rig.freeze();
        rig.settle();
    }
    let (_, bytes) = &rig.device.roots[&ME];
    let mut root = Root::decode(bytes, DEVICE, PartitionId(ME)).unwrap();
    assert_eq!(root.runs.len(), 2);
    change(&mut root);
    let bytes = root.encode().unwrap();
    let mut opening = Opening::new(config(9, small()), Some(&bytes)).unwrap();
    let mut out = Vec::new();
    let mut opened = opening.start(&mut out);
    while opened.is_none() {
        let Some(Action::Read { token, at, len }) = out.pop() else {
            panic!("it waits for something");
        };
        let bytes = rig.device.read(at, len);
        opened = opening.on_event(Event::Read { token, bytes }, &mut out);
    }
    opened.unwrap().unwrap().index
}

#[test]
fn what_does_not_fit_together_is_not_united() {
    let unite = |left: &Index, right: &Index| {
        let union = Index::union(config_of(50, 50), left, right, ("bucket", "key-2"), Seq(9));
        union.map(|union| (union.stats().runs, union.applied()))
    };
    let (a, b) = (opened(|_| {}), opened(|_| {}));
    assert_eq!(unite(&a, &b), Ok((2, Seq(9))));
    let whole = |root: &mut Root| {
        for run in &mut root.runs {
            run.lowest = b"\x02bucket\0a".to_vec();
            run.highest = b"\x02bucket\0z".to_vec();
        }
    };
    let crossed = opened(|root| {
        whole(root);
        root.runs.reverse();
    });
    let a = opened(whole);
    assert!(matches!(
        unite(&a, &crossed),
        Err(IndexError::Crossed { .. })
    ));
    // More chunks than leave room in a root.
    let large = opened(|root| {
        let chunk = root.runs[0].chunks[0];
        root.runs[0].chunks.extend(vec![chunk; 60_000]);
    });
    assert!(matches!(
        unite(&large, &large),
        Err(IndexError::Root(RootError::Length { got })) if got > 600_000
    ));
}
