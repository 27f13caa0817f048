//! Changes of objects that were seen, which leave all their bytes as they are: another key, other places.

use ashlar_layout::ids::{Seq, StripeId};
use ashlar_layout::manifest::{Body, Op};
use bytes::Bytes;

use crate::sim_clients::key;
use crate::sim_device::Rng;
use crate::sim_model::Version;

/// One of both.
pub(crate) fn moving_op(rng: &mut Rng, seen: &[Version]) -> Option<(Op, Bytes)> {
    match rng.one_in(2) {
        true => rename_op(rng, seen),
        false => relocate_op(rng, seen),
    }
}

/// Stripes of something that somebody saw are elsewhere by now.
fn relocate_op(rng: &mut Rng, seen: &[Version]) -> Option<(Op, Bytes)> {
    let striped = (0..seen.len()).filter(|at| seen[*at].manifest.body != Body::Inline);
    let striped: Vec<usize> = striped.collect();
    let at = *striped.get(rng.below(striped.len().max(1) as u64) as usize)?;
    let it = &seen[at];
    let mut manifest = it.manifest.clone();
    if let Body::Stripes(stripes) = &mut manifest.body {
        for stripe in stripes {
            stripe.id = StripeId {
                writer: rng.next(),
                ..stripe.id
            };
        }
    }
    // It may be none: then it says so as a rule.
    let plain = it.null && it.id == it.entry && !rng.one_in(4);
    let op = Op::Relocate {
        bucket: it.place.0.clone(),
        key: it.place.1.clone(),
        tag: (!plain).then(|| it.tag()),
        seen: Seq(it.entry),
        current: plain || !seen[..at].iter().any(|other| other.place == it.place),
        modified_ms: 7,
        manifest,
    };
    Some((op, Bytes::new()))
}

/// An object that somebody saw gets another key, or is to get one; as a rule one that is no version.
fn rename_op(rng: &mut Rng, seen: &[Version]) -> Option<(Op, Bytes)> {
    let plain = |it: &&Version| it.null && it.id == it.entry && !it.marker;
    let whole = |it: &&Version| it.payload.len() as u64 == it.manifest.size;
    let any = rng.one_in(8);
    let inline = |it: &&Version| it.manifest.body == Body::Inline;
    let fit = seen.iter().filter(|it| any || plain(it));
    let fit: Vec<&Version> = fit.filter(|it| !inline(it) || whole(it)).collect();
    let it = fit.get(rng.below(fit.len().max(1) as u64) as usize)?;
    let op = Op::Rename {
        bucket: it.place.0.clone(),
        key: key(rng),
        source: it.place.1.clone(),
        seen: Seq(it.entry),
        modified_ms: 7,
        manifest: it.manifest.clone(),
    };
    Some((op, it.payload.clone()))
}
