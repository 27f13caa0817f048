//! The command itself, as it is built: what it can do is told, and what it does not know it refuses. Having this test,
//! cargo builds the command along with all tests, and those of rigs drive it.

use std::process::{Command, Output};

fn ashlar(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ashlar"));
    command.args(arguments).output().expect("it starts")
}

/// Subcommands, as a help text lists them, but `help` itself.
fn listed(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    // A text that goes on in another line is set in further.
    let starts = lines.filter(|line| !line.starts_with("   "));
    let names = starts.filter_map(|line| line.split_whitespace().next());
    names
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_command_tells_what_it_does() {
    let help = ashlar(&["--help"]);
    let commands = listed(&String::from_utf8_lossy(&help.stdout));
    for wanted in [
        "node",
        "rig",
        "gateway",
        "put",
        "get",
        "ls",
        "rm",
        "audit",
        "durability",
        "user",
    ] {
        assert!(
            commands.iter().any(|name| name == wanted),
            "{wanted}: {commands:?}"
        );
    }
    for name in commands {
        let help = ashlar(&[&name, "--help"]);
        let text = String::from_utf8_lossy(&help.stdout);
        assert!(
            help.status.success() && text.contains("Usage: ashlar"),
            "{name}: {text}"
        );
        for inner in listed(&text) {
            let help = ashlar(&[&name, &inner, "--help"]);
            assert!(help.status.success(), "{name} {inner}: {help:?}");
        }
    }
}

#[test]
fn what_it_does_not_know_it_refuses() {
    for wrong in [&["no-such-thing"][..], &["get"], &["put", "--no-such-flag"]] {
        let refused = ashlar(wrong);
        assert_eq!(refused.status.code(), Some(2), "{wrong:?}: {refused:?}");
        assert!(
            !refused.stderr.is_empty() && refused.stdout.is_empty(),
            "{wrong:?}: {refused:?}"
        );
    }
}
