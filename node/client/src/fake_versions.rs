//! The fake cluster's objects and versions: what is current, and what was.

use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{Manifest, Precondition, VersionTag};
use ashlar_layout::message::{ErrorCode, ObjectMeta};
use bytes::Bytes;

use crate::fake::Store;

impl Store {
    /// Makes an object, or a version that is current then; gives what is to be freed.
    pub(crate) fn make(
        &mut self,
        name: (String, String),
        precondition: Precondition,
        tag: Option<VersionTag>,
        (manifest, payload): (Manifest, Bytes),
    ) -> Result<Option<Manifest>, ErrorCode> {
        let seq = Seq(self.seq + 1);
        let again = tag.is_some_and(|tag| tag.id != Seq(0));
        if again && std::mem::take(&mut self.overtakes) {
            // Somebody else's plain put, just before.
            if let Some((meta, _)) = self.objects.get_mut(&name) {
                meta.version = seq;
                self.seq += 1;
            }
            return Err(ErrorCode::PreconditionFailed);
        }
        let held = self.objects.get(&name).map(|(meta, _)| meta);
        let there = held.filter(|meta| meta.tag.is_none_or(|tag| !tag.marker));
        let known = held.map(|meta| meta.version);
        let holds = match precondition {
            Precondition::None => true,
            Precondition::Absent => there.is_none(),
            Precondition::Present => there.is_some(),
            Precondition::Version(version) => known == Some(version),
        };
        if !holds {
            return Err(ErrorCode::PreconditionFailed);
        }
        let plain = held.is_some_and(|meta| meta.tag.is_none());
        let kept = self
            .versions
            .iter()
            .any(|(meta, _)| meta.tag.is_some_and(|tag| tag.null));
        if tag.is_some_and(|tag| !again && plain && (!tag.null || kept)) {
            return Err(ErrorCode::NotKept);
        }
        let tag = tag.map(|tag| VersionTag {
            id: if again { tag.id } else { seq },
            ..tag
        });
        let meta = ObjectMeta {
            version: seq,
            modified_ms: 5,
            manifest,
            tag,
        };
        let before = self.objects.insert(name, (meta, payload));
        Ok(match before {
            None => None,
            Some((before, _)) if tag.is_none() => Some(before.manifest),
            // It is the same.
            Some(_) if again => None,
            Some(before) => {
                self.versions.push(before);
                None
            }
        })
    }

    /// Removes what is current, with nothing behind it; gives what is to be freed.
    pub(crate) fn drop_current(
        &mut self,
        name: &(String, String),
        precondition: Precondition,
    ) -> Result<Option<Manifest>, ErrorCode> {
        if std::mem::take(&mut self.overtakes) {
            // Somebody else's plain put, just before.
            self.seq += 1;
            if let Some((meta, _)) = self.objects.get_mut(name) {
                meta.version = Seq(self.seq);
            }
        }
        let held = self.objects.get(name).map(|(meta, _)| meta.version);
        if held.map(Precondition::Version) != Some(precondition) {
            return Err(ErrorCode::PreconditionFailed);
        }
        Ok(self.objects.remove(name).map(|(meta, _)| meta.manifest))
    }
}
