//! How operations were encoded in journal entries of version 1, from before manifests had an ETag and
//! attributes. Such entries are read, and never written.

use wincode::{SchemaRead, SchemaWrite};

use crate::ids::DeviceNo;
use crate::manifest::{Body, Manifest, Op, Stripe};

#[derive(SchemaWrite, SchemaRead)]
enum BodyV1 {
    Inline,
    Stripes(Vec<Stripe>),
    Tree(Vec<Stripe>),
}

#[derive(SchemaWrite, SchemaRead)]
pub(crate) struct ManifestV1 {
    size: u64,
    crc: u32,
    body: BodyV1,
}

/// An operation as entries of version 1 hold it.
#[derive(SchemaWrite, SchemaRead)]
pub(crate) enum OpV1 {
    TermStart,
    CreateBucket {
        bucket: String,
    },
    DeleteBucket {
        bucket: String,
    },
    Put {
        bucket: String,
        key: String,
        manifest: ManifestV1,
    },
    Delete {
        bucket: String,
        key: String,
    },
    Chain {
        config: u64,
        members: Vec<DeviceNo>,
    },
}

impl From<ManifestV1> for Manifest {
    fn from(old: ManifestV1) -> Manifest {
        let body = match old.body {
            BodyV1::Inline => Body::Inline,
            BodyV1::Stripes(stripes) => Body::Stripes(stripes),
            BodyV1::Tree(nodes) => Body::Tree(nodes),
        };
        Manifest::plain(old.size, old.crc, body)
    }
}

impl From<OpV1> for Op {
    fn from(old: OpV1) -> Op {
        match old {
            OpV1::TermStart => Op::TermStart,
            OpV1::CreateBucket { bucket } => Op::CreateBucket { bucket },
            OpV1::DeleteBucket { bucket } => Op::DeleteBucket { bucket },
            OpV1::Put {
                bucket,
                key,
                manifest,
            } => Op::Put {
                bucket,
                key,
                manifest: manifest.into(),
            },
            OpV1::Delete { bucket, key } => Op::Delete { bucket, key },
            OpV1::Chain { config, members } => Op::Chain { config, members },
        }
    }
}
