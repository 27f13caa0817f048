//! The documents that requests carry, and how configurations are written.
//!
//! Invariant: an element that is not known where it stands is refused: what it asks for would not be done.

use crate::bucket::{Ownership, PublicAccessBlock, Versioning};
use crate::checksum::Algorithm;
use crate::cors::{self, CorsRule};
use crate::refusal::{Refusal, refuse};
use crate::tags::{self, Tags};
use crate::xml::{Element, Xml};

/// Most keys of one request to delete.
pub const DELETE_MAX: usize = 1000;

/// An object that is to be deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToDelete {
    /// Its key.
    pub key: String,
    /// The version that is meant.
    pub version: Option<String>,
    /// What its ETag must be.
    pub etag: Option<String>,
    /// Something else that must hold: there is no such thing here.
    pub other_condition: bool,
}

/// A request to delete many: which, and whether only failures are told.
pub fn parse_delete(bytes: &[u8]) -> Result<(Vec<ToDelete>, bool), Refusal> {
    let root = Element::parse(bytes, "Delete")?;
    root.only(&["Object", "Quiet"])?;
    let objects = root
        .all("Object")
        .map(|object| {
            object.only(&["Key", "VersionId", "ETag", "LastModifiedTime", "Size"])?;
            Ok(ToDelete {
                key: object.needed("Key")?.to_owned(),
                version: object.text_of("VersionId")?.map(str::to_owned),
                etag: object.text_of("ETag")?.map(str::to_owned),
                other_condition: object.child("LastModifiedTime")?.is_some()
                    || object.child("Size")?.is_some(),
            })
        })
        .collect::<Result<Vec<_>, Refusal>>()?;
    if objects.is_empty() || objects.len() > DELETE_MAX {
        return refuse!(MalformedXML, "A request deletes 1 to {DELETE_MAX} objects");
    }
    Ok((objects, root.flag("Quiet")?.unwrap_or(false)))
}

/// A part, as a request to complete names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPart {
    /// Its number.
    pub number: u16,
    /// Its ETag, without quotes.
    pub etag: String,
    /// Its checksum.
    pub checksum: Option<(Algorithm, Vec<u8>)>,
}

/// The parts of a request to complete an upload, in their order.
pub fn parse_complete(bytes: &[u8]) -> Result<Vec<NamedPart>, Refusal> {
    const CHECKSUMS: [(&str, Algorithm); 5] = [
        ("ChecksumCRC32", Algorithm::Crc32),
        ("ChecksumCRC32C", Algorithm::Crc32c),
        ("ChecksumCRC64NVME", Algorithm::Crc64Nvme),
        ("ChecksumSHA1", Algorithm::Sha1),
        ("ChecksumSHA256", Algorithm::Sha256),
    ];
    let root = Element::parse(bytes, "CompleteMultipartUpload")?;
    root.only(&["Part"])?;
    let mut parts = Vec::new();
    for part in root.all("Part") {
        let mut names = vec!["PartNumber", "ETag"];
        names.extend(CHECKSUMS.map(|(name, _)| name));
        part.only(&names)?;
        let number = match part.number::<u16>("PartNumber")? {
            Some(number) if number > 0 => number,
            _ => return refuse!(MalformedXML, "A part has a number from 1 to 10000"),
        };
        let mut checksum = None;
        for (name, algorithm) in CHECKSUMS {
            if let Some(text) = part.text_of(name)? {
                checksum = Some((algorithm, algorithm.parse_digest(text.trim())?));
            }
        }
        parts.push(NamedPart {
            number,
            etag: part.needed("ETag")?.trim().trim_matches('"').to_owned(),
            checksum,
        });
    }
    if parts.is_empty() {
        return refuse!(MalformedXML, "You must specify at least one part");
    }
    if parts
        .windows(2)
        .any(|pair| pair[0].number >= pair[1].number)
    {
        return refuse!(
            InvalidPartOrder,
            "The list of parts was not in ascending order. The parts list must be specified in order by \
             part number."
        );
    }
    Ok(parts)
}

/// Tags, of which there may be so many.
pub fn parse_tagging(bytes: &[u8], most: usize) -> Result<Tags, Refusal> {
    let root = Element::parse(bytes, "Tagging")?;
    root.only(&["TagSet"])?;
    let Some(set) = root.child("TagSet")? else {
        return refuse!(MalformedXML, "A Tagging has a TagSet");
    };
    let tags = parse_tags(set)?;
    tags::check(&tags, most)?;
    Ok(tags)
}

fn parse_tags(set: &Element) -> Result<Tags, Refusal> {
    set.only(&["Tag"])?;
    let tag = |tag: &Element| {
        tag.only(&["Key", "Value"])?;
        Ok((
            tag.needed("Key")?.to_owned(),
            tag.needed("Value")?.to_owned(),
        ))
    };
    set.all("Tag").map(tag).collect()
}

/// Tags as a document, in the order of their names.
pub fn write_tagging(tags: &Tags) -> String {
    let mut sorted: Vec<&(String, String)> = tags.iter().collect();
    sorted.sort_unstable();
    Xml::document("Tagging", |xml| {
        xml.element("TagSet", |xml| {
            for (key, value) in sorted {
                xml.element("Tag", |xml| {
                    xml.text("Key", key);
                    xml.text("Value", value);
                });
            }
        });
    })
}

/// CORS rules.
pub fn parse_cors(bytes: &[u8]) -> Result<Vec<CorsRule>, Refusal> {
    let root = Element::parse(bytes, "CORSConfiguration")?;
    root.only(&["CORSRule"])?;
    let rules = root
        .all("CORSRule")
        .map(|rule| {
            rule.only(&[
                "ID",
                "AllowedOrigin",
                "AllowedMethod",
                "AllowedHeader",
                "ExposeHeader",
                "MaxAgeSeconds",
            ])?;
            Ok(CorsRule {
                id: rule.text_of("ID")?.map(str::to_owned),
                origins: rule.texts("AllowedOrigin"),
                methods: rule.texts("AllowedMethod"),
                headers: rule.texts("AllowedHeader"),
                exposed: rule.texts("ExposeHeader"),
                max_age: rule.number("MaxAgeSeconds")?,
            })
        })
        .collect::<Result<Vec<_>, Refusal>>()?;
    cors::check(&rules)?;
    Ok(rules)
}

/// CORS rules as a document.
pub fn write_cors(rules: &[CorsRule]) -> String {
    Xml::document("CORSConfiguration", |xml| {
        for rule in rules {
            xml.element("CORSRule", |xml| {
                xml.some("ID", rule.id.as_deref());
                for (name, texts) in [
                    ("AllowedHeader", &rule.headers),
                    ("AllowedMethod", &rule.methods),
                    ("AllowedOrigin", &rule.origins),
                    ("ExposeHeader", &rule.exposed),
                ] {
                    texts.iter().for_each(|text| xml.text(name, text));
                }
                if let Some(seconds) = rule.max_age {
                    xml.value("MaxAgeSeconds", seconds);
                }
            });
        }
    })
}

/// Who owns what is put.
pub fn parse_ownership(bytes: &[u8]) -> Result<Ownership, Refusal> {
    let root = Element::parse(bytes, "OwnershipControls")?;
    root.only(&["Rule"])?;
    match root.child("Rule")? {
        Some(rule) => {
            rule.only(&["ObjectOwnership"])?;
            let text = rule.needed("ObjectOwnership")?;
            match Ownership::parse(text) {
                Some(ownership) => Ok(ownership),
                None => refuse!(MalformedXML, "There is no ObjectOwnership {text:?}"),
            }
        }
        None => refuse!(MalformedXML, "OwnershipControls have a Rule"),
    }
}

/// Whether a bucket is to keep versions.
pub fn parse_versioning(bytes: &[u8]) -> Result<Versioning, Refusal> {
    let root = Element::parse(bytes, "VersioningConfiguration")?;
    root.only(&["Status", "MfaDelete"])?;
    match root.text_of("MfaDelete")? {
        None | Some("Disabled") => {}
        Some("Enabled") => return refuse!(NotImplemented, "MfaDelete is not implemented"),
        Some(_) => return refuse!(MalformedXML, "MfaDelete is Enabled or Disabled"),
    }
    match root.text_of("Status")? {
        Some("Enabled") => Ok(Versioning::Enabled),
        Some("Suspended") => Ok(Versioning::Suspended),
        _ => refuse!(
            IllegalVersioningConfigurationException,
            "The Versioning element must be specified"
        ),
    }
}

/// The same as a document.
pub fn write_versioning(versioning: Option<Versioning>) -> String {
    Xml::document("VersioningConfiguration", |xml| match versioning {
        Some(Versioning::Enabled) => xml.text("Status", "Enabled"),
        Some(Versioning::Suspended) => xml.text("Status", "Suspended"),
        None => {}
    })
}

/// Who owns what is put, as a header says it.
pub fn check_ownership(text: &str) -> Result<Ownership, Refusal> {
    match Ownership::parse(text) {
        Some(ownership) => Ok(ownership),
        None => refuse!(
            InvalidArgument,
            "Invalid x-amz-object-ownership header: {text}"
        ),
    }
}

/// Who owns what is put, as a document.
pub fn write_ownership(ownership: Ownership) -> String {
    Xml::document("OwnershipControls", |xml| {
        xml.element("Rule", |xml| {
            xml.text("ObjectOwnership", ownership.as_str())
        });
    })
}

const BLOCKS: [&str; 4] = [
    "BlockPublicAcls",
    "IgnorePublicAcls",
    "BlockPublicPolicy",
    "RestrictPublicBuckets",
];

/// What keeps the public out.
pub fn parse_public_access_block(bytes: &[u8]) -> Result<PublicAccessBlock, Refusal> {
    let root = Element::parse(bytes, "PublicAccessBlockConfiguration")?;
    root.only(&BLOCKS)?;
    let flag = |name| Ok(root.flag(name)?.unwrap_or(false));
    Ok(PublicAccessBlock {
        block_public_acls: flag(BLOCKS[0])?,
        ignore_public_acls: flag(BLOCKS[1])?,
        block_public_policy: flag(BLOCKS[2])?,
        restrict_public_buckets: flag(BLOCKS[3])?,
    })
}

/// What keeps the public out, as a document.
pub fn write_public_access_block(block: &PublicAccessBlock) -> String {
    Xml::document("PublicAccessBlockConfiguration", |xml| {
        let flags = [
            block.block_public_acls,
            block.ignore_public_acls,
            block.block_public_policy,
            block.restrict_public_buckets,
        ];
        for (name, flag) in BLOCKS.into_iter().zip(flags) {
            xml.value(name, flag);
        }
    })
}

/// What a new bucket is to be: its region, if one is named, and its tags.
pub fn parse_create_bucket(bytes: &[u8]) -> Result<(Option<String>, Tags), Refusal> {
    if bytes.is_empty() {
        return Ok((None, Tags::new()));
    }
    let root = Element::parse(bytes, "CreateBucketConfiguration")?;
    if root.child("Location")?.is_some() || root.child("Bucket")?.is_some() {
        return refuse!(NotImplemented, "Directory buckets are not implemented");
    }
    root.only(&["LocationConstraint", "Tags"])?;
    let tags = match root.child("Tags")? {
        Some(set) => parse_tags(set)?,
        None => Tags::new(),
    };
    tags::check(&tags, tags::BUCKET_TAGS_MAX)?;
    let region = root
        .text_of("LocationConstraint")?
        .filter(|text| !text.is_empty());
    Ok((region.map(str::to_owned), tags))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::digest;
    use crate::refusal::Code;
    use crate::text::to_base64;

    #[test]
    fn deletes() {
        let text = "<Delete xmlns='x'><Quiet>true</Quiet><Object><Key> a&amp;b </Key></Object>\
            <Object><Key>c</Key><VersionId>null</VersionId><ETag>\"e\"</ETag></Object>\
            <Object><Key>d</Key><Size>5</Size></Object></Delete>";
        let (objects, quiet) = parse_delete(text.as_bytes()).unwrap();
        assert!(quiet);
        let keys: Vec<&str> = objects.iter().map(|o| o.key.as_str()).collect();
        assert_eq!(keys, [" a&b ", "c", "d"]);
        assert_eq!(objects[1].etag.as_deref(), Some("\"e\""));
        assert!(objects[2].other_condition && !objects[1].other_condition);
        let many = |n| {
            format!(
                "<Delete>{}</Delete>",
                "<Object><Key>k</Key></Object>".repeat(n)
            )
        };
        parse_delete(many(1000).as_bytes()).unwrap();
        for bad in [
            many(0),
            many(1001),
            "<Delete><Object/></Delete>".into(),
            "<Delete><X/></Delete>".into(),
        ] {
            assert_eq!(
                parse_delete(bad.as_bytes()).unwrap_err().code,
                Code::MalformedXML
            );
        }
    }

    #[test]
    fn completions() {
        let crc = to_base64(&digest(Algorithm::Crc32, b"x"));
        let part = |number: &str, more: &str| {
            format!(
                "<Part><PartNumber>{number}</PartNumber><ETag>&quot;e{number}&quot;</ETag>{more}</Part>"
            )
        };
        let parse = |parts: &[String]| {
            parse_complete(
                format!(
                    "<CompleteMultipartUpload>{}</CompleteMultipartUpload>",
                    parts.concat()
                )
                .as_bytes(),
            )
        };
        let checksum = format!("<ChecksumCRC32>{crc}</ChecksumCRC32>");
        let parts = parse(&[part("1", &checksum), part("10000", "")]).unwrap();
        assert_eq!((parts[0].number, parts[0].etag.as_str()), (1, "e1"));
        assert_eq!(
            parts[0].checksum,
            Some((Algorithm::Crc32, digest(Algorithm::Crc32, b"x")))
        );
        assert_eq!((parts[1].number, &parts[1].checksum), (10_000, &None));
        let code = |parts: &[String]| parse(parts).unwrap_err().code;
        assert_eq!(code(&[]), Code::MalformedXML);
        assert_eq!(code(&[part("0", "")]), Code::MalformedXML);
        assert_eq!(code(&[part("x", "")]), Code::MalformedXML);
        assert_eq!(code(&[part("1", "<X/>")]), Code::MalformedXML);
        assert_eq!(
            code(&[part("2", ""), part("1", "")]),
            Code::InvalidPartOrder
        );
        assert_eq!(
            code(&[part("2", ""), part("2", "")]),
            Code::InvalidPartOrder
        );
        assert_eq!(
            code(&[part("1", "<ChecksumCRC32>AA==</ChecksumCRC32>")]),
            Code::InvalidRequest
        );
    }

    #[test]
    fn configurations_there_and_back() {
        let tags = vec![
            ("a".to_owned(), "b & c".to_owned()),
            ("d".to_owned(), String::new()),
        ];
        assert_eq!(
            parse_tagging(write_tagging(&tags).as_bytes(), 10)
                .unwrap_err()
                .code,
            Code::InvalidTag
        );
        let tags = vec![
            ("a".to_owned(), "b".to_owned()),
            ("d".to_owned(), String::new()),
        ];
        assert_eq!(
            parse_tagging(write_tagging(&tags).as_bytes(), 10).unwrap(),
            tags
        );
        let rules = vec![CorsRule {
            id: Some("r<1>".into()),
            origins: vec!["*".into()],
            methods: vec!["GET".into(), "PUT".into()],
            headers: vec!["x-*".into()],
            exposed: vec!["ETag".into()],
            max_age: Some(3000),
        }];
        assert_eq!(parse_cors(write_cors(&rules).as_bytes()).unwrap(), rules);
        for ownership in Ownership::ALL {
            let text = write_ownership(ownership);
            assert_eq!(parse_ownership(text.as_bytes()).unwrap(), ownership);
            assert_eq!(check_ownership(ownership.as_str()).unwrap(), ownership);
        }
        let other = write_ownership(Ownership::ObjectWriter).replace("Object", "Any");
        let refused = parse_ownership(other.as_bytes()).unwrap_err();
        assert_eq!(refused.code, Code::MalformedXML);
        let refused = check_ownership("objectwriter").unwrap_err();
        assert_eq!(refused.code, Code::InvalidArgument);
        let block = PublicAccessBlock {
            block_public_policy: true,
            ..PublicAccessBlock::default()
        };
        let text = write_public_access_block(&block);
        assert_eq!(parse_public_access_block(text.as_bytes()).unwrap(), block);
    }

    #[test]
    fn new_buckets() {
        assert_eq!(parse_create_bucket(b"").unwrap(), (None, vec![]));
        let text = "<CreateBucketConfiguration><LocationConstraint>eu</LocationConstraint>\
            <Tags><Tag><Key>a</Key>\
            <Value>b</Value></Tag></Tags></CreateBucketConfiguration>";
        let tags = vec![("a".to_owned(), "b".to_owned())];
        assert_eq!(
            parse_create_bucket(text.as_bytes()).unwrap(),
            (Some("eu".to_owned()), tags)
        );
        let directory = "<CreateBucketConfiguration><Bucket><Type>Directory</Type></Bucket>\
            </CreateBucketConfiguration>";
        assert_eq!(
            parse_create_bucket(directory.as_bytes()).unwrap_err().code,
            Code::NotImplemented
        );
        assert_eq!(
            parse_create_bucket(b"<X/>").unwrap_err().code,
            Code::MalformedXML
        );
    }
}
