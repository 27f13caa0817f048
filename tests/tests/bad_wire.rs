//! Garbage, lies and accidents on the port: each gets a typed answer or a closed connection, the node
//! lives, and what is stored stays (P8).

use ashlar_cluster_map::ClusterMap;
use ashlar_layout::digest::DIGEST_SCHEME;
use ashlar_layout::frame::{FRAME_HEADER_LEN, FrameHeader, Opcode, encode_control};
use ashlar_layout::ids::{ClusterId, DeviceNo, Epoch, NodeId, PartitionId, Seq, ShardId};
use ashlar_layout::limits::{FRAME_CONTROL_MAX, FRAME_PAYLOAD_MAX};
use ashlar_layout::message::{ErrorCode, Reply, Request};
use ashlar_tests::content::{Random, seed};
use ashlar_tests::rig::{Options, Rig};
use ashlar_tests::wire::{Answer, Wire};

/// The header's CRC stands in bytes 4..8 and covers all other bytes of it (FORMAT.md, "Frame").
fn sign(header: &mut [u8]) {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[..4]);
    crc.update(&[0; 4]);
    crc.update(&header[8..FRAME_HEADER_LEN]);
    let crc = crc.finalize();
    header[4..8].copy_from_slice(&crc.to_le_bytes());
}

fn refused(what: &str, answer: &Answer) {
    let fine = match answer {
        Answer::Closed => true,
        Answer::Reply(Reply::Error(error), _) => {
            assert!(
                !error.detail.trim().is_empty(),
                "{what}: an error that says nothing"
            );
            matches!(error.code, ErrorCode::BadFrame | ErrorCode::BadRequest)
        }
        Answer::Reply(..) => false,
    };
    assert!(fine, "{what}: answered with {answer:?}");
}

#[test]
fn a_port_withstands_whatever_it_is_told() {
    let seed = seed("bad_wire");
    let rig = Rig::up(Options::default());
    rig.ok(&["mb", "ashlar://wire"]);
    let file = rig.scratch().join("file");
    std::fs::write(&file, b"kept").expect("writable");
    rig.ok(&["put", file.to_str().expect("UTF-8"), "ashlar://wire/kept"]);
    let (map, pids) = (rig.map(), rig.pids());
    let head = rig.head();
    let greet = || Wire::greet(&map, head);

    // Nothing that anyone would call a frame.
    let mut random = Random::new(seed);
    for len in [1usize, 63, 64, 65, 4096, 300_000] {
        let mut wire = Wire::connect(&map, head);
        let garbage: Vec<u8> = (0..len).map(|_| random.draw() as u8).collect();
        wire.send(&garbage);
        wire.finish();
        refused(&format!("{len} bytes of garbage"), &wire.answer());
    }
    let mut wire = Wire::connect(&map, head);
    wire.send(b"GET / HTTP/1.1\r\nHost: ashlar\r\nUser-Agent: a browser\r\nAccept: */*\r\n\r\n");
    wire.finish();
    refused("an HTTP request", &wire.answer());

    // Frames with one thing wrong, each on a fresh connection that has said hello.
    let mut wire = greet();
    let frame = wire.frame(map.epoch, &Request::Status, b"");
    for cut in [1, FRAME_HEADER_LEN - 1, FRAME_HEADER_LEN, frame.len() - 1] {
        let mut wire = greet();
        wire.send(&frame[..cut]);
        wire.finish();
        assert!(
            matches!(wire.answer(), Answer::Closed),
            "a frame cut after {cut} bytes was answered"
        );
    }
    let spoil = |at: usize, value: &[u8], sign_it: bool| {
        let mut bytes = frame.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        if sign_it {
            sign(&mut bytes);
        }
        let mut wire = greet();
        wire.send(&bytes);
        wire.finish();
        wire.answer()
    };
    let signed_well = spoil(8, &frame[8..10], true);
    assert!(
        matches!(signed_well, Answer::Reply(Reply::Status(_), _)),
        "the test signs wrong: {signed_well:?}"
    );
    refused("a wrong magic", &spoil(0, b"XXXX", true));
    refused("a wrong header CRC", &spoil(16, &[0xff; 8], false));
    refused(
        "a version from the future",
        &spoil(8, &999u16.to_le_bytes(), true),
    );
    refused("an unknown opcode", &spoil(10, &77u16.to_le_bytes(), true));
    refused(
        "an opcode that only nodes answer with",
        &spoil(10, &2u16.to_le_bytes(), true),
    );
    refused(
        "an oversized control part",
        &spoil(32, &(FRAME_CONTROL_MAX + 1).to_le_bytes(), true),
    );
    refused(
        "an oversized payload",
        &spoil(36, &(FRAME_PAYLOAD_MAX + 1).to_le_bytes(), true),
    );
    refused(
        "the largest lengths there are",
        &spoil(32, &[0xff; 8], true),
    );
    refused("a wrong control CRC", &spoil(40, &[1, 2, 3, 4], true));
    let last = frame.len() - 1;
    refused(
        "a damaged control part",
        &spoil(last, &[frame[last] ^ 0x40], false),
    );

    // A control part that is no request, with every checksum right.
    for control in [
        vec![],
        vec![0xff; 4],
        vec![0xff; 200],
        encode_control(&Reply::Done),
    ] {
        let header =
            FrameHeader::new(Opcode::Request, 9, map.epoch, &control, 0, 0).expect("short");
        let mut wire = greet();
        wire.send(&header.encode());
        wire.send(&control);
        let answer = wire.answer();
        // Whoever knows a request that this program does not know asks others on the same connection.
        let next = wire.ask(map.epoch, &Request::Status, b"");
        assert!(
            matches!(next, Answer::Reply(Reply::Status(_), _)),
            "after {control:?}: {next:?}"
        );
        // The bytes of a reply may happen to be those of a request; then its answer is fine too.
        if control.len() != encode_control(&Reply::Done).len() {
            refused("a control part that is no request", &answer);
        }
    }

    // A payload that is not what its CRC says must not be stored.
    let its = map.devices.iter().find(|device| device.node.0 == head);
    let device = its.expect("each node has a device").no;
    let shard = ShardId::default();
    let mut wire = greet();
    let write = Request::ShardWrite { device, shard };
    let mut frame = wire.frame(map.epoch, &write, &[7u8; 10_000]);
    let last = frame.len() - 1;
    frame[last] ^= 1;
    wire.send(&frame);
    wire.finish();
    refused("a damaged payload", &wire.answer());
    let mut wire = greet();
    let read = Request::ShardRead {
        device,
        shard,
        offset: 0,
        len: u32::MAX,
    };
    assert_eq!(
        wire.ask(map.epoch, &read, b"").code(),
        Some(ErrorCode::NotFound),
        "it was stored"
    );

    // Well-formed, and wrong.
    let mut wire = greet();
    let lookup = |bucket: &str, key: &str| Request::Lookup {
        partition: map.partitions[0].id,
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        id: None,
        payload: true,
    };
    let stale = Epoch(map.epoch.0 - 1);
    match wire.ask(stale, &lookup("wire", "kept"), b"") {
        Answer::Reply(Reply::Error(error), newer) => {
            assert_eq!(error.code, ErrorCode::StaleEpoch);
            let newer = ClusterMap::from_json(&newer).expect("the newer map comes with it");
            assert_eq!(newer.epoch, map.epoch);
        }
        answer => panic!("{answer:?}"),
    }
    // A caller ahead of the node is served: the chain's own log decides what is so.
    let ahead = Epoch(map.epoch.0 + 7);
    let code = wire.ask(ahead, &lookup("wire", "not kept"), b"").code();
    assert_eq!(code, Some(ErrorCode::NotFound));
    let cases = [
        (
            "a device that is not here",
            Request::ShardRead {
                device: DeviceNo(999),
                shard,
                offset: 0,
                len: 1,
            },
        ),
        (
            "a partition that is not here",
            Request::ListBuckets {
                partition: PartitionId(999),
                after: String::new(),
                max: 1,
            },
        ),
        (
            "a replica that is not here",
            Request::Digest {
                partition: map.partitions[0].id,
                device: DeviceNo(999),
                scheme: DIGEST_SCHEME,
                at: Seq(1),
                after: Vec::new(),
                entries: 1,
            },
        ),
    ];
    for (what, request) in cases {
        let code = wire.ask(map.epoch, &request, b"").code();
        assert!(
            matches!(code, Some(ErrorCode::NotHere | ErrorCode::NotFound)),
            "{what}: {code:?}"
        );
    }
    let long = "k".repeat(1025);
    let code = wire.ask(map.epoch, &lookup("wire", &long), b"").code();
    assert!(
        matches!(code, Some(ErrorCode::BadRequest | ErrorCode::NotFound)),
        "a long key: {code:?}"
    );
    let code = wire.ask(map.epoch, &read, b"").code();
    assert_eq!(
        code,
        Some(ErrorCode::NotFound),
        "the connection goes on after refusals"
    );

    // Digests that are made otherwise, of what is past, and of what is.
    let digest = |scheme: u32, at: Seq| Request::Digest {
        partition: map.partitions[0].id,
        device,
        scheme,
        at,
        after: Vec::new(),
        entries: u32::MAX,
    };
    let code = wire.ask(map.epoch, &digest(999, Seq(1)), b"").code();
    assert_eq!(code, Some(ErrorCode::BadRequest));
    let mut at = Seq(0);
    let entries = loop {
        match wire.ask(map.epoch, &digest(DIGEST_SCHEME, at), b"") {
            Answer::Reply(Reply::Digest { applied, digest }, _) => match digest {
                Some(digest) => break digest.entries,
                // Somebody else may write at the same time.
                None => at = applied,
            },
            answer => panic!("{answer:?}"),
        }
    };
    assert!(entries >= 2, "a bucket and an object: {entries}");

    // A stranger, and somebody who does not say hello.
    let mut wire = Wire::connect(&map, head);
    let foreign = Request::Hello {
        cluster: ClusterId([9; 16]),
        node: NodeId(0),
        core: 0,
    };
    let answer = wire.ask(map.epoch, &foreign, b"");
    assert_eq!(answer.code(), Some(ErrorCode::WrongCluster), "{answer:?}");
    let mut wire = Wire::connect(&map, head);
    let answer = wire.ask(map.epoch, &read, b"");
    assert!(
        matches!(answer, Answer::Closed | Answer::Reply(Reply::Error(_), _)),
        "{answer:?}"
    );

    // Many that say nothing at all do not keep the others out.
    let silent: Vec<Wire> = (0..200).map(|_| Wire::connect(&map, head)).collect();
    assert_eq!(rig.ok(&["get", "ashlar://wire/kept", "-"]), "kept");
    drop(silent);
    assert_eq!(rig.pids(), pids, "a node died of it:\n{}", rig.logs());
    assert_eq!(rig.ok(&["get", "ashlar://wire/kept", "-"]), "kept");
}
