//! Which pages of the arena are free: a good-fit allocator of runs of pages.
//!
//! It knows no memory, only numbers, so that it can be tested without any. Free runs hang in lists
//! by size class (eight classes to each power of two), with a bitmap of the lists that hold
//! something: taking and giving are a handful of instructions whatever the pool holds. Runs are cut
//! to the page, so 1 MiB + 64 KiB costs exactly that; a buddy allocator would round it to 2 MiB.
//!
//! Invariants:
//! - `head[p]` is the length of the free run that begins at page `p`, else 0; `tail[p]` that of the
//!   one that ends there, else 0.
//! - Free runs and runs handed out tile the arena: no page is in two of them.
//! - No two free runs touch, unless a segment boundary lies between; no run crosses one.
//! - Bit `c` of `filled` is set if and only if list `c` is not empty; `free` is the sum of all free
//!   runs.

const NIL: u32 = u32::MAX;
/// log2 of the number of classes per power of two.
const SPLIT_LOG2: u32 = 3;
const SPLIT: u32 = 1 << SPLIT_LOG2;
/// Classes for run lengths below 2^32: one each below `SPLIT`, then `SPLIT` per power of two.
const CLASSES: usize = ((32 - SPLIT_LOG2 + 1) * SPLIT) as usize;

/// The allocator.
pub(crate) struct Pages {
    segment: u32,
    free: u32,
    filled: [u64; CLASSES.div_ceil(64)],
    lists: [u32; CLASSES],
    head: Vec<u32>,
    tail: Vec<u32>,
    next: Vec<u32>,
    prev: Vec<u32>,
}

/// The class that a run of `count` pages is kept in: the last whose smallest run is not longer.
fn class_of(count: u32) -> usize {
    if count < SPLIT {
        return count as usize;
    }
    let log = count.ilog2();
    let step = (count >> (log - SPLIT_LOG2)) - SPLIT;
    ((log - SPLIT_LOG2 + 1) * SPLIT + step) as usize
}

/// The first class of which every run holds `count` pages.
fn class_holding(count: u32) -> usize {
    if count < SPLIT {
        return count as usize;
    }
    let grain = 1 << (count.ilog2() - SPLIT_LOG2);
    class_of(count.saturating_add(grain - 1))
}

impl Pages {
    /// `count` free pages, in segments of `segment` pages that no run crosses.
    pub(crate) fn new(count: u32, segment: u32) -> Pages {
        let len = count as usize;
        let mut pages = Pages {
            segment,
            free: count,
            filled: [0; CLASSES.div_ceil(64)],
            lists: [NIL; CLASSES],
            head: vec![0; len],
            tail: vec![0; len],
            next: vec![NIL; len],
            prev: vec![NIL; len],
        };
        let mut page = 0;
        while page < count {
            let run = segment.min(count - page);
            pages.link(page, run);
            page += run;
        }
        pages
    }

    /// How many pages are free, in whatever pieces.
    pub(crate) fn free(&self) -> u32 {
        self.free
    }

    /// Takes `count` pages in a row, and returns the first; `None` if there is no such run.
    pub(crate) fn take(&mut self, count: u32) -> Option<u32> {
        if count == 0 {
            return None;
        }
        let page = match self.first_filled(class_holding(count)) {
            Some(class) => self.lists[class],
            // The last resort: a run in the class of `count` itself may still be long enough.
            None => self.find_in(class_of(count), count)?,
        };
        let run = self.head[page as usize];
        self.unlink(page);
        self.free -= count;
        if run > count {
            self.link(page + count, run - count);
        }
        Some(page)
    }

    /// Gives back a run that [`Pages::take`] handed out.
    pub(crate) fn give(&mut self, mut page: u32, mut count: u32) {
        self.free += count;
        if !page.is_multiple_of(self.segment) {
            let before = self.tail[page as usize - 1];
            if before > 0 {
                page -= before;
                self.unlink(page);
                count += before;
            }
        }
        let end = page + count;
        if !end.is_multiple_of(self.segment) && (end as usize) < self.head.len() {
            let after = self.head[end as usize];
            if after > 0 {
                self.unlink(end);
                count += after;
            }
        }
        self.link(page, count);
    }

    fn first_filled(&self, from: usize) -> Option<usize> {
        let mut word = from / 64;
        let mut bits = *self.filled.get(word)? & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            bits = *self.filled.get(word)?;
        }
        Some(word * 64 + bits.trailing_zeros() as usize)
    }

    fn find_in(&self, class: usize, count: u32) -> Option<u32> {
        let mut page = self.lists[class];
        while page != NIL && self.head[page as usize] < count {
            page = self.next[page as usize];
        }
        (page != NIL).then_some(page)
    }

    fn link(&mut self, page: u32, count: u32) {
        let class = class_of(count);
        let first = self.lists[class];
        if first != NIL {
            self.prev[first as usize] = page;
        }
        self.head[page as usize] = count;
        self.tail[(page + count - 1) as usize] = count;
        self.next[page as usize] = first;
        self.prev[page as usize] = NIL;
        self.lists[class] = page;
        self.filled[class / 64] |= 1 << (class % 64);
    }

    fn unlink(&mut self, page: u32) {
        let index = page as usize;
        let count = self.head[index];
        let (next, prev) = (self.next[index], self.prev[index]);
        if prev == NIL {
            let class = class_of(count);
            self.lists[class] = next;
            if next == NIL {
                self.filled[class / 64] &= !(1 << (class % 64));
            }
        } else {
            self.next[prev as usize] = next;
        }
        if next != NIL {
            self.prev[next as usize] = prev;
        }
        self.head[index] = 0;
        self.tail[(page + count - 1) as usize] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator of our own: the test needs variety, not quality.
    struct Lcg(u64);

    impl Lcg {
        fn below(&mut self, bound: u32) -> u32 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((self.0 >> 33) % u64::from(bound)) as u32
        }
    }

    #[test]
    fn classes_are_ordered_and_hold_what_they_promise() {
        let mut last = 0;
        for count in 1..200_000 {
            let class = class_of(count);
            assert!(class == last || class == last + 1, "class of {count}");
            last = class;
            // Every run of the class that holds `count`, and so its smallest, is long enough.
            let holding = class_holding(count);
            assert!(holding >= class);
            assert!(count == 1 || class_of(count - 1) < holding || class_of(count) == holding);
        }
        assert!(class_of(u32::MAX) < CLASSES);
        for count in 1..10_000 {
            let smallest = (1..).find(|&run| class_of(run) == class_holding(count));
            assert!(smallest.is_some_and(|run| run >= count), "{count}");
            if count > 300 {
                // The search above is quadratic: a sample of the larger ones will do.
                break;
            }
        }
    }

    #[test]
    fn runs_never_overlap_and_everything_merges_back() {
        for (seed, count, segment) in [
            (1, 4096, 4096),
            (2, 5000, 1024),
            (3, 1, 4096),
            (4, 12_345, 4096),
            (5, 8192, 8192),
        ] {
            let mut rng = Lcg(seed);
            let mut pages = Pages::new(count, segment);
            let mut used = vec![false; count as usize];
            let mut runs: Vec<(u32, u32)> = Vec::new();
            let (mut refused, mut in_use) = (0, 0);
            for _ in 0..20_000 {
                if rng.below(2) == 0 && !runs.is_empty() {
                    let (page, run) = runs.swap_remove(rng.below(runs.len() as u32) as usize);
                    used[page as usize..(page + run) as usize].fill(false);
                    pages.give(page, run);
                    in_use -= run;
                } else {
                    let exponent = 1 + rng.below(10);
                    let wanted = 1 + rng.below(1 << exponent);
                    match pages.take(wanted) {
                        Some(page) => {
                            assert_eq!(page / segment, (page + wanted - 1) / segment);
                            for flag in &mut used[page as usize..(page + wanted) as usize] {
                                assert!(!*flag, "page handed out twice");
                                *flag = true;
                            }
                            runs.push((page, wanted));
                            in_use += wanted;
                        }
                        None => {
                            // Refused only if there really is no such run.
                            let longest = used
                                .chunks(segment as usize)
                                .flat_map(|part| part.split(|flag| *flag))
                                .map(<[bool]>::len)
                                .max();
                            assert!(longest.is_some_and(|run| run < wanted as usize));
                            refused += 1;
                        }
                    }
                }
                assert_eq!(pages.free(), count - in_use);
            }
            assert!(refused > 0, "the test never filled the arena");
            for (page, run) in runs {
                pages.give(page, run);
            }
            assert_eq!(pages.free(), count);
            let mut left = count;
            while left > 0 {
                let run = segment.min(left);
                assert!(pages.take(run).is_some(), "segments did not merge back");
                left -= run;
            }
        }
    }

    #[test]
    fn an_odd_run_costs_no_more_than_itself() {
        // 1 MiB + 64 KiB is 272 pages.
        let mut pages = Pages::new(4096, 4096);
        let runs = std::iter::from_fn(|| pages.take(272)).count();
        assert_eq!(runs, 4096 / 272);
        assert!(pages.take(0).is_none());
    }
}
