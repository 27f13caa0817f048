//! Objects that are replaced while they are looked at, and what cannot be seen of others.
//!
//! Invariant: a pass that has nothing unread came by every stripe that an object named all the while: whoever counts
//! what nobody asks for relies on that ([`crate::census`]).

use super::{Audit, Doing, Looked};
use crate::record::{Item, Pass};

/// So often an object is looked at anew that is replaced each time.
const REPLACED_MAX: u32 = 8;

impl Audit {
    /// It is another version now, with stripes that it may have had before: tags that were set, an upload that ended.
    pub(super) fn replaced(&mut self, item: Item) {
        self.doing = Doing::Nothing;
        self.record.today.tally.changed += 1;
        let Some(open) = self.open.as_mut().filter(|open| open.item.is_of(&item)) else {
            return self.unread("another object came in its place");
        };
        open.replaced += 1;
        if open.replaced > REPLACED_MAX {
            // What was put since the pass began was written since, too: nobody has to ask for it.
            let begun = self.record.pass.as_ref().map(|pass| pass.begun_ms);
            if begun.is_some_and(|begun| item.modified_ms > begun) {
                return self.behind_open();
            }
            let why = format!("it was replaced {REPLACED_MAX} times while it was looked at");
            return self.unread(&why);
        }
        (open.item, open.done, open.whole, open.tries) = (item, 0, true, 0);
    }
}

/// What a list of stripes named is not known any more if it is lost.
pub(super) fn note_hidden(pass: &mut Pass, item: &Item, looked: &Looked) {
    if looked.lists && looked.is_lost() {
        let (bucket, key, stripe) = (&item.bucket, &item.key, looked.stripe);
        pass.note_unread(&format!(
            "ashlar://{bucket}/{key}: stripe {stripe} is lost, and with it the list of those that it named"
        ));
    }
}
