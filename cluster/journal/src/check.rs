//! Whether a proposed change makes sense by itself, whatever the state.

use ashlar_layout::crc::crc32;
use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{Body, Manifest, NULL_VERSION, Op, Precondition, Then, VersionTag};
use ashlar_layout::message::ErrorCode;
use ashlar_layout::names::{check_bucket, check_key};

use crate::pending::Refusal;

/// Refuses what must never stand in the journal.
pub(crate) fn op(op: &Op, precondition: Precondition, inline: &[u8]) -> Result<(), Refusal> {
    let bad = |detail: String| Err(Refusal::new(ErrorCode::BadRequest, detail));
    let named = |result: Result<(), ashlar_layout::names::NameError>| {
        result.map_err(|error| Refusal::new(ErrorCode::BadRequest, error.to_string()))
    };
    match op {
        Op::TermStart | Op::Chain { .. } | Op::Split { .. } | Op::Close { .. } => {
            return bad("that change is the head's own".to_owned());
        }
        Op::CreateBucket { bucket } | Op::DeleteBucket { bucket } => {
            named(check_bucket(bucket))?;
            if precondition != Precondition::None {
                return bad("a change of a bucket takes no precondition".to_owned());
            }
        }
        Op::Delete { bucket, key } => {
            named(check_bucket(bucket))?;
            named(check_key(key))?;
        }
        Op::Put {
            bucket,
            key,
            manifest,
        } => {
            named(check_bucket(bucket))?;
            named(check_key(key))?;
            return body(manifest, inline);
        }
        Op::PutVersion {
            bucket,
            key,
            tag,
            current,
            manifest,
            ..
        } => {
            named(check_bucket(bucket))?;
            named(check_key(key))?;
            if tag.id == Seq(0) && !current {
                return bad("a new version that is not the current one".to_owned());
            }
            if tag.id == NULL_VERSION {
                return bad("a version of a name that is a place among versions".to_owned());
            }
            return version(tag, manifest, inline);
        }
        Op::LockVersion {
            bucket,
            key,
            tag,
            manifest,
            ..
        } => {
            named(check_bucket(bucket))?;
            named(check_key(key))?;
            if tag.id == Seq(0) || tag.id == NULL_VERSION {
                return bad("a lock of a version without a name".to_owned());
            }
            if tag.marker {
                return bad("a lock of a marker that there is no object".to_owned());
            }
            return body(manifest, inline);
        }
        Op::Rename {
            bucket,
            key,
            source,
            manifest,
            ..
        } => {
            named(check_bucket(bucket))?;
            named(check_key(key))?;
            named(check_key(source))?;
            if key == source {
                return bad("an object that is to get the key that it has".to_owned());
            }
            return body(manifest, inline);
        }
        Op::Relocate {
            bucket,
            key,
            tag,
            current,
            modified_ms,
            manifest,
            ..
        } => {
            named(check_bucket(bucket))?;
            named(check_key(key))?;
            let nameless = |tag: VersionTag| tag.id == Seq(0) || tag.id == NULL_VERSION;
            if tag.is_some_and(nameless) {
                return bad("stripes of a version without a name".to_owned());
            }
            if tag.is_none() && !current {
                return bad("stripes of what is no version, and not current".to_owned());
            }
            // 0 would be the entry's own time: the object is older.
            if *modified_ms == 0 {
                return bad("an object that is no newer, and has no time".to_owned());
            }
            if tag.is_some() && manifest.body == Body::Inline {
                return bad("stripes of a version that has none".to_owned());
            }
            return body(manifest, inline);
        }
        Op::DropVersion {
            bucket,
            key,
            id,
            then,
            ..
        } => {
            named(check_bucket(bucket))?;
            named(check_key(key))?;
            if *id == Seq(0) {
                return bad("the removal of a version without a name".to_owned());
            }
            if let Then::Version { tag, manifest, .. } = then {
                if tag.id == Seq(0) || tag.id == NULL_VERSION {
                    return bad("a version without a name".to_owned());
                }
                if tag.slot() == *id {
                    return bad("a version that is removed, and current then".to_owned());
                }
                return version(tag, manifest, inline);
            }
        }
    }
    if inline.is_empty() {
        return Ok(());
    }
    bad(format!(
        "{} bytes of payload come with a change that takes none",
        inline.len()
    ))
}

fn version(tag: &VersionTag, manifest: &Manifest, inline: &[u8]) -> Result<(), Refusal> {
    if tag.marker && (manifest.size > 0 || !manifest.attributes.is_empty() || !tag.lock.is_none()) {
        let detail = "a marker that there is no object, with something in it, or locked";
        return Err(Refusal::new(ErrorCode::BadRequest, detail));
    }
    body(manifest, inline)
}

fn body(manifest: &Manifest, inline: &[u8]) -> Result<(), Refusal> {
    let bad = |detail: String| Err(Refusal::new(ErrorCode::BadRequest, detail));
    manifest
        .check()
        .map_err(|error| Refusal::new(ErrorCode::BadRequest, error.to_string()))?;
    let got = inline.len() as u64;
    if manifest.body != Body::Inline {
        if got == 0 {
            return Ok(());
        }
        return bad(format!("{got} bytes inline with a manifest of stripes"));
    }
    if got != manifest.size {
        return bad(format!(
            "{got} bytes inline, the manifest says {}",
            manifest.size
        ));
    }
    let crc = crc32(inline);
    if crc != manifest.crc {
        let expected = manifest.crc;
        return bad(format!(
            "inline payload's CRC is {crc:#010x}, the manifest says {expected:#010x}"
        ));
    }
    Ok(())
}
