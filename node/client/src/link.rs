//! One pipelined connection to one core, made when it is needed and again when it is lost.
//!
//! Invariants:
//! - each call that was taken is answered once: by its reply, or with [`Answer::Lost`] if it may
//!   have gone out, or with [`Answer::NotSent`] if it certainly has not;
//! - `Hello` is answered before anything else goes out;
//! - at most [`UNDER_WAY_MAX`] requests are under way, and [`WAITING_MAX`] wait; above that the
//!   caller is told that the link is busy;
//! - a request is written by who asks, in one system call, unless earlier ones still wait for the
//!   socket; the link's task writes those, and reads. Small ones of whoever is [corked](crate::cork) go out together;
//! - requests on a connection on which nothing came for `silence_max` are given up with it.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ashlar_cluster_object::{Answer, BufferPool, CallId};
use ashlar_layout::crc::crc32;
use ashlar_layout::frame::{FrameHeader, Haste, Opcode, encode_control};
use ashlar_layout::ids::{ClusterId, DeviceNo, Epoch, NodeId};
use ashlar_layout::limits::CONNECTION_REQUESTS_MAX;
use ashlar_layout::message::{ErrorCode, Reply, Request, WireError};
use bytes::{Buf, Bytes};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::cork;
use crate::mailbox::{Arrived, Mailbox};
use crate::reader::{Incoming, Reader};

/// Requests under way on one connection: below what makes a node stop reading.
const UNDER_WAY_MAX: usize = CONNECTION_REQUESTS_MAX / 2;
/// Requests that wait to go out on one connection.
const WAITING_MAX: usize = 16 * 1024;
/// The pause after a connection that failed; doubles.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// Its bound: a node that is back may be a partition's head.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// What links need to know.
#[derive(Clone, Debug)]
pub(crate) struct LinkSetup {
    pub(crate) cluster: ClusterId,
    pub(crate) connect_timeout: Duration,
    pub(crate) silence_max: Duration,
    pub(crate) pool: BufferPool,
}

/// A request to be sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) request: Request,
    pub(crate) epoch: Epoch,
    pub(crate) payload: Bytes,
    pub(crate) payload_crc: Option<u32>,
    pub(crate) haste: Haste,
    pub(crate) reply_to: ReplyTo,
}

/// Who gets the answer; nobody, if it is `None`.
pub(crate) type ReplyTo = Option<(Arc<Mailbox>, CallId, DeviceNo)>;

/// Answers for a node that does not.
fn answer(reply_to: ReplyTo, answer: Answer) {
    answer_by(Epoch(0), reply_to, answer);
}

/// Answers as a node does that works with this map.
fn answer_by(epoch: Epoch, reply_to: ReplyTo, answer: Answer) {
    if let Some((mailbox, call, from)) = reply_to {
        mailbox.put(Arrived {
            call,
            from,
            epoch,
            answer,
        });
    }
}

#[derive(Debug)]
enum Phase {
    /// No connection, and nothing against making one.
    Idle,
    /// The link's task is making one.
    Connecting,
    /// There is one.
    Up(Arc<OwnedWriteHalf>),
    /// The last one failed: not again before `until`.
    Down { until: Instant, why: String },
    /// The client is gone.
    Closed,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    pause: Duration,
    /// Not sent yet.
    waiting: VecDeque<Outgoing>,
    /// Sent, or in `unsent`.
    under_way: HashMap<u64, ReplyTo>,
    next_request: u64,
    /// Frames, or rests of them, that the socket did not take, or that wait for more.
    unsent: VecDeque<Bytes>,
    /// Nobody has tried yet to write what is in `unsent`.
    corked: bool,
    /// When `under_way` was last empty, or something last came.
    heard: Instant,
}

/// A connection to a core.
#[derive(Debug)]
pub(crate) struct Link {
    address: String,
    setup: LinkSetup,
    state: Mutex<State>,
    /// Wakes the task: there is something to write, or the link is closed.
    kick: Notify,
    closed: AtomicBool,
}

impl Link {
    pub(crate) fn new(address: String, setup: LinkSetup) -> Link {
        Link {
            address,
            setup,
            state: Mutex::new(State {
                phase: Phase::Idle,
                pause: PAUSE_MIN,
                waiting: VecDeque::new(),
                under_way: HashMap::new(),
                next_request: 1,
                unsent: VecDeque::new(),
                corked: false,
                heard: Instant::now(),
            }),
            kick: Notify::new(),
            closed: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Sends a request now if that can be, and sees to it that it is answered.
    pub(crate) fn submit(self: &Arc<Self>, outgoing: Outgoing) {
        let mut state = self.state();
        let refused = match &state.phase {
            Phase::Up(socket) => {
                if state.under_way.len() < UNDER_WAY_MAX && state.waiting.is_empty() {
                    let socket = socket.clone();
                    self.send(&mut state, &socket, outgoing);
                    return;
                }
                None
            }
            Phase::Connecting => None,
            Phase::Idle => self.connect(&mut state),
            Phase::Down { until, .. } if *until <= Instant::now() => self.connect(&mut state),
            Phase::Down { why, .. } => Some(Answer::NotSent {
                detail: why.clone(),
            }),
            Phase::Closed => Some(Answer::NotSent {
                detail: "the client is closed".to_owned(),
            }),
        };
        let refused = match refused {
            None if state.waiting.len() >= WAITING_MAX => {
                let code = ErrorCode::Busy;
                let detail = format!("{WAITING_MAX} requests wait for {}", self.address);
                Some(refusal(WireError { code, detail }))
            }
            refused => refused,
        };
        match refused {
            None => state.waiting.push_back(outgoing),
            Some(refused) => {
                drop(state);
                answer(outgoing.reply_to, refused);
            }
        }
    }

    /// Starts the link's task; refuses if there is no runtime to run it.
    fn connect(self: &Arc<Self>, state: &mut State) -> Option<Answer> {
        let Ok(runtime) = Handle::try_current() else {
            return Some(Answer::NotSent {
                detail: "there is no runtime".to_owned(),
            });
        };
        state.phase = Phase::Connecting;
        let alive = Alive(self.clone());
        runtime.spawn(async move { alive.0.run().await });
        None
    }

    /// Ends the connection and its task.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.kick.notify_one();
    }

    /// Writes a frame as far as the socket takes it.
    fn send(self: &Arc<Self>, state: &mut State, socket: &OwnedWriteHalf, outgoing: Outgoing) {
        let Outgoing {
            request,
            epoch,
            payload,
            payload_crc,
            haste,
            reply_to,
        } = outgoing;
        let control = encode_control(&request);
        let number = state.next_request;
        state.next_request += 1;
        let payload_crc = payload_crc.unwrap_or_else(|| crc32(&payload));
        let header = FrameHeader::new(
            Opcode::Request,
            number,
            epoch,
            &control,
            payload.len(),
            payload_crc,
        );
        let header = match header {
            Ok(header) => header.hasting(haste).encode(),
            Err(error) => {
                let (code, detail) = (ErrorCode::BadRequest, error.to_string());
                answer(reply_to, refusal(WireError { code, detail }));
                return;
            }
        };
        if state.under_way.is_empty() {
            state.heard = Instant::now();
        }
        state.under_way.insert(number, reply_to);
        if payload.is_empty() && (state.corked || state.unsent.is_empty()) && cork::holds(self) {
            state.corked = true;
            state
                .unsent
                .push_back([&header[..], &control].concat().into());
            return;
        }
        let mut sent = 0;
        if state.unsent.is_empty() {
            let parts = [
                IoSlice::new(&header),
                IoSlice::new(&control),
                IoSlice::new(&payload),
            ];
            let parts = if payload.is_empty() {
                &parts[..2]
            } else {
                &parts[..]
            };
            match socket.try_write_vectored(parts) {
                Ok(n) => sent = n,
                // An error of the socket is seen by the task, too, which ends the connection.
                Err(_) => sent = 0,
            }
        }
        if sent == header.len() + control.len() + payload.len() {
            return;
        }
        for part in [
            Bytes::copy_from_slice(&header),
            Bytes::from(control),
            payload,
        ] {
            let skipped = sent.min(part.len());
            sent -= skipped;
            if skipped < part.len() {
                state.unsent.push_back(part.slice(skipped..));
            }
        }
        if !std::mem::take(&mut state.corked) || !Self::write(state, socket).is_ok_and(|all| all) {
            self.kick.notify_one();
        }
    }

    /// Writes what waits for more: nothing else comes.
    pub(crate) fn uncork(&self) {
        let mut state = self.state();
        if !std::mem::take(&mut state.corked) {
            return;
        }
        let Phase::Up(socket) = &state.phase else {
            return;
        };
        let socket = socket.clone();
        if !Self::write(&mut state, &socket).is_ok_and(|all| all) {
            self.kick.notify_one();
        }
    }

    /// Sends what waits, as far as it may be under way.
    fn pump(self: &Arc<Self>, state: &mut State) {
        let Phase::Up(socket) = &state.phase else {
            return;
        };
        let socket = socket.clone();
        while state.under_way.len() < UNDER_WAY_MAX {
            let Some(outgoing) = state.waiting.pop_front() else {
                return;
            };
            self.send(state, &socket, outgoing);
        }
    }

    /// The life of one connection.
    async fn run(self: &Arc<Self>) {
        let (why, refused) = match self.open().await {
            Ok((mut reader, mut half, socket)) => {
                {
                    let mut state = self.state();
                    state.phase = Phase::Up(Arc::new(socket));
                    state.pause = PAUSE_MIN;
                    self.pump(&mut state);
                }
                (self.serve(&mut reader, &mut half).await, None)
            }
            Err(Refusal::Io(why)) => (why, None),
            Err(Refusal::Hello(error)) => (error.detail.clone(), Some(error)),
        };
        self.down(why, refused);
    }

    /// Answers all that is open, and says when the next connection may be made.
    fn down(&self, why: String, refused: Option<WireError>) {
        let (under_way, waiting) = {
            let mut state = self.state();
            state.phase = if self.closed.load(Ordering::Relaxed) {
                Phase::Closed
            } else {
                Phase::Down {
                    until: Instant::now() + state.pause,
                    why: why.clone(),
                }
            };
            state.pause = (state.pause * 2).min(PAUSE_MAX);
            state.unsent.clear();
            state.corked = false;
            (
                std::mem::take(&mut state.under_way),
                std::mem::take(&mut state.waiting),
            )
        };
        for reply_to in under_way.into_values() {
            answer(
                reply_to,
                Answer::Lost {
                    detail: why.clone(),
                },
            );
        }
        for outgoing in waiting {
            let unsent = match &refused {
                Some(error) => refusal(error.clone()),
                None => Answer::NotSent {
                    detail: why.clone(),
                },
            };
            answer(outgoing.reply_to, unsent);
        }
    }

    /// Connects and says Hello.
    async fn open(
        &self,
    ) -> Result<(Reader, tokio::net::tcp::OwnedReadHalf, OwnedWriteHalf), Refusal> {
        let opening = async {
            let stream = TcpStream::connect(self.address.as_str()).await?;
            stream.set_nodelay(true)?;
            let (mut half, mut socket) = stream.into_split();
            let hello = Request::Hello {
                cluster: self.setup.cluster,
                node: NodeId(0),
                core: 0,
            };
            let control = encode_control(&hello);
            let header = FrameHeader::new(Opcode::Request, 0, Epoch(0), &control, 0, 0)
                .map_err(|error| Refusal::Io(error.to_string()))?;
            let frame = [&header.encode()[..], &control].concat();
            tokio::io::AsyncWriteExt::write_all(&mut socket, &frame).await?;
            let mut reader = Reader::new(self.setup.pool.clone());
            loop {
                if let Some(incoming) = reader.next().map_err(|e| Refusal::Io(e.to_string()))? {
                    return match incoming.reply.map_err(|e| Refusal::Io(e.to_string()))? {
                        (Reply::Hello { .. }, ..) if incoming.request == 0 => {
                            Ok((reader, half, socket))
                        }
                        (Reply::Error(error), ..) => Err(Refusal::Hello(error)),
                        _ => Err(Refusal::Io(
                            "it does not answer Hello with Hello".to_owned(),
                        )),
                    };
                }
                reader
                    .fill(&mut half)
                    .await
                    .map_err(|e| Refusal::Io(e.to_string()))?;
            }
        };
        match timeout(self.setup.connect_timeout, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(Refusal::Io(format!(
                "no connection within {} ms",
                self.setup.connect_timeout.as_millis()
            ))),
        }
    }

    /// Reads replies and writes what the socket did not take, until the connection ends; says why
    /// it did.
    async fn serve(
        self: &Arc<Self>,
        reader: &mut Reader,
        half: &mut tokio::net::tcp::OwnedReadHalf,
    ) -> String {
        let socket = match &self.state().phase {
            Phase::Up(socket) => socket.clone(),
            _ => return "the connection is not up".to_owned(),
        };
        loop {
            if self.closed.load(Ordering::Relaxed) {
                return "the client is closed".to_owned();
            }
            let (writes, watch) = {
                let state = self.state();
                let watch = state.heard + self.setup.silence_max;
                (
                    !state.unsent.is_empty(),
                    (!state.under_way.is_empty()).then_some(watch),
                )
            };
            let silence = async {
                match watch {
                    Some(watch) => sleep_until(watch).await,
                    // What is sent from now on kicks nobody: look again in time.
                    None => sleep_until(Instant::now() + self.setup.silence_max).await,
                }
            };
            tokio::select! {
                biased;
                read = reader.fill(half) => {
                    if let Err(error) = read {
                        return error.to_string();
                    }
                    if let Err(why) = self.dispatch(reader) {
                        return why;
                    }
                }
                ready = socket.writable(), if writes => {
                    if let Err(error) = ready.and_then(|()| self.flush(&socket)) {
                        return error.to_string();
                    }
                }
                () = self.kick.notified() => {}
                () = silence => {
                    let state = self.state();
                    let silent = state.heard.elapsed();
                    if !state.under_way.is_empty() && silent >= self.setup.silence_max {
                        return format!("nothing came for {} ms", silent.as_millis());
                    }
                }
            }
        }
    }

    /// Hands over the frames that are whole.
    fn dispatch(self: &Arc<Self>, reader: &mut Reader) -> Result<(), String> {
        let mut heard = false;
        loop {
            let next = reader.next().map_err(|error| error.to_string())?;
            let Some(Incoming {
                request,
                epoch,
                reply,
            }) = next
            else {
                if !heard {
                    // A part of a large frame is a sign of life as well.
                    self.state().heard = Instant::now();
                }
                return Ok(());
            };
            let reply_to = {
                let mut state = self.state();
                heard = true;
                state.heard = Instant::now();
                let reply_to = state.under_way.remove(&request).ok_or_else(|| {
                    format!("a reply came to request {request}, which was not made")
                })?;
                self.pump(&mut state);
                reply_to
            };
            let came = match reply {
                Ok((reply, payload, payload_crc)) => Answer::Reply {
                    reply,
                    payload,
                    payload_crc,
                },
                Err(error) => Answer::Lost {
                    detail: error.to_string(),
                },
            };
            answer_by(epoch, reply_to, came);
        }
    }

    fn flush(&self, socket: &OwnedWriteHalf) -> io::Result<()> {
        let mut state = self.state();
        state.corked = false;
        Self::write(&mut state, socket).map(drop)
    }

    /// Writes what is unsent; whether the socket took all of it.
    fn write(state: &mut State, socket: &OwnedWriteHalf) -> io::Result<bool> {
        while !state.unsent.is_empty() {
            let parts: Vec<IoSlice<'_>> = state
                .unsent
                .iter()
                .take(64)
                .map(|b| IoSlice::new(b))
                .collect();
            let mut sent = match socket.try_write_vectored(&parts) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            while sent > 0 {
                let Some(front) = state.unsent.front_mut() else {
                    break;
                };
                let part = sent.min(front.len());
                front.advance(part);
                sent -= part;
                if front.is_empty() {
                    state.unsent.pop_front();
                }
            }
        }
        Ok(true)
    }
}

/// A link's task. However it ends, also with its runtime, nobody is left without an answer.
struct Alive(Arc<Link>);

impl Drop for Alive {
    fn drop(&mut self) {
        let up = matches!(self.0.state().phase, Phase::Connecting | Phase::Up(_));
        if up {
            self.0.down("its runtime has ended".to_owned(), None);
        }
    }
}

/// Why there is no connection.
enum Refusal {
    Io(String),
    Hello(WireError),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Refusal::Io(error.to_string())
    }
}

fn refusal(error: WireError) -> Answer {
    Answer::Reply {
        reply: Reply::Error(error),
        payload: Bytes::new(),
        payload_crc: 0,
    }
}
