//! The demonstration of failover: six nodes in three zones, writers and readers at full rate, and one node at a time
//! killed, stopped, restarted and cut off, heads included. Nothing that was acknowledged is lost, nothing
//! stale is read, nothing is done twice; how long the store stood still each time is told, and drawn.
//!
//! `ASHLAR_FAILOVER_SECONDS`: how long (20). `ASHLAR_FAILOVER_ONLY`: only faults whose name has one of these words,
//! such as `head,stop`. `ASHLAR_FAILOVER_LASTS`, `ASHLAR_FAILOVER_PAUSE`: how long a fault lasts and how much peace is
//! behind it, in milliseconds (random, 200). `ASHLAR_CHART`: where the chart goes (`failover.svg` in
//! the target folder). `ASHLAR_SEED`.
//!
//! No time is asserted: the machine may be slow. What is asserted is what must hold on any.

use std::time::{Duration, Instant};

use ashlar_node_client::{Client, ClientOptions};
use ashlar_tests::binary;
use ashlar_tests::chart::{Chart, Series, Span};
use ashlar_tests::content::{Random, seed, setting};
use ashlar_tests::history::{Clock, History, Kind, Operation, Outcome, gap};
use ashlar_tests::linear;
use ashlar_tests::nemesis::{Fault, Field, Struck};
use ashlar_tests::pulse::{Beats, Pulse};
use ashlar_tests::rig::{self, PATIENCE};
use ashlar_tests::storm::{Shape, Storm};

const SECONDS: u64 = 20;
const BUCKET: &str = "failover";
/// Time in peace before the first fault and behind the last.
const PEACE: Duration = Duration::from_secs(1);
/// The first connections and pages of memory, in nanoseconds: no measure of peace.
const WARM: u64 = 500_000_000;
/// Time in peace between faults, in milliseconds.
const PAUSE: u64 = 200;
/// So long a disk that has stopped is counted, in nanoseconds.
const STALL: u64 = 20_000_000;
/// A point of the chart, in nanoseconds.
const POINT: u64 = 50_000_000;

fn is_read(operation: &Operation) -> bool {
    operation.kind == Kind::Get
}

fn is_write(operation: &Operation) -> bool {
    !is_read(operation)
}

fn ms(span: (u64, u64)) -> f64 {
    (span.1 - span.0) as f64 / 1e6
}

/// The faults of `ASHLAR_FAILOVER_ONLY`, all where it is not set.
fn wanted(fault: &Fault) -> bool {
    let Ok(words) = std::env::var("ASHLAR_FAILOVER_ONLY") else {
        return true;
    };
    let name = fault.to_string();
    words.split(',').any(|word| name.contains(word.trim()))
}

/// Waits until reads and changes are served again.
fn goes_on(storm: &Storm) {
    let (reads, writes) = storm.served();
    rig::eventually("the load goes on", PATIENCE, || {
        let (reads_now, writes_now) = storm.served();
        (reads_now > reads + 20 && writes_now > writes + 20).then_some(())
    });
}

/// One fault after the other until the time is up.
fn strike_all(
    field: &Field,
    storm: &Storm,
    clock: &Clock,
    seconds: u64,
    random: &mut Random,
) -> Vec<Struck> {
    let mut struck = Vec::new();
    let mut todo: Vec<Fault> = Vec::new();
    let mut rounds = 0;
    let pause = setting("ASHLAR_FAILOVER_PAUSE", PAUSE);
    let fixed = setting("ASHLAR_FAILOVER_LASTS", 0);
    let end = Instant::now() + Duration::from_secs(seconds);
    rig::pause(PEACE);
    while Instant::now() < end {
        if todo.is_empty() {
            todo = field.faults(random).into_iter().filter(wanted).collect();
            assert!(!todo.is_empty(), "ASHLAR_FAILOVER_ONLY leaves no fault");
            todo.reverse();
            rounds += 1;
        }
        let Some(fault) = todo.pop() else { continue };
        let drawn = 300 + random.below(600);
        let lasts = Duration::from_millis(if fixed == 0 { drawn } else { fixed });
        match field.strike(fault, lasts, clock, random) {
            Some(mut done) => {
                // The store is well; the next fault must not hide how long its clients take to see that.
                goes_on(storm);
                done.well = clock.now();
                struck.push(done);
            }
            None => eprintln!("NOT TRIED: {fault}: no node is that"),
        }
        rig::pause(Duration::from_millis(pause));
    }
    if rounds == 1 && !todo.is_empty() {
        let names: Vec<String> = todo.iter().rev().map(Fault::to_string).collect();
        eprintln!("NOT TRIED, the time was up: {}", names.join(", "));
    }
    rig::pause(PEACE);
    struck
}

/// Prints what each fault did, and gives it to the chart.
fn report(history: &History, struck: &[Struck], disk: &Beats) -> Vec<Span> {
    let writes = history.served(is_write);
    let reads = history.served(is_read);
    eprintln!(
        "{:<26} {:>4} {:>9} {:>9} {:>11} {:>9} {:>11} {:>11} {:>11} {:>8} {:>8}  head  the slowest",
        "fault",
        "node",
        "lasted",
        "caught up",
        "no write",
        "from",
        "no read",
        "no disk",
        "slowest",
        "unknown",
        "refused"
    );
    let mut spans = Vec::new();
    // The longest time without a write that the disk has no part in: when a head fails, and when another node does.
    let mut own = [0.0_f64; 2];
    for done in struck {
        let within = |o: &&Operation| o.ret >= done.from && o.invoke <= done.well;
        let of = |outcome| {
            let is = |o: &&Operation| o.outcome == outcome;
            history.operations.iter().filter(within).filter(is).count()
        };
        let took = |o: &Operation| o.ret - o.invoke;
        let slowest = history.operations.iter().filter(within);
        let slowest = slowest.max_by_key(|o| took(o));
        let no_write = gap(&writes, done.from, done.well);
        let no_read = gap(&reads, done.from, done.well);
        // While nothing was written: what is the machine's own of it.
        let no_disk = disk.stood_still(no_write.0, no_write.1);
        let of_head = usize::from(!done.fault.to_string().ends_with("head"));
        own[of_head] = own[of_head].max(ms(no_write) - ms(no_disk));
        eprintln!(
            "{:<26} {:>4} {:>6.0} ms {:>6.0} ms {:>8.1} ms {:>6.0} ms {:>8.1} ms {:>8.1} ms {:>8.1} ms {:>8} {:>8}  \
             {:>4}  {}",
            done.fault.to_string(),
            done.node,
            ms((done.from, done.to)),
            ms((done.to, done.well)),
            ms(no_write),
            // Behind the fault, or behind its end? Below zero, where it began before.
            (no_write.0 as f64 - done.from as f64) / 1e6,
            ms(no_read),
            ms(no_disk),
            slowest.map_or(0, took) as f64 / 1e6,
            of(Outcome::Unknown),
            of(Outcome::Refused),
            done.head_after,
            slowest.map_or_else(String::new, |o| format!("{:?}", o.kind)),
        );
        let longest = if ms(no_read) > ms(no_write) {
            no_read
        } else {
            no_write
        };
        spans.push(Span {
            label: format!("{} {}", done.fault, done.node),
            from: done.from,
            to: done.to,
            gap: longest,
        });
    }
    let [head, other] = own;
    eprintln!(
        "no write for {head:.1} ms at the longest when a head failed, for {other:.1} ms when another node did, without \
         what the disk stood still"
    );
    // What the machine itself does, for comparison.
    let first = struck.first().map_or(0, |s| s.from);
    let peace = |served: &[u64]| {
        let before = served.partition_point(|at| *at < first);
        let last = before.checked_sub(1).map_or(0, |last| served[last]);
        ms(gap(&served[..before], WARM.min(last), last))
    };
    eprintln!(
        "in peace before: no write for {:.1} ms, no read for {:.1} ms, no disk for {:.1} ms at the longest; {}",
        peace(&writes),
        peace(&reads),
        ms(disk.stood_still(WARM.min(first), first)),
        disk.stalls(STALL)
    );
    spans
}

fn draw(history: &History, spans: Vec<Span>, length: u64, seed: u64) {
    let path = std::env::var_os("ASHLAR_CHART").map_or_else(
        || binary::target_folder().join("failover.svg"),
        std::path::PathBuf::from,
    );
    let chart = Chart {
        title: format!("failover: six nodes, three zones, one failure at a time (seed {seed})"),
        length,
        bucket: POINT.max(length / 4000),
        series: vec![
            Series::of("writes", &history.operations, is_write),
            Series::of("reads", &history.operations, is_read),
        ],
        spans,
    };
    std::fs::write(&path, chart.svg()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    eprintln!("chart: {}", path.display());
}

fn clients(field: &Field, count: u32) -> Vec<Client> {
    (0..count)
        .map(|_| field.rig().client(ClientOptions::default()))
        .collect()
}

#[test]
fn nothing_is_lost_stale_or_done_twice_while_nodes_fail_one_at_a_time() {
    let seed = seed("failover");
    let seconds = setting("ASHLAR_FAILOVER_SECONDS", SECONDS);
    // Devices hold everything that is ever written: none is so full that requests are refused meanwhile.
    let (size, bytes) = if seconds > 40 {
        ("4G", 4 << 30)
    } else {
        ("1G", 1 << 30)
    };
    let runtime = rig::runtime();
    let field = Field::up(size, bytes, seed);
    let clock = Clock::start();
    let disk = Pulse::start(field.rig().dir(), clock);
    let shape = Shape {
        bucket: BUCKET.to_owned(),
        writers: 6,
        readers: 6,
        hot: 48,
        seed,
    };
    let storm = Storm::new(shape, clock);
    let (clients, tasks) = runtime.block_on(async {
        let clients = clients(&field, 3);
        let made = clients[0].create_bucket(BUCKET).await;
        made.unwrap_or_else(|e| panic!("no bucket: {e}"));
        let tasks = storm.begin(&clients);
        (clients, tasks)
    });
    let mut random = Random::new(seed ^ 0xfa11);
    let struck = strike_all(&field, &storm, &clock, seconds, &mut random);
    let length = clock.now();
    let mut history = runtime.block_on(storm.end(tasks));
    let spans = report(&history, &struck, &disk.end());
    draw(&history, spans, length, seed);
    let (done, unknown, refused) = (
        history.count(|o| is_write(o) && o.served()),
        history.count(|o| is_write(o) && o.outcome == Outcome::Unknown),
        history.count(|o| o.outcome == Outcome::Refused),
    );
    let reads = history.count(|o| is_read(o) && o.served());
    let pages = history.listings.len();

    // In peace, by the clients that went through it all; then after the death of everything, by a new one.
    history.merge(runtime.block_on(storm.look(&clients[0])));
    field.die_and_rise();
    let fresh = runtime.block_on(async { field.rig().client(ClientOptions::default()) });
    history.merge(runtime.block_on(storm.look(&fresh)));
    let begun = Instant::now();
    let mut wrong = linear::check_all(&history);
    println!("doubt: 1 histories checked");
    println!(
        "doubt: {} operations checked of real processes",
        history.operations.len()
    );
    wrong.extend(linear::listings(&history));
    eprintln!(
        "{} faults; {done} writes answered, {unknown} unknown, {refused} operations refused, {reads} reads, {pages} \
         pages; {} keys checked in {:?}",
        struck.len(),
        history.by_key().len(),
        begun.elapsed()
    );
    linear::assert_right(&wrong, &format!("seed {seed}"));
    assert!(!struck.is_empty(), "nothing was done to any node");
    assert!(
        done > 100 && reads > 100 && pages > 5,
        "too little happened to prove anything"
    );
}
