//! A network for a rig's nodes that can be cut: a namespace for each node, and one between them that forwards.
//!
//! Only what every kernel has is used: namespaces, veth pairs, and routing rules that drop. A cut is silent, as a
//! cable's is: packets vanish, and nobody is told.
//!
//! Invariants:
//! - all of it has a name that begins with this fabric's own, and is gone when it is dropped;
//! - clients, in the test's own namespace, have one address behind the same forwarder as the nodes.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::rig;

/// The forwarder's address on each of its links.
const GATEWAY: &str = "169.254.1.1";
/// Last number of the address of clients. Those of nodes are below 128, for one rule to name them all.
const CLIENTS: u32 = 200;

/// Which packets of a node are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Between it and the other nodes, both ways; clients still reach it.
    Nodes,
    /// From it to the other nodes.
    Outward,
    /// From the other nodes to it.
    Inward,
    /// All, to and from clients too.
    All,
}

impl Cut {
    /// Every kind.
    pub const EVERY: [Cut; 4] = [Cut::Nodes, Cut::Outward, Cut::Inward, Cut::All];
}

/// Such a network.
#[derive(Debug)]
pub struct Fabric {
    name: String,
    prefix: String,
    nodes: u32,
}

/// Runs one command; its errors.
fn run(mut command: Command, input: &str) -> Result<(), String> {
    let story = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{story}: {e}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(input.as_bytes())
            .map_err(|e| format!("{story}: {e}"))?;
    }
    let output = child
        .wait_with_output()
        .map_err(|e| format!("{story}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{story}: {}: {}", output.status, errors.trim()))
}

/// `ip -batch -` with these lines, in a namespace or in our own.
fn ip(namespace: Option<&str>, lines: &[String]) -> Result<(), String> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-netns", namespace]);
    }
    command.args(["-batch", "-"]);
    let mut text = lines.join("\n");
    text.push('\n');
    run(command, &text)
}

impl Fabric {
    /// Makes one for `nodes` nodes; why not, where that cannot be done.
    pub fn new(nodes: u32) -> Result<Fabric, String> {
        if !rig::is_root() {
            return Err("network namespaces need root".to_owned());
        }
        assert!(nodes < 100, "a fabric has room for 99 nodes");
        let process = std::process::id();
        // Of 198.18.0.0/15, which is for tests of networks. Another run takes another part of it.
        let mut last = String::new();
        for attempt in 0..8 {
            let part = (process + 37 * attempt) % 512;
            let fabric = Fabric {
                name: format!("ash{part}"),
                prefix: format!("198.{}.{}", 18 + part / 256, part % 256),
                nodes,
            };
            // The forwarder's namespace is what reserves the name: it cannot be made twice.
            let reserve = ip(None, &[format!("netns add {}", fabric.forwarder())]);
            if let Err(error) = reserve {
                std::mem::forget(fabric);
                last = error;
                continue;
            }
            fabric.build()?;
            return Ok(fabric);
        }
        Err(last)
    }

    fn forwarder(&self) -> String {
        format!("{}fab", self.name)
    }

    fn namespace(&self, node: u32) -> String {
        format!("{}n{node}", self.name)
    }

    /// The host part of a node's address, without a port.
    pub fn address(&self, node: u32) -> String {
        format!("{}.{node}", self.prefix)
    }

    fn build(&self) -> Result<(), String> {
        let forwarder = self.forwarder();
        let gateway = format!("{GATEWAY}/32");
        let mut outside = Vec::new();
        let mut inside = vec!["link set lo up".to_owned()];
        let mut link = |port: String, address: String| {
            inside.push(format!("addr add {gateway} dev {port}"));
            inside.push(format!("link set {port} up"));
            inside.push(format!("route add {address}/32 dev {port}"));
        };
        for node in 1..=self.nodes {
            let space = self.namespace(node);
            outside.push(format!("netns add {space}"));
            outside.push(format!(
                "link add n{node} netns {forwarder} type veth peer name eth0 netns {space}"
            ));
            link(format!("n{node}"), self.address(node));
        }
        let ours = format!("{}c", self.name);
        outside.push(format!(
            "link add clients netns {forwarder} type veth peer name {ours}"
        ));
        let clients = self.address(CLIENTS);
        outside.push(format!("addr add {clients}/32 dev {ours}"));
        outside.push(format!("link set {ours} up"));
        outside.push(format!(
            "route add {}.0/25 via {GATEWAY} dev {ours} onlink src {clients}",
            self.prefix
        ));
        link("clients".to_owned(), clients);
        ip(None, &outside)?;
        ip(Some(&forwarder), &inside)?;
        for node in 1..=self.nodes {
            let lines = [
                format!("addr add {}/32 dev eth0", self.address(node)),
                "link set lo up".to_owned(),
                "link set eth0 up".to_owned(),
                format!("route add {GATEWAY} dev eth0 scope link"),
                format!("route add default via {GATEWAY} dev eth0"),
            ];
            ip(Some(&self.namespace(node)), &lines)?;
        }
        let mut forward = Command::new("ip");
        forward.args(["netns", "exec", &forwarder, "sh", "-c"]);
        forward.arg("echo 1 > /proc/sys/net/ipv4/ip_forward");
        run(forward, "")
    }

    /// A command that runs in a node's place.
    pub fn enter(&self, node: u32, command: &Command) -> Command {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.namespace(node)]);
        inside.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }

    fn rules(&self, verb: &str, node: u32, cut: Cut) -> Result<(), String> {
        let one = format!("{}/32", self.address(node));
        let others = format!("{}.0/25", self.prefix);
        let from = |a: &str, b: &str| format!("rule {verb} priority 50 from {a} to {b} blackhole");
        let lines = match cut {
            Cut::Outward => vec![from(&one, &others)],
            Cut::Inward => vec![from(&others, &one)],
            Cut::Nodes => vec![from(&one, &others), from(&others, &one)],
            Cut::All => vec![from(&one, "0/0"), from("0/0", &one)],
        };
        ip(Some(&self.forwarder()), &lines)
    }

    /// Cuts a node off.
    pub fn cut(&self, node: u32, cut: Cut) {
        let done = self.rules("add", node, cut);
        done.unwrap_or_else(|e| panic!("node {node} cannot be cut off: {e}"));
    }

    /// Mends that cut.
    pub fn mend(&self, node: u32, cut: Cut) {
        let done = self.rules("del", node, cut);
        done.unwrap_or_else(|e| panic!("node {node} cannot be joined again: {e}"));
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        let spaces = (1..=self.nodes).map(|node| self.namespace(node));
        for space in spaces.chain([self.forwarder()]) {
            // One that is not there was not made: nothing to undo.
            let _ = ip(None, &[format!("netns del {space}")]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reaches(fabric: &Fabric, from: Option<u32>, to: u32) -> bool {
        use std::net::{TcpStream, ToSocketAddrs};
        let address = format!("{}:7", fabric.address(to));
        match from {
            Some(node) => {
                // Refused is reached: nobody listens there. Silence is not.
                let mut ask = Command::new("bash");
                ask.args([
                    "-c",
                    &format!("exec 2>&1; : </dev/tcp/{}/7", fabric.address(to)),
                ]);
                let mut limited = Command::new("timeout");
                limited
                    .arg("0.5")
                    .arg(ask.get_program())
                    .args(ask.get_args());
                let status = fabric.enter(node, &limited).stdout(Stdio::null()).status();
                status.expect("timeout runs").code() == Some(1)
            }
            None => {
                let address = address.to_socket_addrs().expect("an address").next();
                let limit = std::time::Duration::from_millis(500);
                let result = TcpStream::connect_timeout(&address.expect("one"), limit);
                result.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
            }
        }
    }

    #[test]
    fn a_cut_node_is_unreachable_and_a_mended_one_is_not() {
        let fabric = match Fabric::new(3) {
            Ok(fabric) => fabric,
            Err(why) => {
                eprintln!("NOT TRIED: a network that can be cut: {why}");
                return;
            }
        };
        assert!(reaches(&fabric, None, 1) && reaches(&fabric, Some(1), 2));
        // A refusal comes back from where it was sent to: a cut one way is silence both ways, for TCP.
        for (cut, clients) in [
            (Cut::Nodes, true),
            (Cut::Outward, true),
            (Cut::Inward, true),
            (Cut::All, false),
        ] {
            fabric.cut(1, cut);
            assert!(!reaches(&fabric, Some(1), 2), "{cut:?}");
            assert!(!reaches(&fabric, Some(3), 1), "{cut:?}");
            assert!(reaches(&fabric, Some(2), 3), "{cut:?}");
            assert_eq!(reaches(&fabric, None, 1), clients, "{cut:?}");
            fabric.mend(1, cut);
            assert!(
                reaches(&fabric, Some(1), 2) && reaches(&fabric, Some(3), 1),
                "{cut:?}"
            );
        }
    }
}
