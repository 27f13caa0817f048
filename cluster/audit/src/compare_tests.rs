//! Comparisons of replicas that are plain maps: what is found, what is not, and that it ends.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use ashlar_layout::digest::{Digest, DigestEntry};
use ashlar_layout::ids::{DeviceNo, Seq};

use crate::compare::{Compared, Comparison, Divergence, Next, Question, Said};

/// A map as a replica has it: version and value of each key.
type Map = BTreeMap<u32, (u64, u64)>;

fn at(key: u32) -> Vec<u8> {
    key.to_be_bytes().to_vec()
}

fn sum_of(entries: &[(u32, (u64, u64))]) -> [u8; 32] {
    let mut sum = [0; 32];
    for (nth, part) in sum.chunks_mut(8).enumerate() {
        let mut hasher = DefaultHasher::new();
        (nth, entries).hash(&mut hasher);
        part.copy_from_slice(&hasher.finish().to_le_bytes());
    }
    sum
}

/// What a replica says, whose digests have so many entries at the most, whatever is asked.
fn digest(map: &Map, question: &Question, most: usize) -> Digest {
    let after = question.after.as_slice().try_into().ok();
    let from = after.map_or(0, |after| u32::from_be_bytes(after) + 1);
    let most = most.min(question.entries as usize);
    let behind = map.range(from..).take(most + 1);
    let all: Vec<_> = behind.map(|(key, value)| (*key, *value)).collect();
    let some = &all[..all.len().min(most)];
    Digest {
        sum: sum_of(some),
        entries: some.len() as u32,
        first: some.first().map(|(key, (version, value))| DigestEntry {
            at: at(*key),
            bucket: "bucket".to_owned(),
            key: key.to_string(),
            version: Seq(*version),
            size: *value,
            ..DigestEntry::default()
        }),
        last: some.last().map(|(key, _)| at(*key)).unwrap_or_default(),
        more: some.len() < all.len(),
    }
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % most
    }
}

fn device(no: usize) -> DeviceNo {
    DeviceNo(no as u32 + 1)
}

fn devices(of: &[usize]) -> BTreeSet<DeviceNo> {
    of.iter().copied().map(device).collect()
}

fn same(replicas: usize, keys: u32) -> Vec<Map> {
    let map: Map = (0..keys)
        .map(|key| (2 * key, (u64::from(key), 7)))
        .collect();
    vec![map; replicas]
}

/// Runs a comparison to its end; what was found, what it came to, and how many questions it took.
fn run(
    replicas: usize,
    mut says: impl FnMut(usize, &Question) -> Said,
) -> (Vec<Divergence>, Compared, u32) {
    let mut comparison = Comparison::new((0..replicas).map(device).collect());
    let (mut found, mut questions) = (Vec::new(), 0);
    while let Some(question) = comparison.question(Seq(1000 + u64::from(questions))) {
        questions += 1;
        assert!(questions < 10_000, "it does not end");
        let said = question.devices.iter();
        let said = said.map(|it| (*it, says(it.0 as usize - 1, &question)));
        if let Next::Found(divergence) = comparison.answered(&said.collect()) {
            found.push(*divergence);
        }
    }
    (found, comparison.compared(), questions)
}

fn of_maps(maps: &[Map], most: usize) -> (Vec<Divergence>, Compared, u32) {
    run(maps.len(), |nth, question| {
        Said::Digest(digest(&maps[nth], question, most))
    })
}

#[test]
fn what_is_the_same_is_found_to_be_so() {
    for keys in [0, 1, 1023, 1024, 1025, 5000] {
        let (found, compared, questions) = of_maps(&same(3, keys), usize::MAX);
        assert_eq!(found, []);
        assert_eq!((compared.same, compared.whole), (u64::from(keys), true));
        assert_eq!((compared.partly, compared.unknown), (0, 0));
        assert!(questions <= keys / 1024 + 1);
    }
    // A single replica has nothing to be compared with.
    assert_eq!(of_maps(&same(1, 10), 9).2, 0);
}

/// The first key of which two maps differ, from this one on.
fn first_difference(maps: &[Map], among: &[usize], from: u32) -> Option<u32> {
    let keys: BTreeSet<u32> = maps.iter().flat_map(|map| map.keys().copied()).collect();
    let differs = |key: &u32| {
        let all: BTreeSet<_> = among.iter().map(|nth| maps[*nth].get(key)).collect();
        all.len() > 1
    };
    keys.into_iter().filter(|key| *key >= from).find(differs)
}

#[test]
fn each_single_difference_is_found_and_named() {
    let mut dice = Dice(77);
    for round in 0..400 {
        let keys = [1, 2, 3, 40, 1024, 1025, 3000][round % 7];
        let replicas = 3 + 2 * (round % 2);
        let mut maps = same(replicas, keys);
        let odd = dice.below(replicas as u64) as usize;
        let key = 2 * dice.below(u64::from(keys)) as u32;
        match round % 5 {
            // A byte of the value, another version, a lost write, one that came back, one at the very end.
            0 => maps[odd].get_mut(&key).unwrap().1 += 1,
            1 => maps[odd].get_mut(&key).unwrap().0 += 1,
            2 => drop(maps[odd].remove(&key)),
            3 => drop(maps[odd].insert(key + 1, (5, 5))),
            _ => drop(maps[odd].insert(2 * keys, (5, 5))),
        }
        let most = if round % 3 == 0 { 100 } else { usize::MAX };
        let (found, compared, questions) = of_maps(&maps, most);
        let [found] = &found[..] else {
            panic!("round {round}: {found:?}");
        };
        let first = first_difference(&maps, &(0..replicas).collect::<Vec<_>>(), 0);
        assert_eq!(found.key.at, at(first.unwrap()), "round {round}");
        assert_eq!(found.divergent, devices(&[odd]), "round {round}");
        assert_eq!(found.agree.len(), replicas - 1);
        for (nth, map) in maps.iter().enumerate() {
            let has = map
                .get(&first.unwrap())
                .map(|(version, value)| (Seq(*version), *value));
            let told = found.has[&device(nth)].as_ref();
            assert_eq!(told.map(|it| (it.version, it.size)), has, "round {round}");
        }
        // The others were compared to the end, and it took no more than halving.
        assert!(compared.whole && compared.vanished == 0, "{compared:?}");
        assert!(questions < 60 + 2 * keys / 100, "{questions}");
    }
}

#[test]
fn with_two_that_differ_nobody_is_believed() {
    let mut maps = same(2, 50);
    maps[1].remove(&20);
    let (found, compared, _) = of_maps(&maps, usize::MAX);
    assert_eq!(found[0].divergent, devices(&[0, 1]));
    assert!(found[0].agree.is_empty() && !compared.whole);
    // Three that have three things.
    let mut maps = same(3, 50);
    maps[1].get_mut(&20).unwrap().1 = 1;
    maps[2].get_mut(&20).unwrap().1 = 2;
    let (found, ..) = of_maps(&maps, usize::MAX);
    assert_eq!((found.len(), found[0].divergent.len()), (1, 3));
    // The head, or whoever is first, is no better than others.
    let mut maps = same(3, 50);
    maps[0].remove(&20);
    let (found, ..) = of_maps(&maps, usize::MAX);
    assert_eq!(found[0].divergent, devices(&[0]));
}

#[test]
fn two_that_differ_each_in_another_key() {
    let mut maps = same(5, 3000);
    maps[3].remove(&20);
    maps[1].get_mut(&4000).unwrap().1 = 1;
    let (found, compared, _) = of_maps(&maps, usize::MAX);
    let named: Vec<_> = found.iter().map(|it| it.divergent.clone()).collect();
    assert_eq!(named, [devices(&[3]), devices(&[1])]);
    assert!(compared.whole);
}

#[test]
fn who_is_unknown_is_no_finding() {
    // One never says anything, and what it would say does not matter.
    let maps = same(3, 3000);
    let says = |silent: usize| {
        let maps = maps.clone();
        move |nth: usize, question: &Question| match nth == silent {
            true => Said::Unknown,
            false => Said::Digest(digest(&maps[nth], question, usize::MAX)),
        }
    };
    for silent in 0..3 {
        let (found, compared, questions) = run(3, says(silent));
        assert_eq!(found, []);
        assert_eq!((compared.partly, compared.whole, questions), (3, true, 3));
    }
    // Two do not: nothing is known.
    let (found, compared, _) = run(3, |nth, question| match nth {
        0 => Said::Digest(digest(&maps[0], question, usize::MAX)),
        _ => Said::Unknown,
    });
    assert_eq!(found, []);
    assert_eq!(
        (compared.same, compared.unknown, compared.whole),
        (0, 3, false)
    );
    // Nobody does.
    let (found, compared, questions) = run(3, |_, _| Said::Unknown);
    assert_eq!((found.len(), compared.unknown, questions), (0, 1, 1));
    // Two that differ while the third is away: it is not known which one is right.
    let mut maps = same(3, 100);
    maps[1].remove(&0);
    let (found, ..) = run(3, |nth, question| match nth {
        2 => Said::Unknown,
        _ => Said::Digest(digest(&maps[nth], question, usize::MAX)),
    });
    assert_eq!(found[0].divergent, devices(&[0, 1]));
    assert!(!found[0].has.contains_key(&device(2)));
}

#[test]
fn the_entry_is_chosen_so_that_all_get_there() {
    // All are 40 entries further by the time that they are asked, and come no further than 200 while they wait.
    let maps = same(3, 5000);
    let mut asked = 0;
    let (found, compared, questions) = run(3, |nth, question| {
        asked += 1;
        let now = 1000 + (asked - 1) / 3;
        match question.at.0 {
            at if at < now + 40 => Said::Past,
            at if at > now + 200 => Said::Behind,
            _ => Said::Digest(digest(&maps[nth], question, usize::MAX)),
        }
    });
    assert_eq!((found.len(), compared.partly, compared.whole), (0, 0, true));
    assert!(questions < 5 + 10, "{questions}");
    // A lull: nothing comes any more.
    let mut asked = 0;
    let (_, compared, _) = run(3, |nth, question| {
        asked += 1;
        let busy = asked < 30;
        match question.at.0 {
            at if busy && at < 1000 + asked + 40 => Said::Past,
            at if !busy && at > 1000 + asked / 3 => Said::Behind,
            _ => Said::Digest(digest(&maps[nth], question, usize::MAX)),
        }
    });
    assert!(compared.whole && compared.partly == 0, "{compared:?}");
    // One lags for ever: the others are compared all the same, and it is not waited for with each stretch.
    let (found, compared, questions) = run(3, |nth, question| match nth {
        1 => Said::Behind,
        _ => Said::Digest(digest(&maps[nth], question, usize::MAX)),
    });
    assert_eq!((found.len(), compared.partly, compared.whole), (0, 5, true));
    assert!(questions < 30, "{questions}");
}

#[test]
fn an_answer_that_was_wrong_once_is_no_finding() {
    for wrong in 0..40 {
        let maps = same(3, 3000);
        let mut asked = 0;
        let (found, compared, _) = run(3, |nth, question| {
            asked += 1;
            let mut digest = digest(&maps[nth], question, usize::MAX);
            if asked == wrong {
                digest.sum[5] ^= 1;
            }
            Said::Digest(digest)
        });
        assert_eq!(found, [], "{wrong}");
        assert!(compared.whole && compared.vanished <= 1, "{compared:?}");
    }
}

#[test]
fn whatever_is_said_it_ends() {
    for seed in 1..300 {
        let mut dice = Dice(seed);
        let mut maps = same(3, 2500);
        for _ in 0..dice.below(20) {
            let nth = dice.below(3) as usize;
            maps[nth].remove(&(2 * dice.below(2500) as u32));
        }
        let (found, ..) = run(3, |nth, question| match dice.below(12) {
            0 => Said::Unknown,
            1 => Said::Past,
            2 => Said::Behind,
            3 if seed % 2 == 0 => Said::Digest(Digest {
                sum: [dice.below(250) as u8; 32],
                entries: dice.below(3000) as u32,
                first: None,
                last: at(dice.below(6000) as u32),
                more: dice.below(2) == 0,
            }),
            _ => Said::Digest(digest(&maps[nth], question, usize::MAX)),
        });
        for found in found.iter().filter(|_| seed % 2 == 1) {
            // What they say of the key that is named is not the same.
            let key = u32::from_be_bytes(found.key.at[..].try_into().unwrap());
            let known: Vec<usize> = found.has.keys().map(|it| it.0 as usize - 1).collect();
            assert_eq!(
                first_difference(&maps, &known, key),
                Some(key),
                "seed {seed}"
            );
        }
    }
}
