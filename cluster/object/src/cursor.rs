//! Where a reading of an object is.
//!
//! Invariant: `at` is the byte of the object that stripe `next` begins with, whatever the lengths of
//! those before it.

use ashlar_layout::manifest::{Body, Stripe};

use crate::tree::{check, check_sum, node_of};

/// Where the stripes of the range are.
#[derive(Debug)]
pub(crate) struct Cursor {
    /// The object's stripes, or those of the tree's current node.
    pub(crate) stripes: Vec<Stripe>,
    /// The next stripe to read,
    pub(crate) next: usize,
    /// and the object's byte that it begins with.
    pub(crate) at: u64,
    /// The tree's nodes; empty if there is no tree.
    pub(crate) nodes: Vec<Stripe>,
    /// The node that is to be read next.
    pub(crate) next_node: usize,
    /// Where nodes begin.
    shape: Shape,
}

/// Where a tree's nodes begin in the object.
#[derive(Debug)]
enum Shape {
    /// All but the last are about as much; how much, the first one tells.
    Even(Option<Grid>),
    /// About so many bytes each.
    Parts(Vec<u64>),
}

/// Of a tree whose stripes are of equal length.
#[derive(Clone, Copy, Debug)]
struct Grid {
    stripe_data: u64,
    node_bytes: u64,
}

impl Cursor {
    /// At byte `start` of an object of this body; `None` if it is inline.
    pub(crate) fn new(body: Body, start: u64) -> Option<Cursor> {
        let (stripes, nodes, shape) = match body {
            Body::Inline => return None,
            Body::Stripes(stripes) => (stripes, Vec::new(), Shape::Even(None)),
            Body::Tree(nodes) => (Vec::new(), nodes, Shape::Even(None)),
            Body::Parts { nodes, bytes } => (Vec::new(), nodes, Shape::Parts(bytes)),
        };
        let next_node = match &shape {
            Shape::Parts(bytes) => node_of(bytes, start).0,
            Shape::Even(_) => 0,
        };
        let mut cursor = Cursor {
            stripes,
            next: 0,
            at: 0,
            nodes,
            next_node,
            shape,
        };
        cursor.seek(0, start);
        Some(cursor)
    }

    /// Goes to byte `to` in the node that was read, whose stripes these are, or to the node that holds it, which has
    /// to be read yet. The error says why the tree makes no sense.
    pub(crate) fn enter(&mut self, stripes: Vec<Stripe>, to: u64) -> Result<(), String> {
        let node = self.next_node;
        let last = node + 1 == self.nodes.len();
        let (checked, wanted, base) = match &mut self.shape {
            Shape::Parts(bytes) => {
                let (wanted, base) = node_of(bytes, to);
                (check_sum(&stripes, bytes.get(node).copied()), wanted, base)
            }
            Shape::Even(grid) => {
                let of_first = || {
                    let stripe_data = stripes.first().map_or(1, |s| u64::from(s.data_len));
                    Grid {
                        stripe_data: stripe_data.max(1),
                        node_bytes: (stripe_data * stripes.len() as u64).max(1),
                    }
                };
                let grid = *grid.get_or_insert_with(of_first);
                let size = (!last).then_some(grid.node_bytes);
                let wanted = to / grid.node_bytes;
                let base = wanted * grid.node_bytes;
                let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
                (check(&stripes, grid.stripe_data, size), wanted, base)
            }
        };
        checked.map_err(|detail| format!("node {node} of its tree: {detail}"))?;
        if wanted > node {
            // Only now is it known where the range begins.
            self.next_node = wanted;
            return Ok(());
        }
        if wanted < node {
            return Err("a node of its tree is short".to_owned());
        }
        self.stripes = stripes;
        self.seek(base, to);
        self.next_node += 1;
        Ok(())
    }

    /// Goes to the stripe that holds byte `to`, in `stripes`, which begin with byte `base`.
    fn seek(&mut self, base: u64, to: u64) {
        (self.next, self.at) = (0, base);
        while let Some(stripe) = self.stripes.get(self.next) {
            let end = self.at + u64::from(stripe.data_len);
            if end > to {
                return;
            }
            (self.next, self.at) = (self.next + 1, end);
        }
    }
}
