//! Trees of files: what is put, and what came back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::content::Random;

/// Every regular file below a folder: path relative to it, and its length. Symbolic links are not followed.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(next) = todo.pop() {
        let entries =
            std::fs::read_dir(&next).unwrap_or_else(|e| panic!("{}: {e}", next.display()));
        for entry in entries {
            let entry = entry.unwrap_or_else(|e| panic!("{}: {e}", next.display()));
            let kind = entry.file_type().expect("readdir gives the kind");
            if kind.is_dir() {
                todo.push(entry.path());
            } else if kind.is_file() {
                let path = entry.path();
                let relative = path
                    .strip_prefix(folder)
                    .expect("below the folder")
                    .to_owned();
                found.insert(relative, entry.metadata().map_or(0, |m| m.len()));
            }
        }
    }
    found
}

/// Copies the regular files of a tree, so that a test's source does not change under it.
pub fn copy(from: &Path, to: &Path) -> BTreeMap<PathBuf, u64> {
    let found = files(from);
    for path in found.keys() {
        let target = to.join(path);
        let folder = target.parent().expect("a file is in a folder");
        std::fs::create_dir_all(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        std::fs::copy(from.join(path), &target)
            .unwrap_or_else(|e| panic!("{}: {e}", target.display()));
    }
    found
}

/// Fails unless both folders hold the same files with the same bytes: `diff -r`, without links.
pub fn assert_same(wanted: &Path, got: &Path) {
    let (a, b) = (files(wanted), files(got));
    let missing: Vec<_> = a.keys().filter(|p| !b.contains_key(*p)).take(5).collect();
    let extra: Vec<_> = b.keys().filter(|p| !a.contains_key(*p)).take(5).collect();
    assert!(
        missing.is_empty(),
        "of {} files some did not come back: {missing:?} …",
        a.len()
    );
    assert!(
        extra.is_empty(),
        "files came back that were never put: {extra:?} …"
    );
    for path in a.keys() {
        assert_same_file(&wanted.join(path), &got.join(path));
    }
}

/// Fails unless both files hold the same bytes.
pub fn assert_same_file(wanted: &Path, got: &Path) {
    let open = |path: &Path| File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (mut a, mut b) = (open(wanted), open(got));
    let lengths = [&a, &b].map(|f| f.metadata().map_or(0, |m| m.len()));
    assert_eq!(
        lengths[0],
        lengths[1],
        "{} and {} differ in length",
        wanted.display(),
        got.display()
    );
    let mut buffers = [vec![0u8; 1 << 20], vec![0u8; 1 << 20]];
    let (mut at, total) = (0u64, lengths[0]);
    while at < total {
        let len = usize::try_from((total - at).min(1 << 20)).unwrap_or(1 << 20);
        a.read_exact(&mut buffers[0][..len])
            .unwrap_or_else(|e| panic!("{}: {e}", wanted.display()));
        b.read_exact(&mut buffers[1][..len])
            .unwrap_or_else(|e| panic!("{}: {e}", got.display()));
        if buffers[0][..len] != buffers[1][..len] {
            let first = buffers[0]
                .iter()
                .zip(&buffers[1])
                .take_while(|(x, y)| x == y)
                .count() as u64;
            panic!(
                "{} and {} differ at byte {}",
                wanted.display(),
                got.display(),
                at + first
            );
        }
        at += len as u64;
    }
}

/// Writes a file of `len` bytes that do not compress or repeat.
pub fn write_random(path: &Path, len: u64, seed: u64) {
    let mut file = File::create(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut random = Random::new(seed);
    let mut left = len;
    let mut buffer = vec![0u8; 1 << 20];
    while left > 0 {
        for word in buffer.chunks_exact_mut(8) {
            word.copy_from_slice(&random.draw().to_le_bytes());
        }
        let part = usize::try_from(left.min(1 << 20)).unwrap_or(1 << 20);
        file.write_all(&buffer[..part])
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        left -= part as u64;
    }
}

/// A tree of `count` files in nested folders, of all sorts of lengths and names.
pub fn write_tree(folder: &Path, count: usize, seed: u64) {
    let mut random = Random::new(seed);
    for i in 0..count {
        let depth = random.below(4);
        let mut path = folder.to_owned();
        for _ in 0..depth {
            path.push(format!("dir {}", random.below(7)));
        }
        std::fs::create_dir_all(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let len = match random.below(20) {
            0 => 0,
            1..=15 => random.below(8 << 10),
            16..=18 => random.below(200 << 10),
            _ => random.below(6 << 20),
        };
        let name = *random.pick(&[
            "plain", "sp ace", "ümläut", "日本", "per%cent", "plus+", "q'uote",
        ]);
        write_random(&path.join(format!("{name}-{i}")), len, random.draw());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_seen() {
        let temp = tempfile::tempdir().expect("a temporary folder");
        let (a, b) = (temp.path().join("a"), temp.path().join("b"));
        write_tree(&a, 30, 7);
        copy(&a, &b);
        assert_same(&a, &b);
        let (victim, _) = files(&b)
            .into_iter()
            .find(|(_, len)| *len > 10)
            .expect("some file");
        let mut bytes = std::fs::read(b.join(&victim)).expect("readable");
        bytes[5] ^= 1;
        std::fs::write(b.join(&victim), bytes).expect("writable");
        let caught = std::panic::catch_unwind(|| assert_same(&a, &b));
        assert!(caught.is_err(), "a flipped bit must be seen");
        std::fs::remove_file(b.join(&victim)).expect("removable");
        let caught = std::panic::catch_unwind(|| assert_same(&a, &b));
        assert!(caught.is_err(), "a missing file must be seen");
    }
}
