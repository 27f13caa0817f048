//! What a person or a script sees: lines, JSON, sizes, progress.
//!
//! Invariants:
//! - standard output carries results only; notes, errors and progress go to standard error;
//! - nothing panics on a closed pipe;
//! - a progress bar shows only on a terminal, and only once a second has passed.

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::fail::Fail;

/// What is shorter needs no bar.
const QUIET: Duration = Duration::from_secs(1);

/// Writes a line to standard output.
pub fn line(text: &str) -> Result<(), Fail> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").map_err(Fail::output)
}

/// Writes a value to standard output as one line of JSON.
pub fn json<T: Serialize>(value: &T) -> Result<(), Fail> {
    let text = serde_json::to_string(value)
        .map_err(|e| Fail::Refused(format!("the result cannot be shown as JSON: {e}")))?;
    line(&text)
}

/// Writes a line to standard error. If that is gone too, there is nobody to tell.
pub fn note(text: &str) {
    let mut one_line = text.replace('\n', " ");
    if text.contains("\n  ") {
        // Text that was laid out by hand (the tail of a log) keeps its lines.
        one_line = text.to_owned();
    }
    let _ = writeln!(io::stderr().lock(), "ashlar: {one_line}");
}

/// `4096` as `4.0 KiB`.
pub fn human(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// Reads `2G`, `512M`, `64MiB`, `4096`: powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text[digits.len()..].trim().to_ascii_uppercase();
    let shift = match unit.trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        _ => return Err(format!("'{text}' is not a size: such as 512M, 2G or 1T")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("'{text}' is not a size"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("'{text}' is too large"))
}

/// Milliseconds since 1970 as `2026-01-31 12:34:56` (UTC).
pub fn time(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 1970 to a date, by counting from 1 March of the year 0, in eras of 400 years: so
    // the leap day is the last of its year.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day_of_month:02} {:02}:{:02}:{:02}",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// A bar with rate and time left, for what takes longer than a second on a terminal.
pub struct Progress {
    bar: ProgressBar,
    hidden_until: Mutex<Option<Instant>>,
}

impl Progress {
    /// Counts bytes; without a total it shows what has gone by.
    pub fn bytes(what: &str, total: Option<u64>) -> Progress {
        let template = match total {
            Some(_) => {
                "{msg} [{wide_bar}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} ETA {eta}"
            }
            None => "{msg} {spinner} {binary_bytes} {binary_bytes_per_sec} {elapsed}",
        };
        Progress::new(what, total, template)
    }

    /// Counts things.
    pub fn things(what: &str, total: Option<u64>) -> Progress {
        let template = match total {
            Some(_) => "{msg} [{wide_bar}] {human_pos}/{human_len} {per_sec} ETA {eta}",
            None => "{msg} {spinner} {human_pos} {per_sec} {elapsed}",
        };
        Progress::new(what, total, template)
    }

    fn new(what: &str, total: Option<u64>, template: &str) -> Progress {
        let bar = match total {
            Some(total) => ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden()),
            None => ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        let hidden_until = io::stderr().is_terminal().then(|| Instant::now() + QUIET);
        Progress {
            bar,
            hidden_until: Mutex::new(hidden_until),
        }
    }

    /// So much more is done.
    pub fn inc(&self, by: u64) {
        self.bar.inc(by);
        let Ok(mut hidden_until) = self.hidden_until.lock() else {
            return;
        };
        if hidden_until.is_some_and(|until| Instant::now() >= until) {
            *hidden_until = None;
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }

    /// There is so much more to do than was known.
    pub fn inc_total(&self, by: u64) {
        self.bar.inc_length(by);
    }

    /// Says something without tearing the bar.
    pub fn note(&self, text: &str) {
        self.bar.suspend(|| note(text));
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, want) in [
            ("0", 0),
            ("4096", 4096),
            ("4K", 4096),
            ("64MiB", 64 << 20),
            ("2g", 2 << 30),
            ("2GB", 2 << 30),
            ("1 T", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(want), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "2X", "99999999999P", "2 Gi B"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_dates() {
        for (ms, want) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400_000, "2000-02-29 00:00:00"),
            (951_868_799_999, "2000-02-29 23:59:59"),
            (1_767_225_599_000, "2025-12-31 23:59:59"),
            (4_107_542_400_000, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(time(ms), want);
        }
    }
}
