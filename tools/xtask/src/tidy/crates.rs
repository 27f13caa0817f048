//! Rules about crates: their names, and which way their arrows point.
//!
//! tools, bench, tests → node → cluster → layout. A crate that decides cannot even link what acts.

use toml::{Table, Value};

use super::Finding;
use crate::tree::{File, Tree};

/// The layers, lowest first. A crate depends on its own layer and lower ones.
const LAYERS: &[(&str, u8)] = &[
    ("layout", 0),
    ("cluster", 1),
    ("node", 2),
    ("tools", 3),
    ("bench", 3),
    ("tests", 3),
];

/// What a logic crate must not link, whatever it would call in it.
const NOT_FOR_LOGIC: &[&str] = &[
    "async-std",
    "chrono",
    "compio",
    "crossbeam",
    "fastrand",
    "getrandom",
    "glommio",
    "hyper",
    "io-uring",
    "libc",
    "mio",
    "monoio",
    "nix",
    "parking_lot",
    "rand",
    "rayon",
    "reqwest",
    "rustix",
    "smol",
    "socket2",
    "time",
    "tokio",
    "uuid",
];

/// Every crate of the workspace is named after its path.
pub fn names(tree: &Tree, out: &mut Vec<Finding>) {
    for (folder, file) in tree.manifests() {
        let Some(manifest) = parse(file, out) else {
            continue;
        };
        let Some(name) = package_name(&manifest) else {
            continue;
        };
        let wanted = format!("ashlar-{}", folder.replace('/', "-"));
        if name != wanted {
            let message = format!("the crate is called {name}; by its path it is {wanted}");
            out.push(finding("crate-names", file, message));
        }
        if layer(folder).is_none() {
            let message =
                "a crate outside of layout, cluster, node, tools, bench and tests".to_owned();
            out.push(finding("crate-names", file, message));
        }
    }
    let Some(root) = tree.file("Cargo.toml") else {
        return;
    };
    let Some(manifest) = parse(root, out) else {
        return;
    };
    let members = manifest
        .get("workspace")
        .and_then(|w| w.get("members"))
        .and_then(Value::as_array);
    let members: Vec<&str> = members
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (folder, file) in tree.manifests() {
        let own_workspace = parse(file, out).is_some_and(|m| m.contains_key("workspace"));
        if !own_workspace && !members.contains(&folder) {
            out.push(finding(
                "crate-names",
                file,
                "not a member of the workspace".to_owned(),
            ));
        }
    }
}

/// Arrows between crates point down only.
pub fn arrows(tree: &Tree, out: &mut Vec<Finding>) {
    for (folder, file) in tree.manifests() {
        let Some(from) = layer(folder) else { continue };
        let Some(manifest) = parse(file, out) else {
            continue;
        };
        for (section, dependency) in dependencies(&manifest) {
            let Some(to) = layer_of_crate(&dependency) else {
                continue;
            };
            if to > from {
                let message =
                    format!("[{section}] {dependency}: arrows point to lower layers only");
                out.push(finding("arrows", file, message));
            }
        }
    }
}

/// Logic crates link nothing that reads a clock, draws lots or does I/O.
pub fn outside(tree: &Tree, out: &mut Vec<Finding>) {
    for (folder, file) in tree.manifests() {
        let logic = folder == "layout" || folder == "node/engine" || folder.starts_with("cluster/");
        if !logic || folder.ends_with("/fuzz") {
            continue;
        }
        let Some(manifest) = parse(file, out) else {
            continue;
        };
        for (section, dependency) in dependencies(&manifest) {
            if !section.ends_with("dev-dependencies")
                && NOT_FOR_LOGIC.contains(&dependency.as_str())
            {
                let message =
                    format!("[{section}] {dependency}: logic does no I/O and reads no clock");
                out.push(finding("outside", file, message));
            }
        }
    }
}

/// Every crate is under the workspace's lints, and says what it is.
pub fn lints(tree: &Tree, out: &mut Vec<Finding>) {
    for (folder, file) in tree.manifests() {
        if folder.ends_with("/fuzz") {
            continue;
        }
        let Some(manifest) = parse(file, out) else {
            continue;
        };
        let inherits = manifest
            .get("lints")
            .and_then(|l| l.get("workspace"))
            .and_then(Value::as_bool);
        if inherits != Some(true) {
            out.push(finding(
                "lints",
                file,
                "no `[lints] workspace = true`".to_owned(),
            ));
        }
        let package = manifest.get("package");
        if package
            .and_then(|p| p.get("description"))
            .and_then(Value::as_str)
            .is_none_or(str::is_empty)
        {
            out.push(finding("lints", file, "no description".to_owned()));
        }
    }
}

fn layer(folder: &str) -> Option<u8> {
    let top = folder.split('/').next().unwrap_or(folder);
    LAYERS
        .iter()
        .find(|(name, _)| *name == top)
        .map(|(_, layer)| *layer)
}

fn layer_of_crate(name: &str) -> Option<u8> {
    let rest = name.strip_prefix("ashlar-")?;
    layer(rest.split('-').next().unwrap_or(rest))
}

fn package_name(manifest: &Table) -> Option<&str> {
    manifest.get("package")?.get("name")?.as_str()
}

/// Every dependency as (section, name); also those under `[target.…]`.
fn dependencies(manifest: &Table) -> Vec<(String, String)> {
    const SECTIONS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];
    let mut found = Vec::new();
    let mut take = |table: &Table| {
        for section in SECTIONS {
            let names = table
                .get(section)
                .and_then(Value::as_table)
                .into_iter()
                .flatten();
            for (name, value) in names {
                let real = value.get("package").and_then(Value::as_str).unwrap_or(name);
                found.push((section.to_owned(), real.to_owned()));
            }
        }
    };
    take(manifest);
    for (_, target) in manifest
        .get("target")
        .and_then(Value::as_table)
        .into_iter()
        .flatten()
    {
        if let Some(table) = target.as_table() {
            take(table);
        }
    }
    found
}

fn parse(file: &File, out: &mut Vec<Finding>) -> Option<Table> {
    match file.text.parse::<Table>() {
        Ok(table) => Some(table),
        Err(error) => {
            out.push(finding("manifest", file, format!("not TOML: {error}")));
            None
        }
    }
}

fn finding(rule: &'static str, file: &File, message: String) -> Finding {
    Finding {
        rule,
        path: file.path.clone(),
        line: 0,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::super::findings;
    use super::*;

    fn manifest(name: &str, rest: &str) -> String {
        format!(
            "[package]\nname = \"{name}\"\ndescription = \"x\"\n[lints]\nworkspace = true\n{rest}"
        )
    }

    #[test]
    fn wrong_names_are_caught() {
        let good = manifest("ashlar-node-engine", "");
        let bad = manifest("engine", "");
        let root = "[workspace]\nmembers = [\"node/engine\"]\n";
        let path = "node/engine/Cargo.toml";
        assert_eq!(findings(names, &[(path, &good), ("Cargo.toml", root)]), []);
        assert_eq!(
            findings(names, &[(path, &bad), ("Cargo.toml", root)]),
            [(path.to_owned(), 0)]
        );
        let forgotten = "[workspace]\nmembers = []\n";
        assert_eq!(
            findings(names, &[(path, &good), ("Cargo.toml", forgotten)]),
            [(path.to_owned(), 0)]
        );
        let elsewhere = manifest("ashlar-util", "[workspace]");
        assert_eq!(findings(names, &[("util/Cargo.toml", &elsewhere)]).len(), 1);
    }

    #[test]
    fn arrows_that_point_up_are_caught() {
        for (folder, name, dependency) in [
            ("cluster/map", "ashlar-cluster-map", "ashlar-node-engine"),
            ("node/engine", "ashlar-node-engine", "ashlar-tools-cli"),
            ("layout", "ashlar-layout", "ashlar-cluster-map"),
        ] {
            let path = format!("{folder}/Cargo.toml");
            for section in [
                "dependencies",
                "dev-dependencies",
                "target.'cfg(unix)'.dependencies",
            ] {
                let text = manifest(
                    name,
                    &format!("[{section}]\n{dependency}.workspace = true\n"),
                );
                let found = findings(arrows, &[(&path, &text)]);
                assert!(!found.is_empty(), "{folder} -> {dependency} in {section}");
            }
        }
        let down = manifest(
            "ashlar-node-engine",
            "[dependencies]\nashlar-cluster-map.workspace = true\n",
        );
        assert_eq!(findings(arrows, &[("node/engine/Cargo.toml", &down)]), []);
    }

    #[test]
    fn logic_that_links_io_is_caught() {
        let path = "cluster/journal/Cargo.toml";
        let bad = manifest("ashlar-cluster-journal", "[dependencies]\ntokio = \"1\"\n");
        assert_eq!(findings(outside, &[(path, &bad)]), [(path.to_owned(), 0)]);
        let renamed = manifest(
            "ashlar-cluster-journal",
            "[dependencies]\na = { package = \"rand\" }\n",
        );
        assert_eq!(
            findings(outside, &[(path, &renamed)]),
            [(path.to_owned(), 0)]
        );
        let tests_only = manifest(
            "ashlar-cluster-journal",
            "[dev-dependencies]\nrand = \"1\"\n",
        );
        assert_eq!(findings(outside, &[(path, &tests_only)]), []);
    }

    #[test]
    fn crates_out_of_the_lints_are_caught() {
        let bare = "[package]\nname = \"ashlar-tests\"\n";
        assert_eq!(findings(lints, &[("tests/Cargo.toml", bare)]).len(), 2);
        assert_eq!(
            findings(
                lints,
                &[("tests/Cargo.toml", &manifest("ashlar-tests", ""))]
            ),
            []
        );
        assert_eq!(
            findings(lints, &[("tests/Cargo.toml", "[package\n")]).len(),
            1
        );
    }
}
