//! Rules about Rust files: shape, unfinished work, and calls that a layer must not make.

use super::Finding;
use super::scrub::{lines_with, without_tests, without_text};
use crate::tree::{File, Tree};

/// Widest line of code, in characters. rustfmt breaks most at 100, and lets some things stand out.
const WIDTH_MAX: usize = 110;
/// Widest line of a comment, in characters.
const COMMENT_WIDTH_MAX: usize = 120;
/// Longest Rust file, in lines: beyond this it does more than one thing.
const LINES_MAX: usize = 700;

/// Folders whose code is decisions or bytes: replayed, simulated, model-checked. No clock, no chance, no I/O.
const LOGIC: &[&str] = &["layout/src/", "cluster/", "node/engine/src/"];

/// What logic must not name, and what it takes instead.
const NOT_IN_LOGIC: &[(&str, &str)] = &[
    (
        "Instant::now",
        "the time is an argument: ashlar_layout::time::Instant",
    ),
    (
        "SystemTime",
        "wall time is an argument, in milliseconds since 1970",
    ),
    (
        "std::time::Instant",
        "our own Instant is a number that the driver passes in",
    ),
    ("rand::", "randomness is a seed passed in"),
    ("getrandom", "randomness is a seed passed in"),
    ("std::fs", "logic does no I/O: it returns actions"),
    ("std::net", "logic does no I/O: it returns actions"),
    ("std::process", "logic starts and ends no process"),
    ("std::env", "configuration is an argument"),
    ("std::thread", "logic has no threads"),
    ("thread_local!", "logic has no threads"),
    ("tokio", "logic is synchronous: the driver awaits"),
    ("async fn", "logic is synchronous: the driver awaits"),
    ("RandomState", "iteration order must not depend on chance"),
];

/// Where `unsafe` may stand: the ring and its buffers, and the codec's kernels.
const UNSAFE_ALLOWED: &[&str] = &["node/reactor/", "cluster/codec/src/"];

/// Crates that talk to a person, or to the journal of the system; all others return what they have to say.
const MAY_PRINT: &[&str] = &["tools/", "bench/", "tests/", "node/daemon/"];

/// Lines no wider than they can be read.
pub fn width(tree: &Tree, out: &mut Vec<Finding>) {
    for file in tree.rust() {
        for (index, line) in file.text.lines().enumerate() {
            let width = line.chars().count();
            // A message to a person is searched for whole, so it is not broken over lines.
            let code = line.trim_start();
            let message = code.starts_with("#[error(\"") || code.starts_with('"');
            let max = if code.starts_with("//") {
                COMMENT_WIDTH_MAX
            } else {
                WIDTH_MAX
            };
            if width > max && !message && !line.contains("://") {
                let message = format!("{width} characters wide; at most {max}");
                out.push(finding("width", file, index + 1, message));
            }
            if line.ends_with(' ') || line.contains('\t') && !line.contains('"') {
                out.push(finding(
                    "width",
                    file,
                    index + 1,
                    "trailing space or a tab".to_owned(),
                ));
            }
        }
    }
}

/// Files that can be read in one sitting.
pub fn length(tree: &Tree, out: &mut Vec<Finding>) {
    for file in tree.rust() {
        let lines = file.text.lines().count();
        if lines > LINES_MAX {
            let message = format!("{lines} lines; at most {LINES_MAX}: split it by what it does");
            out.push(finding("length", file, 0, message));
        }
    }
}

/// Each file says first what it is, and its invariants; one of a few lines needs no introduction.
pub fn opening(tree: &Tree, out: &mut Vec<Finding>) {
    for file in tree.rust().filter(|f| f.text.lines().count() > 5) {
        let first = file
            .text
            .lines()
            .find(|line| !line.starts_with("#!") && !line.is_empty());
        if !first.is_some_and(|line| line.starts_with("//!")) {
            let message = "does not open with //!: what is it, and what always holds in it?";
            out.push(finding("opening", file, 1, message.to_owned()));
        }
    }
}

/// Nothing is left for later in the tree: an open end is an issue, or a typed error.
pub fn unfinished(tree: &Tree, out: &mut Vec<Finding>) {
    // Put together here, so that this file does not hold them.
    let marks = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"]].map(|halves| halves.concat());
    let calls = [["dbg", "!"], ["todo", "!"], ["unimplemented", "!"]].map(|halves| halves.concat());
    for file in tree.files() {
        for mark in &marks {
            for line in lines_with(&file.text, mark) {
                out.push(finding(
                    "unfinished",
                    file,
                    line,
                    format!("{mark} is left in the tree"),
                ));
            }
        }
        if file.path.ends_with(".rs") {
            let clean = without_text(&file.text);
            for call in &calls {
                for line in lines_with(&clean, call) {
                    let message = format!("{call} is left in the tree");
                    out.push(finding("unfinished", file, line, message));
                }
            }
        }
    }
}

/// Logic takes time and randomness as arguments, and does no I/O.
pub fn determinism(tree: &Tree, out: &mut Vec<Finding>) {
    for file in tree
        .rust()
        .filter(|f| is_logic(&f.path) && !is_test_only(tree, &f.path))
    {
        let clean = without_tests(&file.text);
        for (word, instead) in NOT_IN_LOGIC {
            for line in lines_with(&clean, word) {
                let message = format!("`{word}` in a logic crate: {instead}");
                out.push(finding("determinism", file, line, message));
            }
        }
    }
}

/// `unsafe` stands only where it is reviewed as such.
pub fn unsafety(tree: &Tree, out: &mut Vec<Finding>) {
    for file in tree.rust() {
        if UNSAFE_ALLOWED
            .iter()
            .any(|prefix| file.path.starts_with(prefix))
        {
            continue;
        }
        for line in lines_with(&without_text(&file.text), "unsafe") {
            let message = "unsafe outside of the reactor and the codec's kernels".to_owned();
            out.push(finding("unsafety", file, line, message));
        }
    }
}

/// Libraries do not print.
pub fn printing(tree: &Tree, out: &mut Vec<Finding>) {
    for file in tree.rust() {
        let talks = MAY_PRINT.iter().any(|prefix| file.path.starts_with(prefix));
        if talks || is_test_only(tree, &file.path) {
            continue;
        }
        let clean = without_tests(&file.text);
        for call in ["println!", "print!", "eprintln!", "eprint!"] {
            for line in lines_with(&clean, call) {
                let message = format!("{call} in a library: return it, or make it a typed error");
                out.push(finding("printing", file, line, message));
            }
        }
    }
}

/// Every source file is reached from its crate's root.
pub fn dead_files(tree: &Tree, out: &mut Vec<Finding>) {
    for file in tree.rust() {
        if file.path.ends_with("/mod.rs") {
            let message = "modules are flat here: name it after its folder".to_owned();
            out.push(finding("dead-files", file, 0, message));
            continue;
        }
        let Some((name, parents)) = declared_by(&file.path) else {
            continue;
        };
        let declared = parents.iter().filter_map(|p| tree.file(p)).any(|parent| {
            declares(&without_text(&parent.text), name)
                || parent.text.contains(&format!("{name}.rs\""))
        });
        if !declared {
            let message = format!(
                "no `mod {name};` in {}: nothing compiles it",
                parents.join(" or ")
            );
            out.push(finding("dead-files", file, 0, message));
        }
    }
}

fn is_logic(path: &str) -> bool {
    LOGIC.iter().any(|prefix| path.starts_with(prefix)) && path.contains("/src/")
}

/// Whether a file is compiled for tests only: it is below a `tests/`, or its `mod` stands under `#[cfg(test)]`.
fn is_test_only(tree: &Tree, path: &str) -> bool {
    if ["/tests/", "/benches/", "/examples/", "/fuzz/"]
        .iter()
        .any(|part| path.contains(part))
    {
        return true;
    }
    let Some((name, parents)) = declared_by(path) else {
        return false;
    };
    let parents: Vec<&File> = parents.iter().filter_map(|p| tree.file(p)).collect();
    let in_tests = |parent: &&File| {
        is_test_only(tree, &parent.path)
            || declares(&without_text(&parent.text), name)
                && !declares(&without_tests(&parent.text), name)
    };
    !parents.is_empty() && parents.iter().all(in_tests)
}

/// The module that a file is, and the files that may declare it; none for the root of a crate.
fn declared_by(path: &str) -> Option<(&str, Vec<String>)> {
    let (folder, inner) = path.split_once("/src/")?;
    if inner == "lib.rs" || inner == "main.rs" || inner.starts_with("bin/") {
        return None;
    }
    let module = inner.trim_end_matches(".rs");
    let (parents, name) = match module.rsplit_once('/') {
        Some((parent, name)) => (vec![format!("{folder}/src/{parent}.rs")], name),
        None => (
            ["lib.rs", "main.rs"]
                .map(|f| format!("{folder}/src/{f}"))
                .to_vec(),
            module,
        ),
    };
    Some((name, parents))
}

fn declares(scrubbed: &str, name: &str) -> bool {
    !lines_with(scrubbed, &format!("mod {name}")).is_empty()
}

fn finding(rule: &'static str, file: &File, line: usize, message: String) -> Finding {
    Finding {
        rule,
        path: file.path.clone(),
        line,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::super::findings;
    use super::*;

    fn at(path: &str, line: usize) -> Vec<(String, usize)> {
        vec![(path.to_owned(), line)]
    }

    #[test]
    fn wide_lines_are_caught() {
        for wide in [
            format!("// {}", "x".repeat(COMMENT_WIDTH_MAX)),
            "x".repeat(WIDTH_MAX + 1),
        ] {
            let file = format!("//! ok\n{wide}\n");
            assert_eq!(
                findings(width, &[("a/src/lib.rs", &file)]),
                at("a/src/lib.rs", 2)
            );
        }
        assert_eq!(
            findings(width, &[("a/src/lib.rs", "//! ok\nlet a; \n")]),
            at("a/src/lib.rs", 2)
        );
        let just = format!("{}\n", "x".repeat(WIDTH_MAX));
        assert_eq!(findings(width, &[("a/src/lib.rs", &just)]), []);
    }

    #[test]
    fn long_files_are_caught() {
        let long = "//\n".repeat(LINES_MAX + 1);
        assert_eq!(
            findings(length, &[("a/src/lib.rs", &long)]),
            at("a/src/lib.rs", 0)
        );
        assert_eq!(
            findings(length, &[("a/src/lib.rs", &"//\n".repeat(LINES_MAX))]),
            []
        );
    }

    #[test]
    fn silent_files_are_caught() {
        assert_eq!(
            findings(
                opening,
                &[("a/src/x.rs", "use std::fmt;\n//! late\n//\n//\n//\n//\n")]
            ),
            at("a/src/x.rs", 1)
        );
        assert_eq!(
            findings(opening, &[("a/src/x.rs", "#![no_main]\n//! What it is.\n")]),
            []
        );
    }

    #[test]
    fn unfinished_work_is_caught() {
        let comment = ["//! ok\n// TO", "DO: later\n"].concat();
        assert_eq!(
            findings(unfinished, &[("a/src/x.rs", &comment)]),
            at("a/src/x.rs", 2)
        );
        let call = ["fn f() { dbg", "!(1); }\n"].concat();
        assert_eq!(
            findings(unfinished, &[("a/src/x.rs", &call)]),
            at("a/src/x.rs", 1)
        );
        let notes = ["# Notes\nFIX", "ME\n"].concat();
        assert_eq!(
            findings(unfinished, &[("NOTES.md", &notes)]),
            at("NOTES.md", 2)
        );
    }

    #[test]
    fn clocks_chance_and_io_in_logic_are_caught() {
        for bad in [
            "let t = Instant::now();",
            "let t = std::time::SystemTime::now();",
            "let r = rand::random::<u64>();",
            "use std::fs::File;",
            "use std::net::TcpStream;",
            "use tokio::io;",
            "pub async fn f() {}",
        ] {
            let text = format!("//! x\n{bad}\n");
            for path in [
                "layout/src/a.rs",
                "cluster/map/src/a.rs",
                "node/engine/src/a.rs",
            ] {
                let found = findings(determinism, &[(path, &text)]);
                assert!(
                    found.contains(&(path.to_owned(), 2)),
                    "{bad} in {path}: {found:?}"
                );
            }
            assert_eq!(
                findings(determinism, &[("node/reactor/src/a.rs", &text)]),
                []
            );
        }
        let in_tests = "//! Instant::now\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
        assert_eq!(findings(determinism, &[("layout/src/a.rs", in_tests)]), []);
        assert_eq!(
            findings(determinism, &[("layout/tests/a.rs", "use std::fs;")]),
            []
        );
    }

    #[test]
    fn unsafe_out_of_place_is_caught() {
        let text = "//! x\nlet a = unsafe { b() };\n";
        assert_eq!(
            findings(unsafety, &[("node/engine/src/a.rs", text)]),
            at("node/engine/src/a.rs", 2)
        );
        assert_eq!(
            findings(unsafety, &[("node/reactor/src/ring.rs", text)]),
            []
        );
        assert_eq!(
            findings(
                unsafety,
                &[("layout/src/a.rs", "// unsafe\n#![deny(unsafe_code)]\n")]
            ),
            []
        );
    }

    #[test]
    fn printing_libraries_are_caught() {
        let text = "fn f() {\n    println!(\"x\");\n}\n";
        assert_eq!(
            findings(printing, &[("node/engine/src/a.rs", text)]),
            at("node/engine/src/a.rs", 2)
        );
        assert_eq!(findings(printing, &[("tools/cli/src/a.rs", text)]), []);
    }

    #[test]
    fn files_that_nothing_compiles_are_caught() {
        let lib = ("layout/src/lib.rs", "mod a;\n// mod b;\n");
        let files = [
            lib,
            ("layout/src/a.rs", ""),
            ("layout/src/b.rs", ""),
            ("layout/src/a/c.rs", ""),
        ];
        let found = findings(dead_files, &files);
        assert_eq!(
            found,
            [
                ("layout/src/b.rs".to_owned(), 0),
                ("layout/src/a/c.rs".to_owned(), 0)
            ]
        );
        assert_eq!(
            findings(dead_files, &[("layout/src/a/mod.rs", "")]),
            at("layout/src/a/mod.rs", 0)
        );
    }
}
