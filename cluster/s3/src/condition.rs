//! Conditions of policies: an operator, a key of the request, and what it is compared with.
//!
//! Invariant: what the request does not say makes a condition false, unless the operator is a negated
//! one, or says `IfExists`.

use core::net::IpAddr;
use std::collections::BTreeMap;

use crate::calendar::{iso_date, parse_iso_date};
use crate::pattern::{Case, Pattern};
use crate::refusal::{Refusal, refuse};
use crate::text::from_base64;

/// What a request says of itself: keys in lower case, each with its values.
pub type Keys = BTreeMap<String, Vec<String>>;

/// The keys that a request can say something of. A policy that names another one is refused: it would
/// hold, or not, for no reason.
const KEYS: &[&str] = &[
    "aws:currenttime",
    "aws:epochtime",
    "aws:principalaccount",
    "aws:principalarn",
    "aws:principaltype",
    "aws:referer",
    "aws:securetransport",
    "aws:sourceip",
    "aws:useragent",
    "aws:userid",
    "aws:username",
    "s3:authtype",
    "s3:delimiter",
    "s3:if-match",
    "s3:if-none-match",
    "s3:locationconstraint",
    "s3:max-keys",
    "s3:object-lock-legal-hold",
    "s3:object-lock-mode",
    "s3:object-lock-remaining-retention-days",
    "s3:object-lock-retain-until-date",
    "s3:objectcreationoperation",
    "s3:prefix",
    "s3:requestobjecttagkeys",
    "s3:signatureage",
    "s3:signatureversion",
    "s3:versionid",
    "s3:x-amz-acl",
    "s3:x-amz-content-sha256",
    "s3:x-amz-grant-full-control",
    "s3:x-amz-grant-read",
    "s3:x-amz-grant-read-acp",
    "s3:x-amz-grant-write",
    "s3:x-amz-grant-write-acp",
    "s3:x-amz-object-ownership",
    // What these say is refused wherever it is asked for, so that a request never says it. A policy may
    // still tell what is to be denied, or allowed if it is not said.
    "aws:sourceaccount",
    "aws:sourcearn",
    "s3:x-amz-server-side-encryption-aws-kms-key-id",
    "s3:x-amz-server-side-encryption-customer-algorithm",
    "s3:x-amz-website-redirect-location",
    "s3:x-amz-copy-source",
    "s3:x-amz-metadata-directive",
    "s3:x-amz-server-side-encryption",
    "s3:x-amz-storage-class",
];
/// What keys begin with that end in the name of a tag that the object has,
pub const EXISTING_TAG: &str = "s3:existingobjecttag/";
/// and of one that it is to have.
pub const REQUESTED_TAG: &str = "s3:requestobjecttag/";
const TAG_KEYS: &[&str] = &[EXISTING_TAG, REQUESTED_TAG];

/// Whether a request can say something of this key, given in lower case.
pub fn is_known(key: &str) -> bool {
    KEYS.contains(&key) || TAG_KEYS.iter().any(|beginning| key.starts_with(beginning))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compare {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Compare {
    fn holds<T: PartialOrd>(self, said: T, wanted: T) -> bool {
        match self {
            Compare::Equal => said == wanted,
            Compare::Less => said < wanted,
            Compare::LessOrEqual => said <= wanted,
            Compare::Greater => said > wanted,
            Compare::GreaterOrEqual => said >= wanted,
        }
    }
}

/// What something is compared with, parsed.
#[derive(Clone, Debug, PartialEq)]
enum Wanted {
    Text(Pattern, Case),
    Arn(Vec<Pattern>),
    Number(Compare, f64),
    Date(Compare, u64),
    Bool(bool),
    Binary(Vec<u8>),
    Address(IpAddr, u8),
    Null(bool),
}

/// How the values of a key that has many are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Any,
    All,
}

/// A condition.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    key: String,
    set: Option<Set>,
    negated: bool,
    if_exists: bool,
    wanted: Vec<Wanted>,
}

impl Condition {
    /// Of an operator, a key, and the values that one of them must fit.
    pub fn new(
        operator: &str,
        key: &str,
        values: &[String],
        variables: bool,
    ) -> Result<Condition, Refusal> {
        let key = key.to_ascii_lowercase();
        if !is_known(&key) {
            return refuse!(
                MalformedPolicy,
                "Policy has an invalid condition key: {key}"
            );
        }
        let (set, rest) = match operator.split_once(':') {
            Some(("ForAnyValue", rest)) => (Some(Set::Any), rest),
            Some(("ForAllValues", rest)) => (Some(Set::All), rest),
            _ => (None, operator),
        };
        let (name, if_exists) = match rest.strip_suffix("IfExists") {
            Some(name) => (name, true),
            None => (rest, false),
        };
        let negated = matches!(
            name,
            "StringNotEquals"
                | "StringNotEqualsIgnoreCase"
                | "StringNotLike"
                | "NumericNotEquals"
                | "DateNotEquals"
                | "NotIpAddress"
                | "ArnNotEquals"
                | "ArnNotLike"
        );
        let mut wanted = Vec::new();
        for value in values {
            match parse(name, value, variables) {
                Some(Some(value)) => wanted.push(value),
                Some(None) => {
                    return refuse!(
                        MalformedPolicy,
                        "Invalid value {value:?} for {operator} in policy"
                    );
                }
                None => {
                    return refuse!(MalformedPolicy, "Invalid Condition type : {operator}");
                }
            }
        }
        if wanted.is_empty() || name == "Null" && (if_exists || set.is_some()) {
            return refuse!(
                MalformedPolicy,
                "Policy has an invalid condition with {operator}"
            );
        }
        Ok(Condition {
            key,
            set,
            negated,
            if_exists,
            wanted,
        })
    }

    /// The key that it looks at.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The keys that its values' variables look at.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.wanted.iter().flat_map(|wanted| match wanted {
            Wanted::Text(pattern, _) => pattern.variables().collect(),
            Wanted::Arn(patterns) => patterns.iter().flat_map(Pattern::variables).collect(),
            _ => Vec::new(),
        })
    }

    /// Whether it narrows who may call to fixed values: what makes an open policy not a public one.
    pub fn narrows(&self) -> bool {
        let narrowing = matches!(
            self.key.as_str(),
            "aws:sourceip"
                | "aws:userid"
                | "aws:username"
                | "aws:principalarn"
                | "aws:principalaccount"
        );
        let fixed = |wanted: &Wanted| match wanted {
            Wanted::Text(pattern, _) => pattern.is_fixed(),
            Wanted::Arn(patterns) => patterns.iter().all(Pattern::is_fixed),
            // As S3 sees it: half of the internet is public.
            Wanted::Address(IpAddr::V4(_), bits) => *bits > 8,
            Wanted::Address(IpAddr::V6(_), bits) => *bits > 32,
            _ => false,
        };
        // What holds for a request that says nothing keeps nobody out.
        let needs_it = !self.negated && !self.if_exists && self.set != Some(Set::All);
        narrowing && needs_it && self.wanted.iter().all(fixed)
    }

    /// Whether it holds for a request.
    pub fn holds(&self, keys: &Keys) -> bool {
        let said = keys.get(&self.key).map(Vec::as_slice).unwrap_or_default();
        if let [Wanted::Null(absent), ..] = self.wanted[..] {
            return self.wanted.iter().any(|_| absent == said.is_empty());
        }
        if said.is_empty() {
            // Of no value at all none is any.
            return self.if_exists
                || match self.set {
                    Some(set) => set == Set::All,
                    None => self.negated,
                };
        }
        let fits = |value: &String| {
            let any = self.wanted.iter().any(|wanted| wanted.fits(value, keys));
            any != self.negated
        };
        match self.set {
            Some(Set::All) => said.iter().all(fits),
            Some(Set::Any) => said.iter().any(fits),
            // Of many values that nobody said how to take, a negated one must hold for all.
            None if self.negated => said.iter().all(fits),
            None => said.iter().any(fits),
        }
    }
}

/// `None`: no such operator. `Some(None)`: no such value.
fn parse(name: &str, value: &str, variables: bool) -> Option<Option<Wanted>> {
    let number = |compare| {
        let number = value.parse::<f64>().ok().filter(|n| n.is_finite())?;
        Some(Wanted::Number(compare, number))
    };
    let date = |compare| Some(Wanted::Date(compare, date_of(value)?));
    let arn = || {
        let parts: Vec<&str> = value.splitn(6, ':').collect();
        let pattern = |part: &&str| Pattern::new(part, variables);
        (value == "*" || parts.len() == 6).then(|| Wanted::Arn(parts.iter().map(pattern).collect()))
    };
    Some(match name {
        "StringEquals" | "StringNotEquals" => {
            Some(Wanted::Text(Pattern::exact(value, variables), Case::Kept))
        }
        "StringEqualsIgnoreCase" | "StringNotEqualsIgnoreCase" => Some(Wanted::Text(
            Pattern::exact(value, variables),
            Case::Ignored,
        )),
        "StringLike" | "StringNotLike" => {
            Some(Wanted::Text(Pattern::new(value, variables), Case::Kept))
        }
        "ArnEquals" | "ArnLike" | "ArnNotEquals" | "ArnNotLike" => arn(),
        "NumericEquals" | "NumericNotEquals" => number(Compare::Equal),
        "NumericLessThan" => number(Compare::Less),
        "NumericLessThanEquals" => number(Compare::LessOrEqual),
        "NumericGreaterThan" => number(Compare::Greater),
        "NumericGreaterThanEquals" => number(Compare::GreaterOrEqual),
        "DateEquals" | "DateNotEquals" => date(Compare::Equal),
        "DateLessThan" => date(Compare::Less),
        "DateLessThanEquals" => date(Compare::LessOrEqual),
        "DateGreaterThan" => date(Compare::Greater),
        "DateGreaterThanEquals" => date(Compare::GreaterOrEqual),
        "Bool" => bool_of(value).map(Wanted::Bool),
        "Null" => bool_of(value).map(Wanted::Null),
        "BinaryEquals" => from_base64(value).map(Wanted::Binary),
        "IpAddress" | "NotIpAddress" => network(value),
        _ => return None,
    })
}

fn bool_of(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// An ISO date, or seconds since 1970.
fn date_of(text: &str) -> Option<u64> {
    let seconds = || text.parse::<u64>().ok()?.checked_mul(1000);
    parse_iso_date(text).or_else(seconds)
}

fn network(text: &str) -> Option<Wanted> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.unwrap_or(most);
    (bits <= most).then_some(Wanted::Address(address, bits))
}

/// An address as 128 bits from the left, and whether it is a new one.
fn bits_of(address: IpAddr) -> (u128, bool) {
    match address.to_canonical() {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, false),
        IpAddr::V6(v6) => (u128::from(v6), true),
    }
}

impl Wanted {
    fn fits(&self, said: &str, keys: &Keys) -> bool {
        let value = |key: &str| match keys.get(key).map(Vec::as_slice) {
            Some([one]) => Some(one.clone()),
            _ => None,
        };
        match self {
            Wanted::Text(pattern, case) => pattern.matches(said, *case, value),
            Wanted::Arn(patterns) if patterns.len() == 1 => true,
            Wanted::Arn(patterns) => {
                let parts: Vec<&str> = said.splitn(6, ':').collect();
                let fits =
                    |(pattern, part): (&Pattern, &&str)| pattern.matches(part, Case::Kept, value);
                parts.len() == 6 && patterns.iter().zip(&parts).all(fits)
            }
            Wanted::Number(compare, wanted) => said
                .parse::<f64>()
                .is_ok_and(|said| compare.holds(said, *wanted)),
            Wanted::Date(compare, wanted) => {
                date_of(said).is_some_and(|said| compare.holds(said, *wanted))
            }
            Wanted::Bool(wanted) => bool_of(said) == Some(*wanted),
            Wanted::Binary(wanted) => from_base64(said).is_some_and(|said| said == *wanted),
            Wanted::Address(network, bits) => {
                let Ok(said) = said.parse::<IpAddr>() else {
                    return false;
                };
                let (said, network) = (bits_of(said), bits_of(*network));
                let keep = u128::MAX.checked_shl(128 - u32::from(*bits)).unwrap_or(0);
                said.1 == network.1 && said.0 & keep == network.0 & keep
            }
            Wanted::Null(_) => false,
        }
    }
}

/// What every request says of the time.
pub fn time_keys(now_ms: u64, keys: &mut Keys) {
    keys.insert("aws:currenttime".to_owned(), vec![iso_date(now_ms)]);
    keys.insert(
        "aws:epochtime".to_owned(),
        vec![(now_ms / 1000).to_string()],
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        let mut keys = Keys::new();
        time_keys(1_700_000_000_000, &mut keys);
        for (key, values) in [
            ("aws:sourceip", &["10.1.2.3"][..]),
            ("aws:username", &["ada"]),
            ("aws:securetransport", &["true"]),
            ("aws:principalarn", &["arn:aws:iam::123456789012:user/ada"]),
            ("s3:max-keys", &["10"]),
            ("s3:prefix", &["home/ada/x"]),
            ("s3:requestobjecttagkeys", &["a", "b"]),
        ] {
            let values = values.iter().map(|v| (*v).to_owned()).collect();
            keys.insert(key.to_owned(), values);
        }
        keys
    }

    fn holds(operator: &str, key: &str, values: &[&str]) -> bool {
        let values: Vec<String> = values.iter().map(|v| (*v).to_owned()).collect();
        Condition::new(operator, key, &values, true)
            .unwrap()
            .holds(&keys())
    }

    #[test]
    fn conditions_that_hold() {
        for (operator, key, values) in [
            ("StringEquals", "aws:username", &["bob", "ada"][..]),
            ("StringNotEquals", "aws:username", &["bob", "eve"]),
            ("StringEqualsIgnoreCase", "aws:UserName", &["ADA"]),
            ("StringLike", "s3:prefix", &["home/${aws:username}/*"]),
            ("StringNotLike", "s3:prefix", &["home/bob/*"]),
            ("NumericLessThanEquals", "s3:max-keys", &["10"]),
            ("NumericGreaterThan", "s3:max-keys", &["9.5"]),
            ("NumericNotEquals", "s3:max-keys", &["9", "11"]),
            (
                "DateGreaterThan",
                "aws:CurrentTime",
                &["2023-01-01T00:00:00Z"],
            ),
            ("DateLessThan", "aws:EpochTime", &["1700000001"]),
            ("Bool", "aws:SecureTransport", &["true"]),
            (
                "IpAddress",
                "aws:SourceIp",
                &["192.168.0.0/16", "10.0.0.0/8"],
            ),
            ("IpAddress", "aws:SourceIp", &["0.0.0.0/0"]),
            ("IpAddress", "aws:SourceIp", &["10.1.2.3"]),
            ("IpAddress", "aws:SourceIp", &["::ffff:10.1.2.3"]),
            ("NotIpAddress", "aws:SourceIp", &["10.1.3.0/24", "::/0"]),
            ("ArnLike", "aws:PrincipalArn", &["arn:aws:iam::*:user/a*"]),
            (
                "ArnNotEquals",
                "aws:PrincipalArn",
                &["arn:aws:iam::1:user/ada"],
            ),
            ("Null", "aws:referer", &["true"]),
            ("Null", "aws:username", &["false"]),
            (
                "ForAnyValue:StringEquals",
                "s3:RequestObjectTagKeys",
                &["b", "c"],
            ),
            (
                "ForAllValues:StringLike",
                "s3:RequestObjectTagKeys",
                &["a", "b", "c"],
            ),
            ("ForAllValues:StringEquals", "s3:RequestObjectTag/x", &["a"]),
            // What the request does not say.
            ("StringNotEquals", "aws:referer", &["x"]),
            ("StringEqualsIfExists", "aws:referer", &["x"]),
            ("StringNotEqualsIfExists", "aws:referer", &["x"]),
        ] {
            assert!(holds(operator, key, values), "{operator} {key} {values:?}");
        }
    }

    #[test]
    fn conditions_that_do_not_hold() {
        for (operator, key, values) in [
            ("StringEquals", "aws:username", &["ad*"][..]),
            ("StringEquals", "aws:username", &["ADA"]),
            ("StringNotEquals", "aws:username", &["bob", "ada"]),
            ("StringLike", "s3:prefix", &["home/${aws:referer}/*"]),
            ("NumericEquals", "s3:prefix", &["1"]),
            ("NumericLessThan", "s3:max-keys", &["10"]),
            (
                "DateGreaterThan",
                "aws:CurrentTime",
                &["2024-01-01T00:00:00Z"],
            ),
            ("Bool", "aws:SecureTransport", &["false"]),
            ("Bool", "aws:username", &["true"]),
            ("IpAddress", "aws:SourceIp", &["10.1.3.0/24"]),
            ("IpAddress", "aws:SourceIp", &["::/0"]),
            ("IpAddress", "aws:username", &["0.0.0.0/0"]),
            ("NotIpAddress", "aws:SourceIp", &["10.0.0.0/8", "1.1.1.1"]),
            ("ArnLike", "aws:PrincipalArn", &["arn:aws:iam::*:role/*"]),
            ("ArnLike", "aws:username", &["arn:aws:iam::*:*"]),
            ("Null", "aws:referer", &["false"]),
            (
                "ForAllValues:StringEquals",
                "s3:RequestObjectTagKeys",
                &["a"],
            ),
            (
                "ForAnyValue:StringEquals",
                "s3:RequestObjectTagKeys",
                &["c"],
            ),
            ("ForAnyValue:StringEquals", "s3:RequestObjectTag/x", &["c"]),
            ("StringNotEquals", "s3:RequestObjectTagKeys", &["a"]),
            ("StringEquals", "aws:referer", &["x"]),
        ] {
            assert!(!holds(operator, key, values), "{operator} {key} {values:?}");
        }
    }

    #[test]
    fn conditions_that_narrow() {
        for (operator, key, value, narrows) in [
            ("StringEquals", "aws:username", "ada", true),
            ("ForAnyValue:StringEquals", "aws:username", "ada", true),
            // Nobody in particular has no name at all.
            ("ForAllValues:StringEquals", "aws:username", "ada", false),
            ("StringEqualsIfExists", "aws:username", "ada", false),
            ("StringNotEquals", "aws:username", "ada", false),
            ("StringLike", "aws:username", "a*", false),
            ("StringEquals", "aws:referer", "x", false),
            ("IpAddress", "aws:SourceIp", "10.0.0.0/16", true),
            ("IpAddress", "aws:SourceIp", "0.0.0.0/0", false),
        ] {
            let made = Condition::new(operator, key, &[value.to_owned()], true).unwrap();
            assert_eq!(made.narrows(), narrows, "{operator} {key} {value}");
        }
    }

    #[test]
    fn conditions_that_are_none() {
        for (operator, key, value) in [
            ("StringEqual", "aws:username", "x"),
            ("ForSomeValues:StringEquals", "aws:username", "x"),
            ("StringEquals", "aws:PrincipalOrgID", "x"),
            ("StringEquals", "s3:nothing", "x"),
            // AWS's, which nothing here says.
            ("StringEquals", "s3:DataAccessPointArn", "x"),
            ("Bool", "s3:ObjectCreationOperation", "yes"),
            ("NumericEquals", "s3:max-keys", "x"),
            ("NumericEquals", "s3:max-keys", "inf"),
            ("DateEquals", "aws:CurrentTime", "yesterday"),
            ("Bool", "aws:SecureTransport", "yes"),
            ("IpAddress", "aws:SourceIp", "10.0.0.0/33"),
            ("IpAddress", "aws:SourceIp", "ten"),
            ("ArnEquals", "aws:PrincipalArn", "ada"),
            ("NullIfExists", "aws:username", "true"),
        ] {
            let made = Condition::new(operator, key, &[value.to_owned()], true);
            assert!(made.is_err(), "{operator} {key} {value}");
        }
        assert!(Condition::new("StringEquals", "aws:username", &[], true).is_err());
    }
}
