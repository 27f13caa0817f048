//! S3's clients: a Python with boto3, pointed at the gateways of a rig.
//!
//! Invariant: what the scripts in `tests/s3` find wrong is the test's report.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::binary;
use crate::history::{Condition, History, Kind, Listing, Operation, Outcome};
use crate::rig::Rig;

/// What names a Python that has boto3.
pub const PYTHON: &str = "ASHLAR_S3_PYTHON";

/// What names a folder for S3's clients.
pub const CLIENTS: &str = "ASHLAR_S3_CLIENTS";

/// A Python that has boto3; says so, if there is none.
pub fn python() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(PYTHON) {
        // Whoever names one means it.
        return Some(path.into());
    }
    let has = Command::new("python3")
        .args(["-c", "import boto3"])
        .stderr(Stdio::null())
        .status();
    if has.is_ok_and(|status| status.success()) {
        return Some("python3".into());
    }
    eprintln!(
        "skipped: S3's clients (no python3 with boto3: install .ci/requirements-s3.txt, and name it by {PYTHON})"
    );
    None
}

/// Where the clients are kept that `clients.py` installs; says so, if nobody names a place.
pub fn clients() -> Option<PathBuf> {
    let cache = std::env::var_os(CLIENTS);
    if cache.is_none() {
        eprintln!(
            "skipped: the clients that people use (about 200 MB of them come from PyPI: name a folder for them by {CLIENTS})"
        );
    }
    cache.map(PathBuf::from)
}

/// A gateway beside the rig's own.
pub struct Gateway {
    child: Child,
    /// Where it is reached.
    pub endpoint: String,
}

impl Gateway {
    /// Starts one.
    pub fn start(rig: &Rig) -> Gateway {
        let mut child = rig
            .command(&["gateway", "run", "--listen", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("a gateway does not start: {e}"));
        let stderr = child.stderr.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(stderr)
            .read_line(&mut line)
            .expect("a gateway's log is text");
        let endpoint = line
            .split_whitespace()
            .find(|word| word.starts_with("http://"));
        let endpoint = endpoint.map(str::to_owned);
        Gateway {
            child,
            endpoint: endpoint.unwrap_or_else(|| panic!("a gateway says {line:?}")),
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the rig's own gateway is reached.
pub fn endpoint(rig: &Rig) -> String {
    let status: serde_json::Value =
        serde_json::from_str(&rig.rig(&["status", "--json"])).expect("the status is JSON");
    let endpoint = status["gateway"]["endpoint"].as_str();
    endpoint.expect("a rig with a gateway").to_owned()
}

/// The same, as an address.
pub fn address(rig: &Rig) -> SocketAddr {
    let endpoint = endpoint(rig);
    let address = endpoint.trim_start_matches("http://").parse();
    address.unwrap_or_else(|e| panic!("the rig's endpoint is {endpoint}: {e}"))
}

fn credentials_file(rig: &Rig) -> PathBuf {
    rig.dir().join("gateway").join("credentials")
}

/// Key and secret of the rig's first user.
pub fn credentials(rig: &Rig) -> (String, String) {
    let path = credentials_file(rig);
    let text = std::fs::read_to_string(&path);
    let text = text.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let value = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        let found = lines.find(|(key, _)| key.trim() == name);
        let (_, value) = found.unwrap_or_else(|| panic!("{}: no {name}", path.display()));
        value.trim().to_owned()
    };
    (value("aws_access_key_id"), value("aws_secret_access_key"))
}

/// The pid of the rig's own gateway.
pub fn pid(rig: &Rig) -> rustix::process::Pid {
    let status: serde_json::Value =
        serde_json::from_str(&rig.rig(&["status", "--json"])).expect("the status is JSON");
    let pid = status["gateway"]["pid"].as_i64();
    let pid = pid.and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
    pid.expect("a gateway that runs")
}

/// One of the scripts in `tests/s3`, as the rig's first user.
pub fn script(rig: &Rig, python: &Path, name: &str) -> Command {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("s3");
    let mut command = Command::new(python);
    command
        .arg("-B")
        .arg(folder.join(name))
        .arg(endpoint(rig))
        .env("AWS_SHARED_CREDENTIALS_FILE", credentials_file(rig))
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .env_remove("AWS_PROFILE")
        .stdin(Stdio::null());
    command
}

/// Runs a script, which must find nothing wrong.
pub fn run(mut command: Command) {
    eprintln!("the command is {}", binary::ashlar().display());
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("Python does not start: {e}"));
    let out = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}\n{out}\n{errors}",
        output.status
    );
    eprintln!("{out}");
}

/// What `tests/s3/history.py` wrote down. Its operations have no versions.
pub fn history(log: &Path) -> History {
    let text = std::fs::read_to_string(log).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
    let mut history = History::default();
    for line in text.lines() {
        let told: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        if let Some(wrong) = told["wrong"].as_str() {
            history.wrong.push(wrong.to_owned());
        } else if told["shown"].is_array() {
            history.listings.push(listing(&told));
        } else {
            history.operations.push(operation(&told));
        }
    }
    history
}

fn number(told: &Value, name: &str) -> u64 {
    told[name]
        .as_u64()
        .unwrap_or_else(|| panic!("no {name}: {told}"))
}

fn small(told: &Value, name: &str) -> u32 {
    u32::try_from(number(told, name)).unwrap_or_else(|e| panic!("{name}: {e}: {told}"))
}

fn listing(told: &Value) -> Listing {
    let shown = told["shown"].as_array().into_iter().flatten();
    let shown = shown.filter_map(|key| u32::try_from(key.as_u64()?).ok());
    Listing {
        invoke: number(told, "invoke"),
        ret: number(told, "ret"),
        from: small(told, "begin"),
        to: (!told["end"].is_null()).then(|| small(told, "end")),
        shown: shown.map(|key| (key, 0)).collect(),
    }
}

fn operation(told: &Value) -> Operation {
    let condition = match &told["condition"] {
        Value::Null => Condition::None,
        Value::String(absent) if absent == "absent" => Condition::Absent,
        _ => Condition::Is(number(told, "condition")),
    };
    let kind = match told["kind"].as_str() {
        Some("get") => Kind::Get,
        Some("put") => Kind::Put(number(told, "value")),
        Some("delete") => Kind::Delete,
        _ => panic!("no operation: {told}"),
    };
    let outcome = match told["outcome"].as_str() {
        Some("done") => Outcome::Done,
        Some("unmet") => Outcome::Unmet,
        Some("found") => Outcome::Found(number(told, "value")),
        Some("absent") => Outcome::Absent,
        Some("refused") => Outcome::Refused,
        Some("unknown") => Outcome::Unknown,
        _ => panic!("no outcome: {told}"),
    };
    Operation {
        client: small(told, "client"),
        key: small(told, "key"),
        kind,
        condition,
        outcome,
        version: 0,
        invoke: number(told, "invoke"),
        ret: number(told, "ret"),
    }
}
