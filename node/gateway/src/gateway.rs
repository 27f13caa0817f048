//! A gateway: from a request to its reply.
//!
//! Invariants:
//! - a request passes, in this order: its shape, its operation (and whether all that it says is
//!   understood), its signature, the policies, its own conditions. Its body is asked for (`100 Continue`)
//!   only then;
//! - no state is kept here that the store does not have: any number of gateways are one.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ashlar_cluster_map::ClusterMap;
use ashlar_cluster_s3::conditional::etag;
use ashlar_cluster_s3::operation::{Operation, resolve};
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::signature::{Claim, Payload};
use ashlar_cluster_s3::signature_v4::ChunkSigner;
use ashlar_cluster_s3::{attributes::Attributes, cors};
use ashlar_layout::message::ObjectMeta;
use ashlar_node_client::{Client, ClientError, ClientOptions, Drained};
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::sync::Notify;

use crate::access::Access;
use crate::admit::{Asked, Reading};
use crate::body::{BodyReader, Promise, Shared, Source};
use crate::call::Call;
use crate::directory::Directory;
use crate::faults::{internal, refused};
use crate::inbound::{After, Inbound};
use crate::memory::{Class, Memory, Pace, Sends, Share};
use crate::options::{GatewayOptions, LogEntry};
use crate::places::{Peer, Places};
use crate::reply::{Reply, ReplyBody, RequestId, finish, refusal_reply};

/// Largest document that a request carries, in bytes.
pub(crate) const DOCUMENT_MAX: u64 = 2 * 1024 * 1024;
/// How long a document may take to come.
pub(crate) const DOCUMENT_WAIT: Duration = Duration::from_secs(30);
/// Of the requests at once one in so many may be a form whose sender is not known yet, and of the memory for bodies so
/// much is for documents.
const FORMS: usize = 8;
/// A document's share is that of a body of so many bytes: a small one.
const DOCUMENT_SHARE: u64 = 1024 * 1024;
/// Stripes of a body in flight. Two, so that one is made while the other is on its way.
const STRIPES: usize = 2;

/// A gateway.
#[derive(Debug)]
pub struct Gateway {
    pub(crate) store: Client,
    pub(crate) directory: Arc<Directory>,
    pub(crate) options: GatewayOptions,
    pub(crate) memory: Arc<Memory>,
    requests: Places,
    /// Forms of which nobody knows yet who sends them.
    pub(crate) forms: Places,
    /// Documents on their way.
    documents: Places,
    pub(crate) number: u64,
    /// Somebody has changed what becomes of objects as they grow old.
    pub(crate) rules_changed: Notify,
    next: AtomicU64,
}

/// A request whose caller is known.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) call: Call,
    pub(crate) claim: Claim,
    pub(crate) access: Access,
    pub(crate) now_ms: u64,
    /// Not before this the store was asked by which documents the request is judged.
    pub(crate) asked: Instant,
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// So many random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Refusal> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(internal)?;
    Ok(bytes)
}

impl Gateway {
    /// A gateway to the cluster that `map` describes.
    pub fn new(map: ClusterMap, options: GatewayOptions) -> Result<Gateway, ClientError> {
        let of_bodies = ClientOptions {
            put_stripes: STRIPES,
            get_stripes: STRIPES,
            admit_wait: Some(options.limits.admit_wait),
            ..ClientOptions::default()
        };
        let setup = |error: getrandom::Error| ClientError::Setup {
            detail: format!("the system gives no random number to name this gateway: {error}"),
        };
        let mut number = [0; 8];
        getrandom::fill(&mut number).map_err(setup)?;
        // Documents have a client of their own: bodies that stand still do not keep others from being
        // recognised. What both ask goes out together.
        let of_documents = ClientOptions {
            admit_wait: Some(options.limits.admit_wait),
            ..ClientOptions::default()
        };
        let limits = options.limits;
        let store = Client::connect(map, of_bodies)?;
        let documents = store.sibling(of_documents)?;
        Ok(Gateway {
            store,
            directory: Arc::new(Directory::new(documents, options.root.clone())),
            memory: Arc::new(Memory::new(limits.memory_mib, limits.memory_wait)),
            requests: Places::new(limits.requests),
            forms: Places::new((limits.requests / FORMS).max(1)),
            documents: Places::new((limits.memory_mib as usize / FORMS).max(1)),
            options,
            number: u64::from_le_bytes(number),
            rules_changed: Notify::new(),
            next: AtomicU64::new(1),
        })
    }

    /// Makes the reserved bucket, if it is not there.
    pub async fn found(&self) -> Result<(), ClientError> {
        self.directory.found().await
    }

    /// Waits, at most so long, for what is finished behind acknowledgements.
    pub async fn drain(&self, wait: Duration) -> Drained {
        self.store.drain(wait).await
    }

    /// Answers a request.
    pub async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: SocketAddr,
        secure: bool,
    ) -> Response<ReplyBody> {
        let began = Instant::now();
        let id = RequestId::new(self.number, self.next.fetch_add(1, Ordering::Relaxed));
        let (parts, body) = request.into_parts();
        let expects = parts.headers.contains_key(hyper::header::EXPECT);
        // Such a request has no answer but the last one, after which botocore before 1.44 misreads the next one on the
        // same connection: it waits for a minute, and does its request twice (its issue 3755).
        let for_nothing = expects && hyper::body::Body::is_end_stream(&body);
        let (body, leftover) = Inbound::new(body);
        let is_head = parts.method == hyper::Method::HEAD;
        let mut told = Told::default();
        let place = self.requests.take_now(Peer::from(peer), 1);
        let result = match place {
            None => refused(Code::SlowDown, "Please reduce your request rate."),
            Some(_place) => match Call::new(&parts, &self.options.domains, peer, secure) {
                Err(refusal) => Err(refusal),
                Ok(call) => {
                    told.resource = call.resource();
                    self.answer(call, body, &mut told).await
                }
            },
        };
        let region = &self.options.region;
        let (mut reply, refusal) = match result {
            Ok(reply) => (reply, None),
            Err(refusal) => {
                let reply = refusal_reply(&refusal, &id, &told.resource, region, is_head);
                (reply, Some(refusal))
            }
        };
        for (name, value) in &told.cors {
            reply.set(name, value);
        }
        if leftover.settle(expects) == After::Close || for_nothing {
            reply.set("connection", "close");
        }
        let micros = began.elapsed().as_micros();
        (self.options.log.0)(&LogEntry {
            request_id: &id.id,
            peer: &peer.to_string(),
            user: told.user.as_deref(),
            method: parts.method.as_str(),
            path: parts.uri.path(),
            operation: told.operation.map(Operation::as_str),
            status: reply.status.as_u16(),
            refusal: refusal.as_ref().map(|r| (r.code.as_str(), &*r.message)),
            micros: u64::try_from(micros).unwrap_or(u64::MAX),
        });
        finish(reply, &id)
    }

    async fn answer(
        self: &Arc<Self>,
        call: Call,
        body: Inbound,
        told: &mut Told,
    ) -> Result<Reply, Refusal> {
        call.check_names()?;
        if call.method == "OPTIONS" {
            return self.preflight(&call).await;
        }
        let operation = resolve(
            &call.method,
            call.level,
            call.query_names(),
            call.header_names(),
        )?;
        told.operation = Some(operation);
        let now_ms = now_ms();
        let claim = Claim::of(&call.signed(), &call.query, &self.options.region, now_ms)?;
        if let (Claim::V2(_) | Claim::PresignedV2(_), false) = (&claim, self.options.version_2) {
            return refused(
                Code::InvalidRequest,
                "The authorization mechanism you have provided is not supported. Please use \
                 AWS4-HMAC-SHA256.",
            );
        }
        claim.check_names(operation)?;
        if call.header("x-amz-security-token").is_some() {
            return refused(
                Code::InvalidToken,
                "The provided token is malformed or otherwise invalid.",
            );
        }
        let request = Asked {
            operation,
            call,
            claim,
            now_ms,
        };
        let (documents, ahead) = self.read_ahead(&request).await?;
        if ahead.is_none() {
            request.check_signature(&documents)?;
        }
        if let Some(open) = &documents.key {
            told.user = Some(open.key.user.name.clone());
        }
        let call = &request.call;
        if let (Some(open), Some(origin)) = (&documents.bucket, call.header("origin")) {
            told.cors = cors_headers(cors::grant(&open.config.cors, origin, &call.method, None));
        }
        if let Some(result) = ahead {
            return result;
        }
        let context = self.admit(request, documents).await?;
        self.operate(operation, &context, body).await
    }

    async fn operate(
        self: &Arc<Self>,
        operation: Operation,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        use Operation as O;
        if let Some(reading) = Reading::of(operation) {
            return self.read(reading, context).await;
        }
        match operation {
            O::ListBuckets => self.list_buckets(context).await,
            O::CreateBucket => self.create_bucket(context, body).await,
            O::HeadBucket => self.head_bucket(context).await,
            O::DeleteBucket => self.delete_bucket(context).await,
            O::PutObject => self.put_object(context, body).await,
            O::CopyObject => self.copy_object(context).await,
            O::RenameObject => self.rename_object(context).await,
            O::DeleteObject => self.delete_object(context).await,
            O::DeleteObjects => self.delete_objects(context, body).await,
            O::PostObject => self.post_object(context, body).await,
            O::GetObjectTagging | O::PutObjectTagging | O::DeleteObjectTagging => {
                self.object_tagging(operation, context, body).await
            }
            O::GetObjectRetention
            | O::PutObjectRetention
            | O::GetObjectLegalHold
            | O::PutObjectLegalHold => self.object_lock(operation, context, body).await,
            O::CreateMultipartUpload => self.create_upload(context).await,
            O::UploadPart => self.upload_part(context, body).await,
            O::UploadPartCopy => self.upload_part_copy(context).await,
            O::CompleteMultipartUpload => self.complete_upload(context, body).await,
            O::AbortMultipartUpload => self.abort_upload(context).await,
            O::ListParts => self.list_parts(context).await,
            O::ListMultipartUploads => self.list_uploads(context).await,
            _ => self.configure(operation, context, body).await,
        }
    }

    /// A page of another site asks whether it may call.
    async fn preflight(&self, call: &Call) -> Result<Reply, Refusal> {
        let (Some(origin), Some(method)) = (
            call.header("origin"),
            call.header("access-control-request-method"),
        ) else {
            return refused(
                Code::InvalidRequest,
                "Insufficient information. Origin request header needed.",
            );
        };
        let open = self.directory.bucket(&call.bucket).await?;
        let headers = call.header("access-control-request-headers");
        let granted = open.and_then(|open| cors::grant(&open.config.cors, origin, method, headers));
        if granted.is_none() {
            return refused(
                Code::AccessForbidden,
                "CORSResponse: This CORS request is not allowed. This is usually because the evalution of \
                 Origin, request method / Access-Control-Request-Method or Access-Control-Request-Headers \
                 are not whitelisted by the resource's CORS spec.",
            );
        }
        let mut reply = Reply::ok();
        for (name, value) in cors_headers(granted) {
            reply.set(name, &value);
        }
        Ok(reply)
    }

    /// How fast a body of so many bytes has to come.
    pub(crate) fn pace(&self, bytes: u64) -> Pace {
        let of = Sends::default();
        of.set(Class::of(bytes));
        self.pace_of(of)
    }

    /// How fast has to be taken what a connection sends.
    pub(crate) fn pace_of(&self, sends: Sends) -> Pace {
        Pace::new(self.memory.clone(), self.options.limits.body_wait, sends)
    }

    /// What the request says of its body's length and how it comes.
    pub(crate) fn promise(&self, context: &Context) -> Result<Promise, Refusal> {
        let Context { call, claim, .. } = context;
        let said = match claim {
            Claim::V4(v4) | Claim::Presigned(v4) => Some(v4.payload.as_str()),
            _ => call.header("x-amz-content-sha256"),
        };
        let payload = said.map_or(Ok(Payload::Unsigned), Payload::parse)?;
        let number = |name: &str| -> Result<Option<u64>, Refusal> {
            match call.header(name).map(str::parse) {
                None => Ok(None),
                Some(Ok(number)) => Ok(Some(number)),
                Some(Err(_)) => {
                    let message = format!("The header {name} is no length");
                    Err(Refusal::new(Code::InvalidArgument, message))
                }
            }
        };
        let decoded = number("x-amz-decoded-content-length")?;
        let len = match (payload.is_chunked(), decoded) {
            (true, decoded) => decoded,
            (false, None) => number("content-length")?,
            // Whoever meant chunks would have them kept as they came.
            (false, Some(_)) => {
                return refused(
                    Code::InvalidRequest,
                    "x-amz-decoded-content-length is of bodies in chunks: x-amz-content-sha256 has to be one \
                     of the STREAMING- values",
                );
            }
        };
        let Some(len) = len else {
            return refused(
                Code::MissingContentLength,
                "You must provide the Content-Length HTTP header.",
            );
        };
        let signer = match (claim, payload) {
            (Claim::V4(v4), Payload::Chunks { .. }) => {
                let secret = context.access.key.as_ref().map(|open| open.secret.reveal());
                Some(ChunkSigner::new(v4, secret.unwrap_or_default()))
            }
            (_, Payload::Chunks { .. }) => {
                return refused(
                    Code::InvalidRequest,
                    "Signed chunks need a signature of version 4 in a header",
                );
            }
            _ => None,
        };
        Ok(Promise {
            len,
            least: None,
            payload,
            signer,
            algorithms: Vec::new(),
            pace: self.pace(len),
            peer: call.peer(),
            share: None,
        })
    }

    /// All of a short body, with its share of the memory. Who sends it has so long and no longer: it is
    /// read before all that it asks for is authorised.
    pub(crate) async fn whole(
        &self,
        body: Inbound,
        promise: Promise,
    ) -> Result<(bytes::Bytes, Shared), Refusal> {
        if promise.len > DOCUMENT_MAX {
            return refused(Code::MaxMessageLengthExceeded, "Your request was too big.");
        }
        // Of many it is not known yet what they may do: those who send none of it keep no bodies out, but documents.
        let place = self.documents.take(promise.peer, 1);
        let Some(Some(_place)) = timeout(self.options.limits.memory_wait, place).await else {
            return refused(Code::SlowDown, "Please reduce your request rate.");
        };
        let share = match promise.len {
            0 => None,
            len => {
                let share = self.memory.share(promise.peer, len.min(DOCUMENT_SHARE));
                Some(share.await?)
            }
        };
        let (reader, shared): (BodyReader, Shared) = BodyReader::new(Source::Http(body), promise);
        match timeout(DOCUMENT_WAIT, reader.whole()).await {
            Some(whole) => Ok((held(whole?, share), shared)),
            None => refused(
                Code::RequestTimeout,
                "The document of your request took too long to come.",
            ),
        }
    }

    /// A document that a request carries, whole. Its digests are checked.
    pub(crate) async fn document(
        &self,
        context: &Context,
        body: Inbound,
    ) -> Result<bytes::Bytes, Refusal> {
        let mut promise = match self.promise(context) {
            Err(refusal) if refusal.code == Code::MissingContentLength => {
                // A body that is not there needs no length.
                if http_body::Body::is_end_stream(&body) {
                    return Ok(bytes::Bytes::new());
                }
                return Err(refusal);
            }
            promise => promise?,
        };
        let sent = crate::digests::Sent::of(&context.call)?;
        promise.algorithms.extend(sent.algorithm());
        let (whole, shared) = self.whole(body, promise).await?;
        let came = crate::body::came(&shared);
        if let Some(digests) = &came.digests {
            sent.check(digests, &came.trailer)?;
        }
        Ok(whole)
    }
}

/// What is said of a request beside its reply.
#[derive(Debug)]
struct Told {
    resource: String,
    operation: Option<Operation>,
    user: Option<String>,
    cors: Vec<(&'static str, String)>,
}

impl Default for Told {
    fn default() -> Self {
        Told {
            resource: "/".to_owned(),
            operation: None,
            user: None,
            cors: Vec::new(),
        }
    }
}

fn cors_headers(granted: Option<cors::Granted>) -> Vec<(&'static str, String)> {
    let Some(granted) = granted else {
        return Vec::new();
    };
    let mut headers = vec![
        ("access-control-allow-origin", granted.origin),
        ("access-control-allow-methods", granted.methods),
        (
            "vary",
            "Origin, Access-Control-Request-Headers, Access-Control-Request-Method".to_owned(),
        ),
    ];
    if !granted.any_origin {
        headers.push(("access-control-allow-credentials", "true".to_owned()));
    }
    let more = [
        ("access-control-allow-headers", granted.headers),
        ("access-control-expose-headers", granted.exposed),
        (
            "access-control-max-age",
            granted.max_age.map(|s| s.to_string()),
        ),
    ];
    headers.extend(
        more.into_iter()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    headers
}

/// Bytes with the share of the memory that they take: it is free when they are gone.
#[derive(Debug)]
struct Held {
    bytes: bytes::Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes that keep their share of the memory.
pub(crate) fn held(bytes: bytes::Bytes, share: Option<Share>) -> bytes::Bytes {
    match share {
        None => bytes,
        Some(share) => bytes::Bytes::from_owner(Held {
            bytes,
            _share: share,
        }),
    }
}

/// What is remembered of an object.
pub(crate) fn attributes(meta: &ObjectMeta) -> Result<Attributes, Refusal> {
    Attributes::decode(&meta.manifest.attributes).map_err(internal)
}

/// When an object was made, as S3 tells it.
pub(crate) fn modified_ms(meta: &ObjectMeta, attributes: &Attributes) -> u64 {
    attributes.modified_ms.unwrap_or(meta.modified_ms)
}

/// An object's ETag, in quotes.
pub(crate) fn quoted_etag(meta: &ObjectMeta) -> String {
    format!("\"{}\"", etag(&meta.manifest, meta.id()))
}

/// Does something to its end, although whoever asks for it may go away in the middle.
pub(crate) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::spawn(work).await.map_err(internal)?
}

/// What a future gives, if it does so in time.
pub(crate) async fn timeout<T>(wait: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(wait, future).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_give_their_share_back_when_they_are_gone() {
        let memory = Places::new(3);
        let peer = Peer::from(SocketAddr::from(([10, 0, 0, 1], 1)));
        let share = memory.take_now(peer, 2).unwrap();
        let all = held(bytes::Bytes::from_static(b"abc"), Some(share));
        let end = all.slice(1..);
        drop(all);
        assert_eq!((memory.free(), &end[..]), (1, &b"bc"[..]));
        drop(end);
        assert_eq!(memory.free(), 3);
    }

    /// What is made a version, and what is current again, stands in another entry: it is still the same object.
    #[test]
    fn an_etag_stays_though_the_object_is_written_anew() {
        use ashlar_layout::ids::Seq;
        use ashlar_layout::manifest::{Body, Manifest, VersionTag};

        let meta = |version, tag| ObjectMeta {
            version: Seq(version),
            modified_ms: 0,
            manifest: Manifest::plain(3, 7, Body::Inline),
            tag,
        };
        let kept = VersionTag::of_plain(Seq(5));
        let plain = quoted_etag(&meta(5, None));
        assert_eq!(quoted_etag(&meta(9, Some(kept))), plain);
        assert_ne!(quoted_etag(&meta(9, None)), plain);
    }

    #[tokio::test]
    async fn what_was_begun_is_ended() {
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let (done, ended) = tokio::sync::oneshot::channel();
        let work = to_the_end(async move {
            gone.await.map_err(internal)?;
            done.send(()).map_err(|()| internal("nobody waits"))
        });
        // Whoever asked for it goes away as soon as it is begun.
        assert!(timeout(Duration::ZERO, work).await.is_none());
        go.send(()).unwrap();
        ended.await.unwrap();
    }
}
