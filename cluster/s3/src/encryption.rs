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
use crate::text::from_base64;
use crate::xml::{Element, Xml};

/// Bytes of a key: an object's, a customer's, the store's.
pub const KEY_LEN: usize = 32;
/// Random bytes that sealing takes.
pub const NONCE_LEN: usize = 24;
/// Bytes of an object's key with the tag that proves it.
const BOX_LEN: usize = KEY_LEN + 16;
/// Bytes of a sealed key.
pub(crate) const SEALED_LEN: usize = 1 + NONCE_LEN + BOX_LEN;
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
pub struct StoreKey(pub(crate) PlainKey);

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
pub struct CustomerKey(pub(crate) PlainKey);

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
    fn seal(
        kind: Kind,
        secret: &PlainKey,
        key: &PlainKey,
        nonce: [u8; NONCE_LEN],
    ) -> Result<SealedKey, Refusal> {
        let payload = Payload {
            msg: &key[..],
            aad: kind.label(),
        };
        match sealing(secret, kind, &nonce).encrypt(XNonce::from_slice(&nonce), payload) {
            Ok(sealed) => Ok(SealedKey {
                kind,
                nonce,
                sealed,
            }),
            // What is put under a key that nobody can open is lost.
            Err(_) => refuse!(InternalError, "the object's key cannot be sealed"),
        }
    }

    pub(crate) fn open(&self, secret: &PlainKey) -> Option<PlainKey> {
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
    pub fn of_store(
        store: &StoreKey,
        key: &PlainKey,
        nonce: [u8; NONCE_LEN],
    ) -> Result<SealedKey, Refusal> {
        SealedKey::seal(Kind::Store, &store.0, key, nonce)
    }

    /// Seals an object's key with the customer's.
    pub fn of_customer(
        customer: &CustomerKey,
        key: &PlainKey,
        nonce: [u8; NONCE_LEN],
    ) -> Result<SealedKey, Refusal> {
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
