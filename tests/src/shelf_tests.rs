//! The checkers of keys with versions, checked.
