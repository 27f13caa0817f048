//! Small requests of one task that go out together.
//!
//! Who asks a node several things at once would write each by itself, and wake the node for each. Under [`corked`] they
//! are written when the task has nothing more to ask for now.
//!
//! Invariants:
//! - what a poll asked for is written before the poll returns, also if it panics: nobody waits for what was not sent;
//! - only requests without a payload wait, and only behind each other: order on a connection stays.

use std::cell::RefCell;
use std::pin::pin;
use std::sync::Arc;

use crate::link::Link;

thread_local! {
    /// Links that hold something back for the task that is being polled; none if no task is corked.
    static HELD: RefCell<Option<Vec<Arc<Link>>>> = const { RefCell::new(None) };
}

/// Runs `future`; what it asks of one node between two waits goes out in one piece.
pub async fn corked<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        let _cork = Cork::put();
        future.as_mut().poll(context)
    })
    .await
}

/// Whether a request that goes out on `link` is to wait for others; then it is written when the poll ends.
pub(crate) fn holds(link: &Arc<Link>) -> bool {
    HELD.with_borrow_mut(|held| {
        let Some(links) = held else {
            return false;
        };
        if !links.iter().any(|other| Arc::ptr_eq(other, link)) {
            links.push(link.clone());
        }
        true
    })
}

/// The right to let go of what is held; none for a task within another.
struct Cork {
    outer: bool,
}

impl Cork {
    fn put() -> Cork {
        HELD.with_borrow_mut(|held| {
            let outer = held.is_none();
            held.get_or_insert_default();
            Cork { outer }
        })
    }
}

impl Drop for Cork {
    fn drop(&mut self) {
        if !self.outer {
            return;
        }
        for link in HELD.take().into_iter().flatten() {
            link.uncork();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use ashlar_cluster_object::{Answer, BufferPool, CallId};
    use ashlar_layout::frame::{FRAME_HEADER_LEN, FrameHeader, Haste, Opcode, encode_control};
    use ashlar_layout::ids::{ClusterId, DeviceNo, Epoch, NodeId};
    use ashlar_layout::message::{Reply, Request};
    use bytes::Bytes;

    use super::*;
    use crate::link::{LinkSetup, Outgoing};
    use crate::mailbox::Mailbox;

    /// A link that is up, and what a node has at its other end.
    struct Pair {
        link: Arc<Link>,
        node: TcpStream,
        mailbox: Arc<Mailbox>,
    }

    impl Pair {
        async fn up() -> Pair {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let setup = LinkSetup {
                cluster: ClusterId([7; 16]),
                connect_timeout: Duration::from_secs(60),
                silence_max: Duration::from_secs(60),
                pool: BufferPool::new(0),
            };
            let address = listener.local_addr().unwrap().to_string();
            let link = Arc::new(Link::new(address, setup));
            let mailbox = Arc::new(Mailbox::default());
            // Makes the connection.
            submit(&link, &mailbox, 0, 0);
            let (node, _) = listener.accept().unwrap();
            // What does not come is a failure, and not waited for without end.
            node.set_read_timeout(Some(Duration::from_secs(30)))
                .unwrap();
            let mut pair = Pair {
                link,
                node,
                mailbox,
            };
            let hello = pair.frame();
            let (node, epoch) = (NodeId(1), Epoch(0));
            pair.answer(hello.request, &Reply::Hello { node, epoch });
            pair.serve(&[0]).await;
            pair
        }

        fn ask(&self, call: u32, payload: usize) {
            submit(&self.link, &self.mailbox, call, payload);
        }

        /// The next frame.
        fn frame(&mut self) -> FrameHeader {
            let mut head = [0; FRAME_HEADER_LEN];
            self.node.read_exact(&mut head).unwrap();
            let header = FrameHeader::decode(&head).unwrap();
            let mut rest = vec![0; header.control_len as usize + header.payload_len as usize];
            self.node.read_exact(&mut rest).unwrap();
            header
        }

        fn answer(&mut self, request: u64, reply: &Reply) {
            let control = encode_control(reply);
            let header =
                FrameHeader::new(Opcode::Reply, request, Epoch(0), &control, 0, 0).unwrap();
            let frame = [&header.encode()[..], &control].concat();
            self.node.write_all(&frame).unwrap();
        }

        /// Answers the requests that have come, which must be these, in this order.
        async fn serve(&mut self, calls: &[u32]) {
            for call in calls {
                let header = self.frame();
                self.answer(header.request, &Reply::Map);
                let came = self.mailbox.take().await;
                assert_eq!(came.call.call, *call);
                assert!(matches!(came.answer, Answer::Reply { .. }), "{came:?}");
            }
        }

        /// Whether the node has something to read: what was written is there at once on this machine.
        fn has_come(&self) -> bool {
            self.node.set_nonblocking(true).unwrap();
            let seen = self.node.peek(&mut [0]);
            self.node.set_nonblocking(false).unwrap();
            seen.is_ok_and(|bytes| bytes > 0)
        }
    }

    fn submit(link: &Arc<Link>, mailbox: &Arc<Mailbox>, call: u32, payload: usize) {
        link.submit(Outgoing {
            request: Request::GetMap,
            epoch: Epoch(0),
            payload: Bytes::from(vec![1; payload]),
            payload_crc: None,
            haste: Haste::Foreground,
            reply_to: Some((mailbox.clone(), CallId { lane: 0, call }, DeviceNo(1))),
        });
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn small_requests_wait_for_each_other_until_their_task_waits() {
        let mut pair = Pair::up().await;
        corked(async {
            pair.ask(1, 0);
            corked(async { pair.ask(2, 0) }).await;
            assert!(!pair.has_come());
            tokio::task::yield_now().await;
            assert!(pair.has_come());
        })
        .await;
        pair.serve(&[1, 2]).await;
        // Nobody holds anything back any more.
        pair.ask(3, 0);
        assert!(pair.has_come());
        pair.serve(&[3]).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_payload_takes_along_what_waits() {
        let mut pair = Pair::up().await;
        corked(async {
            pair.ask(1, 0);
            assert!(!pair.has_come());
            pair.ask(2, 5000);
            assert!(pair.has_come());
            pair.ask(3, 0);
        })
        .await;
        pair.serve(&[1, 2, 3]).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_task_asked_before_it_panicked_is_sent() {
        let mut pair = Pair::up().await;
        let (link, mailbox) = (pair.link.clone(), pair.mailbox.clone());
        let task = corked(async move {
            submit(&link, &mailbox, 1, 0);
            panic!("on purpose");
        });
        assert!(
            tokio::spawn(task)
                .await
                .is_err_and(|error| error.is_panic())
        );
        pair.serve(&[1]).await;
    }
}
