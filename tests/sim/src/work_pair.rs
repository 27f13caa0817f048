//! Objects that are put together, copied, made longer and renamed, as the gateway does it (`complete`, `copies`,
//! `append` and `rename` there), with the same operations in the same order.

use ashlar_cluster_object::{Code, Compose, Delete, Look, Making, ObjectError, Put, Rename};
use ashlar_layout::manifest::{Body, Manifest, Precondition};
use ashlar_tests::history::{Key, Value};
use ashlar_tests::shelf::{self, Need, What};
use bytes::Bytes;

use crate::client::Running;
use crate::desk::{self, Desk, Ended, Got, Not};
use crate::story::{BUCKET, etag, key_name, value_of};
use crate::work_flows::If;
use crate::work_versions::{Whole, attributes, need_of, view};

impl Desk {
    /// Puts parts, which do not ride in the journal, and looks what they are made of.
    async fn parts(
        &self,
        value: Value,
        bodies: Vec<(Value, Bytes)>,
    ) -> Result<(Vec<String>, Vec<Manifest>), Ended> {
        let (mut names, mut manifests) = (Vec::new(), Vec::new());
        for (part, bytes) in bodies {
            let name = format!("part/{}/{value:x}/{part:x}", self.client);
            let done = self.part(&name, (part, bytes)).await;
            let Some(manifest) = done else {
                // Somebody else than this client would free what there is by now.
                self.untidy();
                return Err(Ended);
            };
            names.push(name);
            manifests.push(manifest);
        }
        Ok((names, manifests))
    }

    async fn part(&self, name: &str, (part, bytes): (Value, Bytes)) -> Option<Manifest> {
        let put = Put::new(self.common.clone(), BUCKET, name, Precondition::None);
        let mut put = put.expect("a part has a partition");
        put.describe(etag(part), attributes(part, 0));
        let body = desk::Body {
            bytes,
            striped: true,
        };
        let Got::Put(Ok(_)) = self.run(put.into(), Some(body)).await else {
            return None;
        };
        let look = Look::new(self.common.clone(), BUCKET, name, false);
        let look = look.expect("a part has a partition");
        match self.run(look.into(), None).await {
            Got::Look(Ok(found)) => Some(found.meta.manifest),
            _ => None,
        }
    }

    /// Takes the names of parts away, and what they are made of, unless that is another object's by now.
    async fn end_parts(&self, names: Vec<String>, done: &Result<u64, Not>) {
        let taken = match done {
            Ok(_) => true,
            // Their stripes may be the object's.
            Err(Not::Because(error)) if error.is_uncertain() => return self.untidy(),
            Err(_) => false,
        };
        for name in names {
            let delete = Delete::new(self.common.clone(), BUCKET, &name, Precondition::None);
            let delete = delete.expect("a part has a partition");
            let delete = if taken { delete.of_taken() } else { delete };
            if !matches!(self.run(delete.into(), None).await, Got::Delete(Ok(_))) {
                self.untidy();
            }
        }
    }

    /// Puts an object together of parts.
    pub(crate) async fn complete(
        &self,
        (key, value): (Key, Value),
        only: If,
        making: Making,
        parts: [(Value, Bytes); 2],
    ) -> Result<(), Ended> {
        let (names, manifests) = self.parts(value, parts.into()).await?;
        let Ok(precondition) = self.condition(key, only).await else {
            self.end_parts(names, &Err(Not::Because(ObjectError::Aborted)))
                .await;
            return Err(Ended);
        };
        let whole = Whole::Parts(manifests);
        let done = self.put((key, value), precondition, making, whole).await;
        if done.is_ok() {
            self.mark(match (making, precondition) {
                (Making::Version { .. }, _) => "version put together of parts",
                (_, Precondition::None) => "completed",
                _ => "completed under a condition",
            });
        }
        self.end_parts(names, &done).await;
        Ok(())
    }

    /// Puts what stands somewhere else once more.
    pub(crate) async fn copy(
        &self,
        (source, slot): (Key, Option<ashlar_layout::ids::Seq>),
        (key, value): (Key, Value),
        only: If,
        making: Making,
    ) -> Result<(), Ended> {
        let Some((meta, bytes)) = self.get(source, slot).await? else {
            return Ok(());
        };
        self.pieces(value, vec![value_of(&meta.manifest.etag)]);
        let precondition = self.condition(key, only).await?;
        let whole = Whole::Bytes(bytes);
        if self
            .put((key, value), precondition, making, whole)
            .await
            .is_ok()
        {
            self.mark("copied");
        }
        Ok(())
    }

    /// Makes an object longer.
    pub(crate) async fn append(
        &self,
        (key, value): (Key, Value),
        (piece, bytes): (Value, Bytes),
    ) -> Result<(), Ended> {
        let Some(old) = self.find(key, None).await? else {
            // Nothing is as long as that, so there is nothing to append to: it is made.
            let whole = Whole::Bytes(bytes);
            let made = (key, piece);
            let _ = self
                .put(made, Precondition::Absent, Making::Object, whole)
                .await;
            return Ok(());
        };
        if old.tag.is_some() || old.manifest.size > 1 << 20 {
            return Ok(());
        }
        let before = value_of(&old.manifest.etag);
        self.pieces(value, vec![before, piece]);
        let mut bodies = vec![(piece, bytes)];
        let inline = old.manifest.body == Body::Inline && old.manifest.size > 0;
        if inline {
            match self.get(key, None).await? {
                Some((meta, bytes)) if meta.version == old.version => {
                    bodies.insert(0, (before, bytes));
                }
                _ => return Ok(()),
            }
        }
        let (names, manifests) = self.parts(value, bodies).await?;
        let found = (old.version, old.manifest.clone());
        let seal = (etag(value), attributes(value, 0));
        let common = self.common.clone();
        let longer = Compose::longer(common, BUCKET, &key_name(key), found, manifests, seal);
        let what = What::Put {
            value,
            making: shelf::Making::Plain,
        };
        let deed = (key, what, Need::Entry(old.version.0));
        let done = self.change(deed, longer.map(Running::from), None).await;
        if done.is_ok() {
            self.mark(if inline {
                "appended to what was inline"
            } else {
                "appended"
            });
        }
        self.end_parts(names, &done).await;
        Ok(())
    }

    /// Gives an object another key.
    pub(crate) async fn rename(&self, source: Key, key: Key, only: If) -> Result<(), Ended> {
        for _ in 0..8 {
            let found = self.find(source, None).await?;
            let there = self.find(key, None).await?;
            let Some(meta) = found.filter(|it| it.tag.is_none()) else {
                return Ok(());
            };
            let precondition = match (only, there) {
                (If::Same, None) => Precondition::Absent,
                (If::Same, Some(there)) => Precondition::Version(there.version),
                (If::Now(precondition @ (Precondition::Absent | Precondition::Present)), _) => {
                    precondition
                }
                _ => Precondition::None,
            };
            let mut payload = Bytes::new();
            if meta.manifest.body == Body::Inline && meta.manifest.size > 0 {
                match self.get(source, None).await? {
                    Some((now, bytes)) if now.version == meta.version => payload = bytes,
                    _ => continue,
                }
            }
            let seal = (meta.manifest.etag, meta.manifest.attributes.clone());
            let names = (key_name(source), key_name(key));
            let names = (names.0.as_str(), names.1.as_str());
            let what = What::Rename {
                to: key,
                found: view(&meta),
            };
            let common = self.common.clone();
            let rename = Rename::new(common, BUCKET, names, precondition, (meta, payload), seal);
            let deed = (source, what, need_of(precondition));
            match self.change(deed, rename.map(Running::from), None).await {
                Ok(_) => {
                    self.mark("renamed");
                    return Ok(());
                }
                Err(not) => match not.code() {
                    Code::PreconditionFailed => {}
                    Code::Apart => {
                        self.mark("renamed across partitions, which is refused");
                        return Ok(());
                    }
                    _ => return Ok(()),
                },
            }
        }
        Ok(())
    }
}
