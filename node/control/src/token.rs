//! Join tokens: what lets a new node into the cluster, once, and for a time.
//!
//! Invariants:
//! - only a token's hash is kept: who reads the log or a snapshot cannot join with what is there;
//! - a token is used once: by the node that joined with it, and by its own repetition of that;
//! - times are arguments, put into the log by who proposed; a clock that jumps makes a token live longer or
//!   shorter, and does nothing else;
//! - the book is bounded: over the bound the oldest token that is of no more use is forgotten.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use ashlar_layout::ids::{ClusterId, DeviceId, DeviceNo, NodeId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Tokens in the book, at most.
pub const TOKENS_MAX: usize = 1000;
/// The longest life of a token, in milliseconds: thirty days.
pub const TOKEN_LIFE_MAX: u64 = 30 * 24 * 3600 * 1000;

const PREFIX: &str = "ashlar1";

/// A token: what a person carries to a new node. Whoever has it can join; it is shown once and kept nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The cluster that it lets into.
    pub cluster: ClusterId,
    secret: [u8; 16],
}

impl Token {
    /// A token of these random bits.
    pub fn new(cluster: ClusterId, secret: [u8; 16]) -> Token {
        Token { cluster, secret }
    }

    /// What the cluster remembers of it.
    pub fn hash(&self) -> TokenHash {
        let mut hasher = Sha256::new();
        hasher.update(PREFIX.as_bytes());
        hasher.update(self.cluster.0);
        hasher.update(self.secret);
        TokenHash(hasher.finalize().into())
    }

    /// The name of a device that comes with the node that joins: the same each time, so that a join whose
    /// answer was lost can be said again. It tells nothing of the token.
    pub fn device(&self, no: DeviceNo) -> DeviceId {
        let mut hasher = Sha256::new();
        hasher.update(PREFIX.as_bytes());
        hasher.update(b" device");
        hasher.update(no.0.to_le_bytes());
        hasher.update(self.cluster.0);
        hasher.update(self.secret);
        let mut name = DeviceId::default();
        for (byte, hashed) in name.0.iter_mut().zip(hasher.finalize()) {
            *byte = hashed;
        }
        name
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{}", hex(&self.cluster.0), hex(&self.secret))
    }
}

/// Without the secret, for logs.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token of cluster {}", self.cluster)
    }
}

/// The text is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a join token: it begins with '{PREFIX}.', and `ashlar cluster token` gives one")]
pub struct NotAToken;

impl FromStr for Token {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Token, NotAToken> {
        let rest = text.trim().strip_prefix(PREFIX).ok_or(NotAToken)?;
        let rest = rest.strip_prefix('.').ok_or(NotAToken)?;
        let (cluster, secret) = rest.split_once('.').ok_or(NotAToken)?;
        Ok(Token {
            cluster: ClusterId(unhex(cluster).ok_or(NotAToken)?),
            secret: unhex(secret).ok_or(NotAToken)?,
        })
    }
}

impl Serialize for Token {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Token, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A token's SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenHash([u8; 32]);

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl Serialize for TokenHash {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for TokenHash {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<TokenHash, D::Error> {
        let text = String::deserialize(d)?;
        let bytes = unhex(&text).ok_or_else(|| serde::de::Error::custom("not a SHA-256"));
        bytes.map(TokenHash)
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |i: usize| pair.get(i).and_then(|d| (*d as char).to_digit(16));
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
    }
    Some(bytes)
}

/// Why a token does not let in, or cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TokenError {
    /// No such token was made, or it was forgotten long after its use.
    #[error("this cluster does not know the token: was it made for another, or long ago?")]
    Unknown,
    /// Its time is over.
    #[error("the token has expired {ago_ms} ms ago: make a new one with `ashlar cluster token`")]
    Expired {
        /// For how long, by the clock of the control plane's leader.
        ago_ms: u64,
    },
    /// Somebody joined with it.
    #[error("node {by} has joined with this token already: each lets in one node")]
    Used {
        /// Who.
        by: NodeId,
    },
    /// A life of nothing, or of too long.
    #[error("a token lives from 1 ms to {TOKEN_LIFE_MAX} ms, not {life_ms}")]
    BadLife {
        /// What was asked for.
        life_ms: u64,
    },
    /// There are too many that may yet be used.
    #[error("{TOKENS_MAX} tokens are waiting to be used: let some expire")]
    TooMany,
}

/// What is remembered of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    number: u64,
    expires_ms: u64,
    used_by: Option<NodeId>,
}

/// All tokens that were made, but for those long of no use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBook {
    entries: BTreeMap<TokenHash, Entry>,
    next: u64,
}

impl TokenBook {
    /// Enters a token. To enter it again changes nothing.
    pub fn enter(&mut self, hash: TokenHash, now_ms: u64, life_ms: u64) -> Result<(), TokenError> {
        if life_ms == 0 || life_ms > TOKEN_LIFE_MAX {
            return Err(TokenError::BadLife { life_ms });
        }
        if self.entries.contains_key(&hash) {
            return Ok(());
        }
        if self.entries.len() >= TOKENS_MAX {
            let useless = self
                .entries
                .iter()
                .filter(|(_, e)| e.used_by.is_some() || e.expires_ms <= now_ms)
                .min_by_key(|(_, e)| e.number)
                .map(|(hash, _)| *hash);
            let useless = useless.ok_or(TokenError::TooMany)?;
            self.entries.remove(&useless);
        }
        let entry = Entry {
            number: self.next,
            expires_ms: now_ms.saturating_add(life_ms),
            used_by: None,
        };
        self.next = self.next.saturating_add(1);
        self.entries.insert(hash, entry);
        Ok(())
    }

    /// Whether the token lets a node in now.
    pub fn check(&self, hash: TokenHash, now_ms: u64) -> Result<(), TokenError> {
        let entry = self.entries.get(&hash).ok_or(TokenError::Unknown)?;
        if let Some(by) = entry.used_by {
            return Err(TokenError::Used { by });
        }
        match now_ms.checked_sub(entry.expires_ms) {
            Some(ago_ms) => Err(TokenError::Expired { ago_ms }),
            None => Ok(()),
        }
    }

    /// Notes that a node has joined with it.
    pub fn spend(&mut self, hash: TokenHash, by: NodeId) {
        if let Some(entry) = self.entries.get_mut(&hash) {
            entry.used_by = Some(by);
        }
    }

    /// Tokens that may yet be used.
    pub fn waiting(&self, now_ms: u64) -> usize {
        let live = |e: &&Entry| e.used_by.is_none() && e.expires_ms > now_ms;
        self.entries.values().filter(live).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(n: u8) -> Token {
        Token::new(ClusterId([9; 16]), [n; 16])
    }

    #[test]
    fn a_token_is_read_back_and_not_shown_in_logs() {
        let made = token(0xab);
        let text = made.to_string();
        assert_eq!(text.parse::<Token>(), Ok(made.clone()));
        assert!(text.contains(&"ab".repeat(16)));
        assert!(!format!("{made:?}").contains("abab"));
        let json = serde_json::to_string(&made.hash()).unwrap();
        assert!(!json.contains("abab"), "{json}");
        assert_eq!(
            serde_json::from_str::<TokenHash>(&json).unwrap(),
            made.hash()
        );
        for bad in [
            "",
            "ashlar1",
            "ashlar1.00.00",
            "ashlar2.",
            &text[..text.len() - 1],
            &format!("{text}0"),
        ] {
            assert_eq!(bad.parse::<Token>(), Err(NotAToken), "{bad}");
        }
    }

    #[test]
    fn the_hash_tells_clusters_apart() {
        let other = Token::new(ClusterId([8; 16]), [1; 16]);
        assert_ne!(other.hash(), token(1).hash());
        assert_ne!(token(2).hash(), token(1).hash());
    }

    #[test]
    fn devices_have_names_of_their_own() {
        let name = token(1).device(DeviceNo(7));
        assert_eq!(name, token(1).device(DeviceNo(7)));
        assert_ne!(name, token(1).device(DeviceNo(8)));
        assert_ne!(name, token(2).device(DeviceNo(7)));
        assert_ne!(name.0[..], token(1).hash().0[..16]);
    }

    #[test]
    fn a_token_lets_in_once_and_for_its_time() {
        let mut book = TokenBook::default();
        let hash = token(1).hash();
        assert_eq!(book.check(hash, 0), Err(TokenError::Unknown));
        book.enter(hash, 1000, 500).unwrap();
        assert_eq!(book.check(hash, 1499), Ok(()));
        assert_eq!(
            book.check(hash, 1500),
            Err(TokenError::Expired { ago_ms: 0 })
        );
        assert_eq!(
            book.check(hash, 1700),
            Err(TokenError::Expired { ago_ms: 200 })
        );
        // A clock that jumps back gives it life again, and one before its making does not matter.
        assert_eq!(book.check(hash, 3), Ok(()));
        book.spend(hash, NodeId(4));
        assert_eq!(book.check(hash, 3), Err(TokenError::Used { by: NodeId(4) }));
        // Made again it stays used.
        book.enter(hash, 2000, 500).unwrap();
        assert_eq!(
            book.check(hash, 2001),
            Err(TokenError::Used { by: NodeId(4) })
        );
    }

    #[test]
    fn a_clock_at_its_ends_breaks_nothing() {
        let mut book = TokenBook::default();
        let hash = token(1).hash();
        book.enter(hash, u64::MAX, TOKEN_LIFE_MAX).unwrap();
        assert_eq!(book.check(hash, u64::MAX - 1), Ok(()));
        for life_ms in [0, TOKEN_LIFE_MAX + 1, u64::MAX] {
            let error = book.enter(token(2).hash(), 5, life_ms);
            assert_eq!(error, Err(TokenError::BadLife { life_ms }));
        }
    }

    #[test]
    fn the_book_is_bounded_and_forgets_only_what_is_of_no_use() {
        let hash = |n: usize| {
            let mut secret = [0; 16];
            secret[..8].copy_from_slice(&(n as u64).to_le_bytes());
            Token::new(ClusterId([9; 16]), secret).hash()
        };
        let mut book = TokenBook::default();
        for n in 0..TOKENS_MAX {
            book.enter(hash(n), 0, 1000).unwrap();
        }
        assert_eq!(book.waiting(999), TOKENS_MAX);
        assert_eq!(
            book.enter(hash(TOKENS_MAX), 0, 1000),
            Err(TokenError::TooMany)
        );
        book.spend(hash(7), NodeId(1));
        book.enter(hash(TOKENS_MAX), 0, 1000).unwrap();
        assert_eq!(book.check(hash(7), 0), Err(TokenError::Unknown));
        assert_eq!(book.check(hash(0), 0), Ok(()));
        // Expired ones go, the oldest first.
        book.enter(hash(TOKENS_MAX + 1), 1000, 1000).unwrap();
        assert_eq!(book.check(hash(0), 500), Err(TokenError::Unknown));
        assert_eq!(book.check(hash(1), 500), Ok(()));
        assert_eq!(book.entries.len(), TOKENS_MAX);
    }
}
