//! The founding: how the members come to agree on who they are, once.
//!
//! Invariants:
//! - one member founds, the one with the lowest number, and only while it and every other member say that they have
//!   nothing stored: so a member that lost its disk never founds a second cluster beside the first;
//! - a member that has nothing stored does not stand for election, and votes for nobody but the founder at the founding
//!   ([`crate::member::Member`]), and only if every other one says that it has no entry beyond the list of members, and
//!   has promised nobody newer anything: then nothing was ever agreed on, and with this vote it counts;
//! - one that missed this is fed by the leader, and counts when it holds all that was ever committed;
//! - before it counts it acknowledges nothing to a leader that is older than the newest vote of any other member, and
//!   nothing at all until every other one has told it its vote.
//!
//! Together they keep consensus safe when one member loses its disk. What it had acknowledged stands in the log of one
//! of the others, and only who has it there can be elected without the lost one's vote. What it had promised, to follow
//! no leader older than one, is promised by whoever asked for it as well: by the candidate that it voted for, by the
//! leader whose entries it took. So it has to ask all of them, not only a majority: the one who does not answer may be
//! the only one who knows. And what was agreed on is no newer than the newest entry of any of them: a leader that goes
//! on after a restart tells of old commits first.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::member::{Floor, Member};
use crate::types::{MemberId, Vote};
use crate::wire::Promise;

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
            .all(|answer| answer.is_some_and(|it| it.blank));
        if all_blank && member.count_in().await {
            // Refused only if it was fed meanwhile; then the next round ends this.
            let _ = member.raft.0.initialize(member.raft_members()).await;
            continue;
        }
        tokio::time::sleep(member.timing.heartbeat).await;
    }
}

impl Member {
    /// What every other member has promised, by their numbers; none if one of them does not say it.
    async fn promises(&self) -> Option<BTreeMap<u32, Promise>> {
        let others = self.look_around().await.into_iter();
        others.map(|(id, it)| Some((id, it?.promise?))).collect()
    }

    /// Whether every other member says, now, that it has nothing but the list of members in its log, and has promised
    /// nobody newer anything than the founder, whose vote this is: then nothing was agreed on before this member had
    /// started. If there is more, this member knows from now on whom it may follow.
    pub(crate) async fn nothing_agreed(&self, vote: &Vote) -> bool {
        let Some(promises) = self.promises().await else {
            return false;
        };
        // One that has lost its disk since it asked knows no more what it asks for.
        let candidate = u32::try_from(vote.leader_id.node_id).ok();
        let candidate = candidate.and_then(|id| promises.get(&id)?.vote);
        let blank = promises.values().all(|it| {
            it.last.is_none_or(|last| last.index == 0)
                && it.vote.is_none_or(|promised| promised <= *vote)
        });
        let founding = blank && candidate.as_ref() == Some(vote);
        if !founding {
            self.set_floor(&promises);
        }
        founding
    }

    /// Notes whom this member may follow and what it has to hold before it counts, if that is not known yet.
    fn set_floor(&self, promises: &BTreeMap<u32, Promise>) {
        let votes = promises.values().filter_map(|promise| promise.vote);
        let vote = votes.fold(None, |newest: Option<Vote>, vote| match newest {
            Some(newest) if newest >= vote => Some(newest),
            _ => Some(vote),
        });
        let last = promises.values().filter_map(|promise| promise.last).max();
        // The first is as good as any later one: what was forgotten was so before.
        let _ = self.floor.set(Floor { vote, last });
    }
}

/// Learns whom the others follow, if this member does not know any more whom it has promised to follow itself.
pub(crate) async fn recall(member: Arc<Member>) {
    while !member.counts() && member.floor.get().is_none() {
        if let Some(promises) = member.promises().await {
            return member.set_floor(&promises);
        }
        tokio::time::sleep(member.timing.heartbeat).await;
    }
}
