//! What a person writes to have a cluster map made: hosts, devices, fault domains, in TOML.
//!
//! Invariants:
//! - a field that is not known is refused, so that a misspelt one is not a default;
//! - what [`Spec::read`] gives has been checked: numbers are unique, every device has a core, every address can
//!   be one, every node has the labels that the fault-domain rule goes by.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv6Addr;
use std::path::Path;

use ashlar_cluster_map::{CONTROL_MAX, Class, DomainLevel, Domains};
use ashlar_layout::ids::{DeviceNo, NodeId};
use ashlar_layout::limits::{DEVICE_SIZE_MIN, STRIPE_DATA};
use ashlar_layout::superblock::{LABEL_MAX, Label};
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use crate::fail::Fail;
use crate::output::parse_size;

/// A cluster that is to be.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Durability class.
    pub class: Class,
    /// The level of the fault domains that shards are kept apart by.
    #[serde(default)]
    pub domain: DomainLevel,
    /// Bytes of data in a full stripe.
    #[serde(default = "stripe_data", deserialize_with = "stripe_size")]
    pub stripe_data: u32,
    /// Its nodes.
    #[serde(default, rename = "node")]
    pub nodes: Vec<NodeSpec>,
}

/// A node that is to be.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    /// Its number, from 1.
    pub id: NodeId,
    /// Where it stands.
    #[serde(default, deserialize_with = "domains")]
    pub domains: Domains,
    /// The addresses of its cores, in order, each `host:port`.
    pub cores: Vec<String>,
    /// Where it listens as a member of the control plane, `host:port`; none: it is no member. Its number as a member is
    /// that of the node.
    #[serde(default)]
    pub control: Option<String>,
    /// Its devices.
    #[serde(default, rename = "device")]
    pub devices: Vec<DeviceSpec>,
}

/// A device that is to be.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSpec {
    /// Its number, from 1, unique in the cluster.
    pub no: DeviceNo,
    /// Index of the core that owns it, from 0.
    #[serde(default)]
    pub core: u32,
    /// Bytes: at most what the device has.
    #[serde(deserialize_with = "size")]
    pub size: u64,
}

/// What is wrong with a spec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Not TOML, or not a spec.
    #[error("{0}")]
    Parse(String),
    /// A number that is none.
    #[error("a {what} has the number 0: numbers start at 1")]
    Zero {
        /// Of what.
        what: &'static str,
    },
    /// Two nodes with one number.
    #[error("two nodes have the id {0}")]
    TwoNodes(NodeId),
    /// Two devices with one number.
    #[error("two devices have the no {0}: numbers of devices are unique in the whole cluster")]
    TwoDevices(DeviceNo),
    /// Two cores in one place.
    #[error(
        "two cores have the address {0}: each core, and each member of the control plane, has a port of its own"
    )]
    TwoCores(String),
    /// Nobody could connect there.
    #[error("node {node}: '{address}' is not an address to listen at: {why}")]
    BadAddress {
        /// Whose.
        node: NodeId,
        /// What was given.
        address: String,
        /// Which rule.
        why: &'static str,
    },
    /// Members that could come to a tie, or are too many.
    #[error(
        "{0} nodes have a control = \"host:port\": it takes an odd number of them, {CONTROL_MAX} at the most; with three \
         one may be away, with five two"
    )]
    Members(usize),
    /// A node that listens nowhere.
    #[error("node {0} has no core: it takes cores = [\"host:port\"]")]
    NoCore(NodeId),
    /// A node that stores nothing.
    #[error("node {0} has no [[node.device]]")]
    NoDevice(NodeId),
    /// A device whose core is not there.
    #[error("device {device} is for core {core}, and node {node} has {cores}: they count from 0")]
    CoreMissing {
        /// Which device.
        device: DeviceNo,
        /// Of which node.
        node: NodeId,
        /// Which core it names.
        core: u32,
        /// How many there are.
        cores: usize,
    },
    /// A core that would have nothing to do.
    #[error("core {core} of node {node} owns no device: leave its address out, or give it one")]
    CoreIdle {
        /// Of which node.
        node: NodeId,
        /// Which core.
        core: usize,
    },
    /// A device that could not be formatted.
    #[error("device {device} has {size} bytes, and the least is {DEVICE_SIZE_MIN}")]
    DeviceSize {
        /// Which device.
        device: DeviceNo,
        /// Its size.
        size: u64,
    },
    /// More space than a number of it can say.
    #[error("the devices together have more bytes than can be counted")]
    TooLarge,
    /// A stripe of no size that could be.
    #[error("stripe_data is {0} bytes: it takes 1 to {max}", max = u32::MAX)]
    Stripe(u64),
    /// A label that the rule goes by is missing.
    #[error(
        "node {node} has no domains.{level}, and domain = \"{level}\" keeps shards apart by it"
    )]
    NoLabel {
        /// Which node.
        node: NodeId,
        /// Which label.
        level: &'static str,
    },
    /// A label that does not fit into a superblock.
    #[error("node {node}: domains.{level} is longer than {LABEL_MAX} bytes")]
    LongLabel {
        /// Which node.
        node: NodeId,
        /// Which label.
        level: &'static str,
    },
}

impl Spec {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Spec, Fail> {
        let text = std::fs::read_to_string(path)
            .map_err(Fail::io("cannot read the spec of a cluster,", path))?;
        Spec::parse(&text).map_err(|source| Fail::Spec {
            path: path.to_owned(),
            source,
        })
    }

    /// Reads and checks a text.
    pub fn parse(text: &str) -> Result<Spec, SpecError> {
        let spec: Spec = toml::from_str(text)
            .map_err(|e| SpecError::Parse(e.to_string().trim_end().to_owned()))?;
        spec.check()?;
        Ok(spec)
    }

    /// Checks what the module's head says.
    pub fn check(&self) -> Result<(), SpecError> {
        let mut nodes = BTreeSet::new();
        let mut devices = BTreeSet::new();
        let mut addresses = BTreeSet::new();
        let mut bytes = 0u64;
        for node in &self.nodes {
            if node.id.0 == 0 {
                return Err(SpecError::Zero { what: "node" });
            }
            if !nodes.insert(node.id) {
                return Err(SpecError::TwoNodes(node.id));
            }
            node.check_labels(self.domain)?;
            node.check_cores()?;
            for address in node.cores.iter().chain(&node.control) {
                if !addresses.insert(address) {
                    return Err(SpecError::TwoCores(address.clone()));
                }
            }
            for device in &node.devices {
                if device.no.0 == 0 {
                    return Err(SpecError::Zero { what: "device" });
                }
                if !devices.insert(device.no) {
                    return Err(SpecError::TwoDevices(device.no));
                }
                if device.size < DEVICE_SIZE_MIN {
                    return Err(SpecError::DeviceSize {
                        device: device.no,
                        size: device.size,
                    });
                }
                bytes = bytes.checked_add(device.size).ok_or(SpecError::TooLarge)?;
            }
        }
        let members = self.nodes.iter().filter(|node| node.control.is_some());
        match members.count() {
            members if members > CONTROL_MAX || members > 0 && members.is_multiple_of(2) => {
                Err(SpecError::Members(members))
            }
            _ => Ok(()),
        }
    }
}

impl NodeSpec {
    fn check_labels(&self, domain: DomainLevel) -> Result<(), SpecError> {
        let labels = [
            (DomainLevel::Region, "region", &self.domains.region),
            (DomainLevel::Zone, "zone", &self.domains.zone),
            (DomainLevel::Rack, "rack", &self.domains.rack),
        ];
        for (which, level, text) in labels {
            let node = self.id;
            // Nodes without the label would all count as one domain, which is hardly what is there.
            if which == domain && text.is_empty() {
                return Err(SpecError::NoLabel { node, level });
            }
            if Label::new(text).is_err() {
                return Err(SpecError::LongLabel { node, level });
            }
        }
        Ok(())
    }

    fn check_cores(&self) -> Result<(), SpecError> {
        let node = self.id;
        if self.cores.is_empty() {
            return Err(SpecError::NoCore(node));
        }
        if self.devices.is_empty() {
            return Err(SpecError::NoDevice(node));
        }
        for address in self.cores.iter().chain(&self.control) {
            check_address(address).map_err(|why| SpecError::BadAddress {
                node,
                address: address.clone(),
                why,
            })?;
        }
        let cores = self.cores.len();
        if let Some(device) = self.devices.iter().find(|d| d.core as usize >= cores) {
            return Err(SpecError::CoreMissing {
                device: device.no,
                node,
                core: device.core,
                cores,
            });
        }
        let idle = |core: &usize| self.devices.iter().all(|d| d.core as usize != *core);
        match (0..cores).find(idle) {
            Some(core) => Err(SpecError::CoreIdle { node, core }),
            None => Ok(()),
        }
    }
}

/// Whether a text can be where a core listens and others connect to. Names are not looked up: they
/// need not be known where the map is made.
pub fn check_address(address: &str) -> Result<(), &'static str> {
    let (host, port) = address
        .rsplit_once(':')
        .ok_or("it takes host:port, such as 10.0.0.1:7000")?;
    match port.parse::<u16>() {
        Ok(1..) if port.bytes().all(|b| b.is_ascii_digit()) => {}
        _ => return Err("its port is not a number from 1 to 65535"),
    }
    if let Some(inner) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        return match inner.parse::<Ipv6Addr>() {
            Ok(ip) if ip.is_unspecified() => Err(UNSPECIFIED),
            Ok(_) => Ok(()),
            Err(_) => Err("what is in brackets is not an IPv6 address"),
        };
    }
    if host == "0.0.0.0" {
        return Err(UNSPECIFIED);
    }
    if host.contains(':') {
        return Err("an IPv6 address takes brackets, such as [fd00::1]:7000");
    }
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if host.is_empty() || !host.bytes().all(fits) {
        return Err("its host is neither a name nor an IP address");
    }
    Ok(())
}

/// The label that a level of fault domains goes by; none where the map knows without.
pub fn label(level: DomainLevel) -> Option<&'static str> {
    match level {
        DomainLevel::Region => Some("region"),
        DomainLevel::Zone => Some("zone"),
        DomainLevel::Rack => Some("rack"),
        DomainLevel::Host | DomainLevel::Device => None,
    }
}

const UNSPECIFIED: &str =
    "others connect to it, so it must be one address of the host, not all of them";

fn stripe_data() -> u32 {
    STRIPE_DATA
}

fn stripe_size<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let bytes = size(from)?;
    match u32::try_from(bytes) {
        Ok(bytes @ 1..) => Ok(bytes),
        _ => Err(de::Error::custom(SpecError::Stripe(bytes))),
    }
}

/// A number of bytes, or a text such as `4T`.
fn size<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    struct Size;

    impl Visitor<'_> for Size {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a size: a number of bytes, or a text such as \"512M\" or \"4T\"")
        }

        fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<u64, E> {
            u64::try_from(bytes).map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
        }

        fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<u64, E> {
            Ok(bytes)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
            parse_size(text).map_err(E::custom)
        }
    }

    from.deserialize_any(Size)
}

/// The map's own type ignores what it does not know; a person's spelling is not to be ignored.
fn domains<'de, D: Deserializer<'de>>(from: D) -> Result<Domains, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Strict {
        #[serde(default)]
        region: String,
        #[serde(default)]
        zone: String,
        #[serde(default)]
        rack: String,
    }

    let Strict { region, zone, rack } = Strict::deserialize(from)?;
    Ok(Domains { region, zone, rack })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Two nodes: one with two cores and a device each, one with one.
    const GOOD: &str = r#"
        class = "1+1"
        domain = "rack"
        stripe_data = "1M"

        [[node]]
        id = 1
        domains = { region = "eu", zone = "a", rack = "r1" }
        cores = ["10.0.0.1:7000", "10.0.0.1:7001"]
        [[node.device]]
        no = 1
        core = 0
        size = "4T"
        [[node.device]]
        no = 2
        core = 1
        size = 4000787030016

        [[node]]
        id = 2
        domains.rack = "r2"
        cores = ["store-2.example:7000"]
        [[node.device]]
        no = 3
        size = "64M"
    "#;

    fn refused(from: &str, to: &str) -> SpecError {
        assert!(GOOD.contains(from), "{from}");
        Spec::parse(&GOOD.replacen(from, to, 1)).unwrap_err()
    }

    fn not_parsed(from: &str, to: &str, says: &str) {
        match refused(from, to) {
            SpecError::Parse(message) => assert!(message.contains(says), "{to}: {message}"),
            other => panic!("{to}: {other:?}"),
        }
    }

    #[test]
    fn a_spec_is_read() {
        let spec = Spec::parse(GOOD).unwrap();
        assert_eq!(spec.class, Class { k: 1, m: 1 });
        assert_eq!(spec.domain, DomainLevel::Rack);
        assert_eq!(spec.stripe_data, 1 << 20);
        assert_eq!(spec.nodes[0].domains.region, "eu");
        assert_eq!(spec.nodes[0].cores.len(), 2);
        assert_eq!(spec.nodes[0].devices[0].size, 4 << 40);
        assert_eq!(spec.nodes[0].devices[1].size, 4_000_787_030_016);
        assert_eq!(spec.nodes[0].devices[1].core, 1);
        assert_eq!(spec.nodes[1].domains.rack, "r2");
        assert_eq!(spec.nodes[1].devices[0].core, 0);
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let spec = Spec::parse("class = '4+2'").unwrap();
        assert_eq!(spec.domain, DomainLevel::Host);
        assert_eq!(spec.stripe_data, STRIPE_DATA);
        assert_eq!(spec.nodes, []);
    }

    #[test]
    fn what_is_no_spec_is_refused() {
        for class in ["4", "0+2", "4+0", "60+5", "4+2+1", "x+y", ""] {
            not_parsed("\"1+1\"", &format!("\"{class}\""), "not a durability class");
        }
        not_parsed("class = \"1+1\"", "", "missing field `class`");
        not_parsed("\"rack\"", "\"shelf\"", "unknown variant `shelf`");
        not_parsed("\"1M\"", "\"much\"", "'much' is not a size");
        not_parsed("\"64M\"", "\"64X\"", "'64X' is not a size");
        not_parsed("\"64M\"", "-1", "expected a size");
        not_parsed("\"64M\"", "1.5", "expected a size");
        not_parsed(
            "cores = [\"store-2.example:7000\"]",
            "",
            "missing field `cores`",
        );
        not_parsed("id = 2", "id = 2\nid = 3", "duplicate key");
        not_parsed("id = 2", "id = -2", "integer");
        not_parsed("id = 2", "id = ", "TOML parse error");
    }

    #[test]
    fn an_unknown_field_is_refused_wherever_it_stands() {
        not_parsed("domain = ", "domains = ", "unknown field `domains`");
        not_parsed(
            "id = 2",
            "id = 2\naddress = 'a:1'",
            "unknown field `address`",
        );
        not_parsed("zone = ", "zones = ", "unknown field `zones`");
        not_parsed(
            "no = 3",
            "no = 3\npath = '/dev/sdb'",
            "unknown field `path`",
        );
    }

    #[test]
    fn numbers_and_addresses_are_unique() {
        assert_eq!(refused("id = 2", "id = 1"), SpecError::TwoNodes(NodeId(1)));
        assert_eq!(
            refused("no = 3", "no = 2"),
            SpecError::TwoDevices(DeviceNo(2))
        );
        assert_eq!(
            refused("store-2.example:7000", "10.0.0.1:7001"),
            SpecError::TwoCores("10.0.0.1:7001".into())
        );
        let zero = |what| SpecError::Zero { what };
        assert_eq!(refused("id = 1", "id = 0"), zero("node"));
        assert_eq!(refused("no = 1", "no = 0"), zero("device"));
    }

    #[test]
    fn cores_and_devices_belong_together() {
        let node = NodeId(1);
        assert_eq!(
            refused("core = 1", "core = 2"),
            SpecError::CoreMissing {
                device: DeviceNo(2),
                node,
                core: 2,
                cores: 2
            }
        );
        assert_eq!(
            refused("core = 1", "core = 0"),
            SpecError::CoreIdle { node, core: 1 }
        );
        assert_eq!(
            refused("[\"store-2.example:7000\"]", "[]"),
            SpecError::NoCore(NodeId(2))
        );
        let bare = GOOD.rsplit_once("[[node.device]]").unwrap().0;
        assert_eq!(
            Spec::parse(bare).unwrap_err(),
            SpecError::NoDevice(NodeId(2))
        );
    }

    #[test]
    fn members_are_an_odd_number_and_have_ports_of_their_own() {
        let with = |one: &str, two: &str| {
            let text = GOOD.replace("id = 1\n", &format!("id = 1\n{one}\n"));
            Spec::parse(&text.replace("id = 2\n", &format!("id = 2\n{two}\n")))
        };
        let spec = with("control = '10.0.0.1:7100'", "").unwrap();
        assert_eq!(spec.nodes[0].control.as_deref(), Some("10.0.0.1:7100"));
        assert_eq!(spec.nodes[1].control, None);
        assert_eq!(
            with("control = '10.0.0.1:7100'", "control = 'b:7100'").unwrap_err(),
            SpecError::Members(2)
        );
        assert_eq!(
            with("control = '10.0.0.1:7000'", "").unwrap_err(),
            SpecError::TwoCores("10.0.0.1:7000".into())
        );
        assert!(matches!(
            with("control = '0.0.0.0:7100'", "").unwrap_err(),
            SpecError::BadAddress { .. }
        ));
    }

    #[test]
    fn sizes_are_in_bounds() {
        assert_eq!(
            refused("\"64M\"", "\"63M\""),
            SpecError::DeviceSize {
                device: DeviceNo(3),
                size: 63 << 20
            }
        );
        not_parsed("\"1M\"", "0", "stripe_data is 0 bytes");
        not_parsed("\"1M\"", "\"4G\"", "it takes 1 to 4294967295");
        // 16384P is 2^64: one device may not have it, nor may two together.
        not_parsed("\"64M\"", "\"16384P\"", "too large");
        assert_eq!(
            refused(
                "\"64M\"",
                "\"16383P\"\n[[node.device]]\nno = 4\nsize = '2P'"
            ),
            SpecError::TooLarge
        );
    }

    #[test]
    fn labels_are_there_and_fit() {
        assert_eq!(
            refused("domains.rack = \"r2\"", ""),
            SpecError::NoLabel {
                node: NodeId(2),
                level: "rack"
            }
        );
        assert_eq!(
            refused("zone = \"a\"", &format!("zone = \"{}\"", "a".repeat(64))),
            SpecError::LongLabel {
                node: NodeId(1),
                level: "zone"
            }
        );
        // By host, nobody asks for labels.
        Spec::parse(
            &GOOD
                .replace("\"rack\"", "\"host\"")
                .replace("domains.rack = \"r2\"", ""),
        )
        .unwrap();
    }

    #[test]
    fn addresses_are_judged_by_their_form() {
        for good in [
            "127.0.0.1:1",
            "a-b.example:65535",
            "[fd00::1]:7000",
            "store_1:80",
        ] {
            assert_eq!(check_address(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "10.0.0.1",
            ":7000",
            "a:",
            "a:0",
            "a:65536",
            "a:+80",
            "a:-1",
            "a b:80",
            "http://a:80",
            "fd00::1:7000",
            "[fd00::1]",
            "[a]:80",
            "0.0.0.0:80",
            "[::]:80",
        ] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
        assert!(matches!(
            refused("store-2.example:7000", "store-2.example"),
            SpecError::BadAddress {
                node: NodeId(2),
                ..
            }
        ));
    }
}
