//! The format, from outside: golden images, damage of every kind, and an independent encoder.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod damage;
mod golden;
mod hostile;
mod oracle;
mod random;
mod samples;
mod versions;
