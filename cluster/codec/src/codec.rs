//! [`Codec`]: one class's code, whichever it is, behind checked calls.

use std::fmt;
use std::sync::Arc;

use ashlar_layout::limits::SHARDS_MAX;

use crate::cauchy::Cauchy;
use crate::error::CodecError;
use crate::kernel::Kernel;
use crate::matrix::PARITY_MAX;
use crate::wide::Wide;

/// Most parity shards that the GF(2^8) code makes; classes with more are wide.
pub const CAUCHY_PARITY_MAX: usize = PARITY_MAX;
/// Bytes of a column of the wide code: ranges to rebuild begin and end at multiples of it.
pub const WIDE_COLUMN: usize = 64;

const _: () = assert!(
    SHARDS_MAX <= u64::BITS as usize,
    "shards are kept as bit sets"
);

/// How a class is coded. The bytes of the two methods differ: what is stored uses [`Method::of`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The Cauchy code over GF(2^8) on this kernel; all kernels give the same bytes.
    Cauchy(Kernel),
    /// `reed-solomon-simd`: GF(2^16) and an FFT.
    Wide,
}

impl Method {
    /// The method of classes with `m` parity shards.
    pub fn of(m: usize) -> Self {
        if m <= CAUCHY_PARITY_MAX {
            Self::Cauchy(Kernel::best())
        } else {
            Self::Wide
        }
    }

    /// Its name, for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cauchy(kernel) => kernel.name(),
            Self::Wide => "wide",
        }
    }
}

/// The erasure code of one class `k+m`: shards `0..k` are the data, `k..k+m` the parity.
///
/// Make one per class and clone it: clones share tables and caches, and may be used from any thread.
#[derive(Clone)]
pub struct Codec {
    inner: Arc<Inner>,
}

struct Inner {
    k: usize,
    m: usize,
    code: Code,
}

enum Code {
    Cauchy(Box<Cauchy>),
    Wide(Wide),
}

/// A checked call of `reconstruct`: what both codes work from.
pub(crate) struct Request<'a> {
    /// Present shards, in the caller's order.
    shards: &'a [(usize, &'a [u8])],
    /// Where in `shards` each present shard is, by index.
    places: [u8; SHARDS_MAX],
    /// Which shards are present, as a bit set.
    pub(crate) present: u64,
    /// Which shards are wanted, as a bit set.
    pub(crate) wanted: u64,
    /// Bytes of every shard.
    pub(crate) len: usize,
}

impl<'a> Request<'a> {
    /// The bytes of shard `index`, which is present.
    pub(crate) fn shard(&self, index: usize) -> &'a [u8] {
        self.shards[usize::from(self.places[index])].1
    }
}

impl Codec {
    /// The code of class `k+m`. A wide class takes 15 to 60 ms the first time, for tables that the process
    /// keeps; other classes take microseconds.
    pub fn new(k: usize, m: usize) -> Result<Self, CodecError> {
        Self::with_method(k, m, Method::of(m))
    }

    /// The code of class `k+m` by a given method, for benches and for tests of one kernel against
    /// another. Stored bytes are those of [`Method::of`].
    pub fn with_method(k: usize, m: usize, method: Method) -> Result<Self, CodecError> {
        let max = SHARDS_MAX;
        let refused = CodecError::Class { k, m, max };
        if k == 0 || m == 0 || k > max || m > max || k + m > max {
            return Err(refused);
        }
        let code = match method {
            Method::Cauchy(_) if m > CAUCHY_PARITY_MAX => return Err(refused),
            Method::Cauchy(kernel) => Code::Cauchy(Box::new(Cauchy::new(k, m, kernel))),
            Method::Wide => Code::Wide(Wide::new(k, m)?),
        };
        Ok(Self {
            inner: Arc::new(Inner { k, m, code }),
        })
    }

    /// Data shards.
    pub fn k(&self) -> usize {
        self.inner.k
    }

    /// Parity shards.
    pub fn m(&self) -> usize {
        self.inner.m
    }

    /// All shards: k + m.
    pub fn shards(&self) -> usize {
        self.inner.k + self.inner.m
    }

    /// How this class is coded here.
    pub fn method(&self) -> Method {
        match &self.inner.code {
            Code::Cauchy(code) => Method::Cauchy(code.kernel()),
            Code::Wide(_) => Method::Wide,
        }
    }

    /// Where a range of a shard may begin and end so that [`Codec::reconstruct`] can work on the range alone:
    /// at multiples of this many bytes, or at the shard's end. 1 (anywhere) up to m = 8, and
    /// [`WIDE_COLUMN`] for wide classes.
    pub fn range_align(&self) -> usize {
        match &self.inner.code {
            Code::Cauchy(_) => 1,
            Code::Wide(_) => WIDE_COLUMN,
        }
    }

    /// Computes the m `parity` shards of the k `data` shards, all of one length: any length up to m = 8, an
    /// even one for wide classes. What `parity` held before does not matter.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), CodecError> {
        let Inner { k, m, code } = &*self.inner;
        let (k, m) = (*k, *m);
        if data.len() != k {
            return Err(CodecError::ShardCount {
                what: "data",
                k,
                m,
                expected: k,
                got: data.len(),
            });
        }
        if parity.len() != m {
            return Err(CodecError::ShardCount {
                what: "parity",
                k,
                m,
                expected: m,
                got: parity.len(),
            });
        }
        let expected = data[0].len();
        let lengths = data
            .iter()
            .map(|shard| shard.len())
            .chain(parity.iter().map(|shard| shard.len()));
        if let Some((index, got)) = lengths.enumerate().find(|&(_, got)| got != expected) {
            return Err(CodecError::ShardLength {
                index,
                expected,
                got,
            });
        }
        match code {
            Code::Cauchy(code) => {
                code.encode(data, parity);
                Ok(())
            }
            Code::Wide(code) => code.encode(data, parity),
        }
    }

    /// Rebuilds the shards of `wanted` (data or parity, by index) from `shards`: at least k, in any order, all
    /// slices of one length. The slices may be the same range of every shard, if its ends are where
    /// [`Codec::range_align`] allows: the codec cannot see where a slice was cut, and a range cut elsewhere
    /// gives wrong bytes for a wide class. The caller checks what comes out against the shard's CRC anyway.
    ///
    /// More shards than k are welcome but not compared: the present bytes are taken as verified.
    pub fn reconstruct(
        &self,
        shards: &[(usize, &[u8])],
        wanted: &mut [(usize, &mut [u8])],
    ) -> Result<(), CodecError> {
        let first = shards.first().map(|(_, shard)| shard.len());
        let len = first
            .or_else(|| wanted.first().map(|(_, shard)| shard.len()))
            .unwrap_or(0);
        let mut request = Request {
            shards,
            places: [0; SHARDS_MAX],
            present: 0,
            wanted: 0,
            len,
        };
        // No index comes twice, so there are at most SHARDS_MAX places.
        for (place, (index, shard)) in (0u8..).zip(shards) {
            self.note(&mut request.present, len, *index, shard.len())?;
            request.places[*index] = place;
        }
        for (index, shard) in wanted.iter() {
            self.note(&mut request.wanted, len, *index, shard.len())?;
        }
        let got = request.present.count_ones() as usize;
        if got < self.inner.k {
            return Err(CodecError::TooFew {
                needed: self.inner.k,
                got,
            });
        }
        if len == 0 || wanted.is_empty() {
            return Ok(());
        }
        match &self.inner.code {
            Code::Cauchy(code) => code.reconstruct(&request, wanted),
            Code::Wide(code) => code.reconstruct(&request, wanted),
        }
    }

    /// Adds shard `index` to `set` if it is of the class, new, and of the common length.
    fn note(
        &self,
        set: &mut u64,
        expected: usize,
        index: usize,
        got: usize,
    ) -> Result<(), CodecError> {
        let shards = self.shards();
        if index >= shards {
            return Err(CodecError::Index { index, shards });
        }
        if *set >> index & 1 == 1 {
            return Err(CodecError::Duplicate { index });
        }
        if got != expected {
            return Err(CodecError::ShardLength {
                index,
                expected,
                got,
            });
        }
        *set |= 1 << index;
        Ok(())
    }
}

impl fmt::Debug for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Codec({}+{}, {})",
            self.k(),
            self.m(),
            self.method().name()
        )
    }
}
