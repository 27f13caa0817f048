//! `ashlar ls`, `stat` and `buckets`: what is in the store.

use std::io::{self, Write};
use std::path::Path;

use ashlar_layout::manifest::Body;
use ashlar_layout::message::{ListEntry, ObjectMeta};
use ashlar_node_client::Client;
use clap::Args;
use serde_json::json;

use crate::address::Address;
use crate::fail::Fail;
use crate::output::{self, human, time};
use crate::store::{self, Pages};

/// What to list.
#[derive(Args)]
pub struct ListArgs {
    /// A bucket, or the beginning of keys in it; without one, the buckets are listed.
    address: Option<Address>,
    /// List all keys, instead of rolling them up at the next /.
    #[arg(short, long)]
    recursive: bool,
}

/// Lists.
pub fn list(args: ListArgs, cluster: Option<&Path>, json: bool) -> Result<(), Fail> {
    let Some(address) = args.address else {
        return buckets(cluster, json);
    };
    let delimiter = if args.recursive { "" } else { "/" };
    store::with_client(cluster, |client| async move {
        let mut out = io::BufWriter::new(io::stdout().lock());
        let mut pages = Pages::new(&client, address, delimiter);
        let mut listing = Listing {
            json,
            objects: 0,
            prefixes: Vec::new(),
        };
        // A listing may be longer than memory: it is written page by page.
        while let Some(page) = pages.next().await? {
            listing
                .page(&mut out, &page.objects, page.prefixes)
                .map_err(Fail::output)?;
        }
        listing.end(&mut out).map_err(Fail::output)?;
        out.flush().map_err(Fail::output)
    })
}

struct Listing {
    json: bool,
    objects: u64,
    /// Kept for the end of the JSON; in text they are written at once.
    prefixes: Vec<String>,
}

impl Listing {
    fn page(
        &mut self,
        out: &mut impl Write,
        objects: &[ListEntry],
        prefixes: Vec<String>,
    ) -> io::Result<()> {
        if self.json {
            for object in objects {
                out.write_all(if self.objects == 0 {
                    b"{\"objects\":["
                } else {
                    b","
                })?;
                let value = json!({
                    "key": object.key, "size": object.size,
                    "crc32": format!("{:08x}", object.crc), "version": object.version,
                    "modified_ms": object.modified_ms,
                });
                serde_json::to_writer(&mut *out, &value)?;
                self.objects += 1;
            }
            self.prefixes.extend(prefixes);
            return Ok(());
        }
        // Both come in order: merged, the page reads as the order of keys.
        let mut prefixes = prefixes.iter().peekable();
        for object in objects {
            while let Some(prefix) = prefixes.next_if(|p| **p < object.key) {
                writeln!(out, "{:>32}  {prefix}", "PREFIX")?;
            }
            writeln!(
                out,
                "{} {:>12}  {}",
                time(object.modified_ms),
                object.size,
                object.key
            )?;
        }
        for prefix in prefixes {
            writeln!(out, "{:>32}  {prefix}", "PREFIX")?;
        }
        Ok(())
    }

    fn end(&self, out: &mut impl Write) -> io::Result<()> {
        if !self.json {
            return Ok(());
        }
        if self.objects == 0 {
            out.write_all(b"{\"objects\":[")?;
        }
        out.write_all(b"],\"prefixes\":")?;
        serde_json::to_writer(&mut *out, &self.prefixes)?;
        out.write_all(b"}\n")
    }
}

/// Lists the buckets.
pub fn buckets(cluster: Option<&Path>, json: bool) -> Result<(), Fail> {
    store::with_client(cluster, |client| async move {
        let buckets = client.buckets().await.map_err(Fail::store("buckets"))?;
        if json {
            return output::json(&json!({ "buckets": buckets }));
        }
        for bucket in buckets {
            output::line(&format!("{}  {}", time(bucket.created_ms), bucket.name))?;
        }
        Ok(())
    })
}

/// Shows what is known of an object.
pub fn stat(address: Address, cluster: Option<&Path>, json: bool) -> Result<(), Fail> {
    let address = address.object()?;
    store::with_client(cluster, |client| async move {
        let meta = client
            .head(&address.bucket, &address.key)
            .await
            .map_err(Fail::store(address.to_string()))?;
        show(&client, &address, &meta, json)
    })
}

fn show(client: &Client, address: &Address, meta: &ObjectMeta, json: bool) -> Result<(), Fail> {
    let manifest = &meta.manifest;
    let (storage, stripes) = match &manifest.body {
        Body::Inline => ("inline", &[][..]),
        Body::Stripes(stripes) => ("stripes", &stripes[..]),
        Body::Tree(nodes) => ("tree", &nodes[..]),
        Body::Parts { nodes, .. } => ("parts", &nodes[..]),
    };
    let map = client.map();
    if json {
        let stripes: Vec<_> = stripes
            .iter()
            .map(|s| {
                json!({
                    "id": s.id.to_string(), "class": format!("{}+{}", s.k, s.m), "group": s.pg,
                    "bytes": s.data_len, "devices": map.group(s.pg).map(|g| &g.devices),
                })
            })
            .collect();
        return output::json(&json!({
            "address": address.to_string(), "bucket": address.bucket, "key": address.key,
            "size": manifest.size, "crc32": format!("{:08x}", manifest.crc),
            "version": meta.version, "modified_ms": meta.modified_ms, "storage": storage,
            "stripes": stripes,
        }));
    }
    output::line(&format!("address   {address}"))?;
    output::line(&format!(
        "size      {} ({})",
        manifest.size,
        human(manifest.size)
    ))?;
    output::line(&format!("crc32     {:08x}", manifest.crc))?;
    output::line(&format!("version   {}", meta.version))?;
    output::line(&format!("modified  {}", time(meta.modified_ms)))?;
    output::line(&match storage {
        "inline" => "stored    in the journal".to_owned(),
        "stripes" => format!(
            "stored    in {} stripes of {}",
            stripes.len(),
            classes(meta)
        ),
        _ => format!("stored    in stripes listed by {} others", stripes.len()),
    })
}

/// The classes of an object's stripes, largest first.
fn classes(meta: &ObjectMeta) -> String {
    let Body::Stripes(stripes) = &meta.manifest.body else {
        return String::new();
    };
    let mut classes: Vec<(u8, u8)> = stripes.iter().map(|s| (s.k, s.m)).collect();
    classes.sort_unstable_by(|a, b| b.cmp(a));
    classes.dedup();
    let names: Vec<String> = classes.iter().map(|(k, m)| format!("{k}+{m}")).collect();
    names.join(", ")
}

/// Makes a bucket.
pub fn make_bucket(address: Address, cluster: Option<&Path>, json: bool) -> Result<(), Fail> {
    let bucket = address.bucket_only()?;
    store::with_client(cluster, |client| async move {
        client
            .create_bucket(&bucket)
            .await
            .map_err(Fail::store(bucket.clone()))?;
        tell_bucket("created", &bucket, json)
    })
}

/// Removes an empty bucket.
pub fn remove_bucket(address: Address, cluster: Option<&Path>, json: bool) -> Result<(), Fail> {
    let bucket = address.bucket_only()?;
    store::with_client(cluster, |client| async move {
        client
            .delete_bucket(&bucket)
            .await
            .map_err(Fail::store(bucket.clone()))?;
        tell_bucket("removed", &bucket, json)
    })
}

fn tell_bucket(done: &str, bucket: &str, json: bool) -> Result<(), Fail> {
    if json {
        return output::json(&json!({ done: bucket }));
    }
    output::line(&format!("{done} {}{bucket}", crate::address::SCHEME))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ashlar_layout::ids::Seq;

    fn entry(key: &str) -> ListEntry {
        ListEntry {
            key: key.into(),
            size: 1,
            crc: 2,
            etag: ashlar_layout::manifest::Etag::NONE,
            version: Seq(3),
            modified_ms: 0,
            tag: None,
        }
    }

    #[test]
    fn a_listing_of_any_number_of_pages_is_one_document() {
        for pages in 0..3 {
            let mut out = Vec::new();
            let mut listing = Listing {
                json: true,
                objects: 0,
                prefixes: Vec::new(),
            };
            for page in 0..pages {
                let objects = [entry(&format!("{page}a\"")), entry(&format!("{page}b"))];
                listing
                    .page(&mut out, &objects, vec![format!("{page}/")])
                    .unwrap();
            }
            listing.end(&mut out).unwrap();
            let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(value["objects"].as_array().unwrap().len(), 2 * pages);
            assert_eq!(value["prefixes"].as_array().unwrap().len(), pages);
        }
    }

    #[test]
    fn text_is_in_the_order_of_keys() {
        let mut out = Vec::new();
        let mut listing = Listing {
            json: false,
            objects: 0,
            prefixes: Vec::new(),
        };
        let prefixes = vec!["a/".to_owned(), "c/".to_owned()];
        listing
            .page(&mut out, &[entry("b"), entry("d")], prefixes)
            .unwrap();
        listing.end(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let keys: Vec<&str> = text
            .lines()
            .map(|l| l.rsplit(' ').next().unwrap())
            .collect();
        assert_eq!(keys, ["a/", "b", "c/", "d"]);
    }
}
