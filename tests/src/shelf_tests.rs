//! The checkers of keys with versions, checked: histories that are known to be good, and the same with one thing wrong.

use ashlar_layout::lock::{Lock, Retention, RetentionMode};

use crate::history::Key;
use crate::linear::Verdict;
use crate::shelf::*;
use crate::{shelf_locks, shelf_names, shelf_order};

const KEPT: Lock = Lock {
    retention: Some(Retention {
        mode: RetentionMode::Compliance,
        until_ms: 1000,
    }),
    hold: None,
};

/// From `invoke` to one later, by a clock that shows 5 to 10.
fn deed(key: Key, what: What, said: Said, invoke: u64) -> Deed {
    Deed {
        client: 0,
        key,
        what,
        need: Need::None,
        said,
        invoke,
        ret: invoke + 1,
        clock: (5, 10),
    }
}

fn put(value: u64, id: Id, lock: Lock, invoke: u64) -> Deed {
    let making = Making::Version { null: false, lock };
    deed(1, What::Put { value, making }, Said::Done(id), invoke)
}

fn plain(value: u64, id: Id, invoke: u64) -> Deed {
    let making = Making::Plain;
    deed(1, What::Put { value, making }, Said::Done(id), invoke)
}

fn null(value: u64, id: Id, invoke: u64) -> Deed {
    let making = Making::Version {
        null: true,
        lock: Lock::NONE,
    };
    deed(1, What::Put { value, making }, Said::Done(id), invoke)
}

fn mark(said: Said, invoke: u64) -> Deed {
    deed(1, What::Mark { null: false }, said, invoke)
}

fn remove(id: Id, then: Then, invoke: u64) -> Deed {
    let what = What::Drop {
        slot: Slot::Own(id),
        id,
        then,
        bypass: false,
    };
    deed(1, what, Said::Done(100 + invoke), invoke)
}

fn view(value: Option<u64>, id: Id, tag: Tag) -> View {
    View {
        id,
        entry: 0,
        tag,
        value,
        tags: None,
        lock: Lock::NONE,
    }
}

fn look(slot: Option<Slot>, said: Said, invoke: u64) -> Deed {
    deed(1, What::Look(slot), said, invoke)
}

fn page(views: &[View], invoke: u64) -> Deed {
    let what = What::List {
        below: None,
        bottom: true,
    };
    deed(1, what, Said::Page(views.to_vec()), invoke)
}

#[track_caller]
fn good(deeds: &[Deed]) {
    let mut wrong = shelf_order::check_all(deeds);
    wrong.extend(shelf_locks::check(deeds));
    wrong.extend(shelf_names::check(deeds));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[track_caller]
fn out_of_order(deeds: &[Deed]) {
    let verdict = shelf_order::check(deeds, 10_000);
    assert!(matches!(verdict, Verdict::Violation(_)), "{verdict:?}");
}

#[test]
fn what_is_newest_is_current() {
    let (one, two) = (put(1, 10, Lock::NONE, 0), put(2, 20, Lock::NONE, 2));
    let found = |value, id| Said::Found(view(Some(value), id, Tag::Own));
    good(&[one.clone(), two.clone(), look(None, found(2, 20), 4)]);
    good(&[
        one.clone(),
        two.clone(),
        look(Some(Slot::Own(10)), found(1, 10), 4),
    ]);
    out_of_order(&[one.clone(), two.clone(), look(None, found(1, 10), 4)]);
    out_of_order(&[one.clone(), two.clone(), look(None, Said::Nothing, 4)]);
    let both = [view(Some(2), 20, Tag::Own), view(Some(1), 10, Tag::Own)];
    good(&[one.clone(), two.clone(), page(&both, 4)]);
    out_of_order(&[one.clone(), two.clone(), page(&both[..1], 4)]);
    out_of_order(&[one.clone(), two.clone(), page(&both[1..], 4)]);
    // The entries' numbers are the order: what was answered first is not newer.
    out_of_order(&[put(1, 20, Lock::NONE, 0), put(2, 10, Lock::NONE, 2)]);
    // Of two at once either may be first, and the numbers say which.
    let late = Deed { ret: 9, ..one };
    good(&[late.clone(), two.clone(), look(None, found(2, 20), 10)]);
}

#[test]
fn a_marker_hides_and_its_removal_shows_again() {
    let one = put(1, 10, Lock::NONE, 0);
    let hidden = look(None, Said::Found(view(None, 20, Tag::Own)), 4);
    let marked = mark(Said::Done(20), 2);
    good(&[one.clone(), marked.clone(), hidden.clone()]);
    let then = Then::Version(Slot::Own(10), 10);
    let shown = look(None, Said::Found(view(Some(1), 10, Tag::Own)), 8);
    good(&[
        one.clone(),
        marked.clone(),
        remove(20, then, 6),
        shown.clone(),
    ]);
    out_of_order(&[one.clone(), marked.clone(), shown.clone()]);
    // What stands behind it is to be current then.
    out_of_order(&[one.clone(), marked.clone(), remove(20, Then::Nothing, 6)]);
    // It comes back by nothing.
    let back = look(
        Some(Slot::Own(20)),
        Said::Found(view(None, 20, Tag::Own)),
        9,
    );
    let wrong = shelf_names::gone(&[one, marked, remove(20, then, 6), back]);
    assert_eq!(wrong.len(), 1, "{wrong:?}");
}

#[test]
fn there_is_one_null_version() {
    let named = put(2, 20, Lock::NONE, 2);
    let kept = Rewrite {
        why: Why::Keep,
        current: true,
        found: View {
            entry: 10,
            tags: Some(0),
            ..view(Some(1), 10, Tag::Plain)
        },
        tag: Tag::Null,
        tags: 0,
        lock: Lock::NONE,
        bypass: false,
    };
    let kept = |said| deed(1, What::Rewrite(kept), said, 1);
    // What was put before is made one first.
    out_of_order(&[plain(1, 10, 0), named.clone()]);
    good(&[plain(1, 10, 0), kept(Said::Done(15)), named.clone()]);
    good(&[plain(1, 10, 0), kept(Said::Unknown), named.clone()]);
    let all = |null| {
        let null = view(Some(null), if null == 3 { 30 } else { 10 }, Tag::Null);
        let named = view(Some(2), 20, Tag::Own);
        if null.id == 30 {
            [null, named]
        } else {
            [named, null]
        }
    };
    let two = [plain(1, 10, 0), kept(Said::Done(15)), named, null(3, 30, 4)];
    let with = |last: Deed| two.iter().cloned().chain([last]).collect::<Vec<_>>();
    good(&with(page(&all(3), 6)));
    out_of_order(&with(page(&all(1), 6)));
}

#[test]
fn what_nobody_knows_is_found_out() {
    let one = put(1, 10, Lock::NONE, 0);
    let unknown = Deed {
        said: Said::Unknown,
        ..put(2, 0, Lock::NONE, 2)
    };
    let of = |value, id| look(None, Said::Found(view(Some(value), id, Tag::Own)), 6);
    good(&[one.clone(), unknown.clone(), of(2, 20)]);
    good(&[one.clone(), unknown.clone(), of(1, 10)]);
    let later = look(None, Said::Found(view(Some(1), 10, Tag::Own)), 8);
    out_of_order(&[one.clone(), unknown.clone(), of(2, 20), later]);
    let marked = mark(Said::Unknown, 2);
    let hidden = |id, invoke| look(None, Said::Found(view(None, id, Tag::Own)), invoke);
    good(&[one.clone(), marked.clone(), hidden(30, 4), hidden(30, 6)]);
    // One mark makes one marker.
    out_of_order(&[one.clone(), marked.clone(), hidden(30, 4), hidden(40, 6)]);
    out_of_order(&[one, hidden(30, 4)]);
}

#[test]
fn what_is_locked_stays() {
    let one = put(1, 10, KEPT, 0);
    let dropped = remove(10, Then::Nothing, 2);
    out_of_order(&[one.clone(), dropped.clone()]);
    assert_eq!(shelf_locks::check(&[one.clone(), dropped.clone()]).len(), 1);
    let refused = Deed {
        said: Said::Refused(No::Locked),
        ..dropped.clone()
    };
    good(&[one.clone(), refused.clone()]);
    // Nothing is locked for nothing,
    out_of_order(&[put(1, 10, Lock::NONE, 0), refused.clone()]);
    // or for longer than it says.
    let over = |deed: Deed| Deed {
        clock: (1000, 1001),
        ..deed
    };
    good(&[one.clone(), over(dropped)]);
    out_of_order(&[one.clone(), over(refused)]);
    let nothing = look(Some(Slot::Own(10)), Said::Nothing, 4);
    assert_eq!(shelf_locks::check(&[one.clone(), nothing]).len(), 1);
    assert_eq!(shelf_locks::check(&[one, page(&[], 4)]).len(), 1);
}

#[test]
fn what_may_be_made_less_is_not_promised() {
    let governed = Lock {
        retention: KEPT.retention.map(|it| Retention {
            mode: RetentionMode::Governance,
            ..it
        }),
        hold: None,
    };
    let one = put(1, 10, governed, 0);
    let rewrite = |bypass| {
        let found = View {
            entry: 10,
            lock: governed,
            ..view(Some(1), 10, Tag::Own)
        };
        let what = What::Rewrite(Rewrite {
            why: Why::Lock,
            current: true,
            found,
            tag: Tag::Own,
            tags: 0,
            lock: Lock::NONE,
            bypass,
        });
        deed(1, what, Said::Done(20), 2)
    };
    good(&[one.clone(), rewrite(true), remove(10, Then::Nothing, 4)]);
    out_of_order(&[one.clone(), rewrite(false)]);
    out_of_order(&[one, remove(10, Then::Nothing, 4)]);
}

#[test]
fn one_name_is_one_version() {
    let two = [put(1, 10, Lock::NONE, 0), put(2, 10, Lock::NONE, 2)];
    assert_eq!(shelf_names::names(&two).len(), 1);
    let views = [view(Some(1), 10, Tag::Own), view(Some(2), 20, Tag::Own)];
    assert_eq!(shelf_names::names(&[page(&views, 0)]).len(), 1);
}

#[test]
fn a_renamed_object_is_under_one_key_at_a_time() {
    let found = View {
        entry: 10,
        tags: Some(0),
        ..view(Some(1), 10, Tag::Plain)
    };
    let rename = |said| deed(1, What::Rename { to: 2, found }, said, 2);
    let there = |key, id, invoke| {
        let said = Said::Found(view(Some(1), id, Tag::Plain));
        Deed {
            key,
            ..look(None, said, invoke)
        }
    };
    let not = |key, invoke| Deed {
        key,
        ..look(None, Said::Nothing, invoke)
    };
    let renamed = [plain(1, 10, 0), rename(Said::Done(20))];
    let with = |more: &[Deed]| [&renamed[..], more].concat();
    good(&with(&[not(1, 4), there(2, 20, 6)]));
    out_of_order(&with(&[there(1, 10, 4)]));
    out_of_order(&with(&[not(2, 4)]));
    let unknown = [plain(1, 10, 0), rename(Said::Unknown)];
    let with = |more: &[Deed]| [&unknown[..], more].concat();
    good(&with(&[
        there(1, 10, 4),
        not(2, 6),
        not(1, 8),
        there(2, 20, 10),
    ]));
    // Under both, and under none.
    out_of_order(&with(&[there(2, 20, 4), there(1, 10, 6)]));
    out_of_order(&with(&[not(1, 4), not(2, 6)]));
}
