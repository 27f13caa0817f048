//! One question for all who wait for its answer.
//!
//! Invariants:
//! - whoever asks gets what was found by a question that was put after they came: an answer that is shared is as
//!   new as one of their own would be;
//! - of one name, one question is under way at a time, put by one of those who wait for its answer;
//! - if whoever puts it goes away, the next one puts it: nobody waits for somebody who is gone;
//! - a failure is not shared: the others ask for themselves;
//! - what is kept of those who wait is bounded by how many do: those who are gone are forgotten before room is made
//!   for more.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// Questions, by name.
#[derive(Debug)]
pub(crate) struct Together<T>(Arc<Lanes<T>>);

/// Names of which a question is under way, with those who came since it was put.
#[derive(Debug)]
struct Lanes<T>(Mutex<HashMap<String, VecDeque<Waiting<T>>>>);

type Waiting<T> = oneshot::Sender<Turn<T>>;

/// What becomes of somebody who waits.
#[derive(Debug)]
enum Turn<T> {
    /// This was found for them.
    Found(T),
    /// They put the question.
    Asks(Baton<T>),
}

/// The right to put a question, and who else it is for. Without it nobody would: so it is passed on when it is dropped.
#[derive(Debug)]
struct Baton<T> {
    lanes: Arc<Lanes<T>>,
    name: String,
    others: VecDeque<Waiting<T>>,
    /// It is somebody else's by now.
    passed: bool,
}

impl<T> Default for Together<T> {
    fn default() -> Self {
        Together(Arc::new(Lanes(Mutex::default())))
    }
}

impl<T: Clone> Together<T> {
    /// What the question finds, or one that somebody puts for several.
    pub(crate) async fn ask<E, F>(&self, name: &str, question: impl Fn() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let baton = match self.join(name) {
            Ok(baton) => baton,
            Err(turn) => match turn.await {
                Ok(Turn::Found(found)) => return Ok(found),
                Ok(Turn::Asks(baton)) => baton,
                // It failed for those who put it.
                Err(_) => return question().await,
            },
        };
        let result = question().await;
        baton.tell(result.as_ref().ok());
        result
    }

    /// The right to ask now, or what to wait for.
    fn join(&self, name: &str) -> Result<Baton<T>, oneshot::Receiver<Turn<T>>> {
        let mut lanes = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = lanes.get_mut(name) {
            let (sender, turn) = oneshot::channel();
            if waiting.len() == waiting.capacity() {
                waiting.retain(|other| !other.is_closed());
            }
            waiting.push_back(sender);
            return Err(turn);
        }
        lanes.insert(name.to_owned(), VecDeque::new());
        Ok(Baton {
            lanes: self.0.clone(),
            name: name.to_owned(),
            others: VecDeque::new(),
            passed: false,
        })
    }
}

impl<T: Clone> Baton<T> {
    /// Tells the others what was found, or lets them ask for themselves.
    fn tell(mut self, found: Option<&T>) {
        for other in self.others.drain(..) {
            if let Some(found) = found {
                // Whoever is gone needs nothing.
                let _ = other.send(Turn::Found(found.clone()));
            }
        }
    }
}

impl<T> Drop for Baton<T> {
    /// The next question is of all who came since; and of those that this one was for, if it was given up.
    fn drop(&mut self) {
        if self.passed {
            return;
        }
        let mut lanes = self.lanes.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = lanes.get_mut(&self.name).map(std::mem::take);
        let mut all = std::mem::take(&mut self.others);
        all.extend(since.unwrap_or_default());
        while let Some(first) = all.pop_front() {
            let baton = Baton {
                lanes: self.lanes.clone(),
                name: self.name.clone(),
                others: std::mem::take(&mut all),
                passed: false,
            };
            match first.send(Turn::Asks(baton)) {
                Ok(()) => return,
                Err(Turn::Asks(mut baton)) => {
                    baton.passed = true;
                    all = std::mem::take(&mut baton.others);
                }
                Err(Turn::Found(_)) => {}
            }
        }
        lanes.remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::pin::Pin;
    use std::rc::Rc;
    use std::task::{Context, Poll, Waker};

    use super::*;

    type Answer = oneshot::Sender<Result<u32, String>>;

    /// Questions that are answered when the test says so.
    #[derive(Clone, Default)]
    struct Oracle {
        put: Rc<Cell<u32>>,
        answers: Rc<RefCell<Vec<Answer>>>,
    }

    impl Oracle {
        fn question(&self) -> impl Future<Output = Result<u32, String>> + use<> {
            self.put.set(self.put.get() + 1);
            let (sender, answer) = oneshot::channel();
            self.answers.borrow_mut().push(sender);
            async move { answer.await.unwrap_or_else(|e| Err(e.to_string())) }
        }

        fn answers(&self, result: Result<u32, String>) {
            let sender = self.answers.borrow_mut().remove(0);
            // Whoever asked may be gone.
            let _ = sender.send(result);
        }
    }

    type Asking<'a> = Pin<Box<dyn Future<Output = Result<u32, String>> + 'a>>;

    fn asking<'a>(together: &'a Together<u32>, oracle: &Oracle) -> Asking<'a> {
        let oracle = oracle.clone();
        let mut asking: Asking<'a> =
            Box::pin(async move { together.ask("a", || oracle.question()).await });
        assert_eq!(poll(&mut asking), None, "nothing is answered yet");
        asking
    }

    fn poll(asking: &mut Asking<'_>) -> Option<Result<u32, String>> {
        match asking
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }

    #[test]
    fn whoever_came_while_a_question_was_under_way_shares_the_next_one() {
        let (together, oracle) = (Together::default(), Oracle::default());
        let mut first = asking(&together, &oracle);
        let mut others: Vec<_> = (0..5).map(|_| asking(&together, &oracle)).collect();
        assert_eq!(oracle.put.get(), 1);
        oracle.answers(Ok(1));
        assert_eq!(poll(&mut first), Some(Ok(1)));
        for other in &mut others {
            assert_eq!(poll(other), None, "the first answer may be too old for it");
        }
        assert_eq!(oracle.put.get(), 2);
        let mut late = asking(&together, &oracle);
        oracle.answers(Ok(2));
        for other in &mut others {
            assert_eq!(poll(other), Some(Ok(2)));
        }
        assert_eq!(poll(&mut late), None);
        oracle.answers(Ok(3));
        assert_eq!((poll(&mut late), oracle.put.get()), (Some(Ok(3)), 3));
        assert!(together.0.0.lock().unwrap().is_empty());
    }

    #[test]
    fn if_whoever_asks_goes_away_the_next_one_asks() {
        let (together, oracle) = (Together::default(), Oracle::default());
        let first = asking(&together, &oracle);
        let (second, mut third) = (asking(&together, &oracle), asking(&together, &oracle));
        drop(first);
        // The second one's turn has come; it goes away without having seen that.
        drop(second);
        assert_eq!((poll(&mut third), oracle.put.get()), (None, 2));
        // And one that puts it for others goes away in the middle.
        let mut fourth = asking(&together, &oracle);
        let mut fifth = asking(&together, &oracle);
        oracle.answers.borrow_mut().clear();
        assert!(matches!(poll(&mut third), Some(Err(_))));
        assert_eq!((poll(&mut fourth), oracle.put.get()), (None, 3));
        drop(fourth);
        assert_eq!((poll(&mut fifth), oracle.put.get()), (None, 4));
        oracle.answers.borrow_mut().remove(0);
        oracle.answers(Ok(7));
        assert_eq!(poll(&mut fifth), Some(Ok(7)));
        assert!(together.0.0.lock().unwrap().is_empty());
    }

    #[test]
    fn those_who_are_gone_are_forgotten() {
        let (together, oracle) = (Together::default(), Oracle::default());
        let mut first = asking(&together, &oracle);
        let mut stays = asking(&together, &oracle);
        for _ in 0..1000 {
            drop(asking(&together, &oracle));
        }
        let kept = together.0.0.lock().unwrap()["a"].len();
        assert!(kept < 10, "{kept} wait, of whom one is there");
        oracle.answers(Ok(1));
        assert_eq!(poll(&mut first), Some(Ok(1)));
        assert_eq!((poll(&mut stays), oracle.put.get()), (None, 2));
        oracle.answers(Ok(2));
        assert_eq!(poll(&mut stays), Some(Ok(2)));
    }

    #[test]
    fn a_failure_is_not_shared() {
        let (together, oracle) = (Together::default(), Oracle::default());
        let mut first = asking(&together, &oracle);
        let (mut second, mut third) = (asking(&together, &oracle), asking(&together, &oracle));
        oracle.answers(Ok(1));
        assert_eq!(poll(&mut first), Some(Ok(1)));
        assert_eq!((poll(&mut second), oracle.put.get()), (None, 2));
        oracle.answers(Err("no".to_owned()));
        assert_eq!(poll(&mut second), Some(Err("no".to_owned())));
        assert_eq!((poll(&mut third), oracle.put.get()), (None, 3));
        oracle.answers(Ok(3));
        assert_eq!(poll(&mut third), Some(Ok(3)));
    }

    #[test]
    fn other_names_are_other_questions() {
        let (together, oracle) = (Together::default(), Oracle::default());
        let mut first = asking(&together, &oracle);
        let mut other: Asking<'_> = Box::pin(together.ask("b", || oracle.question()));
        assert_eq!((poll(&mut other), oracle.put.get()), (None, 2));
        oracle.answers(Ok(1));
        oracle.answers(Ok(2));
        assert_eq!(poll(&mut other), Some(Ok(2)));
        assert_eq!(poll(&mut first), Some(Ok(1)));
    }
}
