//! What versions are called: one name, one version, which never changes what it is made of, and does not come back.
//!
//! This looks at no order of deeds but that of calls and answers.

use std::collections::HashMap;

use crate::history::{Key, Value};
use crate::shelf::{Deed, Id, Said, Tag, View, What};

/// What deeds say that there is: of each key and name, what was put there.
fn told(deeds: &[Deed]) -> impl Iterator<Item = (&Deed, Id, Option<Value>)> {
    deeds.iter().flat_map(|deed| {
        let mut all: Vec<(Id, Option<Value>)> = shown(deed).map(|it| (it.id, it.value)).collect();
        if let Said::Done(id) = deed.said {
            match deed.what {
                What::Put { value, .. } => all.push((id, Some(value))),
                What::Mark { .. } => all.push((id, None)),
                _ => {}
            }
        }
        all.into_iter().map(move |(id, value)| (deed, id, value))
    })
}

fn shown(deed: &Deed) -> impl Iterator<Item = &View> {
    match &deed.said {
        Said::Found(view) => std::slice::from_ref(view),
        Said::Page(page) => page,
        _ => &[],
    }
    .iter()
}

/// Names that are two versions', and pages that are in no order.
pub fn names(deeds: &[Deed]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut made: HashMap<(Key, Id), (Option<Value>, &Deed)> = HashMap::new();
    for (deed, id, value) in told(deeds) {
        let (first, of) = *made.entry((deed.key, id)).or_insert((value, deed));
        if first != value {
            wrong.push(format!(
                "key {}: version {id} is two:\n    {of:?}\n    {deed:?}",
                deed.key
            ));
        }
    }
    for deed in deeds {
        let Said::Page(page) = &deed.said else {
            continue;
        };
        let sorted = page.windows(2).all(|two| two[0].id > two[1].id);
        let named = |tag| page.iter().filter(|view| view.tag == tag).count();
        if !sorted || named(Tag::Null) > 1 || named(Tag::Plain) > 1 {
            wrong.push(format!("key {}: a page is in no order: {deed:?}", deed.key));
        }
        if let What::List {
            below: Some(below), ..
        } = deed.what
            && page.iter().any(|view| view.id >= below)
        {
            wrong.push(format!(
                "key {}: a page begins before where it should: {deed:?}",
                deed.key
            ));
        }
    }
    wrong
}

/// Versions that are seen after it was said that they are removed.
pub fn gone(deeds: &[Deed]) -> Vec<String> {
    let mut removed: HashMap<(Key, Id), &Deed> = HashMap::new();
    for deed in deeds {
        if let (What::Drop { id, .. }, Said::Done(_)) = (deed.what, &deed.said) {
            let first = removed.entry((deed.key, id)).or_insert(deed);
            if deed.ret < first.ret {
                *first = deed;
            }
        }
    }
    let mut wrong = Vec::new();
    for deed in deeds {
        for view in shown(deed) {
            if let Some(drop) = removed.get(&(deed.key, view.id))
                && deed.is_behind(drop)
            {
                wrong.push(format!(
                    "key {}: version {} was removed, and is there again:\n    {drop:?}\n    {deed:?}",
                    deed.key, view.id
                ));
            }
        }
    }
    wrong
}

/// What is wrong with names, in any of these ways.
pub fn check(deeds: &[Deed]) -> Vec<String> {
    let mut wrong = names(deeds);
    wrong.extend(gone(deeds));
    wrong
}
