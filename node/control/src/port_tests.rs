//! What a member's port takes from strangers: damaged frames, large ones, other clusters, other members.

use ashlar_layout::frame::{FRAME_HEADER_LEN, FrameHeader, Opcode};
use ashlar_layout::ids::{ClusterId, Epoch};
use ashlar_layout::limits::FRAME_PAYLOAD_MAX;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::error::{ControlError, WireError};
use crate::host::System;
use crate::link::{Link, LinkError};
use crate::rig::{DEADLINE, Rig, turn};
use crate::wire::{self, Answer, Call, Hello, Who};

fn hello(rig: &Rig) -> Hello {
    Hello {
        cluster: rig.map.cluster,
        who: Who::Client,
        to: Some(1),
    }
}

/// What the member answers to these bytes, sent after `before`; and that the connection ends then.
async fn answer(rig: &Rig, before: Option<&Call>, bytes: &[u8]) -> ControlError {
    let mut stream = TcpStream::connect(rig.address(0)).await.unwrap();
    if let Some(call) = before {
        let frame = wire::encode(1, Epoch(0), call).unwrap();
        wire::write(&mut stream, &frame).await.unwrap();
        let welcome = receive(&mut stream).await.unwrap();
        assert!(
            matches!(welcome, Answer::Welcome { member: 1 }),
            "{welcome:?}"
        );
    }
    stream.write_all(bytes).await.unwrap();
    let answer = receive(&mut stream).await.unwrap();
    let end = receive(&mut stream).await;
    assert!(matches!(end, Err(WireError::Closed)), "{end:?}");
    match answer {
        Answer::Failed(error) => error,
        other => panic!("{other:?}"),
    }
}

async fn receive(stream: &mut TcpStream) -> Result<Answer, WireError> {
    let header = wire::read_header(stream, FRAME_PAYLOAD_MAX).await?;
    let header = header.ok_or(WireError::Closed)?;
    wire::decode(&wire::read_payload(stream, &header).await?)
}

#[test]
fn damaged_and_large_frames_end_the_connection_and_nothing_else() {
    let rig = Rig::founded(1);
    let hello = Call::Hello(hello(&rig));
    let ping = wire::encode(2, Epoch(0), &Call::Ping).unwrap();
    // Every bit of a call's frame matters, but for the header's own reserved part, which its CRC covers too.
    for at in (0..ping.len()).step_by(5) {
        let mut bad = ping.clone();
        bad[at] ^= 0x10;
        let error = rig.run(answer(&rig, Some(&hello), &bad));
        assert!(
            matches!(error, ControlError::BadFrame(_)),
            "byte {at}: {error}"
        );
    }
    // A header that announces more than is allowed is refused before a byte of it has come.
    let large = |len: usize| {
        let mut header = FrameHeader::new(Opcode::Control, 2, Epoch(0), &[], len, 0).unwrap();
        header.payload_len = u32::try_from(len).unwrap();
        header.encode()
    };
    let error = rig.run(answer(
        &rig,
        Some(&hello),
        &large(FRAME_PAYLOAD_MAX as usize),
    ));
    assert!(error.to_string().contains("at most"), "{error}");
    // Before the hello even less is.
    let error = rig.run(answer(&rig, None, &large(5000)));
    assert!(error.to_string().contains("at most"), "{error}");
    // A frame of the data path.
    let header = FrameHeader::new(Opcode::Request, 2, Epoch(0), b"abc", 0, 0).unwrap();
    let error = rig.run(answer(&rig, Some(&hello), &header.encode()));
    assert!(
        error.to_string().contains("not a frame of the control"),
        "{error}"
    );
    let error = rig.run(answer(&rig, None, &[b'G'; FRAME_HEADER_LEN]));
    assert!(error.to_string().contains("not a frame"), "{error}");
    assert_eq!(rig.change(), Epoch(2), "others were not disturbed");
}

#[test]
fn what_arrived_whole_but_says_nothing_does_not_end_the_connection() {
    let rig = Rig::founded(1);
    rig.run(async {
        let mut stream = TcpStream::connect(rig.address(0)).await.unwrap();
        let frames = [
            wire::encode(1, Epoch(0), &Call::Hello(hello(&rig))).unwrap(),
            wire::encode(2, Epoch(0), &serde_json::json!({"dance": 3})).unwrap(),
            wire::encode(3, Epoch(0), &Call::Hello(hello(&rig))).unwrap(),
            wire::encode(4, Epoch(0), &Call::Ping).unwrap(),
        ];
        for frame in &frames {
            wire::write(&mut stream, frame).await.unwrap();
        }
        assert!(matches!(
            receive(&mut stream).await,
            Ok(Answer::Welcome { .. })
        ));
        for _ in 0..2 {
            let answer = receive(&mut stream).await.unwrap();
            let bad = matches!(answer, Answer::Failed(ControlError::BadRequest(_)));
            assert!(bad, "{answer:?}");
        }
        let pong = receive(&mut stream).await.unwrap();
        assert!(
            matches!(pong, Answer::Pong { blank: false, .. }),
            "{pong:?}"
        );
    });
}

#[test]
fn who_belongs_elsewhere_is_refused_first_of_all() {
    let rig = Rig::founded(1);
    let ours = rig.map.cluster;
    let theirs = ClusterId([1; 16]);
    let cases = [
        (
            Hello {
                cluster: theirs,
                who: Who::Member(77),
                to: Some(9),
            },
            ControlError::OtherCluster { ours, theirs },
        ),
        (
            Hello {
                to: Some(2),
                ..hello(&rig)
            },
            ControlError::OtherMember { ours: 1, theirs: 2 },
        ),
        (
            Hello {
                who: Who::Member(4),
                ..hello(&rig)
            },
            ControlError::OtherMember { ours: 1, theirs: 4 },
        ),
        (
            Hello {
                who: Who::Member(1),
                ..hello(&rig)
            },
            ControlError::OtherMember { ours: 1, theirs: 1 },
        ),
    ];
    for (hello, want) in cases {
        let refused = rig.run(Link::open(&System, &rig.address(0), hello, DEADLINE));
        let Err(LinkError::Refused(error)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(error, want);
    }
    let change = Call::Change {
        expected: Epoch(1),
        change: turn(&rig.map, 1),
    };
    let bytes = wire::encode(1, Epoch(0), &change).unwrap();
    let error = rig.run(answer(&rig, None, &bytes));
    assert_eq!(error, ControlError::NoHello);
    assert_eq!(rig.epoch(0), Epoch(1));
}

#[test]
fn only_members_take_part_in_the_consensus() {
    let rig = Rig::founded(1);
    let answer = rig.run(async {
        let link = Link::open(&System, &rig.address(0), hello(&rig), DEADLINE)
            .await
            .unwrap();
        let vote = openraft::Vote::new(99, 3);
        let last_log_id = None;
        let request = openraft::raft::VoteRequest { vote, last_log_id };
        link.call(&Call::Vote(request), DEADLINE).await.unwrap().1
    });
    let refused = matches!(answer, Answer::Failed(ControlError::NotForYou));
    assert!(refused, "{answer:?}");
}
