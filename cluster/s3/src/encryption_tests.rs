//! What is sealed opens, and with nothing else; what is asked for is understood, or refused.

use proptest::prelude::*;

use zeroize::Zeroizing;

use crate::checksum::md5;
use crate::encryption::*;
use crate::refusal::Code;
use crate::text::to_base64;

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
    let of_store = SealedKey::of_store(&store, &plain(9), [1; NONCE_LEN]).unwrap();
    let of_mine = SealedKey::of_customer(&mine, &plain(9), [1; NONCE_LEN]).unwrap();
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
    let mut turned = of_store.encode();
    turned[0] = of_mine.encode()[0];
    let turned = SealedKey::decode(&turned).unwrap();
    let opened = code(Some(&turned), &store, Some(&as_customer), Of::Object);
    assert_eq!(opened, Err(AccessDenied));
}

#[test]
fn what_is_kept() {
    let sealed =
        SealedKey::of_customer(&customer(KEY, KEY_MD5), &plain(9), [5; NONCE_LEN]).unwrap();
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
    let of_store = SealedKey::of_store(&store, &plain(9), nonce).unwrap();
    let of_customer = SealedKey::of_customer(&customer(KEY, KEY_MD5), &plain(9), nonce).unwrap();
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
