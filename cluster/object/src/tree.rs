//! Manifests of many stripes: the root names stripes that hold lists of stripes.
//!
//! Invariants:
//! - of an object that came in one piece each node but the last lists the same number of stripes, and
//!   each stripe but the object's last holds the same number of bytes: where a byte is can be computed
//!   from the first node. Of one that was put together of parts the root says how many bytes each node
//!   is about;
//! - a node fits one stripe.

use ashlar_layout::control::{decode_stripes, encode_stripes};
use ashlar_layout::manifest::Stripe;
use bytes::Bytes;

use crate::stripe_read::Part;

/// Bytes of a stripe in a list, at the least and but for its checksums.
pub(crate) const STRIPE_BYTES: usize = 16 + 4 + 1 + 1 + 4 + 8;
/// Bytes of a list but for its stripes.
pub(crate) const LIST_BYTES: usize = 8;

/// How many stripes of up to `shards` shards one node may list, so that it fits `node_bytes`.
pub(crate) fn fanout(most: usize, shards: usize, node_bytes: u32) -> usize {
    let each = STRIPE_BYTES + 4 * shards;
    ((node_bytes as usize).saturating_sub(LIST_BYTES) / each).clamp(1, most.max(1))
}

/// A node's bytes.
pub(crate) fn encode_node(stripes: &Vec<Stripe>) -> Bytes {
    Bytes::from(encode_stripes(stripes))
}

/// The stripes that a node lists.
pub fn decode_node(part: &Part) -> Result<Vec<Stripe>, String> {
    let stripes = decode_stripes(&part.joined()).map_err(|error| error.to_string())?;
    if stripes.is_empty() {
        Err("a node of its tree is empty".to_owned())
    } else {
        Ok(stripes)
    }
}

/// Checks that stripes stand where they can be computed to stand.
pub(crate) fn check(stripes: &[Stripe], stripe_data: u64, size: Option<u64>) -> Result<(), String> {
    let Some((last, others)) = stripes.split_last() else {
        return Err("it lists no stripe".to_owned());
    };
    let uneven = others.iter().any(|s| u64::from(s.data_len) != stripe_data);
    if stripe_data == 0 || uneven || u64::from(last.data_len) > stripe_data {
        return Err("its stripes differ in length".to_owned());
    }
    let sum = others.len() as u64 * stripe_data + u64::from(last.data_len);
    match size {
        Some(size) if size != sum => {
            Err(format!("it has {size} bytes, and its stripes hold {sum}"))
        }
        _ => Ok(()),
    }
}

/// Checks that stripes hold as many bytes as the root says.
pub(crate) fn check_sum(stripes: &[Stripe], expected: Option<u64>) -> Result<(), String> {
    let sum: u64 = stripes.iter().map(|s| u64::from(s.data_len)).sum();
    match expected {
        Some(expected) if expected == sum && stripes.iter().all(|s| s.data_len > 0) => Ok(()),
        expected => Err(format!(
            "its stripes hold {sum} bytes, not {}",
            expected.unwrap_or(0)
        )),
    }
}

/// Which node is about byte `at`, if nodes are about so many bytes each; and which byte it begins with.
pub(crate) fn node_of(bytes: &[u64], at: u64) -> (usize, u64) {
    let mut base = 0u64;
    for (node, bytes) in bytes.iter().enumerate() {
        match base.checked_add(*bytes) {
            Some(end) if end <= at => base = end,
            _ => return (node, base),
        }
    }
    (bytes.len(), base)
}

#[cfg(test)]
mod tests {
    use ashlar_layout::ids::{PgId, StripeId};

    use super::*;

    #[test]
    fn a_full_node_fits() {
        for shards in [2usize, 6, 64] {
            let fanout = fanout(usize::MAX, shards, 100_000);
            let stripe = Stripe {
                id: StripeId {
                    writer: 1,
                    attempt: 2,
                },
                pg: PgId(3),
                k: 1,
                m: 1,
                data_len: 9,
                shard_crcs: vec![7; shards],
            };
            let stripes = vec![stripe; fanout];
            let bytes = encode_node(&stripes);
            assert!(bytes.len() <= 100_000 && bytes.len() > 99_000);
            let (a, b) = (bytes.slice(..1000), bytes.slice(1000..));
            let part = Part {
                chunks: vec![a, b],
                crcs: vec![None; 2],
                rebuilt: 0,
            };
            assert_eq!(decode_node(&part).unwrap(), stripes);
        }
    }

    #[test]
    fn where_nodes_of_parts_begin() {
        let bytes = [5, 7, 1];
        for (at, expected) in [
            (0, (0, 0)),
            (4, (0, 0)),
            (5, (1, 5)),
            (11, (1, 5)),
            (12, (2, 12)),
            (13, (3, 13)),
        ] {
            assert_eq!(node_of(&bytes, at), expected, "{at}");
        }
    }

    #[test]
    fn garbage_is_an_error() {
        let part = |bytes: &'static [u8]| Part {
            chunks: vec![Bytes::from_static(bytes)],
            crcs: vec![None],
            rebuilt: 0,
        };
        for bytes in [
            &b""[..],
            b"\0\0\0\0\0\0\0\0",
            b"\xff\xff\xff\xff\xff\xff\xff\xff",
            b"x",
        ] {
            assert!(decode_node(&part(bytes)).is_err());
        }
    }
}
