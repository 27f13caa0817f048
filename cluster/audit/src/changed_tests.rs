//! Objects that change while they are looked at, and passes that could not see all.

use ashlar_layout::ids::StripeId;

use crate::audit::{Action, Event, Looked};
use crate::audit_tests::{Driver, Store};
use crate::record::{DAY_MS, Item};

/// Goes on to where an object is to be looked at.
fn to_look(driver: &mut Driver, store: &mut Store) -> Item {
    loop {
        if let Some(Action::Look(item, 0)) = driver.todo.last() {
            let item = item.clone();
            driver.todo.clear();
            return item;
        }
        assert_eq!(driver.step(store), Some(true));
    }
}

fn newer(item: &Item) -> Item {
    Item {
        version: item.version + 1,
        id: item.id + 1,
        ..item.clone()
    }
}

#[test]
fn what_replaced_an_object_is_looked_at() {
    let mut store = Store::new(3, 2);
    let mut driver = Driver::new(&store);
    let mut item = to_look(&mut driver, &mut store);
    for _ in 0..8 {
        item = newer(&item);
        driver.event(&store, Event::Replaced(Box::new(item.clone())));
        assert_eq!(driver.todo, [Action::Next]);
        driver.todo.clear();
    }
    let looked = Looked {
        stripe: StripeId::default(),
        whole: 4,
        needed: 1,
        ..Looked::default()
    };
    driver.event(&store, Event::Stripe(looked));
    assert_eq!(driver.todo, [Action::Next]);
    driver.todo.clear();
    driver.event(&store, Event::Over(false));
    driver.settle(&mut store);
    let (tally, ended) = (store.all(), store.record().ended.unwrap());
    assert_eq!((tally.objects, tally.stripes, tally.changed), (3, 5, 8));
    assert!(ended.pass.unread.is_empty(), "{:?}", ended.pass);
}

#[test]
fn who_is_replaced_again_and_again_is_passed_over_and_that_is_said() {
    let mut store = Store::new(3, 2);
    let mut driver = Driver::new(&store);
    let mut item = to_look(&mut driver, &mut store);
    for _ in 0..9 {
        driver.todo.clear();
        item = newer(&item);
        driver.event(&store, Event::Replaced(Box::new(item.clone())));
    }
    // The next one came in its place by mistake.
    item = to_look(&mut driver, &mut store);
    item.key += "-another";
    driver.event(&store, Event::Replaced(Box::new(item)));
    driver.settle(&mut store);
    let (tally, ended) = (store.all(), store.record().ended.unwrap());
    assert_eq!((tally.objects, tally.changed, tally.unread), (1, 10, 2));
    assert_eq!(ended.pass.unread.len(), 2, "{:?}", ended.pass);
    assert!(ended.pass.unread[0].contains("replaced 8 times"));
}

/// What was put since the pass began was written since, and an audit cannot keep up with it.
#[test]
fn who_is_put_again_and_again_is_seen_all_the_same_and_counted_once() {
    let mut store = Store::new(3, 2);
    let mut driver = Driver::new(&store);
    let mut item = to_look(&mut driver, &mut store);
    for _ in 0..9 {
        let looked = Looked {
            whole: 4,
            needed: 1,
            ..Looked::default()
        };
        driver.todo.clear();
        driver.event(&store, Event::Stripe(looked));
        driver.todo.clear();
        item = Item {
            modified_ms: store.now.wall_ms + 1,
            ..newer(&item)
        };
        driver.event(&store, Event::Replaced(Box::new(item.clone())));
    }
    driver.settle(&mut store);
    let (tally, ended) = (store.all(), store.record().ended.unwrap());
    assert_eq!((tally.changed, tally.unread), (9, 0));
    assert_eq!(tally.stripes, 1 + 2 * 2, "once, and those of the others");
    assert!(ended.pass.unread.is_empty(), "{:?}", ended.pass);
}

#[test]
fn a_list_that_is_lost_is_something_unseen() {
    for lists in [false, true] {
        let mut store = Store::new(3, 2);
        let mut driver = Driver::new(&store);
        to_look(&mut driver, &mut store);
        let looked = Looked {
            lists,
            needed: 1,
            ..Looked::default()
        };
        driver.event(&store, Event::Stripe(looked));
        driver.todo.clear();
        driver.event(&store, Event::Over(false));
        driver.settle(&mut store);
        let ended = store.record().ended.unwrap();
        assert_eq!(ended.pass.unread.len(), usize::from(lists));
    }
}

/// By when it began a pass is told from others: one of which that is not known counts for no census.
#[test]
fn a_pass_of_a_clock_that_was_wrong_says_so() {
    let mut store = Store::new(3, 2);
    store.now.wall_ms += 30 * DAY_MS;
    let mut driver = Driver::new(&store);
    driver.settle(&mut store);
    assert!(store.record().ended.unwrap().pass.unread.is_empty());
    store.now.wall_ms -= 30 * DAY_MS;
    let mut driver = Driver::new(&store);
    driver.settle(&mut store);
    let ended = driver.audit.record().ended.clone().unwrap();
    assert_eq!(ended.pass.unread.len(), 1, "{ended:?}");
}
