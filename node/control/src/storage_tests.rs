//! openraft's own test suite on our store, and what it does not ask.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use openraft::storage::{RaftLogStorage, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{CommittedLeaderId, EntryPayload, StorageError};
use redb::Database;
use tempfile::TempDir;

use crate::storage::{Log, Machine};
use crate::store::{FILE_NAME, NEW_NAME, Store, StoreError};
use crate::testing::CLUSTER;
use crate::types::{Entry, LogId, MemberId, Types};

struct Builder;

impl StoreBuilder<Types, Log, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, Log, Machine), StorageError<MemberId>> {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), CLUSTER, 1).unwrap();
        store.purges_anything = true;
        let machine = Machine::open(store.clone()).unwrap();
        Ok((dir, Log::new(store), machine))
    }
}

#[test]
fn the_suite_of_openraft_holds() {
    Suite::test_all(Builder).unwrap();
}

#[test]
fn a_file_belongs_to_one_member_of_one_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), CLUSTER, 1).unwrap();
    let busy = Store::open(dir.path(), CLUSTER, 1).unwrap_err();
    assert!(matches!(busy, StoreError::InUse { .. }), "{busy}");
    drop(store);
    let other = ashlar_layout::ids::ClusterId([1; 16]);
    let error = Store::open(dir.path(), other, 1).unwrap_err();
    assert!(
        matches!(error, StoreError::OtherCluster { got: CLUSTER, .. }),
        "{error}"
    );
    let error = Store::open(dir.path(), CLUSTER, 2).unwrap_err();
    assert!(
        matches!(error, StoreError::OtherMember { got: 1, .. }),
        "{error}"
    );
    Store::open(dir.path(), CLUSTER, 1).unwrap();
}

#[test]
fn a_file_that_is_none_of_ours_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE_NAME), vec![0x5a; 100_000]).unwrap();
    let error = Store::open(dir.path(), CLUSTER, 1).unwrap_err();
    assert!(matches!(error, StoreError::Open { .. }), "{error}");
    // Somebody else's database: ours has an owner of a form of its own.
    let dir = tempfile::tempdir().unwrap();
    let database = Database::create(dir.path().join(FILE_NAME)).unwrap();
    let transaction = database.begin_write().unwrap();
    let table = redb::TableDefinition::<u64, u64>::new("facts");
    transaction.open_table(table).unwrap().insert(1, 2).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = Store::open(dir.path(), CLUSTER, 1).unwrap_err();
    assert!(matches!(error, StoreError::Redb { .. }), "{error}");
}

#[test]
fn a_file_that_was_not_made_whole_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join(NEW_NAME);
    std::fs::write(&new, vec![0; 100_000]).unwrap();
    Store::open(dir.path(), CLUSTER, 1).unwrap();
    assert!(!new.exists());
}

fn id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(1, 1), index)
}

/// openraft asks for both at once when a snapshot is received, of two tasks.
#[tokio::test]
async fn nothing_is_purged_before_what_came_of_it_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), CLUSTER, 1).unwrap();
    let mut machine = Machine::open(store.clone()).unwrap();
    let mut log = Log::new(store.clone());
    let reader = Log::new(store.clone());
    {
        let mut purging = pin!(log.purge(id(3)));
        let mut context = Context::from_waker(Waker::noop());
        assert!(matches!(purging.as_mut().poll(&mut context), Poll::Pending));
        assert!(!reader.holds(id(3)).unwrap());
        let entries = (0..=3).map(|index| Entry {
            log_id: id(index),
            payload: EntryPayload::Blank,
        });
        machine.apply(entries).await.unwrap();
        purging.await.unwrap();
    }
    assert!(reader.holds(id(3)).unwrap());
    assert!(!reader.holds(id(4)).unwrap());
    // With the machine gone it would be waited for in vain.
    drop(machine);
    log.purge(id(5)).await.unwrap_err();
}
