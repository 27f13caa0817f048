//! The placement solver: computes placement groups and chains from nodes, devices, class and
//! fault-domain level.
//!
//! Invariants:
//! - what it gives is valid: the rules are those of [`crate::rules`];
//! - the same map and seed give the same groups, on every machine;
//! - shards of a group are spread over as many domains as there are, and never more than
//!   the rule's limit are in one;
//! - few devices: every legal choice of them is a group of the smaller classes, so that any k' + m
//!   healthy devices can take a new write. Many devices: a bounded number of choices
//!   (copysets), picked so that every device shares a group with every other of another domain while the
//!   bound allows;
//! - every device stands in every place of a group about equally often, so data and parity are even.

use std::collections::{BTreeMap, BTreeSet};

use ashlar_layout::ids::{DeviceNo, PartitionId, PgId};
use ashlar_layout::limits;
use ashlar_layout::manifest::shard_len;

use crate::map::{Chain, Class, ClusterMap, DomainLevel, Partition, PlacementGroup};
use crate::rules;
pub(crate) use crate::rules::validate;

/// Device sets of the cluster's class, at most, when all legal ones are taken.
const ALL_SETS_MAX: usize = 128;
/// The same for a smaller class.
const ALL_SETS_SMALLER_MAX: usize = 256;
/// Device sets of the cluster's class, at most, in a large cluster: bounds the copysets.
const SETS_MAX: usize = 2048;
/// The same for a smaller class: there it is only a reserve.
const SETS_SMALLER_MAX: usize = 256;
/// While a class has no more groups than this, each set is taken in every rotation.
const ROTATED_GROUPS_MAX: usize = 512;
/// Replicas of a partition's journal.
const REPLICAS: usize = 3;

/// What the solver cannot do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SolveError {
    /// There are no devices.
    #[error("there are no devices to place anything on")]
    NoDevices,
    /// A device names a node that the map does not have.
    #[error("device {device} is in a node that the map does not have")]
    UnknownNode {
        /// Which device.
        device: DeviceNo,
    },
    /// The class needs more devices, or more domains, than there are.
    #[error(
        "class {class} needs {} devices with at most {per_domain} in each of the {}, and {devices} in {domains} hold \
         only {capacity} shards so; {}",
        .class.shards(), .level.plural(), fits_text(*.fits)
    )]
    ClassDoesNotFit {
        /// What was asked for.
        class: Class,
        /// The level of the fault domains.
        level: DomainLevel,
        /// Shards of a group that one domain may hold.
        per_domain: usize,
        /// Devices there are.
        devices: usize,
        /// Domains there are.
        domains: usize,
        /// Shards of one group that fit by the rule.
        capacity: usize,
        /// The largest class that fits.
        fits: Option<Class>,
    },
    /// There are enough nodes for a chain of three, but not enough domains.
    #[error(
        "a journal's chain needs three different {}, and there are {domains}: declare a finer level, or add some",
        .level.plural()
    )]
    ChainDoesNotFit {
        /// The level of the fault domains.
        level: DomainLevel,
        /// Domains there are.
        domains: usize,
    },
    /// Stripes are too large for the class.
    #[error(
        "a stripe of {stripe_data} bytes makes shards of more than {} bytes in class {class}",
        limits::SHARD_SIZE_MAX
    )]
    StripeTooLarge {
        /// Bytes of data in a stripe.
        stripe_data: u32,
        /// The class.
        class: Class,
    },
}

fn fits_text(fits: Option<Class>) -> String {
    match fits {
        Some(class) => format!("the largest class that fits is {class}"),
        None => "no class fits: even 1+1 needs two".into(),
    }
}

/// Fills `map.groups` and `map.partitions` from its nodes, devices, class and domain level.
///
/// On an error the map is unchanged.
pub fn solve(map: &mut ClusterMap, seed: u64) -> Result<(), SolveError> {
    let before = map.groups.clone();
    let mut random = place(map, seed)?;
    match chain(map, &mut random) {
        Ok(chain) => {
            map.partitions = vec![Partition {
                id: PartitionId(0),
                start: (String::new(), String::new()),
                founders: chain.clone(),
                parents: Vec::new(),
                chain: Chain { devices: chain },
            }];
            Ok(())
        }
        Err(error) => {
            map.groups = before;
            Err(error)
        }
    }
}

/// Fills `map.groups`; on an error they are unchanged.
fn place(map: &mut ClusterMap, seed: u64) -> Result<Random, SolveError> {
    let field = Field::of(map, map.domain)?;
    fits(map, &field)?;
    let mut random = Random(seed);
    let mut groups = Vec::new();
    for k in (1..=map.class.k).rev() {
        let class = Class { k, m: map.class.m };
        if shard_len(map.stripe_data, k) > limits::SHARD_SIZE_MAX {
            break;
        }
        let sets = sets(&field, class, class == map.class, &mut random);
        place_roles(&field, class, &sets, &mut random, &mut groups);
    }
    map.groups = groups;
    Ok(random)
}

/// The groups that new devices make possible: those of a fresh placement of all devices that have at
/// least one device in them that no group had before. They are numbered after the groups there are, which stay as
/// they are for ever, for manifests name them.
pub fn extend(map: &ClusterMap, seed: u64) -> Result<Vec<PlacementGroup>, SolveError> {
    let mut known: BTreeSet<DeviceNo> = BTreeSet::new();
    known.extend(map.groups.iter().flat_map(|g| &g.devices));
    if map.devices.iter().all(|d| known.contains(&d.no)) {
        return Ok(Vec::new());
    }
    let mut next = map.groups.iter().map(|g| g.id.0).max().map_or(0, |n| n + 1);
    let mut fresh = map.clone();
    fresh.devices.retain(|d| !map.draining.contains(&d.node));
    place(&mut fresh, seed)?;
    let mut groups = fresh.groups;
    groups.retain(|g| g.devices.iter().any(|d| !known.contains(d)));
    for group in &mut groups {
        group.id = PgId(next);
        next = next.saturating_add(1);
    }
    Ok(groups)
}

/// Devices by index, with the domain of each by index.
struct Field {
    numbers: Vec<DeviceNo>,
    domain_of: Vec<usize>,
    domain_sizes: Vec<usize>,
}

impl Field {
    fn of(map: &ClusterMap, level: DomainLevel) -> Result<Field, SolveError> {
        let mut domains = BTreeMap::new();
        let mut field = Field {
            numbers: Vec::new(),
            domain_of: Vec::new(),
            domain_sizes: Vec::new(),
        };
        for device in &map.devices {
            let place = rules::place(map, device, level)
                .ok_or(SolveError::UnknownNode { device: device.no })?;
            let next = domains.len();
            let domain = *domains.entry(place).or_insert(next);
            if domain == field.domain_sizes.len() {
                field.domain_sizes.push(0);
            }
            if let Some(size) = field.domain_sizes.get_mut(domain) {
                *size += 1;
            }
            field.numbers.push(device.no);
            field.domain_of.push(domain);
        }
        if field.numbers.is_empty() {
            Err(SolveError::NoDevices)
        } else {
            Ok(field)
        }
    }

    fn devices(&self) -> usize {
        self.numbers.len()
    }

    fn domains(&self) -> usize {
        self.domain_sizes.len()
    }

    /// Shards of one group that fit with at most `per_domain` in each domain.
    fn capacity(&self, per_domain: usize) -> usize {
        self.domain_sizes
            .iter()
            .map(|size| (*size).min(per_domain))
            .sum()
    }

    /// The evenest spread of `shards`: the least number per domain with which they fit.
    fn spread(&self, shards: usize) -> usize {
        (1..shards)
            .find(|n| self.capacity(*n) >= shards)
            .unwrap_or(shards)
    }
}

fn fits(map: &ClusterMap, field: &Field) -> Result<(), SolveError> {
    let class = map.class;
    if map.stripe_data == 0 || shard_len(map.stripe_data, class.k) > limits::SHARD_SIZE_MAX {
        return Err(SolveError::StripeTooLarge {
            stripe_data: map.stripe_data,
            class,
        });
    }
    let per_domain = rules::shards_per_domain_max(class);
    let capacity = field.capacity(per_domain);
    if capacity >= class.shards() {
        return Ok(());
    }
    // The same protection with less data first; less protection only where that cannot be had.
    let largest = (1..=class.m).rev().find_map(|m| {
        let most = field.capacity(rules::shards_per_domain_max(Class { k: 1, m }));
        let k = most.checked_sub(usize::from(m)).filter(|k| *k >= 1)?;
        let k = u8::try_from(k).unwrap_or(u8::MAX).min(class.k);
        Some(Class { k, m })
    });
    Err(SolveError::ClassDoesNotFit {
        class,
        level: map.domain,
        per_domain,
        devices: field.devices(),
        domains: field.domains(),
        capacity,
        fits: largest,
    })
}

/// The device sets of a class: all legal ones if they are few, else a bounded choice.
fn sets(field: &Field, class: Class, main: bool, random: &mut Random) -> Vec<Vec<usize>> {
    let shards = class.shards();
    let spread = field.spread(shards);
    // A smaller class is for when devices are away: there what the rule allows is allowed, so
    // that more combinations of healthy devices are covered.
    let (per_domain, all_max) = if main {
        (spread, ALL_SETS_MAX)
    } else {
        (rules::shards_per_domain_max(class), ALL_SETS_SMALLER_MAX)
    };
    if let Some(all) = all_sets(field, shards, per_domain, all_max) {
        return all;
    }
    let most = if main { SETS_MAX } else { SETS_SMALLER_MAX };
    some_sets(field, shards, spread, most, random)
}

/// Every set of `shards` devices with at most `per_domain` in a domain; none if there are more than `most`.
fn all_sets(
    field: &Field,
    shards: usize,
    per_domain: usize,
    most: usize,
) -> Option<Vec<Vec<usize>>> {
    let mut all = Vec::new();
    let mut used = vec![0usize; field.domains()];
    let mut set: Vec<usize> = Vec::with_capacity(shards);
    let mut next = 0;
    // Depth-first over ascending indices, without recursion: `next` is the candidate for the place
    // behind `set`. It ends soon even for many devices, for it stops at `most` sets.
    loop {
        if set.len() == shards {
            if all.len() == most {
                return None;
            }
            all.push(set.clone());
        }
        let room = field.devices() - next >= shards - set.len().min(shards);
        if set.len() < shards && next < field.devices() && room {
            let domain = field.domain_of[next];
            if used[domain] < per_domain {
                used[domain] += 1;
                set.push(next);
            }
            next += 1;
        } else {
            let Some(last) = set.pop() else {
                return Some(all);
            };
            used[field.domain_of[last]] -= 1;
            next = last + 1;
        }
    }
}

/// A bounded number of sets, even in load and in overlap. Each is grown from the least loaded device by the
/// one that shares the fewest sets with those already in it.
fn some_sets(
    field: &Field,
    shards: usize,
    spread: usize,
    most: usize,
    random: &mut Random,
) -> Vec<Vec<usize>> {
    let devices = field.devices();
    let mut load = vec![0u32; devices];
    let mut shared: BTreeMap<(usize, usize), u32> = BTreeMap::new();
    let mut missing = pairs_of_different_domains(field);
    // A perfect design meets each pair once; the greedy one needs a few times as many sets.
    let enough = devices * devices.saturating_sub(1) / (shards * (shards - 1)).max(1);
    let most = most.min(4 * enough + devices);
    let mut sets = Vec::new();
    let mut finishing = devices.div_ceil(shards);
    while sets.len() < most {
        if missing == 0 && sets.len() >= devices {
            // All meet all. A few more sets, strictly by load, even out what the search for
            // partners left; where domains are of different sizes they never will.
            let (least, heaviest) = (load.iter().min(), load.iter().max());
            let even = heaviest
                .zip(least)
                .is_none_or(|(most, least)| most - least <= 1);
            if even || finishing == 0 {
                break;
            }
            finishing -= 1;
        }
        let mut set: Vec<usize> = Vec::with_capacity(shards);
        let mut used = vec![0usize; field.domains()];
        let mut overlap = vec![0u32; devices];
        while set.len() < shards {
            let open = |d: &usize| used[field.domain_of[*d]] < spread && !set.contains(d);
            let Some(emptiest) = (0..devices)
                .filter(open)
                .map(|d| used[field.domain_of[d]])
                .min()
            else {
                break;
            };
            let candidates: Vec<usize> = (0..devices)
                .filter(open)
                .filter(|d| used[field.domain_of[*d]] == emptiest)
                .collect();
            let lightest = candidates.iter().map(|d| load[*d]).min().unwrap_or(0);
            let slack = u32::from(!set.is_empty() && missing > 0);
            let best = candidates
                .into_iter()
                .filter(|d| load[*d] <= lightest + slack)
                .min_by_key(|d| (overlap[*d], load[*d], random.next()));
            let Some(best) = best else { break };
            for (other, count) in overlap.iter_mut().enumerate() {
                *count += shared.get(&pair(best, other)).copied().unwrap_or(0);
            }
            used[field.domain_of[best]] += 1;
            set.push(best);
        }
        for (i, a) in set.iter().enumerate() {
            load[*a] += 1;
            for b in &set[i + 1..] {
                let count = shared.entry(pair(*a, *b)).or_default();
                if *count == 0 && field.domain_of[*a] != field.domain_of[*b] {
                    missing = missing.saturating_sub(1);
                }
                *count += 1;
            }
        }
        sets.push(set);
    }
    sets
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

fn pairs_of_different_domains(field: &Field) -> usize {
    let all = field.devices() * (field.devices() - 1) / 2;
    let same: usize = field.domain_sizes.iter().map(|n| n * (n - 1) / 2).sum();
    all - same
}

/// Turns sets into groups: who holds which shard. Few sets are taken in every rotation; of many, each
/// once, in an order that evens out what its devices hold so far.
fn place_roles(
    field: &Field,
    class: Class,
    sets: &[Vec<usize>],
    random: &mut Random,
    groups: &mut Vec<PlacementGroup>,
) {
    let shards = class.shards();
    let rotate_all = sets.len() * shards <= ROTATED_GROUPS_MAX;
    let mut held = vec![vec![0u32; shards]; field.devices()];
    let mut push = |set: &[usize], by: usize| {
        let devices = (0..shards).filter_map(|i| set.get((i + by) % shards));
        let devices = devices
            .filter_map(|d| field.numbers.get(*d).copied())
            .collect();
        let id = PgId(u32::try_from(groups.len()).unwrap_or(u32::MAX));
        groups.push(PlacementGroup { id, class, devices });
    };
    for set in sets {
        let mut set = set.clone();
        random.shuffle(&mut set);
        if rotate_all {
            (0..shards).for_each(|by| push(&set, by));
            continue;
        }
        // Swap two places while that evens out: a few passes find the best or nearly so.
        let mut better = true;
        for _ in 0..shards {
            if !std::mem::take(&mut better) {
                break;
            }
            for i in 0..shards {
                for j in i + 1..shards {
                    let (a, b) = (&held[set[i]], &held[set[j]]);
                    if a[j] + b[i] < a[i] + b[j] {
                        set.swap(i, j);
                        better = true;
                    }
                }
            }
        }
        for (i, device) in set.iter().enumerate() {
            held[*device][i] += 1;
        }
        push(&set, 0);
    }
}

/// The devices of the first partition's chain, head first: three different domains, or one device
/// where there are fewer than three nodes.
fn chain(map: &ClusterMap, random: &mut Random) -> Result<Vec<DeviceNo>, SolveError> {
    let level = rules::chain_level(map);
    let field = Field::of(map, level)?;
    let hosts = Field::of(map, DomainLevel::Host)?.domains();
    let replicas = if hosts < REPLICAS { 1 } else { REPLICAS };
    if field.domains() < replicas {
        return Err(SolveError::ChainDoesNotFit {
            level,
            domains: field.domains(),
        });
    }
    let mut order: Vec<usize> = (0..field.devices()).collect();
    random.shuffle(&mut order);
    let mut used = vec![false; field.domains()];
    let mut devices = Vec::with_capacity(replicas);
    for device in order {
        let domain = field.domain_of[device];
        if devices.len() < replicas && !used[domain] {
            used[domain] = true;
            devices.push(field.numbers[device]);
        }
    }
    Ok(devices)
}

/// SplitMix64: small, and the same everywhere. Placement needs no better.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = (self.next() % (i as u64 + 1)) as usize;
            items.swap(i, j);
        }
    }
}
