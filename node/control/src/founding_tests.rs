//! Who gives its vote at the founding counts from then on; and what keeps it from giving it.

use ashlar_layout::ids::Epoch;
use openraft::{CommittedLeaderId, LogId};
use tokio::net::{TcpListener, TcpStream};

use crate::error::{ControlError, WireError};
use crate::host::System;
use crate::link::Link;
use crate::rig::{DEADLINE, Rig};
use crate::types::Vote;
use crate::wire::{self, Answer, Call, Hello, Promise, Who};

/// What a member that is played says it has promised; none: it is an older one, which does not say.
type Says = Option<Promise>;

/// One that has promised this, and has entries up to this one of the founder's first reign; at 0 is the list of
/// members.
fn says(vote: Option<Vote>, last: Option<u64>) -> Says {
    let leader = |index| match index {
        0 => CommittedLeaderId::default(),
        _ => CommittedLeaderId::new(1, 1),
    };
    Some(Promise {
        vote,
        last: last.map(|index| LogId::new(leader(index), index)),
        counts: true,
    })
}

/// The vote that the founder asks for,
fn asked_for() -> Option<Vote> {
    Some(Vote::new(1, 1))
}

/// and what it says meanwhile.
fn founder() -> Says {
    says(asked_for(), Some(0))
}

/// Says in a member's place what it has promised, to whoever asks.
async fn play(listener: TcpListener, id: u32, says: Says) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(converse(stream, id, says));
    }
}

async fn converse(mut stream: TcpStream, id: u32, says: Says) -> Result<(), WireError> {
    while let Some(header) = wire::read_header(&mut stream, 1 << 20).await? {
        let payload = wire::read_payload(&mut stream, &header).await?;
        let last = says.and_then(|it| it.last);
        let answer = match wire::decode(&payload)? {
            Call::Hello(_) => Answer::Welcome { member: id },
            Call::Ping => Answer::Pong {
                blank: false,
                last: last.map(|it| it.index),
                promise: says,
            },
            _ => Answer::Failed(ControlError::Recovering),
        };
        let frame = wire::encode(header.request, Epoch(0), &answer)?;
        wire::write(&mut stream, &frame).await?;
    }
    Ok(())
}

/// What the second of three members, which has nothing stored, answers to the founder, which asks for its vote in its
/// first term; and whether it counts then. `first` and `third`: what the others say, if they are there.
fn asked(first: Option<Says>, third: Option<Says>) -> (Answer, bool) {
    let mut rig = Rig::new(3);
    rig.start(1);
    let answer = rig.run(async {
        for (id, says) in [(1, first), (3, third)] {
            let Some(says) = says else { continue };
            let listener = loop {
                match TcpListener::bind(rig.address(id as usize - 1)).await {
                    Ok(listener) => break listener,
                    // A connection that goes out has it for a moment.
                    Err(_) => tokio::task::yield_now().await,
                }
            };
            tokio::spawn(play(listener, id, says));
        }
        let hello = Hello {
            cluster: rig.map.cluster,
            who: Who::Member(1),
            to: Some(2),
        };
        let request = openraft::raft::VoteRequest {
            vote: Vote::new(1, 1),
            last_log_id: Some(LogId::new(CommittedLeaderId::default(), 0)),
        };
        let address = rig.address(1);
        let link = Link::open(&System, &address, hello, DEADLINE);
        let link = link.await.unwrap();
        link.call(&Call::Vote(request), DEADLINE).await.unwrap().1
    });
    (answer, rig.server(1).counts())
}

#[test]
fn who_votes_at_the_founding_counts() {
    for third in [
        says(None, None),
        says(asked_for(), None),
        says(asked_for(), Some(0)),
    ] {
        // On a machine that is busy an answer may be late; then it is asked again, as the founder does.
        let voted = (0..10).any(|_| {
            let (answer, counts) = asked(Some(founder()), Some(third));
            let granted = matches!(&answer, Answer::Vote(response) if response.vote_granted);
            assert_eq!(granted, counts, "{answer:?}");
            granted
        });
        assert!(voted, "{third:?}");
    }
}

#[test]
fn nobody_votes_who_may_have_lost_what_was_agreed_on() {
    let (leads, newer) = (Some(Vote::new_committed(1, 1)), Some(Vote::new(2, 1)));
    let blank = Some(says(None, None));
    let cases = [
        (
            "the founder leads already",
            Some(says(leads, Some(0))),
            blank,
        ),
        ("it has an entry", Some(says(asked_for(), Some(1))), blank),
        (
            "it has promised more since",
            Some(says(newer, Some(0))),
            blank,
        ),
        ("it has lost its disk since", Some(says(None, None)), blank),
        ("it does not say", Some(None), blank),
        ("it does not answer", None, blank),
        (
            "another has an entry",
            Some(founder()),
            Some(says(asked_for(), Some(1))),
        ),
        (
            "another has promised more",
            Some(founder()),
            Some(says(newer, None)),
        ),
        (
            "another follows it already",
            Some(founder()),
            Some(says(leads, None)),
        ),
        ("another does not say", Some(founder()), Some(None)),
        ("another does not answer", Some(founder()), None),
    ];
    for (what, first, third) in cases {
        let (answer, counts) = asked(first, third);
        let refused = matches!(answer, Answer::Failed(ControlError::Recovering));
        assert!(refused && !counts, "{what}: {answer:?}, counts: {counts}");
    }
}
