//! Rules about documents: what the root holds, and docs that must keep up with the code.

use super::Finding;
use crate::tree::Tree;

/// What stands at the root, and nothing else: the house of the README, and what cargo and git want there.
const ROOT: &[&str] = &[
    "layout",
    "cluster",
    "node",
    "tools",
    "bench",
    "tests",
    "Cargo.toml",
    "Cargo.lock",
    "LICENSE",
    "README.md",
    "clippy.toml",
    "deny.toml",
    "rust-toolchain.toml",
    "rustfmt.toml",
    ".cargo",
    ".ci",
    ".gitignore",
    ".gitattributes",
    ".editorconfig",
];

/// Files that must be there.
const NEEDED: &[&str] = &[
    "LICENSE",
    "README.md",
    "Cargo.lock",
    ".ci/run",
    "layout/FORMAT.md",
];

/// The root holds only what belongs there.
pub fn root_folder(tree: &Tree, out: &mut Vec<Finding>) {
    let mut strangers: Vec<&str> = tree
        .files()
        .iter()
        .filter_map(|f| f.path.split('/').next())
        .collect();
    strangers.dedup();
    strangers.retain(|name| !ROOT.contains(name));
    strangers.sort_unstable();
    strangers.dedup();
    for name in strangers {
        out.push(finding(
            "root",
            name,
            "does not belong at the root".to_owned(),
        ));
    }
    for needed in NEEDED {
        if tree.file(needed).is_none() {
            out.push(finding("root", needed, "is missing".to_owned()));
        }
    }
}

/// The README's code map names each crate's folder, and states invariants.
pub fn code_map(tree: &Tree, out: &mut Vec<Finding>) {
    let Some(readme) = tree.file("README.md") else {
        return;
    };
    for (folder, _) in tree
        .manifests()
        .filter(|(folder, _)| !folder.ends_with("/fuzz"))
    {
        if !readme.text.contains(&format!("`{folder}`")) {
            let message = format!("the code map does not name `{folder}`");
            out.push(finding("code-map", "README.md", message));
        }
    }
    if !readme.text.contains("**Architecture Invariant:**") {
        let message = "the code map states no **Architecture Invariant:**".to_owned();
        out.push(finding("code-map", "README.md", message));
    }
}

/// FORMAT.md describes the bytes that the code lays out: for every offset that a struct asserts, the section that
/// is called after the struct's file has a row.
pub fn format(tree: &Tree, out: &mut Vec<Finding>) {
    let Some(format) = tree.file("layout/FORMAT.md") else {
        return;
    };
    let sections: Vec<&str> = format.text.split("\n## ").skip(1).collect();
    for file in tree
        .rust()
        .filter(|f| f.path.starts_with("layout/src/") && f.text.contains("offset_of!("))
    {
        let name = file.path.rsplit('/').next().unwrap_or_default();
        let name = name.trim_end_matches(".rs");
        let of_file = |section: &&&str| {
            let heading = section.lines().next().unwrap_or_default();
            heading.to_lowercase().contains(name)
        };
        let rows: Vec<&str> = sections
            .iter()
            .filter(of_file)
            .flat_map(|s| s.lines())
            .collect();
        for (line, field, offset) in asserted_offsets(&file.text) {
            let row = format!("| {offset} |");
            if !rows.iter().any(|r| r.starts_with(&row)) {
                let message = format!(
                    "{field} is at {offset}; layout/FORMAT.md has no such row under a heading with '{name}'"
                );
                let path = file.path.clone();
                out.push(Finding {
                    rule: "format",
                    path,
                    line,
                    message,
                });
            }
        }
    }
}

/// Relative links of documents lead somewhere.
pub fn links(tree: &Tree, out: &mut Vec<Finding>) {
    for file in tree.files().iter().filter(|f| f.path.ends_with(".md")) {
        for (index, line) in file.text.lines().enumerate() {
            for rest in line.split("](").skip(1) {
                let target = rest.split([')', '#']).next().unwrap_or(rest);
                if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                let wanted = resolve(&file.path, target);
                let folder = format!("{wanted}/");
                if !tree
                    .files()
                    .iter()
                    .any(|f| f.path == wanted || f.path.starts_with(&folder))
                {
                    let message = format!("the link to {target} leads nowhere");
                    let path = file.path.clone();
                    out.push(Finding {
                        rule: "links",
                        path,
                        line: index + 1,
                        message,
                    });
                }
            }
        }
    }
}

/// The offsets that const asserts name, as (line, `Struct, field`, offset).
fn asserted_offsets(text: &str) -> Vec<(usize, &str, u64)> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let Some((_, rest)) = line.split_once("assert!(offset_of!(") else {
            continue;
        };
        let Some((field, rest)) = rest.split_once(") == ") else {
            continue;
        };
        let digits = rest
            .split(|c: char| !c.is_ascii_digit())
            .next()
            .unwrap_or_default();
        // An offset that is a constant is asserted by number in the next line, or is not fixed by itself.
        if let Ok(offset) = digits.parse() {
            found.push((index + 1, field, offset));
        }
    }
    found
}

fn resolve(from: &str, target: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

fn finding(rule: &'static str, path: &str, message: String) -> Finding {
    Finding {
        rule,
        path: path.to_owned(),
        line: 0,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::super::findings;
    use super::*;

    #[test]
    fn strangers_at_the_root_are_caught() {
        let mut files: Vec<(&str, &str)> = NEEDED.iter().map(|path| (*path, "")).collect();
        assert_eq!(findings(root_folder, &files), []);
        files.push(("notes/plan.md", ""));
        assert_eq!(findings(root_folder, &files), [("notes".to_owned(), 0)]);
        assert_eq!(
            findings(root_folder, &files[1..5]).len(),
            1,
            "the LICENSE is missing"
        );
    }

    #[test]
    fn a_stale_code_map_is_caught() {
        let readme = "`node/engine` **Architecture Invariant:** no clock.";
        let manifest = ("node/engine/Cargo.toml", "");
        assert_eq!(findings(code_map, &[("README.md", readme), manifest]), []);
        let found = findings(
            code_map,
            &[("README.md", readme), manifest, ("node/s3/Cargo.toml", "")],
        );
        assert_eq!(found, [("README.md".to_owned(), 0)]);
        assert_eq!(
            findings(code_map, &[("README.md", "`node/engine`"), manifest]).len(),
            1
        );
    }

    #[test]
    fn undescribed_bytes_are_caught() {
        let code = "const _: () = assert!(offset_of!(RawFrame, crc) == 4);\n\
            const _: () = assert!(offset_of!(RawFrame, version) == 8);\n";
        let frame = ("layout/src/frame.rs", code);
        let whole = "# F\n\n## Frame\n\n| 4 | 4 | crc | |\n| 8 | 2 | version | |\n\n## Record\n";
        assert_eq!(findings(format, &[("layout/FORMAT.md", whole), frame]), []);
        let stale = "# F\n\n## Frame\n\n| 4 | 4 | crc | |\n\n## Record\n\n| 8 | 2 | x | |\n";
        assert_eq!(
            findings(format, &[("layout/FORMAT.md", stale), frame]),
            [("layout/src/frame.rs".to_owned(), 2)]
        );
    }

    #[test]
    fn dead_links_are_caught() {
        let readme =
            "[a](layout/FORMAT.md) [b](layout)\n[c](layout/GONE.md#x) [d](https://x.org)\n";
        let files = [
            ("README.md", readme),
            ("layout/FORMAT.md", "[up](../README.md) [me](#x)"),
        ];
        assert_eq!(findings(links, &files), [("README.md".to_owned(), 2)]);
    }
}
