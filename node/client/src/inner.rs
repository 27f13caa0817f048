//! What the clones of a client share, and what goes on behind its callers.
//!
//! Invariants:
//! - there are two links per address, for as long as a client lives that shares them: one for shards, and one for all
//!   else, so that no small question waits for the bytes of others. What is about one shard goes one way: nothing
//!   that frees it comes before what writes it;
//! - at most `operations_max` writing and as many reading operations are under way, tails included;
//! - the map is fetched by one task at a time, and only replaced by a newer one of the same cluster;
//! - when the last clone and the last tail of all clients that share them are gone, all connections are closed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use ashlar_cluster_object::health::PROBE_TIME;
use ashlar_cluster_object::{Action, Answer, CallId, Common, Leftover, Probed};
use ashlar_layout::frame::Haste;
use ashlar_layout::ids::{DeviceNo, Epoch, PartitionId};
use ashlar_layout::message::{Reply, Request};
use ashlar_layout::time::Instant;
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};

use crate::clock::Clock;
use crate::link::{Link, LinkSetup, Outgoing, ReplyTo};
use crate::mailbox::{Arrived, Mailbox};
use crate::options::{ClientOptions, Drained, OPERATIONS_MAX};

/// What a link is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Use {
    /// Shards.
    Shards,
    /// Everything else.
    Questions,
}

impl Use {
    fn of(request: &Request) -> Use {
        match request {
            Request::ShardWrite { .. }
            | Request::ShardRead { .. }
            | Request::ShardDelete { .. } => Use::Shards,
            _ => Use::Questions,
        }
    }
}

/// Connections that several clients share.
#[derive(Debug)]
pub(crate) struct Links {
    setup: LinkSetup,
    by_address: Mutex<HashMap<(String, Use), Arc<Link>>>,
}

impl Links {
    pub(crate) fn new(setup: LinkSetup) -> Links {
        Links {
            setup,
            by_address: Mutex::default(),
        }
    }

    fn get(&self, address: &str, using: Use) -> Arc<Link> {
        let links = self.by_address.lock();
        let mut links = links.unwrap_or_else(PoisonError::into_inner);
        let name = (address.to_owned(), using);
        let link = || Arc::new(Link::new(address.to_owned(), self.setup.clone()));
        links.entry(name).or_insert_with(link).clone()
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        let links = self.by_address.get_mut();
        for link in links.unwrap_or_else(PoisonError::into_inner).values() {
            link.close();
        }
    }
}

/// The links to a device.
#[derive(Clone, Debug)]
struct Route {
    shards: Arc<Link>,
    questions: Arc<Link>,
}

/// Links by the devices behind them, for one map.
#[derive(Debug)]
struct Routes {
    epoch: Epoch,
    by_device: HashMap<DeviceNo, Route>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) common: Arc<Common>,
    pub(crate) options: ClientOptions,
    pub(crate) writers: Arc<Semaphore>,
    pub(crate) readers: Arc<Semaphore>,
    clock: Clock,
    pub(crate) links: Arc<Links>,
    routes: RwLock<Arc<Routes>>,
    refreshing: AtomicBool,
    tails: AtomicUsize,
    tails_done: Notify,
    late_lost: AtomicU64,
    unfreed: AtomicU64,
}

impl Inner {
    pub(crate) fn new(common: Common, options: ClientOptions, links: Arc<Links>) -> Inner {
        let permits = options.operations_max.clamp(1, OPERATIONS_MAX);
        let no_routes = Routes {
            epoch: Epoch(0),
            by_device: HashMap::new(),
        };
        Inner {
            common: Arc::new(common),
            writers: Arc::new(Semaphore::new(permits)),
            readers: Arc::new(Semaphore::new(permits)),
            options,
            clock: Clock::start(),
            links,
            routes: RwLock::new(Arc::new(no_routes)),
            refreshing: AtomicBool::new(false),
            tails: AtomicUsize::new(0),
            tails_done: Notify::new(),
            late_lost: AtomicU64::new(0),
            unfreed: AtomicU64::new(0),
        }
    }

    /// The time, as state machines count it.
    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// The same instant, as tokio counts it.
    pub(crate) fn at(&self, instant: Instant) -> tokio::time::Instant {
        self.clock.at(instant)
    }

    /// The link to the core at an address, for questions.
    pub(crate) fn link(&self, address: &str) -> Arc<Link> {
        self.links.get(address, Use::Questions)
    }

    /// The link to the core that owns a device, and the epoch to say.
    pub(crate) fn route(&self, device: DeviceNo, using: Use) -> (Epoch, Option<Arc<Link>>) {
        let pick = |route: &Route| match using {
            Use::Shards => route.shards.clone(),
            Use::Questions => route.questions.clone(),
        };
        let map = self.common.map();
        {
            let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
            if routes.epoch == map.epoch
                && let Some(route) = routes.by_device.get(&device)
            {
                return (map.epoch, Some(pick(route)));
            }
        }
        let to = |address: &str| Route {
            shards: self.links.get(address, Use::Shards),
            questions: self.links.get(address, Use::Questions),
        };
        let by_device: HashMap<DeviceNo, Route> = map
            .devices
            .iter()
            .filter_map(|d| Some((d.no, to(map.address(d.no)?))))
            .collect();
        let link = by_device.get(&device).map(pick);
        let routes = Arc::new(Routes {
            epoch: map.epoch,
            by_device,
        });
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = routes;
        (map.epoch, link)
    }

    /// Carries out what state machines ask for; answers go to `mailbox`.
    pub(crate) fn carry_out(
        self: &Arc<Self>,
        actions: &mut Vec<Action>,
        mailbox: &Arc<Mailbox>,
        haste: Haste,
    ) {
        for action in actions.drain(..) {
            match action {
                Action::Send {
                    call,
                    to,
                    request,
                    payload,
                    payload_crc,
                } => {
                    let reply_to = Some((mailbox.clone(), call, to));
                    self.send(to, request, (payload, payload_crc), reply_to, haste);
                }
                Action::Tell { to, request } => {
                    self.send(to, request, (Bytes::new(), Some(0)), None, haste);
                }
                Action::View { partition, device } => self.view(partition, device),
                Action::Probe { device } => self.probe(device),
            }
        }
    }

    fn send(
        &self,
        to: DeviceNo,
        request: Request,
        (payload, payload_crc): (Bytes, Option<u32>),
        reply_to: ReplyTo,
        haste: Haste,
    ) {
        match self.route(to, Use::of(&request)) {
            (epoch, Some(link)) => {
                link.submit(Outgoing {
                    request,
                    epoch,
                    payload,
                    payload_crc,
                    haste,
                    reply_to,
                });
            }
            (epoch, None) => {
                if let Some((mailbox, call, from)) = reply_to {
                    let detail = format!("map {epoch} does not say where device {to} is");
                    mailbox.put(Arrived {
                        call,
                        from,
                        epoch: Epoch(0),
                        answer: Answer::NotSent { detail },
                    });
                }
            }
        }
    }

    /// Asks one core one thing, and waits for the answer at most so long.
    pub(crate) async fn ask(&self, link: &Arc<Link>, request: Request, wait: Duration) -> Answer {
        let mailbox = Arc::new(Mailbox::default());
        let call = CallId { lane: 0, call: 0 };
        let reply_to = Some((mailbox.clone(), call, DeviceNo(0)));
        let epoch = self.common.map().epoch;
        let payload = Bytes::new();
        link.submit(Outgoing {
            request,
            epoch,
            payload,
            payload_crc: Some(0),
            haste: Haste::Foreground,
            reply_to,
        });
        match tokio::time::timeout(wait, mailbox.take()).await {
            Ok(arrived) => arrived.answer,
            Err(_) => {
                let detail = format!("no answer within {} ms", wait.as_millis());
                Answer::Lost { detail }
            }
        }
    }

    /// Asks a device's node how the device is, and remembers it.
    fn probe(self: &Arc<Self>, device: DeviceNo) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let inner = self.clone();
        runtime.spawn(async move {
            let found = match inner.route(device, Use::Questions) {
                (_, Some(link)) => {
                    Probed::of(device, inner.ask(&link, Request::Status, PROBE_TIME).await)
                }
                (..) => Probed::Away("the map does not say where it is".to_owned()),
            };
            let now = inner.now();
            inner.common.health().probed(now, device, found);
        });
    }

    /// Asks a device who its chain is, and remembers it.
    fn view(self: &Arc<Self>, partition: PartitionId, device: DeviceNo) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let inner = self.clone();
        runtime.spawn(async move {
            let (_, Some(link)) = inner.route(device, Use::Questions) else {
                return;
            };
            let answer = inner
                .ask(&link, Request::Chain { partition }, PROBE_TIME)
                .await;
            if let Answer::Reply {
                reply: Reply::Chain(view),
                ..
            } = answer
            {
                let now = inner.now();
                inner.common.heads().heard(now, partition, device, &view);
            }
        });
    }

    /// A node has another map: fetches its map, behind the caller, who asks again.
    pub(crate) fn refresh_map(self: &Arc<Self>, device: DeviceNo) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        if self.refreshing.swap(true, Ordering::AcqRel) {
            return;
        }
        let inner = self.clone();
        runtime.spawn(async move {
            if let (_, Some(link)) = inner.route(device, Use::Questions) {
                let wait = inner.options.connect_timeout + PROBE_TIME;
                let answer = inner.ask(&link, Request::GetMap, wait).await;
                if let Answer::Reply {
                    reply: Reply::Map,
                    payload,
                    ..
                } = answer
                {
                    inner.common.learn_json(&payload);
                }
            }
            inner.refreshing.store(false, Ordering::Release);
        });
    }

    pub(crate) fn tail_begins(&self) {
        self.tails.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn tail_ends(&self) {
        self.tails.fetch_sub(1, Ordering::AcqRel);
        self.tails_done.notify_waiters();
    }

    pub(crate) fn left(&self, leftover: Leftover) {
        self.late_lost
            .fetch_add(leftover.late_lost, Ordering::Relaxed);
        let unfreed = leftover.unfreed + leftover.unread_nodes;
        self.unfreed.fetch_add(unfreed, Ordering::Relaxed);
    }

    /// Waits, at most so long, until no tail is under way.
    pub(crate) async fn drain(&self, wait: Duration) -> Drained {
        let until_idle = async {
            loop {
                let done = self.tails_done.notified();
                tokio::pin!(done);
                // Listens before it looks: a tail that ends in between is not missed.
                done.as_mut().enable();
                if self.tails.load(Ordering::Acquire) == 0 {
                    return;
                }
                done.await;
            }
        };
        // Whether the time was up, the count says.
        let _ = tokio::time::timeout(wait, until_idle).await;
        Drained {
            unfinished: self.tails.load(Ordering::Acquire),
            shards_late_lost: self.late_lost.load(Ordering::Relaxed),
            shards_unfreed: self.unfreed.load(Ordering::Relaxed),
        }
    }
}
