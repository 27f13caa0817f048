//! `fio` with the same work on the same device: what the engine is measured against.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::bench_engine::{Measured, histogram};
use crate::fail::Fail;

/// One job of fio.
pub struct Job<'a> {
    /// Where.
    pub path: &'a Path,
    /// Whether it writes (durably, in order), or reads (anywhere).
    pub write: bool,
    /// Bytes of each operation.
    pub block: u32,
    /// Operations under way at once.
    pub depth: u32,
    /// Bytes of the device, from its start, that it works on.
    pub size: u64,
    /// For how long.
    pub limit: Duration,
}

/// Whether there is a fio here that knows io_uring; if not, why not.
pub fn available() -> Result<String, String> {
    let version = match Command::new("fio").arg("--version").output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        Ok(output) => return Err(format!("fio does not run: {}", output.status)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err("fio is not installed".to_owned());
        }
        Err(e) => return Err(format!("fio does not run: {e}")),
    };
    let engines = Command::new("fio").arg("--enghelp=io_uring").output();
    if engines.is_ok_and(|output| output.status.success()) {
        Ok(version)
    } else {
        Err(format!("{version} does not know io_uring"))
    }
}

impl Job<'_> {
    /// Runs it.
    pub fn run(&self) -> Result<Measured, Fail> {
        // Registered files and buffers, as our reactor has them; where memory cannot be locked, without.
        self.attempt(true).or_else(|_| self.attempt(false))
    }

    fn attempt(&self, fixed: bool) -> Result<Measured, Fail> {
        let fixed = if fixed { "1" } else { "0" };
        let mut command = Command::new("fio");
        command
            .args([
                "--name=ashlar",
                "--ioengine=io_uring",
                "--direct=1",
                "--thread=0",
            ])
            .args([
                "--time_based",
                "--randrepeat=0",
                "--norandommap",
                "--output-format=json+",
            ])
            .args(["--lat_percentiles=1", "--clat_percentiles=0", "--numjobs=1"])
            .arg(format!("--fixedbufs={fixed}"))
            .arg(format!("--registerfiles={fixed}"))
            .arg(format!("--filename={}", escaped(self.path)))
            .arg(format!(
                "--rw={}",
                if self.write { "write" } else { "randread" }
            ))
            .arg(format!("--bs={}", self.block))
            .arg(format!("--iodepth={}", self.depth))
            .arg(format!(
                "--size={}",
                self.size - self.size % u64::from(self.block)
            ))
            .arg(format!("--runtime={}ms", self.limit.as_millis().max(100)));
        if self.write {
            // Durable one by one, and overwriting what is there.
            command.args(["--sync=dsync", "--overwrite=0", "--file_append=0"]);
        }
        let output = command
            .output()
            .map_err(|e| Fail::Refused(format!("fio does not run: {e}")))?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            let line = errors
                .lines()
                .next()
                .unwrap_or("no reason given")
                .to_owned();
            return Err(Fail::Refused(format!(
                "fio failed on {}: {line}",
                self.path.display()
            )));
        }
        parse(&output.stdout, self.write)
            .map_err(|what| Fail::Refused(format!("fio's answer makes no sense: {what}")))
    }
}

/// Colons separate files for fio.
fn escaped(path: &Path) -> String {
    path.display()
        .to_string()
        .replace('\\', "\\\\")
        .replace(':', "\\:")
}

/// Reads the JSON that fio prints, behind whatever it says before.
fn parse(output: &[u8], write: bool) -> Result<Measured, String> {
    let start = output.iter().position(|b| *b == b'{').ok_or("no JSON")?;
    let value: Value = serde_json::from_slice(&output[start..]).map_err(|e| e.to_string())?;
    let job = value.pointer("/jobs/0").ok_or("no job")?;
    if let Some(error) = job.get("error").and_then(Value::as_i64).filter(|e| *e != 0) {
        return Err(format!("error {error}"));
    }
    let side = job
        .get(if write { "write" } else { "read" })
        .ok_or("no such side")?;
    let number = |name: &str| {
        side.get(name)
            .and_then(Value::as_u64)
            .ok_or_else(|| format!("no {name}"))
    };
    let operations = number("total_ios")?;
    let millis = number("runtime")?;
    let bins = side
        .pointer("/lat_ns/bins")
        .and_then(Value::as_object)
        .ok_or("no latencies")?;
    let mut latency = histogram().map_err(|e| e.to_string())?;
    for (nanos, count) in bins {
        let nanos: u64 = nanos
            .parse()
            .map_err(|_| format!("'{nanos}' is no latency"))?;
        latency.saturating_record_n(nanos, count.as_u64().ok_or("no count")?);
    }
    // More exact than the milliseconds of `runtime` for short runs.
    let iops = side
        .get("iops")
        .and_then(Value::as_f64)
        .filter(|iops| *iops > 0.0);
    let elapsed = match iops {
        Some(iops) => Duration::from_secs_f64(operations as f64 / iops),
        None => Duration::from_millis(millis),
    };
    Ok(Measured {
        operations,
        elapsed,
        latency,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_fio_is_read() {
        let text = br#"fio: some note
            {"jobs": [{"error": 0, "read": {}, "write": {"total_ios": 300, "runtime": 1000, "iops": 300.0,
            "lat_ns": {"bins": {"1000": 200, "5000": 99, "900000": 1}}}}]}"#;
        let measured = parse(text, true).unwrap();
        assert_eq!(measured.operations, 300);
        assert_eq!(measured.elapsed, Duration::from_secs(1));
        assert_eq!(measured.latency.value_at_quantile(0.5), 1000);
        assert_eq!(measured.latency.len(), 300);
        assert!(measured.latency.value_at_quantile(0.999) >= 900_000);
        assert!(parse(text, false).is_err());
        assert!(parse(b"nothing", true).is_err());
        assert!(parse(br#"{"jobs":[{"error":5}]}"#, true).is_err());
    }
}
