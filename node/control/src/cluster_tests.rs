//! Three real members: killed, restarted, wiped, raced.

use std::collections::BTreeSet;
use std::time::Duration;

use ashlar_cluster_map::{ChangeError, MapChange};
use ashlar_layout::ids::{ClusterId, DeviceNo, Epoch, NodeId, PartitionId, Term};

use crate::client::{ClientError, ControlClient};
use crate::error::ControlError;
use crate::host::System;
use crate::link::Link;
use crate::policy::{ChainReport, Verdict};
use crate::rig::{DEADLINE, Rig, TIMING, turn};
use crate::server::{ControlConfig, ControlServer, StartError};
use crate::state::Refusal;
use crate::store::StoreError;
use crate::testing;
use crate::thread::ControlThread;
use crate::token::{Token, TokenError};
use crate::wire::{Answer, Call, Hello, Who};

fn control(error: ClientError) -> ControlError {
    match error {
        ClientError::Control(error) => error,
        other => panic!("not an answer of the control plane: {other}"),
    }
}

#[test]
fn all_members_found_together_and_agree_on_the_first_map() {
    let mut rig = Rig::new(3);
    rig.start(0);
    rig.start(1);
    // Two of three could agree, but must not begin without the third.
    let waiting = rig.run(rig.client_of(0).newest_map()).unwrap_err();
    assert_eq!(control(waiting), ControlError::NotFounded);
    let waiting = rig.run(rig.client_of(1).get_map()).unwrap_err();
    assert_eq!(control(waiting), ControlError::NotFounded);
    rig.start(2);
    rig.until("the founding", |rig| {
        (0..3).all(|i| rig.epoch(i) == Epoch(1))
    });
    for i in 0..3 {
        let client = rig.client_of(i).with_patience(DEADLINE / 2);
        assert_eq!(rig.run(client.newest_map()).unwrap(), rig.map);
        let status = rig.run(client.status()).unwrap();
        assert_eq!((status.cluster, status.epoch), (rig.map.cluster, Epoch(1)));
        assert_eq!(status.doubt, None);
        assert!(status.leader.is_some());
        assert!(status.members.iter().all(|m| m.there), "{status:?}");
        assert_eq!(status.nodes.len(), 6);
    }
}

#[test]
fn a_killed_leader_is_followed_by_another_and_comes_back() {
    let mut rig = Rig::founded(3);
    assert_eq!(rig.change(), Epoch(2));
    let leader = rig.leader();
    rig.kill(leader);
    assert_eq!(rig.change(), Epoch(3));
    assert_eq!(rig.change(), Epoch(4));
    rig.start(leader);
    rig.until("the restarted member", |rig| rig.epoch(leader) == Epoch(4));
    let map = rig.run(rig.client_of(leader).get_map()).unwrap();
    assert_eq!(map, rig.run(rig.client().newest_map()).unwrap());
}

#[test]
fn without_a_quorum_the_map_stays_and_changes_say_so() {
    let mut rig = Rig::founded(3);
    assert_eq!(rig.change(), Epoch(2));
    let left = rig.leader();
    let others: Vec<usize> = (0..3).filter(|i| *i != left).collect();
    others.iter().for_each(|i| rig.kill(*i));
    let client = rig.client();
    let map = rig.run(client.get_map()).unwrap();
    assert_eq!(map.epoch, Epoch(2));
    let want = ControlError::NoQuorum {
        away: 2,
        members: 3,
    };
    let refused = rig.run(client.change(Epoch(2), turn(&map, 2))).unwrap_err();
    assert_eq!(control(refused), want);
    let refused = rig.run(client.create_token(DEADLINE)).unwrap_err();
    assert_eq!(control(refused), want);
    let refused = rig.run(client.newest_map()).unwrap_err();
    assert_eq!(control(refused), want);
    let status = rig.run(client.status()).unwrap();
    assert_eq!((status.doubt, status.leader), (Some(want), None));
    assert_eq!(status.members.iter().filter(|m| m.there).count(), 1);
    // With them back the map is as it was: nothing was proposed behind the refusals.
    others.iter().for_each(|i| rig.start(*i));
    let same = rig.run(client.newest_map()).unwrap();
    assert_eq!(same, map);
    assert_eq!(rig.change(), Epoch(3));
}

#[test]
fn everything_is_there_after_all_were_killed() {
    let mut rig = Rig::founded(3);
    let token = rig.run(rig.client().create_token(DEADLINE)).unwrap();
    let epoch = rig.change();
    let before = rig.run(rig.client().newest_map()).unwrap();
    (0..3).for_each(|i| rig.kill(i));
    (0..3).for_each(|i| rig.start(i));
    assert_eq!(rig.run(rig.client().newest_map()).unwrap(), before);
    let (node, devices) = testing::node(7, 3);
    let joined = rig.run(rig.client().join(token, node, devices)).unwrap();
    assert_eq!(joined, Epoch(epoch.0 + 1));
}

#[test]
fn of_two_changes_of_one_epoch_exactly_one_is_made() {
    let rig = Rig::founded(3);
    let clients = [rig.client_of(0), rig.client_of(1)].map(|c| c.with_patience(DEADLINE / 2));
    for round in 1..=8 {
        let map = rig.run(clients[0].newest_map()).unwrap();
        assert_eq!(map.epoch, Epoch(round));
        let (one, other) = rig.run(async {
            tokio::join!(
                clients[0].change(map.epoch, turn(&map, 1)),
                clients[1].change(map.epoch, turn(&map, 2)),
            )
        });
        let (won, lost, node) = match (one, other) {
            (Ok(won), Err(lost)) => (won, lost, 1),
            (Err(lost), Ok(won)) => (won, lost, 2),
            other => panic!("{other:?}"),
        };
        assert_eq!(won, Epoch(round + 1));
        assert_eq!(control(lost).stale(), Some(won));
        let want = turn(&map, node).apply(&map, &Default::default()).unwrap();
        assert_eq!(rig.run(clients[1].newest_map()).unwrap(), want);
    }
}

#[test]
fn a_member_that_lost_its_disk_is_fed_by_snapshot_and_counts_again() {
    let mut rig = Rig::new(3);
    rig.snapshot_every = 20;
    (0..3).for_each(|i| rig.start(i));
    let lost = (rig.leader() + 1) % 3;
    rig.kill(lost);
    rig.wipe(lost);
    for _ in 0..30 {
        rig.change();
    }
    let leader = rig.leader();
    rig.until("the log to be cut", |rig| {
        rig.server(leader).purged().is_some()
    });
    rig.start(lost);
    let epoch = rig.change();
    rig.until("the wiped member", |rig| rig.epoch(lost) == epoch);
    // It counts: with another one gone, it and the third are a quorum.
    rig.until("it to count", |rig| rig.server(lost).counts());
    rig.kill(leader);
    let epoch = rig.change();
    rig.until("the wiped member again", |rig| rig.epoch(lost) == epoch);
}

#[test]
fn a_member_that_lost_its_disk_makes_no_leader() {
    let mut rig = Rig::founded(3);
    rig.change();
    (0..3).for_each(|i| rig.kill(i));
    // The founder itself loses its disk: it does not found anew beside one who remembers.
    rig.wipe(0);
    rig.start(0);
    rig.start(1);
    let refused = rig.run(async {
        let hello = Hello {
            cluster: rig.map.cluster,
            who: Who::Member(3),
            to: Some(1),
        };
        let link = Link::open(&System, &rig.address(0), hello, DEADLINE)
            .await
            .unwrap();
        let vote = openraft::Vote::new(99, 3);
        let last_log_id = None;
        let request = openraft::raft::VoteRequest { vote, last_log_id };
        link.call(&Call::Vote(request), DEADLINE).await.unwrap().1
    });
    let recovering = matches!(refused, Answer::Failed(ControlError::Recovering));
    assert!(recovering, "{refused:?}");
    // Nor does it follow anybody: not all of the others have told whom they follow.
    let refused = rig.run(async {
        let hello = Hello {
            cluster: rig.map.cluster,
            who: Who::Member(3),
            to: Some(1),
        };
        let address = rig.address(0);
        let link = Link::open(&System, &address, hello, DEADLINE);
        let link = link.await.unwrap();
        let request = openraft::raft::AppendEntriesRequest {
            vote: openraft::Vote::new_committed(99, 3),
            prev_log_id: None,
            entries: Vec::new(),
            leader_commit: None,
        };
        link.call(&Call::Append(request), DEADLINE).await.unwrap().1
    });
    let recovering = matches!(refused, Answer::Failed(ControlError::Recovering));
    assert!(recovering, "{refused:?}");
    let nothing = rig.run(rig.client_of(0).get_map()).unwrap_err();
    assert_eq!(control(nothing), ControlError::NotFounded);
    assert!(!rig.server(0).counts());
    // With the third back there is a leader without its vote, and it is fed.
    rig.start(2);
    assert_eq!(rig.change(), Epoch(3));
    rig.until("the founder", |rig| {
        rig.epoch(0) == Epoch(3) && rig.server(0).counts()
    });
}

#[test]
fn nodes_join_with_tokens_and_hear_why_not() {
    let rig = Rig::founded(3);
    let client = rig.client();
    let join = |token: Token, number: u32| {
        let (node, devices) = testing::node(number, 3);
        rig.run(client.join(token, node, devices))
    };
    let refusal = |error| match control(error) {
        ControlError::Refused(refusal) => refusal,
        other => panic!("{other}"),
    };
    let token = rig.run(client.create_token(DEADLINE)).unwrap();
    assert_eq!(join(token.clone(), 7).unwrap(), Epoch(2));
    assert_eq!(
        join(token.clone(), 7).unwrap(),
        Epoch(2),
        "to repeat it is safe"
    );
    let used = Refusal::Token(TokenError::Used { by: NodeId(7) });
    assert_eq!(refusal(join(token, 8).unwrap_err()), used);
    let unknown = Token::new(rig.map.cluster, [3; 16]);
    assert_eq!(
        refusal(join(unknown, 8).unwrap_err()),
        Refusal::Token(TokenError::Unknown)
    );
    let short = rig
        .run(client.create_token(Duration::from_millis(1)))
        .unwrap();
    rig.until("the token to expire", |rig| {
        let (node, devices) = testing::node(3, 3);
        let error = rig
            .run(client.join(short.clone(), node, devices))
            .unwrap_err();
        matches!(refusal(error), Refusal::Token(TokenError::Expired { .. }))
    });
    let token = rig.run(client.create_token(DEADLINE)).unwrap();
    let reused = Refusal::Change(ChangeError::NodeReused(NodeId(3)));
    assert_eq!(refusal(join(token, 3).unwrap_err()), reused);
}

#[test]
fn a_silent_member_of_a_chain_is_replaced_by_a_spare() {
    let rig = Rig::founded(3);
    let chain = rig.map.partitions[0].chain.devices.clone();
    let silent = chain[1];
    let report = ChainReport {
        partition: PartitionId(0),
        term: Term(1),
        config: 1,
        members: chain.clone(),
        load: None,
    };
    let client = rig.client();
    let beat = |rig: &Rig| {
        for node in rig.map.nodes.iter().filter(|n| n.id.0 != silent.0) {
            rig.run(client.heartbeat(node.id, vec![report.clone()], None))
                .unwrap();
        }
    };
    // One device per node, of its number.
    rig.until("the replacement", |rig| {
        beat(rig);
        rig.epoch(0) > Epoch(1)
    });
    let map = rig.run(client.watch(Epoch(1), DEADLINE)).unwrap().unwrap();
    assert_eq!(map.epoch, Epoch(2));
    let now = &map.partitions[0].chain.devices;
    assert_eq!((now[0], now[2]), (chain[0], chain[2]));
    let zone = |no: DeviceNo| map.node(NodeId(no.0)).unwrap().domains.zone.clone();
    assert_ne!(now[1], silent);
    assert_eq!(
        zone(now[1]),
        zone(silent),
        "the only zone that no other member is in"
    );
    assert_eq!(map.partitions[0].founders, chain);
    // The chain has not said that it has come so far: nothing more is done, though another one goes silent.
    let status = rig.run(client.status()).unwrap();
    assert!(
        !matches!(status.chains[0].1, Verdict::Replace { .. }),
        "{status:?}"
    );
    let node = status.nodes.iter().find(|n| n.node.0 == silent.0).unwrap();
    assert!(!node.there);
    let unknown = rig
        .run(client.heartbeat(NodeId(99), Vec::new(), None))
        .unwrap_err();
    let want = Refusal::Change(ChangeError::UnknownNode(NodeId(99)));
    assert_eq!(control(unknown), ControlError::Refused(want));
}

#[test]
fn a_device_that_does_not_serve_is_out_under_any_leader_until_it_does() {
    let mut rig = Rig::founded(3);
    let client = rig.client();
    // One device per node, of its number. Nodes of `down` say that theirs does not serve.
    let beat = |rig: &Rig, down: &[u32]| {
        let mut held = None;
        for node in &rig.map.nodes {
            let own = Some(node.id.0).filter(|no| !down.contains(no));
            let serving = own.into_iter().map(DeviceNo).collect();
            let told = client.heartbeat(node.id, Vec::new(), Some(serving));
            held = rig.run(told).unwrap().held;
        }
        held
    };
    let out = |rig: &Rig| rig.run(client.newest_map()).unwrap().out;
    let five = BTreeSet::from([DeviceNo(5)]);
    rig.until("device 5 is out", |rig| {
        beat(rig, &[5]);
        out(rig) == five
    });
    let leader = rig.leader();
    rig.kill(leader);
    rig.until("the next leader says why no more are out", |rig| {
        beat(rig, &[4, 5]).is_some_and(|why| why.contains("2 of 6"))
    });
    let status = rig.run(client.status()).unwrap();
    assert_eq!(status.out, [DeviceNo(5)]);
    assert!(status.away.contains(&DeviceNo(4)) && status.held.is_some());
    rig.start(leader);
    rig.until("all are in again", |rig| {
        beat(rig, &[]);
        out(rig).is_empty()
    });
}

#[test]
fn a_watch_ends_with_the_change_or_with_its_time() {
    let rig = Rig::founded(3);
    let client = rig.client();
    let none = rig.run(client.watch(Epoch(1), Duration::from_millis(20)));
    assert_eq!(none.unwrap(), None);
    let watching = rig.run(async {
        let other = rig.client();
        let watch = tokio::spawn(async move { other.watch(Epoch(1), DEADLINE).await });
        client.change(Epoch(1), turn(&rig.map, 4)).await.unwrap();
        watch.await.unwrap().unwrap()
    });
    assert_eq!(watching.unwrap().draining, [NodeId(4)]);
}

#[test]
fn one_member_alone_is_a_control_plane_too() {
    let mut rig = Rig::founded(1);
    assert_eq!(rig.change(), Epoch(2));
    rig.kill(0);
    rig.start(0);
    assert_eq!(rig.run(rig.client().newest_map()).unwrap().epoch, Epoch(2));
    assert_eq!(rig.change(), Epoch(3));
    let removed = MapChange::RemoveNode { node: NodeId(1) };
    let in_use = rig.run(rig.client().change(Epoch(3), removed)).unwrap_err();
    let said = in_use.to_string();
    assert!(said.contains("node 1 is still in"), "{said}");
}

#[test]
fn a_directory_or_number_of_another_is_refused() {
    let mut rig = Rig::founded(1);
    rig.kill(0);
    let listen = "127.0.0.1:0".parse().unwrap();
    let start = |config| {
        rig.run(ControlServer::start(config))
            .map(|_| ())
            .unwrap_err()
    };
    let mut foreign = rig.map.clone();
    foreign.cluster = ClusterId([1; 16]);
    let error = start(ControlConfig::new(1, listen, rig.dir(0), foreign));
    let other = matches!(error, StartError::Store(StoreError::OtherCluster { .. }));
    assert!(other, "{error}");
    let mut renumbered = rig.map.clone();
    renumbered.control[0].id = 2;
    let error = start(ControlConfig::new(2, listen, rig.dir(0), renumbered));
    let other = matches!(error, StartError::Store(StoreError::OtherMember { .. }));
    assert!(other, "{error}");
    let error = start(ControlConfig::new(9, listen, rig.dir(0), rig.map.clone()));
    assert!(
        matches!(error, StartError::NotAMember { id: 9, .. }),
        "{error}"
    );
}

#[test]
fn a_member_runs_on_a_thread_of_its_own() {
    let rig = Rig::new(1);
    let listen = rig.address(0).parse().unwrap();
    let mut config = ControlConfig::new(1, listen, rig.dir(0), rig.map.clone());
    config.timing = TIMING;
    for epoch in 1..=2 {
        let thread = ControlThread::spawn(config.clone()).unwrap();
        assert_eq!(thread.local_addr(), listen);
        let map = rig.run(rig.client().newest_map()).unwrap();
        assert_eq!(map.epoch, Epoch(epoch));
        assert_eq!(rig.change(), Epoch(epoch + 1));
        assert_eq!(thread.watch().borrow().epoch(), Epoch(epoch + 1));
        // Its port and its file are free once it was dropped.
        drop(thread);
    }
    config.dir = rig.dir(0).join(crate::store::FILE_NAME);
    let error = ControlThread::spawn(config).unwrap_err();
    assert!(
        matches!(error, StartError::Store(StoreError::Directory { .. })),
        "{error}"
    );
}

#[test]
fn a_caller_with_nobody_to_call_hears_so() {
    let rig = Rig::new(3);
    let nobody = ControlClient::new(rig.map.cluster, Vec::new());
    let error = rig.run(nobody.get_map()).unwrap_err();
    assert!(matches!(error, ClientError::NoMembers), "{error}");
    let error = rig.run(rig.client_of(0).get_map()).unwrap_err();
    let ClientError::Unreachable { tried } = error else {
        panic!("{error}");
    };
    assert_eq!(tried[0].0, rig.address(0));
}
