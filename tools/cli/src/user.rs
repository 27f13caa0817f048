//! `ashlar user`: who may use the S3 gateways of a cluster.

use std::path::{Path, PathBuf};

use ashlar_node_gateway::admin::{Admin, AdminError};
use ashlar_node_gateway::{Secret, User};
use clap::{Args, Subcommand};

use crate::fail::Fail;
use crate::gateway::{self, ROOT_KEY_FILE};
use crate::output;
use crate::store;

/// Make, list and remove users of the S3 gateways.
#[derive(Args)]
pub struct UserArgs {
    /// The file with the root key. [default: that of the rig]
    #[arg(long, global = true, env = ROOT_KEY_FILE, value_name = "FILE")]
    root_key_file: Option<PathBuf>,
    #[command(subcommand)]
    command: UserCommand,
}

#[derive(Subcommand)]
enum UserCommand {
    /// Make a user with a key. Its secret is shown now, and never again.
    Add {
        /// The name.
        name: String,
        /// The user may do everything.
        #[arg(long)]
        admin: bool,
        /// What the user may do, in AWS's JSON. Without, it is everything with the user's own buckets.
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
    },
    /// List the users.
    List,
    /// Remove a user and all of the user's keys. The user's buckets stay.
    Remove {
        /// The name.
        name: String,
    },
    /// Make another key of a user. Its secret is shown now, and never again.
    AddKey {
        /// The name.
        name: String,
    },
    /// Revoke a key: no gateway takes it any more.
    RemoveKey {
        /// The name.
        name: String,
        /// The key's id.
        id: String,
    },
    /// Give a user a policy, or take it away.
    Policy {
        /// The name.
        name: String,
        /// The policy, in AWS's JSON; none takes it away.
        file: Option<PathBuf>,
    },
}

fn failed(what: &str) -> impl FnOnce(AdminError) -> Fail {
    let what = what.to_owned();
    move |error| match error {
        AdminError::Store(source) => Fail::Store { what, source },
        other => Fail::Refused(other.to_string()),
    }
}

fn read(path: &Path) -> Result<String, Fail> {
    std::fs::read_to_string(path).map_err(Fail::io("cannot read", path))
}

/// Runs a user command.
pub fn run(args: UserArgs, cluster: Option<&Path>, json: bool) -> Result<(), Fail> {
    let root = gateway::root_key(args.root_key_file.as_deref(), cluster)?;
    store::with_client(cluster, |client| async move {
        let admin = Admin::new(client, root);
        match args.command {
            UserCommand::Add {
                name,
                admin: everything,
                policy,
            } => {
                let policy = policy.as_deref().map(read).transpose()?;
                let (user, key, secret) =
                    admin.add(&name, everything).await.map_err(failed(&name))?;
                if policy.is_some() {
                    let set = admin.set_policy(&name, policy.as_deref()).await;
                    if let Err(error) = set {
                        // A user who may do more than was meant is none.
                        admin.remove(&name).await.map_err(failed(&name))?;
                        return Err(failed(&name)(error));
                    }
                }
                tell_key(&user, &key.id, &secret, json)
            }
            UserCommand::AddKey { name } => {
                let (key, secret) = admin.add_key(&name).await.map_err(failed(&name))?;
                tell_key(&key.user, &key.id, &secret, json)
            }
            UserCommand::RemoveKey { name, id } => {
                admin.remove_key(&name, &id).await.map_err(failed(&name))?;
                tell("revoked", &id, json)
            }
            UserCommand::Remove { name } => {
                admin.remove(&name).await.map_err(failed(&name))?;
                tell("removed", &name, json)
            }
            UserCommand::Policy { name, file } => {
                let policy = file.as_deref().map(read).transpose()?;
                let set = admin.set_policy(&name, policy.as_deref()).await;
                set.map_err(failed(&name))?;
                tell(
                    if policy.is_some() { "set" } else { "cleared" },
                    &name,
                    json,
                )
            }
            UserCommand::List => {
                let users = admin.list().await.map_err(failed("the users"))?;
                if json {
                    let users: Vec<_> = users
                        .iter()
                        .map(|user| {
                            serde_json::json!({
                                "name": user.name, "account": user.account, "canonical_id": user.canonical(),
                                "admin": user.admin, "keys": user.keys, "policy": user.policy,
                            })
                        })
                        .collect();
                    return output::json(&serde_json::json!({ "users": users }));
                }
                for user in users {
                    let role = if user.admin { "admin" } else { "user" };
                    let policy = if user.policy.is_some() {
                        "  policy"
                    } else {
                        ""
                    };
                    let keys = user.keys.join(" ");
                    output::line(&format!(
                        "{:<20} {}  {role:<5}  {keys}{policy}",
                        user.name, user.account
                    ))?;
                }
                Ok(())
            }
        }
    })
}

fn tell(done: &str, what: &str, json: bool) -> Result<(), Fail> {
    if json {
        return output::json(&serde_json::json!({ done: what }));
    }
    output::line(&format!("{done} {what}"))
}

fn tell_key(user: &User, id: &str, secret: &Secret, json: bool) -> Result<(), Fail> {
    let (canonical, secret) = (user.canonical(), secret.reveal());
    if json {
        return output::json(&serde_json::json!({
            "name": user.name, "account": user.account, "canonical_id": canonical,
            "access_key_id": id, "secret_access_key": secret,
        }));
    }
    output::line(&format!("user               {}", user.name))?;
    output::line(&format!("account            {}", user.account))?;
    output::line(&format!("canonical id       {canonical}"))?;
    output::line(&format!("access key id      {id}"))?;
    output::line(&format!("secret access key  {secret}"))
}
