//! Connections: accepted, secured, served, ended.
//!
//! Invariants:
//! - a connection costs a bounded amount of memory, and one that stands still is ended;
//! - over the bound of connections, of all or of one peer, a new one is told to slow down, and closed;
//! - small replies leave at once: `TCP_NODELAY`, head and body in one write.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ashlar_node_client::corked;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;

use crate::gateway::Gateway;
use crate::memory::{Pace, Sends};
use crate::places::{Peer, Places};

/// What a connection is told that is one too many.
const SLOW_DOWN: &[u8] = b"HTTP/1.1 503 Slow Down\r\nRetry-After: 1\r\nConnection: close\r\n\
    Content-Type: application/xml\r\nContent-Length: 100\r\n\r\n\
    <?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
    <Error><Code>SlowDown</Code><Message>Busy.</Message></Error>\n";
/// Between tries to accept after an error: of descriptors there may be too few.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Serves connections of `listener` until `stop` ends; then waits for the requests under way, at most so
/// long. TLS, if there is an acceptor.
pub async fn serve(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    stop: impl Future<Output = ()>,
    wait: Duration,
) {
    let limits = gateway.options.limits;
    let places = Places::new(limits.connections);
    let (stopping, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
            // Those that have ended are forgotten.
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        let Ok((stream, peer)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Some(place) = places.take_now(Peer::from(peer), 1) else {
            connections.spawn(refuse(stream, tls.is_some()));
            continue;
        };
        let (gateway, tls, stopped) = (gateway.clone(), tls.clone(), stopped.clone());
        connections.spawn(async move {
            let _place = place;
            connection(gateway, stream, peer, tls, stopped).await;
        });
    }
    drop(listener);
    // A receiver that is gone has no request.
    let _ = stopping.send(true);
    let ended = async { while connections.join_next().await.is_some() {} };
    // Whoever takes longer is cut off.
    let _ = tokio::time::timeout(wait, ended).await;
}

async fn refuse(mut stream: TcpStream, secure: bool) {
    if !secure {
        // It may be gone already.
        let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(SLOW_DOWN)).await;
    }
}

async fn connection(
    gateway: Arc<Gateway>,
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    stopped: watch::Receiver<bool>,
) {
    let limits = gateway.options.limits;
    // A socket that cannot do this is one that is gone.
    let _ = stream.set_nodelay(true);
    let sends = Sends::default();
    let stream = Paced::new(stream, gateway.pace_of(sends.clone()));
    match tls {
        None => http(gateway, (stream, sends), peer, false, stopped).await,
        Some(tls) => {
            // One that does not shake hands is nobody's.
            if let Ok(Ok(stream)) = tokio::time::timeout(limits.head_wait, tls.accept(stream)).await
            {
                http(gateway, (stream, sends), peer, true, stopped).await;
            }
        }
    }
}

async fn http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    gateway: Arc<Gateway>,
    (stream, sends): (S, Sends),
    peer: SocketAddr,
    secure: bool,
    mut stopped: watch::Receiver<bool>,
) {
    let limits = gateway.options.limits;
    let service = service_fn(move |request| {
        // What it asks of one node at once goes out in one piece.
        let answer = corked(gateway.clone().handle(request, peer, secure));
        let sends = sends.clone();
        async move {
            let answer = answer.await;
            sends.set(answer.body().class());
            Ok::<_, io::Error>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_wait)
        .max_headers(limits.headers_max)
        .max_buf_size(limits.head_max.max(8192))
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut stopping = false;
    loop {
        tokio::select! {
            // What went wrong on the way, the client knows.
            _ended = connection.as_mut() => return,
            changed = stopped.changed(), if !stopping => {
                stopping = true;
                if changed.is_ok() {
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// A socket that does not wait for ever for its other side to take what is written, nor for one that takes it too
/// slowly.
#[derive(Debug)]
struct Paced {
    stream: TcpStream,
    pace: Pace,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    fn new(stream: TcpStream, pace: Pace) -> Paced {
        Paced {
            stream,
            pace,
            timer: None,
        }
    }

    /// Passes on what a write has come to, unless it takes too long.
    fn paced<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
        taken: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        let late = || Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        match &polled {
            Poll::Ready(Ok(done)) => {
                self.timer = None;
                match self.pace.moved(taken(done), Instant::now()) {
                    true => polled,
                    false => late(),
                }
            }
            Poll::Ready(Err(_)) => polled,
            Poll::Pending => {
                self.pace.wait(Instant::now());
                let wait = self.pace.stretch();
                let timer = self
                    .timer
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
                match timer.as_mut().poll(cx) {
                    Poll::Ready(()) => late(),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Paced {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.paced(cx, polled, |taken| *taken)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.paced(cx, polled, |taken| *taken)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.paced(cx, polled, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.paced(cx, polled, |()| 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canned_reply_has_the_length_that_it_says() {
        let text = std::str::from_utf8(SLOW_DOWN).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("Content-Length: {}", body.len())),
            "{}",
            body.len()
        );
    }
}
