//! Looking at the index itself: whether its slots point to where records can be. [`crate::audit`] says when.
//!
//! Invariants:
//! - What is gone through in one event is [`SLOTS_MAX`] slots or somewhat more: a core serves others meanwhile.
//! - Where it goes on is a hash, so that tables which grow or shrink between two events change nothing of it: each slot
//!   that is there all the time is come by once.
//!
//! [`SLOTS_MAX`]: crate::audit::SLOTS_MAX

use ashlar_layout::extent::ExtentKind;
use ashlar_layout::ids::ExtentNo;

use crate::api::Memory;
use crate::audit::{Job, Step};
use crate::engine::Engine;
use crate::error::{FindingKind, extent_finding};
use crate::extents::State;
use crate::index::UNIT;

impl<M: Memory> Engine<M> {
    /// Looks at a part of the index, and says where the next one begins.
    pub(crate) fn look_at_index(&self, job: &mut Job<M::Buf>) -> u64 {
        let Step::Index(from) = job.step else {
            return u64::MAX;
        };
        let device = self.device;
        if from == 0 {
            // With what each extent's table comes to, this says that no slot is left that none names.
            let counted = self.extents.iter().map(|(_, extent)| extent.live);
            let counted: u64 = counted.map(u64::from).sum();
            if counted != self.index.len() {
                let size = self.geometry.device_size;
                job.suspect(extent_finding(FindingKind::Astray, device, 0, size));
            }
        }
        let to = self.index.walk_to(from, self.audit.most.1);
        let block_size = u64::from(self.geometry.block_size);
        let (extent_size, count) = (self.geometry.extent_size, self.extents.count());
        for (_, candidate) in self.index.walk(from, to) {
            job.slots += 1;
            let at = candidate.block.saturating_mul(block_size);
            let no = u32::try_from(at / extent_size).ok();
            let no = no.filter(|no| *no < count).map(ExtentNo);
            // Its length is known up to a unit.
            let least = u64::from(candidate.units.max(1) - 1) * UNIT;
            if !no.is_some_and(|no| self.is_possible(no, at, least)) {
                let len = u64::from(candidate.units) * UNIT;
                job.suspect(extent_finding(FindingKind::Astray, device, at, len));
            }
        }
        to
    }

    /// Whether a record of so many bytes or more can stand there.
    fn is_possible(&self, no: ExtentNo, at: u64, least: u64) -> bool {
        let extent = self.extents.get(no);
        let data = match extent.state {
            State::Free => false,
            State::Quarantined => true,
            State::Open | State::Sealed => extent.kind == Some(ExtentKind::Data),
        };
        data && at >= self.geometry.records_start(no)
            && at.saturating_add(least) < self.geometry.extent_end(no)
    }
}
