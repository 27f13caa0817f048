//! The state machine: compare-and-set, joins, and that members never differ.

use ashlar_cluster_map::{ChangeError, MapChange};
use ashlar_layout::ids::{ClusterId, DeviceId, DeviceNo, Epoch, NodeId};
use proptest::prelude::*;

use crate::state::{Command, Refusal, State};
use crate::testing;
use crate::token::{Token, TokenError};

fn founded() -> State {
    let mut state = State::default();
    let map = Box::new(testing::map(6, 3));
    assert_eq!(state.apply(&Command::Found { map }), Ok(Epoch(1)));
    state
}

fn change(expected: u64, change: MapChange) -> Command {
    Command::Change {
        expected: Epoch(expected),
        change,
    }
}

fn drain(node: u32) -> MapChange {
    MapChange::DrainNode { node: NodeId(node) }
}

fn hash(n: u8) -> crate::token::TokenHash {
    Token::new(testing::CLUSTER, [n; 16]).hash()
}

fn add(state: &State, number: u32) -> MapChange {
    let (node, devices) = testing::node(number, 3);
    let change = MapChange::AddNode {
        node,
        devices,
        groups: Vec::new(),
    };
    change.resolve(state.map.as_ref().unwrap())
}

fn join(state: &State, number: u32, token: u8, now_ms: u64) -> Command {
    Command::Join {
        expected: state.epoch(),
        hash: hash(token),
        now_ms,
        change: add(state, number),
    }
}

#[test]
fn only_one_of_two_changes_of_an_epoch_is_made() {
    let mut state = founded();
    assert_eq!(state.apply(&change(1, drain(1))), Ok(Epoch(2)));
    let before = state.clone();
    let stale = Refusal::Stale { current: Epoch(2) };
    assert_eq!(state.apply(&change(1, drain(2))), Err(stale));
    assert_eq!(state, before);
    assert_eq!(state.apply(&change(2, drain(2))), Ok(Epoch(3)));
    let mut blank = State::default();
    assert_eq!(blank.apply(&change(0, drain(1))), Err(Refusal::NoMap));
}

#[test]
fn a_second_founding_changes_nothing() {
    let mut state = founded();
    state.apply(&change(1, drain(1))).unwrap();
    let before = state.clone();
    let mut other = testing::map(3, 3);
    other.cluster = ClusterId([1; 16]);
    let map = Box::new(other);
    assert_eq!(state.apply(&Command::Found { map }), Ok(Epoch(2)));
    assert_eq!(state, before);
}

#[test]
fn a_node_joins_once_with_a_token_and_may_ask_again() {
    let mut state = founded();
    let unknown = Refusal::Token(TokenError::Unknown);
    assert_eq!(state.apply(&join(&state.clone(), 7, 1, 10)), Err(unknown));
    let token = |n, now_ms| Command::MakeToken {
        hash: hash(n),
        now_ms,
        life_ms: 100,
    };
    state.apply(&token(1, 0)).unwrap();
    let first = join(&state, 7, 1, 50);
    assert_eq!(state.apply(&first), Ok(Epoch(2)));
    let groups = &state.map.as_ref().unwrap().groups;
    assert!(groups.iter().any(|g| g.devices.contains(&DeviceNo(7))));
    // The reply was lost: the same again, late as it is, is told the same.
    assert_eq!(state.apply(&first), Ok(Epoch(2)));
    assert_eq!(state.apply(&join(&state.clone(), 7, 1, 5000)), Ok(Epoch(2)));
    // Another one is not let in with it, nor with one that has expired.
    let used = Refusal::Token(TokenError::Used { by: NodeId(7) });
    assert_eq!(state.apply(&join(&state.clone(), 8, 1, 50)), Err(used));
    state.apply(&token(2, 0)).unwrap();
    let expired = Refusal::Token(TokenError::Expired { ago_ms: 900 });
    assert_eq!(state.apply(&join(&state.clone(), 8, 2, 1000)), Err(expired));
    // A refused join does not use the token up.
    state.apply(&token(3, 0)).unwrap();
    let reused = Refusal::Change(ChangeError::NodeReused(NodeId(7)));
    assert_eq!(state.apply(&join(&state.clone(), 7, 3, 50)), Err(reused));
    assert_eq!(state.apply(&join(&state.clone(), 8, 3, 50)), Ok(Epoch(3)));
}

#[test]
fn what_left_never_comes_back_as_something_else() {
    let mut state = founded();
    // Node 7 comes without groups, so that it can leave.
    let (node, devices) = testing::node(7, 3);
    let plain = MapChange::AddNode {
        node,
        devices,
        groups: Vec::new(),
    };
    state.apply(&change(1, plain)).unwrap();
    let remove = MapChange::RemoveNode { node: NodeId(7) };
    state.apply(&change(2, remove)).unwrap();
    let add = |node_no: u32, device_no: u32, name: u8| {
        let (mut node, mut devices) = testing::node(node_no, 3);
        node.cores[0].address = "127.0.0.1:1".into();
        devices[0].no = DeviceNo(device_no);
        if name > 0 {
            devices[0].id = DeviceId([name; 16]);
        }
        let groups = Vec::new();
        change(
            3,
            MapChange::AddNode {
                node,
                devices,
                groups,
            },
        )
    };
    let seven = testing::node(7, 3).1[0].id;
    let cases = [
        (add(7, 9, 9), ChangeError::NodeReused(NodeId(7))),
        (add(8, 7, 9), ChangeError::DeviceReused(DeviceNo(7))),
        (add(3, 9, 9), ChangeError::NodeReused(NodeId(3))),
        (add(8, 3, 9), ChangeError::DeviceReused(DeviceNo(3))),
    ];
    for (command, want) in cases {
        assert_eq!(state.apply(&command), Err(Refusal::Change(want)));
    }
    let (node, mut devices) = testing::node(8, 3);
    devices[0].id = seven;
    let groups = Vec::new();
    let renumbered = change(
        3,
        MapChange::AddNode {
            node,
            devices,
            groups,
        },
    );
    let want = Refusal::Change(ChangeError::NameReused(seven));
    assert_eq!(state.apply(&renumbered), Err(want));
    assert_eq!(state.apply(&add(8, 8, 9)), Ok(Epoch(4)));
}

#[test]
fn a_map_that_outgrows_a_frame_is_refused() {
    let mut state = founded();
    let mut map = state.map.clone().unwrap();
    map.nodes[0].domains.rack = "r".repeat(crate::limits::STATE_MAX);
    let map = Box::new(map);
    let before = state.clone();
    let refused = state.apply(&change(1, MapChange::SetMap { map }));
    assert!(
        matches!(refused, Err(Refusal::TooLarge { .. })),
        "{refused:?}"
    );
    assert_eq!(state, before);
}

fn any_command() -> impl Strategy<Value = Command> {
    let node = 1u32..9;
    prop_oneof![
        (0u64..6, node.clone()).prop_map(|(e, n)| change(e, drain(n))),
        (0u64..6, node.clone())
            .prop_map(|(e, n)| { change(e, MapChange::RemoveNode { node: NodeId(n) }) }),
        (0u64..6, 1u32..9, 1u32..9).prop_map(|(e, out, with)| {
            change(
                e,
                MapChange::ReplaceChainMember {
                    partition: ashlar_layout::ids::PartitionId(0),
                    out: DeviceNo(out),
                    with: DeviceNo(with),
                    crowd: out % 2 == 0,
                },
            )
        }),
        (0u8..4, 0u64..50, 0u64..50).prop_map(|(n, now_ms, life_ms)| Command::MakeToken {
            hash: hash(n),
            now_ms,
            life_ms
        }),
        (0u8..4, 0u64..100, node, 0u64..6).prop_map(|(n, now_ms, number, expected)| {
            let (node, devices) = testing::node(number, 3);
            let groups = Vec::new();
            Command::Join {
                expected: Epoch(expected),
                hash: hash(n),
                now_ms,
                change: MapChange::AddNode {
                    node,
                    devices,
                    groups,
                },
            }
        }),
    ]
}

proptest! {
    /// Two members that apply the same log are in the same state, also when one of them goes through JSON after every
    /// entry, as a snapshot does; the epoch counts up by one or stays; every map is valid; refusals change nothing.
    #[test]
    fn members_never_differ(commands in proptest::collection::vec(any_command(), 1..40)) {
        let (mut one, mut other) = (founded(), founded());
        for command in commands {
            let before = one.clone();
            let foreseen = one.check(&command);
            prop_assert_eq!(&one, &before);
            let outcome = one.apply(&command);
            prop_assert_eq!(&foreseen, &outcome);
            prop_assert_eq!(&other.apply(&command), &outcome);
            let json = serde_json::to_vec(&other).unwrap();
            other = serde_json::from_slice(&json).unwrap();
            prop_assert_eq!(&one, &other);
            let map = one.map.as_ref().unwrap();
            prop_assert_eq!(map.validate(), Ok(()));
            match outcome {
                Ok(epoch) => {
                    let step = epoch.0 - before.epoch().0;
                    prop_assert_eq!(step, u64::from(Some(map) != before.map.as_ref()));
                }
                Err(_) => prop_assert_eq!(&one, &before),
            }
        }
    }
}
