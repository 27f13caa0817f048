//! Encoded entries as pieces of shared bytes.

use ashlar_layout::ids::{ClientId, RequestNo, Seq, Term};
use ashlar_layout::journal::{Entry, EntryError, encode_entry};
use ashlar_layout::manifest::Op;
use ashlar_layout::slot::slot_of;
use bytes::{Bytes, BytesMut};

use crate::chain::Chain;

/// What an entry changes, as far as others than the index are concerned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mark {
    Nothing,
    /// A key or a bucket, of this witness slot.
    Slot(u32),
    /// Two keys, of these.
    Slots([u32; 2]),
    /// The chain's composition.
    Chain(Chain),
    /// It cannot be told.
    Any,
}

impl Mark {
    pub(crate) fn of(op: &Op) -> Mark {
        match op {
            Op::TermStart => Mark::Nothing,
            Op::Chain { config, members } => Mark::Chain(Chain {
                config: *config,
                members: members.clone(),
            }),
            // Whoever may serve what goes away changes things that are not written down here.
            Op::Split { .. } | Op::Close { .. } => Mark::Any,
            Op::CreateBucket { bucket } | Op::DeleteBucket { bucket } => {
                Mark::Slot(slot_of(bucket, ""))
            }
            Op::Put { bucket, key, .. }
            | Op::Delete { bucket, key }
            | Op::PutVersion { bucket, key, .. }
            | Op::DropVersion { bucket, key, .. }
            | Op::LockVersion { bucket, key, .. }
            | Op::Relocate { bucket, key, .. } => Mark::Slot(slot_of(bucket, key)),
            Op::Rename {
                bucket,
                key,
                source,
                ..
            } => Mark::Slots([slot_of(bucket, key), slot_of(bucket, source)]),
        }
    }
}

/// One whole entry whose checksum was verified; the operation is not decoded yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Piece {
    pub(crate) seq: Seq,
    pub(crate) term: Term,
    /// Of a `TermStart`: the term of the entry before it.
    pub(crate) prev_term: Option<Term>,
    pub(crate) mark: Mark,
    pub(crate) bytes: Bytes,
}

/// An entry, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decoded {
    pub(crate) client: ClientId,
    pub(crate) request: RequestNo,
    pub(crate) time_ms: u64,
    pub(crate) op: Op,
    /// The inline payload, of the entry's own bytes.
    pub(crate) inline: Bytes,
}

/// The bytes of a proposal's entry.
pub(crate) fn encode(seq: Seq, term: Term, decoded: &Decoded) -> Result<Bytes, EntryError> {
    let mut out = Vec::new();
    let Decoded {
        client,
        request,
        time_ms,
        op,
        inline,
    } = decoded;
    encode_entry(&mut out, seq, term, *client, *request, *time_ms, op, inline)?;
    Ok(Bytes::from(out))
}

/// A head's own record. The request number, which nobody retries, holds the term of the entry
/// before it: a replica whose device lost the start of a term can tell by it.
pub(crate) fn term_start(prev_term: Term) -> Decoded {
    Decoded {
        client: ClientId(0),
        request: RequestNo(prev_term.0),
        time_ms: 0,
        op: Op::TermStart,
        inline: Bytes::new(),
    }
}

/// A change of the chain's composition, by its head.
pub(crate) fn recompose(chain: &Chain) -> Decoded {
    own(Op::Chain {
        config: chain.config,
        members: chain.members.clone(),
    })
}

/// A head's own record, which no client asked for.
pub(crate) fn own(op: Op) -> Decoded {
    Decoded {
        client: ClientId(0),
        request: RequestNo(0),
        time_ms: 0,
        op,
        inline: Bytes::new(),
    }
}

/// A promise, as it stands on the device: an entry of number 0, which is no part of the log.
pub(crate) fn promise(term: Term) -> Result<Bytes, EntryError> {
    encode(Seq(0), term, &term_start(Term(0)))
}

/// The entry that `bytes` are, no more and no less, decoded.
pub(crate) fn decode(bytes: &Bytes) -> Result<Decoded, EntryError> {
    let entry = Entry::decode(bytes)?;
    Ok(Decoded {
        client: entry.header.client,
        request: entry.header.request,
        time_ms: entry.header.time_ms,
        op: entry.op()?,
        inline: inline(&entry, bytes),
    })
}

/// The inline payload of an entry that `bytes` begin with.
pub(crate) fn inline(entry: &Entry<'_>, bytes: &Bytes) -> Bytes {
    let from = entry.inline_offset();
    bytes.slice(from..from + entry.inline.len())
}

/// Cuts a run of whole entries, of versions up to `reads`, into pieces. What was cut before an error is kept in `out`.
pub(crate) fn split(bytes: &Bytes, reads: u16, out: &mut Vec<Piece>) -> Result<(), EntryError> {
    let mut at = 0;
    while at < bytes.len() {
        let entry = Entry::decode(&bytes[at..])?;
        if entry.version > reads {
            return Err(EntryError::NewerVersion {
                at,
                expected: reads,
                got: entry.version,
            });
        }
        let op = entry.op();
        let start = matches!(op, Ok(Op::TermStart));
        let prev_term = start.then_some(Term(entry.header.request.0));
        let piece = Piece {
            seq: entry.header.seq,
            term: entry.header.term,
            prev_term,
            mark: op.as_ref().map_or(Mark::Any, Mark::of),
            bytes: bytes.slice(at..at + entry.len()),
        };
        at += entry.len();
        out.push(piece);
    }
    Ok(())
}

/// Puts entries together; no copy if it is one.
pub(crate) fn join(parts: &[Bytes]) -> Bytes {
    match parts {
        [] => Bytes::new(),
        [one] => one.clone(),
        many => {
            let mut all = BytesMut::with_capacity(many.iter().map(Bytes::len).sum());
            many.iter().for_each(|part| all.extend_from_slice(part));
            all.freeze()
        }
    }
}
