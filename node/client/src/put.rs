//! From a source to the store, stripe by stripe.
//!
//! Invariants:
//! - the source is read no further than the stripes in flight allow;
//! - a source that fails, or has another length than was promised, leaves nothing visible; so does one
//!   whose caller, when all of it was read, does not seal it.

use std::io;
use std::sync::Arc;

use ashlar_cluster_object::{
    Code, Compose, Event, Making, ObjectError, PoolBuf, Put, PutDone, STRIPE_SLACK, StripeBuf,
};
use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{Body, Manifest, Precondition};
use ashlar_layout::message::ObjectMeta;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::OwnedSemaphorePermit;

use crate::client::{Turn, admit};
use crate::drive::Drive;
use crate::error::ClientError;
use crate::get::GetStream;
use crate::inner::Inner;
use crate::options::{GetOptions, PutOptions, PutOutcome, Seal, Sealed};
use crate::versions;

async fn start(
    inner: &Arc<Inner>,
    bucket: &str,
    key: &str,
    options: &PutOptions,
    turn: Turn,
) -> Result<Drive<Put>, ClientError> {
    let permit = turn.writer(inner).await?;
    let put = Put::new(inner.common.clone(), bucket, key, options.precondition)?;
    let put = put.as_version(options.making);
    let put = put.encrypted(options.cipher.clone());
    Ok(Drive::start(inner.clone(), put, permit))
}

/// The largest object that rides in the journal.
fn inline_max(inner: &Inner, options: &PutOptions) -> usize {
    if options.striped || options.cipher.is_some() {
        0
    } else {
        inner.common.tuning().inline_max as usize
    }
}

/// Tells the machine what to remember of the object. Nothing of it is visible yet.
fn describe(drive: &mut Drive<Put>, seal: Seal) {
    drive.with(|put, _, _| put.describe(seal.etag, seal.attributes.into()));
}

/// Sees a put through: if what is current is no version yet, it is made one, and the put proposed again.
async fn finish(
    inner: &Arc<Inner>,
    (bucket, key): (&str, &str),
    mut drive: Drive<Put>,
) -> Result<PutOutcome, ClientError> {
    let mut tries = versions::TRIES;
    loop {
        drive.until_answered().await;
        let Some(put) = drive.machine() else {
            return Err(ObjectError::Aborted.into());
        };
        let Some(error) = put.not_kept().cloned() else {
            return outcome_of(put.outcome().cloned());
        };
        tries -= 1;
        if tries == 0 {
            return Err(error.into());
        }
        let precondition = put.precondition();
        let precondition = versions::make_way(inner, bucket, key, precondition).await?;
        drive.with(|put, now, out| put.propose_again(now, precondition, out));
    }
}

fn outcome_of(outcome: Option<Result<PutDone, ObjectError>>) -> Result<PutOutcome, ClientError> {
    let done: PutDone = outcome.unwrap_or(Err(ObjectError::Aborted))?;
    Ok(PutOutcome {
        version: done.version,
        size: done.size,
        crc: done.crc,
        stripes: done.stripes,
        degraded_shards: done.degraded_shards,
        reduced_stripes: done.reduced_stripes,
    })
}

/// Puts an object together of others: once more if what was current was no version yet. Nothing of the parts is moved,
/// so that costs no more than lists of stripes that are written again.
pub(crate) async fn compose(
    inner: &Arc<Inner>,
    bucket: &str,
    key: &str,
    parts: Vec<Manifest>,
    mut options: PutOptions,
) -> Result<PutOutcome, ClientError> {
    for _ in 1..versions::TRIES {
        let made = compose_once(inner, bucket, key, parts.clone(), options.clone()).await;
        match made {
            Err(error) if error.code() == Code::NotKept => {}
            made => return made,
        }
        let precondition = options.precondition;
        options.precondition = versions::make_way(inner, bucket, key, precondition).await?;
    }
    compose_once(inner, bucket, key, parts, options).await
}

async fn compose_once(
    inner: &Arc<Inner>,
    bucket: &str,
    key: &str,
    parts: Vec<Manifest>,
    options: PutOptions,
) -> Result<PutOutcome, ClientError> {
    let permit = admit(&inner.writers, inner.options.admit_wait).await?;
    let Seal { etag, attributes } = options.seal;
    let compose = Compose::new(
        inner.common.clone(),
        bucket,
        key,
        options.precondition,
        parts,
        (etag, attributes.into()),
    )?
    .as_version(options.making);
    composed(inner, compose, permit).await
}

async fn composed(
    inner: &Arc<Inner>,
    compose: Compose,
    permit: Option<OwnedSemaphorePermit>,
) -> Result<PutOutcome, ClientError> {
    let mut drive = Drive::start(inner.clone(), compose, permit);
    drive.until_answered().await;
    let outcome = drive.machine().and_then(Compose::outcome).cloned();
    outcome_of(outcome)
}

/// Makes an object longer.
pub(crate) async fn append(
    inner: &Arc<Inner>,
    (bucket, key): (&str, &str),
    meta: ObjectMeta,
    parts: Vec<Manifest>,
    seal: Seal,
) -> Result<PutOutcome, ClientError> {
    let permit = admit(&inner.writers, inner.options.admit_wait).await?;
    let (common, seal) = (inner.common.clone(), (seal.etag, seal.attributes.into()));
    let found = (meta.version, meta.manifest);
    let compose = Compose::longer(common, bucket, key, found, parts, seal)?;
    composed(inner, compose, permit).await
}

/// All bytes of an object, or of a version of it, that rides in the journal; none if it is another one by now.
pub(crate) async fn inline_of(
    inner: &Arc<Inner>,
    (bucket, key): (&str, &str),
    version: Option<Seq>,
    meta: &ObjectMeta,
    turn: Turn,
) -> Result<Option<Bytes>, ClientError> {
    let options = GetOptions {
        range: None,
        version,
    };
    let mut found = match GetStream::open(inner, (bucket, key), options, turn).await {
        Ok(found) => found,
        Err(error) if error.code() == Code::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if found.meta().version != meta.version {
        return Ok(None);
    }
    let mut whole = BytesMut::new();
    while let Some(next) = found.next().await {
        whole.extend_from_slice(&next?);
    }
    Ok(Some(whole.freeze()))
}

/// Keeps something else with an object, or a version of it.
pub(crate) async fn reseal(
    inner: &Arc<Inner>,
    (bucket, key): (&str, &str),
    meta: ObjectMeta,
    (seal, making): (Seal, Making),
    turn: Turn,
) -> Result<PutOutcome, ClientError> {
    let other = match making {
        Making::Again {
            tag,
            current: false,
            ..
        }
        | Making::Locked {
            tag,
            current: false,
            ..
        } => Some(tag.slot()),
        _ => None,
    };
    if meta.manifest.body == Body::Inline && meta.manifest.size > 0 {
        let whole = inline_of(inner, (bucket, key), other, &meta, turn).await?;
        let Some(whole) = whole else {
            let (bucket, key) = (bucket.to_owned(), key.to_owned());
            let detail = "it is another version by now".to_owned();
            return Err(ObjectError::PreconditionFailed {
                bucket,
                key,
                detail,
            }
            .into());
        };
        let precondition = match (other, making) {
            (Some(_), _) | (None, Making::Locked { .. }) => Precondition::None,
            (None, _) => Precondition::Version(meta.version),
        };
        let options = PutOptions {
            precondition,
            making,
            ..PutOptions::default()
        };
        let mut drive = start(inner, bucket, key, &options, turn).await?;
        describe(&mut drive, seal);
        // It rides in the journal again, however much may by now: it is the same object.
        drive.event(Event::Inline(whole));
        return finish(inner, (bucket, key), drive).await;
    }
    let permit = turn.writer(inner).await?;
    let seal = (seal.etag, seal.attributes.into());
    let (common, version) = (inner.common.clone(), meta.version);
    let again = Compose::again(common, bucket, key, version, meta.manifest, seal)?;
    composed(inner, again.as_version(making), permit).await
}

/// Puts bytes that are at hand, without a copy but for the last stripe's end.
pub(crate) async fn put_bytes(
    inner: &Arc<Inner>,
    (bucket, key): (&str, &str),
    mut body: Bytes,
    options: PutOptions,
    turn: Turn,
) -> Result<PutOutcome, ClientError> {
    let got = body.len() as u64;
    if let Some(expected) = options.size_exact.filter(|expected| *expected != got) {
        return Err(ClientError::SourceLength { expected, got });
    }
    let mut drive = start(inner, bucket, key, &options, turn).await?;
    let inline_max = inline_max(inner, &options);
    describe(&mut drive, options.seal);
    if body.len() <= inline_max {
        drive.event(Event::Inline(body));
        return finish(inner, (bucket, key), drive).await;
    }
    while !drive.is_answered() {
        let Some(put) = drive.machine() else { break };
        if !put.wants_data() {
            drive.step().await;
            continue;
        }
        if body.is_empty() {
            drive.event(Event::End);
            break;
        }
        let stripe = body.split_to(body.len().min(put.stripe_data() as usize));
        drive.event(Event::Stripe(StripeBuf::exact(stripe)));
    }
    finish(inner, (bucket, key), drive).await
}

/// A source, with what was promised of it.
struct Source<R> {
    body: R,
    read: u64,
    exact: Option<u64>,
}

impl<R: AsyncRead + Unpin> Source<R> {
    fn count(&mut self, read: io::Result<usize>) -> Result<usize, ClientError> {
        let n = read.map_err(|source| ClientError::Source {
            read: self.read,
            source,
        })?;
        self.read += n as u64;
        match self.exact {
            Some(expected) if self.read > expected || n == 0 && self.read < expected => {
                Err(ClientError::SourceLength {
                    expected,
                    got: self.read,
                })
            }
            _ => Ok(n),
        }
    }

    /// Reads until there is one byte more than fits the journal, or no more.
    async fn head(&mut self, inline_max: usize, hint: usize) -> Result<Bytes, ClientError> {
        let mut head = BytesMut::with_capacity(hint.min(inline_max) + 1);
        while head.len() <= inline_max {
            if head.len() == head.capacity() {
                head.reserve((head.len() * 3).clamp(4096, inline_max + 1 - head.len()));
            }
            let read = (&mut self.body).take((inline_max + 1 - head.len()) as u64);
            let mut read = read;
            let n = read.read_buf(&mut head).await;
            if self.count(n)? == 0 {
                break;
            }
        }
        Ok(head.freeze())
    }
}

/// Puts what a source gives.
pub(crate) async fn put<F>(
    inner: &Arc<Inner>,
    bucket: &str,
    key: &str,
    body: impl AsyncRead + Unpin + Send,
    options: PutOptions,
    seal: impl FnOnce(Sealed) -> F + Send,
) -> Result<PutOutcome, ClientError>
where
    F: Future<Output = io::Result<Sealed>> + Send,
{
    let mut source = Source {
        body,
        read: 0,
        exact: options.size_exact,
    };
    let inline_max = inline_max(inner, &options);
    let hint = options
        .size_exact
        .or(options.size_hint)
        .unwrap_or(inline_max as u64);
    let hint = usize::try_from(hint).unwrap_or(usize::MAX);
    // Nothing has been asked of the store yet: a source that fails here costs nothing.
    let head = source.head(inline_max, hint).await?;
    let unsealed = |read: u64| move |source| ClientError::Source { read, source };
    let given = Sealed {
        seal: options.seal.clone(),
        making: options.making,
    };
    if head.len() <= inline_max {
        // Its turn comes first: how it is made is said by what is known right before it is proposed.
        let mut drive = start(inner, bucket, key, &options, Turn::Own).await?;
        // Nor does one that is not sealed.
        let sealed = seal(given).await.map_err(unsealed(source.read))?;
        drive.with(|put, _, _| put.make_as(sealed.making));
        describe(&mut drive, sealed.seal);
        drive.event(Event::Inline(head));
        return finish(inner, (bucket, key), drive).await;
    }
    let mut drive = start(inner, bucket, key, &options, Turn::Own).await?;
    let whole = stripes(inner, &mut drive, &mut source, &head).await?;
    if whole {
        // An error drops the drive, and with it all that was stored. The stripes go on meanwhile.
        let mut sealing = std::pin::pin!(seal(given));
        let sealed = loop {
            tokio::select! {
                biased;
                sealed = &mut sealing => break sealed,
                () = drive.step() => {}
            }
        };
        let sealed = sealed.map_err(unsealed(source.read))?;
        drive.with(|put, _, _| put.make_as(sealed.making));
        describe(&mut drive, sealed.seal);
        drive.event(Event::End);
    }
    finish(inner, (bucket, key), drive).await
}

/// Hands over stripes until the source ends, or the put has failed: then it is false.
async fn stripes(
    inner: &Arc<Inner>,
    drive: &mut Drive<Put>,
    source: &mut Source<impl AsyncRead + Unpin + Send>,
    head: &[u8],
) -> Result<bool, ClientError> {
    let stripe_data = drive.machine().map_or(1, Put::stripe_data) as usize;
    // A stripe may be shorter than what was read ahead.
    let mut ahead = head;
    let mut stripe: Option<(PoolBuf, usize)> = None;
    let mut ended = false;
    while !drive.is_answered() {
        if !drive.machine().is_some_and(Put::wants_data) {
            drive.step().await;
            continue;
        }
        let (buf, filled) =
            stripe.get_or_insert_with(|| (inner.common.pool().take(stripe_data + STRIPE_SLACK), 0));
        if !ahead.is_empty() && *filled < stripe_data {
            let n = ahead.len().min(stripe_data - *filled);
            buf[*filled..*filled + n].copy_from_slice(&ahead[..n]);
            ahead = &ahead[n..];
            *filled += n;
        } else if !ended && *filled < stripe_data {
            let read = tokio::select! {
                biased;
                () = drive.step() => continue,
                read = source.body.read(&mut buf[*filled..stripe_data]) => read,
            };
            let n = source.count(read)?;
            ended = n == 0;
            *filled += n;
        } else if let Some((mut buf, filled)) = stripe.take() {
            if filled > 0 {
                let end = filled + STRIPE_SLACK;
                buf[filled..end].fill(0);
                buf.truncate(end);
                // A stripe's length came from a u32.
                let stripe = StripeBuf::padded(buf.freeze(), filled as u32);
                drive.event(Event::Stripe(stripe));
            }
            if ended {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
