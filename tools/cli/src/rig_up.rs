//! `ashlar rig up` and `start`: make a rig's files and map, start its nodes, wait until they serve.

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use ashlar_cluster_map::{Class, ClusterMap, ControlMember, Device, DomainLevel, Domains};
use ashlar_layout::ids::{DeviceNo, NodeId};
use ashlar_layout::limits::STRIPE_DATA;
use ashlar_node_client::{Client, ClientOptions};
use ashlar_node_control::{OutLimits, PartitionLimits};
use ashlar_node_daemon::AuditConfig;
use ashlar_node_daemon::config::{self, CacheMode, Config, ControlConfig, DeviceConfig};
use tokio::signal::unix::{SignalKind, signal};

use crate::device_format::{self, Identity};
use crate::fail::Fail;
use crate::map_new;
use crate::map_spec::{DeviceSpec, NodeSpec, Spec};
use crate::output::{self, human};
use crate::process::{self, Started, State};
use crate::rig::{self, CREATING, Lock, Rig, RigFile, UpArgs, write_whole};
use crate::{rig_files, rig_gateway, rig_status};

const NODES: u32 = 6;
const SIZE: u64 = 2 << 30;
const CONTROL: u32 = 3;
const REPLACE_AFTER: u64 = 30;
const CLASS: Class = Class { k: 4, m: 2 };
/// Bytes of the buffer pool of each node: modest, for many share a machine.
const POOL_BYTES: usize = 32 << 20;
/// Bytes of pages of indexes that each node keeps in memory.
const INDEX_CACHE_BYTES: usize = 32 << 20;

/// Makes or resumes a rig, starts it, and stays with it unless told otherwise.
pub fn up(dir: &Path, args: &UpArgs, json: bool) -> Result<(), Fail> {
    let made = !dir.exists();
    if made {
        std::fs::create_dir_all(dir).map_err(Fail::io("cannot make", dir))?;
    }
    let lock = Lock::take(dir).inspect_err(|_| {
        if made {
            let _ = std::fs::remove_dir(dir);
        }
    })?;
    let rig = match Rig::find(dir)? {
        Some(mut rig) => {
            same(&rig, args)?;
            change(&mut rig, args)?;
            rig
        }
        None => create(dir, args).inspect_err(|_| unmake(dir))?,
    };
    let idle: Vec<u32> = rig
        .nodes()
        .filter(|n| rig.state(*n) == State::Dead)
        .collect();
    for node in rig.nodes().filter(|n| rig.state(*n) == State::Stopped) {
        output::note(&format!(
            "node {node} is stopped: 'ashlar rig cont {node}' lets it go on"
        ));
    }
    let mut starting = spawn(&rig, &idle)?;
    let limit = Duration::from_secs(args.wait);
    let outcome = wait(&mut starting, limit).and_then(|()| serves(&rig, limit));
    let mut children: Vec<(u32, Child)> = starting
        .into_iter()
        .filter_map(|s| Some((s.node, s.into_child()?)))
        .collect();
    let outcome = outcome.and_then(|()| {
        let gateway = rig_gateway::start(&rig, &runtime(&rig)?, limit)?;
        children.extend(gateway.map(|child| (0, child)));
        Ok(())
    });
    if outcome.is_ok() {
        announce(&rig, args.detach, json)?;
    }
    drop(lock);
    if args.detach {
        return outcome;
    }
    if let Err(error) = &outcome {
        error.report();
    }
    stay(&rig, children)?;
    outcome
}

/// Starts dead nodes of a rig that is there.
pub fn start(rig: &Rig, nodes: &[u32], limit: Duration, json: bool) -> Result<(), Fail> {
    let mut idle = Vec::new();
    for node in nodes {
        match rig.state(*node) {
            State::Dead => idle.push(*node),
            State::Running => output::note(&format!("node {node} is running already")),
            State::Stopped => {
                return Err(Fail::Refused(format!(
                    "node {node} is stopped, not dead: 'ashlar rig cont {node}' lets it go on"
                )));
            }
        }
    }
    let mut starting = spawn(rig, &idle)?;
    wait(&mut starting, limit)?;
    if json {
        return output::json(&serde_json::json!({ "started": idle }));
    }
    for node in idle {
        output::line(&format!("node {node} serves"))?;
    }
    Ok(())
}

/// Changes what may be another each time that nodes are started.
fn change(rig: &mut Rig, args: &UpArgs) -> Result<(), Fail> {
    let mut file = rig.file.clone();
    file.audit &= !args.no_audit;
    let audits = [args.audit_pass, args.audit_wait, args.audit_floor];
    file.audit |= audits.iter().any(Option::is_some);
    file.audit_pass = args.audit_pass.or(file.audit_pass);
    file.audit_wait = args.audit_wait.or(file.audit_wait);
    file.audit_floor = args.audit_floor.or(file.audit_floor);
    file.out_after = args.out_after.or(file.out_after);
    file.object_ownership = args.object_ownership.or(file.object_ownership);
    if file != rig.file {
        rig.file = file;
        rig.save()?;
    }
    Ok(())
}

/// Refuses to resume a rig under other parameters than its own.
fn same(rig: &Rig, args: &UpArgs) -> Result<(), Fail> {
    let file = &rig.file;
    let mut differences = Vec::new();
    if let Some(nodes) = args.nodes.filter(|n| *n != file.nodes) {
        differences.push(format!("it has {} nodes, not {nodes}", file.nodes));
    }
    if let Some(size) = args.size.filter(|s| *s != file.size) {
        differences.push(format!(
            "its devices have {}, not {}",
            human(file.size),
            human(size)
        ));
    }
    if let Some(class) = args.class.filter(|c| *c != file.class) {
        differences.push(format!("its class is {}, not {class}", file.class));
    }
    if let Some(zones) = args.zones.filter(|z| *z != file.zones) {
        differences.push(format!("it has {} zones, not {zones}", file.zones));
    }
    if let Some(control) = args.control.filter(|c| *c != file.control) {
        differences.push(format!(
            "it has {} control members, not {control}",
            file.control
        ));
    }
    if args.loops && !file.loops {
        differences.push("its devices are plain files, not loop devices".to_owned());
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(Fail::Refused(format!(
        "the rig in {} cannot be resumed so: {}; leave these out, choose another --dir, or remove it with \
         'ashlar rig wipe'",
        rig.dir.display(),
        differences.join("; ")
    )))
}

/// Takes away what a failed creation has left, so that nobody has to.
fn unmake(dir: &Path) {
    let only_lock = || {
        std::fs::read_dir(dir).is_ok_and(|entries| {
            entries
                .filter_map(Result::ok)
                .all(|entry| entry.file_name() == "lock")
        })
    };
    if dir.join(CREATING).exists() || only_lock() {
        // What made the creation fail is told already; a second `up` tries again.
        let _ = rig::remove(dir);
    }
}

fn create(dir: &Path, args: &UpArgs) -> Result<Rig, Fail> {
    check_folder(dir)?;
    let dir = dir.canonicalize().map_err(Fail::io("cannot find", dir))?;
    let nodes = args.nodes.unwrap_or(NODES);
    let mut file = RigFile {
        version: rig::RIG_VERSION,
        nodes,
        size: args.size.unwrap_or(SIZE),
        class: args.class.unwrap_or(CLASS),
        loops: args.loops,
        zones: args.zones.unwrap_or(1),
        star: args.star,
        index_table: args.index_table,
        journal_keep: args.journal_keep,
        control: args
            .control
            .unwrap_or(if nodes >= CONTROL { CONTROL } else { 1 }),
        replace_after: args.replace_after.unwrap_or(REPLACE_AFTER),
        out_after: args.out_after,
        split_objects: args.split_objects,
        merge_objects: args
            .merge_objects
            .or(args.split_objects.map(|split| split / 8)),
        audit: !args.no_audit,
        audit_pass: args.audit_pass,
        audit_wait: args.audit_wait,
        audit_floor: args.audit_floor,
        gateway: None,
        object_ownership: args.object_ownership,
    };
    if file.control.is_multiple_of(2) || file.control > file.nodes {
        return Err(Fail::Usage(format!(
            "{} control members on {} nodes: it takes an odd number of them, at most one per node",
            file.control, file.nodes
        )));
    }
    if args.loops && !rustix::process::geteuid().is_root() {
        return Err(Fail::Refused(
            "--loop attaches loop devices, which needs root: use sudo, or leave out --loop".into(),
        ));
    }
    device_format::check_size(file.size)?;
    // Solved before anything is written: a class that does not fit costs nothing.
    let map = new_map(&mut file, !args.no_gateway)?;

    std::fs::write(dir.join(CREATING), b"").map_err(Fail::io("cannot write in", &dir))?;
    let rig = Rig { dir, file };
    let mut images = Vec::new();
    for node in rig.nodes() {
        let folder = rig.folder(node);
        std::fs::create_dir(&folder).map_err(Fail::io("cannot make", &folder))?;
        images.push(rig.image(node));
    }
    rig_files::create(&images, rig.file.size, !args.reserve_only)?;
    for device in &map.devices {
        let image = rig.image(device.node.0);
        device_format::format_image(&image, &identity(&map, device))?;
    }
    let map = map.to_json();
    for node in rig.nodes() {
        write_whole(&rig.folder(node).join(crate::locate::MAP_FILE), &map)?;
    }
    write_whole(&rig.dir.join(crate::locate::MAP_FILE), &map)?;
    if rig.file.gateway.is_some() {
        rig_gateway::create(&rig)?;
    }
    rig.save()?;
    let mark = rig.dir.join(CREATING);
    std::fs::remove_file(&mark).map_err(Fail::io("cannot remove", &mark))?;
    Ok(rig)
}

/// The folder must be empty, or hold what is left of a rig that was never finished.
fn check_folder(dir: &Path) -> Result<(), Fail> {
    if dir.join(CREATING).exists() {
        rig::remove(dir)?;
        return std::fs::create_dir_all(dir).map_err(Fail::io("cannot make", dir));
    }
    for entry in std::fs::read_dir(dir).map_err(Fail::io("cannot read", dir))? {
        let name = entry.map_err(Fail::io("cannot read", dir))?.file_name();
        if name != "lock" {
            return Err(Fail::Refused(format!(
                "{} is no rig and not empty (it holds {}): choose another --dir",
                dir.display(),
                Path::new(&name).display()
            )));
        }
    }
    Ok(())
}

fn identity(map: &ClusterMap, device: &Device) -> Identity {
    Identity {
        cluster: map.cluster,
        device: device.id,
        node: device.node,
        no: device.no,
    }
}

/// A free port below the range that the kernel takes for outgoing connections: one from that range could
/// be taken while its node is down.
fn free_port() -> Result<std::net::TcpListener, Fail> {
    const FIRST: u16 = 20_000;
    const PORTS: u16 = 12_000;
    let mut random = [0u8; 2];
    process::random(&mut random)?;
    let start = u16::from_le_bytes(random) % PORTS;
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrInUse);
    for step in 0..PORTS {
        let port = FIRST + (start + step) % PORTS;
        match std::net::TcpListener::bind(("127.0.0.1", port)) {
            Ok(listener) => return Ok(listener),
            Err(e) => last = e,
        }
    }
    Err(Fail::io(
        "cannot find a free port on",
        Path::new("127.0.0.1"),
    )(last))
}

fn new_map(file: &mut RigFile, gateway: bool) -> Result<ClusterMap, Fail> {
    let mut nodes = Vec::new();
    // Each port is held until all are chosen, so that none is chosen twice.
    let mut ports = Vec::new();
    for number in 1..=file.nodes {
        let listener = free_port()?;
        let address = listener.local_addr().map_err(Fail::io(
            "cannot find a free port on",
            Path::new("127.0.0.1"),
        ))?;
        ports.push(listener);
        nodes.push(NodeSpec {
            id: NodeId(number),
            domains: Domains {
                zone: zone(file.zones, number),
                ..Domains::default()
            },
            cores: vec![address.to_string()],
            control: None,
            devices: vec![DeviceSpec {
                no: DeviceNo(number),
                core: 0,
                size: file.size,
            }],
        });
    }
    let spec = Spec {
        class: file.class,
        domain: DomainLevel::Host,
        stripe_data: STRIPE_DATA,
        nodes,
    };
    let mut map = map_new::make(&spec, map_new::random_seed()?)?;
    for number in 1..=file.control {
        let listener = free_port()?;
        let address = listener.local_addr().map_err(Fail::io(
            "cannot find a free port on",
            Path::new("127.0.0.1"),
        ))?;
        ports.push(listener);
        map.control.push(ControlMember {
            id: number,
            address: address.to_string(),
        });
    }
    if gateway {
        let listener = free_port()?;
        let address = listener.local_addr().map_err(Fail::io(
            "cannot find a free port on",
            Path::new("127.0.0.1"),
        ))?;
        ports.push(listener);
        file.gateway = Some(address.to_string());
    }
    map.validate().map_err(Fail::Unsound)?;
    Ok(map)
}

/// The zone of a node; no label where there is only one.
fn zone(zones: u32, node: u32) -> String {
    match zones {
        0 | 1 => String::new(),
        _ => format!("zone-{}", (node - 1) % zones + 1),
    }
}

/// Writes a node's configuration; its loop device may have another number than last time.
fn configure(rig: &Rig, node: u32) -> Result<(), Fail> {
    let image = rig.image(node);
    let path = if rig.file.loops {
        rig_files::attach_loop(&image)?
    } else {
        "device.img".into()
    };
    let table = rig
        .file
        .index_table
        .map(|table| usize::try_from(table).unwrap_or(usize::MAX));
    let (limits, out) = (PartitionLimits::DEFAULT, OutLimits::DEFAULT);
    let audit = AuditConfig::default();
    let floor = rig.file.audit_floor.unwrap_or(audit.floor).max(1);
    let config = Config {
        node: NodeId(node),
        map: crate::locate::MAP_FILE.into(),
        control: (node <= rig.file.control).then(|| ControlConfig {
            id: node,
            dir: "control".into(),
            replace_after_secs: rig.file.replace_after,
            out_after_secs: rig.file.out_after.unwrap_or(out.after.as_secs()),
            away_most: None,
            split_objects: rig.file.split_objects.unwrap_or(limits.split_objects),
            split_requests: limits.split_requests,
            merge_objects: rig.file.merge_objects.unwrap_or(limits.merge_objects),
        }),
        devices: vec![DeviceConfig {
            no: DeviceNo(node),
            path,
            cache: CacheMode::Auto,
            clean_from: None,
        }],
        pool_bytes: POOL_BYTES,
        spin_us: 0,
        star: rig.file.star,
        first_cpu: None,
        index_cache: INDEX_CACHE_BYTES,
        index_table_bytes: table.unwrap_or(config::INDEX_TABLE_BYTES),
        journal_keep_bytes: rig.file.journal_keep.unwrap_or(config::JOURNAL_KEEP_BYTES),
        audit: AuditConfig {
            on: rig.file.audit,
            pass_secs: rig.file.audit_pass.unwrap_or(audit.pass_secs),
            wait_secs: rig.file.audit_wait.unwrap_or(audit.wait_secs),
            floor,
            most: audit.most.max(floor),
            ..audit
        },
    };
    let text = toml::to_string(&config)
        .map_err(|e| Fail::Refused(format!("node.toml cannot be written: {e}")))?;
    write_whole(&rig.folder(node).join("node.toml"), text.as_bytes())
}

fn spawn(rig: &Rig, nodes: &[u32]) -> Result<Vec<process::Starting>, Fail> {
    for node in nodes {
        configure(rig, *node)?;
    }
    nodes
        .iter()
        .map(|node| {
            let folder = rig.folder(*node);
            process::spawn(*node, &folder, &process::node_args(&folder))
        })
        .collect()
}

/// Waits for all; tells of each that did not make it.
fn wait(starting: &mut [process::Starting], limit: Duration) -> Result<(), Fail> {
    let total = starting.len() as u64;
    let progress = output::Progress::things("nodes ready", Some(total));
    let outcomes = process::wait_ready(starting, limit, |_| progress.inc(1))?;
    progress.finish();
    let mut failed = 0;
    for (node, outcome) in starting.iter().zip(outcomes) {
        let number = node.node;
        match outcome {
            Started::Ready => continue,
            Started::Died(how) => output::note(&format!("node {number} died: {how}")),
            Started::Late(status) => output::note(&format!(
                "node {number} runs, but does not serve after {} s{}{status}: see its node.log",
                limit.as_secs(),
                if status.is_empty() { "" } else { ": " }
            )),
        }
        failed += 1;
    }
    if failed == 0 {
        Ok(())
    } else {
        Err(Fail::Some {
            failed,
            total,
            things: "nodes",
        })
    }
}

/// Waits until the journal's chain has a head that serves: nodes that are ready do not make a store
/// before that.
fn serves(rig: &Rig, limit: Duration) -> Result<(), Fail> {
    let map = rig.map()?;
    let runtime = runtime(rig)?;
    let options = ClientOptions {
        unavailable_wait: limit,
        ..ClientOptions::default()
    };
    runtime.block_on(async {
        let what = "the nodes run, but the store does not serve";
        let client = Client::connect(map, options).map_err(Fail::store(what))?;
        client.buckets().await.map(drop).map_err(Fail::store(what))
    })
}

fn runtime(rig: &Rig) -> Result<tokio::runtime::Runtime, Fail> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Fail::io("cannot ask the nodes of", &rig.dir))
}

fn announce(rig: &Rig, detached: bool, json: bool) -> Result<(), Fail> {
    let map = rig.map()?;
    let runtime = runtime(rig)?;
    let rows = runtime.block_on(rig_status::rows(rig, &map))?;
    if json {
        let nodes: Vec<_> = map
            .nodes
            .iter()
            .map(|n| {
                serde_json::json!({
                    "node": n.id,
                    "address": n.cores.first().map(|c| &c.address),
                    "pid": rig.process(n.id.0).map(|p| p.pid),
                })
            })
            .collect();
        return output::json(&serde_json::json!({
            "dir": rig.dir, "map": rig.dir.join(crate::locate::MAP_FILE), "cluster": map.cluster,
            "class": map.class, "head": rig_status::head(&rows), "followers": rig_status::followers(&rows),
            "nodes": nodes, "gateway": rig_gateway::json(rig),
        }));
    }
    output::line(&format!(
        "A store of {} nodes with {} each serves, class {}, in {}",
        rig.file.nodes,
        human(rig.file.size),
        map.class,
        rig.dir.display()
    ))?;
    for node in &map.nodes {
        let row = rows.iter().find(|row| row.node == node.id.0);
        let role = match row.and_then(|row| row.role) {
            Some("head") => "  head of the journal's chain",
            Some(_) => "  follower",
            None => "",
        };
        let pid = rig
            .process(node.id.0)
            .map_or_else(|| "-".to_owned(), |p| p.pid.to_string());
        let address = node.cores.first().map_or("", |c| c.address.as_str());
        let line = format!("  node {:<3} {address:<21} pid {pid:<8}{role}", node.id);
        output::line(line.trim_end())?;
    }
    let default = Path::new(crate::locate::RIG_DIR).canonicalize().ok();
    let here = default.as_deref() == Some(rig.dir.as_path());
    let (cluster, dir) = if here {
        (String::new(), String::new())
    } else {
        (
            format!(" --cluster {}", rig.dir.display()),
            format!(" --dir {}", rig.dir.display()),
        )
    };
    rig_gateway::announce(rig)?;
    output::line("Next:")?;
    output::line(&format!("  ashlar{cluster} mb ashlar://photos"))?;
    output::line(&format!(
        "  ashlar{cluster} put -r /usr/include ashlar://photos/include"
    ))?;
    output::line(&format!("  ashlar{cluster} ls ashlar://photos/include/"))?;
    output::line(&format!("  ashlar rig{dir} status"))?;
    if detached {
        output::line(&format!("  ashlar rig{dir} down"))
    } else {
        output::line("Ctrl-C drains the nodes and ends them.")
    }
}

/// Stays until Ctrl-C or SIGTERM, tells of nodes that die, then ends all in order.
fn stay(rig: &Rig, children: Vec<(u32, Child)>) -> Result<(), Fail> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Fail::io("cannot wait for signals in", &rig.dir))?;
    runtime.block_on(async {
        let listen = |kind| signal(kind).map_err(Fail::io("cannot wait for signals in", &rig.dir));
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut terminate = listen(SignalKind::terminate())?;
        let (dead, mut deaths) = tokio::sync::mpsc::channel(children.len().max(1));
        for (node, mut child) in children {
            let dead = dead.clone();
            // A thread each, that also takes the zombie away: they end with their nodes.
            std::thread::spawn(move || {
                if let Ok(status) = child.wait() {
                    let _ = dead.blocking_send((node, status));
                }
            });
        }
        drop(dead);
        let mut ours = true;
        loop {
            tokio::select! {
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                death = deaths.recv(), if ours => match death {
                    Some((0, status)) => output::note(&format!("the gateway ended: {status}")),
                    Some((node, status)) => output::note(&format!("node {node} ended: {status}")),
                    // All that we started have ended, but others may have started some since.
                    None if rig.nodes().all(|n| rig.state(n) == State::Dead) => return Ok(()),
                    None => ours = false,
                },
            }
        }
        output::note("draining; Ctrl-C again kills the nodes");
        let drain = async {
            let rig = Rig {
                dir: rig.dir.clone(),
                file: rig.file.clone(),
            };
            match tokio::task::spawn_blocking(move || rig::down(&rig)).await {
                Ok(result) => result.map(drop),
                Err(_) => Err(Fail::Refused("the drain panicked".into())),
            }
        };
        tokio::select! {
            result = drain => result,
            _ = interrupt.recv() => rig::kill_all(rig),
        }
    })
}
