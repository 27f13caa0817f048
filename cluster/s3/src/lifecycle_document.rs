//! Lifecycle rules as documents.
//!
//! Invariant: a rule is taken whole or refused: an action that is not there yet is `NotImplemented`, and no
//! other rule of its document is kept.

use crate::calendar::{iso_date, parse_iso_date};
use crate::lifecycle::{Filter, LifecycleRule, When, check};
use crate::refusal::{Refusal, refuse};
use crate::tags::Tags;
use crate::xml::{Element, Xml, malformed};

/// Actions that there are no objects for: none has another class.
const NOT_THERE: [&str; 2] = ["Transition", "NoncurrentVersionTransition"];
const MARKERS: &str = "ExpiredObjectDeleteMarker";

/// Lifecycle rules. `seed` names those that have no name.
pub fn parse_lifecycle(bytes: &[u8], seed: u64) -> Result<Vec<LifecycleRule>, Refusal> {
    let root = Element::parse(bytes, "LifecycleConfiguration")?;
    root.only(&["Rule"])?;
    let rules = root
        .all("Rule")
        .enumerate()
        .map(|(i, rule)| parse_rule(rule, || format!("rule-{seed:016x}-{i}")))
        .collect::<Result<Vec<_>, Refusal>>()?;
    check(&rules)?;
    Ok(rules)
}

fn parse_rule(rule: &Element, name: impl Fn() -> String) -> Result<LifecycleRule, Refusal> {
    rule.only(&[
        "ID",
        "Status",
        "Prefix",
        "Filter",
        "Expiration",
        "AbortIncompleteMultipartUpload",
        "NoncurrentVersionExpiration",
        NOT_THERE[0],
        NOT_THERE[1],
    ])?;
    let enabled = match rule.needed("Status")?.trim() {
        "Enabled" => true,
        "Disabled" => false,
        _ => return malformed(),
    };
    let (filter, bare_prefix) = match (rule.text_of("Prefix")?, rule.child("Filter")?) {
        (Some(prefix), None) => {
            let prefix = prefix.to_owned();
            let filter = Filter {
                prefix,
                ..Filter::default()
            };
            (filter, true)
        }
        (None, Some(filter)) => (parse_filter(filter)?, false),
        _ => return malformed(),
    };
    let (expiration, expired_markers) = match rule.child("Expiration")? {
        None => (None, false),
        Some(element) => parse_expiration(element)?,
    };
    let (noncurrent_days, noncurrent_kept) = match rule.child("NoncurrentVersionExpiration")? {
        None => (None, 0),
        Some(element) => parse_noncurrent(element)?,
    };
    let abort = rule.child("AbortIncompleteMultipartUpload")?;
    let abort_days = match abort {
        None => None,
        Some(abort) => match days(abort.only(&["DaysAfterInitiation"])?, "DaysAfterInitiation")? {
            None => return malformed(),
            some => some,
        },
    };
    // Behind what can be wrong with the rest: what is refused here may be asked for of others.
    if let Some(action) = NOT_THERE
        .iter()
        .find(|name| rule.all(name).next().is_some())
    {
        return refuse!(NotImplemented, "The action {action} is not implemented");
    }
    let id = rule.text_of("ID")?.filter(|id| !id.is_empty());
    Ok(LifecycleRule {
        id: id.map_or_else(name, str::to_owned),
        enabled,
        filter,
        bare_prefix,
        expiration,
        expired_markers,
        noncurrent_days,
        noncurrent_kept,
        abort_days,
    })
}

/// So many days: a number, and not 0.
fn days(element: &Element, name: &str) -> Result<Option<u32>, Refusal> {
    match element.number::<i64>(name)? {
        None => Ok(None),
        Some(days) => match u32::try_from(days) {
            Ok(days) if days > 0 => Ok(Some(days)),
            _ => refuse!(
                InvalidArgument,
                "'{name}' for Expiration action must be a positive integer"
            ),
        },
    }
}

/// After how many days versions end, and how many of the newest stay.
fn parse_noncurrent(element: &Element) -> Result<(Option<u32>, u32), Refusal> {
    element.only(&["NoncurrentDays", "NewerNoncurrentVersions"])?;
    let days = days(element, "NoncurrentDays")?;
    if days.is_none() {
        return malformed();
    }
    let kept = match element.number::<i64>("NewerNoncurrentVersions")? {
        None => 0,
        Some(kept) => match u32::try_from(kept) {
            Ok(kept) if kept > 0 => kept,
            _ => {
                return refuse!(
                    InvalidArgument,
                    "'NewerNoncurrentVersions' must be 1 to 100"
                );
            }
        },
    };
    Ok((days, kept))
}

/// When objects end, and whether markers with nothing under them do.
fn parse_expiration(element: &Element) -> Result<(Option<When>, bool), Refusal> {
    element.only(&["Days", "Date", MARKERS])?;
    let date = element.text_of("Date")?;
    match (days(element, "Days")?, date, element.flag(MARKERS)?) {
        (Some(days), None, None) => Ok((Some(When::Days(days)), false)),
        (None, Some(date), None) => {
            // Without its hyphens it is another form of a date, which S3 does not take.
            match parse_iso_date(date.trim()) {
                Some(at) => Ok((Some(When::Date(at)), false)),
                None => malformed(),
            }
        }
        (None, None, Some(markers)) => Ok((None, markers)),
        _ => malformed(),
    }
}

fn parse_filter(filter: &Element) -> Result<Filter, Refusal> {
    const ONE: [&str; 5] = [
        "Prefix",
        "Tag",
        "ObjectSizeGreaterThan",
        "ObjectSizeLessThan",
        "And",
    ];
    filter.only(&ONE)?;
    let found = match (filter.child("And")?, filter.children.len()) {
        (Some(and), 1) => and.only(&ONE[..4])?,
        (None, 0 | 1) => filter,
        _ => return malformed(),
    };
    let tags = found
        .all("Tag")
        .map(|tag| {
            tag.only(&["Key", "Value"])?;
            Ok((
                tag.needed("Key")?.to_owned(),
                tag.needed("Value")?.to_owned(),
            ))
        })
        .collect::<Result<Tags, Refusal>>()?;
    Ok(Filter {
        prefix: found.text_of("Prefix")?.unwrap_or_default().to_owned(),
        tags,
        larger_than: found.number("ObjectSizeGreaterThan")?,
        smaller_than: found.number("ObjectSizeLessThan")?,
    })
}

/// Lifecycle rules as a document.
pub fn write_lifecycle(rules: &[LifecycleRule]) -> String {
    Xml::document("LifecycleConfiguration", |xml| {
        for rule in rules {
            xml.element("Rule", |xml| {
                xml.text("ID", &rule.id);
                match rule.bare_prefix {
                    true => xml.text("Prefix", &rule.filter.prefix),
                    false => xml.element("Filter", |xml| write_filter(xml, &rule.filter)),
                }
                xml.text("Status", if rule.enabled { "Enabled" } else { "Disabled" });
                match rule.expiration {
                    None if rule.expired_markers => {
                        xml.element("Expiration", |xml| xml.value(MARKERS, true));
                    }
                    None => {}
                    Some(When::Days(days)) => {
                        xml.element("Expiration", |xml| xml.value("Days", days));
                    }
                    Some(When::Date(at)) => {
                        xml.element("Expiration", |xml| xml.text("Date", &iso_date(at)));
                    }
                }
                if let Some(days) = rule.noncurrent_days {
                    xml.element("NoncurrentVersionExpiration", |xml| {
                        xml.value("NoncurrentDays", days);
                        if rule.noncurrent_kept > 0 {
                            xml.value("NewerNoncurrentVersions", rule.noncurrent_kept);
                        }
                    });
                }
                if let Some(days) = rule.abort_days {
                    xml.element("AbortIncompleteMultipartUpload", |xml| {
                        xml.value("DaysAfterInitiation", days);
                    });
                }
            });
        }
    })
}

fn write_filter(xml: &mut Xml, filter: &Filter) {
    let sizes = [
        ("ObjectSizeGreaterThan", filter.larger_than),
        ("ObjectSizeLessThan", filter.smaller_than),
    ];
    let said = usize::from(!filter.prefix.is_empty())
        + filter.tags.len()
        + sizes.iter().filter(|(_, size)| size.is_some()).count();
    let all = |xml: &mut Xml| {
        // A filter without anything in it is one of all objects.
        if !filter.prefix.is_empty() || said == 0 {
            xml.text("Prefix", &filter.prefix);
        }
        for (key, value) in &filter.tags {
            xml.element("Tag", |xml| {
                xml.text("Key", key);
                xml.text("Value", value);
            });
        }
        for (name, size) in sizes {
            if let Some(size) = size {
                xml.value(name, size);
            }
        }
    };
    match said {
        0 | 1 => all(xml),
        _ => xml.element("And", all),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::refusal::Code;

    fn parse(rules: &str) -> Result<Vec<LifecycleRule>, Code> {
        let text = format!("<LifecycleConfiguration>{rules}</LifecycleConfiguration>");
        parse_lifecycle(text.as_bytes(), 7).map_err(|refusal| refusal.code)
    }

    fn rule(more: &str) -> String {
        format!("<Rule><ID>r</ID><Status>Enabled</Status>{more}</Rule>")
    }

    const DAYS: &str = "<Expiration><Days>3</Days></Expiration>";
    const NONCURRENT: &str = "<NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays>\
        </NoncurrentVersionExpiration>";

    fn markers(flag: &str) -> String {
        format!("<Expiration><{MARKERS}>{flag}</{MARKERS}></Expiration>")
    }

    #[test]
    fn there_and_back() {
        for more in [
            format!("<Prefix>a/</Prefix>{DAYS}"),
            format!("<Filter/>{DAYS}"),
            format!("<Filter><Prefix>a</Prefix></Filter>{DAYS}"),
            format!("<Filter><Tag><Key>k</Key><Value>v</Value></Tag></Filter>{DAYS}"),
            format!("<Filter><ObjectSizeLessThan>9</ObjectSizeLessThan></Filter>{DAYS}"),
            format!(
                "<Filter><And><Prefix>a</Prefix><Tag><Key>k</Key><Value>v</Value></Tag><Tag><Key>l</Key>\
                 <Value/></Tag><ObjectSizeGreaterThan>1</ObjectSizeGreaterThan></And></Filter>{DAYS}"
            ),
            "<Prefix/><Expiration><Date>2024-01-01T00:00:00.000Z</Date></Expiration>".to_owned(),
            "<Filter/><AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation>\
             </AbortIncompleteMultipartUpload>"
                .to_owned(),
            format!("<Filter/>{DAYS}{NONCURRENT}"),
            "<Filter/><NoncurrentVersionExpiration><NoncurrentDays>3</NoncurrentDays><NewerNoncurrentVersions>2\
             </NewerNoncurrentVersions></NoncurrentVersionExpiration>"
                .to_owned(),
            format!("<Filter><Prefix>a</Prefix></Filter>{}{NONCURRENT}", markers("true")),
        ] {
            let rules = parse(&rule(&more)).unwrap();
            let again = parse_lifecycle(write_lifecycle(&rules).as_bytes(), 8);
            assert_eq!(again.unwrap(), rules, "{more}");
        }
        let none = parse(&rule(&format!("<Filter/>{NONCURRENT}{}", markers("false")))).unwrap();
        assert!(!none[0].expired_markers && none[0].noncurrent_days == Some(1));
        let unnamed = format!("<Rule><Status>Disabled</Status><Prefix/>{DAYS}</Rule>");
        let rules = parse(&unnamed.repeat(2)).unwrap();
        assert!(rules[0].id != rules[1].id && !rules[0].enabled && rules[0].bare_prefix);
    }

    #[test]
    fn what_is_refused() {
        let code = |more: &str| parse(&rule(more)).unwrap_err();
        for bad in [
            DAYS.to_owned(),
            format!("<Prefix/><Filter/>{DAYS}"),
            format!("<Prefix/>{DAYS}<Other/>"),
            "<Prefix/><Expiration><Days>x</Days></Expiration>".to_owned(),
            "<Prefix/><Expiration><Date>20200101</Date></Expiration>".to_owned(),
            "<Prefix/><Expiration><Days>1</Days><Date>2020-01-01</Date></Expiration>".to_owned(),
            "<Prefix/><Expiration/>".to_owned(),
            format!("<Filter><Prefix>a</Prefix><Prefix>b</Prefix></Filter>{DAYS}"),
            "<Prefix/><AbortIncompleteMultipartUpload/>".to_owned(),
        ] {
            assert_eq!(code(&bad), Code::MalformedXML, "{bad}");
        }
        for days in ["0", "-1", "4294967296"] {
            let bad = format!("<Prefix/><Expiration><Days>{days}</Days></Expiration>");
            assert_eq!(code(&bad), Code::InvalidArgument);
        }
        assert_eq!(
            code("<Prefix/><Expiration><Date>2020-01-01T01:00:00Z</Date></Expiration>"),
            Code::InvalidArgument
        );
        assert_eq!(code("<Prefix/>"), Code::InvalidRequest);
        for action in NOT_THERE {
            let bad = format!("<Prefix/>{DAYS}<{action}><Days>1</Days></{action}>");
            assert_eq!(code(&bad), Code::NotImplemented);
        }
        let noncurrent = |rest: &str| {
            let element = "NoncurrentVersionExpiration";
            code(&format!("<Prefix/><{element}>{rest}</{element}>"))
        };
        let kept = "<NewerNoncurrentVersions>0</NewerNoncurrentVersions>";
        let day = "<NoncurrentDays>1</NoncurrentDays>";
        assert_eq!(noncurrent(""), Code::MalformedXML);
        assert_eq!(noncurrent(kept), Code::MalformedXML);
        assert_eq!(noncurrent(&format!("{day}<Other/>")), Code::MalformedXML);
        assert_eq!(noncurrent(&format!("{day}{kept}")), Code::InvalidArgument);
        let many = format!("{day}{}", kept.replace('0', "101"));
        assert_eq!(noncurrent(&many), Code::InvalidArgument);
        assert_eq!(
            noncurrent("<NoncurrentDays>0</NoncurrentDays>"),
            Code::InvalidArgument
        );
        assert_eq!(
            code(&format!("<Prefix/>{}", markers("false"))),
            Code::InvalidRequest
        );
        let status = format!("<Rule><Status>enabled</Status><Prefix/>{DAYS}</Rule>");
        assert_eq!(parse(&status).unwrap_err(), Code::MalformedXML);
        assert_eq!(parse("").unwrap_err(), Code::MalformedXML);
    }

    proptest! {
        #[test]
        fn whatever_comes(text in "(<[/A-Z]?[a-zA-Z]{0,8}>|[a-z0-9-]{0,9}){0,20}") {
            let _ = parse(&text);
            let _ = parse(&rule(&text));
        }
    }
}
