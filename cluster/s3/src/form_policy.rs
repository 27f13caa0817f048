//! What a form may ask for, and what it asks for: its policy, and its fields as the headers of a put.
//!
//! Invariants:
//! - a form with a policy asks for nothing that the policy does not name: a field without a condition is
//!   refused, but for the few that change nothing;
//! - what a form asks for is a list of headers that are known here; whatever else begins with `x-amz-` is
//!   `NotImplemented`.

use serde_json::Value;

use crate::calendar::parse_iso_date;
use crate::checksum::Algorithm;
use crate::form::Fields;
use crate::refusal::{Refusal, refuse};
use crate::text::from_base64;

/// Most conditions of a policy.
const CONDITIONS_MAX: usize = 512;
/// What stands for the file's name in a key.
const FILENAME: &str = "${filename}";
/// Fields that sign the form, or are what is signed.
const SIGNING: &[&str] = &["awsaccesskeyid", "policy", "signature", "x-amz-signature"];
/// The same, which a policy has to name.
const SIGNING_NAMED: &[&str] = &["x-amz-algorithm", "x-amz-credential", "x-amz-date"];
/// Fields that are headers of a put.
const HEADERS: &[&str] = &[
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-md5",
    "content-type",
    "expires",
    "x-amz-acl",
    "x-amz-checksum-algorithm",
    "x-amz-sdk-checksum-algorithm",
    "x-amz-security-token",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-server-side-encryption-customer-algorithm",
    "x-amz-server-side-encryption-customer-key",
    "x-amz-server-side-encryption-customer-key-md5",
    "x-amz-storage-class",
];

/// A condition of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    /// A field has this value,
    Is { field: String, value: String },
    /// or one that begins so.
    Begins { field: String, value: String },
    /// The file has so many bytes.
    Length { least: u64, most: u64 },
}

/// What a form may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormPolicy {
    expires_ms: u64,
    conditions: Vec<Condition>,
}

fn invalid<T>(why: &str) -> Result<T, Refusal> {
    refuse!(InvalidPolicyDocument, "Invalid Policy: {why}")
}

fn against<T>(why: &str) -> Result<T, Refusal> {
    refuse!(AccessDenied, "Invalid according to Policy: {why}")
}

fn condition(value: &Value, conditions: &mut Vec<Condition>) -> Result<(), Refusal> {
    const SIMPLE: &str = "Invalid Simple-Condition";
    match value {
        Value::Object(pairs) => {
            if pairs.is_empty() {
                return invalid(SIMPLE);
            }
            for (field, value) in pairs {
                let Value::String(value) = value else {
                    return invalid(SIMPLE);
                };
                conditions.push(Condition::Is {
                    field: field.to_lowercase(),
                    value: value.clone(),
                });
            }
            Ok(())
        }
        Value::Array(items) => {
            let [Value::String(operator), first, second] = &items[..] else {
                return invalid("a condition has three parts");
            };
            let operator = operator.to_ascii_lowercase();
            if operator == "content-length-range" {
                let (Some(least), Some(most)) = (length(first), length(second)) else {
                    return invalid("a content-length-range has two lengths");
                };
                conditions.push(Condition::Length { least, most });
                return Ok(());
            }
            let (Value::String(field), Value::String(value)) = (first, second) else {
                return invalid("a condition is of texts");
            };
            let Some(field) = field.strip_prefix('$') else {
                return invalid("a condition's field begins with $");
            };
            let (field, value) = (field.to_lowercase(), value.clone());
            conditions.push(match &*operator {
                "eq" => Condition::Is { field, value },
                "starts-with" => Condition::Begins { field, value },
                _ => return invalid(&format!("unknown operation {operator}")),
            });
            Ok(())
        }
        _ => invalid("a condition is a list or an object"),
    }
}

/// A length, as a number or in a text.
fn length(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64(),
    }
}

impl FormPolicy {
    /// From the field's text: JSON in base64.
    pub fn parse(text: &str) -> Result<FormPolicy, Refusal> {
        // Some send it in lines.
        let text: String = text.split_ascii_whitespace().collect();
        let Some(bytes) = from_base64(&text) else {
            return invalid("it is not base64");
        };
        let Ok(Value::Object(document)) = serde_json::from_slice(&bytes) else {
            return invalid("Invalid JSON.");
        };
        let expiration = match document.get("expiration") {
            Some(Value::String(text)) => text,
            Some(_) => return invalid("Invalid 'expiration' value"),
            None => return invalid("Policy missing expiration."),
        };
        let Some(expires_ms) = parse_iso_date(expiration).filter(|_| expiration.contains('T'))
        else {
            return invalid(&format!("Invalid 'expiration' value: '{expiration}'"));
        };
        let Some(Value::Array(list)) = document.get("conditions") else {
            return invalid("Policy missing conditions.");
        };
        if let Some(other) = document
            .keys()
            .find(|k| *k != "expiration" && *k != "conditions")
        {
            return invalid(&format!("Unexpected: '{other}'"));
        }
        if list.len() > CONDITIONS_MAX {
            return invalid("too many conditions");
        }
        let mut conditions = Vec::with_capacity(list.len());
        for value in list {
            condition(value, &mut conditions)?;
        }
        Ok(FormPolicy {
            expires_ms,
            conditions,
        })
    }

    /// Refuses a form that asks for what this does not allow. Its key is what it was made to be of the file's
    /// name; which bucket it is sent to is asked for like a field.
    pub fn check(
        &self,
        bucket: &str,
        key: &str,
        fields: &Fields,
        now_ms: u64,
    ) -> Result<(), Refusal> {
        if now_ms > self.expires_ms {
            return against("Policy expired.");
        }
        let value = |name: &str| match name {
            "bucket" => Some(bucket),
            "key" => Some(key),
            other => fields.get(other),
        };
        for condition in &self.conditions {
            let (field, wanted, holds) = match condition {
                Condition::Length { .. } => continue,
                Condition::Is {
                    field,
                    value: wanted,
                } => (
                    field,
                    wanted,
                    value(field).is_some_and(|said| said == wanted),
                ),
                // Of types there may be several, each of which must begin so.
                Condition::Begins {
                    field,
                    value: wanted,
                } if field == "content-type" => {
                    let all = |said: &str| {
                        said.split(',')
                            .all(|one| one.trim().starts_with(wanted.as_str()))
                    };
                    (field, wanted, value(field).is_some_and(all))
                }
                Condition::Begins {
                    field,
                    value: wanted,
                } => {
                    let begins = |said: &str| said.starts_with(wanted.as_str());
                    // What may be anything may as well not be there.
                    (
                        field,
                        wanted,
                        value(field).map_or(wanted.is_empty(), begins),
                    )
                }
            };
            if !holds {
                return against(&format!("Policy Condition failed: {field}: {wanted:?}"));
            }
        }
        let named = |name: &str| {
            self.conditions.iter().any(|condition| match condition {
                Condition::Is { field, .. } | Condition::Begins { field, .. } => field == name,
                Condition::Length { .. } => false,
            })
        };
        let names = fields.fields.iter().map(|(name, _)| name.as_str());
        let mut extra = names
            .chain(["bucket"])
            .filter(|name| !changes_nothing(name) && !named(name));
        match extra.next() {
            Some(name) => against(&format!("Extra input fields: {name}")),
            None => Ok(()),
        }
    }

    /// How many bytes the file may have, at the least and at the most.
    pub fn lengths(&self) -> (u64, u64) {
        let mut range = (0, u64::MAX);
        for condition in &self.conditions {
            if let Condition::Length { least, most } = condition {
                range = (range.0.max(*least), range.1.min(*most));
            }
        }
        range
    }
}

/// Fields that a policy need not name: they sign the form, they are for others, or they can but make it fail.
fn changes_nothing(name: &str) -> bool {
    SIGNING.contains(&name)
        || name.starts_with("x-ignore-")
        || name == "content-md5"
        || Algorithm::of_header(name).is_some()
}

/// Where a form's object is to stand.
pub fn key(fields: &Fields) -> Result<String, Refusal> {
    match fields.get("key") {
        Some(key) if !key.is_empty() => {
            let key = key.replace(FILENAME, &fields.filename);
            match key.is_empty() {
                true => refuse!(
                    InvalidArgument,
                    "User key must have a length greater than 0."
                ),
                false => Ok(key),
            }
        }
        _ => refuse!(
            InvalidArgument,
            "Bucket POST must contain a field named 'key'.  If it is specified, please check the order of \
             the fields."
        ),
    }
}

/// Who a form says sends it: a key's id, and whether it is signed in version 4. None if it is not signed.
pub fn key_id(fields: &Fields) -> Result<Option<(&str, bool)>, Refusal> {
    let missing = |name: &str| {
        refuse!(
            InvalidArgument,
            "Bucket POST must contain a field named '{name}'.  If it is specified, please check the order \
             of the fields."
        )
    };
    let old = (fields.get("awsaccesskeyid"), fields.get("signature"));
    let new = (
        fields.get("x-amz-credential"),
        fields.get("x-amz-signature"),
    );
    let found = match (new, old) {
        ((None, None), (None, None)) if fields.get("policy").is_none() => return Ok(None),
        ((Some(_), Some(_)), (None, None)) if fields.get("x-amz-date").is_none() => {
            return missing("x-amz-date");
        }
        ((Some(credential), Some(_)), (None, None)) => {
            (credential.split('/').next().unwrap_or_default(), true)
        }
        ((None, None), (Some(id), Some(_))) => (id, false),
        ((None, None), (None, _)) => return missing("AWSAccessKeyId"),
        ((None, None), (Some(_), None)) => return missing("Signature"),
        ((None, Some(_)), _) => return missing("x-amz-credential"),
        ((Some(_), None), _) => return missing("x-amz-signature"),
        ((Some(_), Some(_)), _) => {
            return refuse!(InvalidArgument, "Only one auth mechanism allowed");
        }
    };
    match fields.get("policy") {
        Some(_) => Ok(Some(found)),
        None => missing("policy"),
    }
}

/// The headers of the put that a form asks for, in lower case.
pub fn headers(fields: &Fields) -> Result<Vec<(String, String)>, Refusal> {
    let mut headers = Vec::new();
    for (name, value) in &fields.fields {
        let header = match name.as_str() {
            "acl" => "x-amz-acl",
            name if HEADERS.contains(&name)
                || name.starts_with("x-amz-meta-")
                || Algorithm::of_header(name).is_some() =>
            {
                name
            }
            name if SIGNING.contains(&name) || SIGNING_NAMED.contains(&name) => continue,
            name if name.starts_with("x-amz-") => {
                return refuse!(
                    NotImplemented,
                    "PostObject with the field {name} is not implemented"
                );
            }
            // What S3 does not know it does not look at; whatever it stands for is a policy's business.
            _ => continue,
        };
        if value.chars().any(|c| c.is_control()) {
            return refuse!(
                InvalidArgument,
                "The value of the field {name} is no header's"
            );
        }
        if headers.iter().any(|(other, _)| other == header) {
            return refuse!(
                InvalidArgument,
                "POST requires exactly one value of {header}"
            );
        }
        headers.push((header.to_owned(), value.clone()));
    }
    Ok(headers)
}

/// Where to go when it is done, if that is where one can go.
pub fn redirect(fields: &Fields) -> Option<&str> {
    let to = fields
        .get("success_action_redirect")
        .or(fields.get("redirect"))?;
    let rest = to.strip_prefix("http://").or(to.strip_prefix("https://"))?;
    (!rest.is_empty() && to.bytes().all(|b| b.is_ascii_graphic())).then_some(to)
}

/// What status tells that it is done: whatever is none of those that there are is 204.
pub fn success_status(fields: &Fields) -> u16 {
    match fields.get("success_action_status").map(str::trim) {
        Some("200") => 200,
        Some("201") => 201,
        _ => 204,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::refusal::Code;
    use crate::text::to_base64;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        Fields {
            fields: pairs.iter().map(own).collect(),
            filename: "f.txt".to_owned(),
        }
    }

    fn parse(text: &str) -> Result<FormPolicy, Code> {
        FormPolicy::parse(&to_base64(text.as_bytes())).map_err(|refusal| refusal.code)
    }

    fn policy(conditions: &str) -> FormPolicy {
        parse(&format!(
            r#"{{"expiration":"2024-01-01T00:00:00Z","conditions":[{conditions}]}}"#
        ))
        .unwrap()
    }

    /// 2024-01-01T00:00:00Z
    const END: u64 = 1_704_067_200_000;

    fn check(conditions: &str, pairs: &[(&str, &str)]) -> Result<(), Code> {
        let fields = fields(pairs);
        let key = key(&fields).unwrap();
        let policy = policy(conditions);
        policy
            .check("b", &key, &fields, END)
            .map_err(|refusal| refusal.code)
    }

    #[test]
    fn policies_that_are_none() {
        for bad in [
            "",
            "[]",
            "{",
            r#"{"conditions":[]}"#,
            r#"{"expiration":"2024-01-01T00:00:00Z"}"#,
            r#"{"expiration":"2024-01-01 00:00:00","conditions":[]}"#,
            r#"{"expiration":5,"conditions":[]}"#,
            r#"{"EXPIRATION":"2024-01-01T00:00:00Z","conditions":[]}"#,
            r#"{"expiration":"2024-01-01T00:00:00Z","CONDITIONS":[]}"#,
            r#"{"expiration":"2024-01-01T00:00:00Z","conditions":[{}]}"#,
            r#"{"expiration":"2024-01-01T00:00:00Z","conditions":[{"acl":5}]}"#,
            r#"{"expiration":"2024-01-01T00:00:00Z","conditions":["a"]}"#,
            r#"{"expiration":"2024-01-01T00:00:00Z","conditions":[["eq","key","a"]]}"#,
            r#"{"expiration":"2024-01-01T00:00:00Z","conditions":[["is","$key","a"]]}"#,
            r#"{"expiration":"2024-01-01T00:00:00Z","conditions":[["content-length-range",0]]}"#,
            r#"{"expiration":"2024-01-01T00:00:00Z","conditions":[["content-length-range",-1,0]]}"#,
        ] {
            assert_eq!(
                parse(bad).unwrap_err(),
                Code::InvalidPolicyDocument,
                "{bad}"
            );
        }
        assert!(FormPolicy::parse("???").is_err());
    }

    #[test]
    fn conditions() {
        let ok = r#"{"bUcKeT":"b"},["StArTs-WiTh","$KeY","fo"]"#;
        let with = |more: &str| format!("{ok},{more}");
        let foo = ("key", "foo");
        assert_eq!(check(ok, &[foo]), Ok(()));
        let denied = Err(Code::AccessDenied);
        assert_eq!(check(r#"["starts-with","$key",""]"#, &[foo]), denied);
        assert_eq!(check(r#"{"bucket":"c"},{"key":"foo"}"#, &[foo]), denied);
        assert_eq!(check(ok, &[("key", "bar")]), denied);
        // A bucket that the form names is not the one that it is sent to.
        assert_eq!(check(ok, &[foo, ("bucket", "x")]), Ok(()));
        assert_eq!(check(ok, &[foo, ("acl", "private")]), denied);
        assert_eq!(check(ok, &[foo, ("x-amz-meta-a", "1")]), denied);
        assert_eq!(
            check(ok, &[foo, ("x-ignore-a", "1"), ("policy", "")]),
            Ok(())
        );
        assert_eq!(check(ok, &[foo, ("x-amz-checksum-crc32", "a")]), Ok(()));
        let meta = with(r#"["eq","$x-amz-meta-a","1"]"#);
        assert_eq!(check(&meta, &[foo, ("x-amz-meta-a", "1")]), Ok(()));
        assert_eq!(check(&meta, &[foo, ("x-amz-meta-a", "2")]), denied);
        assert_eq!(check(&meta, &[foo]), denied);
        let any = with(r#"["starts-with","$tagging",""]"#);
        assert_eq!(check(&any, &[foo]), Ok(()));
        let image = with(r#"["starts-with","$Content-Type","image/"]"#);
        assert_eq!(
            check(&image, &[foo, ("content-type", "image/a,image/b")]),
            Ok(())
        );
        assert_eq!(
            check(&image, &[foo, ("content-type", "image/a,text/b")]),
            denied
        );
        let file = r#"{"bucket":"b"},{"key":"up/f.txt"}"#;
        assert_eq!(check(file, &[("key", "up/${filename}")]), Ok(()));
        let late = policy(ok).check("b", "foo", &fields(&[foo]), END + 1);
        assert_eq!(late.unwrap_err().code, Code::AccessDenied);
        assert_eq!(policy(ok).lengths(), (0, u64::MAX));
        let lengths = r#"["content-length-range",1,"20"],["content-length-range",0,10]"#;
        assert_eq!(policy(lengths).lengths(), (1, 10));
    }

    #[test]
    fn who_sends_it() {
        let id = |pairs: &[(&str, &str)]| {
            let fields = fields(pairs);
            let found = key_id(&fields).map_err(|refusal| refusal.code)?;
            Ok::<_, Code>(found.map(|(id, new)| (id.to_owned(), new)))
        };
        let p = ("policy", "p");
        assert_eq!(id(&[("key", "k")]), Ok(None));
        assert_eq!(
            id(&[p, ("awsaccesskeyid", "A"), ("signature", "s")]),
            Ok(Some(("A".to_owned(), false)))
        );
        let new = [
            p,
            ("x-amz-credential", "A/2024/r/s3/aws4_request"),
            ("x-amz-signature", "s"),
            ("x-amz-date", "d"),
        ];
        assert_eq!(id(&new), Ok(Some(("A".to_owned(), true))));
        for pairs in [
            &[p][..],
            &[p, ("awsaccesskeyid", "A")],
            &[p, ("signature", "A")],
            &[("awsaccesskeyid", "A"), ("signature", "s")],
            &new[..2],
            &new[..3],
            &[p, new[1], new[2], new[3], ("signature", "s")],
        ] {
            assert_eq!(id(pairs), Err(Code::InvalidArgument), "{pairs:?}");
        }
    }

    #[test]
    fn what_is_asked_for() {
        let asked =
            |pairs: &[(&str, &str)]| headers(&fields(pairs)).map_err(|refusal| refusal.code);
        let own = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            asked(&[
                ("acl", "private"),
                ("x-amz-meta-a", "1"),
                ("submit", "Send"),
                ("x-amz-date", "d")
            ]),
            Ok(vec![own("x-amz-acl", "private"), own("x-amz-meta-a", "1")])
        );
        let redirect_of = |to: &str| {
            let fields = fields(&[("success_action_redirect", to)]);
            redirect(&fields).map(str::to_owned)
        };
        assert_eq!(
            asked(&[("x-amz-copy-source", "/b/k")]),
            Err(Code::NotImplemented)
        );
        assert_eq!(
            asked(&[("x-amz-server-side-encryption-context", "e30=")]),
            Err(Code::NotImplemented)
        );
        assert_eq!(
            asked(&[("x-amz-meta-a", "1\r\nx: y")]),
            Err(Code::InvalidArgument)
        );
        assert_eq!(
            asked(&[("acl", "private"), ("x-amz-acl", "private")]),
            Err(Code::InvalidArgument)
        );
        assert_eq!(
            redirect_of("https://a.example/b?c"),
            Some("https://a.example/b?c".to_owned())
        );
        for bad in ["javascript:1", "http://", "http://a\r\nb", "http://a b", ""] {
            assert_eq!(redirect_of(bad), None, "{bad}");
        }
        let status = |text| success_status(&fields(&[("success_action_status", text)]));
        assert_eq!(
            (status("200"), status("201"), status("404")),
            (200, 201, 204)
        );
    }

    proptest! {
        /// Whatever a policy says, nothing panics.
        #[test]
        fn whatever_comes(text in r#"[\[\]{}",:$a-e0-9]{0,80}"#, raw in ".{0,80}") {
            let _ = FormPolicy::parse(&raw);
            let _ = parse(&text);
            let _ = parse(&format!(r#"{{"expiration":"2024-01-01T00:00:00Z","conditions":[{text}]}}"#));
            let said = fields(&[("key", &raw), ("acl", &text), ("x-amz-credential", &raw)]);
            let _ = (key(&said), key_id(&said), headers(&said), redirect(&said));
        }
    }
}
