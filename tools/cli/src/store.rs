//! What the object commands share: a client, a runtime, and many objects at once.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use ashlar_layout::message::ListPage;
use ashlar_node_client::{Client, ClientError, ClientOptions, Code, ListOptions};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::address::Address;
use crate::fail::Fail;
use crate::locate;
use crate::output::{self, Progress};

/// Objects that are put, read or removed at the same time.
pub const OBJECTS_MAX: usize = 16;
/// How long the shards that were late are waited for before the command ends.
const DRAIN: Duration = Duration::from_secs(10);

/// Runs `work` with a client of the cluster.
pub fn with_client<T, F>(cluster: Option<&Path>, work: impl FnOnce(Client) -> F) -> Result<T, Fail>
where
    F: Future<Output = Result<T, Fail>>,
{
    let map = locate::map(cluster)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Fail::io(
            "cannot start threads in",
            Path::new("this process"),
        ))?;
    runtime.block_on(async {
        let client =
            Client::connect(map, ClientOptions::default()).map_err(Fail::store("the cluster"))?;
        let mut terminate = signal(SignalKind::terminate())
            .map_err(Fail::io("cannot wait for signals in", Path::new("this process")))?;
        // An interrupted command drops what it was doing, and so cleans up behind itself.
        let result = tokio::select! {
            result = work(client.clone()) => result,
            _ = tokio::signal::ctrl_c() => return Err(Fail::Refused("interrupted".into())),
            _ = terminate.recv() => return Err(Fail::Refused("interrupted".into())),
        };
        let drained = client.drain(DRAIN).await;
        if drained.unfinished > 0 {
            output::note(&format!(
                "{} late shards were not stored in {} s: what they belong to can be read, with less margin",
                drained.unfinished,
                DRAIN.as_secs()
            ));
        }
        result
    })
}

/// Pages of a listing, one after the other.
pub struct Pages<'a> {
    client: &'a Client,
    address: Address,
    delimiter: &'static str,
    after: Option<String>,
}

impl<'a> Pages<'a> {
    /// Everything whose key starts with the address's key, rolled up at `delimiter` if it is not empty.
    pub fn new(client: &'a Client, address: Address, delimiter: &'static str) -> Pages<'a> {
        Pages {
            client,
            address,
            delimiter,
            after: Some(String::new()),
        }
    }

    /// The next page; none behind the last.
    pub async fn next(&mut self) -> Result<Option<ListPage>, Fail> {
        let Some(after) = self.after.take() else {
            return Ok(None);
        };
        let options = ListOptions {
            prefix: self.address.key.clone(),
            delimiter: self.delimiter.to_owned(),
            after,
            max: 0,
        };
        let page = self
            .client
            .list(&self.address.bucket, options)
            .await
            .map_err(Fail::store(self.address.to_string()))?;
        self.after.clone_from(&page.next);
        Ok(Some(page))
    }
}

/// Whether there is any use in trying the next object after this error.
fn goes_on(error: &ClientError) -> bool {
    !matches!(
        error.code(),
        Code::NoSuchBucket | Code::PartitionUnavailable | Code::DevicesAway | Code::WrongCluster
    )
}

/// Works on many objects at once, at most [`OBJECTS_MAX`], and counts.
pub struct Many {
    tasks: JoinSet<Result<u64, Fail>>,
    things: &'static str,
    /// Objects that are done.
    pub done: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that failed; each was told.
    pub failed: u64,
    hopeless: bool,
}

impl Many {
    /// For so-called things.
    pub fn new(things: &'static str) -> Many {
        Many {
            tasks: JoinSet::new(),
            things,
            done: 0,
            bytes: 0,
            failed: 0,
            hopeless: false,
        }
    }

    /// Adds work that gives the bytes it moved; waits while too much is under way. False: give up.
    pub async fn add(
        &mut self,
        progress: &Progress,
        work: impl Future<Output = Result<u64, Fail>> + Send + 'static,
    ) -> bool {
        while self.tasks.len() >= OBJECTS_MAX {
            self.take(progress).await;
        }
        if !self.hopeless {
            self.tasks.spawn(work);
        }
        !self.hopeless
    }

    /// Tells of a failure that needed no work.
    pub fn fail(&mut self, progress: &Progress, text: &str) {
        self.failed += 1;
        progress.note(text);
    }

    async fn take(&mut self, progress: &Progress) {
        match self.tasks.join_next().await {
            None => {}
            Some(Ok(Ok(bytes))) => {
                self.done += 1;
                self.bytes += bytes;
            }
            Some(Ok(Err(error))) => {
                if let Fail::Store { source, .. } = &error
                    && !goes_on(source)
                {
                    self.hopeless = true;
                }
                self.fail(progress, &error.to_string());
            }
            Some(Err(error)) => self.fail(progress, &format!("a task ended early: {error}")),
        }
    }

    /// Waits for all that is under way; an error if anything failed.
    pub async fn finish(&mut self, progress: &Progress) -> Result<(), Fail> {
        while !self.tasks.is_empty() {
            self.take(progress).await;
        }
        progress.finish();
        match self.failed {
            0 => Ok(()),
            failed => Err(Fail::Some {
                failed,
                total: self.done + failed,
                things: self.things,
            }),
        }
    }
}
