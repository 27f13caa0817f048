//! A node from start to end: its threads, its signals, and what it tells systemd.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use ashlar_cluster_map::ClusterMap;
use ashlar_layout::version::ENTRY_VERSION;
use ashlar_node_reactor::{Errno, Options, Reactor, ReactorError, Waker};
use bytes::Bytes;

use crate::audit::Auditor;
use crate::config::Config;
use crate::control::Control;
use crate::core::Core;
use crate::identity;
use crate::shared::{Maps, Pulse, Shared};

/// How often readiness and life are looked at when systemd sets no watchdog.
const WATCH: Duration = Duration::from_millis(500);

/// How often, and how long apart, a port that is taken is tried again.
const LISTEN_ATTEMPTS: u32 = 100;
/// See [`LISTEN_ATTEMPTS`].
const LISTEN_RETRY: Duration = Duration::from_millis(50);
/// Words to the main thread that may wait; whoever has more to say waits too.
const WORDS_MAX: usize = 64;

/// Why a node could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// The map's file cannot be read.
    #[error("cannot read the cluster map {path}: {source}")]
    MapFile {
        /// Which file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The map is not valid.
    #[error(transparent)]
    Map(#[from] ashlar_cluster_map::MapError),
    /// Configuration and map disagree.
    #[error("{0}")]
    Config(String),
    /// The reactor cannot start or go on.
    #[error(transparent)]
    Reactor(#[from] ashlar_node_reactor::ReactorError),
    /// A device cannot be opened.
    #[error("device {no} at {path}: {message}")]
    Device {
        /// Its number.
        no: ashlar_layout::ids::DeviceNo,
        /// Where it is.
        path: std::path::PathBuf,
        /// What is wrong, and what to do.
        message: String,
    },
    /// Signals or threads cannot be had.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A core's thread ended by a panic.
    #[error("core {0} ended by a panic: see the log")]
    Panicked(usize),
}

enum Word {
    /// A core can be woken with this.
    Waker(Waker),
    /// A core has ended.
    Ended(Result<(), DaemonError>),
    /// A signal asks us to end.
    Stop,
}

/// Runs a node until SIGTERM or SIGINT has drained it.
pub fn run(config: &Config) -> Result<(), DaemonError> {
    let map_json = std::fs::read(&config.map).map_err(|source| DaemonError::MapFile {
        path: config.map.clone(),
        source,
    })?;
    let map = ClusterMap::from_json(&map_json)?;
    map.check_reader(ENTRY_VERSION)?;
    let node = map.node(config.node).ok_or_else(|| {
        DaemonError::Config(format!(
            "node {} is not in {}",
            config.node,
            config.map.display()
        ))
    })?;
    let cores = node.cores.len();
    check_devices(config, &map)?;
    let (config, said) = identity::by_identity(config, &map);
    let config = &config;
    for line in said {
        eprintln!("{line}");
    }
    let json = Bytes::from(map_json);
    let shared = Arc::new(Shared::new(config, Maps { map, json }));

    let (words, heard) = sync_channel(WORDS_MAX);
    signals(&words)?;
    let control = Control::start(config, &shared)?;
    let auditor = Auditor::start(config, &shared)?;
    let mut pulses = Vec::new();
    let mut threads = Vec::new();
    for core in 0..cores {
        let pulse = Arc::new(Pulse::default());
        pulses.push(pulse.clone());
        let (shared, config, words) = (shared.clone(), config.clone(), words.clone());
        let thread = std::thread::Builder::new()
            .name(format!("core-{core}"))
            .spawn(move || {
                let panicked = Err(DaemonError::Panicked(core));
                let mut ended = Ended {
                    words: words.clone(),
                    result: panicked,
                };
                ended.result = run_core(core, &config, &shared, pulse, &words);
            })
            .map_err(|source| DaemonError::System {
                what: "cannot start a thread",
                source,
            })?;
        threads.push(thread);
    }
    drop(words);
    let result = watch(cores, &shared, &pulses, &heard);
    drop(auditor);
    drop(control);
    for thread in threads {
        // A panic was told by `Ended` already.
        let _ = thread.join();
    }
    match shared.refusal() {
        Some(refused) => result.and(Err(refused.into())),
        None => result,
    }
}

/// Tells the main thread how a core ended, also when it panics.
struct Ended {
    words: SyncSender<Word>,
    result: Result<(), DaemonError>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let result = std::mem::replace(&mut self.result, Ok(()));
        let _ = self.words.send(Word::Ended(result));
    }
}

fn check_devices(config: &Config, map: &ClusterMap) -> Result<(), DaemonError> {
    for device in map.devices.iter().filter(|d| d.node == config.node) {
        if !config.devices.iter().any(|c| c.no == device.no) {
            return Err(DaemonError::Config(format!(
                "the map gives device {} ({}) to node {}, but the configuration has no path for it",
                device.no, device.id, config.node
            )));
        }
    }
    for device in &config.devices {
        if map.device(device.no).is_none_or(|d| d.node != config.node) {
            return Err(DaemonError::Config(format!(
                "the configuration names device {} at {}, which the map does not give to node {}",
                device.no,
                device.path.display(),
                config.node
            )));
        }
    }
    Ok(())
}

fn signals(words: &SyncSender<Word>) -> Result<(), DaemonError> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT]).map_err(|source| {
        DaemonError::System {
            what: "cannot take signals",
            source,
        }
    })?;
    let words = words.clone();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for _ in signals.forever() {
                if words.send(Word::Stop).is_err() {
                    return;
                }
            }
        })
        .map_err(|source| DaemonError::System {
            what: "cannot start a thread",
            source,
        })?;
    Ok(())
}

/// The main thread: tells systemd when all cores serve and that they live, and ends them.
fn watch(
    cores: usize,
    shared: &Shared,
    pulses: &[Arc<Pulse>],
    heard: &Receiver<Word>,
) -> Result<(), DaemonError> {
    let mut wakers: Vec<Waker> = Vec::new();
    let mut running = cores;
    let mut result = Ok(());
    let mut ready = false;
    let mut beats = vec![0u64; cores];
    // Twice per watchdog period, as sd_watchdog_enabled(3) advises.
    let watchdog = watchdog_period().map(|period| period / 2);
    let pause = watchdog.unwrap_or(WATCH).min(WATCH);
    let mut fed = std::time::Duration::ZERO;
    while running > 0 {
        match heard.recv_timeout(if ready {
            pause
        } else {
            Duration::from_millis(10)
        }) {
            Ok(Word::Waker(waker)) => wakers.push(waker),
            Ok(Word::Stop) => {
                notify(&[sd_notify::NotifyState::Stopping]);
                shared.stopping.store(true, Ordering::Relaxed);
            }
            Ok(Word::Ended(ended)) => {
                running -= 1;
                // One core short is a node short: its peers must see it gone.
                shared.stopping.store(true, Ordering::Relaxed);
                if result.is_ok() {
                    result = ended;
                }
            }
            Err(RecvTimeoutError::Timeout) => fed += pause,
            Err(RecvTimeoutError::Disconnected) => break,
        }
        for waker in &wakers {
            waker.wake();
        }
        if !ready && pulses.iter().all(|p| p.ready.load(Ordering::Relaxed)) {
            ready = true;
            notify(&[sd_notify::NotifyState::Ready]);
            eprintln!("node {} serves", shared.node);
        }
        if let Some(every) = watchdog
            && ready
            && fed >= every.min(pause)
        {
            fed = Duration::ZERO;
            let now: Vec<u64> = pulses
                .iter()
                .map(|p| p.beats.load(Ordering::Relaxed))
                .collect();
            // Fed only if *every* core went round since the last time.
            if now.iter().zip(&beats).all(|(now, before)| now > before) {
                notify(&[sd_notify::NotifyState::Watchdog]);
            }
            beats = now;
        }
    }
    result
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(false, states) {
        eprintln!("cannot tell the service manager: {e}");
    }
}

fn watchdog_period() -> Option<Duration> {
    let mut micros = 0;
    sd_notify::watchdog_enabled(false, &mut micros).then(|| Duration::from_micros(micros))
}

fn run_core(
    core: usize,
    config: &Config,
    shared: &Arc<Shared>,
    pulse: Arc<Pulse>,
    words: &SyncSender<Word>,
) -> Result<(), DaemonError> {
    let maps = shared.newest();
    let node = maps.map.node(config.node);
    let address = node.and_then(|n| Some(n.cores.get(core)?.address.clone()));
    let address = address.as_deref().unwrap_or_default();
    let listen = crate::chains::resolve(address).ok_or_else(|| {
        DaemonError::Config(format!("'{address}' is not an address: it takes host:port"))
    })?;
    let options = Options {
        listen: Some(listen),
        cpu: config.first_cpu.map(|first| first + core),
        pool_bytes: config.pool_bytes,
        spin: Duration::from_micros(u64::from(config.spin_us)),
        ..Options::default()
    };
    let mut reactor = reactor(&options, shared)?;
    let _ = words.send(Word::Waker(reactor.waker()));
    let wakers = shared.wakers.lock();
    let mut wakers = wakers.unwrap_or_else(std::sync::PoisonError::into_inner);
    wakers.push(reactor.waker());
    drop(wakers);
    for note in reactor.notes() {
        eprintln!("core {core}: {note}");
    }
    let io = reactor.io();
    let now = io.now();

    let mut handler = Core::of(config, shared.clone(), core, maps, pulse, io.pool(), now);
    handler.start(now, io);
    reactor.run(&mut handler)?;
    handler.outcome()
}

/// Makes the reactor. The port of a process that was just killed stays taken until the kernel has torn
/// its ring down, so that is waited for.
fn reactor(options: &Options, shared: &Shared) -> Result<Reactor, DaemonError> {
    let mut attempts = LISTEN_ATTEMPTS;
    loop {
        match Reactor::new(options.clone()) {
            Err(ReactorError::Listen {
                errno: Errno::ADDRINUSE,
                ..
            }) if attempts > 0 && !shared.stopping.load(Ordering::Relaxed) => {
                attempts -= 1;
                std::thread::park_timeout(LISTEN_RETRY);
            }
            made => return Ok(made?),
        }
    }
}
