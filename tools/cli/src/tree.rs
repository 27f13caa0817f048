//! A tree of files as keys, and keys as a tree of files.
//!
//! Invariants:
//! - symbolic links are followed, but a folder is never entered from within itself: no loop;
//! - what cannot be stored (sockets, devices, links to nothing) is told, once each, and left out;
//! - a key never leads out of the folder that a tree is written to.

use std::fs::{self, ReadDir};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

/// Longest name of a file, in bytes, on the usual filesystems.
const NAME_MAX: usize = 255;

/// What a walk comes upon.
#[derive(Debug)]
pub enum Found {
    /// A file, its size, and its path below the root with `/` between the parts.
    File {
        /// Where it is.
        path: PathBuf,
        /// Its path below the root.
        relative: String,
        /// Bytes.
        size: u64,
    },
    /// Something that is left out, and why.
    Skipped {
        /// Where it is.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// Something that should have been stored and cannot be.
    Failed {
        /// Where it is.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
}

/// Walks a tree, in the order of names.
pub struct Walk {
    /// Folders that are being read, outermost first: name below the root, identity, what is left.
    stack: Vec<Level>,
}

struct Level {
    relative: String,
    identity: (u64, u64),
    names: std::vec::IntoIter<PathBuf>,
}

impl Walk {
    /// Begins at a folder.
    pub fn new(root: &Path) -> io::Result<Walk> {
        let level = level(root, String::new())?;
        Ok(Walk { stack: vec![level] })
    }
}

fn level(path: &Path, relative: String) -> io::Result<Level> {
    let metadata = fs::metadata(path)?;
    let entries: ReadDir = fs::read_dir(path)?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.path());
    }
    names.sort();
    Ok(Level {
        relative,
        identity: (metadata.dev(), metadata.ino()),
        names: names.into_iter(),
    })
}

impl Iterator for Walk {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            let level = self.stack.last_mut()?;
            let Some(path) = level.names.next() else {
                self.stack.pop();
                continue;
            };
            let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
                let why = io::Error::new(io::ErrorKind::InvalidData, "its name is not UTF-8");
                return Some(Found::Failed { path, why });
            };
            let relative = if level.relative.is_empty() {
                name.to_owned()
            } else {
                format!("{}/{name}", level.relative)
            };
            match self.visit(&path, relative) {
                Ok(None) => {}
                Ok(Some(found)) => return Some(found),
                Err(why) => return Some(Found::Failed { path, why }),
            }
        }
    }
}

impl Walk {
    fn visit(&mut self, path: &Path, relative: String) -> io::Result<Option<Found>> {
        let path = path.to_owned();
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == io::ErrorKind::NotFound && path.is_symlink() => {
                return Ok(Some(Found::Skipped {
                    path,
                    why: "a symbolic link to nothing",
                }));
            }
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                return Ok(Some(Found::Skipped {
                    path,
                    why: "a symbolic link that leads to itself",
                }));
            }
            Err(e) => return Err(e),
        };
        let kind = metadata.file_type();
        if kind.is_file() {
            return Ok(Some(Found::File {
                path,
                relative,
                size: metadata.len(),
            }));
        }
        if kind.is_dir() {
            let identity = (metadata.dev(), metadata.ino());
            if self.stack.iter().any(|level| level.identity == identity) {
                let why = "a symbolic link to a folder that it is in itself";
                return Ok(Some(Found::Skipped { path, why }));
            }
            let level = level(&path, relative)?;
            self.stack.push(level);
            return Ok(None);
        }
        let why = if kind.is_socket() {
            "a socket"
        } else if kind.is_fifo() {
            "a named pipe"
        } else {
            "a device"
        };
        Ok(Some(Found::Skipped { path, why }))
    }
}

/// Why a key cannot be a file's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A part of it is empty: it begins or ends with a slash, or has two in a row.
    #[error("its key has an empty part, which no file can have as a name; get it by itself")]
    Empty,
    /// A part is `.` or `..`.
    #[error("its key has '.' or '..' as a part, which would lead elsewhere; get it by itself")]
    Dots,
    /// A part has a zero byte.
    #[error("its key has a zero byte, which no file name can have; get it by itself")]
    Zero,
    /// A part is too long.
    #[error(
        "its key has a part of {got} bytes, longer than the {NAME_MAX} of a file name; get it by itself"
    )]
    Long {
        /// Its bytes.
        got: usize,
    },
}

/// The path of a key below a folder, if there can be one. Never outside of the folder.
pub fn key_path(relative: &str) -> Result<PathBuf, PathError> {
    let mut path = PathBuf::new();
    for part in relative.split('/') {
        match part {
            "" => return Err(PathError::Empty),
            "." | ".." => return Err(PathError::Dots),
            _ if part.contains('\0') => return Err(PathError::Zero),
            _ if part.len() > NAME_MAX => return Err(PathError::Long { got: part.len() }),
            _ => path.push(part),
        }
    }
    debug_assert!(path.components().all(|c| matches!(c, Component::Normal(_))));
    Ok(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_walk_follows_links_and_never_loops() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir(root.join("empty")).unwrap();
        fs::write(root.join("a/b/file"), b"1").unwrap();
        fs::write(root.join("z"), b"22").unwrap();
        symlink("../../z", root.join("a/b/link")).unwrap();
        symlink("..", root.join("a/b/up")).unwrap();
        symlink("a", root.join("again")).unwrap();
        symlink("nowhere", root.join("broken")).unwrap();
        symlink("self", root.join("self")).unwrap();
        let _socket = UnixListener::bind(root.join("socket")).unwrap();
        fs::write(root.join(std::ffi::OsStr::from_bytes(b"\xff")), b"").unwrap();

        let mut files = Vec::new();
        let mut skipped = Vec::new();
        let mut failed = 0;
        for found in Walk::new(root).unwrap() {
            match found {
                Found::File { relative, size, .. } => files.push((relative, size)),
                Found::Skipped { path, .. } => {
                    skipped.push(
                        path.strip_prefix(root)
                            .unwrap()
                            .to_str()
                            .unwrap()
                            .to_owned(),
                    );
                }
                Found::Failed { .. } => failed += 1,
            }
        }
        let want = [
            ("a/b/file", 1),
            ("a/b/link", 2),
            ("again/b/file", 1),
            ("again/b/link", 2),
            ("z", 2),
        ];
        let want: Vec<(String, u64)> = want.iter().map(|(p, s)| ((*p).to_owned(), *s)).collect();
        assert_eq!(files, want);
        assert_eq!(
            skipped,
            ["a/b/up", "again/b/up", "broken", "self", "socket"]
        );
        assert_eq!(failed, 1, "the name that is not UTF-8");
    }

    #[test]
    fn no_key_leads_out_of_the_folder() {
        assert_eq!(key_path("a/b c/ä"), Ok(PathBuf::from("a/b c/ä")));
        assert_eq!(key_path("a..b/..."), Ok(PathBuf::from("a..b/...")));
        for (key, want) in [
            ("/etc/passwd", PathError::Empty),
            ("a//b", PathError::Empty),
            ("a/", PathError::Empty),
            ("../a", PathError::Dots),
            ("a/../../b", PathError::Dots),
            ("./a", PathError::Dots),
            ("a\0b", PathError::Zero),
        ] {
            assert_eq!(key_path(key), Err(want), "{key:?}");
        }
        assert_eq!(
            key_path(&"x".repeat(256)),
            Err(PathError::Long { got: 256 })
        );
    }

    proptest::proptest! {
        #[test]
        fn a_path_of_a_key_has_only_names(key in "[a./\\\\\0é ]{0,12}") {
            if let Ok(path) = key_path(&key) {
                proptest::prop_assert!(path.components().all(|c| matches!(c, Component::Normal(_))));
                proptest::prop_assert_eq!(path.to_str(), Some(key.as_str()));
            }
        }
    }
}
