//! A run: members that start and end, faults that come and go, and the end, when all is well.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ashlar_cluster_map::ClusterMap;
use ashlar_layout::ids::Epoch;
use openraft::RaftLogReader;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use super::disk::{Agreed, Disk, End};
use super::judge::Judge;
use super::net::{Net, Place};
use super::runtime::{self, Life};
use super::work::{Caller, Shared, beat};
use crate::client::ControlClient;
use crate::member::Timing;
use crate::out::OutLimits;
use crate::partitions::PartitionLimits;
use crate::policy::Patience;
use crate::server::{ControlConfig, ControlServer, StartError};
use crate::storage::Log;
use crate::store::Store;
use crate::testing;
use crate::types::Settled;

/// What is wrong on purpose, and has to be noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Canary {
    /// Nothing.
    None,
    /// Flushes are forgotten.
    Lies,
    /// Members that have lost their disks vote as if nothing had happened.
    Amnesia,
}

/// How long anything may take once all is well.
const WELL: Duration = Duration::from_secs(60);

const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(150),
    election: Duration::from_millis(600),
    agreement: Duration::from_secs(3),
    probe: Duration::from_millis(500),
    patience: Patience {
        away_after: Duration::from_secs(1),
        replace_after: Duration::from_secs(4),
        out: OutLimits {
            after: Duration::from_secs(3),
            back_after: Duration::from_millis(700),
            most: None,
        },
        partitions: PartitionLimits::DEFAULT,
    },
};

/// A member's machine.
struct Seat {
    address: String,
    place: Arc<Place>,
    disk: Disk,
    up: Option<(ControlServer, Life)>,
    /// What its process was given at the last start, for its log.
    store: Option<Store>,
    /// Whether it has lost its disk since it counted last.
    wiped: bool,
}

struct World {
    chance: StdRng,
    net: Arc<Net>,
    seats: Vec<Seat>,
    map: ClusterMap,
    snapshot_every: u64,
    batch: u64,
    agreed: Arc<Mutex<Agreed>>,
    canary: Canary,
    /// Panics before it.
    panics: u32,
    shared: Arc<Shared>,
}

/// Runs a seed; what there was, or what is wrong.
pub(crate) fn simulate(seed: u64, canary: Canary) -> Result<BTreeMap<&'static str, u64>, String> {
    runtime::seed(seed);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    let runtime = builder.build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let mut world = World::new(seed, canary);
        let outcome = world.run().await;
        let judge = &world.shared.judge;
        let wrong = judge.wrong();
        match (wrong, outcome) {
            (Some(wrong), _) | (None, Err(wrong)) => Err(wrong),
            (None, Ok(())) => Ok(judge.tally()),
        }
    })
}

impl World {
    fn new(seed: u64, canary: Canary) -> World {
        let mut chance = StdRng::seed_from_u64(seed ^ 0x6163_7469_6f6e_7321);
        let members = *[1, 3, 3, 3, 5, 5].choose(&mut chance).unwrap();
        let agreed = Arc::default();
        let addresses = (1..=members).map(|i| format!("10.0.0.{i}:7000"));
        let addresses: Vec<String> = addresses.collect();
        let net = Net::new(StdRng::seed_from_u64(chance.r#gen()));
        let seats = addresses.iter().enumerate().map(|(i, address)| Seat {
            address: address.clone(),
            place: Place::new(&net, i),
            disk: Disk::new(chance.r#gen(), &agreed),
            up: None,
            store: None,
            wiped: false,
        });
        let seats: Vec<Seat> = seats.collect();
        if canary == Canary::Lies {
            seats.iter().for_each(|seat| seat.disk.lie());
        }
        World {
            map: testing::map_with_control(&addresses),
            snapshot_every: *[12, 40, 100_000].choose(&mut chance).unwrap(),
            batch: *[1, 3, 64].choose(&mut chance).unwrap(),
            agreed,
            chance,
            net,
            seats,
            canary,
            panics: runtime::panics(),
            shared: Arc::new(Shared {
                judge: Judge::new(),
                stop: AtomicBool::new(false),
                tokens: AtomicU64::new(1),
                nodes: AtomicU32::new(7),
                silent: AtomicU64::new(0),
            }),
        }
    }

    fn judge(&self) -> &Judge {
        &self.shared.judge
    }

    /// A caller's way to the members.
    fn client(&self, place: usize, patience: Duration) -> ControlClient {
        ControlClient::of(&self.map)
            .on(Place::new(&self.net, self.seats.len() + place))
            .with_patience(patience)
    }

    async fn run(&mut self) -> Result<(), String> {
        for i in 0..self.seats.len() {
            self.start(i).await?;
        }
        if self.canary == Canary::None && self.chance.gen_bool(0.5) {
            // Who has never counted may have lost as much as one that has lost its disk: no disk is lost meanwhile.
            self.seats.iter_mut().for_each(|seat| seat.wiped = true);
            self.judge().count("foundings amid faults");
        } else {
            self.until("the founding", |world| {
                world.epochs().all(|epoch| epoch == Some(Epoch(1)))
            })
            .await?;
            self.all_count().await?;
        }
        let mut tasks = Vec::new();
        for node in &self.map.nodes {
            let client = Arc::new(self.client(10 + node.id.0 as usize, Duration::from_secs(2)));
            tasks.push(tokio::spawn(beat(node.id, client, self.shared.clone())));
        }
        for name in 0..self.chance.gen_range(2..5) {
            let patience = Duration::from_secs(self.chance.gen_range(1..12));
            let caller = Caller {
                name,
                client: Arc::new(self.client(name, patience)),
                shared: self.shared.clone(),
                chance: StdRng::seed_from_u64(self.chance.r#gen()),
                map: self.map.clone(),
                done: 0,
            };
            tasks.push(tokio::spawn(caller.work()));
        }
        for _ in 0..self.chance.gen_range(10..40) {
            self.pause().await?;
            self.something_happens().await?;
        }
        self.make_well().await?;
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in tasks {
            let ended = tokio::time::timeout(4 * WELL, task).await;
            let ended = ended.map_err(|_| "a caller waits for ever".to_owned())?;
            ended.map_err(|e| format!("a caller panicked: {e}"))?;
        }
        self.end().await
    }

    /// Some time goes by; disks that lose power meanwhile take their machines along.
    async fn pause(&mut self) -> Result<(), String> {
        let mut rest = self.chance.gen_range(1..40);
        while rest > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            for i in 0..self.seats.len() {
                if self.seats[i].up.is_some() && self.seats[i].disk.is_dead() {
                    self.stop(i, End::Power);
                    self.judge().count("power cuts in the midst of a write");
                }
            }
            if runtime::panics() > self.panics {
                self.judge().object("a task has panicked".to_owned());
            }
            if let Some(wrong) = self.judge().wrong() {
                return Err(wrong);
            }
            rest -= 1;
        }
        Ok(())
    }

    async fn start(&mut self, i: usize) -> Result<(), String> {
        let seat = &mut self.seats[i];
        let id = self.map.control[i].id;
        let store = match Store::open_on(seat.disk.clone(), self.map.cluster, id) {
            Ok(store) => store,
            Err(error) => return self.failed(i, &StartError::Store(error)),
        };
        if self.canary == Canary::Amnesia && seat.wiped {
            let noted = store.set_counted().await;
            noted.map_err(|e| e.to_string())?;
        }
        seat.store = Some(store.clone());
        let listen = seat.address.parse().map_err(|e| format!("{e}"))?;
        let mut config = ControlConfig::new(id, listen, Default::default(), self.map.clone());
        config.timing = TIMING;
        config.snapshot_every = self.snapshot_every;
        config.batch = self.batch;
        let life = Life::default();
        let port = self.net.listen(&seat.address, i);
        let place = seat.place.clone();
        let begun = life.of(ControlServer::begin(config, store, place, port, listen));
        let begun = tokio::time::timeout(WELL, begun).await;
        match begun.map_err(|_| format!("member {} starts for ever", i + 1))? {
            Ok(server) => {
                self.judge().tell(format_args!(
                    "member {} is up, counts: {}",
                    i + 1,
                    server.counts()
                ));
                self.watch_over(i, &server);
                self.seats[i].up = Some((server, life));
                Ok(())
            }
            Err(error) => {
                life.end();
                self.failed(i, &error)
            }
        }
    }

    /// A member did not start: only a loss of power explains that.
    fn failed(&mut self, i: usize, error: &StartError) -> Result<(), String> {
        if !self.seats[i].disk.is_dead() {
            return Err(format!("member {} does not start: {error}", i + 1));
        }
        self.stop(i, End::Power);
        self.judge().count("power cuts while starting");
        Ok(())
    }

    /// Tells the judge what a member knows and is, for as long as its process lives.
    fn watch_over(&self, i: usize, server: &ControlServer) {
        let (mut seen, shared) = (server.watch(), self.shared.clone());
        let by = format!("member {}", i + 1);
        tokio::spawn(async move {
            loop {
                let state = seen.borrow_and_update().clone();
                state.map.iter().for_each(|map| shared.judge.saw(&by, map));
                if seen.changed().await.is_err() {
                    return;
                }
            }
        });
        let disk = self.seats[i].disk.clone();
        let (mut metrics, shared) = (server.member().raft.0.metrics(), self.shared.clone());
        tokio::spawn(async move {
            let mut said = String::new();
            loop {
                let now = metrics.borrow_and_update().clone();
                let applied = now.last_applied.map(|it| it.to_string());
                let shown = format!(
                    "member {}: {:?} of term {}, follows {:?}, last {:?}, applied {applied:?}",
                    now.id, now.state, now.current_term, now.current_leader, now.last_log_index,
                );
                if let Err(fatal) = &now.running_state
                    && !disk.is_dead()
                {
                    shared
                        .judge
                        .object(format!("member {} has failed: {fatal}", now.id));
                }
                if shown != said {
                    shared.judge.tell(format_args!("{shown}"));
                    said = shown;
                }
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    fn stop(&mut self, i: usize, end: End) {
        self.judge().tell(format_args!("member {}: {end:?}", i + 1));
        let seat = &mut self.seats[i];
        if let Some((server, life)) = seat.up.take() {
            life.end();
            drop(server);
        }
        seat.store = None;
        self.net.leave(&seat.address, i, end == End::Power);
        seat.disk = seat.disk.after(end);
    }

    async fn something_happens(&mut self) -> Result<(), String> {
        let i = self.chance.gen_range(0..self.seats.len());
        let other = self.chance.gen_range(0..self.seats.len() + 20);
        let up = self.seats[i].up.is_some();
        if !up && self.chance.gen_ratio(2, 3) {
            if self.chance.gen_ratio(1, 4) {
                let steps = self.chance.gen_range(0..20);
                self.seats[i].disk.fail_after(steps);
            }
            return self.start(i).await;
        }
        match self.chance.gen_range(0..16) {
            0 | 1 if up => {
                self.stop(i, End::Killed);
                self.judge().count("kills");
            }
            2 | 3 if up => {
                self.stop(i, End::Power);
                self.judge().count("power cuts");
            }
            4 | 5 if up => {
                let steps = self.chance.gen_range(0..40);
                self.seats[i].disk.fail_after(steps);
            }
            6 => {
                for i in 0..self.seats.len() {
                    self.stop(i, End::Power);
                }
                self.judge().count("power cuts of all");
            }
            7 if self.may_wipe(i) => {
                self.stop(i, End::Power);
                self.seats[i].disk = Disk::new(self.chance.r#gen(), &self.agreed);
                if self.canary == Canary::Lies {
                    self.seats[i].disk.lie();
                }
                self.seats[i].wiped = true;
                self.judge().count("disks lost");
                self.judge()
                    .tell(format_args!("member {} has lost its disk", i + 1));
            }
            8 => {
                self.net.cut(i, other, true);
                let (i, other) = (i + 1, other + 1);
                self.judge().tell(format_args!("cut from {i} to {other}"));
                self.judge().count("cuts one way");
            }
            9 | 10 => {
                for other in 0..self.seats.len() + 20 {
                    self.net.cut(i, other, true);
                    self.net.cut(other, i, true);
                }
                self.judge()
                    .tell(format_args!("member {} is cut off", i + 1));
                self.judge().count("members cut off");
            }
            11 => {
                self.net.break_all();
                self.judge().count("connections broken");
            }
            12 => {
                self.net.slow(true);
                self.judge().count("slow networks");
            }
            13 if up => {
                self.seats[i].disk.slow(true);
                self.judge().count("slow disks");
            }
            14 => {
                let by = self.chance.gen_range(-100_000..100_000);
                self.seats[i].place.jump(by);
                self.judge().count("clocks that jump");
            }
            15 => {
                let silent = self.chance.r#gen::<u64>() & self.chance.r#gen::<u64>();
                self.shared.silent.store(silent, Ordering::Relaxed);
                self.judge().count("silences of nodes");
            }
            _ => {
                self.judge().tell(format_args!("all is healed"));
                self.net.heal();
                self.seats.iter().for_each(|seat| seat.disk.slow(false));
                self.shared.silent.store(0, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Whether the redundancy bears that this member loses its disk: one at a time, and not the only one.
    fn may_wipe(&mut self, i: usize) -> bool {
        for seat in &mut self.seats {
            seat.wiped &= !seat.up.as_ref().is_some_and(|(server, _)| server.counts());
        }
        let others = self.seats.iter().enumerate().filter(|(at, _)| *at != i);
        let mut others = others.map(|(_, seat)| seat);
        self.seats.len() > 1 && others.all(|seat| !seat.wiped)
    }

    async fn make_well(&mut self) -> Result<(), String> {
        self.net.heal();
        self.shared.silent.store(0, Ordering::Relaxed);
        for i in 0..self.seats.len() {
            let seat = &mut self.seats[i];
            seat.disk.slow(false);
            if seat.disk.is_dead() {
                self.stop(i, End::Power);
            }
            self.seats[i].disk.steady();
            if self.seats[i].up.is_none() {
                self.start(i).await?;
            }
        }
        // Those that are up have to get well by themselves.
        self.is_well().await?;
        for i in 0..self.seats.len() {
            self.stop(i, End::Power);
        }
        for i in 0..self.seats.len() {
            self.start(i).await?;
        }
        self.is_well().await
    }

    /// What is asked for is done, and all members count.
    async fn is_well(&self) -> Result<(), String> {
        let client = self.client(0, WELL);
        let begun = Instant::now();
        let mut made = false;
        while !made && begun.elapsed() < WELL {
            let Ok(map) = client.newest_map().await else {
                continue;
            };
            // Others change the map as well.
            let change = crate::rig::turn(&map, 1);
            made = client.change(map.epoch, change).await.is_ok();
        }
        if !made {
            return Err("all is well, and nothing can be changed".to_owned());
        }
        self.all_count().await
    }

    async fn all_count(&self) -> Result<(), String> {
        self.until("all members count", |world| {
            let mut seats = world.seats.iter();
            seats.all(|seat| seat.up.as_ref().is_some_and(|(server, _)| server.counts()))
        })
        .await
    }

    fn epochs(&self) -> impl Iterator<Item = Option<Epoch>> {
        let servers = self.seats.iter().map(|seat| seat.up.as_ref());
        servers.map(|up| up.map(|(server, _)| server.watch().borrow().epoch()))
    }

    async fn until(&self, what: &str, holds: impl Fn(&World) -> bool) -> Result<(), String> {
        let begun = Instant::now();
        while !holds(self) {
            if begun.elapsed() > WELL {
                return Err(format!("waited in vain for {what}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Nobody asks for anything any more; members go on by themselves.
    async fn end(&self) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let settled = self.seats.iter().map(|seat| {
                let store = seat.store.as_ref().ok_or("a member is not there")?;
                store.settled().map_err(|e| e.to_string())
            });
            let settled = settled.collect::<Result<Vec<Settled>, String>>()?;
            let last = settled[0].last;
            if last.is_some() && settled.iter().all(|it| it.last == last) {
                return self.look_into_all(&settled).await;
            }
            if begun.elapsed() > WELL {
                return Err("waited in vain for all members to have applied the same".to_owned());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What all members hold, which have applied the same.
    async fn look_into_all(&self, settled: &[Settled]) -> Result<(), String> {
        let Settled { last, state, .. } = &settled[0];
        if settled.iter().any(|it| it.state != *state) {
            let what = "members that have applied the same are in different states";
            self.judge().object(what.to_owned());
        }
        let applied = last.map_or(0, |it| it.index);
        let mut logs = Vec::new();
        for store in self.seats.iter().filter_map(|seat| seat.store.clone()) {
            let entries = Log::new(store).try_get_log_entries(0..=applied).await;
            logs.push(entries.map_err(|e| e.to_string())?);
        }
        let agreed = self.agreed.lock().unwrap();
        if let Some((one, other)) = &agreed.twice {
            let what = format!("both {one:?} and {other:?} were applied");
            self.judge().object(what);
        }
        // What is in a log up to there is what was applied.
        for entry in logs.iter().flatten() {
            let known = agreed.entries.get(&entry.log_id.index);
            if known.is_none_or(|known| known.log_id != entry.log_id) {
                let what = format!("{} is in a log, and was not applied", entry.log_id);
                self.judge().object(what);
            }
        }
        self.judge().end(&agreed.entries, state);
        Ok(())
    }
}
