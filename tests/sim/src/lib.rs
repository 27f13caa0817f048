//! Whole clusters in one thread: the shipped nodes (reactor's handler, engine, journal, index), the shipped operations
//! of clients and the shipped decisions of the control plane, on disks, a network and clocks that are simulated. One
//! seed gives one run, always the same one.
//!
//! | module | what it is |
//! |---|---|
//! | [`plan`] | what a seed stands for |
//! | [`world`] | the agenda, and who hears of what |
//! | [`port`], [`node`] | a node's core, in place of the reactor; its process, its disks |
//! | [`disk`] | a disk that loses power, lies and rots: the one of the engine's tests |
//! | [`net`] | connections, cuts, delays |
//! | [`client`], [`work`] | operations, and what they are asked to do |
//! | `desk` | what clients put together of several operations |
//! | [`story`] | what clients have come to know |
//! | [`control`] | the control plane's decisions |
//! | [`faults`] | what goes wrong |
//! | [`judge`] | what has to hold at the end |
//! | [`moves`] | what that is of objects whose stripes were put elsewhere |

pub mod client;
pub mod control;
mod desk;
#[allow(
    missing_docs,
    clippy::should_implement_trait,
    reason = "the engine's tests own it"
)]
#[path = "../../../node/engine/tests/engine/disk.rs"]
pub mod disk;
pub mod faults;
pub mod judge;
pub mod moves;
pub mod net;
pub mod node;
pub mod plan;
pub mod port;
pub mod story;
pub mod upgrades;
pub mod work;
mod work_audit;
mod work_flows;
mod work_moves;
mod work_pair;
mod work_parts;
mod work_reads;
mod work_rewrite;
mod work_versions;
pub mod world;
