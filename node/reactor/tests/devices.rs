//! Devices: regular files with direct I/O, and a loop device where we may have one.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/harness.rs"]
mod harness;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ashlar_node_reactor::{
    Buf, CacheMode, Dev, DeviceIoError, DeviceKind, DeviceOperation, Event, Io, OpenError,
    OpenOptions, Options, Reactor, inspect_device, monotonic,
};
use harness::{pattern, run};

const SIZE: u64 = 32 << 20;

/// A file on a real disk file system: direct I/O is not to be had in memory.
fn disk_file(size: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

fn reactor() -> Reactor {
    Reactor::new(Options {
        pool_bytes: 32 << 20,
        ..Options::default()
    })
    .unwrap()
}

/// Runs until every operation that `start` began is answered; returns the answers in order of
/// completion.
fn answers(
    reactor: &mut Reactor,
    count: usize,
) -> Vec<(u64, Result<usize, DeviceIoError>, Option<Buf>)> {
    let mut answers = Vec::new();
    run(reactor, |_, event, _, control| match event {
        Event::Device { token, result, buf } => {
            answers.push((token, result, buf));
            control.done = answers.len() == count;
        }
        other => panic!("{other:?}"),
    });
    answers
}

fn filled(io: &Io, seed: u64, len: usize) -> Buf {
    let mut buf = io.alloc(len).unwrap();
    buf.copy_from_slice(&pattern(seed, len));
    buf
}

/// Writes, flushes and reads back at depth, 4 KiB to 1 MiB, and returns what should be on the
/// device.
fn exercise(reactor: &mut Reactor, dev: Dev, size: u64) -> Vec<u8> {
    let mut expected = vec![0; size as usize];
    let mut offset = 0;
    let mut places = Vec::new();
    for index in 0..64u64 {
        let len = 4096 << (index % 9);
        if offset + len > size {
            break;
        }
        places.push((index, offset, len as usize));
        offset += len;
    }
    let io = reactor.io();
    for &(index, offset, len) in places.iter().rev() {
        // Every third from the middle of its buffer.
        let start = if index % 3 == 0 { 4096 } else { 0 };
        let mut buf = io.alloc(start + len).unwrap();
        buf[start..].copy_from_slice(&pattern(index, len));
        expected[offset as usize..offset as usize + len].copy_from_slice(&pattern(index, len));
        io.write(dev, index, offset, buf, start..start + len, index % 2 == 0);
    }
    let mut tokens = HashSet::new();
    for (token, result, buf) in answers(reactor, places.len()) {
        let len = places[token as usize].2;
        assert_eq!(result, Ok(len));
        assert!(buf.unwrap().len() >= len);
        assert!(tokens.insert(token), "answered twice");
    }
    reactor.io().flush(dev, 1000);
    let flushed = answers(reactor, 1);
    assert!(matches!(flushed[0], (1000, Ok(0), None)), "{flushed:?}");

    let io = reactor.io();
    for &(index, offset, len) in &places {
        let buf = io.alloc(len).unwrap();
        io.read(dev, index, offset, buf, 0..len);
    }
    for (token, result, buf) in answers(reactor, places.len()) {
        let len = places[token as usize].2;
        assert_eq!(result, Ok(len));
        assert!(
            buf.unwrap()[..] == pattern(token, len),
            "block {token} differs"
        );
    }
    assert_eq!(
        reactor.io().pool().available(),
        reactor.io().pool().capacity()
    );
    expected
}

#[test]
fn a_file_holds_what_was_written_at_depth() {
    let file = disk_file(SIZE);
    let mut reactor = reactor();
    let dev = reactor
        .io()
        .open_device(file.path(), OpenOptions::default())
        .unwrap();
    let info = reactor.io().device_info(dev).unwrap().clone();
    assert_eq!((info.kind, info.size), (DeviceKind::File, SIZE));
    assert!(
        info.volatile_cache && info.logical_block.is_power_of_two(),
        "{info:?}"
    );
    let expected = exercise(&mut reactor, dev, SIZE);
    assert!(fs::read(file.path()).unwrap() == expected);
}

#[test]
fn more_operations_than_the_ring_holds_all_complete() {
    let file = disk_file(SIZE);
    let mut reactor = Reactor::new(Options {
        entries: 4,
        pool_bytes: 8 << 20,
        ..Options::default()
    })
    .unwrap();
    let dev = reactor
        .io()
        .open_device(file.path(), OpenOptions::default())
        .unwrap();
    for token in 0..1000 {
        let buf = filled(reactor.io(), token, 4096);
        reactor
            .io()
            .write(dev, token, token * 4096, buf, 0..4096, false);
    }
    let tokens: HashSet<u64> = answers(&mut reactor, 1000)
        .iter()
        .map(|answer| answer.0)
        .collect();
    assert_eq!(tokens.len(), 1000);
    let bytes = fs::read(file.path()).unwrap();
    for token in 0..1000 {
        let at = token as usize * 4096;
        assert!(bytes[at..at + 4096] == pattern(token, 4096));
    }
}

#[test]
fn what_the_device_cannot_do_is_refused_with_a_type_and_the_buffer() {
    let file = disk_file(SIZE);
    let mut reactor = reactor();
    let io = reactor.io();
    let dev = io.open_device(file.path(), OpenOptions::default()).unwrap();
    let block = u64::from(io.device_info(dev).unwrap().logical_block);
    let buf = || io.pool().alloc(8192).unwrap();
    let (a, b, c, d, e, f) = (buf(), buf(), buf(), buf(), buf(), buf());
    io.write(dev, 0, 1, a, 0..4096, true);
    io.write(dev, 1, 0, b, 0..4095, false);
    io.read(dev, 2, 0, c, 1..4097);
    io.read(dev, 3, SIZE - block, d, 0..4096 + block as usize);
    io.read(dev, 4, 0, e, 4096..12288);
    io.write(dev, 5, u64::MAX - block + 1, f, 0..block as usize, false);
    for (token, result, buf) in answers(&mut reactor, 6) {
        assert_eq!(buf.unwrap().len(), 8192);
        let error = result.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&*file.path().to_string_lossy()), "{text}");
        match (token, error) {
            (
                0,
                DeviceIoError::Misaligned {
                    operation,
                    offset,
                    expected,
                    ..
                },
            ) => {
                assert_eq!((operation, offset), (DeviceOperation::WriteDurable, 1));
                assert_eq!(u64::from(expected), block);
            }
            (1, DeviceIoError::Misaligned { len: 4095, .. })
            | (2, DeviceIoError::Misaligned { start: 1, .. })
            | (
                3 | 5,
                DeviceIoError::OutOfRange {
                    what: "device",
                    limit: SIZE,
                    ..
                },
            )
            | (
                4,
                DeviceIoError::OutOfRange {
                    what: "buffer",
                    limit: 8192,
                    ..
                },
            ) => {}
            (token, error) => panic!("{token}: {error}"),
        }
    }
    assert!(fs::read(file.path()).unwrap().iter().all(|&byte| byte == 0));
}

#[test]
fn a_read_only_device_is_not_written() {
    let file = disk_file(SIZE);
    let mut reactor = reactor();
    let io = reactor.io();
    let options = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let dev = io.open_device(file.path(), options).unwrap();
    let buf = filled(io, 1, 4096);
    io.write(dev, 1, 0, buf, 0..4096, true);
    io.flush(dev, 2);
    let read = io.alloc(4096).unwrap();
    io.read(dev, 3, 0, read, 0..4096);
    for (token, result, _) in answers(&mut reactor, 3) {
        match token {
            3 => assert_eq!(result, Ok(4096)),
            _ => assert!(
                matches!(result, Err(DeviceIoError::ReadOnly { .. })),
                "{result:?}"
            ),
        }
    }
}

#[test]
fn a_second_opener_is_told_that_the_device_is_busy() {
    let file = disk_file(SIZE);
    let (mut first, mut second) = (reactor(), reactor());
    let dev = first
        .io()
        .open_device(file.path(), OpenOptions::default())
        .unwrap();
    let busy = second.io().open_device(file.path(), OpenOptions::default());
    assert!(matches!(busy, Err(OpenError::Busy { .. })), "{busy:?}");
    let at_once = OpenOptions {
        patience: Duration::ZERO,
        ..OpenOptions::default()
    };
    let before = monotonic();
    let again = first.io().open_device(file.path(), at_once);
    assert!(matches!(again, Err(OpenError::Busy { .. })), "{again:?}");
    let took = monotonic().since(before);
    assert!(
        took < OpenOptions::default().patience,
        "it waited for {took:?}, though it was told not to"
    );
    // Looking is allowed.
    assert_eq!(inspect_device(file.path()).unwrap().size, SIZE);
    first.io().close_device(dev);
    assert!(first.io().device_info(dev).is_none());
    assert!(
        second
            .io()
            .open_device(file.path(), OpenOptions::default())
            .is_ok()
    );
}

#[test]
fn closing_waits_for_what_is_under_way_and_refuses_the_rest() {
    let file = disk_file(SIZE);
    let (mut first, mut second) = (reactor(), reactor());
    let io = first.io();
    let dev = io.open_device(file.path(), OpenOptions::default()).unwrap();
    let buf = filled(io, 9, 1 << 20);
    io.write(dev, 1, 0, buf, 0..1 << 20, true);
    io.close_device(dev);
    let late = io.alloc(4096).unwrap();
    io.read(dev, 2, 0, late, 0..4096);
    io.flush(dev, 3);
    // The lock is held until the write is over.
    let busy = second.io().open_device(file.path(), OpenOptions::default());
    assert!(matches!(busy, Err(OpenError::Busy { .. })), "{busy:?}");
    for (token, result, _) in answers(&mut first, 3) {
        match token {
            1 => assert_eq!(result, Ok(1 << 20)),
            _ => assert!(
                matches!(result, Err(DeviceIoError::Closed { .. })),
                "{result:?}"
            ),
        }
    }
    assert!(
        second
            .io()
            .open_device(file.path(), OpenOptions::default())
            .is_ok()
    );
}

#[test]
fn a_file_that_shrank_is_a_short_transfer() {
    let file = disk_file(SIZE);
    let mut reactor = reactor();
    let io = reactor.io();
    let dev = io.open_device(file.path(), OpenOptions::default()).unwrap();
    file.as_file().set_len(4096).unwrap();
    let (part, none) = (io.alloc(8192).unwrap(), io.alloc(4096).unwrap());
    io.read(dev, 1, 0, part, 0..8192);
    io.read(dev, 2, 1 << 20, none, 0..4096);
    for (token, result, buf) in answers(&mut reactor, 2) {
        let Err(DeviceIoError::Short { expected, got, .. }) = result else {
            panic!("{result:?}")
        };
        assert_eq!(
            (expected, got),
            if token == 1 { (8192, 4096) } else { (4096, 0) }
        );
        assert!(buf.is_some());
    }
}

#[test]
fn a_dropped_reactor_has_waited_for_the_kernel() {
    const READS: u64 = 30;
    let file = disk_file(SIZE);
    // Really written, so that reading it takes the disk and a while.
    file.as_file()
        .write_all_at(&pattern(1, SIZE as usize), 0)
        .unwrap();
    file.as_file().sync_all().unwrap();
    let mut first = reactor();
    let pool = first.io().pool();
    let dev = first
        .io()
        .open_device(file.path(), OpenOptions::default())
        .unwrap();
    for token in 0..READS {
        let buf = first.io().alloc(1 << 20).unwrap();
        first.io().read(dev, token, token << 20, buf, 0..1 << 20);
    }
    // One batch: everything is with the kernel, and hardly anything is done.
    first.waker().wake();
    run(&mut first, |_, _, _, control| control.done = true);
    drop(first);
    assert_eq!(pool.available(), pool.capacity());
    // The memory is ours again: had the kernel not finished, its reads would show in it.
    let mut bufs: Vec<Buf> = std::iter::from_fn(|| pool.alloc(1 << 20)).collect();
    bufs.iter_mut().for_each(|buf| buf.fill(0xee));
    // Nobody holds its lock, and what is read now comes after all that was asked before.
    let mut second = reactor();
    let dev = second
        .io()
        .open_device(file.path(), OpenOptions::default())
        .unwrap();
    for token in 0..READS {
        let buf = second.io().alloc(1 << 20).unwrap();
        second.io().read(dev, token, token << 20, buf, 0..1 << 20);
    }
    answers(&mut second, READS as usize);
    assert!(bufs.iter().all(|buf| buf.iter().all(|&byte| byte == 0xee)));
}

/// The other half of the test below: owns a device and writes to it until it is killed.
#[test]
#[ignore = "run as a child of a_killed_owner_is_soon_forgotten"]
fn child_that_owns_a_device() {
    let path = std::env::var("ASHLAR_TEST_DEVICE").expect("the parent names the device");
    let mut reactor = reactor();
    let dev = reactor
        .io()
        .open_device(Path::new(&path), OpenOptions::default())
        .unwrap();
    for token in 0..16 {
        let buf = filled(reactor.io(), token, 1 << 20);
        reactor
            .io()
            .write(dev, token, token << 20, buf, 0..1 << 20, true);
    }
    let mut answered = 0;
    run(&mut reactor, |_, event, io, _| {
        let Event::Device {
            token,
            result: Ok(_),
            buf: Some(buf),
        } = event
        else {
            panic!("{event:?}")
        };
        io.write(dev, token, token << 20, buf, 0..1 << 20, true);
        answered += 1;
        if answered == 16 {
            println!("\nwriting");
        }
    });
}

#[test]
fn a_killed_owner_is_soon_forgotten() {
    let file = disk_file(SIZE);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "child_that_owns_a_device",
            "--ignored",
            "--nocapture",
        ])
        .env("ASHLAR_TEST_DEVICE", file.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(
        lines.any(|line| line.unwrap() == "writing"),
        "the child ended early"
    );
    let busy = reactor()
        .io()
        .open_device(file.path(), OpenOptions::default());
    assert!(matches!(busy, Err(OpenError::Busy { .. })), "{busy:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    reactor()
        .io()
        .open_device(file.path(), OpenOptions::default())
        .unwrap();
}

#[test]
fn the_cache_mode_can_be_overridden() {
    let file = disk_file(SIZE);
    let mut reactor = reactor();
    for (cache, volatile) in [
        (CacheMode::Auto, true),
        (CacheMode::Volatile, true),
        (CacheMode::None, false),
    ] {
        let options = OpenOptions {
            cache,
            ..OpenOptions::default()
        };
        let dev = reactor.io().open_device(file.path(), options).unwrap();
        assert_eq!(
            reactor.io().device_info(dev).unwrap().volatile_cache,
            volatile
        );
        let buf = filled(reactor.io(), 5, 4096);
        reactor.io().write(dev, 1, 4096, buf, 0..4096, true);
        assert_eq!(answers(&mut reactor, 1)[0].1, Ok(4096));
        reactor.io().close_device(dev);
    }
}

/// A loop device over a file, detached in the end.
struct Loop {
    path: PathBuf,
    _file: tempfile::NamedTempFile,
}

impl Loop {
    /// Needs root (or CAP_SYS_ADMIN) and `losetup`; says so when it has to do without.
    fn attach() -> Option<Loop> {
        let file = disk_file(SIZE);
        let output = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=on"])
            .arg(file.path())
            .output();
        match output {
            Ok(output) if output.status.success() => {
                let path = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
                Some(Loop { path, _file: file })
            }
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                eprintln!("SKIPPED: no loop device to be had (it takes root): {why}");
                None
            }
            Err(error) => {
                eprintln!("SKIPPED: cannot run losetup: {error}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.path)
            .status();
    }
}

#[test]
fn a_loop_device_is_claimed_written_and_let_go() {
    let Some(device) = Loop::attach() else { return };
    let (mut first, mut second) = (reactor(), reactor());
    let dev = first
        .io()
        .open_device(&device.path, OpenOptions::default())
        .unwrap();
    let info = first.io().device_info(dev).unwrap().clone();
    assert_eq!((info.kind, info.size), (DeviceKind::Loop, SIZE), "{info:?}");
    assert_eq!(info.loop_direct, Some(true));
    let cache = fs::read_to_string(
        Path::new("/sys/block")
            .join(device.path.file_name().unwrap())
            .join("queue/write_cache"),
    )
    .unwrap();
    assert_eq!(info.volatile_cache, cache.trim() == "write back");

    let busy = second
        .io()
        .open_device(&device.path, OpenOptions::default());
    assert!(matches!(busy, Err(OpenError::Busy { .. })), "{busy:?}");
    assert_eq!(inspect_device(&device.path).unwrap().kind, DeviceKind::Loop);

    let expected = exercise(&mut first, dev, SIZE);
    let mut bytes = vec![0; SIZE as usize];
    File::open(&device.path)
        .unwrap()
        .read_exact_at(&mut bytes, 0)
        .unwrap();
    assert!(bytes == expected);

    first.io().close_device(dev);
    let dev = second
        .io()
        .open_device(&device.path, OpenOptions::default())
        .unwrap();
    second.io().close_device(dev);
}
