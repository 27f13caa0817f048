//! Speaks to a node's port directly: well, to see an answer, and badly, to see it refused.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use ashlar_cluster_map::ClusterMap;
use ashlar_layout::frame::{FRAME_HEADER_LEN, FrameHeader, Opcode, decode_control, encode_control};
use ashlar_layout::ids::{Epoch, NodeId};
use ashlar_layout::message::{ErrorCode, Reply, Request};

/// Longest wait for an answer: a node that says nothing for so long has hung.
const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// A connection to one core of a node.
pub struct Wire {
    stream: TcpStream,
    next: u64,
}

/// What came back.
#[derive(Debug)]
pub enum Answer {
    /// A reply and its payload.
    Reply(Reply, Vec<u8>),
    /// The node closed the connection.
    Closed,
}

impl Answer {
    /// The error's code, if it is one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Answer::Reply(Reply::Error(error), _) => Some(error.code),
            _ => None,
        }
    }
}

impl Wire {
    /// Connects to a node's first core.
    pub fn connect(map: &ClusterMap, node: u32) -> Wire {
        let node = map
            .node(NodeId(node))
            .unwrap_or_else(|| panic!("the map has no node {node}"));
        let address = &node.cores.first().expect("a node has a core").address;
        let stream = TcpStream::connect(address).unwrap_or_else(|e| panic!("{address}: {e}"));
        stream.set_nodelay(true).expect("a socket option");
        stream
            .set_read_timeout(Some(ANSWER_WAIT))
            .expect("a socket option");
        stream
            .set_write_timeout(Some(ANSWER_WAIT))
            .expect("a socket option");
        Wire { stream, next: 0 }
    }

    /// Connects and says hello.
    pub fn greet(map: &ClusterMap, node: u32) -> Wire {
        let mut wire = Wire::connect(map, node);
        let hello = Request::Hello {
            cluster: map.cluster,
            node: NodeId(0),
            core: 0,
        };
        match wire.ask(map.epoch, &hello, &[]) {
            Answer::Reply(Reply::Hello { .. }, _) => wire,
            other => panic!("hello was answered with {other:?}"),
        }
    }

    /// Sends bytes as they are; a connection that is closed meanwhile is no failure of the test.
    pub fn send(&mut self, bytes: &[u8]) {
        match self.stream.write_all(bytes) {
            Err(e) if !matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                panic!("cannot send: {e}")
            }
            _ => {}
        }
    }

    /// No more will be sent.
    pub fn finish(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// A whole frame of a request, to be sent or spoiled.
    pub fn frame(&mut self, epoch: Epoch, request: &Request, payload: &[u8]) -> Vec<u8> {
        self.next += 1;
        let control = encode_control(request);
        let crc = crc32fast::hash(payload);
        let header = FrameHeader::new(
            Opcode::Request,
            self.next,
            epoch,
            &control,
            payload.len(),
            crc,
        )
        .unwrap_or_else(|e| panic!("not a frame: {e}"));
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(&control);
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Sends a request and reads the answer to it.
    pub fn ask(&mut self, epoch: Epoch, request: &Request, payload: &[u8]) -> Answer {
        let frame = self.frame(epoch, request, payload);
        self.send(&frame);
        self.answer()
    }

    /// The next answer.
    pub fn answer(&mut self) -> Answer {
        let mut header = [0u8; FRAME_HEADER_LEN];
        if !self.fill(&mut header) {
            return Answer::Closed;
        }
        let header =
            FrameHeader::decode(&header).unwrap_or_else(|e| panic!("a bad frame came back: {e}"));
        let mut control = vec![0u8; header.control_len as usize];
        let mut payload = vec![0u8; header.payload_len as usize];
        if !self.fill(&mut control) || !self.fill(&mut payload) {
            return Answer::Closed;
        }
        header
            .verify_control(&control)
            .unwrap_or_else(|e| panic!("a bad frame came back: {e}"));
        header
            .verify_payload(&payload)
            .unwrap_or_else(|e| panic!("a bad frame came back: {e}"));
        assert_eq!(header.opcode, Opcode::Reply, "a node answers with replies");
        let reply =
            decode_control(&control).unwrap_or_else(|e| panic!("a bad reply came back: {e}"));
        Answer::Reply(reply, payload)
    }

    /// Reads until the buffer is full; false if the connection ended.
    fn fill(&mut self, buffer: &mut [u8]) -> bool {
        match self.stream.read_exact(buffer) {
            Ok(()) => true,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("neither an answer nor an end within {ANSWER_WAIT:?}: the node hangs")
            }
            Err(_) => false,
        }
    }
}
