//! The S3 gateway of a rig: its root key and first user, its process, and what to type to use it.
//!
//!     gateway/root.key      what secrets are sealed with; readable by its owner alone
//!     gateway/credentials   the first user's key, as the tools of AWS read it; the same
//!     gateway/node.log      what the gateway says
//!     gateway/pid           its process

use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use ashlar_node_client::{Client, ClientOptions};
use ashlar_node_gateway::admin::{Admin, AdminError};
use rustix::process::Signal;

use crate::fail::Fail;
use crate::gateway::{self, REGION};
use crate::output;
use crate::process::{self, Process, Started, State};
use crate::rig::Rig;

/// The first user of a rig.
const USER: &str = "rig";

/// The gateway's folder in a rig.
pub fn folder(rig: &Rig) -> PathBuf {
    rig.dir.join("gateway")
}

/// The gateway's process, as its pid file tells.
pub fn process(rig: &Rig) -> Option<Process> {
    Process::read(&folder(rig).join("pid"))
}

/// How the gateway's process is; none if the rig has no gateway.
pub fn state(rig: &Rig) -> Option<State> {
    rig.file.gateway.as_ref()?;
    Some(process(rig).map_or(State::Dead, |process| process.state()))
}

/// Where the gateway is reached.
pub fn endpoint(rig: &Rig) -> Option<String> {
    Some(format!("http://{}", rig.file.gateway.as_ref()?))
}

fn credentials(rig: &Rig) -> PathBuf {
    folder(rig).join("credentials")
}

/// Makes the gateway's folder and its root key. Part of making a rig.
pub fn create(rig: &Rig) -> Result<(), Fail> {
    let folder = folder(rig);
    std::fs::create_dir(&folder).map_err(Fail::io("cannot make", &folder))?;
    gateway::make_root_key(&folder.join("root.key"))
}

/// Makes the first user, unless that was done.
fn make_user(rig: &Rig, runtime: &tokio::runtime::Runtime) -> Result<(), Fail> {
    let path = credentials(rig);
    if path.exists() {
        return Ok(());
    }
    let root = gateway::root_key(Some(&folder(rig).join("root.key")), None)?;
    let map = rig.map()?;
    let (key, secret) = runtime.block_on(async {
        let what = "the first user of the gateway";
        let client = Client::connect(map, ClientOptions::default()).map_err(Fail::store(what))?;
        let admin = Admin::new(client, root);
        // One of whom the key was lost on the way: it was never told to anybody.
        match admin.remove(USER).await {
            Ok(()) | Err(AdminError::NoUser { .. }) => {}
            Err(error) => return Err(Fail::Refused(format!("{what}: {error}"))),
        }
        let added = admin.add(USER, true).await;
        let (_, key, secret) = added.map_err(|error| Fail::Refused(format!("{what}: {error}")))?;
        Ok((key, secret))
    })?;
    let text = format!(
        "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\nregion = {REGION}\n",
        key.id,
        secret.reveal()
    );
    gateway::write_secret(&path, text.as_bytes())
}

/// Starts the gateway, if the rig has one that does not run. The store has to serve.
pub fn start(
    rig: &Rig,
    runtime: &tokio::runtime::Runtime,
    limit: Duration,
) -> Result<Option<Child>, Fail> {
    let Some(address) = &rig.file.gateway else {
        return Ok(None);
    };
    match state(rig) {
        Some(State::Dead) => {}
        Some(State::Stopped) => {
            output::note("the gateway is stopped: SIGCONT lets it go on");
            return Ok(None);
        }
        _ => return Ok(None),
    }
    make_user(rig, runtime)?;
    let folder = folder(rig);
    let mut args = vec![
        "--cluster".into(),
        rig.dir.clone().into_os_string(),
        "gateway".into(),
        "run".into(),
        "--own-session".into(),
        "--listen".into(),
        address.into(),
        "--root-key-file".into(),
        folder.join("root.key").into_os_string(),
    ];
    if let Some(ownership) = rig.file.object_ownership {
        args.extend(["--object-ownership".into(), ownership.as_str().into()]);
    }
    let mut starting = [process::spawn(0, &folder, &args)?];
    let outcome = process::wait_ready(&mut starting, limit, |_| {})?.pop();
    match outcome {
        Some(Started::Ready) => {}
        Some(Started::Died(how)) => {
            return Err(Fail::Refused(format!("the gateway died: {how}")));
        }
        _ => {
            return Err(Fail::Refused(format!(
                "the gateway does not serve after {} s: see its node.log",
                limit.as_secs()
            )));
        }
    }
    let [starting] = starting;
    Ok(starting.into_child())
}

/// Sends a signal to the gateway, if it runs; gives its process.
pub fn signal(rig: &Rig, signal: Signal) -> Result<Option<Process>, Fail> {
    let Some(process) = process(rig) else {
        return Ok(None);
    };
    let sent = process
        .signal(signal)
        .map_err(Fail::io("cannot signal the process of", &folder(rig)))?;
    Ok(sent.then_some(process))
}

/// Ends the gateway in order, so that nobody asks the nodes while they drain.
pub fn down(rig: &Rig, limit: Duration) -> Result<(), Fail> {
    let Some(process) = signal(rig, Signal::TERM)? else {
        return Ok(());
    };
    // A stopped one hears nothing until it goes on.
    signal(rig, Signal::CONT)?;
    let ended = process
        .wait_dead(limit)
        .map_err(Fail::io("cannot wait for", &folder(rig)))?;
    if !ended {
        // Whoever still waits for it has waited long enough: nothing that it acknowledged is at stake.
        signal(rig, Signal::KILL)?;
    }
    Ok(())
}

/// The gateway in the announcement as JSON.
pub fn json(rig: &Rig) -> serde_json::Value {
    match endpoint(rig) {
        None => serde_json::Value::Null,
        Some(endpoint) => serde_json::json!({
            "endpoint": endpoint, "region": REGION, "credentials": credentials(rig),
            "state": state(rig), "pid": process(rig).map(|process| process.pid),
        }),
    }
}

/// Tells how to use it.
pub fn announce(rig: &Rig) -> Result<(), Fail> {
    let Some(endpoint) = endpoint(rig) else {
        return Ok(());
    };
    let path = credentials(rig);
    let text = std::fs::read_to_string(&path).map_err(Fail::io("cannot read", &path))?;
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(" = "))
            .map_or("", |(_, value)| value)
    };
    output::line(&format!(
        "S3 at {endpoint}, region {REGION}, buckets in the path:"
    ))?;
    for name in ["aws_access_key_id", "aws_secret_access_key"] {
        output::line(&format!("  {name:<22} {}", value(name)))?;
    }
    output::line(&format!(
        "  AWS_SHARED_CREDENTIALS_FILE={} aws --endpoint-url {endpoint} --region {REGION} s3 mb s3://photos",
        path.display()
    ))
}
