//! Policies, in AWS's JSON: who may do what to what, and when.
//!
//! Invariants:
//! - a policy that is taken is understood, all of it: what is unknown in it is refused, and never
//!   passed over;
//! - whether a request is allowed is [`decide`]'s answer, a function of its arguments alone. A statement
//!   that denies wins over all that allow, and where nobody says anything the answer is no.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::condition::{Condition, EXISTING_TAG, Keys};
use crate::pattern::{Case, Pattern};
use crate::refusal::{Refusal, refuse};

/// Largest policy of a bucket, in bytes.
pub const POLICY_MAX: usize = 20 * 1024;
/// The version whose policies have variables.
const NEWER: &str = "2012-10-17";
const VERSIONS: [&str; 2] = ["2008-10-17", NEWER];
const FIELDS: [&str; 3] = ["Version", "Id", "Statement"];
const STATEMENT_FIELDS: [&str; 9] = [
    "Sid",
    "Effect",
    "Principal",
    "NotPrincipal",
    "Action",
    "NotAction",
    "Resource",
    "NotResource",
    "Condition",
];

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Somebody without a signature.
    Anonymous,
    /// A user.
    User {
        /// Twelve digits.
        account: String,
        /// The name.
        name: String,
        /// 64 hexadecimal digits.
        canonical: String,
    },
}

impl Caller {
    /// The user's ARN, if it is one.
    pub fn arn(&self) -> Option<String> {
        match self {
            Caller::Anonymous => None,
            Caller::User { account, name, .. } => {
                Some(format!("arn:aws:iam::{account}:user/{name}"))
            }
        }
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// Who asks.
    pub caller: &'a Caller,
    /// To do what: `s3:GetObject`.
    pub action: &'a str,
    /// To what: `arn:aws:s3:::bucket/key`, `arn:aws:s3:::bucket`, or `*` if to no bucket.
    pub resource: &'a str,
    /// What else is known of the request.
    pub keys: &'a Keys,
}

/// What a policy says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A statement denies it.
    Denied,
    /// A statement allows it, and none denies it.
    Allowed,
    /// It does not say.
    Silent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Allow,
    Deny,
}

/// One of those whom a statement is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Principal {
    Anyone,
    Account(String),
    User {
        account: String,
        name: String,
    },
    Canonical(String),
    /// Somebody whom there cannot be here.
    Nobody,
}

impl Principal {
    fn is(&self, caller: &Caller) -> bool {
        match (self, caller) {
            (Principal::Anyone, _) => true,
            (Principal::Account(wanted), Caller::User { account, .. }) => wanted == account,
            (
                Principal::User { account, name },
                Caller::User {
                    account: a,
                    name: n,
                    ..
                },
            ) => account == a && name == n,
            (Principal::Canonical(wanted), Caller::User { canonical, .. }) => wanted == canonical,
            _ => false,
        }
    }
}

/// A list that is meant, or all but it.
#[derive(Clone, Debug, PartialEq)]
struct Choice<T> {
    not: bool,
    of: Vec<T>,
}

impl<T> Choice<T> {
    fn takes(&self, fits: impl FnMut(&T) -> bool) -> bool {
        self.of.iter().any(fits) != self.not
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Statement {
    effect: Effect,
    /// None in the policy of a user, who it is about.
    principals: Option<Choice<Principal>>,
    actions: Choice<Pattern>,
    resources: Choice<Pattern>,
    conditions: Vec<Condition>,
}

impl Statement {
    fn is_about(&self, asked: &Asked<'_>) -> bool {
        let value = |key: &str| match asked.keys.get(key).map(Vec::as_slice) {
            Some([one]) => Some(one.clone()),
            _ => None,
        };
        let principals = self.principals.as_ref();
        principals.is_none_or(|p| p.takes(|principal| principal.is(asked.caller)))
            && self.is_to(asked.action)
            && self
                .resources
                .takes(|resource| resource.matches(asked.resource, Case::Kept, value))
            && self
                .conditions
                .iter()
                .all(|condition| condition.holds(asked.keys))
    }

    fn is_to(&self, action: &str) -> bool {
        self.actions
            .takes(|taken| taken.matches(action, Case::Ignored, |_| None))
    }

    fn looks_at(&self, key: impl Fn(&str) -> bool + Copy) -> bool {
        let mut conditions = self.conditions.iter();
        conditions.any(|it| key(it.key()) || it.variables().any(key))
            || self.resources.of.iter().any(|it| it.variables().any(key))
    }

    /// Whether it lets in whoever comes.
    fn is_public(&self) -> bool {
        let anyone = self
            .principals
            .as_ref()
            .is_some_and(|principals| principals.not || principals.of.contains(&Principal::Anyone));
        self.effect == Effect::Allow && anyone && !self.conditions.iter().any(Condition::narrows)
    }
}

/// Whose policy it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of<'a> {
    /// The bucket's of this name: it says whom it is about, and is about this bucket.
    Bucket(&'a str),
    /// A user's: it is about that user.
    User,
}

/// A policy, understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    statements: Vec<Statement>,
}

impl Policy {
    /// From its JSON.
    pub fn parse(json: &str, of: Of<'_>) -> Result<Policy, Refusal> {
        if json.len() > POLICY_MAX {
            return refuse!(
                MalformedPolicy,
                "The policy has {} bytes; at most {POLICY_MAX} are allowed",
                json.len()
            );
        }
        let Ok(Value::Object(policy)) = serde_json::from_str(json) else {
            return refuse!(
                MalformedPolicy,
                "Policies must be valid JSON and the first byte must be '{{'"
            );
        };
        known(&policy, &FIELDS)?;
        let version = match policy.get("Version") {
            None => VERSIONS[0],
            Some(Value::String(version)) if VERSIONS.contains(&version.as_str()) => version,
            Some(_) => {
                return refuse!(
                    MalformedPolicy,
                    "The policy must contain a valid version string"
                );
            }
        };
        if policy.get("Id").is_some_and(|id| !id.is_string()) {
            return refuse!(MalformedPolicy, "Policy has an invalid Id");
        }
        let statements = match policy.get("Statement") {
            Some(Value::Array(statements)) if !statements.is_empty() => statements.iter().collect(),
            Some(one @ Value::Object(_)) => vec![one],
            _ => return refuse!(MalformedPolicy, "Missing required field Statement"),
        };
        let mut sids = BTreeSet::new();
        let statements = statements
            .into_iter()
            .map(|statement| {
                let Value::Object(statement) = statement else {
                    return refuse!(MalformedPolicy, "Policy has a statement that is no object");
                };
                if let Some(sid) = text(statement, "Sid")?
                    && !sids.insert(sid)
                {
                    return refuse!(MalformedPolicy, "Two statements have the Sid {sid:?}");
                }
                parse_statement(statement, of, version == NEWER)
            })
            .collect::<Result<_, _>>()?;
        Ok(Policy { statements })
    }

    /// What it says to a request.
    pub fn verdict(&self, asked: &Asked<'_>) -> Verdict {
        let mut verdict = Verdict::Silent;
        for statement in self.statements.iter().filter(|s| s.is_about(asked)) {
            match statement.effect {
                Effect::Deny => return Verdict::Denied,
                Effect::Allow => verdict = Verdict::Allowed,
            }
        }
        verdict
    }

    /// Whether it lets in whoever comes, to anything.
    pub fn is_public(&self) -> bool {
        self.statements.iter().any(Statement::is_public)
    }

    /// Whether its answer depends on tags of the object that the request is about.
    pub fn looks_at_existing_tags(&self) -> bool {
        self.looks_at(is_existing_tag)
    }

    /// The same, if it is asked for one of these actions.
    pub fn looks_at_tags_to(&self, actions: &[&str]) -> bool {
        let mut statements = self.statements.iter();
        statements.any(|it| it.looks_at(is_existing_tag) && actions.iter().any(|a| it.is_to(a)))
    }

    /// Whether its answer depends on a key, in lower case, that is one of these.
    pub fn looks_at(&self, tag: impl Fn(&str) -> bool + Copy) -> bool {
        self.statements.iter().any(|it| it.looks_at(tag))
    }
}

fn is_existing_tag(key: &str) -> bool {
    key.starts_with(EXISTING_TAG)
}

/// What stands behind a decision.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    /// The caller may do everything.
    pub is_admin: bool,
    /// The bucket is the caller's; of a request to no bucket, the caller is a user.
    pub is_owner: bool,
    /// The caller's own policy.
    pub user: Option<&'a Policy>,
    /// The bucket's policy.
    pub bucket: Option<&'a Policy>,
    /// A bucket's policy that lets in whoever comes lets in its owner only.
    pub restrict_public: bool,
}

/// What an owner may do whatever the bucket's policy says: else a mistake in it could not be mended.
const NEVER_LOCKED_OUT: [&str; 3] = [
    "s3:GetBucketPolicy",
    "s3:PutBucketPolicy",
    "s3:DeleteBucketPolicy",
];

/// Why a request may be done, or may not, as far as policies and the bucket's owner have a say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grounds {
    /// A policy denies it.
    Denied,
    /// The caller may do everything, or the caller's own policy allows it.
    Certain,
    /// The bucket's policy allows it.
    Bucket,
    /// The bucket is the caller's, who has no policy.
    Owner,
    /// Nobody says anything.
    None,
}

/// Whether a request may be done.
///
/// No, if the caller's or the bucket's policy denies it. Yes, if one of them allows it, if the caller
/// may do everything, or if the bucket is the caller's who has no policy. Else no.
pub fn decide(asked: &Asked<'_>, standing: &Standing<'_>) -> bool {
    !matches!(grounds(asked, standing), Grounds::Denied | Grounds::None)
}

/// Why a request may be done, or may not.
pub fn grounds(asked: &Asked<'_>, standing: &Standing<'_>) -> Grounds {
    let Standing {
        is_admin,
        is_owner,
        user,
        bucket,
        restrict_public,
    } = *standing;
    let verdict = |policy: Option<&Policy>| policy.map_or(Verdict::Silent, |p| p.verdict(asked));
    let of_user = verdict(user);
    let mut of_bucket = verdict(bucket);
    if restrict_public
        && !is_owner
        && of_bucket == Verdict::Allowed
        && bucket.is_some_and(Policy::is_public)
    {
        of_bucket = Verdict::Silent;
    }
    if of_bucket == Verdict::Denied
        && (is_owner || is_admin)
        && NEVER_LOCKED_OUT.contains(&asked.action)
    {
        of_bucket = Verdict::Silent;
    }
    if of_user == Verdict::Denied || of_bucket == Verdict::Denied {
        return Grounds::Denied;
    }
    if of_user == Verdict::Allowed || is_admin {
        Grounds::Certain
    } else if of_bucket == Verdict::Allowed {
        Grounds::Bucket
    } else if is_owner && user.is_none() {
        Grounds::Owner
    } else {
        Grounds::None
    }
}

fn known(object: &Map<String, Value>, fields: &[&str]) -> Result<(), Refusal> {
    match object.keys().find(|key| !fields.contains(&key.as_str())) {
        Some(unknown) => refuse!(MalformedPolicy, "Unknown field {unknown}"),
        None => Ok(()),
    }
}

fn text<'a>(object: &'a Map<String, Value>, field: &str) -> Result<Option<&'a str>, Refusal> {
    match object.get(field) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => refuse!(MalformedPolicy, "Policy has an invalid {field}"),
    }
}

/// A text, or a list of texts, of which there is one at least.
fn texts(value: &Value, what: &str) -> Result<Vec<String>, Refusal> {
    let list = match value {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let texts: Option<Vec<String>> = list
        .iter()
        .map(|value| value.as_str().map(str::to_owned))
        .collect();
    match texts {
        Some(texts) if !texts.is_empty() => Ok(texts),
        _ => refuse!(MalformedPolicy, "Policy has an invalid {what}"),
    }
}

/// What a condition's values may be beside texts.
fn condition_values(value: &Value, operator: &str) -> Result<Vec<String>, Refusal> {
    let list = match value {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    list.iter()
        .map(|value| match value {
            Value::String(text) => Ok(text.clone()),
            Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
            _ => refuse!(MalformedPolicy, "Invalid value for {operator} in policy"),
        })
        .collect()
}

/// The field, or the one that means all but it; just one of them.
fn choice<'a>(
    statement: &'a Map<String, Value>,
    field: &str,
) -> Result<Option<(bool, &'a Value)>, Refusal> {
    match (statement.get(field), statement.get(&format!("Not{field}"))) {
        (Some(_), Some(_)) => {
            refuse!(MalformedPolicy, "Statement has both {field} and Not{field}")
        }
        (Some(value), None) => Ok(Some((false, value))),
        (None, Some(value)) => Ok(Some((true, value))),
        (None, None) => Ok(None),
    }
}

/// Actions that say which lock is asked for. Only what they say can be looked at by conditions.
const LOCKING: [&str; 3] = [
    "s3:PutObject",
    "s3:PutObjectRetention",
    "s3:PutObjectLegalHold",
];

fn is_of_locks(key: &str) -> bool {
    key.starts_with("s3:object-lock-")
}

fn parse_statement(
    statement: &Map<String, Value>,
    of: Of<'_>,
    variables: bool,
) -> Result<Statement, Refusal> {
    known(statement, &STATEMENT_FIELDS)?;
    let effect = match text(statement, "Effect")? {
        Some("Allow") => Effect::Allow,
        Some("Deny") => Effect::Deny,
        Some(other) => return refuse!(MalformedPolicy, "Invalid effect: {other}"),
        None => return refuse!(MalformedPolicy, "Missing required field Effect"),
    };
    let principals = match (choice(statement, "Principal")?, of) {
        (Some((not, value)), Of::Bucket(_)) => {
            let of = parse_principals(value)?;
            Some(Choice { not, of })
        }
        (None, Of::Bucket(_)) => {
            return refuse!(MalformedPolicy, "Missing required field Principal");
        }
        (None, Of::User) => None,
        (Some(_), Of::User) => {
            return refuse!(
                MalformedPolicy,
                "A user's policy is about that user: it has no Principal"
            );
        }
    };
    let Some((not, value)) = choice(statement, "Action")? else {
        return refuse!(MalformedPolicy, "Missing required field Action");
    };
    let named = texts(value, "Action")?;
    let is_action =
        |action: &String| action == "*" || action.to_ascii_lowercase().starts_with("s3:");
    if let Some(other) = named.iter().find(|action| !is_action(action)) {
        return refuse!(MalformedPolicy, "Policy has invalid action: {other}");
    }
    let actions = Choice {
        not,
        of: named.iter().map(|a| Pattern::new(a, false)).collect(),
    };
    let Some((not, value)) = choice(statement, "Resource")? else {
        return refuse!(MalformedPolicy, "Missing required field Resource");
    };
    let resources = texts(value, "Resource")?;
    if let Some(other) = resources.iter().find(|resource| !is_resource(resource, of)) {
        return refuse!(MalformedPolicy, "Policy has invalid resource: {other}");
    }
    let resources = Choice {
        not,
        of: resources
            .iter()
            .map(|resource| Pattern::new(resource, variables))
            .collect(),
    };
    let conditions = parse_conditions(statement.get("Condition"), variables)?;
    // A denial that is never met must not look as if it were in force.
    if conditions
        .iter()
        .any(|condition| is_of_locks(condition.key()))
    {
        let never = |action: &&String| {
            !action.contains(['*', '?']) && !LOCKING.iter().any(|a| a.eq_ignore_ascii_case(action))
        };
        if let Some(action) = named.iter().find(never) {
            return refuse!(
                MalformedPolicy,
                "Conditions do not apply to combination of actions and resources in statement: {action} says \
                 nothing of s3:object-lock-*"
            );
        }
    }
    Ok(Statement {
        effect,
        principals,
        actions,
        resources,
        conditions,
    })
}

/// A bucket's policy is about that bucket and its objects; a user's about any.
fn is_resource(resource: &str, of: Of<'_>) -> bool {
    match of {
        Of::User => resource == "*" || resource.starts_with("arn:aws:s3:::"),
        Of::Bucket(bucket) => {
            let Some(rest) = resource.strip_prefix("arn:aws:s3:::") else {
                return false;
            };
            // A pattern may reach the bucket and its objects, and others only if they were asked.
            let named = rest.split_once('/').map_or(rest, |(named, _)| named);
            let pattern = Pattern::new(named, false);
            pattern.matches(bucket, Case::Kept, |_| None)
        }
    }
}

fn parse_conditions(value: Option<&Value>, variables: bool) -> Result<Vec<Condition>, Refusal> {
    let mut conditions = Vec::new();
    let operators = match value {
        None => return Ok(conditions),
        Some(Value::Object(operators)) => operators,
        Some(_) => return refuse!(MalformedPolicy, "Policy has an invalid Condition"),
    };
    for (operator, keys) in operators {
        let Value::Object(keys) = keys else {
            return refuse!(MalformedPolicy, "Policy has an invalid Condition");
        };
        for (key, values) in keys {
            let values = condition_values(values, operator)?;
            conditions.push(Condition::new(operator, key, &values, variables)?);
        }
    }
    Ok(conditions)
}

fn parse_principals(value: &Value) -> Result<Vec<Principal>, Refusal> {
    let kinds = match value {
        Value::String(star) if star == "*" => return Ok(vec![Principal::Anyone]),
        Value::Object(kinds) if !kinds.is_empty() => kinds,
        _ => return refuse!(MalformedPolicy, "Invalid principal in policy"),
    };
    let mut principals = Vec::new();
    for (kind, names) in kinds {
        for name in texts(names, "Principal")? {
            principals.push(match kind.as_str() {
                "AWS" => parse_principal(&name)?,
                "CanonicalUser" => Principal::Canonical(name),
                "Service" | "Federated" => Principal::Nobody,
                _ => return refuse!(MalformedPolicy, "Invalid principal in policy: {kind}"),
            });
        }
    }
    Ok(principals)
}

fn parse_principal(name: &str) -> Result<Principal, Refusal> {
    let is_account = |text: &str| text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit());
    if name == "*" {
        return Ok(Principal::Anyone);
    }
    if is_account(name) {
        return Ok(Principal::Account(name.to_owned()));
    }
    let arn: Vec<&str> = name.splitn(6, ':').collect();
    if let ["arn", "aws", "iam", "", account, who] = arn[..] {
        let account = account.to_owned();
        if who == "root" && is_account(&account) {
            return Ok(Principal::Account(account));
        }
        let name = who
            .strip_prefix("user/")
            .and_then(|path| path.rsplit('/').next());
        if let Some(name) = name.filter(|name| !name.is_empty() && is_account(&account)) {
            let name = name.to_owned();
            return Ok(Principal::User { account, name });
        }
        if who.starts_with("role/") && is_account(&account) {
            return Ok(Principal::Nobody);
        }
    }
    if let ["arn", "aws", "sts", "", ..] = arn[..] {
        return Ok(Principal::Nobody);
    }
    refuse!(MalformedPolicy, "Invalid principal in policy: {name}")
}
