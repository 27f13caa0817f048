//! A change that is asked of a partition's head, and what it displaced, freed behind it.
//!
//! Invariants:
//! - nothing is freed before the change is committed;
//! - once the head was asked there is no way back: giving it up stops neither the question nor the freeing.

use ashlar_layout::time::Instant;

use crate::ask::Ask;
use crate::call::{Action, Event, Leftover, Machine, sooner};
use crate::free::Free;

/// The number of the question's calls,
pub(crate) const ASK_LANE: u32 = 0;
/// and of those of what is freed.
pub(crate) const FREE_LANE: u32 = 1;

/// A change under way, and what is left to do behind it.
#[derive(Debug)]
pub(crate) struct Change {
    ask: Ask,
    free: Option<Free>,
}

impl Change {
    /// Of a question with calls of the number [`ASK_LANE`].
    pub(crate) fn new(ask: Ask) -> Change {
        Change { ask, free: None }
    }

    /// The question.
    pub(crate) fn ask(&self) -> &Ask {
        &self.ask
    }

    /// It is committed: this is freed.
    pub(crate) fn free(&mut self, now: Instant, free: Option<Free>, out: &mut Vec<Action>) {
        self.free = free;
        if let Some(free) = &mut self.free {
            free.on_event(now, Event::Start, out);
        }
    }

    /// Hands an event to what it is for.
    pub(crate) fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        let of_ask = match &event {
            Event::Answer { call, .. } => call.lane == ASK_LANE,
            Event::Abort => return,
            _ => true,
        };
        if of_ask {
            self.ask.on_event(now, event.clone(), out);
        }
        if let Some(free) = &mut self.free
            && (!of_ask || matches!(event, Event::Deadline))
        {
            free.on_event(now, event, out);
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        sooner(
            self.ask.next_deadline(),
            self.free.as_ref().and_then(Free::next_deadline),
        )
    }

    pub(crate) fn leftover(&self) -> Leftover {
        self.free
            .as_ref()
            .map_or(Leftover::default(), Machine::leftover)
    }

    /// Whether nothing is left to be freed.
    pub(crate) fn is_freed(&self) -> bool {
        self.free.as_ref().is_none_or(Free::is_settled)
    }
}
