//! A handler made of a closure, with a time limit: a test that waits for what never comes fails.

use std::time::Duration;

use ashlar_node_reactor::{Event, Handler, Instant, Io, Options, Reactor, monotonic};

/// What a test's closure may set.
pub struct Control {
    /// When it wants `Event::Deadline`.
    pub deadline: Option<Instant>,
    /// Whether the test is over.
    pub done: bool,
    /// Batches so far.
    #[allow(dead_code, reason = "not every test file counts them")]
    pub batches: u64,
    limit: Instant,
}

/// The handler.
pub struct Closure<F> {
    act: F,
    control: Control,
}

impl<F: FnMut(Instant, Event<'_>, &mut Io, &mut Control)> Handler for Closure<F> {
    fn on_event(&mut self, now: Instant, event: Event<'_>, io: &mut Io) {
        assert!(
            now < self.control.limit,
            "the test's time is over; the last event is {event:?}"
        );
        if matches!(event, Event::Deadline) && self.control.deadline.is_none_or(|at| now < at) {
            return;
        }
        (self.act)(now, event, io, &mut self.control);
    }

    fn on_batch(&mut self, _now: Instant, _io: &mut Io) {
        self.control.batches += 1;
    }

    fn next_deadline(&self) -> Option<Instant> {
        Some(
            self.control
                .deadline
                .map_or(self.control.limit, |at| at.min(self.control.limit)),
        )
    }

    fn finished(&self) -> bool {
        self.control.done
    }
}

/// Runs a reactor with `act` until that is done.
pub fn run(
    reactor: &mut Reactor,
    act: impl FnMut(Instant, Event<'_>, &mut Io, &mut Control),
) -> Control {
    let limit = monotonic() + Duration::from_secs(30);
    let control = Control {
        deadline: None,
        done: false,
        batches: 0,
        limit,
    };
    let mut handler = Closure { act, control };
    reactor.run(&mut handler).expect("the ring works");
    handler.control
}

/// A small reactor, listening on a port of the kernel's choice.
#[allow(dead_code, reason = "not every test file listens")]
pub fn listening(options: Options) -> Reactor {
    let listen = Some("127.0.0.1:0".parse().expect("an address"));
    Reactor::new(Options { listen, ..options }).expect("a reactor")
}

/// Bytes that tell their place: any shift or swap shows.
#[allow(dead_code, reason = "not every test file needs it")]
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
