//! A node: the shipped core on a port of the simulated world, and the machine that it runs on.
//!
//! Invariants:
//! - what a process had under way when it ends reaches the disk or not, sector by sector, and nothing of it after that;
//! - a map that a node has been given is there when it starts again, as in its file.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ashlar_cluster_map::ClusterMap;
use ashlar_layout::ids::NodeId;
use ashlar_layout::message::NodeStatus;
use ashlar_layout::superblock::Labels;
use ashlar_layout::version::ENTRY_VERSION;
use ashlar_node_daemon::{AuditConfig, CacheMode, Config, Core, DeviceConfig, Maps, Pulse, Shared};
use ashlar_node_engine::format::{FormatParams, format_plan};
use ashlar_node_reactor::{Dev, DeviceIoError, Errno, Handler, Instant, Pool};
use bytes::Bytes;

use crate::disk::{Disk, Rng};
use crate::plan::Plan;
use crate::port::{Job, News, Port, Wish, disk_info};

/// Bytes of the buffers of a node.
const POOL_BYTES: usize = 24 << 20;

/// A disk, and what is under way on it.
pub struct Drive {
    /// What it was formatted to be.
    params: FormatParams,
    /// What is on it.
    pub disk: Disk,
    /// Operations that have begun.
    pub flying: BTreeMap<u64, Flying>,
    /// Nothing ends before this.
    pub stuck_until: u64,
    /// Of a thousand writes so many fail,
    pub fails: u64,
    /// and so many are not done though it says so.
    pub drops: u64,
}

/// An operation under way on a disk.
pub struct Flying {
    token: u64,
    job: Job,
    /// For a flush: what the disk's clock was when it began.
    since: u64,
}

/// One node.
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Its address.
    pub address: std::net::SocketAddr,
    config: Config,
    /// Its machine's side of the world.
    pub port: Port,
    /// Its disks, in the order of the port's places.
    pub drives: Vec<Drive>,
    /// The process, if it runs.
    pub core: Option<Core>,
    /// What its processes held back that were killed.
    pub held_before: u64,
    /// Extents that its processes cleaned that were killed.
    pub cleaned_before: u64,
    /// What its threads share.
    pub shared: Option<Arc<Shared>>,
    /// The map in its file.
    pub map: Arc<Maps>,
    /// Counts its processes.
    pub life: u64,
    /// What has happened and is not told yet.
    pub news: VecDeque<News>,
    /// When the core goes round next.
    pub batch_at: Option<u64>,
    /// Its place among all that is to come at that moment.
    pub batch_tie: u64,
    /// When its process is started again.
    pub start_at: Option<u64>,
    /// Stopped until then.
    pub stopped_until: u64,
    /// When it was started, by the world's clock,
    started: u64,
    /// and how fast its own goes, in millionths.
    rate: u64,
    rng: Rng,
    next_op: u64,
    /// The newest version of entries that its process reads, and the next one will if that is no newer one,
    pub reads: u16,
    /// and whether that is,
    pub newer_next: bool,
    /// and whether it says what it reads while that is not all.
    says: bool,
}

/// What a node has done in one round.
pub struct Round {
    /// What it wants of the network.
    pub wishes: Vec<Wish>,
    /// Disk operations that have begun: on which disk, which, and when they end.
    pub begun: Vec<(usize, u64, u64)>,
    /// Why the process has ended, if it has.
    pub ended: Option<String>,
}

fn format(disk: &mut Disk, params: &FormatParams) {
    for (offset, bytes) in format_plan(params).expect("a plan has sizes that fit") {
        disk.write(offset, &bytes, true);
    }
}

/// A map in both its forms.
pub fn maps(map: ClusterMap) -> Arc<Maps> {
    let json = Bytes::from(map.to_json());
    Arc::new(Maps { map, json })
}

impl Node {
    /// A node of the map on fresh devices.
    pub fn new(map: &Arc<Maps>, id: NodeId, plan: &Plan, wires: Rc<Cell<u32>>, seed: u64) -> Node {
        #[cfg(feature = "mutants")]
        ashlar_node_engine::mutants::Mutant::choose(std::env::var("ASHLAR_MUTANT").ok().as_deref());
        let mut rng = Rng(seed);
        let ours = map.map.devices.iter().filter(|d| d.node == id);
        let (mut infos, mut drives, mut devices) = (Vec::new(), Vec::new(), Vec::new());
        for device in ours {
            let path = format!("/sim/{}", device.no);
            let volatile = plan.lying || rng.chance(50);
            let mut disk = Disk::new(device.size, volatile);
            disk.lying = plan.lying;
            disk.forgetful = volatile && rng.chance(50);
            let params = FormatParams {
                cluster: map.map.cluster,
                device: device.id,
                device_size: device.size,
                block_size: plan.block,
                extent_size: plan.extent,
                node: id,
                device_no: device.no,
                labels: Labels::default(),
                first_number: 1,
            };
            format(&mut disk, &params);
            infos.push(disk_info(&path, device.size, plan.block, volatile));
            drives.push(Drive {
                params,
                disk,
                flying: BTreeMap::new(),
                stuck_until: 0,
                fails: 0,
                drops: 0,
            });
            devices.push(DeviceConfig {
                no: device.no,
                path: PathBuf::from(path),
                cache: CacheMode::Auto,
                clean_from: plan.clean_from,
            });
        }
        let config = Config {
            node: id,
            map: PathBuf::new(),
            devices,
            pool_bytes: POOL_BYTES,
            spin_us: 0,
            control: None,
            audit: AuditConfig::default(),
            star: false,
            first_cpu: None,
            index_cache: plan.index_cache,
            index_table_bytes: plan.table_bytes,
            journal_keep_bytes: plan.keep_bytes,
        };
        let place = map.map.nodes.iter().position(|node| node.id == id);
        let upgrade = plan.upgrade.as_ref();
        let older = upgrade.filter(|it| place.is_some_and(|place| it.begins_older(place)));
        let address = map.map.node(id).map(|node| node.cores[0].address.parse());
        Node {
            id,
            address: address.and_then(Result::ok).expect("a plan has addresses"),
            config,
            port: Port::new(infos, wires),
            drives,
            core: None,
            held_before: 0,
            cleaned_before: 0,
            shared: None,
            map: map.clone(),
            life: 0,
            news: VecDeque::new(),
            batch_at: None,
            batch_tie: 0,
            start_at: None,
            stopped_until: 0,
            started: 0,
            rate: 990_000 + rng.below(20_001),
            rng,
            next_op: 0,
            reads: older.map_or(ENTRY_VERSION, |it| it.reads),
            newer_next: false,
            says: older.is_none_or(|it| it.says),
        }
    }

    /// What it says that it reads.
    pub fn says_it_reads(&self) -> Option<u16> {
        (self.says || self.reads == ENTRY_VERSION).then_some(self.reads)
    }

    /// Whether its process was given an entry that it cannot read.
    pub fn met_newer(&self) -> bool {
        self.core.as_ref().is_some_and(Core::met_newer)
    }

    /// Has its process end in order. Whether there is one.
    pub fn stop(&self) -> bool {
        let stopping = self.shared.as_ref().map(|shared| &shared.stopping);
        stopping.is_some_and(|it| {
            it.store(true, Ordering::Relaxed);
            true
        })
    }

    /// Its first device, while nothing runs, is another one from now on: formatted under the same number and name, with
    /// nothing on it.
    pub fn renew(&mut self) {
        let drive = &mut self.drives[0];
        let before = &drive.disk;
        let mut disk = Disk::new(drive.params.device_size, before.volatile);
        (disk.lying, disk.forgetful) = (before.lying, before.forgetful);
        drive.params.first_number += 1 << 40;
        format(&mut disk, &drive.params);
        drive.disk = disk;
    }

    /// Its own time at a moment of the world's.
    fn local(&self, now: u64) -> Instant {
        let since = u128::from(now - self.started) * u128::from(self.rate) / 1_000_000;
        Instant(1 + since as u64)
    }

    /// The world's time at which its own is this.
    fn world(&self, at: Instant) -> u64 {
        let since = u128::from(at.0.saturating_sub(1)) * 1_000_000;
        self.started + since.div_ceil(u128::from(self.rate)) as u64
    }

    /// How it says it is, if it runs.
    pub fn status(&self) -> Option<NodeStatus> {
        Some(self.core.as_ref()?.status(self.port.now))
    }

    /// Starts a process.
    pub fn start(&mut self, now: u64) {
        self.life += 1;
        self.started = now;
        self.news.clear();
        self.port.reset();
        self.port.born_ms = now / 1_000_000;
        self.port.now = self.local(now);
        let shared = Shared::new(&self.config, (*self.map).clone());
        let shared = Arc::new(shared.as_older(self.reads));
        let pool = Pool::new(POOL_BYTES).expect("there is memory for a simulated node");
        let pulse = Arc::new(Pulse::default());
        let at = self.port.now;
        let map = self.map.clone();
        let mut core = Core::of(&self.config, shared.clone(), 0, map, pulse, pool, at);
        core.start(at, &mut self.port);
        self.core = Some(core);
        self.shared = Some(shared);
    }

    /// The process ends, in the middle of everything; the power with it if `power`.
    pub fn kill(&mut self, power: bool) {
        self.cleaned_before += self.cleaned();
        self.held_before += self.held_back();
        self.core = None;
        self.shared = None;
        self.news.clear();
        self.port.reset();
        self.batch_at = None;
        for drive in &mut self.drives {
            let flying: Vec<(u64, Vec<u8>)> = std::mem::take(&mut drive.flying)
                .into_values()
                .filter_map(|it| match it.job {
                    Job::Write {
                        offset, buf, range, ..
                    } => Some((offset, buf[range].to_vec())),
                    _ => None,
                })
                .collect();
            if power {
                drive.disk.power_off(&flying, &mut self.rng);
            } else {
                drive.disk.kill(&flying, &mut self.rng);
            }
        }
    }

    /// Takes a newer map over, into its file first.
    pub fn adopt(&mut self, map: &Arc<Maps>) {
        if map.map.epoch <= self.map.map.epoch {
            return;
        }
        self.map = map.clone();
        if let Some(shared) = &self.shared {
            shared.adopt((**map).clone());
            self.news.push_back(News::Time);
        }
    }

    /// Requests of audits that this process has held back.
    pub fn held_back(&self) -> u64 {
        self.core.as_ref().map_or(0, Core::held_back)
    }

    /// Extents that this process has cleaned.
    pub fn cleaned(&self) -> u64 {
        self.core.as_ref().map_or(0, Core::extents_cleaned)
    }

    /// One round of the core's loop; then what it wants is begun.
    pub fn round(&mut self, now: u64) -> Round {
        self.batch_at = None;
        let mut round = Round {
            wishes: Vec::new(),
            begun: Vec::new(),
            ended: None,
        };
        let at = self.local(now);
        let Some(core) = &mut self.core else {
            return round;
        };
        self.port.now = at;
        while let Some(news) = self.news.pop_front() {
            self.port.tell(core, news);
        }
        self.port.give_resumed(core);
        Handler::<Port>::on_batch(core, at, &mut self.port);
        if Handler::<Port>::finished(core) {
            let outcome = core.outcome();
            round.ended = Some(
                outcome
                    .err()
                    .map_or("it ended".to_owned(), |e| e.to_string()),
            );
        }
        let next = Handler::<Port>::next_deadline(core);
        for wish in std::mem::take(&mut self.port.wishes) {
            match wish {
                Wish::Device {
                    device,
                    dev,
                    token,
                    job,
                } => self.begin(now, device, dev, token, job, &mut round),
                wish => round.wishes.push(wish),
            }
        }
        if let Some(next) = next {
            // A core that wants another round at once gets it when it has done this one.
            self.batch_at = Some(self.world(next).max(now + 2_000));
        }
        if !self.news.is_empty() {
            self.batch_at = Some(now + 1_000);
        }
        round
    }

    fn begin(
        &mut self,
        now: u64,
        device: Option<usize>,
        dev: Dev,
        token: u64,
        job: Job,
        round: &mut Round,
    ) {
        let (operation, (offset, _)) = (job.operation(), job.place());
        let Some(device) = device.filter(|it| self.port.has_open(*it, dev)) else {
            let result = Err(DeviceIoError::Closed { operation, offset });
            let buf = job.into_buf();
            return self.news.push_back(News::Device { token, result, buf });
        };
        let drive = &mut self.drives[device];
        let base = match &job {
            Job::Write { durable: true, .. } => 150_000,
            Job::Write { .. } => 40_000,
            Job::Read { .. } => 60_000,
            Job::Flush => 300_000,
        };
        // Now and then one takes far longer than the others.
        let slow = if self.rng.below(200) == 0 { 40 } else { 1 };
        let took = (base + self.rng.below(base)) * slow;
        let op = self.next_op;
        self.next_op += 1;
        let since = drive.disk.clock;
        drive.flying.insert(op, Flying { token, job, since });
        let at = (now + took).max(drive.stuck_until + self.rng.below(100_000));
        round.begun.push((device, op, at));
    }

    /// A disk operation ends; later, if the disk is stuck.
    pub fn disk_done(&mut self, now: u64, device: usize, op: u64) -> Option<u64> {
        let rng = &mut self.rng;
        let drive = &mut self.drives[device];
        if drive.stuck_until > now {
            return Some(drive.stuck_until + rng.below(100_000));
        }
        let Flying {
            token,
            mut job,
            since,
        } = drive.flying.remove(&op)?;
        let (operation, (offset, len)) = (job.operation(), job.place());
        let gone = self.port.places[device].gone;
        let failing = gone || drive.fails > 0 && rng.below(1000) < drive.fails;
        let outcome: Result<usize, i32> = match &mut job {
            Job::Write {
                offset, buf, range, ..
            } if failing => {
                if !gone {
                    drive.disk.write_failed(*offset, &buf[range.clone()], rng);
                }
                Err(5)
            }
            Job::Write { .. } if drive.drops > 0 && rng.below(1000) < drive.drops => Ok(len),
            Job::Write {
                offset,
                buf,
                range,
                durable,
            } => {
                drive.disk.write(*offset, &buf[range.clone()], *durable);
                Ok(len)
            }
            Job::Read { .. } if gone => Err(5),
            Job::Read { offset, buf, range } => drive
                .disk
                .read(*offset, &mut buf[range.clone()])
                .map(|()| len),
            Job::Flush if failing => {
                if !gone {
                    drive.disk.flush_failed();
                }
                Err(5)
            }
            Job::Flush => {
                drive.disk.flush(since);
                Ok(0)
            }
        };
        let device_path = self.port.places[device].info.path.as_str();
        let result = outcome.map_err(|errno| DeviceIoError::Failed {
            device: device_path.into(),
            operation,
            offset,
            len,
            errno: Errno::from_raw_os_error(errno),
        });
        // Of one that was closed meanwhile, too: the core drops what it hears of it.
        let buf = job.into_buf();
        self.news.push_back(News::Device { token, result, buf });
        None
    }
}
