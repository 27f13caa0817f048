//! Random walks through a model, for what lies too deep to be met by going through everything.
//!
//! The same seed gives the same walks. What goes on in a healthy chain is chosen more often than faults,
//! time, and clients' second thoughts: else most walks would be over before anything has happened.

use stateright::Chooser;

use crate::act::Act;
use crate::chain::Chain;
use crate::world::World;

/// Chooses what happens next.
#[derive(Clone, Debug)]
pub struct Walker;

fn weight(act: &Act) -> u64 {
    match act {
        Act::Deliver { .. }
        | Act::Flush { .. }
        | Act::Index { .. }
        | Act::Arrive { .. }
        | Act::Restart { .. } => 8,
        Act::Timer { .. } | Act::Witness { .. } | Act::LookUp { .. } | Act::Begin { .. } => 4,
        Act::Propose { .. } | Act::Desire { .. } | Act::Tick => 3,
        Act::Crash { .. }
        | Act::Break { .. }
        | Act::Drop { .. }
        | Act::Repeat { .. }
        | Act::Mend { .. }
        | Act::GiveUp { .. }
        | Act::Stray { .. } => 1,
    }
}

impl Chooser<Chain> for Walker {
    type State = u64;

    fn new_state(&self, seed: u64) -> u64 {
        seed
    }

    fn choose_initial_state(&self, _: &mut u64, _: &[World]) -> usize {
        0
    }

    fn choose_action(&self, seed: &mut u64, _: &World, acts: &[Act]) -> usize {
        *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let all: u64 = acts.iter().map(weight).sum();
        let mut left = mixed % all.max(1);
        for (nth, act) in acts.iter().enumerate() {
            let weight = weight(act);
            if left < weight {
                return nth;
            }
            left -= weight;
        }
        0
    }
}
