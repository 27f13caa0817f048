//! Users and their keys. A signature can only be checked by who knows the secret, so secrets are kept:
//! sealed, with a key that stands in a file of the gateway's and nowhere in the store.
//!
//! Invariants:
//! - a secret leaves this module unsealed only to be shown once or to check a signature, and never as
//!   `Debug` or in an error;
//! - what is sealed is bound to its key id: put in another one's place it does not open;
//! - randomness is an argument.

use std::fmt;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};

use crate::bucket::{BadDocument, from_json, to_json};
use crate::checksum::{Algorithm, digest};
use crate::encryption::StoreKey;
use crate::policy::Caller;
use crate::refusal::Refusal;
use crate::text::{from_base64, from_hex, to_base64, to_hex};

/// Version of the documents.
pub const VERSION: u32 = 1;
/// Bytes of the root key.
pub const ROOT_KEY_LEN: usize = 32;
/// Random bytes that a new key takes.
pub const KEY_SEED_LEN: usize = 10 + 25 + NONCE_LEN;
/// Random bytes that a new user takes.
pub const USER_SEED_LEN: usize = 16;
const NONCE_LEN: usize = 24;
const SEAL_VERSION: u8 = 1;
/// Largest document of a user or a key, in bytes.
pub const DOCUMENT_MAX: usize = 32 * 1024;
/// Most keys of a user.
pub const KEYS_MAX: usize = 8;
const KEY_ID_START: &str = "ASHL";

/// The key that secrets are sealed with.
#[derive(Clone)]
pub struct RootKey {
    cipher: XChaCha20Poly1305,
    store: StoreKey,
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey(…)")
    }
}

/// A secret, as its user has it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret, to be shown or to be used.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A root key that is none, or a secret that does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Not 64 hexadecimal digits.
    #[error("a root key is {} hexadecimal digits", 2 * ROOT_KEY_LEN)]
    NoRootKey,
    /// Sealed with another root key, or for another key id, or damaged.
    #[error("the secret does not open: it was sealed with another root key, or is damaged")]
    DoesNotOpen,
}

impl RootKey {
    /// From random bytes.
    pub fn new(bytes: &[u8; ROOT_KEY_LEN]) -> RootKey {
        RootKey {
            cipher: XChaCha20Poly1305::new(bytes.into()),
            store: StoreKey::of_root(bytes),
        }
    }

    /// What the keys of objects are sealed with.
    pub fn store_key(&self) -> &StoreKey {
        &self.store
    }

    /// As a file holds it: hexadecimal, with white space around it or not.
    pub fn parse(text: &str) -> Result<RootKey, SealError> {
        let bytes = from_hex(text.trim()).and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(|bytes| RootKey::new(&bytes))
            .ok_or(SealError::NoRootKey)
    }

    /// What a file is to hold.
    pub fn to_text(bytes: &[u8; ROOT_KEY_LEN]) -> String {
        to_hex(bytes)
    }

    fn seal(&self, key_id: &str, secret: &Secret, nonce: &[u8; NONCE_LEN]) -> String {
        let payload = Payload {
            msg: secret.0.as_bytes(),
            aad: key_id.as_bytes(),
        };
        // It fails for texts of many gigabytes only.
        let sealed = self.cipher.encrypt(XNonce::from_slice(nonce), payload);
        let sealed = sealed.unwrap_or_default();
        to_base64(&[&[SEAL_VERSION], &nonce[..], &sealed].concat())
    }

    fn open(&self, key_id: &str, sealed: &str) -> Result<Secret, SealError> {
        let bytes = from_base64(sealed).ok_or(SealError::DoesNotOpen)?;
        let Some(([SEAL_VERSION, nonce @ ..], text)) =
            bytes.split_first_chunk::<{ 1 + NONCE_LEN }>()
        else {
            return Err(SealError::DoesNotOpen);
        };
        let payload = Payload {
            msg: text,
            aad: key_id.as_bytes(),
        };
        let opened = self.cipher.decrypt(XNonce::from_slice(nonce), payload);
        let text = opened.map_err(|_| SealError::DoesNotOpen)?;
        let text = String::from_utf8(text).map_err(|_| SealError::DoesNotOpen)?;
        Ok(Secret(text))
    }
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// Of the document.
    pub version: u32,
    /// The name.
    pub name: String,
    /// Twelve digits that nobody else has.
    pub account: String,
    /// Whether the user may do everything.
    pub admin: bool,
    /// The user's own policy, as it was given: without one, the user may do everything with the user's own
    /// buckets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The ids of the user's keys.
    pub keys: Vec<String>,
}

/// A key of a user: all that a request with it takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Of the document.
    pub version: u32,
    /// Its id.
    pub id: String,
    /// Its secret, sealed.
    pub sealed: String,
    /// Whose it is. The keys that stand in here are not kept up to date.
    pub user: User,
}

/// Why a user's name is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no user's name: 1 to 64 letters, digits and the characters + = , . @ _ -")]
pub struct BadName {
    /// The name.
    pub name: String,
}

impl User {
    /// A user without keys.
    pub fn new(name: &str, admin: bool, seed: &[u8; USER_SEED_LEN]) -> Result<User, BadName> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "+=,.@_-".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            return Err(BadName {
                name: name.to_owned(),
            });
        }
        let number = u128::from_le_bytes(*seed) % 1_000_000_000_000;
        Ok(User {
            version: VERSION,
            name: name.to_owned(),
            account: format!("{number:012}"),
            admin,
            policy: None,
            keys: Vec::new(),
        })
    }

    /// The user's canonical id.
    pub fn canonical(&self) -> String {
        canonical(&self.account)
    }

    /// As who the user calls.
    pub fn caller(&self) -> Caller {
        Caller::User {
            account: self.account.clone(),
            name: self.name.clone(),
            canonical: self.canonical(),
        }
    }

    /// As bytes.
    pub fn encode(&self) -> Result<Vec<u8>, Refusal> {
        to_json(self, DOCUMENT_MAX)
    }

    /// From its bytes.
    pub fn decode(bytes: &[u8]) -> Result<User, BadDocument> {
        from_json(bytes, VERSION)
    }
}

/// The canonical id of an account: 64 hexadecimal digits.
pub fn canonical(account: &str) -> String {
    to_hex(&digest(
        Algorithm::Sha256,
        format!("ashlar account {account}").as_bytes(),
    ))
}

/// In base 32, without padding: letters and digits that nobody mistakes for others.
fn base32(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let (mut out, mut word, mut bits) = (String::new(), 0u32, 0);
    for byte in bytes {
        word = word << 8 | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            out.push(char::from(DIGITS[(word >> bits) as usize & 31]));
        }
    }
    out
}

impl Key {
    /// A new key of a user, and its secret, which is shown once.
    pub fn new(user: &User, root: &RootKey, seed: &[u8; KEY_SEED_LEN]) -> (Key, Secret) {
        let (id, rest) = seed.split_at(10);
        let (secret, nonce) = rest.split_at(25);
        let id = format!("{KEY_ID_START}{}", base32(id));
        let secret = Secret(base32(secret));
        let mut of_nonce = [0; NONCE_LEN];
        of_nonce.copy_from_slice(nonce);
        let sealed = root.seal(&id, &secret, &of_nonce);
        let key = Key {
            version: VERSION,
            id,
            sealed,
            user: user.clone(),
        };
        (key, secret)
    }

    /// Its secret.
    pub fn open(&self, root: &RootKey) -> Result<Secret, SealError> {
        root.open(&self.id, &self.sealed)
    }

    /// As bytes.
    pub fn encode(&self) -> Result<Vec<u8>, Refusal> {
        to_json(self, 2 * DOCUMENT_MAX)
    }

    /// From its bytes.
    pub fn decode(bytes: &[u8]) -> Result<Key, BadDocument> {
        from_json(bytes, VERSION)
    }
}

/// Whether this could be a key's id: what is looked up is bounded, and names nothing else.
pub fn is_key_id(id: &str) -> bool {
    (4..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user() -> User {
        User::new("ada", false, &[7; USER_SEED_LEN]).unwrap()
    }

    #[test]
    fn a_secret_opens_with_its_root_key_alone() {
        let root = RootKey::new(&[1; ROOT_KEY_LEN]);
        let (key, secret) = Key::new(&user(), &root, &[2; KEY_SEED_LEN]);
        assert_eq!((key.id.len(), secret.reveal().len()), (20, 40));
        assert!(is_key_id(&key.id));
        let text = String::from_utf8(key.encode().unwrap()).unwrap();
        assert!(!text.contains(secret.reveal()));
        let read = Key::decode(text.as_bytes()).unwrap();
        assert_eq!(read, key);
        assert_eq!(read.open(&root).unwrap(), secret);
        let other = RootKey::new(&[3; ROOT_KEY_LEN]);
        assert_eq!(read.open(&other), Err(SealError::DoesNotOpen));
        // In another key's place it does not open.
        let (mut swapped, _) = Key::new(&user(), &root, &[4; KEY_SEED_LEN]);
        swapped.sealed = key.sealed.clone();
        assert_eq!(swapped.open(&root), Err(SealError::DoesNotOpen));
        assert!(!format!("{root:?} {secret:?} {key:?}").contains(secret.reveal()));
    }

    #[test]
    fn root_keys_in_files() {
        let text = format!("{}\n", RootKey::to_text(&[9; ROOT_KEY_LEN]));
        let (read, made) = (
            RootKey::parse(&text).unwrap(),
            RootKey::new(&[9; ROOT_KEY_LEN]),
        );
        let (key, secret) = Key::new(&user(), &made, &[5; KEY_SEED_LEN]);
        assert_eq!(key.open(&read).unwrap(), secret);
        for bad in ["", "00", &"zz".repeat(32), &"00".repeat(33)] {
            assert_eq!(RootKey::parse(bad).unwrap_err(), SealError::NoRootKey);
        }
    }

    #[test]
    fn users() {
        let user = user();
        assert_eq!((user.account.len(), user.canonical().len()), (12, 64));
        assert_eq!(User::decode(&user.encode().unwrap()).unwrap(), user);
        let arn = user.caller().arn().unwrap();
        assert_eq!(arn, format!("arn:aws:iam::{}:user/ada", user.account));
        for bad in ["", "a b", "ä", "a/b", &"a".repeat(65)] {
            User::new(bad, false, &[0; USER_SEED_LEN]).unwrap_err();
        }
        for bad in ["", "abc", "a/b/c/d", "../../x", &"A".repeat(129)] {
            assert!(!is_key_id(bad), "{bad}");
        }
        assert_eq!(base32(b"fooba"), "MZXW6YTB");
    }

    proptest! {
        #[test]
        fn what_is_changed_does_not_open(at in 0usize..80, with: u8) {
            let root = RootKey::new(&[1; ROOT_KEY_LEN]);
            let (mut key, _) = Key::new(&user(), &root, &[2; KEY_SEED_LEN]);
            let mut bytes = from_base64(&key.sealed).unwrap();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != with);
            bytes[at] = with;
            key.sealed = to_base64(&bytes);
            prop_assert_eq!(key.open(&root), Err(SealError::DoesNotOpen));
        }

        #[test]
        fn anything_is_taken(bytes: Vec<u8>) {
            let _ = (Key::decode(&bytes), User::decode(&bytes));
        }
    }
}
