//! openraft's runtime: tokio's, but that the tasks of one member can be ended all at once, as a process is, and that
//! chance comes from a seed where one was given.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use openraft::{AsyncRuntime, OptionalSend, TokioRuntime};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tokio::task::AbortHandle;

thread_local! {
    static PANICS: Cell<u32> = const { Cell::new(0) };
    static CHANCE: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

tokio::task_local! {
    static LIFE: Life;
}

/// Panics on this thread so far. Those in tasks are nobody's: tokio catches them.
pub(crate) fn panics() -> u32 {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
    PANICS.get()
}

/// From now on chance on this thread comes from the seed.
pub(crate) fn seed(seed: u64) {
    CHANCE.set(Some(StdRng::seed_from_u64(seed)));
}

/// A member's tasks that openraft has started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Life(Arc<Mutex<Vec<AbortHandle>>>);

impl Life {
    /// What openraft starts in this work, and whatever that starts, is of this life.
    pub(crate) async fn of<T>(&self, work: impl Future<Output = T>) -> T {
        LIFE.scope(self.clone(), work).await
    }

    /// Ends it: none of its tasks runs any more.
    pub(crate) fn end(&self) {
        self.0.lock().unwrap().iter().for_each(AbortHandle::abort);
    }
}

/// Chance as openraft asks for it.
#[derive(Clone, Copy, Debug)]
pub struct Chance;

impl RngCore for Chance {
    fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    fn next_u64(&mut self) -> u64 {
        CHANCE.with_borrow_mut(|chance| match chance {
            Some(seeded) => seeded.next_u64(),
            None => rand::thread_rng().next_u64(),
        })
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        for part in dest.chunks_mut(8) {
            let bytes = self.next_u64().to_le_bytes();
            part.copy_from_slice(&bytes[..part.len()]);
        }
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand::Error> {
        self.fill_bytes(dest);
        Ok(())
    }
}

/// The runtime.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Runtime;

type Tokio = TokioRuntime;

impl AsyncRuntime for Runtime {
    type JoinError = <Tokio as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <Tokio as AsyncRuntime>::Sleep;
    type Instant = <Tokio as AsyncRuntime>::Instant;
    type TimeoutError = <Tokio as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <Tokio as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = Chance;
    type OneshotSender<T: OptionalSend> = <Tokio as AsyncRuntime>::OneshotSender<T>;
    type OneshotReceiver<T: OptionalSend> = <Tokio as AsyncRuntime>::OneshotReceiver<T>;
    type OneshotReceiverError = <Tokio as AsyncRuntime>::OneshotReceiverError;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        let Ok(life) = LIFE.try_with(Life::clone) else {
            return Tokio::spawn(future);
        };
        let task = Tokio::spawn(LIFE.scope(life.clone(), future));
        life.0.lock().unwrap().push(task.abort_handle());
        task
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Tokio::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        Tokio::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        Tokio::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        Tokio::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        join_error.is_panic()
    }

    fn thread_rng() -> Chance {
        Chance
    }

    fn oneshot<T>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>)
    where
        T: OptionalSend,
    {
        Tokio::oneshot()
    }
}
