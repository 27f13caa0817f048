//! Connections against real sockets of this machine.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/harness.rs"]
mod harness;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ashlar_node_reactor::{Buf, Chunk, ConnId, Errno, Event, Options, Reactor};
use bytes::Bytes;
use harness::{listening, pattern, run};

fn small() -> Options {
    Options {
        pool_bytes: 32 << 20,
        ..Options::default()
    }
}

/// A client thread's connection; it too gives up in the end.
fn client(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream
}

#[test]
fn many_connections_get_their_own_bytes_back() {
    const CONNECTIONS: usize = 200;
    let mut reactor = listening(small());
    let addr = reactor.local_addr().unwrap();
    let clients: Vec<_> = (0..4)
        .map(|thread| {
            thread::spawn(move || {
                let mut streams: Vec<_> = (0..CONNECTIONS / 4).map(|_| client(addr)).collect();
                for round in 0..5 {
                    for (index, stream) in streams.iter_mut().enumerate() {
                        let seed = (thread * 1000 + index * 10 + round) as u64;
                        stream.write_all(&pattern(seed, 1 + index * 211)).unwrap();
                    }
                    for (index, stream) in streams.iter_mut().enumerate() {
                        let seed = (thread * 1000 + index * 10 + round) as u64;
                        let expected = pattern(seed, 1 + index * 211);
                        let mut got = vec![0; expected.len()];
                        stream.read_exact(&mut got).unwrap();
                        assert_eq!(got, expected);
                    }
                }
            })
        })
        .collect();
    let (mut open, mut closed) = (0, 0);
    run(&mut reactor, |_, event, io, control| match event {
        Event::Accepted { peer, .. } => {
            assert!(peer.ip().is_loopback());
            open += 1;
        }
        Event::Received { conn, data } => io.send(conn, Bytes::copy_from_slice(data)),
        Event::Closed { error, .. } => {
            assert_eq!(error, None);
            closed += 1;
            control.done = closed == CONNECTIONS;
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(open, CONNECTIONS);
    for client in clients {
        client.join().unwrap();
    }
}

/// Frames of an 8-byte length and a payload: what a connection is reading.
#[derive(Default)]
struct Frames {
    header: Vec<u8>,
    payload: Option<(Buf, usize)>,
    seen: usize,
}

const SIZES: [usize; 12] = [
    1,
    8,
    4096,
    16_384,
    32_767,
    32_768,
    32_769,
    65_536,
    100_000,
    1 << 20,
    (4 << 20) + (64 << 10),
    3,
];

/// The payload of frame `index` of client `id`.
fn payload(id: u64, index: usize) -> Vec<u8> {
    pattern(id * 100 + index as u64, SIZES[index % SIZES.len()])
}

#[test]
fn payloads_land_in_buffers_with_what_had_come_before() {
    const CLIENTS: u64 = 4;
    const FRAMES: usize = 36;
    let mut reactor = listening(Options {
        pool_bytes: 64 << 20,
        ..small()
    });
    let addr = reactor.local_addr().unwrap();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|id| {
            thread::spawn(move || {
                let mut stream = client(addr);
                let mut bytes = id.to_le_bytes().to_vec();
                for index in 0..FRAMES {
                    let payload = payload(id, index);
                    bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
                    bytes.extend_from_slice(&payload);
                }
                // Pieces of odd sizes: headers torn, payloads begun with their header, frames
                // joined.
                let mut rest = &bytes[..];
                let mut piece = 1 + id as usize;
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(piece.min(rest.len()));
                    stream.write_all(now).unwrap();
                    rest = later;
                    piece = piece * 7 % 300_007 + 1;
                }
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).unwrap();
                assert_eq!(answer, b"all");
            })
        })
        .collect();

    struct Peer {
        id: Option<u64>,
        frames: Frames,
    }
    let mut peers: HashMap<ConnId, Peer> = HashMap::new();
    let mut finished = 0;
    let check = |peer: &mut Peer, buf: &Buf| {
        assert_eq!(&buf[..], payload(peer.id.unwrap(), peer.frames.seen));
        peer.frames.seen += 1;
        peer.frames.seen == FRAMES
    };
    run(&mut reactor, |_, event, io, control| match event {
        Event::Accepted { conn, .. } => {
            peers.insert(
                conn,
                Peer {
                    id: None,
                    frames: Frames::default(),
                },
            );
        }
        Event::Received { conn, mut data } => {
            let peer = peers.get_mut(&conn).unwrap();
            assert!(
                peer.frames.payload.is_none(),
                "bytes of a fill came as Received"
            );
            while !data.is_empty() {
                let missing = 8 - peer.frames.header.len();
                let (now, later) = data.split_at(missing.min(data.len()));
                peer.frames.header.extend_from_slice(now);
                data = later;
                if peer.frames.header.len() < 8 {
                    break;
                }
                let number = u64::from_le_bytes(peer.frames.header[..].try_into().unwrap());
                peer.frames.header.clear();
                if peer.id.is_none() {
                    peer.id = Some(number);
                    continue;
                }
                let len = number as usize;
                let mut buf = io.alloc(len).unwrap();
                let have = len.min(data.len());
                buf[..have].copy_from_slice(&data[..have]);
                data = &data[have..];
                if have < len {
                    assert!(data.is_empty());
                    io.recv_into(conn, buf, have, len);
                } else if check(peer, &buf) {
                    io.send(conn, Bytes::from_static(b"all"));
                    io.close(conn);
                }
            }
        }
        Event::Filled { conn, buf } => {
            if check(peers.get_mut(&conn).unwrap(), &buf) {
                io.send(conn, Bytes::from_static(b"all"));
                io.close(conn);
            }
        }
        Event::Closed { conn, error } => {
            assert_eq!((error, peers[&conn].frames.seen), (None, FRAMES));
            finished += 1;
            control.done = finished == CLIENTS;
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(
        reactor.io().pool().available(),
        reactor.io().pool().capacity()
    );
    for client in clients {
        client.join().unwrap();
    }
}

#[test]
fn an_empty_fill_is_full_at_once() {
    let mut reactor = listening(small());
    let stream = client(reactor.local_addr().unwrap());
    run(&mut reactor, |_, event, io, control| match event {
        Event::Accepted { conn, .. } => {
            let buf = io.alloc(10).unwrap();
            io.recv_into(conn, buf, 10, 10);
        }
        Event::Filled { buf, .. } => control.done = buf.len() == 10,
        other => panic!("{other:?}"),
    });
    drop(stream);
}

#[test]
fn a_slow_reader_backs_up_and_drains() {
    const CHUNKS: usize = 64;
    const CHUNK: usize = 256 << 10;
    let mut reactor = listening(small());
    let addr = reactor.local_addr().unwrap();
    let (go, wait) = mpsc::sync_channel(1);
    let reader = thread::spawn(move || {
        let mut stream = client(addr);
        wait.recv().unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), CHUNKS * CHUNK);
        for (index, chunk) in got.chunks(CHUNK).enumerate() {
            assert_eq!(chunk, pattern(index as u64, CHUNK), "chunk {index}");
        }
    });
    let mut drained = 0;
    run(&mut reactor, |_, event, io, control| match event {
        Event::Accepted { conn, .. } => {
            for index in 0..CHUNKS {
                let bytes = pattern(index as u64, CHUNK);
                // Both kinds, in turn.
                if index % 2 == 0 {
                    io.send(conn, Bytes::from(bytes));
                } else {
                    let mut buf = io.alloc(CHUNK + 100).unwrap();
                    buf[100..].copy_from_slice(&bytes);
                    io.send(conn, Chunk::Buf(buf, 100..CHUNK + 100));
                }
            }
            assert_eq!(io.queued(conn), CHUNKS * CHUNK);
            go.send(()).unwrap();
        }
        Event::Drained { conn } => {
            drained += 1;
            assert!(io.queued(conn) <= Options::default().send_low_water);
            io.close(conn);
        }
        Event::Closed { error, .. } => {
            assert_eq!(error, None);
            control.done = true;
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(drained, 1);
    assert_eq!(
        reactor.io().pool().available(),
        reactor.io().pool().capacity()
    );
    reader.join().unwrap();
}

#[test]
fn a_queue_beyond_its_limit_ends_the_connection() {
    let mut reactor = listening(Options {
        send_limit: 1 << 20,
        ..small()
    });
    let stream = client(reactor.local_addr().unwrap());
    let mut accepted = None;
    run(&mut reactor, |_, event, io, control| match event {
        Event::Accepted { conn, .. } => {
            accepted = Some(conn);
            io.send(conn, vec![0; 1 << 20]);
            io.send(conn, vec![0; 1]);
            // It is over already, so this goes nowhere.
            io.send(conn, vec![0; 1]);
            assert_eq!(io.queued(conn), (1 << 20) + 1);
        }
        Event::Closed { conn, error } => {
            assert_eq!((Some(conn), error), (accepted, Some(Errno::NOBUFS)));
            control.done = true;
        }
        other => panic!("{other:?}"),
    });
    drop(stream);
}

#[test]
fn a_paused_connection_is_silent_and_loses_nothing() {
    const LEN: usize = 48 << 20;
    let mut reactor = listening(small());
    let addr = reactor.local_addr().unwrap();
    let waker = reactor.waker();
    let writer = thread::spawn(move || {
        let mut stream = client(addr);
        // Write until it blocks: then the reactor has really stopped reading.
        stream
            .set_write_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let bytes = pattern(7, LEN);
        let mut sent = 0;
        while sent < LEN {
            match stream.write(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    waker.wake();
                    stream
                        .set_write_timeout(Some(Duration::from_secs(30)))
                        .unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        }
    });
    let mut got = Vec::with_capacity(LEN);
    let mut paused_conn = None;
    let mut woken = false;
    run(&mut reactor, |_, event, io, control| match event {
        Event::Accepted { .. } => {}
        Event::Received { conn, data } => {
            assert!(paused_conn.is_none() || woken, "bytes while paused");
            got.extend_from_slice(data);
            if paused_conn.is_none() {
                paused_conn = Some(conn);
                io.pause(conn);
            }
        }
        Event::Woken => {
            woken = true;
            io.resume(paused_conn.unwrap());
        }
        Event::Closed { error, .. } => {
            assert_eq!(error, None);
            control.done = true;
        }
        other => panic!("{other:?}"),
    });
    assert!(woken && got == pattern(7, LEN));
    writer.join().unwrap();
}

#[test]
fn few_receive_buffers_slow_nobody_to_a_halt() {
    const CLIENTS: u64 = 20;
    const LEN: usize = 1 << 20;
    let options = Options {
        recv_buffers: 2,
        recv_buffer_bytes: 4096,
        ..small()
    };
    let mut reactor = listening(options);
    let addr = reactor.local_addr().unwrap();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|id| thread::spawn(move || client(addr).write_all(&pattern(id, LEN)).unwrap()))
        .collect();
    let mut streams: HashMap<ConnId, Vec<u8>> = HashMap::new();
    let mut closed = 0;
    run(&mut reactor, |_, event, _, control| match event {
        Event::Accepted { conn, .. } => {
            streams.insert(conn, Vec::new());
        }
        Event::Received { conn, data } => streams.get_mut(&conn).unwrap().extend_from_slice(data),
        Event::Closed { error, .. } => {
            assert_eq!(error, None);
            closed += 1;
            control.done = closed == CLIENTS;
        }
        other => panic!("{other:?}"),
    });
    let mut expected: Vec<_> = (0..CLIENTS).map(|id| pattern(id, LEN)).collect();
    let mut got: Vec<_> = streams.into_values().collect();
    expected.sort();
    got.sort();
    assert!(got == expected);
    for client in clients {
        client.join().unwrap();
    }
}

#[test]
fn an_end_in_the_middle_of_a_fill_is_a_reset_and_the_buffer_comes_back() {
    // Below and above the size from which the kernel fills the buffer itself.
    for len in [10_000, 1 << 20] {
        let mut reactor = listening(small());
        let addr = reactor.local_addr().unwrap();
        let peer = thread::spawn(move || client(addr).write_all(&vec![1; len / 2]).unwrap());
        run(&mut reactor, |_, event, io, control| match event {
            Event::Accepted { conn, .. } => {
                let buf = io.alloc(len).unwrap();
                io.recv_into(conn, buf, 0, len);
                // Whoever asks twice gets what the pool has left, which is not that buffer.
                assert!(io.pool().available() < io.pool().capacity());
            }
            Event::Closed { error, .. } => {
                assert_eq!(error, Some(Errno::CONNRESET));
                control.done = true;
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(
            reactor.io().pool().available(),
            reactor.io().pool().capacity()
        );
        peer.join().unwrap();
    }
}

#[test]
fn nobody_there_is_a_refused_connection() {
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut reactor = Reactor::new(small()).unwrap();
    let conn = reactor.io().connect(nobody).unwrap();
    reactor.io().send(conn, vec![1; 100]);
    run(&mut reactor, |_, event, io, control| match event {
        Event::Closed {
            conn: closed,
            error,
        } => {
            assert_eq!((closed, error), (conn, Some(Errno::CONNREFUSED)));
            // The name is stale now, and harmless.
            io.send(conn, vec![1]);
            io.close(conn);
            io.abort(conn);
            io.pause(conn);
            io.resume(conn);
            assert_eq!(io.queued(conn), 0);
            let buf = io.alloc(1).unwrap();
            io.recv_into(conn, buf, 0, 1);
            control.done = true;
        }
        other => panic!("{other:?}"),
    });
}

#[test]
fn what_was_queued_before_connect_and_close_arrives_whole() {
    const LEN: usize = 8 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let peer = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // The reactor closes while this is unread on its side: that must not reset what it sent.
        stream.write_all(&vec![9; 100_000]).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == pattern(3, LEN));
    });
    let mut reactor = Reactor::new(small()).unwrap();
    let conn = reactor.io().connect(addr).unwrap();
    for chunk in pattern(3, LEN).chunks(100_003) {
        reactor.io().send(conn, Bytes::copy_from_slice(chunk));
    }
    let mut connected = false;
    run(&mut reactor, |_, event, io, control| match event {
        Event::Connected { conn } => {
            connected = true;
            io.close(conn);
        }
        Event::Closed { error, .. } => {
            assert_eq!(error, None);
            control.done = true;
        }
        other => panic!("after close() came {other:?}"),
    });
    assert!(connected);
    peer.join().unwrap();
}

#[test]
fn a_close_before_connected_still_sends_what_is_queued() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut reactor = Reactor::new(small()).unwrap();
    let conn = reactor
        .io()
        .connect(listener.local_addr().unwrap())
        .unwrap();
    reactor.io().send(conn, Bytes::from_static(b"farewell"));
    reactor.io().close(conn);
    let peer = thread::spawn(move || {
        let mut got = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"farewell");
    });
    run(&mut reactor, |_, event, _, control| match event {
        Event::Closed { error: None, .. } => control.done = true,
        other => panic!("{other:?}"),
    });
    peer.join().unwrap();
}

#[test]
fn a_connect_can_be_aborted() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let mut reactor = Reactor::new(small()).unwrap();
    let conn = reactor.io().connect(addr).unwrap();
    reactor.io().abort(conn);
    run(&mut reactor, |_, event, _, control| match event {
        Event::Closed {
            conn: closed,
            error: None,
        } => control.done = closed == conn,
        other => panic!("{other:?}"),
    });
}

#[test]
fn an_aborted_connection_gives_its_buffers_back() {
    let mut reactor = listening(small());
    // It never reads.
    let stream = client(reactor.local_addr().unwrap());
    let mut conn_id = None;
    let waker = reactor.waker();
    run(&mut reactor, |_, event, io, control| match event {
        Event::Accepted { conn, .. } => {
            while let Some(buf) = io.alloc(1 << 20) {
                io.send(conn, Chunk::Buf(buf, 0..1 << 20));
            }
            let fill = io.alloc(64 << 10);
            assert!(fill.is_none());
            conn_id = Some(conn);
            // By the next batch the kernel is in the middle of sending.
            waker.wake();
        }
        Event::Woken => io.abort(conn_id.unwrap()),
        Event::Closed { error, .. } => {
            assert_eq!(error, None);
            control.done = true;
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(
        reactor.io().pool().available(),
        reactor.io().pool().capacity()
    );
    drop(stream);
}

#[test]
fn a_peer_that_ignores_a_close_is_cut_off() {
    let linger = Duration::from_millis(20);
    let mut reactor = listening(Options { linger, ..small() });
    let stream = client(reactor.local_addr().unwrap());
    let mut closing_at = None;
    run(&mut reactor, |now, event, io, control| match event {
        Event::Accepted { conn, .. } => {
            io.send(conn, vec![1; 10]);
            io.close(conn);
            closing_at = Some(now);
        }
        Event::Closed { error, .. } => {
            assert_eq!(error, None);
            assert!(now.since(closing_at.unwrap()) >= linger);
            control.done = true;
        }
        other => panic!("{other:?}"),
    });
    drop(stream);
}

#[test]
fn one_connection_too_many_is_closed_and_the_others_live() {
    let mut reactor = listening(Options {
        connections: 2,
        ..small()
    });
    let addr = reactor.local_addr().unwrap();
    let peer = thread::spawn(move || {
        let mut first = client(addr);
        let mut second = client(addr);
        // Both are accepted before the third comes.
        for stream in [&mut first, &mut second] {
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
        }
        let mut third = client(addr);
        let mut rest = Vec::new();
        // An orderly end or a reset: either way it is over, and nothing came.
        let _ = third.read_to_end(&mut rest);
        assert!(rest.is_empty());
        first.write_all(b"y").unwrap();
        first.read_exact(&mut [0]).unwrap();
        second.shutdown(Shutdown::Both).unwrap();
    });
    let mut accepted = 0;
    let mut closed = 0;
    run(&mut reactor, |_, event, io, control| match event {
        Event::Accepted { .. } => accepted += 1,
        Event::Received { conn, data } => io.send(conn, Bytes::copy_from_slice(data)),
        Event::Closed { .. } => {
            closed += 1;
            control.done = closed == 2;
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(accepted, 2);
    peer.join().unwrap();
}

#[test]
fn a_dropped_reactor_leaves_no_buffer_with_the_kernel() {
    let mut reactor = listening(small());
    let addr = reactor.local_addr().unwrap();
    let streams: Vec<TcpStream> = (0..8).map(|_| client(addr)).collect();
    let pool = reactor.io().pool();
    let mut accepted = Vec::new();
    run(&mut reactor, |_, event, io, control| match event {
        Event::Accepted { conn, .. } => {
            let buf = io.alloc(1 << 20).unwrap();
            io.recv_into(conn, buf, 0, 1 << 20);
            let buf = io.alloc(1 << 20).unwrap();
            io.send(conn, Chunk::Buf(buf, 0..1 << 20));
            accepted.push(conn);
            control.done = accepted.len() == streams.len();
        }
        other => panic!("{other:?}"),
    });
    assert!(pool.available() < pool.capacity());
    let kept = pool.alloc(4096).unwrap();
    drop(reactor);
    // Dropping waited for the kernel and then gave everything back but what we hold ourselves.
    assert_eq!(pool.available(), pool.capacity() - 4096);
    drop(kept);
    drop(streams);
}
