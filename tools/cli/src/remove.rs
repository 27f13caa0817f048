//! `ashlar rm`: objects and trees out of the store, for good.

use std::path::Path;

use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::Precondition;
use ashlar_node_client::{Client, DeleteOptions};
use clap::Args;
use serde_json::json;

use crate::address::Address;
use crate::fail::Fail;
use crate::output::{self, Progress};
use crate::store::{self, Many, Pages};

/// What to remove.
#[derive(Args)]
pub struct RemoveArgs {
    /// An object, ashlar://bucket/key; with -r a bucket or a folder-like prefix.
    address: Address,
    /// Remove everything below ADDRESS/, or everything in the bucket.
    #[arg(short, long)]
    recursive: bool,
    /// Only if the object is at just this version.
    #[arg(long, value_name = "VERSION", conflicts_with = "recursive")]
    if_version: Option<u64>,
}

/// Removes.
pub fn remove(args: RemoveArgs, cluster: Option<&Path>, json: bool) -> Result<(), Fail> {
    if args.recursive {
        return remove_tree(&args.address, cluster, json);
    }
    let address = args.address.object()?;
    let precondition = args
        .if_version
        .map_or(Precondition::None, |v| Precondition::Version(Seq(v)));
    store::with_client(cluster, |client| async move {
        let outcome = client
            .delete(
                &address.bucket,
                &address.key,
                DeleteOptions {
                    precondition,
                    ..DeleteOptions::default()
                },
            )
            .await
            .map_err(Fail::store(format!("rm {address}")))?;
        if json {
            return output::json(&json!({
                "address": address.to_string(), "version": outcome.version,
                "existed": outcome.existed,
            }));
        }
        // As in S3, removing what is not there is no error.
        let note = if outcome.existed {
            ""
        } else {
            " (there was no such object)"
        };
        output::line(&format!("removed {address}{note}"))
    })
}

fn remove_tree(address: &Address, cluster: Option<&Path>, json: bool) -> Result<(), Fail> {
    let prefix = address.tree_prefix();
    store::with_client(cluster, |client| async move {
        let progress = Progress::things("rm", None);
        let mut many = Many::new("objects");
        let mut pages = Pages::new(&client, address.with_key(prefix), "");
        'pages: while let Some(page) = pages.next().await? {
            for entry in page.objects {
                let work = one_of_many(client.clone(), address.with_key(entry.key));
                if !many.add(&progress, work).await {
                    break 'pages;
                }
                progress.inc(1);
            }
        }
        let result = many.finish(&progress).await;
        if json {
            output::json(&json!({ "removed": many.done, "failed": many.failed }))?;
        } else {
            output::line(&format!("removed {} objects", many.done))?;
        }
        result
    })
}

async fn one_of_many(client: Client, address: Address) -> Result<u64, Fail> {
    client
        .delete(&address.bucket, &address.key, DeleteOptions::default())
        .await
        .map(|_| 0)
        .map_err(Fail::store(format!("rm {address}")))
}
