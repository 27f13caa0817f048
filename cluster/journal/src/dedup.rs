//! Which requests were done: so that a retry is answered, not done again.
//!
//! Invariants:
//! - it is a function of the applied entries alone, eviction included, so that every replica that
//!   applied the same prefix of the log knows the same requests;
//! - of each client at most `requests` numbers are held; when one is dropped it is the smallest,
//!   and from then on no number up to it is ever done: it is refused as too old;
//! - at most `clients` clients are held; the one whose last entry is furthest back is forgotten.
//!
//! What the bounds mean: a retry is recognised as long as, since the first attempt was committed,
//! fewer than `requests` requests with higher numbers of the same client and requests of fewer than
//! `clients` other clients were committed. A request that its own client has overtaken by that much
//! is refused, never repeated. A retry of a client that was itself forgotten is done again.

use std::collections::BTreeMap;

use ashlar_layout::ids::{ClientId, RequestNo, Seq};

/// What is known of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Nothing: it is new.
    New,
    /// It was done by this entry.
    Done(Seq),
    /// It may have been done; that is forgotten.
    TooOld {
        /// Numbers up to this one are refused.
        floor: RequestNo,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Client {
    last: Seq,
    floor: RequestNo,
    done: BTreeMap<RequestNo, Seq>,
}

/// The requests that were done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Dedup {
    clients_max: usize,
    requests_max: usize,
    clients: BTreeMap<ClientId, Client>,
    by_last: BTreeMap<Seq, ClientId>,
}

impl Dedup {
    pub(crate) fn new(clients_max: usize, requests_max: usize) -> Self {
        Self {
            clients_max: clients_max.max(1),
            requests_max: requests_max.max(1),
            clients: BTreeMap::new(),
            by_last: BTreeMap::new(),
        }
    }

    /// What is known of this request.
    pub(crate) fn known(&self, client: ClientId, request: RequestNo) -> Known {
        let Some(held) = self.clients.get(&client) else {
            return Known::New;
        };
        match held.done.get(&request) {
            Some(seq) => Known::Done(*seq),
            None if request <= held.floor => Known::TooOld { floor: held.floor },
            None => Known::New,
        }
    }

    /// Entry `seq`, which is being applied, did this request.
    pub(crate) fn done(&mut self, client: ClientId, request: RequestNo, seq: Seq) {
        let held = self.clients.entry(client).or_default();
        self.by_last.remove(&held.last);
        held.last = seq;
        self.by_last.insert(seq, client);
        held.done.insert(request, seq);
        if held.done.len() > self.requests_max
            && let Some((dropped, _)) = held.done.pop_first()
        {
            held.floor = held.floor.max(dropped);
        }
        if self.clients.len() > self.clients_max
            && let Some((_, forgotten)) = self.by_last.pop_first()
        {
            self.clients.remove(&forgotten);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_of_requests_then_too_old() {
        let mut dedup = Dedup::new(2, 3);
        let client = ClientId(1);
        for n in [2, 1, 3, 4] {
            dedup.done(client, RequestNo(n), Seq(n * 10));
        }
        let floor = RequestNo(1);
        assert_eq!(dedup.known(client, RequestNo(1)), Known::TooOld { floor });
        assert_eq!(dedup.known(client, RequestNo(2)), Known::Done(Seq(20)));
        assert_eq!(dedup.known(client, RequestNo(4)), Known::Done(Seq(40)));
        assert_eq!(dedup.known(client, RequestNo(5)), Known::New);
        assert_eq!(dedup.known(ClientId(2), RequestNo(1)), Known::New);
    }

    #[test]
    fn the_client_furthest_back_is_forgotten() {
        let mut dedup = Dedup::new(2, 3);
        dedup.done(ClientId(1), RequestNo(1), Seq(1));
        dedup.done(ClientId(2), RequestNo(1), Seq(2));
        dedup.done(ClientId(1), RequestNo(2), Seq(3));
        dedup.done(ClientId(3), RequestNo(1), Seq(4));
        assert_eq!(dedup.known(ClientId(1), RequestNo(1)), Known::Done(Seq(1)));
        assert_eq!(dedup.known(ClientId(2), RequestNo(1)), Known::New);
        assert_eq!(dedup.known(ClientId(3), RequestNo(1)), Known::Done(Seq(4)));
        assert_eq!(dedup.by_last.len(), dedup.clients.len());
    }
}
