//! The founding: how the members come to agree on who they are, once.
//!
//! Invariants:
//! - one member founds, the one with the lowest number, and only while it and every other member say that they have
//!   nothing stored: so a member that lost its disk never founds a second cluster beside the first;
//! - a member that has nothing stored does not stand for election, and votes for nobody but the founder at the founding
//!   ([`crate::member::Member`]); it is fed by the leader, and counts when it holds all that was ever committed.
//!
//! Together they keep consensus safe when one member loses its disk: what it had acknowledged stands in the log of one
//! of the others, and only who has it there can be elected without the lost one's vote.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::member::Member;
use crate::types::MemberId;

/// Founds the control plane if that is this member's part; ends when there is nothing to found any more.
pub(crate) async fn found(member: Arc<Member>) {
    if member.founder() != Some(MemberId::from(member.id)) {
        return;
    }
    loop {
        match member.raft.0.is_initialized().await {
            Ok(false) => {}
            Ok(true) | Err(_) => return,
        }
        let others = member.look_around().await;
        let all_blank = others
            .values()
            .all(|answer| matches!(answer, Some((true, _))));
        if all_blank && member.store.set_counted().await.is_ok() {
            member.counted.store(true, Ordering::Release);
            member.raft.0.runtime_config().elect(true);
            // Refused only if it was fed meanwhile; then the next round ends this.
            let _ = member.raft.0.initialize(member.raft_members()).await;
            continue;
        }
        tokio::time::sleep(member.timing.heartbeat).await;
    }
}
