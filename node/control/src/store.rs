//! Log, vote, state and snapshot of a control member, in one redb file.
//!
//! Invariants:
//! - what is acknowledged is durable: each change is one transaction, committed to the device (redb's checksums tell a
//!   torn one, which is then as if it had never been);
//! - the file gets its name when it is whole: one that power was lost on while it was made is made anew;
//! - the file belongs to one member of one cluster, which is checked before anything else is read of it;
//! - the log has no holes; what was purged of it is in the state, which is stored together with the entry that it is as
//!   of, so that no entry is applied twice.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ashlar_layout::ids::ClusterId;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::types::{LogId, Settled, Vote};

/// The file in the state directory.
pub const FILE_NAME: &str = "control.redb";
/// What it is called until it is whole.
pub(crate) const NEW_NAME: &str = "control.redb.new";
/// The version of what is in it.
const FORMAT: u32 = 1;

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const FACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("facts");

const OWNER: &str = "owner";
pub(crate) const VOTE: &str = "vote";
pub(crate) const PURGED: &str = "purged";
pub(crate) const SETTLED: &str = "settled";
pub(crate) const SNAPSHOT: &str = "snapshot";
const COUNTED: &str = "counted";

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The directory cannot be made.
    #[error("cannot make the state directory {}: {source}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file cannot be made.
    #[error("cannot make {}: {source}", path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process has it open.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// It cannot be opened.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: Box<redb::DatabaseError>,
    },
    /// It belongs to another cluster.
    #[error("{} belongs to cluster {got}, not to {expected}", path.display())]
    OtherCluster {
        /// Which file.
        path: PathBuf,
        /// Ours.
        expected: ClusterId,
        /// The file's.
        got: ClusterId,
    },
    /// It belongs to another member.
    #[error("{} belongs to control member {got}, not to {expected}", path.display())]
    OtherMember {
        /// Which file.
        path: PathBuf,
        /// Us.
        expected: u32,
        /// The file's.
        got: u32,
    },
    /// A later version wrote it.
    #[error("{} is of format {got}; this program reads {FORMAT}", path.display())]
    OtherFormat {
        /// Which file.
        path: PathBuf,
        /// Its format.
        got: u32,
    },
    /// redb fails.
    #[error("{what}: {source}")]
    Redb {
        /// What was to be done.
        what: &'static str,
        /// Why not.
        source: Box<redb::Error>,
    },
    /// What is stored cannot be understood.
    #[error("{what} cannot be read: {source}")]
    Damaged {
        /// What.
        what: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// The thread that worked on it is gone, or the state could not be written.
    #[error("{what} was broken off: the program is ending, or has failed")]
    Ending {
        /// What.
        what: &'static str,
    },
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    format: u32,
    cluster: ClusterId,
    member: u32,
}

/// The file, open. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    database: Arc<Database>,
    /// Up to where the state is durable; an error once nobody writes it any more.
    settled: Arc<watch::Sender<Result<Option<LogId>, ()>>>,
    /// Where changes are made by one who has to wait for the disk; none: on threads that may.
    #[cfg(test)]
    disk: Option<crate::sim::disk::Disk>,
    /// Entries are purged whatever became of them, as only tests of openraft's do.
    #[cfg(test)]
    pub(crate) purges_anything: bool,
}

impl Store {
    /// Opens or makes the file of this member.
    pub fn open(dir: &Path, cluster: ClusterId, member: u32) -> Result<Store, StoreError> {
        std::fs::create_dir_all(dir).map_err(|source| StoreError::Directory {
            path: dir.to_owned(),
            source,
        })?;
        let path = dir.join(FILE_NAME);
        let failed = |source| StoreError::Make {
            path: path.clone(),
            source,
        };
        if !path.try_exists().map_err(failed)? {
            let new = dir.join(NEW_NAME);
            match std::fs::remove_file(&new) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
            drop(Store::at(&new)?.owned(new.clone(), cluster, member)?);
            std::fs::rename(&new, &path).map_err(failed)?;
            let dir = std::fs::File::open(dir).map_err(failed)?;
            dir.sync_all().map_err(failed)?;
        }
        Store::at(&path)?.owned(path, cluster, member)
    }

    fn at(path: &Path) -> Result<Store, StoreError> {
        Store::of(Database::create(path), path)
    }

    fn of(
        database: Result<Database, redb::DatabaseError>,
        path: &Path,
    ) -> Result<Store, StoreError> {
        let path = path.to_owned();
        let database = database.map_err(|source| match source {
            redb::DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path },
            source => StoreError::Open {
                path,
                source: Box::new(source),
            },
        })?;
        Ok(Store {
            database: Arc::new(database),
            settled: Arc::new(watch::channel(Ok(None)).0),
            #[cfg(test)]
            disk: None,
            #[cfg(test)]
            purges_anything: false,
        })
    }

    /// Opens or makes what stands on a simulated disk.
    #[cfg(test)]
    pub(crate) fn open_on(
        disk: crate::sim::disk::Disk,
        cluster: ClusterId,
        member: u32,
    ) -> Result<Store, StoreError> {
        if !disk.has_name() {
            drop(Store::at_disk(&disk)?.owned(PathBuf::from(NEW_NAME), cluster, member)?);
            if !disk.give_name() {
                let what = "to give the file its name";
                return Err(StoreError::Ending { what });
            }
        }
        Store::at_disk(&disk)?.owned(PathBuf::from(FILE_NAME), cluster, member)
    }

    #[cfg(test)]
    fn at_disk(disk: &crate::sim::disk::Disk) -> Result<Store, StoreError> {
        let database = Database::builder().create_with_backend(disk.clone());
        let mut store = Store::of(database, Path::new(FILE_NAME))?;
        store.disk = Some(disk.clone());
        Ok(store)
    }

    /// This, if it belongs to that member, or to nobody so far.
    fn owned(self, path: PathBuf, cluster: ClusterId, member: u32) -> Result<Store, StoreError> {
        let ours = Owner {
            format: FORMAT,
            cluster,
            member,
        };
        let owner = self.write("to enter the owner", |facts, _| {
            if let Some(owner) = get(facts, OWNER)? {
                return Ok(owner);
            }
            put(facts, OWNER, &ours)?;
            Ok(ours)
        })?;
        if owner.format != FORMAT {
            let got = owner.format;
            return Err(StoreError::OtherFormat { path, got });
        }
        if owner.cluster != cluster {
            return Err(StoreError::OtherCluster {
                path,
                expected: cluster,
                got: owner.cluster,
            });
        }
        if owner.member != member {
            return Err(StoreError::OtherMember {
                path,
                expected: member,
                got: owner.member,
            });
        }
        Ok(self)
    }

    /// Whether this member counts in elections: it does not before it was fed, or founded with the others. See
    /// `founding.rs`.
    pub fn counted(&self) -> Result<bool, StoreError> {
        let counted = self.read("whether the member counts", |facts, _| {
            get::<bool>(facts, COUNTED)
        })?;
        Ok(counted.unwrap_or(false))
    }

    /// From now on it counts.
    pub async fn set_counted(&self) -> Result<(), StoreError> {
        self.writing("to note that the member counts", |facts, _| {
            put(facts, COUNTED, &true)
        })
        .await
    }

    /// The last vote.
    pub fn vote(&self) -> Result<Option<Vote>, StoreError> {
        self.read("the vote", |facts, _| get(facts, VOTE))
    }

    /// The state as it is stored.
    pub fn settled(&self) -> Result<Settled, StoreError> {
        let settled = self.read("the state", |facts, _| get::<Settled>(facts, SETTLED))?;
        Ok(settled.unwrap_or_default())
    }

    /// Tells the simulation what was agreed on.
    #[cfg(test)]
    pub(crate) fn tell_agreed(&self, entries: &[crate::types::Entry]) {
        if let Some(disk) = &self.disk {
            disk.agreed(entries);
        }
    }

    /// The state is durable up to there.
    pub(crate) fn note_settled(&self, last: Option<LogId>) {
        self.settled.send_modify(|settled| *settled = Ok(last));
    }

    /// Nobody writes the state any more.
    pub(crate) fn note_failed(&self) {
        self.settled.send_modify(|settled| *settled = Err(()));
    }

    /// Waits until the state is durable up to there.
    pub(crate) async fn until_settled(
        &self,
        what: &'static str,
        upto: LogId,
    ) -> Result<(), StoreError> {
        #[cfg(test)]
        if self.purges_anything {
            return Ok(());
        }
        let mut settled = self.settled.subscribe();
        let there = settled.wait_for(|settled| settled.is_err() || *settled >= Ok(Some(upto)));
        match there.await.map(|settled| *settled) {
            Ok(Ok(_)) => Ok(()),
            _ => Err(StoreError::Ending { what }),
        }
    }

    /// One look at the file, at one moment.
    pub(crate) fn read<T>(
        &self,
        what: &'static str,
        work: impl FnOnce(&FactsRead, &LogRead) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let failed = |e: redb::Error| redb_error(what, e);
        let transaction = self.database.begin_read().map_err(|e| failed(e.into()))?;
        let facts = transaction
            .open_table(FACTS)
            .map_err(|e| failed(e.into()))?;
        let log = transaction.open_table(LOG).map_err(|e| failed(e.into()))?;
        work(&facts, &log)
    }

    /// One transaction; it is durable when this returns well, and nothing of it is done otherwise.
    pub(crate) fn write<T>(
        &self,
        what: &'static str,
        work: impl FnOnce(&mut FactsWrite<'_>, &mut LogWrite<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let failed = |e: redb::Error| redb_error(what, e);
        let transaction = self.database.begin_write().map_err(|e| failed(e.into()))?;
        let done = {
            let mut facts = transaction
                .open_table(FACTS)
                .map_err(|e| failed(e.into()))?;
            let mut log = transaction.open_table(LOG).map_err(|e| failed(e.into()))?;
            work(&mut facts, &mut log)?
        };
        transaction.commit().map_err(|e| failed(e.into()))?;
        Ok(done)
    }

    /// [`Store::write`] on a thread that may wait for the device.
    pub(crate) async fn writing<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&mut FactsWrite<'_>, &mut LogWrite<'_>) -> Result<T, StoreError>
        + Send
        + 'static,
    ) -> Result<T, StoreError> {
        #[cfg(test)]
        if let Some(disk) = &self.disk {
            return disk.at_work(|| self.write(what, work)).await;
        }
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || store.write(what, work)).await;
        done.map_err(|_| StoreError::Ending { what })?
    }
}

pub(crate) type FactsRead = redb::ReadOnlyTable<&'static str, &'static [u8]>;
pub(crate) type LogRead = redb::ReadOnlyTable<u64, &'static [u8]>;
pub(crate) type FactsWrite<'t> = redb::Table<'t, &'static str, &'static [u8]>;
pub(crate) type LogWrite<'t> = redb::Table<'t, u64, &'static [u8]>;

pub(crate) fn redb_error(what: &'static str, source: impl Into<redb::Error>) -> StoreError {
    StoreError::Redb {
        what,
        source: Box::new(source.into()),
    }
}

/// A fact, if it was ever noted.
pub(crate) fn get<T: DeserializeOwned>(
    facts: &impl ReadableTable<&'static str, &'static [u8]>,
    what: &'static str,
) -> Result<Option<T>, StoreError> {
    let found = facts.get(what).map_err(|e| redb_error(what, e))?;
    found.map(|bytes| decode(what, bytes.value())).transpose()
}

/// Notes a fact.
pub(crate) fn put<T: Serialize>(
    facts: &mut FactsWrite<'_>,
    what: &'static str,
    value: &T,
) -> Result<(), StoreError> {
    let bytes = encode(what, value)?;
    facts
        .insert(what, bytes.as_slice())
        .map_err(|e| redb_error(what, e))?;
    Ok(())
}

pub(crate) fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|source| StoreError::Damaged { what, source })
}

pub(crate) fn decode<T: DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|source| StoreError::Damaged { what, source })
}
