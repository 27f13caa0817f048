//! Access control lists as requests ask for them: in documents, and in headers.
//!
//! Invariant: whom a request means is said in it; whether there is somebody like that, whoever reads it has to ask.

use crate::acl::{GRANTS_MAX, Grant, Grantee, Permission, in_order};
use crate::refusal::{Refusal, refuse};
use crate::users::canonical;
use crate::xml::{Element, Xml};

/// Whom a request means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// A group.
    Group(Grantee),
    /// An account, by its canonical id.
    Id(String),
}

/// A list that is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Whose the thing is, by a canonical id, if that is said.
    pub owner: Option<String>,
    /// What is to be granted.
    pub grants: Vec<(Named, Permission)>,
}

fn bad_acl<T>() -> Result<T, Refusal> {
    refuse!(
        MalformedACLError,
        "The XML you provided was not well-formed or did not validate against our published schema"
    )
}

fn by_email<T>() -> Result<T, Refusal> {
    // Users have no addresses.
    refuse!(
        UnresolvableGrantByEmailAddress,
        "The e-mail address you provided does not match any account on record."
    )
}

fn group(uri: &str) -> Result<Named, Refusal> {
    match Grantee::group(uri) {
        Some(group) => Ok(Named::Group(group)),
        None => refuse!(InvalidArgument, "Invalid group uri"),
    }
}

fn check_count(wanted: Wanted) -> Result<Wanted, Refusal> {
    match wanted.grants.len() {
        0..=GRANTS_MAX => Ok(wanted),
        more => refuse!(
            MalformedACLError,
            "The list has {more} grants; at most {GRANTS_MAX} are allowed"
        ),
    }
}

/// A list, from its document.
pub fn parse_acl(bytes: &[u8]) -> Result<Wanted, Refusal> {
    let root = Element::parse(bytes, "AccessControlPolicy")?;
    root.only(&["Owner", "AccessControlList"])?;
    let owner = match root.child("Owner")? {
        Some(owner) => {
            owner.only(&["ID", "DisplayName"])?;
            owner.text_of("ID")?.map(str::to_owned)
        }
        None => None,
    };
    let Some(list) = root.child("AccessControlList")? else {
        return bad_acl();
    };
    let grants = list.only(&["Grant"])?.all("Grant").map(parse_grant);
    let grants = grants.collect::<Result<_, _>>()?;
    check_count(Wanted { owner, grants })
}

fn parse_grant(grant: &Element) -> Result<(Named, Permission), Refusal> {
    grant.only(&["Grantee", "Permission"])?;
    let Some(grantee) = grant.child("Grantee")? else {
        return bad_acl();
    };
    grantee.only(&["ID", "DisplayName", "URI", "EmailAddress"])?;
    let texts = (
        grantee.text_of("ID")?,
        grantee.text_of("URI")?,
        grantee.text_of("EmailAddress")?,
    );
    // Some clients do not say the type; who says one means it.
    let kind = grantee.kind.as_deref();
    let is = |name: &str| kind.is_none_or(|kind| kind == name);
    let named = match texts {
        (Some(id), None, None) if is("CanonicalUser") => Named::Id(id.to_owned()),
        (None, Some(uri), None) if is("Group") => group(uri)?,
        (None, None, Some(_)) if is("AmazonCustomerByEmail") => return by_email(),
        _ => return bad_acl(),
    };
    match Permission::parse(grant.needed("Permission")?) {
        Some(may) => Ok((named, may)),
        None => bad_acl(),
    }
}

/// What `x-amz-grant-` headers ask for, given what follows that in their names; none if there are none.
pub fn parse_grants(headers: &[(String, String)]) -> Result<Option<Wanted>, Refusal> {
    let mut wanted = Wanted::default();
    for (name, value) in headers {
        let Some(may) = Permission::ALL.into_iter().find(|p| p.header() == name) else {
            return refuse!(
                NotImplemented,
                "The header x-amz-grant-{name} is not implemented"
            );
        };
        for one in value
            .split(',')
            .map(str::trim)
            .filter(|one| !one.is_empty())
        {
            let Some((kind, text)) = one.split_once('=') else {
                return refuse!(InvalidArgument, "Argument format not recognized");
            };
            let text = text.trim();
            let text = text.strip_prefix('"').unwrap_or(text);
            let text = text.strip_suffix('"').unwrap_or(text);
            let named = match kind.trim().to_ascii_lowercase().as_str() {
                "id" => Named::Id(text.to_owned()),
                "uri" => group(text)?,
                "emailaddress" => return by_email(),
                _ => return refuse!(InvalidArgument, "Argument format not recognized"),
            };
            wanted.grants.push((named, may));
        }
    }
    match headers.is_empty() {
        true => Ok(None),
        false => check_count(wanted).map(Some),
    }
}

impl Wanted {
    /// The ids that it names.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.grants.iter().filter_map(|(named, _)| match named {
            Named::Id(id) => Some(id.as_str()),
            Named::Group(_) => None,
        })
    }

    /// The grants, if all of those whom it names are there: `account` says who has an id.
    pub fn grants<'a>(
        &self,
        account: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Vec<Grant>, Refusal> {
        let grant = |(named, may): &(Named, Permission)| match named {
            Named::Group(group) => Ok(Grant::new(group.clone(), *may)),
            Named::Id(id) => match account(id) {
                Some(account) => Ok(Grant::new(Grantee::Account(account.to_owned()), *may)),
                None => refuse!(InvalidArgument, "Invalid id"),
            },
        };
        let grants: Vec<Grant> = self.grants.iter().map(grant).collect::<Result<_, _>>()?;
        Ok(in_order(grants))
    }
}

fn write_account(xml: &mut Xml, account: &str) {
    xml.text("ID", &canonical(account));
    xml.text("DisplayName", account);
}

/// A list as a document.
pub fn write_acl(owner: &str, grants: &[Grant]) -> String {
    Xml::document("AccessControlPolicy", |xml| {
        xml.element("Owner", |xml| write_account(xml, owner));
        xml.element("AccessControlList", |xml| {
            for grant in grants {
                xml.element("Grant", |xml| {
                    match (&grant.to, grant.to.uri()) {
                        (Grantee::Account(account), _) => {
                            xml.typed("Grantee", "CanonicalUser", |xml| {
                                write_account(xml, account)
                            });
                        }
                        (_, uri) => xml.typed("Grantee", "Group", |xml| xml.some("URI", uri)),
                    }
                    xml.text("Permission", grant.may.as_str());
                });
            }
        });
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::refusal::Code;

    const ALL_USERS: &str = "http://acs.amazonaws.com/groups/global/AllUsers";

    fn acl(grants: &str) -> Result<Vec<(Named, Permission)>, Code> {
        let text = format!(
            "<AccessControlPolicy><Owner><ID>me</ID></Owner><AccessControlList>{grants}</AccessControlList>\
             </AccessControlPolicy>"
        );
        let wanted = parse_acl(text.as_bytes()).map_err(|refusal| refusal.code)?;
        assert_eq!(wanted.owner.as_deref(), Some("me"));
        Ok(wanted.grants)
    }

    fn grant(kind: &str, inner: &str, may: &str) -> String {
        let kind = match kind {
            "" => String::new(),
            kind => format!(" xmlns:xsi=\"x\" xsi:type=\"{kind}\""),
        };
        format!("<Grant><Grantee{kind}>{inner}</Grantee><Permission>{may}</Permission></Grant>")
    }

    #[test]
    fn documents() {
        let id = "<ID>a</ID><DisplayName>n</DisplayName>";
        let uri = format!("<URI>{ALL_USERS}</URI>");
        let email = "<EmailAddress>a@b</EmailAddress>";
        assert_eq!(acl(""), Ok(vec![]));
        let named = Named::Id("a".into());
        for kind in ["", "CanonicalUser"] {
            assert_eq!(
                acl(&grant(kind, id, "READ")),
                Ok(vec![(named.clone(), Permission::Read)])
            );
        }
        let everyone = Named::Group(Grantee::AllUsers);
        assert_eq!(
            acl(&grant("Group", &uri, "WRITE_ACP")),
            Ok(vec![(everyone, Permission::WriteAcp)])
        );
        for (grants, code) in [
            (grant("Group", id, "READ"), Code::MalformedACLError),
            (
                grant("CanonicalUser", &uri, "READ"),
                Code::MalformedACLError,
            ),
            (grant("Robot", id, "READ"), Code::MalformedACLError),
            (grant("", "", "READ"), Code::MalformedACLError),
            (
                grant("", &format!("{id}{uri}"), "READ"),
                Code::MalformedACLError,
            ),
            (grant("", id, "read"), Code::MalformedACLError),
            (grant("", id, ""), Code::MalformedACLError),
            (
                grant("", email, "READ"),
                Code::UnresolvableGrantByEmailAddress,
            ),
            (
                grant("Group", "<URI>x</URI>", "READ"),
                Code::InvalidArgument,
            ),
            (grant("", "<X/>", "READ"), Code::MalformedXML),
            ("<Grant></Grant>".into(), Code::MalformedACLError),
            (grant("", id, "READ").repeat(101), Code::MalformedACLError),
        ] {
            assert_eq!(acl(&grants), Err(code), "{grants}");
        }
        acl(&grant("", id, "READ").repeat(100)).unwrap();
        for (text, code) in [
            ("<Other/>", Code::MalformedXML),
            ("", Code::MalformedXML),
            ("<AccessControlPolicy/>", Code::MalformedACLError),
        ] {
            let refused = parse_acl(text.as_bytes()).unwrap_err();
            assert_eq!(refused.code, code, "{text}");
        }
    }

    #[test]
    fn headers() {
        let parse = |headers: &[(&str, &str)]| {
            let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
            let headers: Vec<_> = headers.iter().map(own).collect();
            let wanted = parse_grants(&headers).map_err(|refusal| refusal.code)?;
            Ok(wanted.map(|wanted| wanted.grants))
        };
        assert_eq!(parse(&[]), Ok(None));
        let all = format!("id=\"a\", id=b,uri=\"{ALL_USERS}\"");
        assert_eq!(
            parse(&[("read", &all), ("full-control", "ID=c")]),
            Ok(Some(vec![
                (Named::Id("a".into()), Permission::Read),
                (Named::Id("b".into()), Permission::Read),
                (Named::Group(Grantee::AllUsers), Permission::Read),
                (Named::Id("c".into()), Permission::FullControl),
            ]))
        );
        assert_eq!(parse(&[("read", "")]), Ok(Some(vec![])));
        for (name, value, code) in [
            ("read", "a", Code::InvalidArgument),
            ("read", "name=a", Code::InvalidArgument),
            ("read", "uri=a", Code::InvalidArgument),
            (
                "read",
                "emailAddress=a@b",
                Code::UnresolvableGrantByEmailAddress,
            ),
            ("owner", "id=a", Code::NotImplemented),
            ("write", &"id=a,".repeat(101), Code::MalformedACLError),
        ] {
            assert_eq!(parse(&[(name, value)]), Err(code), "{name}: {value}");
        }
    }

    #[test]
    fn who_is_not_there_is_granted_nothing() {
        let headers = [("read".to_owned(), "id=a,id=b".to_owned())];
        let wanted = parse_grants(&headers).unwrap().unwrap();
        assert_eq!(wanted.ids().collect::<Vec<_>>(), ["a", "b"]);
        let only_a = |id: &str| (id == "a").then_some("111111111111");
        assert_eq!(
            wanted.grants(only_a).unwrap_err().code,
            Code::InvalidArgument
        );
        let both = |_: &str| Some("111111111111");
        assert_eq!(wanted.grants(both).unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn there_and_back(
            owner in "[0-9]{12}",
            some in proptest::collection::vec((0usize..6, 0usize..5), 0..20),
        ) {
            let accounts = ["000000000001", "123456789012", "999999999999"];
            let grants = in_order(some.iter().map(|(to, may)| {
                let to = match to {
                    0 => Grantee::AllUsers,
                    1 => Grantee::AuthenticatedUsers,
                    2 => Grantee::LogDelivery,
                    n => Grantee::Account(accounts[n - 3].to_owned()),
                };
                Grant::new(to, Permission::ALL[*may])
            }));
            let wanted = parse_acl(write_acl(&owner, &grants).as_bytes()).unwrap();
            prop_assert_eq!(&wanted.owner, &Some(canonical(&owner)));
            let account = |id: &str| accounts.into_iter().find(|a| canonical(a) == id);
            prop_assert_eq!(wanted.grants(account).unwrap(), grants);
        }
    }
}
