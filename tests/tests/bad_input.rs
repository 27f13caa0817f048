//! What a person gets wrong, and what the machine does to a person: a clear error, the right exit code,
//! and nothing lost (P8). Exit 1 is "failed", 2 is "the command line makes no sense".

use std::io::Write;
use std::process::{Command, Stdio};

use ashlar_node_client::{ClientOptions, GetOptions, PutOptions};
use ashlar_tests::content::Content;
use ashlar_tests::folder;
use ashlar_tests::load;
use ashlar_tests::rig::{self, Options, Rig};
use bytes::Bytes;

#[test]
fn names_ranges_and_command_lines_are_checked() {
    let rig = Rig::up(Options::default());
    rig.ok(&["mb", "ashlar://names"]);
    let file = rig.scratch().join("file");
    std::fs::write(&file, b"0123456789").expect("writable");
    let file = file.to_str().expect("UTF-8");

    for bad in [
        "ab",
        "Upper",
        "-dash",
        "dot..dot",
        "192.168.1.1",
        "under_score",
        &"x".repeat(64),
    ] {
        rig.fails(&["mb", &format!("ashlar://{bad}")], 2, &["bucket"]);
    }
    let longest = "k".repeat(1024);
    rig.ok(&["put", file, &format!("ashlar://names/{longest}")]);
    rig.fails(
        &["put", file, &format!("ashlar://names/{longest}k")],
        2,
        &["1024|1025"],
    );
    for odd in [
        "ä/ö/ü",
        "space here",
        "日本語",
        "..",
        "a//b",
        "%2F",
        "q?x=1#y",
        "\u{1F480}",
    ] {
        rig.ok(&["put", file, &format!("ashlar://names/{odd}")]);
        assert_eq!(
            rig.ok(&["get", &format!("ashlar://names/{odd}"), "-"]),
            "0123456789",
            "{odd}"
        );
    }

    rig.fails(
        &["get", "ashlar://names/none", "-"],
        1,
        &["no such|not found|no object"],
    );
    rig.fails(
        &["get", "ashlar://nobucket/none", "-"],
        1,
        &["no such bucket|no bucket"],
    );
    rig.fails(&["mb", "ashlar://names"], 1, &["exists"]);
    rig.fails(&["rb", "ashlar://names"], 1, &["not empty|holds|empty"]);
    rig.fails(&["get", "s3://names/x", "-"], 2, &["ashlar://"]);
    rig.fails(&["no-such-command"], 2, &["no-such-command"]);
    rig.fails(
        &["put", "/no/such/file", "ashlar://names/x"],
        1,
        &["/no/such/file"],
    );
    rig.fails(&["rig", "up", "--class", "0+0"], 2, &["class"]);
    rig.fails(&["rig", "up", "--size", "12potatoes"], 2, &["size"]);

    let runtime = rig::runtime();
    runtime.block_on(async {
        let client = rig.client(ClientOptions::default());
        let range = ashlar_node_client::ByteRange::From(11);
        let got = client
            .get(
                "names",
                "ä/ö/ü",
                GetOptions {
                    range: Some(range),
                    version: None,
                },
            )
            .await;
        let error = got
            .err()
            .unwrap_or_else(|| panic!("a range beyond the end was served"));
        assert_eq!(
            error.code(),
            ashlar_node_client::Code::RangeNotSatisfiable,
            "{error}"
        );
    });
}

#[test]
fn a_source_that_vanishes_leaves_the_old_object() {
    let rig = Rig::up(Options::default());
    rig.ok(&["mb", "ashlar://source"]);
    let old = rig.scratch().join("old");
    folder::write_random(&old, 5 << 20, 3);
    rig.ok(&["put", old.to_str().expect("UTF-8"), "ashlar://source/k"]);

    // A file that is cut short while it is read: its length was known, and is missed.
    let shrinking = rig.scratch().join("shrinking");
    folder::write_random(&shrinking, 1 << 20, 4);
    let fifo = rig.scratch().join("fifo");
    let made = Command::new("mkfifo")
        .arg(&fifo)
        .status()
        .expect("mkfifo runs");
    assert!(made.success());
    let runtime = rig::runtime();
    runtime.block_on(async {
        let client = rig.client(ClientOptions::default());
        let half = Content {
            seed: 8,
            len: 6 << 20,
        };
        let options = PutOptions {
            size_exact: Some(12 << 20),
            ..PutOptions::default()
        };
        let put = client
            .put("source", "k", std::io::Cursor::new(half.bytes()), options)
            .await;
        let error = put
            .err()
            .unwrap_or_else(|| panic!("half a source was taken for a whole one"));
        assert!(!error.is_uncertain(), "{error}");
    });

    // A put whose process dies in the middle: what it had sent is invisible.
    let mut command = rig.command(&["put", "-", "ashlar://source/k"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("ashlar does not start: {e}"));
    let mut stdin = child.stdin.take().expect("piped");
    stdin
        .write_all(
            &Content {
                seed: 9,
                len: 20 << 20,
            }
            .bytes(),
        )
        .expect("it reads its input");
    child.kill().expect("it lives");
    child.wait().expect("it ends");
    drop(stdin);

    let back = rig.scratch().join("back");
    rig.ok(&["get", "ashlar://source/k", back.to_str().expect("UTF-8")]);
    folder::assert_same_file(&old, &back);
}

#[test]
fn a_destination_that_is_full_keeps_no_part_under_the_name() {
    let rig = Rig::up(Options::default());
    rig.ok(&["mb", "ashlar://dest"]);
    let source = rig.scratch().join("source");
    folder::write_random(&source, 8 << 20, 5);
    rig.ok(&["put", source.to_str().expect("UTF-8"), "ashlar://dest/k"]);

    // Into a closed pipe: an end without a panic, and no complaint worth a word.
    let mut child = rig
        .command(&["get", "ashlar://dest/k", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("ashlar does not start: {e}"));
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!text.contains("panicked"), "{text}");

    // A rotten or unreachable store must not leave half a file either: all nodes are gone.
    let target = rig.scratch().join("partial");
    rig.nodes("kill", &rig.all());
    rig.fails(
        &["get", "ashlar://dest/k", target.to_str().expect("UTF-8")],
        1,
        &["ashlar"],
    );
    assert!(!target.exists(), "a file is left under the final name");
    rig.up_again();

    if !rig::is_root() {
        eprintln!("skipped: a full destination (mounting a small tmpfs takes root)");
        return;
    }
    let small = rig.scratch().join("small");
    std::fs::create_dir(&small).expect("writable");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2m", "ashlar-test"])
        .arg(&small)
        .status()
        .expect("mount runs");
    if !mounted.success() {
        eprintln!("skipped: a full destination (this container may not mount a tmpfs)");
        return;
    }
    let target = small.join("k");
    let output = rig.run(&["get", "ashlar://dest/k", target.to_str().expect("UTF-8")]);
    let left: Vec<_> = std::fs::read_dir(&small)
        .expect("mounted")
        .flatten()
        .map(|e| e.file_name())
        .collect();
    let unmounted = Command::new("umount")
        .arg(&small)
        .status()
        .expect("umount runs");
    assert_eq!(
        output.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    rig::says(&output, &["space|room|full"]).unwrap_or_else(|word| {
        panic!(
            "the error does not say '{word}': {}",
            String::from_utf8_lossy(&output.stderr)
        )
    });
    assert!(left.is_empty(), "left behind: {left:?}");
    assert!(unmounted.success());
}

#[test]
fn a_full_store_refuses_writes_and_serves_reads_and_deletes() {
    let rig = Rig::up(Options {
        size: "128M",
        ..Options::default()
    });
    let runtime = rig::runtime();
    runtime.block_on(async {
        let client = rig.client(ClientOptions::default());
        client
            .create_bucket("full")
            .await
            .unwrap_or_else(|e| panic!("no bucket: {e}"));
        let small = Content { seed: 1, len: 100 };
        let body = Bytes::from(small.bytes());
        client
            .put_bytes("full", "small", body, PutOptions::default())
            .await
            .expect("there is room");

        // 6 devices of 128 MiB hold less than 768 MiB, parity and all.
        let mut stored = Vec::new();
        let mut refusal = None;
        for i in 0..160u64 {
            let content = Content {
                seed: 1000 + i,
                len: 8 << 20,
            };
            let body = Bytes::from(content.bytes());
            match client
                .put_bytes("full", &format!("big-{i}"), body, PutOptions::default())
                .await
            {
                Ok(_) => stored.push((format!("big-{i}"), content)),
                Err(error) => {
                    refusal = Some(error);
                    break;
                }
            }
        }
        let refusal = refusal
            .unwrap_or_else(|| panic!("{} objects fitted: more than there is", stored.len()));
        assert_eq!(
            refusal.code(),
            ashlar_node_client::Code::DeviceFull,
            "{refusal}"
        );
        assert!(
            stored.len() > 20,
            "full after {} objects: {refusal}",
            stored.len()
        );

        // Reads go on, and so do deletes, small changes being what room is kept for.
        for (key, content) in stored.iter().step_by(7) {
            let (bytes, _) = load::read(&client, "full", key)
                .await
                .expect("readable")
                .expect("there");
            assert_eq!(content.difference(&bytes), None, "{key}");
        }
        let (bytes, _) = load::read(&client, "full", "small")
            .await
            .expect("readable")
            .expect("there");
        assert_eq!(small.difference(&bytes), None);
        for (key, _) in &stored[..5] {
            let deleted = client.delete("full", key, Default::default()).await;
            deleted.unwrap_or_else(|e| panic!("a full store must still delete, but {key}: {e}"));
            assert!(
                load::read(&client, "full", key)
                    .await
                    .expect("readable")
                    .is_none(),
                "{key} is deleted"
            );
        }
    });
    // Full devices must open again.
    rig.nodes("kill", &rig.all());
    rig.up_again();
    runtime.block_on(async {
        let client = rig.client(ClientOptions::default());
        let (bytes, _) = load::read(&client, "full", "small")
            .await
            .expect("readable")
            .expect("there");
        assert_eq!(bytes, Content { seed: 1, len: 100 }.bytes());
    });
}
