//! `ashlar durability`: how durable the store was, as far as that was measured; and, apart from it, what a model says.

use std::path::{Path, PathBuf};

use ashlar_cluster_audit::durability::Source;
use ashlar_cluster_audit::{Assumptions, Loss, Measured, Modelled, Tally, Window, measure, model};
use ashlar_node_audit::ledger;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::durability_plot;
use crate::fail::Fail;
use crate::orphans::{self, OrphansRow};
use crate::output::{self, human};
use crate::repair::{Margins, margins};
use crate::store;

/// What to ask about.
#[derive(Args)]
pub struct DurabilityArgs {
    /// Of which time: up to now.
    #[arg(long, value_enum, default_value_t = Span::Week)]
    window: Span,
    /// What the model assumes: how often a year a device fails with all that is on it.
    #[arg(long, value_name = "RATE", default_value_t = Assumptions::default().device_fails)]
    device_fails: f64,
    /// How often a year something takes many devices at once,
    #[arg(long, value_name = "RATE", default_value_t = Assumptions::default().shocks)]
    shocks: f64,
    /// and which share of them.
    #[arg(long, value_name = "SHARE", default_value_t = Assumptions::default().struck)]
    struck: f64,
    /// How often a year a zone (what a fault domain of the map is) fails with all that is in it,
    #[arg(long, value_name = "RATE", default_value_t = Assumptions::default().zone_fails)]
    zone_fails: f64,
    /// and in how many of them the shards of a stripe stand; 0: each in one of its own.
    #[arg(long, value_name = "ZONES", default_value_t = Assumptions::default().zones)]
    zones: u32,
    /// In how many days the nodes look at everything.
    #[arg(long, value_name = "DAYS", default_value_t = 7.0)]
    pass_days: f64,
    /// Draw what was measured, day by day, as an SVG file.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Span {
    Day,
    Week,
    Month,
    Year,
}

impl Span {
    fn days(self) -> u64 {
        match self {
            Span::Day => 1,
            Span::Week => 7,
            Span::Month => 30,
            Span::Year => 365,
        }
    }
}

#[derive(Serialize)]
struct Report {
    days: u64,
    measured: Measured,
    losses: Vec<Loss>,
    modelled: Modelled,
    margin: Margins,
    orphans: Vec<OrphansRow>,
    /// What of the ledger could not be read: it is not in these numbers.
    unread: Vec<String>,
}

fn check(name: &str, value: f64, most: f64) -> Result<(), Fail> {
    match value.is_finite() && (0.0..=most).contains(&value) {
        true => Ok(()),
        false => Err(Fail::Usage(format!(
            "--{name} is {value}; it takes 0 to {most}"
        ))),
    }
}

/// Says it.
pub fn durability(args: &DurabilityArgs, cluster: Option<&Path>, json: bool) -> Result<(), Fail> {
    check("device-fails", args.device_fails, 1e6)?;
    check("shocks", args.shocks, 1e6)?;
    check("struck", args.struck, 1.0)?;
    check("zone-fails", args.zone_fails, 1e6)?;
    check("pass-days", args.pass_days, 1e5)?;
    let assumed = Assumptions {
        device_fails: args.device_fails,
        shocks: args.shocks,
        struck: args.struck,
        zone_fails: args.zone_fails,
        zones: args.zones,
        pass_s: args.pass_days * 86_400.0,
        ..Assumptions::default()
    };
    let days = args.window.days();
    let plot = args.plot.clone();
    let report = store::with_client(cluster, |client| async move {
        let unreadable = |error| Fail::Refused(format!("the ledger cannot be read: {error}"));
        let window = Window::of(days, ledger::wall_ms());
        let records = ledger::records(&client).await.map_err(unreadable)?;
        let read = ledger::orphans(&client).await.map_err(unreadable)?;
        let counted = ledger::by_day(&client, window, &records, &read).await;
        let (days_of, mut unread) = counted.map_err(unreadable)?;
        let mut tally = Tally::default();
        days_of.values().for_each(|day| tally.add(day));
        let losses = ledger::losses(&client, window).await.map_err(unreadable)?;
        unread.extend(losses.unread);
        let losses: Vec<Loss> = losses.found.into_values().collect();
        let margin = margins(&client, records.found.values()).await;
        if let Some(path) = &plot {
            let picture = durability_plot::svg(window, &days_of, &losses, &margin.stripes);
            std::fs::write(path, picture).map_err(Fail::io("cannot write", path))?;
        }
        let measured = measure(tally, &losses);
        let class = client.map().class;
        let class = (u32::from(class.k), u32::from(class.m));
        let modelled = model(class, margin.stripes.values().sum(), &measured, &assumed);
        Ok(Report {
            days,
            measured,
            losses,
            modelled,
            margin,
            orphans: orphans::rows(&read),
            unread,
        })
    })?;
    match json {
        true => output::json(&report)?,
        false => report.tell()?,
    }
    match report.unread.is_empty() {
        true => Ok(()),
        false => Err(Fail::Refused(format!(
            "{} documents of the ledger cannot be read, and are not in these numbers",
            report.unread.len()
        ))),
    }
}

/// A number, as people read such numbers.
fn rate(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        value if (0.01..1000.0).contains(&value) => format!("{value:.3}"),
        value => format!("{value:.2e}"),
    }
}

fn seconds(value: f64) -> String {
    match value {
        value if value < 120.0 => format!("{value:.1} s"),
        value if value < 7200.0 => format!("{:.0} min", value / 60.0),
        value => format!("{:.1} h", value / 3600.0),
    }
}

/// What devices found when they looked at themselves, if any did.
fn of_devices(counted: &Tally) -> Option<String> {
    if !counted.tells_of_devices() {
        return None;
    }
    let kinds = counted.device_found.iter();
    let kinds: Vec<String> = kinds
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    let kinds = if kinds.is_empty() {
        "nothing".to_owned()
    } else {
        kinds.join(", ")
    };
    let mut said = format!(
        "  devices looked at their superblocks, checkpoints, tables and indexes: {} read, in {} passes that ended; \
         wrong was {kinds}",
        human(counted.device_bytes),
        counted.device_passes
    );
    if counted.device_left_out > 0 {
        let left_out = counted.device_left_out;
        said += &format!(" ({left_out} times there was no looking)");
    }
    Some(said)
}

impl Report {
    fn tell(&self) -> Result<(), Fail> {
        output::line(&format!("measured, in {} days up to now:", self.days))?;
        let Measured { counted, .. } = &self.measured;
        output::line(&format!(
            "  looked at: {} objects of {} ({} of them ride in the journal, whose replicas nobody looks at); {} read",
            counted.objects,
            human(counted.bytes),
            counted.inline,
            human(counted.shard_bytes)
        ))?;
        output::line(&format!(
            "  that is {} object-years and {} shard-years, in {} passes that ended",
            rate(self.measured.object_years),
            rate(self.measured.shard_years),
            counted.passes
        ))?;
        let kinds: Vec<String> = counted
            .found
            .iter()
            .filter(|(kind, _)| kind.is_of_shards())
            .map(|(kind, count)| format!("{count} {}", kind.name()))
            .collect();
        let kinds = if kinds.is_empty() {
            "none".to_owned()
        } else {
            kinds.join(", ")
        };
        output::line(&format!("  bad shards: {kinds}"))?;
        output::line(&format!(
            "  mended and read back: {}; of objects that were removed before: {}",
            counted.repaired, counted.moot
        ))?;
        if counted.divergent() > 0 {
            output::line(&format!(
                "  replicas of partitions that differ from others, by days that it was found: {}; logs of nodes say more",
                counted.divergent()
            ))?;
        }
        if counted.orphans() > 0 {
            output::line(&format!(
                "  shards that no object names, each once: {}",
                counted.orphans()
            ))?;
        }
        for told in orphans::told(&self.orphans) {
            output::line(&format!("  {told}"))?;
        }
        if counted.moved > 0 {
            output::line(&format!(
                "  of devices that are gone, made again elsewhere: {}",
                counted.moved
            ))?;
        }
        if let Some(said) = of_devices(counted) {
            output::line(&said)?;
        }
        if let (Some(lag), Some(repair)) = (self.measured.lag_s, self.measured.repair_s) {
            output::line(&format!(
                "  found after {} at the most in the mean, mended {} later",
                seconds(lag),
                seconds(repair)
            ))?;
        }
        for (margin, ms) in &counted.margin_ms {
            let stood = seconds(*ms as f64 / 1e3);
            output::line(&format!(
                "  stripes that could lose {margin} more stood so for {stood} in all"
            ))?;
        }
        output::line(&format!(
            "  LOST: {} objects, {} stripes",
            self.measured.lost_objects, self.measured.lost_stripes
        ))?;
        for loss in &self.losses {
            output::line(&format!(
                "  LOST: ashlar://{}/{} version {}: of stripe {} {} shards are left, and it takes {}; found {}",
                loss.item.bucket,
                loss.item.key,
                loss.item.version,
                loss.stripe,
                loss.whole,
                loss.needed,
                output::time(loss.found_ms)
            ))?;
        }
        let rule = match self.measured.lost_objects {
            0 => "none was lost, so 3 / object-years",
            _ => "exact, of Poisson's distribution",
        };
        output::line(&match self.measured.losses_at_most {
            Some(most) => format!(
                "  losses of objects: at most {} per object and year, with 95 % confidence ({rule})",
                rate(most)
            ),
            None => {
                "  losses of objects: no bound, for nothing was seen for any time yet".to_owned()
            }
        })?;
        let Modelled { k, m, .. } = self.modelled;
        output::line(&format!("modelled, for stripes of {k}+{m}; it works with:"))?;
        for given in &self.modelled.given {
            let source = match given.source {
                Source::Measured => "measured",
                Source::Assumed => "assumed",
            };
            output::line(&format!(
                "  {}: {} ({source})",
                given.what,
                rate(given.value)
            ))?;
        }
        output::line(&format!(
            "  a stripe is lost {} times a year if shards fail independently, {} with what takes many at once",
            rate(self.modelled.independent),
            rate(self.modelled.correlated)
        ))?;
        output::line(&format!(
            "  of the {} stripes there are, {} a year",
            self.modelled.stripes,
            rate(self.modelled.lost_a_year)
        ))?;
        self.margin.tell()?;
        for unread in &self.unread {
            output::line(&format!("not read: {unread}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_devices_found_is_told_and_nothing_is_not() {
        let mut tally = Tally::default();
        assert_eq!(of_devices(&tally), None);
        tally.device_bytes = 2 << 20;
        tally.device_passes = 3;
        let said = of_devices(&tally).unwrap_or_default();
        assert!(
            said.contains("2.00 MiB read, in 3 passes") && said.ends_with("wrong was nothing"),
            "{said}"
        );
        tally.device_found.insert("footer".to_owned(), 2);
        tally.device_found.insert("superblock".to_owned(), 1);
        tally.device_left_out = 4;
        let said = of_devices(&tally).unwrap_or_default();
        assert!(
            said.ends_with("wrong was 2 footer, 1 superblock (4 times there was no looking)"),
            "{said}"
        );
    }

    #[test]
    fn numbers_for_people() {
        for (value, want) in [
            (0.0, "0"),
            (0.5, "0.500"),
            (12.0, "12.000"),
            (3e-9, "3.00e-9"),
            (4e6, "4.00e6"),
        ] {
            assert_eq!(rate(value), want);
        }
        for (value, want) in [(1.5, "1.5 s"), (600.0, "10 min"), (36_000.0, "10.0 h")] {
            assert_eq!(seconds(value), want);
        }
    }
}
