//! S3 as its clients see it: boto3 through two gateways, requests that no client sends, histories of what they say
//! while nodes and gateways die.
//!
//! The scripts are in `tests/s3`, and can be pointed at any endpoint by hand. Without a Python that has boto3 they are
//! skipped, which is said.

use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ashlar_layout::names::{SYSTEM_BUCKET, SYSTEM_PARTS};
use ashlar_node_client::{Client, ClientOptions, GetOptions, ListOptions, PutOptions};
use ashlar_tests::binary;
use ashlar_tests::history::{Operation, Outcome};
use ashlar_tests::linear;
use ashlar_tests::rig::{self, Options, Rig, pause};
use ashlar_tests::s3::{self, Gateway};
use rustix::process::{Signal, kill_process};

/// One rig at a time: clients give up on what takes too long.
static ONE: Mutex<()> = Mutex::new(());

fn rig() -> (MutexGuard<'static, ()>, Rig) {
    let turn = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::up(Options {
        size: "1G",
        gateway: true,
        ..Options::default()
    });
    (turn, rig)
}

/// Runs a script through two gateways, with another user's key at hand.
fn ask_through_two(name: &str) {
    let Some(python) = s3::python() else { return };
    let (_turn, rig) = rig();
    let second = Gateway::start(&rig);
    let user = rig.ok(&["user", "add", "other", "--json"]);
    let user: serde_json::Value = serde_json::from_str(&user).expect("a user is told as JSON");
    let text = |name: &str| user[name].as_str().expect("a user has a key").to_owned();
    let mut script = s3::script(&rig, &python, name);
    script
        .env("ENDPOINT2", &second.endpoint)
        .env("ASHLAR", binary::ashlar())
        .env("ASHLAR_CLUSTER", rig.dir())
        .env("ALT_KEY", text("access_key_id"))
        .env("ALT_SECRET", text("secret_access_key"));
    s3::run(script);
}

/// What a pass through the buckets' rules counted.
fn tally(said: &str) -> serde_json::Value {
    let said: serde_json::Value = serde_json::from_str(said).expect("it is told as JSON");
    said["tally"].clone()
}

#[test]
fn a_real_client_finds_what_it_knows_of_s3() {
    ask_through_two("check.py");
}

#[test]
fn versions_are_kept_as_a_real_client_knows_them() {
    ask_through_two("versions.py");
}

#[test]
fn the_clients_that_people_use_can_do_what_they_do_on_amazons() {
    let (Some(python), Some(cache)) = (s3::python(), s3::clients()) else {
        return;
    };
    let (_turn, rig) = rig();
    let mut script = s3::script(&rig, &python, "clients.py");
    // boto3 is in the other tests, and s3cmd takes its time.
    script.args(["--only", "awscli,rclone,s5cmd,minio-py", "--cache"]);
    script.arg(cache);
    s3::run(script);
}

#[test]
fn objects_grow_at_their_end() {
    ask_through_two("append.py");
}

#[test]
fn objects_get_other_keys() {
    ask_through_two("rename.py");
}

#[test]
fn what_is_encrypted_is_for_who_has_the_key() {
    ask_through_two("encryption.py");
}

/// Writes into the records of a bucket's uploads that a gateway is putting them together since then, milliseconds since
/// 1970.
async fn put_together_since(client: &Client, bucket: &str, since_ms: u128) {
    let options = ListOptions {
        prefix: format!("uploads/{bucket}/"),
        ..ListOptions::default()
    };
    let page = client.list(SYSTEM_BUCKET, options).await;
    let page = page.expect("the uploads are listed");
    assert_eq!(page.objects.len(), 3, "{page:?}");
    for entry in page.objects {
        let found = client.get(SYSTEM_BUCKET, &entry.key, GetOptions::default());
        let mut found = found.await.expect("a record is there");
        let mut record = Vec::new();
        while let Some(piece) = found.next().await {
            record.extend_from_slice(&piece.expect("a record is read"));
        }
        let record: serde_json::Value = serde_json::from_slice(&record).expect("it is JSON");
        let serde_json::Value::Object(mut record) = record else {
            panic!("{record}");
        };
        let state = serde_json::json!({ "completing": { "since_ms": since_ms as u64 } });
        assert!(record.insert("state".to_owned(), state).is_some());
        let record = serde_json::to_vec(&record).expect("it is JSON");
        let put = client.put_bytes(
            SYSTEM_BUCKET,
            &entry.key,
            record.into(),
            PutOptions::default(),
        );
        put.await.expect("a record is written");
    }
}

#[test]
fn an_upload_is_taken_over_from_a_gateway_that_is_gone() {
    let Some(python) = s3::python() else { return };
    let (_turn, rig) = rig();
    let runtime = rig::runtime();
    let client = runtime.block_on(async { rig.client(ClientOptions::default()) });
    let stage = |name: &str| {
        let mut script = s3::script(&rig, &python, "takeover.py");
        script.arg(name).arg(rig.dir());
        s3::run(script);
    };
    stage("begin");
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_ms = now.expect("it is after 1970").as_millis();
    runtime.block_on(put_together_since(&client, "taken-over", now_ms));
    stage("early");
    runtime.block_on(put_together_since(&client, "taken-over", 0));
    stage("late");
}

/// The keys of all parts that there are, of whatever upload.
async fn parts(client: &Client) -> Vec<String> {
    let options = ListOptions {
        prefix: SYSTEM_PARTS.to_owned(),
        ..ListOptions::default()
    };
    let page = client.list(SYSTEM_BUCKET, options).await;
    let page = page.expect("the parts are listed");
    page.objects.into_iter().map(|entry| entry.key).collect()
}

#[test]
fn parts_that_nobody_waits_for_are_freed() {
    let Some(python) = s3::python() else { return };
    let (_turn, rig) = rig();
    let runtime = rig::runtime();
    let client = runtime.block_on(async { rig.client(ClientOptions::default()) });
    let stage = |name: &str| {
        let mut script = s3::script(&rig, &python, "parts.py");
        script.arg(name);
        s3::run(script);
    };
    stage("leave");
    let until = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        let left = runtime.block_on(parts(&client));
        if left.is_empty() {
            break;
        }
        assert!(std::time::Instant::now() < until, "{left:?}");
        pause(Duration::from_millis(100));
    }
    stage("make");
    let kept = runtime.block_on(parts(&client));
    assert_eq!(kept.len(), 1, "{kept:?}");
    // Of uploads that there are no records of: that a gateway had gone away from.
    for number in 1..=3 {
        let key =
            format!("{SYSTEM_PARTS}0000018bcfe568000101010101010101/0000{number}/0202020202020202");
        let put = client.put_bytes(
            SYSTEM_BUCKET,
            &key,
            vec![7u8; 100_000].into(),
            PutOptions::default(),
        );
        runtime.block_on(put).expect("a part is written");
    }
    let freed = |days: &str| {
        let said = rig.ok(&["gateway", "lifecycle", "--days-ahead", days, "--json"]);
        let tally = tally(&said);
        assert_eq!(tally["failed"], 0, "{tally}");
        tally["aborted"].as_u64()
    };
    // They are not old yet.
    assert_eq!(freed("0"), Some(0));
    assert_eq!(runtime.block_on(parts(&client)).len(), 4);
    assert_eq!(freed("3"), Some(3));
    assert_eq!(runtime.block_on(parts(&client)), kept);
    stage("complete");
}

#[test]
fn each_request_is_asked_for_all_that_it_does() {
    ask_through_two("policies.py");
}

#[test]
fn nobody_takes_all_places() {
    let Some(python) = s3::python() else { return };
    let (_turn, rig) = rig();
    s3::run(s3::script(&rig, &python, "crowd.py"));
}

#[test]
fn lists_let_in_whom_they_name() {
    ask_through_two("acl.py");
}

#[test]
fn what_is_locked_stays_whoever_asks() {
    ask_through_two("locks.py");
}

#[test]
fn what_no_client_sends_is_refused_and_touches_nothing() {
    let Some(python) = s3::python() else { return };
    let (_turn, rig) = rig();
    s3::run(s3::script(&rig, &python, "malformed.py"));
}

#[test]
fn who_was_let_into_a_bucket_is_not_let_into_the_next_one() {
    ask_through_two("slow.py");
}

#[test]
fn what_grows_old_ends_and_nothing_else() {
    let Some(python) = s3::python() else { return };
    let (_turn, rig) = rig();
    let stage = |name: &str| {
        let mut script = s3::script(&rig, &python, "lifecycle.py");
        script.args([name, "growing-old"]);
        s3::run(script);
    };
    stage("make");
    let ahead = ["gateway", "lifecycle", "--days-ahead", "3", "--json"];
    let first = tally(&rig.ok(&ahead));
    // 1,100 that are short, and the one with a tag.
    assert_eq!(first["removed"], 1101, "{first}");
    assert_eq!(
        (&first["aborted"], &first["failed"]),
        (&1.into(), &0.into())
    );
    let second = tally(&rig.ok(&ahead));
    assert_eq!(
        (&second["removed"], &second["aborted"]),
        (&0.into(), &0.into())
    );
    stage("verify");
    // The gateway that runs has gone through the bucket when the rules came, and today nothing had ended.
    let until = std::time::Instant::now() + Duration::from_secs(90);
    loop {
        let said = rig.ok(&["gateway", "lifecycle", "--json"]);
        let said: serde_json::Value = serde_json::from_str(&said).expect("it is told as JSON");
        let of = &said["lifecycles"][0];
        if of[0] == "growing-old" && of[1]["gone"].is_object() {
            assert_eq!(of[1]["gone"]["tally"]["removed"], 0, "{said}");
            break;
        }
        assert!(std::time::Instant::now() < until, "{said}");
        pause(Duration::from_millis(100));
    }
}

#[test]
fn versions_that_grow_old_end_but_those_that_are_locked() {
    let Some(python) = s3::python() else { return };
    let (_turn, rig) = rig();
    let stage = |name: &str| {
        let mut script = s3::script(&rig, &python, "lifecycle.py");
        script.args([name, "old-versions"]);
        s3::run(script);
    };
    stage("make-versions");
    let sweep = || tally(&rig.ok(&["gateway", "lifecycle", "--days-ahead", "3", "--json"]));
    let first = sweep();
    // A marker with nothing under it ends at once: the gateway that runs may have been first with that one.
    let removed = first["removed"].as_u64();
    assert!(matches!(removed, Some(15 | 16)), "{first}");
    assert_eq!(first["failed"], 0, "{first}");
    stage("verify-versions");
    let second = sweep();
    assert_eq!(
        (&second["removed"], &second["failed"]),
        (&0.into(), &0.into()),
        "{second}"
    );
    stage("verify-versions");
    // Some are put while others end.
    let mut puts = s3::script(&rig, &python, "lifecycle.py");
    puts.args(["put-versions", "old-versions"]);
    let mut puts = puts
        .spawn()
        .unwrap_or_else(|e| panic!("Python does not start: {e}"));
    let mut removed = 0;
    let ended = loop {
        removed += sweep()["removed"].as_u64().expect("a number");
        if let Some(ended) = puts.try_wait().expect("it was started") {
            break ended;
        }
    };
    assert!(ended.success(), "the puts ended with {ended}");
    removed += sweep()["removed"].as_u64().expect("a number");
    // Of 150 of each of two, one and three stay.
    assert_eq!(removed, 149 + 147);
}

#[test]
fn what_was_acknowledged_is_there_when_nodes_and_gateways_have_died() {
    let Some(python) = s3::python() else { return };
    let (_turn, rig) = rig();
    let log = rig.scratch().join("storm.log");
    let mut storm = s3::script(&rig, &python, "storm.py");
    storm.arg("put").arg(&log).stdin(Stdio::piped());
    let mut storm = storm
        .spawn()
        .unwrap_or_else(|e| panic!("Python does not start: {e}"));
    let moment = Duration::from_secs(4);
    pause(moment);
    for _ in 0..2 {
        let head = rig.head();
        let other = rig.all().into_iter().find(|n| !rig.chain().contains(n));
        let dead = [head, other.expect("a chain is three of six")];
        rig.nodes("kill", &dead);
        pause(moment);
        kill_process(s3::pid(&rig), Signal::KILL).expect("the gateway runs");
        pause(moment / 4);
        // Both the nodes and the gateway come back.
        rig.up_again();
        pause(moment);
    }
    drop(storm.stdin.take());
    let ended = storm.wait().expect("it was started");
    assert!(ended.success(), "the storm ended with {ended}");
    let mut verify = s3::script(&rig, &python, "storm.py");
    verify.arg("verify").arg(&log);
    s3::run(verify);
}

#[test]
fn what_two_gateways_say_is_linearizable_while_nodes_and_gateways_die() {
    let Some(python) = s3::python() else { return };
    let (_turn, rig) = rig();
    let second = Gateway::start(&rig);
    let log = rig.scratch().join("history.log");
    let script = |mode: &str| {
        let mut script = s3::script(&rig, &python, "history.py");
        script.env("ENDPOINT2", &second.endpoint);
        script.arg(mode).arg(&log);
        script
    };
    let mut load = script("run");
    let mut load = load
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("Python does not start: {e}"));
    let moment = Duration::from_secs(2);
    pause(moment * 2);
    for round in 0..3 {
        rig.nodes(if round == 1 { "stop" } else { "kill" }, &[rig.head()]);
        pause(moment);
        kill_process(s3::pid(&rig), Signal::KILL).expect("the gateway runs");
        pause(moment / 2);
        if round == 1 {
            rig.nodes("cont", &rig.all());
        }
        rig.up_again();
        pause(moment);
    }
    drop(load.stdin.take());
    let ended = load.wait().expect("it was started");
    assert!(ended.success(), "the load ended with {ended}");
    rig.nodes("kill", &rig.all());
    rig.up_again();
    s3::run(script("look"));
    let history = s3::history(&log);
    let count = |is: fn(&Operation) -> bool| history.count(is);
    let told = format!(
        "{} reads found something, {} changes done, {} unmet, {} unknown, {} pages",
        count(|o| matches!(o.outcome, Outcome::Found(_))),
        count(|o| o.outcome == Outcome::Done),
        count(|o| o.outcome == Outcome::Unmet),
        count(|o| o.outcome == Outcome::Unknown),
        history.listings.len()
    );
    eprintln!("{told}");
    let mut wrong = linear::check_keys(&history);
    println!("doubt: 1 histories checked");
    println!(
        "doubt: {} operations checked of real processes",
        history.operations.len()
    );
    wrong.extend(linear::listings(&history));
    linear::assert_right(&wrong, &told);
    let done =
        |is: fn(&Operation) -> bool, least| assert!(count(is) >= least, "too little: {told}");
    done(|o| matches!(o.outcome, Outcome::Found(_)), 100);
    done(|o| o.outcome == Outcome::Done, 100);
    done(|o| o.outcome == Outcome::Unmet, 10);
    // At the end every key was looked at, through both.
    done(|o| o.client >= 1000 && o.served(), 32);
}
