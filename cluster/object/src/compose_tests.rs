//! Objects put together of others, under seeded faults and orders.

use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{DeviceNo, StripeId};
use ashlar_layout::manifest::{Body, Etag, Manifest, Precondition};
use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use crate::compose::Compose;
use crate::delete::Delete;
use crate::error::{Code, ObjectError};
use crate::object_tests::{delete, get, put, put_striped, ranges, world};
use crate::put::PutDone;
use crate::testing::{Mood, World};

fn manifest(world: &World, key: &str) -> Manifest {
    let name = ("bucket".to_owned(), key.to_owned());
    world.objects[&name].0.manifest.clone()
}

fn start(world: &mut World, precondition: Precondition, parts: Vec<Manifest>) -> Compose {
    let etag = Etag {
        md5: [3; 16],
        parts: parts.len() as u16,
    };
    let common = world.common.clone();
    let seal = (etag, vec![1, 2]);
    let mut compose = Compose::new(common, "bucket", "whole", precondition, parts, seal).unwrap();
    world.start(&mut compose);
    compose
}

fn compose(world: &mut World, parts: Vec<Manifest>) -> Result<PutDone, ObjectError> {
    let mut compose = start(world, Precondition::None, parts);
    world.answer_to(&mut compose);
    let outcome = compose.outcome().unwrap().clone();
    world.settle(&mut compose);
    outcome
}

/// Takes a part's name away; its stripes are the whole's.
fn take_over(world: &mut World, key: &str) {
    let common = world.common.clone();
    let delete = Delete::new(common, "bucket", key, Precondition::None).unwrap();
    let mut delete = delete.of_taken();
    world.start(&mut delete);
    world.settle(&mut delete);
    delete.outcome().unwrap().clone().unwrap();
}

/// Parts of these lengths, and what they are together.
fn parts(world: &mut World, lens: &[u64]) -> (Vec<Manifest>, Bytes) {
    let mut all = BytesMut::new();
    let mut manifests = Vec::new();
    for (i, len) in lens.iter().enumerate() {
        let data = world.bytes(*len as usize);
        all.extend_from_slice(&data);
        let key = format!("part{i}");
        put(world, &key, &data).unwrap();
        manifests.push(manifest(world, &key));
    }
    (manifests, all.freeze())
}

fn lens() -> impl Strategy<Value = Vec<u64>> {
    // Empty, one stripe, several, a tree; never one that is inline.
    let len = prop_oneof![1 => Just(0), 4 => 1001u64..9000, 2 => 9000u64..40_000];
    prop::collection::vec(len, 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Any parts, two nodes in any mood, an answer lost: what comes back is what the parts held, in
    /// whole and in part; when the parts' names are gone it is still all there; when it is deleted,
    /// nothing is.
    #[test]
    fn parts_become_an_object(
        seed in any::<u64>(),
        (lens, range) in lens().prop_flat_map(|lens| {
            let sum = lens.iter().sum();
            (Just(lens), ranges(sum))
        }),
        sick in prop::collection::btree_map(4u32..=6, 0usize..4, 0..=2),
        lose in 0u32..2,
    ) {
        let mut world = world(seed);
        let (manifests, all) = parts(&mut world, &lens);
        let moods = [Mood::Slow, Mood::Dead, Mood::Mute, Mood::Busy];
        for (device, mood) in &sick {
            world.moods.insert(DeviceNo(*device), moods[*mood]);
        }
        world.lose_commits = lose;
        let done = compose(&mut world, manifests).unwrap();
        prop_assert_eq!((done.size, done.crc), (all.len() as u64, crc32(&all)));
        let whole = manifest(&world, "whole");
        prop_assert_eq!((whole.etag.md5, &whole.attributes[..]), ([3; 16], &[1, 2][..]));
        for i in 0..lens.len() {
            take_over(&mut world, &format!("part{i}"));
        }
        prop_assert_eq!(&get(&mut world, "whole", None).unwrap(), &all);
        let expected = match range {
            None => Some(0..all.len() as u64),
            Some(range) => range.resolve(all.len() as u64),
        };
        match expected {
            Some(part) => {
                let part = part.start as usize..part.end as usize;
                prop_assert_eq!(get(&mut world, "whole", range).unwrap(), &all[part]);
            }
            None => {
                let error = get(&mut world, "whole", range).unwrap_err();
                prop_assert_eq!(error.code(), Code::RangeNotSatisfiable);
            }
        }
        let clean = sick.values().all(|mood| *mood == 0) && lose == 0;
        world.moods.clear();
        world.now = world.now + std::time::Duration::from_secs(60);
        prop_assert!(delete(&mut world, "whole").unwrap().existed);
        if clean {
            prop_assert!(world.shards.is_empty(), "{} shards are left", world.shards.len());
        }
    }
}

/// Makes an object longer by these bytes, as a gateway does: what comes is a part first, and so is what rides in the
/// journal.
pub(crate) fn lengthen(world: &mut World, key: &str, data: &Bytes) -> Result<PutDone, ObjectError> {
    let (meta, payload) = world.objects[&("bucket".to_owned(), key.to_owned())].clone();
    let mut names = Vec::new();
    if meta.manifest.body == Body::Inline && meta.manifest.size > 0 {
        names.push(("old", payload));
    }
    names.push(("new", data.clone()));
    let mut parts = Vec::new();
    for (name, bytes) in &names {
        put_striped(world, name, bytes);
        parts.push(manifest(world, name));
    }
    let (common, seal) = (world.common.clone(), (Etag::NONE, Vec::new()));
    let old = (meta.version, meta.manifest);
    let mut longer = Compose::longer(common, "bucket", key, old, parts, seal).unwrap();
    world.start(&mut longer);
    world.answer_to(&mut longer);
    let outcome = longer.outcome().unwrap().clone();
    world.settle(&mut longer);
    for (name, _) in &names {
        match &outcome {
            Ok(_) => take_over(world, name),
            Err(_) => drop(delete(world, name).unwrap()),
        }
    }
    outcome
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// An object of any size grows: all its bytes are there each time, and when it is deleted, nothing is, neither a
    /// stripe of it nor a list.
    #[test]
    fn an_object_grows(
        seed in any::<u64>(),
        first in prop_oneof![Just(0usize), 1usize..1000, 1001usize..30_000],
        more in prop::collection::vec(prop_oneof![3 => 1usize..3000, 1 => 3000usize..60_000], 1..5),
        lose in 0u32..2,
        goes in any::<bool>(),
    ) {
        let mut world = world(seed);
        let mut all = BytesMut::from(&world.bytes(first)[..]);
        put(&mut world, "whole", &all.clone().freeze()).unwrap();
        for len in more {
            let data = world.bytes(len);
            world.lose_commits = lose;
            match lengthen(&mut world, "whole", &data) {
                Ok(done) => {
                    all.extend_from_slice(&data);
                    prop_assert_eq!((done.size, done.crc), (all.len() as u64, crc32(&all)));
                }
                // The world's trees are small: one that is full stays as it is.
                Err(error) => {
                    prop_assert_eq!(error.code(), Code::TooLarge);
                    prop_assert!(all.len() + len > 60_000, "{} and {}", all.len(), len);
                }
            }
            prop_assert_eq!(&get(&mut world, "whole", None).unwrap()[..], &all[..]);
        }
        prop_assert!(world.reports.is_empty());
        if goes {
            delete(&mut world, "whole").unwrap();
        } else {
            put(&mut world, "whole", &Bytes::new()).unwrap();
        }
        prop_assert_eq!(world.shards.keys().collect::<Vec<_>>(), Vec::<&(DeviceNo, _)>::new());
    }
}

/// Of an object that rides in the journal nothing is left out.
#[test]
fn what_rides_in_the_journal_is_copied_before_it_grows() {
    let mut world = world(6);
    let (old, more) = (world.bytes(500), world.bytes(5000));
    put(&mut world, "whole", &old).unwrap();
    put(&mut world, "more", &more).unwrap();
    let (meta, _) = world.objects[&("bucket".to_owned(), "whole".to_owned())].clone();
    let more = manifest(&world, "more");
    for parts in [Vec::new(), vec![more]] {
        let (common, seal) = (world.common.clone(), (Etag::NONE, Vec::new()));
        let old = (meta.version, meta.manifest.clone());
        let refused = Compose::longer(common, "bucket", "whole", old, parts, seal).unwrap_err();
        assert_eq!(refused.code(), Code::BadRequest);
    }
}

/// What somebody else did to the object meanwhile stands, and so does all that was to be added to it.
#[test]
fn an_object_that_is_another_one_by_now_does_not_grow() {
    let mut world = world(5);
    let (old, new, more) = (world.bytes(20_000), world.bytes(15_000), world.bytes(5000));
    put(&mut world, "whole", &old).unwrap();
    let (meta, _) = world.objects[&("bucket".to_owned(), "whole".to_owned())].clone();
    put(&mut world, "whole", &new).unwrap();
    put(&mut world, "more", &more).unwrap();
    let (common, seal) = (world.common.clone(), (Etag::NONE, Vec::new()));
    let (old, parts) = (
        (meta.version, meta.manifest),
        vec![manifest(&world, "more")],
    );
    let mut longer = Compose::longer(common, "bucket", "whole", old, parts, seal).unwrap();
    world.start(&mut longer);
    world.settle(&mut longer);
    let refused = longer.outcome().unwrap().clone().unwrap_err();
    // Its stripes are freed, so the lists of a longer one may not even be read.
    let code = refused.code();
    assert!(
        matches!(code, Code::PreconditionFailed | Code::Unreadable),
        "{refused}"
    );
    assert_eq!(get(&mut world, "whole", None).unwrap(), new);
    assert_eq!(get(&mut world, "more", None).unwrap(), more);
}

#[test]
fn a_refused_whole_leaves_its_parts() {
    let mut world = world(3);
    let (manifests, all) = parts(&mut world, &[30_000, 2000, 30_000]);
    let before = world.shards.len();
    put(&mut world, "whole", &all.slice(..5000)).unwrap();
    let with = world.shards.len();
    let mut compose = start(&mut world, Precondition::Absent, manifests.clone());
    world.settle(&mut compose);
    let error = compose.outcome().unwrap().clone().unwrap_err();
    assert_eq!(error.code(), Code::PreconditionFailed);
    assert_eq!(
        world.shards.len(),
        with,
        "its nodes are freed, and nothing else"
    );
    for i in 0..3 {
        get(&mut world, &format!("part{i}"), None).unwrap();
    }
    // Given up before it asked: the same.
    let mut compose = start(&mut world, Precondition::None, manifests.clone());
    world.event(&mut compose, crate::call::Event::Abort);
    world.settle(&mut compose);
    assert_eq!(world.shards.len(), with);
    // And one that is made frees what it displaced.
    let mut made = start(&mut world, Precondition::Present, manifests);
    world.settle(&mut made);
    made.outcome().unwrap().clone().unwrap();
    assert!(world.shards.len() > before);
    assert_eq!(get(&mut world, "whole", None).unwrap(), all);
    for i in 0..3 {
        take_over(&mut world, &format!("part{i}"));
    }
    assert_eq!(get(&mut world, "whole", None).unwrap(), all);
    delete(&mut world, "whole").unwrap();
    assert!(world.shards.is_empty());
}

#[test]
fn a_manifest_made_again_keeps_every_stripe() {
    let mut world = world(5);
    for len in [0, 3000, 30_000] {
        let data = world.bytes(len);
        put(&mut world, "key", &data).unwrap();
        let shards = world.shards.len();
        let name = ("bucket".to_owned(), "key".to_owned());
        let (meta, _) = world.objects[&name].clone();
        let again = |world: &mut World, version, note: u8| {
            let common = world.common.clone();
            let seal = (meta.manifest.etag, vec![note]);
            let manifest = meta.manifest.clone();
            let mut again =
                Compose::again(common, "bucket", "key", version, manifest, seal).unwrap();
            world.start(&mut again);
            world.settle(&mut again);
            again.outcome().unwrap().clone()
        };
        let done = again(&mut world, meta.version, 7).unwrap();
        let (now, _) = world.objects[&name].clone();
        assert_eq!(
            (now.version, &now.manifest.attributes[..]),
            (done.version, &[7][..])
        );
        assert_eq!(now.manifest.body, meta.manifest.body);
        assert_eq!((world.shards.len(), done.size), (shards, len as u64));
        // A second one is too late.
        let error = again(&mut world, meta.version, 8).unwrap_err();
        assert_eq!(error.code(), Code::PreconditionFailed);
        assert_eq!(world.shards.len(), shards);
        assert_eq!(get(&mut world, "key", None).unwrap(), data);
        delete(&mut world, "key").unwrap();
        assert!(world.shards.is_empty());
    }
    let inline = Manifest::plain(5, 0, Body::Inline);
    let common = world.common.clone();
    let seal = (Etag::NONE, Vec::new());
    let refused = Compose::again(
        common,
        "bucket",
        "key",
        ashlar_layout::ids::Seq(1),
        inline,
        seal,
    );
    assert_eq!(refused.map(drop).unwrap_err().code(), Code::BadRequest);
}

#[test]
fn parts_that_cannot_be_taken() {
    let mut world = world(4);
    let common = world.common.clone();
    let new = |parts| {
        let seal = (Etag::NONE, Vec::new());
        Compose::new(
            common.clone(),
            "bucket",
            "whole",
            Precondition::None,
            parts,
            seal,
        )
        .map(|_| ())
    };
    let inline = Manifest::plain(3, 1, Body::Inline);
    assert_eq!(new(vec![inline]).unwrap_err().code(), Code::BadRequest);
    let wrong = Manifest::plain(3, 1, Body::Stripes(Vec::new()));
    assert_eq!(new(vec![wrong]).unwrap_err().code(), Code::BadRequest);
    let (mut manifests, _) = parts(&mut world, &[30_000]);
    // Its tree holds less than it says.
    manifests[0].size += 1;
    let shards = world.shards.len();
    let error = compose(&mut world, manifests.clone()).unwrap_err();
    assert_eq!(error.code(), Code::BadRequest, "{error}");
    manifests[0].size -= 20_000;
    let error = compose(&mut world, manifests.clone()).unwrap_err();
    assert_eq!(error.code(), Code::BadRequest, "{error}");
    // A node that nobody has.
    let Body::Tree(nodes) = &mut manifests[0].body else {
        panic!("30,000 bytes are a tree");
    };
    nodes[0].id = StripeId {
        writer: 9,
        attempt: 9,
    };
    let error = compose(&mut world, manifests).unwrap_err();
    assert_eq!(error.code(), Code::Unreadable, "{error}");
    assert_eq!(world.shards.len(), shards);
    // Nothing of nothing.
    assert_eq!(compose(&mut world, Vec::new()).unwrap().size, 0);
    assert_eq!(get(&mut world, "whole", None).unwrap(), b"");
}
