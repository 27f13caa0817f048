//! What a member and a caller have of the machine that they run on besides its disk: streams to others, and a clock.

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// Bytes to and from another process.
pub trait Stream: AsyncRead + AsyncWrite + Debug + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Debug + Send + Sync + Unpin> Stream for T {}

/// A stream of whatever kind.
pub type Socket = Box<dyn Stream>;

/// A stream that is being opened.
pub type Opening<'a> = Pin<Box<dyn Future<Output = io::Result<Socket>> + Send + 'a>>;

/// The machine.
pub trait Host: Debug + Send + Sync {
    /// Opens a stream to whoever listens at `host:port`.
    fn connect<'a>(&'a self, address: &'a str) -> Opening<'a>;

    /// Milliseconds since 1970, by this machine's clock.
    fn wall_ms(&self) -> u64;
}

/// Where others' streams come in.
pub trait Incoming: Send + 'static {
    /// The next one. An error is of this one only, or of a shortage that passes.
    fn next(&mut self) -> impl Future<Output = io::Result<Socket>> + Send;
}

/// The one that this program runs on: TCP, and the system's clock.
#[derive(Clone, Copy, Debug)]
pub struct System;

impl Host for System {
    fn connect<'a>(&'a self, address: &'a str) -> Opening<'a> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Socket)
        })
    }

    fn wall_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, millis)
    }
}

impl Incoming for TcpListener {
    async fn next(&mut self) -> io::Result<Socket> {
        let (stream, _) = self.accept().await?;
        // Refused only for a connection that has ended: whoever reads it hears that.
        let _ = stream.set_nodelay(true);
        Ok(Box::new(stream))
    }
}

/// Milliseconds; those that no number holds are as many as one does.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
