//! A network between members and callers: late, cut one way or both ways, with connections that break.
//!
//! A cut holds bytes back, as TCP does, until it is over; so does the end of a machine without power, until it is there
//! again. Who waits gives up by its own times.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::sync::{mpsc, watch};

use crate::host::{Host, Incoming, Opening, Socket};

/// Milliseconds since 1970 when a run begins.
const EPOCH_MS: u64 = 1_800_000_000_000;
/// Bytes under way on a connection, at most, in each direction.
const WINDOW: usize = 64 * 1024;

#[derive(Debug)]
struct State {
    ports: BTreeMap<String, mpsc::Sender<Socket>>,
    /// Where whom is to be found, whether it is up or not.
    homes: BTreeMap<String, usize>,
    cuts: BTreeSet<(usize, usize)>,
    dark: BTreeSet<usize>,
    slow: bool,
    chance: StdRng,
}

/// The network.
#[derive(Debug)]
pub(crate) struct Net {
    state: Mutex<State>,
    /// Counts changes of who reaches whom; and connections that were broken.
    turns: watch::Sender<u64>,
    broken: watch::Sender<u64>,
}

impl Net {
    pub(crate) fn new(chance: StdRng) -> Arc<Net> {
        Arc::new(Net {
            state: Mutex::new(State {
                ports: BTreeMap::new(),
                homes: BTreeMap::new(),
                cuts: BTreeSet::new(),
                dark: BTreeSet::new(),
                slow: false,
                chance,
            }),
            turns: watch::channel(0).0,
            broken: watch::channel(0).0,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn turn(&self) {
        self.turns.send_modify(|turns| *turns += 1);
    }

    /// Listens.
    pub(crate) fn listen(&self, address: &str, place: usize) -> Port {
        let (sender, port) = mpsc::channel(64);
        let mut state = self.state();
        state.ports.insert(address.to_owned(), sender);
        state.homes.insert(address.to_owned(), place);
        state.dark.remove(&place);
        drop(state);
        self.turn();
        Port(port)
    }

    /// Nobody listens there any more; without power not even the ends of connections are heard of.
    pub(crate) fn leave(&self, address: &str, place: usize, dark: bool) {
        let mut state = self.state();
        state.ports.remove(address);
        if dark {
            state.dark.insert(place);
        }
        drop(state);
        self.turn();
    }

    /// Whether what one sends reaches the other.
    pub(crate) fn cut(&self, from: usize, to: usize, cut: bool) {
        let mut state = self.state();
        if cut {
            state.cuts.insert((from, to));
        } else {
            state.cuts.remove(&(from, to));
        }
        drop(state);
        self.turn();
    }

    /// Everybody reaches everybody, at once.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.cuts.clear();
        state.slow = false;
        drop(state);
        self.turn();
    }

    /// Whether all of it is slow.
    pub(crate) fn slow(&self, slow: bool) {
        self.state().slow = slow;
    }

    /// Breaks all connections there are.
    pub(crate) fn break_all(&self) {
        self.broken.send_modify(|broken| *broken += 1);
    }

    /// Waits as long as bytes take, and until they get through.
    async fn pass(&self, from: usize, to: usize) {
        let late = {
            let mut state = self.state();
            let most = if state.slow { 400 } else { 4 };
            state.chance.gen_range(0..=most)
        };
        tokio::time::sleep(Duration::from_millis(late)).await;
        let mut turns = self.turns.subscribe();
        loop {
            turns.borrow_and_update();
            let open = {
                let state = self.state();
                let dark = state.dark.contains(&from) || state.dark.contains(&to);
                !dark && !state.cuts.contains(&(from, to))
            };
            if open || turns.changed().await.is_err() {
                return;
            }
        }
    }

    /// Carries bytes one way until one end is closed.
    async fn carry(
        &self,
        (from, to): (usize, usize),
        mut source: ReadHalf<DuplexStream>,
        mut sink: WriteHalf<DuplexStream>,
    ) {
        let mut bytes = vec![0; WINDOW];
        loop {
            let read = source.read(&mut bytes).await.unwrap_or(0);
            self.pass(from, to).await;
            // Nobody reads it any more: then nobody misses it.
            if read == 0 || sink.write_all(&bytes[..read]).await.is_err() {
                let _ = sink.shutdown().await;
                return;
            }
        }
    }
}

/// Where a member listens.
pub(crate) struct Port(mpsc::Receiver<Socket>);

impl Incoming for Port {
    async fn next(&mut self) -> io::Result<Socket> {
        match self.0.recv().await {
            Some(socket) => Ok(socket),
            None => std::future::pending().await,
        }
    }
}

/// A machine on the network.
#[derive(Debug)]
pub(crate) struct Place {
    net: Arc<Net>,
    me: usize,
    begun: tokio::time::Instant,
    /// How far its wall clock is off, in milliseconds.
    off: AtomicI64,
}

impl Place {
    pub(crate) fn new(net: &Arc<Net>, me: usize) -> Arc<Place> {
        Arc::new(Place {
            net: net.clone(),
            me,
            begun: tokio::time::Instant::now(),
            off: AtomicI64::new(0),
        })
    }

    /// Its wall clock jumps.
    pub(crate) fn jump(&self, by_ms: i64) {
        self.off.fetch_add(by_ms, Ordering::Relaxed);
    }
}

impl Host for Place {
    fn connect<'a>(&'a self, address: &'a str) -> Opening<'a> {
        Box::pin(async move {
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let home = self.net.state().homes.get(address).copied();
            // A machine without power does not even refuse.
            let to = home.ok_or_else(refused)?;
            self.net.pass(self.me, to).await;
            self.net.pass(to, self.me).await;
            let port = self.net.state().ports.get(address).cloned();
            let port = port.ok_or_else(refused)?;
            let ((near, there), (here, far)) = (duplex(WINDOW), duplex(WINDOW));
            port.try_send(Box::new(far)).map_err(|_| refused())?;
            let (net, me) = (self.net.clone(), self.me);
            tokio::spawn(async move {
                let (source, back) = split(there);
                let (answers, sink) = split(here);
                let mut broken = net.broken.subscribe();
                tokio::select! {
                    biased;
                    _ = broken.changed() => {}
                    () = async {
                        tokio::join!(
                            net.carry((me, to), source, sink),
                            net.carry((to, me), answers, back),
                        );
                    } => {}
                }
            });
            Ok(Box::new(near) as Socket)
        })
    }

    fn wall_ms(&self) -> u64 {
        let since = u64::try_from(self.begun.elapsed().as_millis()).unwrap();
        (EPOCH_MS + since).saturating_add_signed(self.off.load(Ordering::Relaxed))
    }
}
