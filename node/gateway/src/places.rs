//! Places of which there is a bounded number, and of which nobody takes all.
//!
//! Invariants:
//! - never are more places taken than there are;
//! - one peer has three quarters of them at the most: what others need is there, however many one asks for, and however
//!   slow it is with them;
//! - whoever waits for a place waits for one of its own first: in the queue that all share, no peer has more waiting
//!   than it may have;
//! - of a peer that has none, and waits for none, nothing is kept for long.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Peers that are looked through at the least before those are forgotten that have no place.
const PEERS: usize = 64;

/// Who may have a part of the places: an address, and of version 6 the network that one subscriber has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer(IpAddr);

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Peer {
        match address.ip().to_canonical() {
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.segments();
                Peer(IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)))
            }
            ip @ IpAddr::V4(_) => Peer(ip),
        }
    }
}

/// The places.
#[derive(Debug)]
pub(crate) struct Places {
    all: Arc<Semaphore>,
    /// What one peer has at the most.
    each: usize,
    peers: Mutex<Peers>,
}

#[derive(Debug, Default)]
struct Peers {
    own: HashMap<Peer, Weak<Semaphore>>,
    /// How many were left when they were last looked through.
    left: usize,
}

/// Some of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Places {
    /// So many.
    pub(crate) fn new(count: usize) -> Places {
        Places {
            all: Arc::new(Semaphore::new(count)),
            each: (count - (count / 4).max(1)).max(1),
            peers: Mutex::default(),
        }
    }

    fn own(&self, peer: Peer) -> Arc<Semaphore> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = peers.own.get(&peer).and_then(Weak::upgrade) {
            return own;
        }
        if peers.own.len() >= PEERS.max(2 * peers.left) {
            peers.own.retain(|_, own| own.strong_count() > 0);
            peers.left = peers.own.len();
        }
        let own = Arc::new(Semaphore::new(self.each));
        peers.own.insert(peer, Arc::downgrade(&own));
        own
    }

    /// As many of one's own as there may be.
    fn most(&self, count: u32) -> u32 {
        count.min(u32::try_from(self.each).unwrap_or(u32::MAX))
    }

    /// So many places, if there are as many at once.
    pub(crate) fn take_now(&self, peer: Peer, count: u32) -> Option<Place> {
        let own = self.own(peer);
        let _own = own.try_acquire_many_owned(self.most(count)).ok()?;
        let _all = self.all.clone().try_acquire_many_owned(count).ok()?;
        Some(Place { _own, _all })
    }

    /// So many places; waits for them.
    pub(crate) async fn take(&self, peer: Peer, count: u32) -> Option<Place> {
        let own = self.own(peer);
        let _own = own.acquire_many_owned(self.most(count)).await.ok()?;
        let _all = self.all.clone().acquire_many_owned(count).await.ok()?;
        Some(Place { _own, _all })
    }

    /// Those that nobody has.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.all.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn peer(text: &str) -> Peer {
        Peer::from(SocketAddr::new(text.parse().unwrap(), 7))
    }

    fn all(places: &Places, peer: Peer) -> Vec<Place> {
        std::iter::from_fn(|| places.take_now(peer, 1)).collect()
    }

    #[test]
    fn nobody_takes_all() {
        for count in 2..50 {
            let places = Places::new(count);
            let one = all(&places, peer("10.0.0.1"));
            assert_eq!(one.len(), count - (count / 4).max(1), "{count}");
            let other = all(&places, peer("10.0.0.2"));
            assert_eq!(one.len() + other.len(), count.min(2 * places.each));
            assert!(!other.is_empty(), "{count}");
            drop((one, other));
            assert_eq!(places.free(), count);
        }
        let places = Places::new(1);
        assert!(places.take_now(peer("10.0.0.1"), 1).is_some());
    }

    #[test]
    fn who_waits_for_itself_keeps_nobody_else_waiting() {
        let places = Places::new(4);
        let (one, other) = (peer("10.0.0.1"), peer("10.0.0.2"));
        let mut taken = all(&places, one);
        let mut cx = Context::from_waker(Waker::noop());
        let mut waits = pin!(places.take(one, 1));
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        let theirs = places.take_now(other, 1).unwrap();
        taken.pop();
        let Poll::Ready(Some(place)) = waits.as_mut().poll(&mut cx) else {
            panic!("one was free");
        };
        assert_eq!(places.free(), 0);
        drop((place, theirs, taken));
        assert_eq!(places.free(), 4);
        // More than one may have, of a few.
        let _all = places.take_now(one, 4).unwrap();
        assert_eq!(places.free(), 0);
    }

    #[test]
    fn who_is_one_peer() {
        assert_eq!(peer("::ffff:10.0.0.1"), peer("10.0.0.1"));
        assert_eq!(peer("2001:db8:1:2::1"), peer("2001:db8:1:2:3:4:5:6"));
        assert_ne!(peer("2001:db8:1:2::1"), peer("2001:db8:1:3::1"));
        assert_ne!(peer("10.0.0.1"), peer("10.0.0.2"));
    }

    #[test]
    fn those_who_are_gone_are_forgotten() {
        let places = Places::new(1000);
        let here: Vec<_> = (0..100)
            .filter_map(|i| places.take_now(peer(&format!("10.1.0.{i}")), 1))
            .collect();
        for i in 0..10_000 {
            assert!(
                places
                    .take_now(peer(&format!("10.2.{}.{}", i / 250, i % 250)), 1)
                    .is_some()
            );
        }
        let kept = places.peers.lock().unwrap().own.len();
        assert!((100..=300).contains(&kept), "{kept}");
        drop(here);
    }
}
