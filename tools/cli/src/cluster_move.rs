//! `ashlar cluster move`: a partition's chain goes to other devices, one member at a time, while it serves.
//!
//! Invariant: a step is taken only when the chain rests on what the map says; so the chain is never spread over
//! more than one change, and whoever stops this command leaves a whole chain behind.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ashlar_layout::ids::{DeviceNo, PartitionId};
use ashlar_node_control::move_step;

use crate::cluster_call::Control;
use crate::fail::Fail;
use crate::output;

/// How often it is looked whether the chain rests.
const LOOK: Duration = Duration::from_millis(100);
/// How long one step may take: a spare has to learn all that the partition holds.
const STEP_MAX: Duration = Duration::from_secs(3600);

/// Moves a partition to these devices.
pub fn move_partition(
    control: &Control,
    partition: PartitionId,
    to: Vec<DeviceNo>,
    json: bool,
) -> Result<(), Fail> {
    let not = format!("partition {partition} is not moved");
    let mut since = Instant::now();
    let mut steps = 0;
    loop {
        let (map, status) = (control.newest_map()?, control.status()?);
        let known = map.partition_by_id(partition).ok_or_else(|| {
            Fail::Refused(format!(
                "{not}: there is no partition {partition} in the map"
            ))
        })?;
        let chain = &known.chain.devices;
        if chain.len() != to.len() {
            return Err(Fail::Usage(format!(
                "{not}: its chain has {} members, and --to names {}",
                chain.len(),
                to.len()
            )));
        }
        if let Some(no) = to.iter().find(|no| map.device(**no).is_none()) {
            return Err(Fail::Refused(format!(
                "{not}: there is no device {no} in the map"
            )));
        }
        let reports = status
            .reports
            .into_iter()
            .map(|report| (report.partition, report));
        let reports: BTreeMap<_, _> = reports.collect();
        let report = reports.get(&partition);
        let rests = report.is_some_and(|report| report.rests_on(chain));
        if rests && chain.iter().all(|no| to.contains(no)) {
            if json {
                return output::json(&serde_json::json!({ "epoch": map.epoch, "steps": steps }));
            }
            return output::line(&format!(
                "partition {partition} is there, after {steps} steps"
            ));
        }
        match move_step(&map, &reports, known, &to) {
            Some(change) => {
                control.change(map.epoch, change, &not)?;
                steps += 1;
                since = Instant::now();
            }
            None if rests => {
                return Err(Fail::Refused(format!(
                    "{not}: none of these devices can take a place in its chain now: each has to be in another node, \
                     and none of them may be draining"
                )));
            }
            None if since.elapsed() >= STEP_MAX => {
                return Err(Fail::Refused(format!(
                    "{not}: its chain has not come to rest for an hour; 'ashlar cluster status' says why"
                )));
            }
            None => std::thread::park_timeout(LOOK),
        }
    }
}
