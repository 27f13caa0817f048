//! Versions, and objects that are none, written anew where they are: to become a version, with another lock, with
//! something else that is remembered of them.
//!
//! As `node/client/src/versions.rs` and `rename.rs`, and the gateway's `locks` and `tagging`, do it.

use ashlar_cluster_object::{Code, Compose, Making, ObjectError, Put, Rename};
use ashlar_layout::ids::Seq;
use ashlar_layout::lock::Lock;
use ashlar_layout::manifest::{Body, NULL_VERSION, Precondition, VersionTag};
use ashlar_layout::message::ObjectMeta;
use ashlar_tests::history::Key;
use ashlar_tests::shelf::{Id, Need, Rewrite, Tag, What, Why};
use bytes::Bytes;

use crate::client::Running;
use crate::desk::{Desk, Ended, Not};
use crate::story::{BUCKET, key_name, value_of};
use crate::work_versions::{TRIES, attributes, ended, named, need_of, overtaken, tags_of, view};

impl Desk {
    /// Writes what was found anew: with other tags, as a version, or with another lock.
    async fn reseal(
        &self,
        key: Key,
        meta: &ObjectMeta,
        (tags, making): (u64, Making),
    ) -> Result<Id, Not> {
        let (tag, current, why, bypass) = match making {
            Making::Again { tag, current, .. } if meta.tag.is_none() => {
                (tag, current, Why::Keep, false)
            }
            Making::Again { tag, current, .. } => (tag, current, Why::Tags, false),
            Making::Locked {
                tag,
                current,
                bypass,
                ..
            } => {
                let same = meta.tag.is_some_and(|it| it.lock == tag.lock);
                let why = if same { Why::Tags } else { Why::Lock };
                (tag, current, why, bypass)
            }
            Making::Object | Making::Version { .. } => {
                self.wrong("what is written anew is no new object".to_owned());
                return Err(Not::Because(ObjectError::Aborted));
            }
        };
        let found = view(meta);
        let what = What::Rewrite(Rewrite {
            why,
            current,
            found,
            tag: if tag.null { Tag::Null } else { Tag::Own },
            tags,
            lock: tag.lock,
            bypass,
        });
        let value = value_of(&meta.manifest.etag);
        let seal = (meta.manifest.etag, attributes(value, tags));
        let other = (!current).then(|| tag.slot());
        let (common, name) = (self.common.clone(), key_name(key));
        if meta.manifest.body == Body::Inline && meta.manifest.size > 0 {
            let whole = self.inline_of(key, other, meta).await;
            let Ok(Some(whole)) = whole else {
                return Err(Not::Because(overtaken(key)));
            };
            let precondition = match (other, making) {
                (Some(_), _) | (None, Making::Locked { .. }) => Precondition::None,
                (None, _) => Precondition::Version(meta.version),
            };
            let put = Put::new(common, BUCKET, &name, precondition).map(|put| {
                let mut put = put.as_version(making);
                put.describe(seal.0, seal.1);
                put.into()
            });
            let deed = (key, what, need_of(precondition));
            return self.change(deed, put, Some(whole.into())).await;
        }
        let need = match (other, making) {
            (None, Making::Again { .. }) => Need::Entry(meta.version.0),
            _ => Need::None,
        };
        let again = Compose::again(
            common,
            BUCKET,
            &name,
            meta.version,
            meta.manifest.clone(),
            seal,
        );
        let again = again.map(|it| it.as_version(making).into());
        self.change((key, what, need), again, None).await
    }

    /// Makes the current object the `null` version; if that name is another one's that is locked, a version all the
    /// same.
    pub(crate) async fn keep(&self, key: Key, meta: &ObjectMeta) -> Result<Id, Not> {
        let again = |tag| Making::Again {
            tag,
            current: true,
            modified_ms: meta.modified_ms,
        };
        let tags = tags_of(&meta.manifest);
        let as_null = again(VersionTag::of_plain(meta.version));
        match self.reseal(key, meta, (tags, as_null)).await {
            Err(not) if not.code() == Code::Locked => {
                let tag = VersionTag {
                    id: meta.version,
                    ..VersionTag::default()
                };
                let kept = self.reseal(key, meta, (tags, again(tag))).await;
                if kept.is_ok() {
                    self.mark("made a version beside a locked null one");
                }
                kept
            }
            kept => {
                if kept.is_ok() {
                    self.mark("made a version");
                }
                kept
            }
        }
    }

    /// The version that a request is about, and whether it is the current one.
    async fn to_be_changed(
        &self,
        key: Key,
        asked: Option<Seq>,
    ) -> Result<Option<(ObjectMeta, bool)>, Ended> {
        let is_object = |meta: &ObjectMeta| meta.tag.is_none_or(|tag| !tag.marker);
        let current = self.find(key, None).await?.filter(is_object);
        let Some(asked) = asked else {
            return Ok(current.map(|meta| (meta, true)));
        };
        if let Some(meta) = current
            && meta.tag.map_or(NULL_VERSION, VersionTag::slot) == asked
        {
            return Ok(Some((meta, true)));
        }
        let meta = self.find(key, Some(asked)).await?.filter(is_object);
        Ok(meta.map(|meta| {
            let current = meta.tag.is_none();
            (meta, current)
        }))
    }

    /// Gives a version another lock.
    pub(crate) async fn relock(
        &self,
        key: Key,
        asked: Option<Seq>,
        set: impl Fn(Lock) -> Lock,
        bypass: bool,
    ) -> Result<(), Ended> {
        for _ in 0..TRIES {
            let Some((meta, current)) = self.to_be_changed(key, asked).await? else {
                return Ok(());
            };
            let before = named(&meta).lock;
            let lock = set(before);
            if lock == before {
                return Ok(());
            }
            let making = Making::Locked {
                tag: VersionTag {
                    lock,
                    ..named(&meta)
                },
                seen: meta.version,
                current,
                modified_ms: meta.modified_ms,
                bypass,
            };
            let tags = tags_of(&meta.manifest);
            match self.reseal(key, &meta, (tags, making)).await {
                Ok(_) => {
                    self.mark("lock changed");
                    if !current {
                        self.mark("lock of an older version changed");
                    }
                    return Ok(());
                }
                Err(not) => match not.code() {
                    Code::PreconditionFailed | Code::NotFound => {}
                    // Two are the null one: what is current takes the other one's place, or another name.
                    Code::NotKept => {
                        self.make_way(key, Precondition::None).await?;
                    }
                    _ => return Err(ended(not)),
                },
            }
        }
        Ok(())
    }

    /// Has something else remembered of a version, or of what is none.
    pub(crate) async fn retag(&self, key: Key, asked: Option<Seq>, tags: u64) -> Result<(), Ended> {
        for _ in 0..TRIES {
            let Some((meta, current)) = self.to_be_changed(key, asked).await? else {
                return Ok(());
            };
            let done = match meta.tag {
                None => self.retag_plain(key, &meta, tags).await,
                Some(tag) if current => {
                    let making = Making::Again {
                        tag,
                        current,
                        modified_ms: meta.modified_ms,
                    };
                    self.reseal(key, &meta, (tags, making)).await
                }
                Some(tag) => {
                    let making = Making::Locked {
                        tag,
                        seen: meta.version,
                        current,
                        modified_ms: meta.modified_ms,
                        bypass: false,
                    };
                    self.reseal(key, &meta, (tags, making)).await
                }
            };
            match done {
                Ok(_) => {
                    self.mark(match (meta.tag.is_some(), current) {
                        (false, _) => "tags changed in place",
                        (true, true) => "tags of a version changed",
                        (true, false) => "tags of an older version changed",
                    });
                    return Ok(());
                }
                Err(not) => match not.code() {
                    Code::PreconditionFailed | Code::NotFound => {}
                    _ => return Err(ended(not)),
                },
            }
        }
        Ok(())
    }

    async fn retag_plain(&self, key: Key, meta: &ObjectMeta, tags: u64) -> Result<Id, Not> {
        let mut payload = Bytes::new();
        if meta.manifest.body == Body::Inline && meta.manifest.size > 0 {
            match self.inline_of(key, None, meta).await {
                Ok(Some(bytes)) => payload = bytes,
                _ => return Err(Not::Because(overtaken(key))),
            }
        }
        let found = view(meta);
        let what = What::Rewrite(Rewrite {
            why: Why::Tags,
            current: true,
            found,
            tag: Tag::Plain,
            tags,
            lock: Lock::NONE,
            bypass: false,
        });
        let value = value_of(&meta.manifest.etag);
        let seal = (meta.manifest.etag, attributes(value, tags));
        let found = (meta.clone(), payload);
        let again = Rename::again(self.common.clone(), BUCKET, &key_name(key), found, seal);
        let deed = (key, what, Need::None);
        self.change(deed, again.map(Running::from), None).await
    }
}
