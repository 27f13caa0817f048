//! What a handler may ask of whoever drives it, as a trait: [`Io`] carries it out on a ring, a simulator on a
//! world of its own. A handler that asks for nothing else runs unchanged under both.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;

use crate::clock;
use crate::device::{DeviceInfo, OpenOptions};
use crate::error::{ConnectError, OpenError};
use crate::event::{Chunk, ConnId, Dev};
use crate::io::Io;
use crate::pool::Buf;

/// What a handler acts with. Nothing here waits, and nothing calls the handler: what is found out at once is told
/// as an event, like everything else. The methods of [`Io`] of the same names say what each does.
pub trait Driver {
    /// Milliseconds since 1970 by the wall clock, which may jump.
    fn wall_ms(&self) -> u64;
    /// See [`Io::open_device`].
    fn open_device(&mut self, path: &Path, options: OpenOptions) -> Result<Dev, OpenError>;
    /// See [`Io::close_device`].
    fn close_device(&mut self, dev: Dev);
    /// See [`Io::device_info`].
    fn device_info(&self, dev: Dev) -> Option<&DeviceInfo>;
    /// See [`Io::write`].
    fn write(
        &mut self,
        dev: Dev,
        token: u64,
        offset: u64,
        buf: Buf,
        range: Range<usize>,
        durable: bool,
    );
    /// See [`Io::read`].
    fn read(&mut self, dev: Dev, token: u64, offset: u64, buf: Buf, range: Range<usize>);
    /// See [`Io::flush`].
    fn flush(&mut self, dev: Dev, token: u64);
    /// See [`Io::connect`].
    fn connect(&mut self, addr: SocketAddr) -> Result<ConnId, ConnectError>;
    /// See [`Io::send`].
    fn send(&mut self, conn: ConnId, chunk: Chunk);
    /// See [`Io::send_first`].
    fn send_first(&mut self);
    /// See [`Io::queued`].
    fn queued(&self, conn: ConnId) -> usize;
    /// See [`Io::close`].
    fn close(&mut self, conn: ConnId);
    /// See [`Io::abort`].
    fn abort(&mut self, conn: ConnId);
    /// See [`Io::recv_into`].
    fn recv_into(&mut self, conn: ConnId, buf: Buf, from: usize, to: usize);
    /// See [`Io::pause`].
    fn pause(&mut self, conn: ConnId);
    /// See [`Io::resume`].
    fn resume(&mut self, conn: ConnId);
}

impl Driver for Io {
    fn wall_ms(&self) -> u64 {
        clock::wall_ms()
    }

    fn open_device(&mut self, path: &Path, options: OpenOptions) -> Result<Dev, OpenError> {
        Io::open_device(self, path, options)
    }

    fn close_device(&mut self, dev: Dev) {
        Io::close_device(self, dev);
    }

    fn device_info(&self, dev: Dev) -> Option<&DeviceInfo> {
        Io::device_info(self, dev)
    }

    fn write(
        &mut self,
        dev: Dev,
        token: u64,
        offset: u64,
        buf: Buf,
        range: Range<usize>,
        durable: bool,
    ) {
        Io::write(self, dev, token, offset, buf, range, durable);
    }

    fn read(&mut self, dev: Dev, token: u64, offset: u64, buf: Buf, range: Range<usize>) {
        Io::read(self, dev, token, offset, buf, range);
    }

    fn flush(&mut self, dev: Dev, token: u64) {
        Io::flush(self, dev, token);
    }

    fn connect(&mut self, addr: SocketAddr) -> Result<ConnId, ConnectError> {
        Io::connect(self, addr)
    }

    fn send(&mut self, conn: ConnId, chunk: Chunk) {
        Io::send(self, conn, chunk);
    }

    fn send_first(&mut self) {
        Io::send_first(self);
    }

    fn queued(&self, conn: ConnId) -> usize {
        Io::queued(self, conn)
    }

    fn close(&mut self, conn: ConnId) {
        Io::close(self, conn);
    }

    fn abort(&mut self, conn: ConnId) {
        Io::abort(self, conn);
    }

    fn recv_into(&mut self, conn: ConnId, buf: Buf, from: usize, to: usize) {
        Io::recv_into(self, conn, buf, from, to);
    }

    fn pause(&mut self, conn: ConnId) {
        Io::pause(self, conn);
    }

    fn resume(&mut self, conn: ConnId) {
        Io::resume(self, conn);
    }
}
