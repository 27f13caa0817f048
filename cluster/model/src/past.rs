//! Where models begin, and how a state reads.

use std::fmt::Write;

use ashlar_cluster_journal::Event;
use ashlar_layout::ids::{ClientId, RequestNo, Seq, Term};
use ashlar_layout::journal::encode_entry;
use ashlar_layout::manifest::{Op, Precondition};
use bytes::Bytes;

use crate::broken::PROPERTIES;
use crate::client::{self, BUCKET, FOUNDER};
use crate::disk::Mark;
use crate::local::Cause;
use crate::plan::{Past, Plan, device};
use crate::world::{HEAL, World};

/// How long a lease lasts, in nanoseconds.
fn lease(plan: &Plan) -> u64 {
    let lease = plan.config(0).limits.lease;
    u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX / 2)
}

impl World {
    /// Where this plan begins.
    pub fn begun(plan: &Plan) -> Result<Self, String> {
        let mut world = World::settled(plan)?;
        if plan.loses_index {
            // Whoever knows nothing has to be told who the others are.
            for at in 0..plan.nodes {
                world.tell(plan, at, &Cause::Desired(1));
            }
        }
        match plan.past {
            Past::Quiet => {}
            Past::TwoTails => world.two_tails(plan)?,
            Past::Half => world.half(plan)?,
            Past::Promised => world.promised(plan)?,
            Past::Overtaken => world.overtaken(plan)?,
            Past::Begun => world.begun_to_change(plan)?,
            Past::Torn => world.torn(plan)?,
            Past::Racing => world.racing(plan)?,
            Past::Away => world.away(plan)?,
        }
        let quantum = u64::try_from(plan.quantum.as_nanos()).unwrap_or(u64::MAX);
        world.wait(plan, quantum * u64::from(plan.silence));
        // If something is broken already, the checker says so.
        Ok(world)
    }

    /// A chain that runs, with its bucket made and nothing under way.
    fn settled(plan: &Plan) -> Result<Self, String> {
        let mut world = World::new(plan);
        for node in 0..plan.nodes {
            world.start(plan, node);
        }
        let bucket = Op::CreateBucket {
            bucket: BUCKET.to_owned(),
        };
        world.make(plan, FOUNDER, RequestNo(1), &bucket)?;
        for request in 0..plan.before {
            let no = RequestNo(u64::from(request) + 2);
            world.make(plan, FOUNDER, no, &client::put(plan.keys()[0]))?;
        }
        // All are told, and everyone has heard from the head lately.
        let until = world.now + 500_000_000;
        world.run(plan, |world| world.now >= until)?;
        // Whatever is due at this very moment, too, so that the head is in office.
        world.run(plan, |world| world.now > until)?;
        Ok(world)
    }

    /// See [`Past::TwoTails`].
    fn two_tails(&mut self, plan: &Plan) -> Result<(), String> {
        let term = self.face(0).term;
        let event = Event::Propose {
            reply_to: HEAL,
            term,
            client: FOUNDER,
            request: RequestNo(1000),
            retry: None,
            precondition: Precondition::None,
            op: client::put(plan.keys()[0]),
            inline: Bytes::new(),
            wall_ms: 0,
        };
        self.tell(plan, 0, &Cause::Other(Box::new(event)));
        for at in 0..self.nodes.len() {
            let keep = self.disk(at).under_way.len();
            self.crash(plan, at, keep, true, false);
        }
        let second = Term::new(term.round() + 1, device(1));
        let end = self.disk(1).durable.len() as u64;
        for at in 1..self.nodes.len() {
            self.write(plan, at, Seq(0), second, Term(0));
        }
        self.write(plan, 1, Seq(end + 1), second, term);
        for at in (0..self.nodes.len()).filter(|at| *at != 1) {
            self.start(plan, at);
        }
        // What a device may have promised before is over.
        let until = self.now + lease(plan);
        self.run(plan, |world| world.now >= until)
    }

    /// A promise, or the first entry of a reign, as it stands on a device.
    fn write(&mut self, plan: &Plan, at: usize, seq: Seq, term: Term, prev_term: Term) {
        let mut entry = Vec::new();
        let (client, request) = (ClientId(0), RequestNo(prev_term.0));
        if encode_entry(
            &mut entry,
            seq,
            term,
            client,
            request,
            0,
            &Op::TermStart,
            &[],
        )
        .is_ok()
        {
            self.put(plan, at, |local| {
                local.disk.write(0, seq, Bytes::from(entry));
                local.disk.complete();
            });
        }
    }

    /// See [`Past::Half`].
    fn half(&mut self, plan: &Plan) -> Result<(), String> {
        let view = self.nodes[0].face.clone();
        let (key, known) = (plan.keys()[0], self.committed.len());
        let precondition = plan.wishes[0][0].precondition;
        let event = Event::Propose {
            // Nobody's: the client does not wait for it any more.
            reply_to: HEAL,
            term: view.term,
            client: client::client_id(0),
            request: client::request_no(0),
            retry: None,
            precondition,
            op: client::put(key),
            inline: Bytes::new(),
            wall_ms: 0,
        };
        self.tell(plan, 0, &Cause::Other(Box::new(event)));
        self.clients[0].told = view.committed;
        self.clients[0].first_told = Some(view.committed);
        self.clients[0].attempts = 1;
        self.run_among(plan, 0b011, |world| {
            world.face(1).committed.0 > known as u64
        })?;
        // The third hears nothing of it before its connections break.
        self.net.broken(0, 2);
        self.net.broken(1, 2);
        Ok(())
    }

    /// See [`Past::Promised`].
    fn promised(&mut self, plan: &Plan) -> Result<(), String> {
        self.wait(plan, lease(plan) + 2_000_000);
        let second = |world: &World, at: usize| world.disk(at).promised.round() > 1;
        self.run_among(plan, 0b110, |world| second(world, 1) && second(world, 2))
    }

    /// See [`Past::Overtaken`].
    fn overtaken(&mut self, plan: &Plan) -> Result<(), String> {
        self.promised(plan)?;
        let end = self.committed();
        self.run_among(plan, 0b110, |world| {
            let face = |at| world.face(at);
            face(1).serving && face(1).base > end && face(2).base > end
        })
    }

    /// See [`Past::Begun`].
    fn begun_to_change(&mut self, plan: &Plan) -> Result<(), String> {
        for reader in 0..self.readers.len() {
            self.remember(reader, 0);
        }
        for at in 0..self.nodes.len() {
            self.tell(plan, at, &Cause::Desired(1));
        }
        // Until the head has written the first new composition.
        self.run(plan, |world| {
            let mut held = world.disk(0).held.iter().flatten();
            held.any(|mark| mark.chain != 0)
        })
    }

    /// See [`Past::Torn`].
    fn torn(&mut self, plan: &Plan) -> Result<(), String> {
        self.begun_to_change(plan)?;
        // The others of the old composition hear nothing of it: they are cut off.
        self.net.cut(0, 1);
        self.net.cut(0, 2);
        if plan.desired.len() > 1 {
            for at in 1..=2 {
                self.tell(plan, at, &Cause::Desired(2));
            }
        }
        Ok(())
    }

    /// See [`Past::Away`].
    fn away(&mut self, plan: &Plan) -> Result<(), String> {
        let keep = self.disk(2).under_way.len();
        self.crash(plan, 2, keep, true, false);
        let end = self.committed();
        let no = RequestNo(2000);
        self.make(plan, FOUNDER, no, &client::put(plan.keys()[0]))?;
        self.run_among(plan, 0b011, |world| {
            world.face(0).base > end && world.face(1).base > end
        })?;
        self.start(plan, 2);
        Ok(())
    }

    /// See [`Past::Racing`].
    fn racing(&mut self, plan: &Plan) -> Result<(), String> {
        self.torn(plan)?;
        self.run_among(plan, 0b0110, |world| world.face(1).serving)
    }
}

impl World {
    /// A line that says how things stand.
    pub fn line(&self) -> String {
        let mut line = format!("t={} ms;", self.now / 1_000_000);
        for at in 0..self.nodes.len() {
            let log = |log: &[Option<Mark>]| {
                let mut text = String::new();
                for mark in log {
                    let _ = match mark {
                        Some(mark) => write!(text, " {}.{}", mark.term.round(), mark.term.head()),
                        None => write!(text, " ?"),
                    };
                    if let Some(chain) = mark.map(|mark| mark.chain).filter(|chain| *chain != 0) {
                        let members = (0..8).filter(|at| chain & 1 << at != 0);
                        let members: Vec<String> =
                            members.map(|at| device(at).to_string()).collect();
                        let _ = write!(text, "={}", members.join("+"));
                    }
                }
                text
            };
            let disk = self.disk(at);
            let face = self.face(at);
            let _ = write!(line, " [{}", device(at));
            if face.runs {
                let (round, head) = (face.term.round(), face.term.head());
                let serves = if face.serving { " serves" } else { "" };
                let _ = write!(line, " {round}.{head}{serves} c{}", face.committed);
            } else {
                line.push_str(" off");
            }
            let _ = write!(line, ":{}", log(&disk.durable));
            if disk.held.len() > disk.durable.len() {
                let _ = write!(line, " (+{})", log(&disk.held[disk.durable.len()..]));
            }
            line.push(']');
        }
        let _ = write!(line, " committed {}", self.committed.len());
        if self.broken != 0 {
            for (nth, name) in PROPERTIES.iter().enumerate() {
                if self.broken & 1 << nth != 0 {
                    let _ = write!(line, "; BROKEN: {name}");
                }
            }
        }
        line
    }
}
