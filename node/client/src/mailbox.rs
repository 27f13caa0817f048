//! Where the answers to one operation's calls arrive.
//!
//! Invariants:
//! - it holds no more answers than calls were made: each call is answered at most once;
//! - one task waits on it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use ashlar_cluster_object::{Answer, CallId};
use ashlar_layout::ids::{DeviceNo, Epoch};
use tokio::sync::Notify;

/// An answer, with what it answers, and whose it is.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) call: CallId,
    pub(crate) from: DeviceNo,
    /// The map that the node works with; 0 if it is not the node that answers.
    pub(crate) epoch: Epoch,
    pub(crate) answer: Answer,
}

#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    answers: Mutex<VecDeque<Arrived>>,
    arrived: Notify,
}

impl Mailbox {
    pub(crate) fn put(&self, arrived: Arrived) {
        self.answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(arrived);
        self.arrived.notify_one();
    }

    fn pop(&self) -> Option<Arrived> {
        self.answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    /// The next answer. May be dropped at any time: nothing is lost.
    pub(crate) async fn take(&self) -> Arrived {
        loop {
            if let Some(answer) = self.pop() {
                return answer;
            }
            self.arrived.notified().await;
        }
    }
}
