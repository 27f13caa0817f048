//! A control member on a thread of its own, beside the data cores of a daemon.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::sync::{oneshot, watch};

use crate::server::{ControlConfig, ControlServer, StartError};
use crate::state::State;

/// A control member that runs on its own thread until this is dropped.
#[derive(Debug)]
pub struct ControlThread {
    address: SocketAddr,
    seen: watch::Receiver<Arc<State>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ControlThread {
    /// Starts the thread, and waits until the member serves or has failed to.
    pub fn spawn(config: ControlConfig) -> Result<ControlThread, StartError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(StartError::Thread)?;
        let (ready, started) = mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    match ControlServer::start(config).await {
                        Ok(server) => {
                            let told = ready.send(Ok((server.local_addr(), server.watch())));
                            if told.is_ok() {
                                // Told to stop, or left alone: both end it.
                                let _ = stopped.await;
                            }
                            server.stop().await;
                        }
                        Err(error) => {
                            // Nobody waits any more: then nobody needs to know.
                            let _ = ready.send(Err(error));
                        }
                    }
                });
            })
            .map_err(StartError::Thread)?;
        let ended = || StartError::Raft("its thread has ended".to_owned());
        let (address, seen) = started.recv().map_err(|_| ended())??;
        Ok(ControlThread {
            address,
            seen,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// What it knows: the map among it, and whenever it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.seen.clone()
    }
}

impl Drop for ControlThread {
    fn drop(&mut self) {
        // Dropped, the sender wakes the thread, which ends the member in good order.
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // If it panicked there is nothing left to end.
            let _ = thread.join();
        }
    }
}
