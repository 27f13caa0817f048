//! The client of the echo benches: the same for every server, so that only the server differs.
//!
//! Many connections, one request under way on each, driven by poll(2) from one thread.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use rustix::event::{PollFd, PollFlags, poll};

/// Bytes of a request and of its answer.
pub const MESSAGE: usize = 64;

/// Connections to an echo server.
pub struct EchoClient {
    streams: Vec<TcpStream>,
    /// Bytes of the answer that are still to come, per connection.
    waiting: Vec<usize>,
}

impl EchoClient {
    /// Connects.
    pub fn connect(address: SocketAddr, connections: usize) -> io::Result<EchoClient> {
        let mut streams = Vec::with_capacity(connections);
        for _ in 0..connections {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            streams.push(stream);
        }
        let waiting = vec![0; connections];
        Ok(EchoClient { streams, waiting })
    }

    /// Sends `count` requests in all and takes their answers.
    pub fn run(&mut self, count: u64) -> io::Result<()> {
        let message = [7u8; MESSAGE];
        let (mut sent, mut done) = (0u64, 0u64);
        for (stream, waiting) in self.streams.iter_mut().zip(&mut self.waiting) {
            if sent < count {
                stream.write_all(&message)?;
                *waiting = MESSAGE;
                sent += 1;
            }
        }
        let mut buffer = [0u8; MESSAGE];
        while done < count {
            let mut fds: Vec<PollFd<'_>> = self
                .streams
                .iter()
                .map(|s| PollFd::new(s, PollFlags::IN))
                .collect();
            poll(&mut fds, None)?;
            let ready: Vec<usize> = (0..fds.len())
                .filter(|i| !fds[*i].revents().is_empty())
                .collect();
            drop(fds);
            for i in ready {
                let (stream, waiting) = (&mut self.streams[i], &mut self.waiting[i]);
                match stream.read(&mut buffer[..(*waiting).max(1)]) {
                    Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                    Ok(len) => *waiting = waiting.saturating_sub(len),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => continue,
                    Err(e) => return Err(e),
                }
                if *waiting == 0 {
                    done += 1;
                    if sent < count {
                        stream.write_all(&message)?;
                        *waiting = MESSAGE;
                        sent += 1;
                    }
                }
            }
        }
        Ok(())
    }
}
