//! The tree as `tidy` sees it: every file that git tracks or would track, with its text.
//!
//! Held in memory, so that a rule's test can hand it a tree of two bad lines.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file of the tree.
#[derive(Clone, Debug)]
pub struct File {
    /// Its path from the root, with `/`.
    pub path: String,
    /// Its text; empty for a file that is not UTF-8 (golden images).
    pub text: String,
}

/// The files of the workspace.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    files: Vec<File>,
}

/// The tree cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// git did not run, or said no.
    #[error("cannot list the files of {root}: {message}")]
    List {
        /// Where.
        root: PathBuf,
        /// What git said.
        message: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Tree {
    /// Reads what git tracks, and what it would track if it were added now.
    pub fn read(root: &Path) -> Result<Tree, TreeError> {
        let list_error = |message: String| TreeError::List {
            root: root.to_owned(),
            message,
        };
        let output = Command::new("git")
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .current_dir(root)
            .output()
            .map_err(|e| list_error(e.to_string()))?;
        if !output.status.success() {
            return Err(list_error(
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            ));
        }
        let mut files = Vec::new();
        for name in output
            .stdout
            .split(|b| *b == 0)
            .filter(|name| !name.is_empty())
        {
            let path = String::from_utf8_lossy(name).into_owned();
            let full = root.join(&path);
            match std::fs::read(&full) {
                Ok(bytes) => {
                    files.push(File {
                        path,
                        text: String::from_utf8(bytes).unwrap_or_default(),
                    });
                }
                // Tracked, but deleted in the work tree: it is on its way out.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(TreeError::Read { path: full, source }),
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files.dedup_by(|a, b| a.path == b.path);
        Ok(Tree { files })
    }

    /// Every file, by path.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// One file.
    pub fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|f| f.path == path)
    }

    /// The Rust files.
    pub fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|f| f.path.ends_with(".rs"))
    }

    /// The manifests of crates: path of the crate's folder, and the manifest.
    pub fn manifests(&self) -> impl Iterator<Item = (&str, &File)> {
        self.files
            .iter()
            .filter_map(|f| Some((f.path.strip_suffix("/Cargo.toml")?, f)))
    }
}

#[cfg(test)]
impl Tree {
    /// A tree of these files.
    pub fn of(files: &[(&str, &str)]) -> Tree {
        let file = |(path, text): &(&str, &str)| File {
            path: (*path).to_owned(),
            text: (*text).to_owned(),
        };
        Tree {
            files: files.iter().map(file).collect(),
        }
    }
}
