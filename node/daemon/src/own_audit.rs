//! Devices that look at themselves: from the auditor's thread to the core that has the device, and back.
//!
//! Invariants:
//! - of a device one step is asked for at a time, and what nobody waits for any more is dropped when it is come upon;
//! - a core looks here once a round, at a number; it takes a lock only if something was asked for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ashlar_layout::ids::DeviceNo;
use ashlar_node_audit::device::{Answer, Devices, Seen};
use ashlar_node_engine::api::{self, Output};
use ashlar_node_engine::audit::{Audited, Step};
use ashlar_node_engine::error::EngineError;
use ashlar_node_reactor::Buf;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::core::{Core, Pending, Todo};
use crate::shared::Shared;

/// How long an answer is waited for: after that the device counts as away.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Where the answer to a step goes.
pub(crate) type Reply = oneshot::Sender<Result<Audited, EngineError>>;

/// A step that a device is to make.
struct Ask {
    device: DeviceNo,
    step: Step,
    reply: Reply,
}

/// What is asked for.
#[derive(Default)]
pub(crate) struct Asks {
    count: AtomicUsize,
    waiting: Mutex<VecDeque<Ask>>,
}

impl Asks {
    fn with<T>(&self, change: impl FnOnce(&mut VecDeque<Ask>) -> T) -> T {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut waiting);
        self.count.store(waiting.len(), Ordering::Release);
        result
    }

    fn push(&self, ask: Ask) {
        self.with(|waiting| {
            waiting.retain(|other| !other.reply.is_closed() && other.device != ask.device);
            waiting.push_back(ask);
        });
    }

    /// Takes out those that are for one of these devices.
    fn take(&self, is_ours: impl Fn(DeviceNo) -> bool) -> Vec<Ask> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        self.with(|waiting| {
            let all = std::mem::take(waiting).into_iter();
            let (ours, others) = all.partition(|ask| is_ours(ask.device));
            *waiting = others;
            Vec::from(ours)
        })
    }
}

impl Core {
    /// Takes what devices of this core are asked for.
    pub(crate) fn take_audits(&mut self) {
        let devices = &self.devices;
        let asks = self
            .shared
            .audits
            .take(|no| devices.iter().any(|device| device.no == no));
        for Ask {
            device,
            step,
            reply,
        } in asks
        {
            let found = self.devices.iter().position(|slot| slot.no == device);
            // One that does not serve is away: the reply is dropped.
            if let Some(device) = found
                && self.devices[device].is_serving()
            {
                let op = self.ops.insert(Pending::Audit(reply));
                let event = api::Event::Audit { op, step };
                self.todo.push_back(Todo::Engine { device, event });
            }
        }
    }
}

/// A step was made, or was not.
pub(crate) fn answer(reply: Reply, result: Result<Output<Buf>, EngineError>) {
    let audited = match result {
        Ok(Output::Audited(audited)) => Ok(audited),
        Err(error) => Err(error),
        // Nothing else is an answer to that.
        Ok(_) => return,
    };
    // Whoever asked may be gone.
    let _ = reply.send(audited);
}

/// The devices of this node, for the auditor.
pub(crate) struct OwnDevices(pub(crate) Arc<Shared>);

impl Devices for OwnDevices {
    type Step = Step;

    fn all(&self) -> Vec<DeviceNo> {
        let newest = self.0.newest();
        let ours = newest.map.devices.iter();
        let ours = ours.filter(|device| device.node == self.0.node);
        ours.map(|device| device.no).collect()
    }

    fn first(&self) -> Step {
        Step::Superblocks
    }

    fn behind(&self, step: Step) -> Option<Step> {
        step.behind()
    }

    async fn look(&self, device: DeviceNo, step: Step) -> Answer<Step> {
        if self.0.stopping.load(Ordering::Relaxed) {
            return Answer::Away;
        }
        let (reply, answer) = oneshot::channel();
        self.0.audits.push(Ask {
            device,
            step,
            reply,
        });
        self.0.wake();
        match timeout(ANSWER_MAX, answer).await {
            Ok(Ok(Ok(audited))) => {
                let Audited {
                    next,
                    bytes,
                    found,
                    left_out,
                } = audited;
                Answer::Seen(Seen {
                    next,
                    bytes,
                    found: found.into_iter().map(|kind| kind.name()).collect(),
                    left_out,
                })
            }
            Ok(Ok(Err(EngineError::Busy { .. }))) => Answer::Busy,
            _ => Answer::Away,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(device: u32) -> (Ask, oneshot::Receiver<Result<Audited, EngineError>>) {
        let (reply, answer) = oneshot::channel();
        let ask = Ask {
            device: DeviceNo(device),
            step: Step::Superblocks,
            reply,
        };
        (ask, answer)
    }

    #[test]
    fn each_core_takes_what_its_devices_are_asked_for() {
        let asks = Asks::default();
        assert!(asks.take(|_| true).is_empty());
        let (one, _hears) = ask(1);
        let (two, _too) = ask(2);
        asks.push(one);
        asks.push(two);
        let taken = |no| asks.take(move |device| device == DeviceNo(no)).len();
        assert_eq!((taken(3), taken(2), taken(2), taken(1)), (0, 1, 0, 1));
        assert_eq!(asks.count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_nobody_waits_for_is_dropped() {
        let asks = Asks::default();
        for _ in 0..100 {
            let (one, gone) = ask(9);
            asks.push(one);
            drop(gone);
        }
        let (one, _hears) = ask(9);
        asks.push(one);
        assert_eq!(asks.take(|_| true).len(), 1);
    }
}
