//! Rules of this tree that neither the compiler nor clippy can see.
//!
//! Each rule is a function from the tree to findings; [`RULES`] names them all. A rule has a test
//! with an example that it must catch: a rule that cannot fail is no rule.

mod code;
mod crates;
mod docs;
mod scrub;

use std::fmt;

use crate::tree::Tree;

/// A place where the tree breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which rule.
    pub rule: &'static str,
    /// File, from the root.
    pub path: String,
    /// Line from 1; 0 for the whole file.
    pub line: usize,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}: {} [{}]",
            self.path, self.line, self.message, self.rule
        )
    }
}

type Rule = fn(&Tree, &mut Vec<Finding>);

/// Every rule.
const RULES: &[Rule] = &[
    code::width,
    code::length,
    code::opening,
    code::unfinished,
    code::determinism,
    code::unsafety,
    code::printing,
    code::dead_files,
    crates::names,
    crates::arrows,
    crates::outside,
    crates::lints,
    docs::root_folder,
    docs::code_map,
    docs::format,
    docs::links,
];

/// Runs every rule.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for rule in RULES {
        rule(tree, &mut findings);
    }
    findings
}

/// What a rule finds in a tree of these files: for the rules' own tests.
#[cfg(test)]
fn findings(rule: Rule, files: &[(&str, &str)]) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    rule(&Tree::of(files), &mut found);
    found.into_iter().map(|f| (f.path, f.line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        let tree = Tree::read(&crate::root()).expect("the tree is readable");
        assert!(
            tree.files().len() > 20,
            "read only {} files",
            tree.files().len()
        );
        let findings = check(&tree);
        let list: Vec<String> = findings.iter().map(Finding::to_string).collect();
        assert!(
            findings.is_empty(),
            "{} findings:\n{}",
            list.len(),
            list.join("\n")
        );
    }

    #[test]
    fn a_finding_reads_like_a_compiler_error() {
        let finding = Finding {
            rule: "width",
            path: "layout/src/crc.rs".to_owned(),
            line: 7,
            message: "too wide".to_owned(),
        };
        assert_eq!(finding.to_string(), "layout/src/crc.rs:7: too wide [width]");
    }
}
