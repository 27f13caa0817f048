//! Object lock: what a bucket wants of all that is put into it, and what requests say of a version's lock.
//!
//! Invariants:
//! - what is not understood is refused: a lock that is not there must not be taken for one that is;
//! - what a bucket wants is a function of its configuration and the time; what a lock refuses is the journal's to say.

use ashlar_layout::lock::{Lock, Retention, RetentionMode};
use serde::{Deserialize, Serialize};

use crate::calendar::{DAY_MS, iso_date, parse_iso_date, years_after};
use crate::refusal::{Refusal, refuse};
use crate::xml::{Element, Xml, malformed};

/// Most days of a default retention,
const DAYS_MAX: u32 = 36_500;
/// and most years.
const YEARS_MAX: u32 = 100;

/// How long something is kept that is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Period {
    /// So many days.
    Days(u32),
    /// So many years, by the calendar.
    Years(u32),
}

/// What is kept that nobody said anything of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefaultRetention {
    /// Who may end it.
    pub mode: RetentionMode,
    /// How long it lasts.
    pub period: Period,
}

/// A bucket whose versions can be locked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectLock {
    /// What is kept that nobody said anything of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<DefaultRetention>,
}

impl ObjectLock {
    /// The lock of what is put now, if the request asks for this one.
    pub fn of_new(&self, asked: Lock, now_ms: u64) -> Lock {
        let default = self.default.map(|default| Retention {
            mode: default.mode,
            until_ms: match default.period {
                Period::Days(days) => now_ms.saturating_add(u64::from(days) * DAY_MS),
                Period::Years(years) => years_after(now_ms, u64::from(years)),
            },
        });
        // One that was over before there was anything to keep, of an upload that took long, keeps nothing.
        let lasts = |retention: &Retention| retention.until_ms > now_ms;
        Lock {
            retention: asked.retention.filter(lasts).or(default),
            ..asked
        }
    }
}

/// What a mode is called.
pub fn mode_name(mode: RetentionMode) -> &'static str {
    match mode {
        RetentionMode::Governance => "GOVERNANCE",
        RetentionMode::Compliance => "COMPLIANCE",
    }
}

fn parse_mode(text: &str) -> Option<RetentionMode> {
    match text {
        "GOVERNANCE" => Some(RetentionMode::Governance),
        "COMPLIANCE" => Some(RetentionMode::Compliance),
        _ => None,
    }
}

/// What a hold is called.
pub fn hold_name(held: bool) -> &'static str {
    if held { "ON" } else { "OFF" }
}

fn parse_hold(text: &str) -> Option<bool> {
    match text {
        "ON" => Some(true),
        "OFF" => Some(false),
        _ => None,
    }
}

fn check_future(until_ms: u64, now_ms: u64) -> Result<(), Refusal> {
    if until_ms > now_ms {
        return Ok(());
    }
    refuse!(
        InvalidArgument,
        "The retain until date must be in the future!"
    )
}

/// The lock that the headers of a put ask for: mode, time, and hold.
pub fn parse_headers(
    mode: Option<&str>,
    until: Option<&str>,
    hold: Option<&str>,
    now_ms: u64,
) -> Result<Lock, Refusal> {
    let retention = match (mode, until) {
        (None, None) => None,
        (Some(mode), Some(until)) => {
            let Some(mode) = parse_mode(mode) else {
                return refuse!(InvalidArgument, "Unknown wormMode directive.");
            };
            let Some(until_ms) = parse_iso_date(until) else {
                return refuse!(
                    InvalidArgument,
                    "The retain until date must be provided in ISO 8601 format"
                );
            };
            check_future(until_ms, now_ms)?;
            Some(Retention { mode, until_ms })
        }
        _ => {
            return refuse!(
                InvalidArgument,
                "x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must both be supplied"
            );
        }
    };
    let hold = match hold.map(parse_hold) {
        None => None,
        Some(Some(held)) => Some(held),
        Some(None) => {
            return refuse!(
                InvalidArgument,
                "Legal Hold must be either of 'ON' or 'OFF'"
            );
        }
    };
    Ok(Lock { retention, hold })
}

/// A bucket's configuration.
pub fn parse_configuration(bytes: &[u8]) -> Result<ObjectLock, Refusal> {
    let root = Element::parse(bytes, "ObjectLockConfiguration")?;
    root.only(&["ObjectLockEnabled", "Rule"])?;
    if root.text_of("ObjectLockEnabled")?.map(str::trim) != Some("Enabled") {
        return malformed();
    }
    let Some(rule) = root.child("Rule")? else {
        return Ok(ObjectLock::default());
    };
    let Some(default) = rule
        .only(&["DefaultRetention"])?
        .child("DefaultRetention")?
    else {
        return malformed();
    };
    default.only(&["Mode", "Days", "Years"])?;
    let Some(mode) = parse_mode(default.needed("Mode")?.trim()) else {
        return malformed();
    };
    let period = match (default.number("Days")?, default.number("Years")?) {
        (Some(days), None) => Period::Days(length(days, DAYS_MAX)?),
        (None, Some(years)) => Period::Years(length(years, YEARS_MAX)?),
        _ => return malformed(),
    };
    Ok(ObjectLock {
        default: Some(DefaultRetention { mode, period }),
    })
}

fn length(said: i64, most: u32) -> Result<u32, Refusal> {
    match u32::try_from(said) {
        Ok(length) if (1..=most).contains(&length) => Ok(length),
        Ok(length) if length > most => refuse!(
            InvalidRetentionPeriod,
            "Default retention period too large: at most {most}"
        ),
        _ => refuse!(
            InvalidRetentionPeriod,
            "Default retention period must be a positive integer value"
        ),
    }
}

/// A bucket's configuration, as a document.
pub fn write_configuration(lock: &ObjectLock) -> String {
    Xml::document("ObjectLockConfiguration", |xml| {
        xml.text("ObjectLockEnabled", "Enabled");
        let Some(default) = &lock.default else {
            return;
        };
        xml.element("Rule", |xml| {
            xml.element("DefaultRetention", |xml| {
                xml.text("Mode", mode_name(default.mode));
                match default.period {
                    Period::Days(days) => xml.value("Days", days),
                    Period::Years(years) => xml.value("Years", years),
                }
            });
        });
    })
}

/// A version's retention; nothing, if there is to be none any more.
pub fn parse_retention(bytes: &[u8], now_ms: u64) -> Result<Option<Retention>, Refusal> {
    let root = Element::parse(bytes, "Retention")?;
    root.only(&["Mode", "RetainUntilDate"])?;
    let (mode, until) = match (root.text_of("Mode")?, root.text_of("RetainUntilDate")?) {
        (None, None) => return Ok(None),
        (Some(mode), Some(until)) => (parse_mode(mode.trim()), parse_iso_date(until.trim())),
        _ => return malformed(),
    };
    let (Some(mode), Some(until_ms)) = (mode, until) else {
        return malformed();
    };
    check_future(until_ms, now_ms)?;
    Ok(Some(Retention { mode, until_ms }))
}

/// A version's retention, as a document.
pub fn write_retention(retention: &Retention) -> String {
    Xml::document("Retention", |xml| {
        xml.text("Mode", mode_name(retention.mode));
        xml.text("RetainUntilDate", &iso_date(retention.until_ms));
    })
}

/// Whether a version is to be held.
pub fn parse_legal_hold(bytes: &[u8]) -> Result<bool, Refusal> {
    let root = Element::parse(bytes, "LegalHold")?;
    root.only(&["Status"])?;
    match parse_hold(root.needed("Status")?.trim()) {
        Some(held) => Ok(held),
        None => malformed(),
    }
}

/// Whether a version is held, as a document.
pub fn write_legal_hold(held: bool) -> String {
    Xml::document("LegalHold", |xml| xml.text("Status", hold_name(held)))
}

/// So many days, begun ones included, does it last from now on: what policies look at.
pub fn remaining_days(until_ms: u64, now_ms: u64) -> u64 {
    until_ms.saturating_sub(now_ms).div_ceil(DAY_MS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::refusal::Code;

    const NOW: u64 = 1_700_000_000_000;

    fn configuration(rest: &str) -> Result<ObjectLock, Code> {
        let text = format!("<ObjectLockConfiguration>{rest}</ObjectLockConfiguration>");
        parse_configuration(text.as_bytes()).map_err(|refusal| refusal.code)
    }

    fn rule(rest: &str) -> Result<ObjectLock, Code> {
        configuration(&format!(
            "<ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>{rest}\
             </DefaultRetention></Rule>"
        ))
    }

    #[test]
    fn configurations() {
        let enabled = configuration("<ObjectLockEnabled>Enabled</ObjectLockEnabled>").unwrap();
        assert_eq!(enabled, ObjectLock::default());
        let days = rule("<Mode>GOVERNANCE</Mode><Days>36500</Days>").unwrap();
        let years = rule("<Mode>COMPLIANCE</Mode><Years>1</Years>").unwrap();
        let is = |mode, period| {
            let default = Some(DefaultRetention { mode, period });
            ObjectLock { default }
        };
        assert_eq!(days, is(RetentionMode::Governance, Period::Days(36_500)));
        assert_eq!(years, is(RetentionMode::Compliance, Period::Years(1)));
        for lock in [enabled, days, years] {
            assert_eq!(
                parse_configuration(write_configuration(&lock).as_bytes()),
                Ok(lock)
            );
            let json = serde_json::to_string(&lock).unwrap();
            assert_eq!(serde_json::from_str::<ObjectLock>(&json).unwrap(), lock);
        }
        let text = r#"{"default":{"mode":"Governance","period":{"days":36500}}}"#;
        assert_eq!(serde_json::to_string(&days).unwrap(), text);
    }

    #[test]
    fn configurations_that_are_refused() {
        use Code::{InvalidRetentionPeriod, MalformedXML};
        for bad in [
            "",
            "<ObjectLockEnabled>Disabled</ObjectLockEnabled>",
            "<ObjectLockEnabled>Enabled</ObjectLockEnabled><Other/>",
            "<ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule/>",
        ] {
            assert_eq!(configuration(bad), Err(MalformedXML), "{bad}");
        }
        for (bad, code) in [
            ("<Mode>GOVERNANCE</Mode>", MalformedXML),
            ("<Days>1</Days>", MalformedXML),
            ("<Mode>governance</Mode><Days>1</Days>", MalformedXML),
            ("<Mode>abc</Mode><Days>1</Days>", MalformedXML),
            ("<Mode>GOVERNANCE</Mode><Days>x</Days>", MalformedXML),
            (
                "<Mode>GOVERNANCE</Mode><Days>1</Days><Years>1</Years>",
                MalformedXML,
            ),
            (
                "<Mode>GOVERNANCE</Mode><Days>0</Days>",
                InvalidRetentionPeriod,
            ),
            (
                "<Mode>GOVERNANCE</Mode><Years>-1</Years>",
                InvalidRetentionPeriod,
            ),
            (
                "<Mode>GOVERNANCE</Mode><Days>36501</Days>",
                InvalidRetentionPeriod,
            ),
            (
                "<Mode>GOVERNANCE</Mode><Years>101</Years>",
                InvalidRetentionPeriod,
            ),
            (
                "<Mode>GOVERNANCE</Mode><Days>4294967297</Days>",
                InvalidRetentionPeriod,
            ),
        ] {
            assert_eq!(rule(bad), Err(code), "{bad}");
        }
    }

    #[test]
    fn what_a_bucket_wants() {
        let bucket = |mode, period| ObjectLock {
            default: Some(DefaultRetention { mode, period }),
        };
        let days = bucket(RetentionMode::Governance, Period::Days(2));
        let lock = days.of_new(Lock::NONE, NOW);
        let retention = lock.retention.unwrap();
        assert_eq!(retention.until_ms, NOW + 2 * DAY_MS);
        assert_eq!(
            (retention.mode, lock.hold),
            (RetentionMode::Governance, None)
        );
        let years = bucket(RetentionMode::Compliance, Period::Years(1));
        let until_ms = years.of_new(Lock::NONE, NOW).retention.unwrap().until_ms;
        assert_eq!(iso_date(NOW), "2023-11-14T22:13:20.000Z");
        assert_eq!(iso_date(until_ms), "2024-11-14T22:13:20.000Z");
        // What the request says counts, but a hold says nothing of a time.
        let asked = Lock {
            retention: Some(Retention {
                mode: RetentionMode::Governance,
                until_ms: NOW + 5,
            }),
            hold: Some(true),
        };
        assert_eq!(years.of_new(asked, NOW), asked);
        // One that is over by then, of an upload that took long, keeps nothing: the bucket's does.
        let late = asked.retention.unwrap().until_ms;
        let made = years.of_new(asked, late).retention.unwrap();
        assert_eq!(
            (made.mode, made.until_ms > late),
            (RetentionMode::Compliance, true)
        );
        let held = Lock {
            hold: Some(true),
            ..Lock::NONE
        };
        let both = years.of_new(held, NOW);
        assert!(both.hold == Some(true) && both.retention.is_some());
        assert_eq!(ObjectLock::default().of_new(held, NOW), held);
    }

    #[test]
    fn headers() {
        let until = iso_date(NOW + 1000);
        let parse = |mode, until, hold| {
            parse_headers(mode, until, hold, NOW).map_err(|refusal| refusal.code)
        };
        assert_eq!(parse(None, None, None), Ok(Lock::NONE));
        let lock = parse(Some("COMPLIANCE"), Some(&until), Some("OFF")).unwrap();
        let retention = Retention {
            mode: RetentionMode::Compliance,
            until_ms: NOW + 1000,
        };
        assert_eq!((lock.retention, lock.hold), (Some(retention), Some(false)));
        let past = iso_date(NOW);
        for (mode, until, hold) in [
            (Some("COMPLIANCE"), None, None),
            (None, Some(&*until), None),
            (Some("compliance"), Some(&*until), None),
            (Some("COMPLIANCE"), Some("tomorrow"), None),
            (Some("COMPLIANCE"), Some(&*past), None),
            (None, None, Some("on")),
            (None, None, Some("")),
        ] {
            assert_eq!(parse(mode, until, hold), Err(Code::InvalidArgument));
        }
    }

    #[test]
    fn retentions_and_holds() {
        let parse = |rest: &str| {
            let text = format!("<Retention>{rest}</Retention>");
            parse_retention(text.as_bytes(), NOW).map_err(|refusal| refusal.code)
        };
        let until = |ms| format!("<RetainUntilDate>{}</RetainUntilDate>", iso_date(ms));
        assert_eq!(parse(""), Ok(None));
        let retention = Retention {
            mode: RetentionMode::Governance,
            until_ms: NOW + 1,
        };
        let text = format!("<Mode>GOVERNANCE</Mode>{}", until(NOW + 1));
        assert_eq!(parse(&text), Ok(Some(retention)));
        let again = parse_retention(write_retention(&retention).as_bytes(), NOW);
        assert_eq!(again, Ok(Some(retention)));
        for bad in [
            "<Mode>GOVERNANCE</Mode>".to_owned(),
            until(NOW + 1),
            format!("<Mode>governance</Mode>{}", until(NOW + 1)),
            "<Mode>GOVERNANCE</Mode><RetainUntilDate>x</RetainUntilDate>".to_owned(),
            format!("<Mode>GOVERNANCE</Mode>{}<Days>1</Days>", until(NOW + 1)),
        ] {
            assert_eq!(parse(&bad), Err(Code::MalformedXML), "{bad}");
        }
        let past = format!("<Mode>GOVERNANCE</Mode>{}", until(NOW));
        assert_eq!(parse(&past), Err(Code::InvalidArgument));
        for held in [true, false] {
            assert_eq!(
                parse_legal_hold(write_legal_hold(held).as_bytes()),
                Ok(held)
            );
        }
        for bad in [
            "<LegalHold/>",
            "<LegalHold><Status>on</Status></LegalHold>",
            "<Status>ON</Status>",
        ] {
            let refused = parse_legal_hold(bad.as_bytes()).unwrap_err();
            assert_eq!(refused.code, Code::MalformedXML, "{bad}");
        }
    }

    #[test]
    fn days_that_remain() {
        assert_eq!(remaining_days(NOW + DAY_MS, NOW), 1);
        assert_eq!(remaining_days(NOW + DAY_MS + 1, NOW), 2);
        assert_eq!(remaining_days(NOW - 1, NOW), 0);
    }

    proptest! {
        #[test]
        fn whatever_comes(text in "(<[/A-Z]?[a-zA-Z]{0,8}>|[a-zA-Z0-9-]{0,9}){0,20}") {
            let _ = configuration(&text);
            let _ = rule(&text);
            let _ = parse_retention(text.as_bytes(), NOW);
            let _ = parse_legal_hold(text.as_bytes());
            let _ = parse_headers(Some(&text), Some(&text), Some(&text), NOW);
        }
    }
}
