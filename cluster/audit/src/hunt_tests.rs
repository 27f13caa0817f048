//! Devices that are away for good, and what the auditor does about it, whatever ends it meanwhile.

use std::time::Duration;

use ashlar_layout::ids::DeviceNo;
use proptest::prelude::*;

use crate::audit::{Event, World};
use crate::audit_tests::{Driver, Store};
use crate::mends_tests::mends;
use crate::queue::AWAY_MAX;

/// Time goes by, a second at a time, and devices are told of now and then.
fn for_seconds(driver: &mut Driver, store: &mut Store, seconds: u64, held: Option<&str>) {
    for second in 0..seconds {
        if second % 15 == 0 {
            driver.settle(store);
            let event = store.world(held);
            driver.event(store, event);
        }
        driver.settle(store);
        store.pass(Duration::from_secs(1));
    }
    driver.settle(store);
}

/// The same, and these devices are out, whatever is away.
fn with_out(driver: &mut Driver, store: &mut Store, seconds: u64, out: &[u32]) {
    for second in 0..seconds {
        if second % 15 == 0 {
            driver.settle(store);
            let Event::World(world) = store.world(None) else {
                return;
            };
            let out = out.iter().map(|no| DeviceNo(*no)).collect();
            driver.event(store, Event::World(World { out, ..world }));
        }
        driver.settle(store);
        store.pass(Duration::from_secs(1));
    }
    driver.settle(store);
}

fn moved(store: &Store) -> usize {
    store.moves.len()
}

#[test]
fn what_was_on_a_device_that_is_gone_is_put_elsewhere() {
    let mut store = Store::new(2 * AWAY_MAX, 3);
    let all = 6 * AWAY_MAX;
    let mut driver = Driver::new(&store);
    for_seconds(&mut driver, &mut store, 20, None);
    store.away.insert(DeviceNo(3));
    for_seconds(&mut driver, &mut store, 890, None);
    assert_eq!(moved(&store), 0, "it may be back at any time");
    let read = store.read.len();
    for_seconds(&mut driver, &mut store, 30, None);
    assert_eq!(moved(&store), all);
    assert_eq!(store.read.len(), read + all, "each was looked at once");
    let record = store.record();
    let absent = &record.absent[&DeviceNo(3)];
    assert_eq!(
        (absent.moved, absent.hunted, absent.parts),
        (all as u64, true, 0)
    );
    assert_eq!((record.hunt, record.open), (None, vec![]));
    let tally = store.all();
    assert_eq!(
        (tally.moved, tally.bad(), tally.repaired),
        (all as u64, 0, 0)
    );
    // It stays so, and once it is back nothing is told of it any more.
    for_seconds(&mut driver, &mut store, 3000, None);
    assert!(store.moves.values().all(|times| *times == 1));
    let margins = store.record().ended.unwrap().pass.margins;
    assert!(margins.keys().eq([&3]), "{margins:?}");
    store.away.clear();
    for_seconds(&mut driver, &mut store, 20, None);
    assert!(store.record().absent.is_empty());
    assert_eq!(moved(&store), all);
}

#[test]
fn what_can_lose_little_more_does_not_wait() {
    let mut store = Store::new(10, 1);
    let mut driver = Driver::new(&store);
    for_seconds(&mut driver, &mut store, 20, None);
    store.away.extend([DeviceNo(2), DeviceNo(3)]);
    // It is told so three times.
    for_seconds(&mut driver, &mut store, 29, None);
    assert_eq!(moved(&store), 0);
    for_seconds(&mut driver, &mut store, 1, None);
    assert_eq!(moved(&store), 10);
    assert_eq!(store.all().moved, 20);
}

#[test]
fn one_answer_that_it_serves_begins_the_wait_anew() {
    let mut store = Store::new(10, 1);
    let mut driver = Driver::new(&store);
    for away in [2, 1] {
        // As long as it takes but for one answer, again and again.
        for _ in 0..5 {
            store.away.extend((0..away).map(DeviceNo));
            let seconds = if away == 2 { 29 } else { 890 };
            for_seconds(&mut driver, &mut store, seconds, None);
            store.away.clear();
            for_seconds(&mut driver, &mut store, 10, None);
        }
        assert_eq!(moved(&store), 0, "{away}");
    }
}

#[test]
fn only_time_that_was_watched_counts() {
    let mut store = Store::new(10, 1);
    let mut driver = Driver::new(&store);
    store.away.insert(DeviceNo(3));
    for_seconds(&mut driver, &mut store, 890, None);
    // Whoever goes on was not there in between,
    store.pass(Duration::from_secs(3000));
    let mut driver = Driver::new(&store);
    for_seconds(&mut driver, &mut store, 600, None);
    assert_eq!(moved(&store), 0);
    // clocks are set,
    store.now.wall_ms += 5_000_000;
    for_seconds(&mut driver, &mut store, 60, None);
    assert_eq!(moved(&store), 0);
    // and of a time without answers a minute counts.
    store.pass(Duration::from_secs(5000));
    for_seconds(&mut driver, &mut store, 60, None);
    assert_eq!(moved(&store), 0);
    for_seconds(&mut driver, &mut store, 200, None);
    assert_eq!(moved(&store), 10);
    let record = store.record();
    assert!(record.absent[&DeviceNo(3)].hunted && record.open.is_empty());
}

#[test]
fn while_too_many_are_away_a_person_is_waited_for() {
    let mut store = Store::new(10, 1);
    let mut driver = Driver::new(&store);
    store.away.insert(DeviceNo(3));
    let why = "2 of 4 devices are away";
    for_seconds(&mut driver, &mut store, 3000, Some(why));
    assert_eq!(moved(&store), 0);
    assert_eq!(store.record().held.as_deref(), Some(why));
    for_seconds(&mut driver, &mut store, 30, None);
    assert_eq!((moved(&store), store.record().held), (10, None));
}

/// Whoever is cut off sees all of them away: nobody else says so.
#[test]
fn what_is_not_out_stays_where_it_is() {
    let mut store = Store::new(10, 2);
    let mut driver = Driver::new(&store);
    store.away.extend((0..4).map(DeviceNo));
    with_out(&mut driver, &mut store, 5000, &[]);
    assert_eq!(moved(&store), 0);
    store.away = [DeviceNo(3)].into();
    with_out(&mut driver, &mut store, 5000, &[]);
    let record = store.record();
    assert_eq!((moved(&store), record.held, record.hunt), (0, None, None));
    assert!(!record.absent[&DeviceNo(3)].hunted);
    // Another one is out, which serves as far as this one sees.
    with_out(&mut driver, &mut store, 5000, &[1]);
    assert_eq!(moved(&store), 0);
    // It has waited for long enough, and now it is out.
    with_out(&mut driver, &mut store, 15, &[1, 3]);
    assert_eq!(moved(&store), 20);
    assert!(store.record().absent[&DeviceNo(3)].hunted);
}

#[test]
fn what_was_in_for_a_while_is_waited_for_and_gone_through_anew() {
    let mut store = Store::new(3, 2);
    let mut driver = Driver::new(&store);
    store.away.insert(DeviceNo(3));
    with_out(&mut driver, &mut store, 1000, &[3]);
    assert_eq!(moved(&store), 6);
    assert!(store.record().absent[&DeviceNo(3)].hunted);
    // Nobody here has seen it serve. Something was written to it.
    with_out(&mut driver, &mut store, 15, &[]);
    let one = vec![[true; 4]];
    store.objects.insert("later".to_owned(), one);
    with_out(&mut driver, &mut store, 870, &[3]);
    let record = store.record();
    assert_eq!(
        (moved(&store), record.absent[&DeviceNo(3)].hunted),
        (6, false)
    );
    with_out(&mut driver, &mut store, 30, &[3]);
    assert_eq!(moved(&store), 7);
    assert!(store.record().absent[&DeviceNo(3)].hunted);
}

/// What is not gone through to its end for one device does not keep back another one.
#[test]
fn a_hunt_for_what_came_in_is_over() {
    let mut store = Store::new(2 * AWAY_MAX, 1);
    store.full = true;
    let mut driver = Driver::new(&store);
    with_out(&mut driver, &mut store, 20, &[]);
    store.away.insert(DeviceNo(3));
    with_out(&mut driver, &mut store, 940, &[3]);
    let hunt = store.record().hunt.unwrap();
    assert_eq!(hunt.gone, [DeviceNo(3)].into(), "there is no room for more");
    // It is in again, though it cannot be reached from here, and another one is gone.
    (store.full, _) = (false, store.away.insert(DeviceNo(2)));
    with_out(&mut driver, &mut store, 1000, &[2]);
    assert_eq!(moved(&store), 2 * AWAY_MAX);
    assert!(store.record().absent[&DeviceNo(2)].hunted);
    assert!(!store.record().absent[&DeviceNo(3)].hunted);
}

/// While others are away that are not out, what is out is moved all the same.
#[test]
fn what_is_out_does_not_wait_for_what_is_not() {
    let mut store = Store::new(10, 1);
    let mut driver = Driver::new(&store);
    store.away.extend([DeviceNo(2), DeviceNo(3)]);
    with_out(&mut driver, &mut store, 60, &[3]);
    assert_eq!(moved(&store), 10);
    let record = store.record();
    assert!(record.absent[&DeviceNo(3)].hunted && !record.absent[&DeviceNo(2)].hunted);
}

#[test]
fn parts_of_uploads_stay_and_keep_nobody_waiting() {
    let mut store = Store::new(3, 1);
    let one = store.objects["key-0000"].clone();
    for part in 0..3 * AWAY_MAX {
        store
            .objects
            .insert(format!("parts/x/{part:05}"), one.clone());
    }
    store.objects.insert("zzz".to_owned(), one);
    let mut driver = Driver::new(&store);
    store.away.insert(DeviceNo(3));
    for_seconds(&mut driver, &mut store, 3000, None);
    let keys: Vec<&str> = store.moves.keys().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["key-0000", "key-0001", "key-0002", "zzz"]);
    let record = store.record();
    assert_eq!(record.absent[&DeviceNo(3)].parts, 3 * AWAY_MAX as u64);
    // Once it is an object it is moved like any other one: found by the next pass.
    let part = store.objects.remove("parts/x/00000").unwrap();
    store.objects.insert("made".to_owned(), part);
    for_seconds(&mut driver, &mut store, 2500, None);
    assert!(store.moves.contains_key(&("made".to_owned(), 0)));
}

/// The object that they were put together to may have been moved: then they name what is freed.
#[test]
fn a_part_whose_stripe_is_nowhere_is_no_loss() {
    let mut store = Store::new(2, 1);
    store.objects.insert(
        "parts/x/1".to_owned(),
        vec![[false; 4], [false, true, true, true]],
    );
    let mut driver = Driver::new(&store);
    // What was found bad of the other one is counted, and then there is nothing left of it either.
    while !mends(&driver) {
        driver.step(&mut store);
    }
    store
        .objects
        .insert("parts/x/1".to_owned(), vec![[false; 4]; 2]);
    for_seconds(&mut driver, &mut store, 3000, None);
    let tally = store.all();
    assert_eq!((store.losses.len(), store.record().open), (0, vec![]));
    assert_eq!((tally.bad(), tally.repaired, tally.moot), (1, 0, 1));
    // The object that names the same is told of.
    store.objects.insert("whole".to_owned(), vec![[false; 4]]);
    for_seconds(&mut driver, &mut store, 2500, None);
    let lost: Vec<&str> = store
        .losses
        .values()
        .map(|it| it.item.key.as_str())
        .collect();
    assert_eq!(lost, ["whole"]);
}

#[test]
fn what_has_no_place_waits_for_one() {
    let mut store = Store::new(2 * AWAY_MAX, 1);
    store.full = true;
    let mut driver = Driver::new(&store);
    store.away.insert(DeviceNo(3));
    for_seconds(&mut driver, &mut store, 2000, None);
    let record = store.record();
    assert_eq!((moved(&store), record.open.len()), (0, AWAY_MAX));
    assert!(record.open.iter().any(|it| it.why == "no device has room"));
    assert!(!record.absent[&DeviceNo(3)].hunted);
    store.full = false;
    for_seconds(&mut driver, &mut store, 8000, None);
    assert_eq!(moved(&store), 2 * AWAY_MAX);
    assert!(store.record().absent[&DeviceNo(3)].hunted);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whoever does it ends, again and again, and another one goes on; the device comes back, or others go. All that
    /// was on a device that is gone is elsewhere in the end, nothing is put elsewhere that need not be, and what came
    /// back is not filled again.
    #[test]
    fn whoever_ends_all_of_it_is_moved_once(
        objects in 1usize..150,
        ends in prop::collection::vec((0usize..80, any::<bool>()), 0..12),
        back in any::<bool>(),
    ) {
        let mut store = Store::new(objects, 2);
        let mut driver = Driver::new(&store);
        for_seconds(&mut driver, &mut store, 20, None);
        store.away.insert(DeviceNo(1));
        for_seconds(&mut driver, &mut store, 895, None);
        for (steps, two) in ends {
            store.pass(Duration::from_secs(2));
            let mut other = two.then(|| Driver::new(&store));
            let event = store.world(None);
            // As soon as it has read the record, and for as long as has to be watched.
            driver.settle_loading(&mut store);
            for _ in 0..62 {
                store.pass(Duration::from_secs(15));
                driver.event_if_idle(&store, event.clone());
            }
            for _ in 0..steps {
                driver.step(&mut store);
                if let Some(other) = &mut other {
                    other.step(&mut store);
                }
            }
            driver = Driver::new(&store);
        }
        if back {
            store.away.clear();
        }
        for_seconds(&mut driver, &mut store, 2500, None);
        let record = store.record();
        prop_assert_eq!(&record.open, &vec![]);
        prop_assert!(store.moves.values().all(|times| *times == 1));
        if !back {
            prop_assert_eq!(moved(&store), 2 * objects);
            // What was done just before an end may not be counted.
            prop_assert!(store.all().moved <= 2 * objects as u64);
            prop_assert!(record.absent[&DeviceNo(1)].hunted);
        }
        prop_assert_eq!((store.all().bad(), store.all().repaired), (0, 0));
    }
}
