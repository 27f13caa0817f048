//! As little of an S3 client as a measurement takes: signed requests over a connection that is kept.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};

use ashlar_cluster_s3::signature::{Signed, UNSIGNED};
use ashlar_cluster_s3::signature_v4::{Scope, authorize, stamp};
use ashlar_tests::rig::Rig;
use ashlar_tests::s3;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

const REGION: &str = "us-east-1";
/// Most of a refusal that is told, in bytes.
const TOLD: usize = 1000;

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The connection.
    #[error("the connection: {0}")]
    Io(#[from] std::io::Error),
    /// What was said over it.
    #[error("HTTP: {0}")]
    Hyper(#[from] hyper::Error),
    /// It was refused.
    #[error("answered {status}: {text}")]
    Refused {
        /// By this.
        status: StatusCode,
        /// The beginning of what came with it.
        text: String,
    },
}

/// A body in one piece.
pub struct Whole(Option<Bytes>);

impl Body for Whole {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let bytes = self.0.take().filter(|bytes| !bytes.is_empty());
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, Bytes::len) as u64)
    }
}

/// Who signs.
pub struct User {
    /// The key's id.
    pub key_id: String,
    /// Its secret.
    pub secret: String,
}

impl User {
    /// A rig's first user.
    pub fn of_rig(rig: &Rig) -> User {
        let (key_id, secret) = s3::credentials(rig);
        User { key_id, secret }
    }

    /// Makes a bucket of this user's own.
    pub async fn create_bucket(&self, address: SocketAddr, bucket: &str) -> Result<(), HttpError> {
        let mut connection = Connection::open(address).await?;
        let request = self.sign("PUT", address, &format!("/{bucket}"), Bytes::new());
        connection.ask(request).await?;
        Ok(())
    }

    /// A signed request, good for a quarter of an hour. A path, and a query after a `?`, stand as they are sent.
    pub fn sign(
        &self,
        method: &'static str,
        host: SocketAddr,
        uri: &str,
        body: Bytes,
    ) -> Request<Whole> {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let stamp = stamp(now_ms());
        let scope = Scope {
            stamp: stamp.clone(),
            region: REGION.to_owned(),
        };
        let host = host.to_string();
        let signed = Signed {
            method,
            path,
            query,
            headers: vec![
                ("host", &host),
                ("x-amz-content-sha256", UNSIGNED),
                ("x-amz-date", &stamp),
            ],
            ..Signed::default()
        };
        let authorization = authorize(&signed, UNSIGNED, scope, &self.key_id, &self.secret);
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("host", &host)
            .header("x-amz-content-sha256", UNSIGNED)
            .header("x-amz-date", stamp)
            .header("authorization", authorization)
            .header("content-length", body.len())
            .body(Whole(Some(body)));
        request.unwrap_or_else(|e| panic!("a request of plain text: {e}"))
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// A connection to a store.
pub struct Connection(SendRequest<Whole>);

impl Connection {
    /// Opens one.
    pub async fn open(address: SocketAddr) -> Result<Connection, HttpError> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Its end, or its failure, is seen by whoever asks.
        tokio::spawn(connection);
        Ok(Connection(sender))
    }

    /// Sends a request and reads the answer to its end: the bytes of its body, if it was done.
    pub async fn ask(&mut self, request: Request<Whole>) -> Result<u64, HttpError> {
        let mut got = 0;
        self.take(request, |data| got += data.len() as u64).await?;
        Ok(got)
    }

    /// The same, with the body itself.
    pub async fn read(&mut self, request: Request<Whole>) -> Result<Vec<u8>, HttpError> {
        let mut all = Vec::new();
        self.take(request, |data| all.extend_from_slice(data))
            .await?;
        Ok(all)
    }

    async fn take(
        &mut self,
        request: Request<Whole>,
        mut to: impl FnMut(&[u8]),
    ) -> Result<(), HttpError> {
        self.0.ready().await?;
        let response = self.0.send_request(request).await?;
        let status = response.status();
        let mut body = response.into_body();
        let mut text = Vec::new();
        while let Some(frame) = next_frame(&mut body).await {
            let frame = frame?;
            match frame.data_ref() {
                Some(data) if status.is_success() => to(data),
                Some(data) => text.extend(data.iter().take(TOLD - text.len())),
                None => {}
            }
        }
        if status.is_success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        Err(HttpError::Refused { status, text })
    }
}

async fn next_frame<B: Body + Unpin>(body: &mut B) -> Option<Result<Frame<B::Data>, B::Error>> {
    std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
}
