//! Users and their keys, made and taken away.
//!
//! Invariants:
//! - a secret is given out once, by what made it, and stands nowhere unsealed;
//! - a key is taken away before its user's document says so: what is not in use any more may still be
//!   listed, and never the other way round;
//! - whoever changes a key, or takes it away, is told so when no gateway goes by what it was before: see
//!   [`crate::kept`];
//! - a key is used only if its user's document listed it when it was there: who makes one looks again.

use ashlar_cluster_s3::policy::{Of, Policy};
use ashlar_cluster_s3::refusal::Refusal;
use ashlar_cluster_s3::system::{USERS, key_key, user_key};
use ashlar_cluster_s3::users::{KEYS_MAX, Key, RootKey, Secret, User};
use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{Etag, Precondition};
use ashlar_layout::names::SYSTEM_BUCKET;
use ashlar_node_client::{Client, ClientError, Code, DeleteOptions, ListOptions};

use crate::directory::{found, owner_etag, read_document, write_document};
use crate::kept::settle;

/// What went wrong with a user.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// There is one of that name.
    #[error("there is a user {name} already")]
    Exists {
        /// The name.
        name: String,
    },
    /// There is none of that name.
    #[error("there is no user {name}")]
    NoUser {
        /// The name.
        name: String,
    },
    /// The user has no such key.
    #[error("the user {name} has no key {id}")]
    NoKey {
        /// The name.
        name: String,
        /// The key's id.
        id: String,
    },
    /// The user has as many keys as there may be.
    #[error("the user {name} has {KEYS_MAX} keys: no more are allowed")]
    KeysMax {
        /// The name.
        name: String,
    },
    /// What was asked for is not allowed, or cannot be read.
    #[error("{detail}")]
    Bad {
        /// Why.
        detail: String,
    },
    /// Others changed the user at the same time.
    #[error("others are changing the user {name}: try again")]
    Busy {
        /// The name.
        name: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] ClientError),
}

impl From<Refusal> for AdminError {
    fn from(refusal: Refusal) -> AdminError {
        AdminError::Bad {
            detail: refusal.message.into_owned(),
        }
    }
}

fn bad(error: impl std::fmt::Display) -> AdminError {
    AdminError::Bad {
        detail: error.to_string(),
    }
}

/// So often a change is tried again that others got in the way of.
const TRIES: usize = 8;

/// Users, for who may do everything.
#[derive(Clone, Debug)]
pub struct Admin {
    client: Client,
    root: RootKey,
}

fn seed<const N: usize>() -> Result<[u8; N], AdminError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(bad)?;
    Ok(bytes)
}

impl Admin {
    /// Of a cluster's users, whose secrets are sealed with `root`.
    pub fn new(client: Client, root: RootKey) -> Admin {
        Admin { client, root }
    }

    async fn find(&self, name: &str) -> Result<(Seq, User), AdminError> {
        let none = || AdminError::NoUser {
            name: name.to_owned(),
        };
        match read_document(&self.client, &user_key(name)).await {
            Ok(Some((meta, bytes))) => Ok((meta.version, User::decode(&bytes).map_err(bad)?)),
            Ok(None) => Err(none()),
            Err(error) if error.code() == Code::NoSuchBucket => Err(none()),
            Err(error) => Err(error.into()),
        }
    }

    async fn write(&self, user: &User, precondition: Precondition) -> Result<(), AdminError> {
        let bytes = user.encode()?;
        let key = user_key(&user.name);
        let etag = owner_etag(&user.canonical());
        let written = write_document(&self.client, &key, bytes, etag, precondition).await;
        match written {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Code::PreconditionFailed => Err(AdminError::Busy {
                name: user.name.clone(),
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Changes a user's document, and then the copies of it in the user's keys.
    async fn change(
        &self,
        name: &str,
        change: impl Fn(&mut User) -> Result<(), AdminError>,
    ) -> Result<User, AdminError> {
        for _ in 0..TRIES {
            let (version, mut user) = self.find(name).await?;
            change(&mut user)?;
            match self.write(&user, Precondition::Version(version)).await {
                Err(AdminError::Busy { .. }) => {}
                Err(error) => return Err(error),
                Ok(()) => return Ok(user),
            }
        }
        Err(AdminError::Busy {
            name: name.to_owned(),
        })
    }

    /// Makes a user with one key. The secret is given out here, and never again.
    pub async fn add(&self, name: &str, admin: bool) -> Result<(User, Key, Secret), AdminError> {
        found(&self.client).await?;
        let mut user = User::new(name, admin, &seed()?).map_err(bad)?;
        let (key, secret) = Key::new(&user, &self.root, &seed()?);
        user.keys.push(key.id.clone());
        match self.write(&user, Precondition::Absent).await {
            Err(AdminError::Busy { name }) => return Err(AdminError::Exists { name }),
            written => written?,
        }
        self.write_key(&key, Precondition::Absent).await?;
        let key = self.settle(key).await?;
        Ok((user, key, secret))
    }

    async fn write_key(&self, key: &Key, precondition: Precondition) -> Result<(), AdminError> {
        let bytes = key.encode()?;
        let at = key_key(&key.id);
        write_document(&self.client, &at, bytes, Etag::NONE, precondition).await?;
        Ok(())
    }

    /// Makes another key of a user.
    pub async fn add_key(&self, name: &str) -> Result<(Key, Secret), AdminError> {
        let (_, user) = self.find(name).await?;
        let (key, secret) = Key::new(&user, &self.root, &seed()?);
        let add = |user: &mut User| {
            if user.keys.len() >= KEYS_MAX {
                return Err(AdminError::KeysMax {
                    name: name.to_owned(),
                });
            }
            user.keys.push(key.id.clone());
            Ok(())
        };
        let mut key = key.clone();
        key.user = self.change(name, add).await?;
        self.write_key(&key, Precondition::Absent).await?;
        let key = self.settle(key).await?;
        Ok((key, secret))
    }

    /// Makes a key that was just written what its user's document says: others may have changed the user, or
    /// taken the user away, before there was a key that they could have changed or taken with it.
    async fn settle(&self, mut key: Key) -> Result<Key, AdminError> {
        let name = key.user.name.clone();
        for _ in 0..TRIES {
            let user = match self.find(&name).await {
                Ok((_, user)) if user.keys.contains(&key.id) => user,
                Err(AdminError::NoUser { .. }) | Ok(_) => {
                    self.revoke(&key.id).await?;
                    return Err(AdminError::NoUser { name });
                }
                Err(error) => return Err(error),
            };
            let of_key = User {
                keys: user.keys.clone(),
                ..key.user.clone()
            };
            if of_key == user {
                return Ok(key);
            }
            key.user = user;
            let found = read_document(&self.client, &key_key(&key.id)).await?;
            // Who takes the user away may have taken it by now.
            let Some((meta, _)) = found else { continue };
            match self
                .write_key(&key, Precondition::Version(meta.version))
                .await
            {
                Err(AdminError::Store(error)) if error.code() == Code::PreconditionFailed => {}
                written => written?,
            }
        }
        self.revoke(&key.id).await?;
        Err(AdminError::Busy { name })
    }

    async fn revoke(&self, id: &str) -> Result<(), AdminError> {
        self.client
            .delete(SYSTEM_BUCKET, &key_key(id), DeleteOptions::default())
            .await?;
        settle().await;
        Ok(())
    }

    /// Takes a key away: from now on no gateway takes it.
    pub async fn remove_key(&self, name: &str, id: &str) -> Result<(), AdminError> {
        let (_, user) = self.find(name).await?;
        if !user.keys.iter().any(|key| key == id) {
            return Err(AdminError::NoKey {
                name: name.to_owned(),
                id: id.to_owned(),
            });
        }
        self.revoke(id).await?;
        let remove = |user: &mut User| {
            user.keys.retain(|key| key != id);
            Ok(())
        };
        self.change(name, remove).await.map(drop)
    }

    /// Takes a user and all of the user's keys away. The user's buckets stay.
    pub async fn remove(&self, name: &str) -> Result<(), AdminError> {
        for _ in 0..TRIES {
            let (version, user) = self.find(name).await?;
            for id in &user.keys {
                self.revoke(id).await?;
            }
            let options = DeleteOptions {
                precondition: Precondition::Version(version),
                ..DeleteOptions::default()
            };
            match self
                .client
                .delete(SYSTEM_BUCKET, &user_key(name), options)
                .await
            {
                Err(error) if error.code() == Code::PreconditionFailed => {}
                deleted => return Ok(deleted.map(drop)?),
            }
        }
        Err(AdminError::Busy {
            name: name.to_owned(),
        })
    }

    /// Gives a user a policy, or none. It holds for the user's keys when this returns.
    pub async fn set_policy(&self, name: &str, policy: Option<&str>) -> Result<(), AdminError> {
        if let Some(text) = policy {
            Policy::parse(text, Of::User)?;
        }
        let set = |user: &mut User| {
            user.policy = policy.map(str::to_owned);
            Ok(())
        };
        let user = self.change(name, set).await?;
        for id in &user.keys {
            let Some((meta, bytes)) = read_document(&self.client, &key_key(id)).await? else {
                continue;
            };
            let mut key = Key::decode(&bytes).map_err(bad)?;
            key.user = user.clone();
            self.write_key(&key, Precondition::Version(meta.version))
                .await?;
        }
        // For keys that somebody else is taking away at the moment, too.
        settle().await;
        Ok(())
    }

    /// All users, by name.
    pub async fn list(&self) -> Result<Vec<User>, AdminError> {
        let (mut users, mut after) = (Vec::new(), String::new());
        loop {
            let options = ListOptions {
                prefix: USERS.to_owned(),
                after,
                ..ListOptions::default()
            };
            let page = match self.client.list(SYSTEM_BUCKET, options).await {
                Err(error) if error.code() == Code::NoSuchBucket => return Ok(users),
                page => page?,
            };
            for entry in page.objects {
                if let Some((_, bytes)) = read_document(&self.client, &entry.key).await? {
                    users.push(User::decode(&bytes).map_err(bad)?);
                }
            }
            match page.next {
                Some(next) => after = next,
                None => return Ok(users),
            }
        }
    }
}
