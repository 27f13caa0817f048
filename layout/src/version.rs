//! The versions of the formats, and the rule: a reader refuses a newer major and reads every older one.
//!
//! FORMAT.md has the history.

/// Major version of the device format. A device with a higher one is refused.
pub const FORMAT_MAJOR: u16 = 1;
/// Minor version of the device format: what was added in a way that an older reader may ignore.
pub const FORMAT_MINOR: u16 = 0;
/// Version of the roots of indexes that have had versions of objects: a program that knows none would lose them, and
/// refuses such a root.
pub const ROOT_VERSION: u16 = 2;
/// Version of all other roots: older programs read them.
pub const ROOT_VERSION_PLAIN: u16 = 1;
/// Version of the wire frames. A frame with another one is refused.
pub const WIRE_VERSION: u16 = 5;
/// Version of the journal entries, on disk and on the wire. An entry with a higher one is refused; one
/// with a lower one is read. Whether one may be *written* is for the cluster map to say: others may be older.
pub const ENTRY_VERSION: u16 = ENTRY_VERSION_RELOCATE;
/// Version of entries that name an object's bytes where they are now.
pub const ENTRY_VERSION_RELOCATE: u16 = 7;
/// Version of entries that give an object another key.
pub const ENTRY_VERSION_RENAME: u16 = 6;
/// Version of entries that change versions of objects, and hold nothing which came later.
pub const ENTRY_VERSION_LOCKS: u16 = 5;
/// Version of entries that change the partition's bounds, and hold nothing which came later.
pub const ENTRY_VERSION_BOUNDS: u16 = 3;
/// Version of entries that hold nothing which came later: older programs read them.
pub const ENTRY_VERSION_PLAIN: u16 = 2;
/// What each program reads that speaks [`WIRE_VERSION`], also one of before there was anything that says what others
/// read: that version of the wire came with these entries. So they may be written without anybody being asked.
pub const ENTRY_VERSION_LEAST: u16 = ENTRY_VERSION_LOCKS;

// Whoever raises one of the two looks whether the other can be raised as well: nodes that speak another version of the
// wire take part in nothing.
const _: () = assert!(WIRE_VERSION == 5 && ENTRY_VERSION_LEAST == 5);
