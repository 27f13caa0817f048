//! Frees the shards of stripes that nothing names any more, as well as it can.
//!
//! Invariants:
//! - a tree's node is freed after the stripes that it lists: a node that is gone names nothing;
//! - a bounded number of requests is under way;
//! - it ends, and counts what it could not free: that is the auditor's work.

use std::collections::VecDeque;
use std::sync::Arc;

use ashlar_layout::ids::DeviceNo;
use ashlar_layout::manifest::{Body, Manifest, Stripe};
use ashlar_layout::message::Reply;
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::call::{Action, Answer, CallId, Calls, Event, Leftover, Machine, sooner};
use crate::common::{Common, forget};
use crate::error::Fault;
use crate::stripe_read::StripeRead;
use crate::tree::decode_node;

#[derive(Debug)]
struct Open {
    call: CallId,
    device: DeviceNo,
    until: Instant,
}

/// The state machine that frees shards.
#[derive(Debug)]
pub struct Free {
    common: Arc<Common>,
    calls: Calls,
    reads_lane: u32,
    /// Stripes to free.
    stripes: VecDeque<Stripe>,
    /// Shards of the stripe in front that were asked to be deleted.
    next_shard: usize,
    /// Tree nodes to read, then to free.
    nodes: VecDeque<Stripe>,
    reading: Option<(StripeRead, Stripe)>,
    open: Vec<Open>,
    leftover: Leftover,
}

impl Free {
    /// Frees `stripes`, and what the tree's `nodes` list, and those. Calls have the numbers `lane`
    /// and `lane + 1`.
    pub fn new(
        common: Arc<Common>,
        lane: u32,
        stripes: impl IntoIterator<Item = Stripe>,
        nodes: Vec<Stripe>,
    ) -> Free {
        Free {
            common,
            calls: Calls::new(lane),
            reads_lane: lane + 1,
            stripes: stripes.into_iter().collect(),
            next_shard: 0,
            nodes: nodes.into(),
            reading: None,
            open: Vec::new(),
            leftover: Leftover::default(),
        }
    }

    /// Frees what an object's body names.
    pub fn body(common: Arc<Common>, lane: u32, body: Body) -> Free {
        match body {
            Body::Inline => Free::new(common, lane, [], Vec::new()),
            Body::Stripes(stripes) => Free::new(common, lane, stripes, Vec::new()),
            Body::Tree(nodes) | Body::Parts { nodes, .. } => Free::new(common, lane, [], nodes),
        }
    }

    /// Frees the lists of an object's stripes, which are another object's now.
    pub fn lists(common: Arc<Common>, lane: u32, body: Body) -> Free {
        match body {
            Body::Inline | Body::Stripes(_) => Free::new(common, lane, [], Vec::new()),
            Body::Tree(nodes) | Body::Parts { nodes, .. } => {
                Free::new(common, lane, nodes, Vec::new())
            }
        }
    }

    /// Frees what a change displaced, if it names anything that `kept`, which is visible now, does not: that is
    /// not freed, whatever the head says.
    pub fn displaced(
        common: Arc<Common>,
        lane: u32,
        displaced: Option<Manifest>,
        kept: Option<&Body>,
    ) -> Option<Free> {
        let body = displaced?.body;
        let body = match kept {
            Some(kept) => body.without(kept)?,
            None => body,
        };
        Some(Free::body(common, lane, body))
    }

    fn advance(&mut self, now: Instant, out: &mut Vec<Action>) {
        loop {
            self.free_stripes(now, out);
            if !self.stripes.is_empty() || self.open.len() >= self.common.tuning().frees {
                return;
            }
            if let Some((read, _)) = &self.reading {
                if !read.is_answered() {
                    return;
                }
                self.take_node();
            } else if let Some(node) = self.nodes.pop_front() {
                self.read_node(now, node, out);
            } else {
                return;
            }
        }
    }

    fn read_node(&mut self, now: Instant, node: Stripe, out: &mut Vec<Action>) {
        let want = 0..node.data_len;
        match StripeRead::new(self.common.clone(), self.reads_lane, node.clone(), want) {
            Ok(mut read) => {
                read.on_event(now, Event::Start, out);
                self.reading = Some((read, node));
                // Numbers of calls must not come twice.
                self.reads_lane += 1;
            }
            Err(_) => self.leftover.unread_nodes += 1,
        }
    }

    fn take_node(&mut self) {
        let Some((read, node)) = self.reading.take() else {
            return;
        };
        let listed = read
            .into_outcome()
            .and_then(Result::ok)
            .map(|part| decode_node(&part));
        match listed {
            Some(Ok(stripes)) => {
                self.stripes.extend(stripes);
                self.stripes.push_back(node);
            }
            // It stays: it is all that names its stripes.
            _ => self.leftover.unread_nodes += 1,
        }
    }

    fn free_stripes(&mut self, now: Instant, out: &mut Vec<Action>) {
        let (most, give_up) = (self.common.tuning().frees, self.common.tuning().give_up);
        while let Some(stripe) = self.stripes.front() {
            let Ok(devices) = self.common.devices_of(stripe) else {
                self.leftover.unfreed += stripe.shard_crcs.len() as u64;
                self.stripes.pop_front();
                continue;
            };
            while self.next_shard < devices.len() {
                if self.open.len() >= most {
                    return;
                }
                let device = devices[self.next_shard];
                let call = self.calls.next();
                out.push(Action::Send {
                    call,
                    to: device,
                    request: forget(device, stripe.id, self.next_shard),
                    payload: Bytes::new(),
                    payload_crc: None,
                });
                self.open.push(Open {
                    call,
                    device,
                    until: now + give_up,
                });
                self.next_shard += 1;
            }
            self.next_shard = 0;
            self.stripes.pop_front();
        }
    }

    fn on_answer(&mut self, now: Instant, call: CallId, answer: Answer) {
        let Some(at) = self.open.iter().position(|o| o.call == call) else {
            return;
        };
        let open = self.open.swap_remove(at);
        if !matches!(
            answer,
            Answer::Reply {
                reply: Reply::Done,
                ..
            }
        ) {
            self.leftover.unfreed += 1;
            self.common
                .health()
                .failed(now, open.device, &Fault::of(answer));
        }
    }
}

impl Machine for Free {
    fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Answer { call, answer } => {
                if let Some((read, _)) = &mut self.reading
                    && call.lane + 1 == self.reads_lane
                {
                    read.on_event(now, Event::Answer { call, answer }, out);
                } else {
                    self.on_answer(now, call, answer);
                }
            }
            Event::Deadline => {
                if let Some((read, _)) = &mut self.reading {
                    read.on_event(now, Event::Deadline, out);
                }
                let overdue = self.open.extract_if(.., |o| o.until <= now).count();
                self.leftover.unfreed += overdue as u64;
            }
            _ => {}
        }
        self.advance(now, out);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let reading = self
            .reading
            .as_ref()
            .and_then(|(read, _)| read.next_deadline());
        sooner(reading, self.open.iter().map(|o| o.until).min())
    }

    fn is_answered(&self) -> bool {
        true
    }

    fn leftover(&self) -> Leftover {
        self.leftover
    }

    fn is_settled(&self) -> bool {
        self.stripes.is_empty()
            && self.nodes.is_empty()
            && self.reading.is_none()
            && self.open.is_empty()
    }
}
