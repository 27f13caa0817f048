//! Replies: their heads, and bodies that are at hand or come from the store.
//!
//! Invariants:
//! - every reply carries its request's number, and an error says it in its XML as well;
//! - a body from the store that fails in the middle ends the connection: what is there is never taken for
//!   all of it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use crate::memory::{Class, Share};
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::text::to_base64;
use ashlar_cluster_s3::xml::Xml;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Response, StatusCode};

use crate::pieces::Pieces;

/// A reply's body.
#[derive(Debug)]
pub enum ReplyBody {
    /// Nothing.
    Empty,
    /// At hand.
    Full(Bytes),
    /// From the store.
    Object(ObjectBody),
}

/// A body that comes from the store.
#[derive(Debug)]
pub struct ObjectBody {
    pieces: Pieces,
    left: u64,
    /// What its memory is counted by.
    _share: Share,
}

impl ObjectBody {
    pub(crate) fn new(pieces: Pieces, len: u64, share: Share) -> ObjectBody {
        ObjectBody {
            pieces,
            left: len,
            _share: share,
        }
    }
}

impl ReplyBody {
    /// Which memory it takes.
    pub(crate) fn class(&self) -> Class {
        match self {
            ReplyBody::Empty => Class::None,
            ReplyBody::Full(_) => Class::Small,
            ReplyBody::Object(_) => Class::Large,
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut *self {
            ReplyBody::Empty => Poll::Ready(None),
            ReplyBody::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = ReplyBody::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            ReplyBody::Object(body) => match ready!(body.pieces.poll_next(cx)) {
                None if body.left == 0 => Poll::Ready(None),
                None => Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
                Some(Err(error)) => Poll::Ready(Some(Err(io::Error::other(error)))),
                Some(Ok(piece)) => {
                    body.left = body.left.saturating_sub(piece.len() as u64);
                    Poll::Ready(Some(Ok(Frame::data(piece))))
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ReplyBody::Empty => true,
            ReplyBody::Full(bytes) => bytes.is_empty(),
            // Whether the whole was right is known only when its end was asked for.
            ReplyBody::Object(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ReplyBody::Empty => SizeHint::with_exact(0),
            ReplyBody::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            ReplyBody::Object(body) => SizeHint::with_exact(body.left),
        }
    }
}

/// A reply to be.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: ReplyBody,
}

impl Reply {
    pub(crate) fn new(status: StatusCode) -> Reply {
        Reply {
            status,
            headers: HeaderMap::new(),
            body: ReplyBody::Empty,
        }
    }

    /// All is well, and there is nothing to say.
    pub(crate) fn ok() -> Reply {
        Reply::new(StatusCode::OK)
    }

    /// The same, of what is no more.
    pub(crate) fn no_content() -> Reply {
        Reply::new(StatusCode::NO_CONTENT)
    }

    /// A document.
    pub(crate) fn xml(document: String) -> Reply {
        let mut reply = Reply::ok();
        let xml = HeaderValue::from_static("application/xml");
        reply.headers.insert(hyper::header::CONTENT_TYPE, xml);
        reply.body = ReplyBody::Full(document.into());
        reply
    }

    /// Says something in a header. What cannot be said there is left out: it came in one.
    pub(crate) fn set(&mut self, name: &'static str, value: &str) {
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
    }

    /// The same of a name that is made up.
    pub(crate) fn set_named(&mut self, name: &str, value: &str) {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value.as_bytes())) {
            self.headers.insert(name, value);
        }
    }

    /// With this in a header.
    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Reply {
        self.set(name, value);
        self
    }
}

/// A request's number, and what else stands for it.
#[derive(Clone, Debug)]
pub(crate) struct RequestId {
    pub(crate) id: String,
    pub(crate) host_id: String,
}

impl RequestId {
    /// The number of the `n`th request of a gateway, whose own number is random.
    pub(crate) fn new(gateway: u64, n: u64) -> RequestId {
        // So that two gateways' numbers do not look alike.
        let id = gateway.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&gateway.to_be_bytes());
        bytes[8..16].copy_from_slice(&id.to_be_bytes());
        bytes[16..].copy_from_slice(&n.to_be_bytes());
        RequestId {
            id: format!("{id:016X}"),
            host_id: to_base64(&bytes),
        }
    }
}

/// What a refusal is answered with.
pub(crate) fn refusal_reply(
    refusal: &Refusal,
    id: &RequestId,
    resource: &str,
    region: &str,
    is_head: bool,
) -> Reply {
    let status = StatusCode::from_u16(refusal.code.status());
    let mut reply = Reply::new(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    if matches!(refusal.code, Code::SlowDown | Code::ServiceUnavailable) {
        reply.set("retry-after", "1");
    }
    for (name, value) in &refusal.headers {
        reply.set(name, value);
    }
    if refusal.code == Code::NotModified {
        return reply;
    }
    reply.set("content-type", "application/xml");
    if is_head {
        return reply;
    }
    let document = Xml::plain_document("Error", |xml| {
        xml.text("Code", refusal.code.as_str());
        xml.text("Message", &refusal.message);
        if refusal.code == Code::AuthorizationHeaderMalformed {
            xml.text("Region", region);
        }
        for (name, value) in &refusal.details {
            xml.text(name, value);
        }
        xml.text("Resource", resource);
        xml.text("RequestId", &id.id);
        xml.text("HostId", &id.host_id);
    });
    reply.body = ReplyBody::Full(document.into());
    reply
}

/// The reply as it goes out.
pub(crate) fn finish(mut reply: Reply, id: &RequestId) -> Response<ReplyBody> {
    reply.set("x-amz-request-id", &id.id);
    reply.set("x-amz-id-2", &id.host_id);
    reply.set("server", "Ashlar");
    let mut response = Response::new(reply.body);
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ_and_stand_in_the_error() {
        let (a, b) = (RequestId::new(7, 1), RequestId::new(7, 2));
        assert_ne!(a.id, b.id);
        assert_eq!((a.id.len(), a.host_id.len()), (16, 32));
        let refusal = Refusal::new(Code::SlowDown, "a < b");
        let reply = refusal_reply(&refusal, &a, "/b/k", "r", false);
        assert_eq!(
            (
                reply.status.as_u16(),
                reply.headers["retry-after"].as_bytes()
            ),
            (503, &b"1"[..])
        );
        let ReplyBody::Full(body) = &reply.body else {
            panic!("an error has a body");
        };
        let body = std::str::from_utf8(body).unwrap();
        assert!(
            body.contains(&format!("<RequestId>{}</RequestId>", a.id)),
            "{body}"
        );
        assert!(body.contains("<Message>a &lt; b</Message>"), "{body}");
        let sent = finish(reply, &a);
        assert_eq!(sent.headers()["x-amz-request-id"], a.id.as_str());
        assert_eq!(sent.headers()["x-amz-id-2"], a.host_id.as_str());
        let head = refusal_reply(&refusal, &a, "/b/k", "r", true);
        assert!(matches!(head.body, ReplyBody::Empty));
        let same = Refusal::new(Code::NotModified, "");
        assert_eq!(
            refusal_reply(&same, &a, "/", "r", false).status.as_u16(),
            304
        );
    }
}
