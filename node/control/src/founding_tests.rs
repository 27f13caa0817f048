//! Who gives its vote at the founding counts from then on; and what keeps it from giving it.

use openraft::{CommittedLeaderId, LogId};
use tokio::net::{TcpListener, TcpStream};

use crate::error::{ControlError, WireError};
use crate::host::System;
use crate::link::Link;
use crate::rig::{DEADLINE, Rig};
use crate::types::Vote;
use crate::wire::{self, Answer, Call, Hello, Promise, Who};

/// The entry of the founder's first reign at this place of the log; the list of members is at 0.
fn entry(index: u64) -> LogId<u64> {
    let leader = match index {
        0 => CommittedLeaderId::default(),
        _ => CommittedLeaderId::new(1, 1),
    };
    LogId::new(leader, index)
}

/// Says in the founder's place what it has promised, to whoever asks.
async fn founder(listener: TcpListener, promise: Promise) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(converse(stream, promise));
    }
}

async fn converse(mut stream: TcpStream, promise: Promise) -> Result<(), WireError> {
    while let Some(header) = wire::read_header(&mut stream, 1 << 20).await? {
        let payload = wire::read_payload(&mut stream, &header).await?;
        let answer = match wire::decode(&payload)? {
            Call::Hello(_) => Answer::Welcome { member: 1 },
            Call::Ping => Answer::Pong {
                blank: false,
                last: promise.last.map(|it| it.index),
                promise: Some(promise),
            },
            call => panic!("the founder is asked for {call:?}"),
        };
        let frame = wire::encode(header.request, ashlar_layout::ids::Epoch(0), &answer)?;
        wire::write(&mut stream, &frame).await?;
    }
    Ok(())
}

/// What the second of three members, which has nothing stored, answers to the founder, which asks for its vote in its
/// first term and has promised this to others; none: it does not answer any more. And whether it counts then.
fn asked(promise: Option<Promise>) -> (Answer, bool) {
    let mut rig = Rig::new(3);
    (1..3).for_each(|i| rig.start(i));
    let answer = rig.run(async {
        if let Some(promise) = promise {
            let listener = TcpListener::bind(rig.address(0)).await.unwrap();
            tokio::spawn(founder(listener, promise));
        }
        let hello = Hello {
            cluster: rig.map.cluster,
            who: Who::Member(1),
            to: Some(2),
        };
        let address = rig.address(1);
        let link = Link::open(&System, &address, hello, DEADLINE);
        let request = openraft::raft::VoteRequest {
            vote: Vote::new(1, 1),
            last_log_id: Some(entry(0)),
        };
        let link = link.await.unwrap();
        link.call(&Call::Vote(request), DEADLINE).await.unwrap().1
    });
    (answer, rig.server(1).counts())
}

fn promise(vote: Vote, last: u64) -> Option<Promise> {
    Some(Promise {
        vote: Some(vote),
        last: Some(entry(last)),
        counts: true,
    })
}

#[test]
fn who_votes_at_the_founding_counts() {
    let (answer, counts) = asked(promise(Vote::new(1, 1), 0));
    let granted = matches!(&answer, Answer::Vote(response) if response.vote_granted);
    assert!(granted && counts, "{answer:?}, counts: {counts}");
}

#[test]
fn nobody_votes_who_may_have_lost_what_was_agreed_on() {
    let cases = [
        (
            "the founder has led already",
            promise(Vote::new_committed(1, 1), 1),
        ),
        ("something stands in its log", promise(Vote::new(1, 1), 1)),
        ("it has promised more since", promise(Vote::new(2, 1), 0)),
        ("it does not say", None),
    ];
    for (what, promise) in cases {
        let (answer, counts) = asked(promise);
        let refused = matches!(answer, Answer::Failed(ControlError::Recovering));
        assert!(refused && !counts, "{what}: {answer:?}, counts: {counts}");
    }
}
