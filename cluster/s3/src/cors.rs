//! Which other sites' pages may call a bucket.

use serde::{Deserialize, Serialize};

use crate::refusal::{Refusal, refuse};

/// Most rules of a bucket.
pub const RULES_MAX: usize = 100;
const METHODS: [&str; 5] = ["GET", "PUT", "POST", "DELETE", "HEAD"];

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CorsRule {
    /// Its name.
    pub id: Option<String>,
    /// Sites, each with one `*` at most.
    pub origins: Vec<String>,
    /// Methods.
    pub methods: Vec<String>,
    /// Headers that a call may have, each with one `*` at most.
    pub headers: Vec<String>,
    /// Headers that a page may see.
    pub exposed: Vec<String>,
    /// For how long a browser may believe this, in seconds.
    pub max_age: Option<u32>,
}

/// What a page is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// `Access-Control-Allow-Origin`
    pub origin: String,
    /// `Access-Control-Allow-Methods`
    pub methods: String,
    /// `Access-Control-Allow-Headers`: those that were asked for.
    pub headers: Option<String>,
    /// `Access-Control-Expose-Headers`
    pub exposed: Option<String>,
    /// `Access-Control-Max-Age`
    pub max_age: Option<u32>,
    /// Whether the answer would be the same for every site: else `Access-Control-Allow-Credentials`.
    pub any_origin: bool,
}

/// Checks rules that are to be kept.
pub fn check(rules: &[CorsRule]) -> Result<(), Refusal> {
    if rules.is_empty() {
        return refuse!(MalformedXML, "A CORS configuration has a rule at least");
    }
    if rules.len() > RULES_MAX {
        return refuse!(
            InvalidRequest,
            "The number of CORS rules should not exceed allowed limit of 100 rules."
        );
    }
    for rule in rules {
        if rule.origins.is_empty() || rule.methods.is_empty() {
            return refuse!(
                MalformedXML,
                "A CORS rule has an AllowedOrigin and an AllowedMethod at least"
            );
        }
        for text in rule.origins.iter().chain(&rule.headers) {
            if text.matches('*').count() > 1 {
                return refuse!(
                    InvalidRequest,
                    "{text:?} can not have more than one wildcard."
                );
            }
        }
        if let Some(other) = rule.methods.iter().find(|m| !METHODS.contains(&m.as_str())) {
            return refuse!(
                InvalidRequest,
                "Found unsupported HTTP method in CORS config. Unsupported method is {other}"
            );
        }
        if rule.exposed.iter().any(|header| header.contains('*')) {
            return refuse!(
                InvalidRequest,
                "ExposeHeader contains wildcard. We currently do not support wildcard for ExposeHeader."
            );
        }
        if rule.id.as_ref().is_some_and(|id| id.chars().count() > 255) {
            return refuse!(
                InvalidRequest,
                "A CORS rule's ID has at most 255 characters"
            );
        }
    }
    Ok(())
}

/// Whether `text` fits a pattern with one `*` at most.
fn fits(pattern: &str, text: &str, fold: bool) -> bool {
    let (pattern, text) = match fold {
        true => (pattern.to_ascii_lowercase(), text.to_ascii_lowercase()),
        false => (pattern.to_owned(), text.to_owned()),
    };
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, behind)) => {
            text.len() >= before.len() + behind.len()
                && text.starts_with(before)
                && text.ends_with(behind)
        }
    }
}

/// What a call from `origin` with `method` is granted: what the first rule says that is about it. Of a
/// preflight, `headers` are those that the call is going to have.
pub fn grant(
    rules: &[CorsRule],
    origin: &str,
    method: &str,
    headers: Option<&str>,
) -> Option<Granted> {
    let wanted: Vec<&str> = headers
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|header| !header.is_empty())
        .collect();
    let is_about = |rule: &&CorsRule| {
        let header = |h: &&str| rule.headers.iter().any(|pattern| fits(pattern, h, true));
        rule.origins
            .iter()
            .any(|pattern| fits(pattern, origin, false))
            && rule.methods.iter().any(|m| m == method)
            && wanted.iter().all(header)
    };
    let rule = rules.iter().find(is_about)?;
    let any_origin = rule.origins.iter().any(|origin| origin == "*");
    let list = |texts: &[String]| (!texts.is_empty()).then(|| texts.join(", "));
    Some(Granted {
        origin: if any_origin {
            "*".to_owned()
        } else {
            origin.to_owned()
        },
        methods: rule.methods.join(", "),
        headers: (!wanted.is_empty()).then(|| wanted.join(", ").to_ascii_lowercase()),
        exposed: list(&rule.exposed),
        max_age: rule.max_age,
        any_origin,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Code;

    fn rule(origins: &[&str], methods: &[&str], headers: &[&str]) -> CorsRule {
        let own = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
        CorsRule {
            origins: own(origins),
            methods: own(methods),
            headers: own(headers),
            exposed: vec!["ETag".to_owned(), "x-amz-request-id".to_owned()],
            max_age: Some(60),
            ..CorsRule::default()
        }
    }

    #[test]
    fn the_first_rule_that_is_about_it() {
        let rules = [
            rule(&["https://*.a.example"], &["PUT"], &["content-*"]),
            rule(&["https://b.example"], &["GET", "HEAD"], &["*"]),
            rule(&["*"], &["GET"], &[]),
        ];
        check(&rules).unwrap();
        let granted = grant(
            &rules,
            "https://x.a.example",
            "PUT",
            Some("Content-Type,content-md5"),
        )
        .unwrap();
        assert_eq!(granted.origin, "https://x.a.example");
        assert_eq!(
            granted.headers.as_deref(),
            Some("content-type, content-md5")
        );
        assert_eq!(granted.exposed.as_deref(), Some("ETag, x-amz-request-id"));
        assert!(!granted.any_origin);
        assert_eq!(
            grant(&rules, "https://x.a.example", "PUT", Some("x-other")),
            None
        );
        assert_eq!(grant(&rules, "https://a.example", "PUT", None), None);
        assert_eq!(grant(&rules, "http://x.a.example", "PUT", None), None);
        let b = grant(&rules, "https://b.example", "HEAD", Some("x-any")).unwrap();
        assert_eq!((b.methods.as_str(), b.any_origin), ("GET, HEAD", false));
        let any = grant(&rules, "https://c.example", "GET", None).unwrap();
        assert_eq!(
            (any.origin.as_str(), any.any_origin, any.headers),
            ("*", true, None)
        );
        assert_eq!(grant(&rules, "https://c.example", "DELETE", None), None);
        assert!(fits("a*a", "aba", false) && !fits("a*a", "a", false));
    }

    #[test]
    fn rules_that_are_refused() {
        let code = |rules: &[CorsRule]| check(rules).unwrap_err().code;
        assert_eq!(code(&[]), Code::MalformedXML);
        assert_eq!(code(&[rule(&[], &["GET"], &[])]), Code::MalformedXML);
        assert_eq!(code(&[rule(&["*"], &[], &[])]), Code::MalformedXML);
        assert_eq!(code(&[rule(&["*.*"], &["GET"], &[])]), Code::InvalidRequest);
        assert_eq!(code(&[rule(&["*"], &["PATCH"], &[])]), Code::InvalidRequest);
        assert_eq!(
            code(&[rule(&["*"], &["GET"], &["a*b*"])]),
            Code::InvalidRequest
        );
        assert_eq!(
            code(&vec![rule(&["*"], &["GET"], &[]); 101]),
            Code::InvalidRequest
        );
        let mut exposing = rule(&["*"], &["GET"], &[]);
        exposing.exposed = vec!["x-*".to_owned()];
        assert_eq!(code(&[exposing]), Code::InvalidRequest);
    }
}
