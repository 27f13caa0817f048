//! Waking a reactor from another thread.

use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Wakes the reactor that made it, from any thread: the loop delivers [`crate::Event::Woken`].
/// Several wakes before the loop gets there are one.
#[derive(Clone, Debug)]
pub struct Waker {
    eventfd: Arc<OwnedFd>,
}

impl Waker {
    pub(crate) fn new(eventfd: Arc<OwnedFd>) -> Waker {
        Waker { eventfd }
    }

    /// Wakes the loop. Harmless when the reactor is gone.
    pub fn wake(&self) {
        // A write to an eventfd fails only when its counter is full, and then the loop is
        // about to wake anyway.
        let _ = rustix::io::write(&*self.eventfd, &1u64.to_ne_bytes());
    }
}
