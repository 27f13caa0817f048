//! Where a reading of an object is.
//!
//! Invariant: `at` is the byte of the object that stripe `next` begins with, whatever the lengths of
//! those before it.

use ashlar_layout::manifest::Stripe;

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
    pub(crate) shape: Shape,
}

/// Where a tree's nodes begin in the object.
#[derive(Debug)]
pub(crate) enum Shape {
    /// All but the last are about as much; how much, the first one tells.
    Even(Option<Grid>),
    /// About so many bytes each.
    Parts(Vec<u64>),
}

/// Of a tree whose stripes are of equal length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) stripe_data: u64,
    pub(crate) node_bytes: u64,
}

impl Cursor {
    /// Goes to the stripe that holds byte `to`, in `stripes`, which begin with byte `base`.
    pub(crate) fn seek(&mut self, base: u64, to: u64) {
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
