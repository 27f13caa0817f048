//! Drives one operation: carries out what its state machine asks for, and hands it what happens.
//!
//! Invariants:
//! - the machine gets each answer once, and its deadline when the time has come;
//! - an operation that is dropped before its end is aborted, and what is left to do for it (shards
//!   to be freed, a question that was asked) is done behind, as is what an answered one left.

use std::sync::Arc;

use ashlar_cluster_object::{Action, Event, Machine};
use ashlar_layout::frame::Haste;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep_until;

use crate::inner::Inner;
use crate::mailbox::{Arrived, Mailbox};

/// An operation under way.
pub(crate) struct Drive<M: Machine + Send + 'static> {
    inner: Arc<Inner>,
    mailbox: Arc<Mailbox>,
    actions: Vec<Action>,
    machine: Option<M>,
    permit: Option<OwnedSemaphorePermit>,
    /// Whether what it asks may wait.
    haste: Haste,
    /// Nobody waits for it any more.
    is_tail: bool,
}

impl<M: Machine + Send + 'static> Drive<M> {
    /// Starts `machine`.
    pub(crate) fn start(
        inner: Arc<Inner>,
        machine: M,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Drive<M> {
        Drive::hasting(inner, machine, permit, Haste::Foreground)
    }

    /// Starts `machine`, whose requests may wait or not.
    pub(crate) fn hasting(
        inner: Arc<Inner>,
        machine: M,
        permit: Option<OwnedSemaphorePermit>,
        haste: Haste,
    ) -> Drive<M> {
        let mut drive = Drive {
            inner,
            mailbox: Arc::default(),
            actions: Vec::new(),
            machine: Some(machine),
            permit,
            haste,
            is_tail: false,
        };
        drive.event(Event::Start);
        drive
    }

    /// The machine. It is only taken away when the drive is dropped.
    pub(crate) fn machine(&self) -> Option<&M> {
        self.machine.as_ref()
    }

    /// Lets `f` do something with the machine that may ask for actions.
    pub(crate) fn with<R>(
        &mut self,
        f: impl FnOnce(&mut M, ashlar_layout::time::Instant, &mut Vec<Action>) -> R,
    ) -> Option<R> {
        let now = self.inner.now();
        let result = f(self.machine.as_mut()?, now, &mut self.actions);
        self.carry_out();
        Some(result)
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.with(|machine, now, out| machine.on_event(now, event, out));
    }

    fn carry_out(&mut self) {
        self.inner
            .carry_out(&mut self.actions, &self.mailbox, self.haste);
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.machine.as_ref().is_none_or(M::is_answered)
    }

    fn is_settled(&self) -> bool {
        self.machine.as_ref().is_none_or(M::is_settled)
    }

    /// Waits for the next thing that happens, and hands it over. May be dropped at any time.
    pub(crate) async fn step(&mut self) {
        let deadline = self.machine.as_ref().and_then(M::next_deadline);
        let arrived = match deadline {
            None => Some(self.mailbox.take().await),
            Some(deadline) => {
                let at = self.inner.at(deadline);
                tokio::select! {
                    biased;
                    arrived = self.mailbox.take() => Some(arrived),
                    () = sleep_until(at) => None,
                }
            }
        };
        match arrived {
            Some(Arrived {
                call,
                from,
                epoch,
                answer,
            }) => {
                let came = answer
                    .newer_map()
                    .map(|map| self.inner.common.learn_json(map));
                // A question that any map will do for is answered without a word about it: without this, whoever
                // has an old map might go on asking devices that have nothing to do with the partition any more.
                if came == Some(false) || epoch > self.inner.common.map().epoch {
                    self.inner.refresh_map(from);
                }
                self.event(Event::Answer { call, answer });
            }
            None => self.event(Event::Deadline),
        }
    }

    /// Runs until the caller can be answered.
    pub(crate) async fn until_answered(&mut self) {
        while !self.is_answered() {
            self.step().await;
        }
    }
}

impl<M: Machine + Send + 'static> Drop for Drive<M> {
    fn drop(&mut self) {
        if !self.is_settled() && !self.is_tail {
            self.event(Event::Abort);
        }
        let Some(machine) = self.machine.take() else {
            return;
        };
        if machine.is_settled() {
            self.inner.left(machine.leftover());
            return;
        }
        // A tail that is dropped before its end is dropped by its runtime, which ends.
        let runtime = if self.is_tail {
            None
        } else {
            tokio::runtime::Handle::try_current().ok()
        };
        let Some(runtime) = runtime else { return };
        let mut tail = Drive {
            inner: self.inner.clone(),
            mailbox: self.mailbox.clone(),
            actions: Vec::new(),
            machine: Some(machine),
            permit: self.permit.take(),
            haste: self.haste,
            is_tail: true,
        };
        self.inner.tail_begins();
        let ended = Ended(self.inner.clone());
        runtime.spawn(async move {
            let _ended = ended;
            while !tail.is_settled() {
                tail.step().await;
            }
        });
    }
}

/// Counts a tail for as long as it lives, whether it ends or its runtime does.
struct Ended(Arc<Inner>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.tail_ends();
    }
}
