//! What is put together of several operations, as the clients of the store do it (`node/client`, and the gateway on top
//! of that): written down in the same order, and gone through one operation at a time.
//!
//! Invariants:
//! - one operation is under way at a time, and each change is in the story with what came of it: so is one whose client
//!   dies meanwhile;
//! - nothing here waits for anything but the operation that was begun.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use ashlar_cluster_object::ask::{Ask, Told, Untold};
use ashlar_cluster_object::{
    Code, Common, Compose, Delete, Deleted, Event, Found, Get, Look, Making, ObjectError, Put,
    PutDone, Rename,
};
use ashlar_layout::ids::{PartitionId, Seq};
use ashlar_layout::lock::Lock;
use ashlar_layout::manifest::Precondition;
use ashlar_layout::message::{ObjectMeta, Request};
use ashlar_tests::history::{Key, Value};
use ashlar_tests::shelf::{Deed, Id, Need, No, Said, What};
use bytes::{Bytes, BytesMut};

use crate::client::{Client, Running};
use crate::plan::Mistake;
use crate::story::BUCKET;
use crate::work::Feed;

/// What is handed over to a put.
pub(crate) struct Body {
    pub(crate) bytes: Bytes,
    /// It does not ride in the journal, however small it is.
    pub(crate) striped: bool,
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Body {
        Body {
            bytes,
            striped: false,
        }
    }
}

/// What is wanted of the client.
pub(crate) enum Want {
    /// An operation is to be begun; what is handed over to it.
    Run(Box<Running>, Option<Body>),
    /// A put that waits is to be proposed again,
    Again(u64, Precondition),
    /// or given up.
    GiveUp(u64),
}

/// What came of an operation.
pub(crate) enum Got {
    Put(Result<PutDone, ObjectError>),
    /// A put waits: which one, and under which condition it was proposed.
    NotKept(u64, Precondition),
    Delete(Result<Deleted, ObjectError>),
    Rename(Result<Seq, ObjectError>),
    Look(Result<Found, ObjectError>),
    Get(Result<(ObjectMeta, Bytes), ObjectError>),
    Ask(Result<Told, Untold>),
    Nothing,
}

/// Something that was read, and is to be what was put.
pub(crate) struct Read {
    pub(crate) key: Key,
    pub(crate) meta: ObjectMeta,
    pub(crate) bytes: Bytes,
}

/// What was found out, for whoever keeps the story.
#[derive(Default)]
pub(crate) struct News {
    pub(crate) deeds: Vec<Deed>,
    pub(crate) marks: Vec<&'static str>,
    pub(crate) reads: Vec<Read>,
    pub(crate) lost: Vec<String>,
    pub(crate) wrong: Vec<String>,
    /// Values, and what they are made of, one behind the other.
    pub(crate) pieces: Vec<(Value, Vec<Value>)>,
    pub(crate) untidy: bool,
    pub(crate) why: Option<String>,
}

#[derive(Default)]
struct Shared {
    now: u64,
    want: Option<Want>,
    got: Option<Got>,
    open: Option<Deed>,
    news: News,
}

/// Where operations are handed in. One and the same, however often it is copied.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) common: Arc<Common>,
    pub(crate) client: u32,
    mistake: Option<Mistake>,
    shared: Rc<RefCell<Shared>>,
}

/// A flow ends early, for an error that is in the story already.
pub(crate) struct Ended;

/// Why a change was not made.
pub(crate) enum Not {
    /// A put waits until what is current is a version.
    Kept(u64, Precondition),
    Because(ObjectError),
}

impl Not {
    pub(crate) fn code(&self) -> Code {
        match self {
            Not::Kept(..) => Code::NotKept,
            Not::Because(error) => error.code(),
        }
    }
}

/// Waits for what came of the operation that was handed in.
struct Answer(Rc<RefCell<Shared>>);

impl Future for Answer {
    type Output = Got;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Got> {
        match self.0.borrow_mut().got.take() {
            Some(got) => Poll::Ready(got),
            None => Poll::Pending,
        }
    }
}

impl Desk {
    pub(crate) fn new(common: Arc<Common>, client: u32, mistake: Option<Mistake>) -> Desk {
        Desk {
            common,
            client,
            mistake,
            shared: Rc::default(),
        }
    }

    async fn wait(&self, want: Want) -> Got {
        self.shared.borrow_mut().want = Some(want);
        Answer(self.shared.clone()).await
    }

    pub(crate) async fn run(&self, running: Running, body: Option<Body>) -> Got {
        self.wait(Want::Run(Box::new(running), body)).await
    }

    /// Gives a put up that waits.
    pub(crate) async fn give_up(&self, op: u64) {
        self.wait(Want::GiveUp(op)).await;
    }

    pub(crate) fn now(&self) -> u64 {
        self.shared.borrow().now
    }

    pub(crate) fn mark(&self, what: &'static str) {
        self.shared.borrow_mut().news.marks.push(what);
    }

    pub(crate) fn wrong(&self, what: String) {
        self.shared.borrow_mut().news.wrong.push(what);
    }

    pub(crate) fn untidy(&self) {
        self.shared.borrow_mut().news.untidy = true;
    }

    pub(crate) fn read(&self, read: Read) {
        self.shared.borrow_mut().news.reads.push(read);
    }

    /// A value is made of others.
    pub(crate) fn pieces(&self, value: Value, of: Vec<Value>) {
        self.shared.borrow_mut().news.pieces.push((value, of));
    }

    /// How something is put if the canary makes no mistake of it.
    pub(crate) fn really(&self, making: Making) -> Making {
        match (making, self.mistake) {
            (Making::Version { null, .. }, Some(Mistake::LockForgotten)) => Making::Version {
                null,
                lock: Lock::NONE,
            },
            (making, _) => making,
        }
    }

    /// A marker, if the canary makes no mistake of it.
    pub(crate) fn marker(
        &self,
        name: &str,
        precondition: Precondition,
        null: bool,
    ) -> Result<Delete, ObjectError> {
        let common = self.common.clone();
        match self.mistake {
            Some(Mistake::MarkerForgotten) => Delete::new(common, BUCKET, name, precondition),
            _ => Delete::mark(common, BUCKET, name, precondition, null),
        }
    }

    /// Something could not be read, or done.
    pub(crate) fn failed(&self, key: Key, error: &ObjectError) -> Ended {
        let mut shared = self.shared.borrow_mut();
        if error.code() == Code::Corrupt {
            let lost = format!("key {key}: it cannot be read: {error}");
            shared.news.lost.push(lost);
        }
        shared.news.why = Some(error.to_string());
        Ended
    }

    fn open(&self, key: Key, what: What, need: Need) {
        let mut shared = self.shared.borrow_mut();
        let (invoke, client) = (shared.now, self.client);
        shared.open = Some(Deed {
            client,
            key,
            what,
            need,
            said: Said::Unknown,
            invoke,
            ret: invoke,
            clock: (0, 0),
        });
    }

    fn close(&self, said: Said) {
        let mut shared = self.shared.borrow_mut();
        let ret = shared.now;
        if let Some(mut deed) = shared.open.take() {
            (deed.said, deed.ret) = (said, ret);
            shared.news.deeds.push(deed);
        }
    }

    /// Takes note of a look.
    pub(crate) fn looked(&self, since: u64, key: Key, what: What, said: Said) {
        self.open(key, what, Need::None);
        if let Some(deed) = &mut self.shared.borrow_mut().open {
            deed.invoke = since;
        }
        self.close(said);
    }

    fn refused(&self, error: &ObjectError) {
        let no = match error.code() {
            Code::PreconditionFailed => No::Unmet,
            Code::NotKept => No::NotKept,
            Code::Locked => No::Locked,
            Code::NotFound => No::Absent,
            _ => No::Other,
        };
        if error.is_uncertain() {
            self.untidy();
            self.mark("outcome unknown");
            return self.close(Said::Unknown);
        }
        self.shared.borrow_mut().news.why = Some(error.to_string());
        if error.code() == Code::NotYet {
            self.mark("refused until all nodes are upgraded");
        }
        match no {
            No::Unmet => self.mark("condition of a version not met"),
            No::NotKept => self.mark("what is current is no version yet"),
            No::Locked => self.mark("refused by a lock"),
            No::Absent | No::Other => self.mark("refused"),
        }
        self.close(Said::Refused(no));
    }

    /// Has a change made: the entry that recorded it.
    pub(crate) async fn change(
        &self,
        (key, what, need): (Key, What, Need),
        running: Result<Running, ObjectError>,
        body: Option<Body>,
    ) -> Result<Id, Not> {
        let running = running.expect("what is asked makes sense");
        self.open(key, what, need);
        let got = self.run(running, body).await;
        self.changed(got)
    }

    /// Has a put that waits made after all.
    pub(crate) async fn change_again(
        &self,
        (key, what, need): (Key, What, Need),
        (op, precondition): (u64, Precondition),
    ) -> Result<Id, Not> {
        self.open(key, what, need);
        let got = self.wait(Want::Again(op, precondition)).await;
        self.changed(got)
    }

    fn changed(&self, got: Got) -> Result<Id, Not> {
        let made = match got {
            Got::Put(made) => made.map(|done| done.version),
            Got::Delete(made) => made.map(|done| done.version),
            Got::Rename(made) => made,
            Got::NotKept(op, precondition) => {
                self.mark("what is current is no version yet");
                self.close(Said::Refused(No::NotKept));
                return Err(Not::Kept(op, precondition));
            }
            _ => Err(ObjectError::Aborted),
        };
        match made {
            Ok(entry) => {
                self.close(Said::Done(entry.0));
                Ok(entry.0)
            }
            Err(error) => {
                self.refused(&error);
                Err(Not::Because(error))
            }
        }
    }
}

/// Operations one after the other.
pub(crate) struct Flow {
    /// What it is about, for a report.
    pub(crate) name: String,
    future: Pin<Box<dyn Future<Output = Result<(), Ended>>>>,
    desk: Desk,
    got: BytesMut,
    begun: bool,
}

impl Flow {
    pub(crate) fn new(
        name: String,
        desk: Desk,
        flow: impl Future<Output = Result<(), Ended>> + 'static,
    ) -> Flow {
        Flow {
            name,
            future: Box::pin(flow),
            desk,
            got: BytesMut::new(),
            begun: false,
        }
    }

    /// What was found out since it was asked last.
    pub(crate) fn news(&self) -> News {
        std::mem::take(&mut self.desk.shared.borrow_mut().news)
    }

    /// It is given up: nobody learns what became of the change that is under way.
    pub(crate) fn die(self, now: u64) -> News {
        self.desk.shared.borrow_mut().now = now;
        self.desk.close(Said::Unknown);
        self.news()
    }

    /// Takes what came of the operation `op`, if it has come to an end; and goes on. Whether it is at its end, and how
    /// that was; none if an operation is under way, and whether that was begun just now.
    pub(crate) fn go_on(
        &mut self,
        now: u64,
        client: &mut Client,
        op: &mut u64,
        feed: &mut Option<Feed>,
    ) -> Result<Result<(), Ended>, bool> {
        loop {
            self.desk.shared.borrow_mut().now = now;
            if self.begun {
                let got = self.answer(now, client, *op).ok_or(false)?;
                self.desk.shared.borrow_mut().got = Some(got);
            }
            self.begun = true;
            let mut context = Context::from_waker(Waker::noop());
            if let Poll::Ready(ended) = self.future.as_mut().poll(&mut context) {
                return Ok(ended);
            }
            let want = self.desk.shared.borrow_mut().want.take();
            match want.ok_or(false)? {
                Want::Run(running, body) => {
                    *op = client.start(now, *running);
                    *feed = body.map(|body| Feed {
                        striped: body.striped,
                        body: body.bytes,
                        taken: 0,
                        whole: false,
                    });
                    self.got.clear();
                    return Err(true);
                }
                Want::Again(put, precondition) => {
                    (*op, client.wanted) = (put, Some(put));
                    client.with(now, put, |running, at, out| {
                        if let Running::Put(put) = running {
                            put.propose_again(at, precondition, out);
                        }
                    });
                    return Err(true);
                }
                Want::GiveUp(put) => {
                    client.event(now, put, Event::Abort);
                    self.desk.shared.borrow_mut().got = Some(Got::Nothing);
                    self.begun = false;
                }
            }
        }
    }

    fn answer(&mut self, now: u64, client: &mut Client, op: u64) -> Option<Got> {
        while let Some(Running::Get(get)) = client.running.get(&op) {
            if !get.is_ready() {
                return None;
            }
            let taken = client.with(now, op, |running, at, out| match running {
                Running::Get(get) => get.take(at, out),
                _ => None,
            });
            match taken.flatten() {
                Some(Ok(bytes)) => self.got.extend_from_slice(&bytes),
                Some(Err(error)) => return Some(Got::Get(Err(error))),
                None => break,
            }
        }
        let Some(running) = client.running.get(&op) else {
            return Some(Got::Nothing);
        };
        if !running.is_answered() {
            return None;
        }
        Some(match running {
            Running::Put(put) => match (put.outcome(), put.not_kept()) {
                (None, Some(_)) => Got::NotKept(op, put.precondition()),
                (outcome, _) => Got::Put(outcome.cloned().unwrap_or_else(aborted)),
            },
            Running::Compose(it) => Got::Put(it.outcome().cloned().unwrap_or_else(aborted)),
            Running::Delete(it) => Got::Delete(it.outcome().cloned().unwrap_or_else(aborted)),
            Running::Rename(it) => Got::Rename(it.outcome().cloned().unwrap_or_else(aborted)),
            Running::Look(it) => Got::Look(it.outcome().cloned().unwrap_or_else(aborted)),
            Running::Ask(it) => it.outcome().cloned().map_or(Got::Nothing, Got::Ask),
            Running::Get(get) => match get.meta() {
                Some(meta) => Got::Get(Ok((meta.clone(), self.got.split().freeze()))),
                None => Got::Get(aborted()),
            },
            Running::Mend(_) | Running::Stripe(_) | Running::Relocate(_) => Got::Nothing,
        })
    }
}

fn aborted<T>() -> Result<T, ObjectError> {
    Err(ObjectError::Aborted)
}

/// Shorthands for what is begun.
macro_rules! begun {
    ($($from:ident),*) => {$(
        impl From<$from> for Running {
            fn from(machine: $from) -> Running {
                Running::$from(machine)
            }
        }
    )*};
}

begun!(Put, Compose, Delete, Rename, Look, Get, Ask);

/// One question to a partition's head.
pub(crate) fn ask(
    common: Arc<Common>,
    names: (&str, &str),
    partition: PartitionId,
    request: Request,
) -> Ask {
    Ask::new(common, 0, names, partition, request, Bytes::new())
}
