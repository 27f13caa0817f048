//! Server-side encryption: what a request asks for, what a bucket wants, and an object's own key, sealed.
//!
//! An object's bytes are encrypted with a random key of its own. That is kept with the object, sealed with a key of the
//! store's (SSE-S3) or with one that the customer sends with each request (SSE-C) and that is kept nowhere.
//!
//! Invariants:
//! - what is sealed in one way does not open in the other, and no key is used for two purposes: each is made of
//!   another one with HMAC-SHA256 and a label of its own;
//! - a key leaves this module to encrypt or decrypt, never as `Debug` or in a refusal, and is wiped when it is dropped;
//! - a request that asks for two ways at once, or for one that there is not, is refused;
//! - randomness is an argument.

use std::fmt;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::checksum::md5;
use crate::refusal::{Code, Refusal, refuse};
use crate::signature_v4::hmac;
use crate::text::{from_base64, to_base64};
use crate::xml::{Element, Xml};

/// Bytes of a key: an object's, a customer's, the store's.
pub const KEY_LEN: usize = 32;
/// Random bytes that sealing takes.
pub const NONCE_LEN: usize = 24;
/// Bytes of an object's key with the tag that proves it.
const BOX_LEN: usize = KEY_LEN + 16;
/// Bytes of a sealed key.
const SEALED_LEN: usize = 1 + NONCE_LEN + BOX_LEN;
/// The one algorithm.
pub const AES256: &str = "AES256";
/// The ways that take a key management service.
const KMS: &[&str] = &["aws:kms", "aws:kms:dsse", "aws:fsx"];

/// A key, in the clear.
pub type PlainKey = Zeroizing<[u8; KEY_LEN]>;

/// Whose key an object's own one is sealed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The store's: SSE-S3.
    Store,
    /// The customer's: SSE-C.
    Customer,
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Kind::Store => 1,
            Kind::Customer => 2,
        }
    }

    /// What it is sealed for: a key of the one kind is none of the other.
    fn label(self) -> &'static [u8] {
        match self {
            Kind::Store => b"ashlar sse-s3 1\0",
            Kind::Customer => b"ashlar sse-c 1\0",
        }
    }
}

/// An object's key as it is kept with the object.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedKey {
    kind: Kind,
    nonce: [u8; NONCE_LEN],
    sealed: Vec<u8>,
}

impl fmt::Debug for SealedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedKey({:?}, …)", self.kind)
    }
}

/// The store's key, made of the root key.
#[derive(Clone)]
pub struct StoreKey(PlainKey);

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreKey(…)")
    }
}

impl StoreKey {
    /// Of the root key's bytes.
    pub(crate) fn of_root(root: &[u8; KEY_LEN]) -> StoreKey {
        StoreKey(Zeroizing::new(hmac(root, b"ashlar store key 1\0")))
    }
}

/// A customer's key, as a request brings it.
#[derive(Clone)]
pub struct CustomerKey(PlainKey);

impl fmt::Debug for CustomerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomerKey(…)")
    }
}

/// What a key is sealed with: a key for this once.
fn sealing(secret: &PlainKey, kind: Kind, nonce: &[u8; NONCE_LEN]) -> XChaCha20Poly1305 {
    let text = [kind.label(), nonce].concat();
    let key = Zeroizing::new(hmac(&secret[..], &text));
    XChaCha20Poly1305::new((&*key).into())
}

impl SealedKey {
    fn seal(kind: Kind, secret: &PlainKey, key: &PlainKey, nonce: [u8; NONCE_LEN]) -> SealedKey {
        let payload = Payload {
            msg: &key[..],
            aad: kind.label(),
        };
        let sealed = sealing(secret, kind, &nonce).encrypt(XNonce::from_slice(&nonce), payload);
        SealedKey {
            kind,
            nonce,
            // It fails for texts of many gigabytes only.
            sealed: sealed.unwrap_or_default(),
        }
    }

    fn open(&self, secret: &PlainKey) -> Option<PlainKey> {
        let payload = Payload {
            msg: &self.sealed,
            aad: self.kind.label(),
        };
        let sealing = sealing(secret, self.kind, &self.nonce);
        let opened = sealing.decrypt(XNonce::from_slice(&self.nonce), payload);
        let opened = Zeroizing::new(opened.ok()?);
        Some(Zeroizing::new(opened[..].try_into().ok()?))
    }

    /// Seals an object's key with the store's.
    pub fn of_store(store: &StoreKey, key: &PlainKey, nonce: [u8; NONCE_LEN]) -> SealedKey {
        SealedKey::seal(Kind::Store, &store.0, key, nonce)
    }

    /// Seals an object's key with the customer's.
    pub fn of_customer(
        customer: &CustomerKey,
        key: &PlainKey,
        nonce: [u8; NONCE_LEN],
    ) -> SealedKey {
        SealedKey::seal(Kind::Customer, &customer.0, key, nonce)
    }

    /// Whose key it is sealed with.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        [&[self.kind.number()], &self.nonce[..], &self.sealed].concat()
    }

    /// From its bytes; none if they are no sealed key that is known here.
    pub fn decode(bytes: &[u8]) -> Option<SealedKey> {
        let ([kind, nonce @ ..], sealed) = bytes.split_first_chunk::<{ 1 + NONCE_LEN }>()?;
        let kind = [Kind::Store, Kind::Customer]
            .into_iter()
            .find(|known| known.number() == *kind)?;
        let is_whole = bytes.len() == SEALED_LEN;
        is_whole.then(|| SealedKey {
            kind,
            nonce: *nonce,
            sealed: sealed.to_vec(),
        })
    }
}

/// What a key is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// To read an object, or what is known of it.
    Object,
    /// To add to an upload, or to put it together.
    Upload,
}

/// The key of what was found, if that is encrypted; and if the request has the customer's key that it takes, and has
/// none if it takes none.
pub fn key_of(
    found: Option<&SealedKey>,
    store: &StoreKey,
    customer: Option<&CustomerKey>,
    of: Of,
) -> Result<Option<PlainKey>, Refusal> {
    let Some(sealed) = found else {
        return match customer {
            None => Ok(None),
            Some(_) => not_applicable(),
        };
    };
    match (sealed.kind, customer) {
        (Kind::Store, Some(_)) => not_applicable(),
        (Kind::Store, None) => match sealed.open(&store.0) {
            Some(key) => Ok(Some(key)),
            None => refuse!(
                InternalError,
                "the key of this object does not open: it was sealed with another root key than this gateway's, or \
                 is damaged"
            ),
        },
        (Kind::Customer, None) if of == Of::Upload => refuse!(
            InvalidRequest,
            "The multipart upload initiate requested encryption. Subsequent part requests must include the \
             appropriate encryption parameters."
        ),
        (Kind::Customer, None) => refuse!(
            InvalidRequest,
            "The object was stored using a form of Server Side Encryption. The correct parameters must be provided \
             to retrieve the object."
        ),
        (Kind::Customer, Some(customer)) => match sealed.open(&customer.0) {
            Some(key) => Ok(Some(key)),
            None if of == Of::Upload => refuse!(
                InvalidRequest,
                "The provided encryption parameters did not match the ones used originally."
            ),
            None => refuse!(
                AccessDenied,
                "The key that you sent is not the one that the object was encrypted with"
            ),
        },
    }
}

fn not_applicable<T>() -> Result<T, Refusal> {
    refuse!(
        InvalidRequest,
        "The encryption parameters are not applicable to this object."
    )
}

/// The ETag of what is encrypted with a customer's key: what MD5 says of the bytes is nobody else's business.
pub fn hidden_etag(key: &PlainKey, md5: &[u8; 16]) -> [u8; 16] {
    let digest = hmac(&key[..], &[b"ashlar etag 1\0", &md5[..]].concat());
    let mut etag = [0; 16];
    etag.copy_from_slice(&digest[..16]);
    etag
}

impl CustomerKey {
    /// From what a request's three headers say; none if it has none of them.
    pub fn parse(
        algorithm: Option<&str>,
        key: Option<&str>,
        key_md5: Option<&str>,
    ) -> Result<Option<CustomerKey>, Refusal> {
        const MUST: &str =
            "Requests specifying Server Side Encryption with Customer provided keys must provide";
        if algorithm.is_none() && key.is_none() && key_md5.is_none() {
            return Ok(None);
        }
        if algorithm != Some(AES256) {
            return refuse!(InvalidArgument, "{MUST} a valid encryption algorithm.");
        }
        let Some(key) = key else {
            return refuse!(InvalidArgument, "{MUST} an appropriate secret key.");
        };
        let Some(key_md5) = key_md5 else {
            return refuse!(
                InvalidArgument,
                "{MUST} the client calculated MD5 of the secret key."
            );
        };
        let key = from_base64(key).map(Zeroizing::new);
        let Some(key) = key.and_then(|key| <[u8; KEY_LEN]>::try_from(&key[..]).ok()) else {
            return refuse!(
                InvalidArgument,
                "The secret key was invalid for the specified algorithm."
            );
        };
        let key = Zeroizing::new(key);
        if from_base64(key_md5).as_deref() != Some(&md5(&key[..])) {
            return refuse!(
                InvalidArgument,
                "The calculated MD5 hash of the key did not match the hash that was provided."
            );
        }
        Ok(Some(CustomerKey(key)))
    }

    /// The MD5 of the key, as replies say it.
    pub fn md5(&self) -> String {
        to_base64(&md5(&self.0[..]))
    }
}

/// How what a request makes is to be encrypted.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// As its bucket has it.
    Default,
    /// With the store's key.
    Store,
    /// With the customer's.
    Customer(CustomerKey),
}

impl Wanted {
    /// From `x-amz-server-side-encryption` and its key id, and the customer's key.
    pub fn parse(
        way: Option<&str>,
        kms_key: Option<&str>,
        customer: Option<CustomerKey>,
    ) -> Result<Wanted, Refusal> {
        if customer.is_some() && (way.is_some() || kms_key.is_some()) {
            return refuse!(
                InvalidArgument,
                "Server Side Encryption with Customer provided key is incompatible with the encryption method \
                 specified"
            );
        }
        match (way, customer) {
            (Some(way), _) if KMS.contains(&way) => no_kms(way),
            _ if kms_key.is_some() => refuse!(
                InvalidArgument,
                "Server Side Encryption with AWS KMS managed key requires HTTP header \
                 x-amz-server-side-encryption : aws:kms"
            ),
            (None, None) => Ok(Wanted::Default),
            (None, Some(customer)) => Ok(Wanted::Customer(customer)),
            (Some(AES256), _) => Ok(Wanted::Store),
            (Some(_), _) => refuse!(
                InvalidArgument,
                "The encryption method specified is not supported"
            ),
        }
    }
}

fn no_kms<T>(way: &str) -> Result<T, Refusal> {
    refuse!(
        NotImplemented,
        "{way} needs a key management service, and there is none here. Nothing was changed. AES256, or a key of your \
         own, can be used instead."
    )
}

/// The algorithm that a bucket has its objects encrypted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DefaultAlgorithm {
    /// AES-256, with the store's key.
    #[serde(rename = "AES256")]
    Aes256,
}

/// How a bucket has objects encrypted of which nobody says how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BucketEncryption {
    /// With what.
    pub algorithm: DefaultAlgorithm,
}

impl BucketEncryption {
    /// From a request's document.
    pub fn parse(bytes: &[u8]) -> Result<BucketEncryption, Refusal> {
        let root = Element::parse(bytes, "ServerSideEncryptionConfiguration")?;
        root.only(&["Rule"])?;
        let Some(rule) = root.child("Rule")? else {
            return refuse!(
                MalformedXML,
                "A ServerSideEncryptionConfiguration has a Rule"
            );
        };
        if rule.child("BlockedEncryptionTypes")?.is_some() {
            return refuse!(NotImplemented, "BlockedEncryptionTypes is not implemented");
        }
        rule.only(&["ApplyServerSideEncryptionByDefault", "BucketKeyEnabled"])?;
        let Some(default) = rule.child("ApplyServerSideEncryptionByDefault")? else {
            return refuse!(
                MalformedXML,
                "A Rule has an ApplyServerSideEncryptionByDefault"
            );
        };
        default.only(&["SSEAlgorithm", "KMSMasterKeyID"])?;
        let algorithm = default.needed("SSEAlgorithm")?;
        if KMS.contains(&algorithm) {
            return no_kms(algorithm);
        }
        if algorithm != AES256 {
            return refuse!(MalformedXML, "SSEAlgorithm is AES256");
        }
        if default.text_of("KMSMasterKeyID")?.is_some() {
            return refuse!(
                InvalidArgument,
                "a KMSMasterKeyID is not applicable if the default sse algorithm is not aws:kms or aws:kms:dsse"
            );
        }
        if rule.flag("BucketKeyEnabled")? == Some(true) {
            return refuse!(
                InvalidArgument,
                "BucketKeyEnabled is about keys of a key management service: it means nothing with AES256"
            );
        }
        Ok(BucketEncryption {
            algorithm: DefaultAlgorithm::Aes256,
        })
    }

    /// As a document.
    pub fn write(&self) -> String {
        let DefaultAlgorithm::Aes256 = self.algorithm;
        Xml::document("ServerSideEncryptionConfiguration", |xml| {
            xml.element("Rule", |xml| {
                xml.element("ApplyServerSideEncryptionByDefault", |xml| {
                    xml.text("SSEAlgorithm", AES256);
                });
                xml.text("BucketKeyEnabled", "false");
            });
        })
    }
}

/// What is said of a bucket that has nothing encrypted by itself.
pub fn no_default() -> Refusal {
    Refusal::new(
        Code::ServerSideEncryptionConfigurationNotFoundError,
        "The server side encryption configuration was not found",
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "pO3upElrwuEXSoFwCfnZPdSsmt/xWeFa0N9KgDijwVs=";
    const KEY_MD5: &str = "DWygnHRtgiJ77HCm+1rvHw==";
    const OTHER: &str = "6b+WOZ1T3cqZMxgThRcXAQBrS5mXKdDUphvpxptl9/4=";
    const OTHER_MD5: &str = "arxBvwY2V4SiOne6yppVPQ==";

    fn customer(key: &str, key_md5: &str) -> CustomerKey {
        let parsed = CustomerKey::parse(Some(AES256), Some(key), Some(key_md5));
        parsed.unwrap().unwrap()
    }

    fn plain(byte: u8) -> PlainKey {
        Zeroizing::new([byte; KEY_LEN])
    }

    #[test]
    fn headers_of_a_customers_key() {
        let long = to_base64(&[7; 33]);
        let long_md5 = to_base64(&md5(&[7; 33]));
        type Said<'a> = Option<&'a str>;
        for (algorithm, key, key_md5, is_key) in [
            (None, None, None, Ok(false)),
            (Some(AES256), Some(KEY), Some(KEY_MD5), Ok(true)),
            (
                Some(AES256),
                Some(KEY),
                Some(OTHER_MD5),
                Err("did not match"),
            ),
            (
                Some(AES256),
                Some(KEY),
                Some("AAAAAAAAAAAAAAAAAAAAAA=="),
                Err("did not match"),
            ),
            (Some(AES256), Some(KEY), Some("?"), Err("did not match")),
            (Some(AES256), Some(KEY), None, Err("calculated MD5")),
            (
                Some(AES256),
                None,
                Some(KEY_MD5),
                Err("appropriate secret key"),
            ),
            (Some(AES256), None, None, Err("appropriate secret key")),
            (
                None,
                Some(KEY),
                Some(KEY_MD5),
                Err("valid encryption algorithm"),
            ),
            (
                Some("AES192"),
                Some(KEY),
                Some(KEY_MD5),
                Err("valid encryption algorithm"),
            ),
            (
                Some("aes256"),
                Some(KEY),
                Some(KEY_MD5),
                Err("valid encryption algorithm"),
            ),
            (
                Some(AES256),
                Some("x"),
                Some(KEY_MD5),
                Err("invalid for the specified"),
            ),
            (
                Some(AES256),
                Some(""),
                Some(KEY_MD5),
                Err("invalid for the specified"),
            ),
            (
                Some(AES256),
                Some(&long),
                Some(&long_md5),
                Err("invalid for the specified"),
            ),
        ]
            as [(Said<'_>, Said<'_>, Said<'_>, Result<bool, &str>); 14]
        {
            let said = CustomerKey::parse(algorithm, key, key_md5);
            match (said, is_key) {
                (Ok(said), Ok(expected)) => assert_eq!(said.is_some(), expected),
                (Err(refusal), Err(why)) => {
                    assert_eq!(refusal.code, Code::InvalidArgument);
                    assert!(refusal.message.contains(why), "{refusal}");
                    assert!(!refusal.message.contains(KEY), "{refusal}");
                }
                (said, expected) => {
                    panic!("{algorithm:?} {key:?} {key_md5:?}: {said:?}, not {expected:?}")
                }
            }
        }
        assert_eq!(customer(KEY, KEY_MD5).md5(), KEY_MD5);
    }

    #[test]
    fn ways_that_are_asked_for() {
        let one = || Some(customer(KEY, KEY_MD5));
        let code = |way, kms, customer| Wanted::parse(way, kms, customer).map_err(|r| r.code);
        assert!(matches!(code(None, None, None), Ok(Wanted::Default)));
        assert!(matches!(code(Some(AES256), None, None), Ok(Wanted::Store)));
        assert!(matches!(code(None, None, one()), Ok(Wanted::Customer(_))));
        for (way, kms, customer, expected) in [
            (Some(AES256), None, one(), Code::InvalidArgument),
            (Some("aws:kms"), Some("id"), one(), Code::InvalidArgument),
            (None, Some("id"), one(), Code::InvalidArgument),
            (Some(AES256), Some("id"), None, Code::InvalidArgument),
            (None, Some("id"), None, Code::InvalidArgument),
            (Some("aes:kms"), None, None, Code::InvalidArgument),
            (Some("AES192"), None, None, Code::InvalidArgument),
            (Some(""), None, None, Code::InvalidArgument),
            (Some("aws:kms"), None, None, Code::NotImplemented),
            (Some("aws:kms"), Some("id"), None, Code::NotImplemented),
            (Some("aws:kms:dsse"), None, None, Code::NotImplemented),
        ] {
            assert_eq!(
                code(way, kms, customer).unwrap_err(),
                expected,
                "{way:?} {kms:?}"
            );
        }
    }

    #[test]
    fn a_key_opens_with_what_it_was_sealed_with_and_nothing_else() {
        let root = [3; KEY_LEN];
        let (store, others) = (StoreKey::of_root(&root), StoreKey::of_root(&[4; KEY_LEN]));
        let (mine, not_mine) = (customer(KEY, KEY_MD5), customer(OTHER, OTHER_MD5));
        let of_store = SealedKey::of_store(&store, &plain(9), [1; NONCE_LEN]);
        let of_mine = SealedKey::of_customer(&mine, &plain(9), [1; NONCE_LEN]);
        let code = |found: Option<&SealedKey>, store, customer, of| {
            key_of(found, store, customer, of)
                .map(|key| key.map(|key| key[0]))
                .map_err(|refusal| refusal.code)
        };
        use Code::{AccessDenied, InternalError, InvalidRequest};
        for of in [Of::Object, Of::Upload] {
            assert_eq!(code(None, &store, None, of), Ok(None));
            assert_eq!(code(None, &store, Some(&mine), of), Err(InvalidRequest));
            assert_eq!(code(Some(&of_store), &store, None, of), Ok(Some(9)));
            assert_eq!(code(Some(&of_store), &others, None, of), Err(InternalError));
            let with_key = code(Some(&of_store), &store, Some(&mine), of);
            assert_eq!(with_key, Err(InvalidRequest));
            assert_eq!(code(Some(&of_mine), &others, Some(&mine), of), Ok(Some(9)));
            assert_eq!(code(Some(&of_mine), &store, None, of), Err(InvalidRequest));
        }
        let wrong = |of| code(Some(&of_mine), &store, Some(&not_mine), of);
        assert_eq!(wrong(Of::Object), Err(AccessDenied));
        assert_eq!(wrong(Of::Upload), Err(InvalidRequest));
        // The very same secret, meant for the other purpose.
        let as_customer = CustomerKey(store.0.clone());
        let turned = SealedKey {
            kind: Kind::Customer,
            ..of_store.clone()
        };
        let opened = code(Some(&turned), &store, Some(&as_customer), Of::Object);
        assert_eq!(opened, Err(AccessDenied));
    }

    #[test]
    fn what_is_kept() {
        let sealed = SealedKey::of_customer(&customer(KEY, KEY_MD5), &plain(9), [5; NONCE_LEN]);
        let bytes = sealed.encode();
        assert_eq!(bytes.len(), SEALED_LEN);
        assert_eq!(SealedKey::decode(&bytes), Some(sealed.clone()));
        assert_eq!(sealed.kind(), Kind::Customer);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            let mine = customer(KEY, KEY_MD5);
            let opened = SealedKey::decode(&damaged).and_then(|sealed| sealed.open(&mine.0));
            assert_eq!(opened, None, "byte {at}");
        }
        for bad in [
            &[][..],
            &bytes[1..],
            &bytes[..SEALED_LEN - 1],
            &[3; SEALED_LEN],
        ] {
            assert_eq!(SealedKey::decode(bad), None);
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(SealedKey::decode(&longer), None);
        let shown = format!("{sealed:?} {:?}", customer(KEY, KEY_MD5));
        assert_eq!(shown, "SealedKey(Customer, …) CustomerKey(…)");
    }

    /// What stands on disks opens with the next program as well: the key and its ETag as Python has them.
    #[test]
    fn the_bytes_stand() {
        let mut nonce = [0; NONCE_LEN];
        for (i, byte) in (0u8..).zip(&mut nonce) {
            *byte = i;
        }
        let store = StoreKey::of_root(&[3; KEY_LEN]);
        let of_store = SealedKey::of_store(&store, &plain(9), nonce);
        let of_customer = SealedKey::of_customer(&customer(KEY, KEY_MD5), &plain(9), nonce);
        assert_eq!(
            crate::text::to_hex(&of_store.encode()),
            concat!(
                "01000102030405060708090a0b0c0d0e0f1011121314151617f52a5a0a6ada63",
                "39dd2d591af439c1cc8f72df51d32434279ef4325add21da82c9be7bcf5b057d",
                "d91eabed2287c80091",
            )
        );
        assert_eq!(
            crate::text::to_hex(&of_customer.encode()),
            concat!(
                "02000102030405060708090a0b0c0d0e0f1011121314151617d2fe7f3678d5a0",
                "a0cd8d9705d3111e48fe9b9c448ac6cbc66781e8fa4902c8e0453de58e48dcdb",
                "ac43a818c0b242cb56",
            )
        );
        let etag = hidden_etag(&plain(9), &md5(b"x"));
        assert_eq!(
            crate::text::to_hex(&etag),
            "88f473fd3db372f876f3f0b7f2433ec7"
        );
    }

    #[test]
    fn what_a_bucket_wants() {
        let parse = |rule: &str| {
            let text = format!(
                "<ServerSideEncryptionConfiguration>{rule}</ServerSideEncryptionConfiguration>"
            );
            BucketEncryption::parse(text.as_bytes()).map_err(|refusal| refusal.code)
        };
        let by = |default: &str, more: &str| {
            let default = format!(
                "<ApplyServerSideEncryptionByDefault>{default}</ApplyServerSideEncryptionByDefault>"
            );
            parse(&format!("<Rule>{default}{more}</Rule>"))
        };
        let aes = "<SSEAlgorithm>AES256</SSEAlgorithm>";
        let off = "<BucketKeyEnabled>false</BucketKeyEnabled>";
        let expected = BucketEncryption {
            algorithm: DefaultAlgorithm::Aes256,
        };
        assert_eq!(by(aes, ""), Ok(expected));
        assert_eq!(by(aes, off), Ok(expected));
        let written = expected.write();
        assert_eq!(
            BucketEncryption::parse(written.as_bytes()).unwrap(),
            expected
        );
        let on = "<BucketKeyEnabled>true</BucketKeyEnabled>";
        let kms = |way| format!("<SSEAlgorithm>{way}</SSEAlgorithm>");
        let with_id = format!("{aes}<KMSMasterKeyID>x</KMSMasterKeyID>");
        for (said, code) in [
            (by(aes, on), Code::InvalidArgument),
            (by(&with_id, ""), Code::InvalidArgument),
            (by(&kms("aws:kms"), ""), Code::NotImplemented),
            (by(&kms("aws:kms:dsse"), on), Code::NotImplemented),
            (by(&kms("DES"), ""), Code::MalformedXML),
            (by("", ""), Code::MalformedXML),
            (parse(""), Code::MalformedXML),
            (parse("<Rule></Rule>"), Code::MalformedXML),
            (by(aes, "<BlockedEncryptionTypes/>"), Code::NotImplemented),
            (by(aes, "<Other/>"), Code::MalformedXML),
        ] {
            assert_eq!(said, Err(code));
        }
        let kept = serde_json::to_string(&expected).unwrap();
        assert_eq!(kept, r#"{"algorithm":"AES256"}"#);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_key_or_none(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Some(sealed) = SealedKey::decode(&bytes) {
                prop_assert_eq!(sealed.encode(), bytes);
            }
        }
    }
}
