//! Which requests were done: so that a retry is answered, not done again.
//!
//! Invariants:
//! - it is a function of the applied entries alone, eviction included, so that every replica that
//!   applied the same prefix of the log knows the same requests;
//! - of each client at most `requests` numbers are held; when one is dropped it is the smallest,
//!   and from then on no number up to it is ever done: it is refused as too old;
//! - at most `clients` clients are held; the one whose last entry is furthest back is forgotten;
//! - of each client, `forgotten` is an entry behind which nothing that it did was forgotten in this
//!   way: for one that is not held, the last entry of any client that was ever forgotten.
//!
//! What the bounds mean: a retry is recognised as long as, since the first attempt was committed,
//! fewer than `requests` requests with higher numbers of the same client and requests of fewer than
//! `clients` other clients were committed. A request that its own client has overtaken by that much
//! is refused, never repeated. A retry says how much of the log was there, to the client's knowledge,
//! when it asked first: what it did is behind that. If something that is behind that was forgotten,
//! it is not known whether the request was done, and it is refused. What is no retry was not done,
//! for no attempt of it reached this partition before (one that its own retry overtook, and by so
//! much that its client was forgotten meanwhile, would have to lie in a socket while thousands of
//! other clients' changes are committed).

use std::collections::BTreeMap;

use ashlar_layout::ids::{ClientId, RequestNo, Seq};
use ashlar_layout::replica_state::ClientState;

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
    /// It may have been done by an entry up to this one; its client was forgotten since.
    Forgotten {
        /// The entry.
        up_to: Seq,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Client {
    last: Seq,
    floor: RequestNo,
    forgotten: Seq,
    done: BTreeMap<RequestNo, Seq>,
}

/// The requests that were done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Dedup {
    clients_max: usize,
    requests_max: usize,
    clients: BTreeMap<ClientId, Client>,
    by_last: BTreeMap<Seq, ClientId>,
    /// The last entry of any client that was forgotten.
    forgotten: Seq,
}

impl Dedup {
    pub(crate) fn new(clients_max: usize, requests_max: usize) -> Self {
        Self {
            clients_max: clients_max.max(1),
            requests_max: requests_max.max(1),
            clients: BTreeMap::new(),
            by_last: BTreeMap::new(),
            forgotten: Seq(0),
        }
    }

    /// What it knows, to be kept.
    pub(crate) fn save(&self) -> (Seq, Vec<ClientState>) {
        let clients = self.clients.iter().map(|(client, held)| ClientState {
            client: *client,
            last: held.last,
            floor: held.floor,
            forgotten: held.forgotten,
            done: held
                .done
                .iter()
                .map(|(request, seq)| (*request, *seq))
                .collect(),
        });
        (self.forgotten, clients.collect())
    }

    /// With the same bounds, what [`Dedup::save`] gave.
    pub(crate) fn load(&self, forgotten: Seq, clients: Vec<ClientState>) -> Self {
        let mut loaded = Self::new(self.clients_max, self.requests_max);
        loaded.forgotten = forgotten;
        for state in clients {
            loaded.by_last.insert(state.last, state.client);
            let held = Client {
                last: state.last,
                floor: state.floor,
                forgotten: state.forgotten,
                done: state.done.into_iter().collect(),
            };
            loaded.clients.insert(state.client, held);
        }
        loaded
    }

    /// The newest entry that is known of.
    pub(crate) fn newest(&self) -> Seq {
        self.by_last
            .last_key_value()
            .map_or(Seq(0), |(seq, _)| *seq)
    }

    /// What both know: of two partitions that become one, whose clients' requests have numbers of their own.
    pub(crate) fn with(&self, other: &Dedup) -> Self {
        let mut both = self.clone();
        both.forgotten = self.forgotten.max(other.forgotten);
        for (client, theirs) in &other.clients {
            let held = both.clients.entry(*client).or_default();
            held.last = held.last.max(theirs.last);
            held.floor = held.floor.max(theirs.floor);
            held.done.extend(&theirs.done);
        }
        // Of a client that only one of them holds, the other may have forgotten something; and its last entry may have
        // the number of another client's in the other's log.
        for held in both.clients.values_mut() {
            held.forgotten = both.forgotten;
            while held.done.len() > self.requests_max {
                let dropped = held.done.pop_first();
                held.floor = held
                    .floor
                    .max(dropped.map_or(held.floor, |(number, _)| number));
            }
        }
        both.by_last.clear();
        let mut order: Vec<(Seq, ClientId)> = both
            .clients
            .iter()
            .map(|(client, held)| (held.last, *client))
            .collect();
        order.sort_unstable();
        let over = order.len().saturating_sub(self.clients_max);
        let mut last = Seq(0);
        for (nth, (seq, client)) in order.into_iter().enumerate() {
            if nth < over {
                both.forgotten = both.forgotten.max(seq);
                both.clients.remove(&client);
                continue;
            }
            // One place for each, in the same order.
            last = seq.max(Seq(last.0 + 1));
            both.by_last.insert(last, client);
            if let Some(held) = both.clients.get_mut(&client) {
                held.last = last;
            }
        }
        both
    }

    /// What is known of this request.
    pub(crate) fn known(&self, client: ClientId, request: RequestNo, retry: Option<Seq>) -> Known {
        let held = self.clients.get(&client);
        let done = held.and_then(|held| held.done.get(&request));
        let floor = held.map(|held| held.floor).unwrap_or_default();
        let up_to = held.map_or(self.forgotten, |held| held.forgotten);
        match done {
            Some(seq) => Known::Done(*seq),
            None if request <= floor => Known::TooOld { floor },
            None if retry.is_some_and(|told| told < up_to) => Known::Forgotten { up_to },
            None => Known::New,
        }
    }

    /// Entry `seq`, which is being applied, did this request.
    pub(crate) fn done(&mut self, client: ClientId, request: RequestNo, seq: Seq) {
        let forgotten = self.forgotten;
        let held = self.clients.entry(client).or_insert_with(|| Client {
            forgotten,
            ..Client::default()
        });
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
            && let Some((last, forgotten)) = self.by_last.pop_first()
        {
            self.forgotten = self.forgotten.max(last);
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
        assert_eq!(
            dedup.known(client, RequestNo(1), None),
            Known::TooOld { floor }
        );
        assert_eq!(
            dedup.known(client, RequestNo(2), None),
            Known::Done(Seq(20))
        );
        assert_eq!(
            dedup.known(client, RequestNo(4), None),
            Known::Done(Seq(40))
        );
        assert_eq!(dedup.known(client, RequestNo(5), None), Known::New);
        assert_eq!(dedup.known(ClientId(2), RequestNo(1), None), Known::New);
    }

    #[test]
    fn the_client_furthest_back_is_forgotten() {
        let mut dedup = Dedup::new(2, 3);
        dedup.done(ClientId(1), RequestNo(1), Seq(1));
        dedup.done(ClientId(2), RequestNo(1), Seq(2));
        dedup.done(ClientId(1), RequestNo(2), Seq(3));
        dedup.done(ClientId(3), RequestNo(1), Seq(4));
        assert_eq!(
            dedup.known(ClientId(1), RequestNo(1), None),
            Known::Done(Seq(1))
        );
        assert_eq!(dedup.known(ClientId(2), RequestNo(1), None), Known::New);
        assert_eq!(
            dedup.known(ClientId(3), RequestNo(1), None),
            Known::Done(Seq(4))
        );
        assert_eq!(dedup.by_last.len(), dedup.clients.len());
        let (forgotten, clients) = dedup.save();
        let loaded = Dedup::new(2, 3).load(forgotten, clients);
        assert_eq!(loaded, dedup);
    }

    #[test]
    fn a_retry_of_what_may_be_forgotten_is_neither_new_nor_done() {
        let mut dedup = Dedup::new(2, 3);
        let (one, request) = (ClientId(1), RequestNo);
        let told = |seq| Some(Seq(seq));
        assert_eq!(dedup.known(one, request(1), told(0)), Known::New);
        dedup.done(one, request(1), Seq(1));
        dedup.done(ClientId(2), request(1), Seq(2));
        // Nothing was forgotten yet: whoever is not held did nothing.
        assert_eq!(dedup.known(ClientId(3), request(1), told(0)), Known::New);
        dedup.done(ClientId(3), request(1), Seq(3));
        let forgotten = Known::Forgotten { up_to: Seq(1) };
        assert_eq!(dedup.known(one, request(1), told(0)), forgotten);
        // Nobody can tell this one from the first.
        assert_eq!(dedup.known(ClientId(4), request(1), told(0)), forgotten);
        // No retry, or one whose first attempt came after all that was forgotten: new.
        assert_eq!(dedup.known(one, request(2), None), Known::New);
        assert_eq!(dedup.known(one, request(2), told(1)), Known::New);
        // Those that stayed are known as before.
        assert_eq!(dedup.known(ClientId(2), request(2), told(0)), Known::New);
        // Back again, with the past still forgotten.
        dedup.done(one, request(2), Seq(4));
        assert_eq!(dedup.known(one, request(2), told(0)), Known::Done(Seq(4)));
        assert_eq!(dedup.known(one, request(1), told(0)), forgotten);
        assert_eq!(dedup.known(one, request(3), told(0)), forgotten);
        assert_eq!(dedup.known(one, request(3), told(4)), Known::New);
        let up_to = Seq(2);
        let now = dedup.known(ClientId(2), request(1), told(1));
        assert_eq!(now, Known::Forgotten { up_to });
    }
}
