//! The loop itself: deadlines, wakers, options.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/harness.rs"]
mod harness;

use std::net::TcpListener;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ashlar_node_reactor::{Event, Options, Reactor, monotonic};
use harness::run;

fn small() -> Options {
    Options {
        pool_bytes: 4 << 20,
        ..Options::default()
    }
}

#[test]
fn deadlines_come_in_order_and_never_early() {
    let mut reactor = Reactor::new(small()).unwrap();
    let start = monotonic();
    let mut due: Vec<_> = (1..=5)
        .map(|step| start + Duration::from_millis(step * 3))
        .collect();
    due.reverse();
    let waker = reactor.waker();
    waker.wake();
    let mut seen = 0;
    let control = run(&mut reactor, |now, event, _, control| match event {
        Event::Woken => control.deadline = due.pop(),
        Event::Deadline => {
            assert!(now >= control.deadline.unwrap());
            seen += 1;
            control.deadline = due.pop();
            control.done = control.deadline.is_none();
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(seen, 5);
    assert!(
        control.batches < 30,
        "the loop does not spin: {} batches",
        control.batches
    );
}

#[test]
fn wakers_wake_from_other_threads_and_outlive_the_reactor() {
    // Spinning, too, must notice.
    for spin in [Duration::ZERO, Duration::from_micros(50)] {
        let mut reactor = Reactor::new(Options { spin, ..small() }).unwrap();
        let (acknowledge, next) = mpsc::sync_channel(1);
        let waker = reactor.waker();
        let thread = thread::spawn(move || {
            for _ in 0..100 {
                waker.clone().wake();
                next.recv().unwrap();
            }
            waker
        });
        let mut woken = 0;
        run(&mut reactor, |_, event, _, control| {
            assert!(matches!(event, Event::Woken), "{event:?}");
            woken += 1;
            control.done = woken == 100;
            acknowledge.send(()).unwrap();
        });
        let waker = thread.join().unwrap();
        drop(reactor);
        waker.wake();
    }
}

#[test]
fn options_that_make_no_sense_are_refused_with_their_name() {
    for (options, name) in [
        (
            Options {
                entries: 3,
                ..small()
            },
            "entries",
        ),
        (
            Options {
                recv_buffers: 0,
                ..small()
            },
            "recv_buffers",
        ),
        (
            Options {
                recv_buffer_bytes: 1000,
                ..small()
            },
            "recv_buffer_bytes",
        ),
        (
            Options {
                pool_bytes: 0,
                ..small()
            },
            "pool_bytes",
        ),
        (
            Options {
                cpu: Some(100_000),
                ..small()
            },
            "cpu",
        ),
    ] {
        let error = Reactor::new(options).err().unwrap().to_string();
        assert!(error.contains(name), "{error}");
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = Some(taken.local_addr().unwrap());
    let error = Reactor::new(Options { listen, ..small() })
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("cannot listen"), "{error}");
}
