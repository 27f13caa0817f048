//! A node as a service: it says when it is ready, feeds the watchdog, and drains when it is told to end.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ashlar_layout::ids::{ClientId, RequestNo};
use ashlar_layout::manifest::{Op, Precondition};
use ashlar_layout::message::{ErrorCode, Reply, Request};
use ashlar_node_client::ClientOptions;
use ashlar_tests::binary;
use ashlar_tests::content::Content;
use ashlar_tests::load;
use ashlar_tests::rig::{self, Options, PATIENCE, Rig};
use ashlar_tests::wire::{Answer, Wire};
use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};

fn run_node(rig: &Rig, node: u32, socket: &std::path::Path) -> Child {
    // Among the logs that a failing test shows.
    let log = rig.dir().join(format!("node-{node}/service.log"));
    let log = File::create(&log).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
    // systemd names the process whose watchdog it is; a shell that becomes the node knows its number.
    Command::new("sh")
        .args(["-c", r#"WATCHDOG_PID=$$ exec "$0" node run --config "$1""#])
        .arg(binary::ashlar())
        .arg(rig.config(node))
        .env("NOTIFY_SOCKET", socket)
        .env("WATCHDOG_USEC", "2000000")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|e| panic!("ashlar does not start: {e}"))
}

/// Reads notifications until one has this line.
fn notified(socket: &UnixDatagram, wanted: &str) -> Vec<String> {
    let mut seen = Vec::new();
    let mut buffer = [0u8; 4096];
    socket
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout is a setting");
    loop {
        let len = socket
            .recv(&mut buffer)
            .unwrap_or_else(|e| panic!("no {wanted} came: {e}; {seen:?}"));
        let message = String::from_utf8_lossy(&buffer[..len]).into_owned();
        let found = message.lines().any(|line| line == wanted);
        seen.extend(message.lines().map(str::to_owned));
        if found {
            return seen;
        }
    }
}

#[test]
fn a_node_is_ready_when_it_serves_and_drains_when_it_is_told_to_end() {
    let rig = Rig::up(Options::default());
    rig.ok(&["mb", "ashlar://service"]);
    let head = rig.head();
    rig.nodes("kill", &[head]);

    let path = rig.scratch().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut child = run_node(&rig, head, &path);
    notified(&socket, "READY=1");
    // Ready means that it serves: its replica, whatever its rank is now, answers the very next request.
    let map = rig.map();
    let mut wire = Wire::greet(&map, head);
    let chain = Request::Chain {
        partition: map.partitions[0].id,
    };
    match wire.ask(map.epoch, &chain, b"") {
        Answer::Reply(Reply::Chain(view), _) => {
            let mut members = view.members.clone();
            members.sort_unstable();
            let mut wanted = map.partitions[0].chain.devices.clone();
            wanted.sort_unstable();
            assert_eq!(members, wanted, "{view:?}");
        }
        answer => panic!("READY=1 was sent, and yet: {answer:?}"),
    }
    let runtime = rig::runtime();
    let content = Content {
        seed: 5,
        len: 100_000,
    };
    runtime.block_on(async {
        let client = rig.client(ClientOptions::default());
        let body = Bytes::from(content.bytes());
        let put = client
            .put_bytes("service", "k", body, Default::default())
            .await;
        put.unwrap_or_else(|e| panic!("cannot put: {e}"));
    });
    notified(&socket, "WATCHDOG=1");
    notified(&socket, "WATCHDOG=1");

    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .expect("a pid");
    kill_process(pid, Signal::TERM).expect("it lives");
    notified(&socket, "STOPPING=1");
    let status = rig::eventually("the node drains and ends", PATIENCE, || {
        child.try_wait().ok().flatten()
    });
    assert!(status.success(), "SIGTERM must end it with 0, not {status}");

    rig.nodes("start", &[head]);
    let back = runtime.block_on(async {
        let client = rig.client(ClientOptions::default());
        load::read(&client, "service", "k").await
    });
    let (bytes, _) = back.expect("readable").expect("there");
    assert_eq!(content.difference(&bytes), None);
}

#[test]
fn what_a_node_has_accepted_is_answered_before_its_connections_end() {
    const READS: usize = 200;
    const CHANGES: u64 = 100;
    let rig = Rig::up(Options::default());
    rig.ok(&["mb", "ashlar://drain"]);
    let (map, head) = (rig.map(), rig.head());
    let partition = map.partitions[0].id;
    let content = Content {
        seed: 7,
        len: ashlar_layout::limits::INLINE_MAX as usize,
    };
    rig::runtime().block_on(async {
        let client = rig.client(ClientOptions::default());
        let body = Bytes::from(content.bytes());
        let put = client
            .put_bytes("drain", "k", body, Default::default())
            .await;
        put.unwrap_or_else(|e| panic!("cannot put: {e}"));
    });

    // Far more than sockets hold, and nobody reads: the node is left with it.
    let lookup = Request::Lookup {
        partition,
        bucket: "drain".into(),
        key: "k".into(),
        id: None,
        payload: true,
    };
    let mut reads = Wire::greet(&map, head);
    let frames: Vec<u8> = (0..READS)
        .flat_map(|_| reads.frame(map.epoch, &lookup, b""))
        .collect();
    reads.send(&frames);
    let mut witness = Wire::greet(&map, head);
    let last = witness.ask(map.epoch, &lookup, b"");
    assert!(matches!(last, Answer::Reply(Reply::Found { .. }, _)));
    // And changes, which wait for a device and for another node.
    let mut changes = Wire::greet(&map, head);
    let term = match changes.ask(map.epoch, &Request::Chain { partition }, b"") {
        Answer::Reply(Reply::Chain(view), _) => view.term,
        answer => panic!("the head does not know its chain: {answer:?}"),
    };
    let frames: Vec<u8> = (1..=CHANGES)
        .flat_map(|number| {
            let propose = Request::Propose {
                partition,
                term,
                client: ClientId(0xd_4a1),
                request: RequestNo(number),
                retry: None,
                precondition: Precondition::None,
                op: Op::CreateBucket {
                    bucket: format!("drain-{number}"),
                },
            };
            changes.frame(map.epoch, &propose, b"")
        })
        .collect();
    changes.send(&frames);

    let of_head =
        |(pid, config): (Pid, std::path::PathBuf)| (config == rig.config(head)).then_some(pid);
    let pid = rig::node_processes(rig.dir())
        .into_iter()
        .find_map(of_head)
        .expect("the head runs");
    kill_process(pid, Signal::TERM).expect("it lives");
    assert!(matches!(witness.answer(), Answer::Closed));
    for number in 1..=CHANGES {
        let answer = changes.answer();
        let done = matches!(answer, Answer::Reply(Reply::Committed { .. }, _));
        // A head that drains may have handed its office over first.
        let refused = matches!(
            answer.code(),
            Some(ErrorCode::NotServing | ErrorCode::NotHead)
        );
        assert!(done || refused, "change {number} of {CHANGES}: {answer:?}");
    }
    for number in 1..=READS {
        match reads.answer() {
            Answer::Reply(Reply::Found { .. }, bytes) => {
                assert_eq!(content.difference(&bytes), None);
            }
            answer => panic!("read {number} of {READS}: {answer:?}"),
        }
    }
    assert!(matches!(reads.answer(), Answer::Closed));
    rig::eventually("the node ends", PATIENCE, || {
        rig::node_processes(rig.dir())
            .into_iter()
            .all(|(other, _)| other != pid)
            .then_some(())
    });
}

#[test]
fn a_stopped_watchdog_is_noticed_by_silence() {
    let rig = Rig::up(Options::default());
    let node = rig.chain()[1];
    rig.nodes("kill", &[node]);
    let path = rig.scratch().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut child = run_node(&rig, node, &path);
    notified(&socket, "READY=1");
    notified(&socket, "WATCHDOG=1");
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .expect("a pid");
    kill_process(pid, Signal::STOP).expect("it lives");
    // What it sent before it stopped is read off; then nothing more may come.
    socket
        .set_read_timeout(Some(Duration::from_millis(2500)))
        .expect("a timeout is a setting");
    let mut buffer = [0u8; 4096];
    let mut late = 0;
    while socket.recv(&mut buffer).is_ok() {
        late += 1;
        assert!(late < 5, "a stopped node goes on feeding the watchdog");
    }
    kill_process(pid, Signal::CONT).expect("it lives");
    notified(&socket, "WATCHDOG=1");
    child.kill().expect("it lives");
    child.wait().expect("it ends");
}

#[test]
fn a_rig_of_loop_devices_stores_and_survives() {
    if !rig::is_root() {
        eprintln!("skipped: attaching loop devices takes root");
        return;
    }
    if !std::path::Path::new("/dev/loop-control").exists() {
        eprintln!("skipped: this kernel or container has no /dev/loop-control");
        return;
    }
    let rig = Rig::up(Options {
        loops: true,
        ..Options::default()
    });
    let device = rig.device(1);
    assert!(
        device.starts_with("/dev/"),
        "--loop must store on a device, not on {}",
        device.display()
    );
    rig.ok(&["mb", "ashlar://loops"]);
    let source = rig.scratch().join("tree");
    ashlar_tests::folder::write_tree(&source, 60, 11);
    let from = source.to_str().expect("UTF-8");
    rig.ok(&["put", "-r", from, "ashlar://loops/t/"]);
    rig.nodes("kill", &rig.all());
    rig.up_again();
    let back = rig.scratch().join("back");
    rig.ok(&[
        "get",
        "-r",
        "ashlar://loops/t/",
        back.to_str().expect("UTF-8"),
    ]);
    ashlar_tests::folder::assert_same(&source, &back);
    rig.rig(&["down"]);
    rig.up_again();
    rig.ok(&[
        "get",
        "-r",
        "ashlar://loops/t/",
        rig.scratch().join("b2").to_str().expect("UTF-8"),
    ]);
    rig.rig(&["wipe", "--yes"]);
    // The kernel lets go of a device once the last ring that used it is torn down, and that goes on
    // a little after the process has ended.
    let deadline = Instant::now() + Duration::from_secs(10);
    let dir = rig.dir().to_str().expect("UTF-8");
    loop {
        let attached = Command::new("losetup")
            .arg("--list")
            .output()
            .expect("losetup runs");
        let attached = String::from_utf8_lossy(&attached.stdout).into_owned();
        if !attached.contains(dir) {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "wipe left loop devices:\n{attached}"
        );
        rig::pause(Duration::from_millis(20));
    }
}
