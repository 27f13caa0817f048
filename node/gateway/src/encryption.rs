//! Objects that are encrypted on their way into the store, and decrypted on their way out.
//!
//! What is asked for, and whether a key fits, [`ashlar_cluster_s3::encryption`] decides; the bytes themselves are
//! encrypted stripe by stripe, below (see `decisions/2026-11-28-encryption.md`).
//!
//! Invariants:
//! - nothing is given out of an encrypted object, nor said of one that a customer's key encrypts, before the key that
//!   the request brings has opened that of the object;
//! - each object that is made has a random key of its own; parts have that of their upload.

use ashlar_cluster_s3::attributes::Attributes;
use ashlar_cluster_s3::bucket::BucketConfig;
use ashlar_cluster_s3::encryption::{
    AES256, BucketEncryption, CustomerKey, Kind, Of, PlainKey, SealedKey, Wanted, hidden_etag,
    key_of, no_default,
};
use ashlar_cluster_s3::operation::Operation;
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_layout::message::ObjectMeta;
use ashlar_node_client::{DataKey, GetStream};

use crate::call::Call;
use crate::directory::OpenBucket;
use crate::faults::refused;
use crate::gateway::{Context, Gateway, random};
use crate::inbound::Inbound;
use crate::reply::Reply;

const WAY: &str = "x-amz-server-side-encryption";
const KMS_KEY: &str = "x-amz-server-side-encryption-aws-kms-key-id";
const ALGORITHM: &str = "x-amz-server-side-encryption-customer-algorithm";
const KEY_MD5: &str = "x-amz-server-side-encryption-customer-key-md5";
/// Where the key of an object is said,
const CUSTOMER: [&str; 3] = [
    ALGORITHM,
    "x-amz-server-side-encryption-customer-key",
    KEY_MD5,
];
/// and that of what is copied.
const SOURCE: [&str; 3] = [
    "x-amz-copy-source-server-side-encryption-customer-algorithm",
    "x-amz-copy-source-server-side-encryption-customer-key",
    "x-amz-copy-source-server-side-encryption-customer-key-md5",
];

/// With what something is encrypted that is to be made.
#[derive(Clone, Debug)]
pub(crate) struct Cipher {
    key: PlainKey,
    kind: Kind,
}

impl Cipher {
    /// The key of its bytes.
    pub(crate) fn key(&self) -> DataKey {
        DataKey::new(&self.key)
    }

    /// Whose key seals its own.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The digest that its ETag tells.
    pub(crate) fn etag(&self, md5: [u8; 16]) -> [u8; 16] {
        match self.kind {
            Kind::Store => md5,
            Kind::Customer => hidden_etag(&self.key, &md5),
        }
    }
}

fn customer_key(call: &Call, headers: [&str; 3]) -> Result<Option<CustomerKey>, Refusal> {
    let [algorithm, key, key_md5] = headers.map(|name| call.header(name));
    CustomerKey::parse(algorithm, key, key_md5)
}

/// Whether what is put in a bucket is encrypted if nobody says how.
pub(crate) fn has_default(bucket: Option<&OpenBucket>) -> bool {
    bucket.is_some_and(|open| open.config.encryption.is_some())
}

/// Whether a request says how the object is to be encrypted.
pub(crate) fn says_how(call: &Call) -> bool {
    [WAY, KMS_KEY, ALGORITHM]
        .iter()
        .any(|name| call.header(name).is_some())
}

/// Whether an object's bytes are encrypted, by what is remembered of it; an error, if that is not understood.
pub fn is_encrypted(meta: &ObjectMeta) -> Result<bool, Refusal> {
    Ok(crate::gateway::attributes(meta)?.encryption.is_some())
}

/// Says how an object is encrypted.
pub(crate) fn set_encryption(reply: &mut Reply, call: &Call, attributes: &Attributes) {
    set_kind(
        reply,
        call,
        attributes.encryption.as_ref().map(SealedKey::kind),
    );
}

/// Says how what was made is encrypted. Of a customer's key the request said all that is known.
pub(crate) fn set_kind(reply: &mut Reply, call: &Call, kind: Option<Kind>) {
    match kind {
        None => {}
        Some(Kind::Store) => reply.set(WAY, AES256),
        Some(Kind::Customer) => {
            reply.set(ALGORITHM, AES256);
            // Who asks again for an upload that is done needs no key.
            if let Some(key_md5) = call.header(KEY_MD5) {
                reply.set(KEY_MD5, key_md5);
            }
        }
    }
}

impl Gateway {
    /// With what something new is to be encrypted: as the request wants it, or by default, with a key of the store's.
    /// The key is kept, sealed, with the attributes.
    pub(crate) fn encrypt(
        &self,
        call: &Call,
        by_default: bool,
        attributes: &mut Attributes,
    ) -> Result<Option<Cipher>, Refusal> {
        let customer = customer_key(call, CUSTOMER)?;
        let mut wanted = Wanted::parse(call.header(WAY), call.header(KMS_KEY), customer)?;
        if by_default && matches!(wanted, Wanted::Default) {
            wanted = Wanted::Store;
        }
        let store = self.options.root.store_key();
        let (sealed, key) = match &wanted {
            Wanted::Default => {
                attributes.encryption = None;
                return Ok(None);
            }
            Wanted::Store => {
                let key = PlainKey::new(random()?);
                (SealedKey::of_store(store, &key, random()?)?, key)
            }
            Wanted::Customer(customer) => {
                let key = PlainKey::new(random()?);
                (SealedKey::of_customer(customer, &key, random()?)?, key)
            }
        };
        let kind = sealed.kind();
        attributes.encryption = Some(sealed);
        // What does not fit is refused before the body comes.
        attributes.encode()?;
        Ok(Some(Cipher { key, kind }))
    }

    fn open_key(
        &self,
        found: &Attributes,
        customer: Option<&CustomerKey>,
        of: Of,
    ) -> Result<Option<PlainKey>, Refusal> {
        let store = self.options.root.store_key();
        key_of(found.encryption.as_ref(), store, customer, of)
    }

    /// Refuses to tell of an object what the request has no key for.
    pub(crate) fn check_key(&self, call: &Call, found: &Attributes) -> Result<(), Refusal> {
        check_reading(call)?;
        let customer = customer_key(call, CUSTOMER)?;
        self.open_key(found, customer.as_ref(), Of::Object)
            .map(drop)
    }

    /// Decrypts what an object gives from here on, if the request has the key for it.
    pub(crate) fn decrypt(
        &self,
        call: &Call,
        found: &Attributes,
        stream: &mut GetStream,
    ) -> Result<(), Refusal> {
        check_reading(call)?;
        let customer = customer_key(call, CUSTOMER)?;
        self.unlock(found, customer.as_ref(), stream)
    }

    /// The same, of what is copied.
    pub(crate) fn decrypt_source(
        &self,
        call: &Call,
        found: &Attributes,
        stream: &mut GetStream,
    ) -> Result<(), Refusal> {
        let customer = customer_key(call, SOURCE)?;
        self.unlock(found, customer.as_ref(), stream)
    }

    /// Refuses to tell of a source what the request has no key for.
    pub(crate) fn check_source_key(&self, call: &Call, found: &Attributes) -> Result<(), Refusal> {
        let customer = customer_key(call, SOURCE)?;
        self.open_key(found, customer.as_ref(), Of::Object)
            .map(drop)
    }

    fn unlock(
        &self,
        found: &Attributes,
        customer: Option<&CustomerKey>,
        stream: &mut GetStream,
    ) -> Result<(), Refusal> {
        if let Some(key) = self.open_key(found, customer, Of::Object)? {
            stream.decipher(DataKey::new(&key));
        }
        Ok(())
    }

    /// With what the parts of an upload are encrypted; the request has to bring the customer's key, if it takes one.
    pub(crate) fn part_cipher(
        &self,
        call: &Call,
        upload: &Attributes,
    ) -> Result<Option<Cipher>, Refusal> {
        let customer = customer_key(call, CUSTOMER)?;
        let key = self.open_key(upload, customer.as_ref(), Of::Upload)?;
        let kind = upload.encryption.as_ref().map(SealedKey::kind);
        Ok(key.zip(kind).map(|(key, kind)| Cipher { key, kind }))
    }

    /// Refuses to append to an object that is encrypted, or what is to be encrypted.
    pub(crate) fn check_append(
        &self,
        call: &Call,
        bucket: Option<&OpenBucket>,
        old: &Attributes,
    ) -> Result<(), Refusal> {
        let asks = says_how(call) || customer_key(call, CUSTOMER)?.is_some();
        if old.encryption.is_none() && !asks && !has_default(bucket) {
            return Ok(());
        }
        refused(
            Code::InvalidRequest,
            "Objects that are encrypted cannot be appended to, nor can others be where a bucket's default is to encrypt \
             what is put. You can put the object anew.",
        )
    }

    /// GetBucketEncryption, PutBucketEncryption, DeleteBucketEncryption.
    pub(crate) async fn bucket_encryption(
        &self,
        operation: Operation,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        match operation {
            Operation::GetBucketEncryption => {
                let open = context.access.bucket.as_ref();
                match open.and_then(|open| open.config.encryption) {
                    Some(encryption) => Ok(Reply::xml(encryption.write())),
                    None => Err(no_default()),
                }
            }
            Operation::PutBucketEncryption => {
                let set = |config: &mut BucketConfig, said: &BucketEncryption| {
                    config.encryption = Some(*said);
                };
                self.take(context, body, BucketEncryption::parse, set)
                    .await?;
                Ok(Reply::ok())
            }
            _ => self.reset(context, |config| config.encryption = None).await,
        }
    }
}

/// How an object is encrypted is known when it is read: a request that says it is a mistake.
fn check_reading(call: &Call) -> Result<(), Refusal> {
    match [WAY, KMS_KEY]
        .iter()
        .find(|name| call.header(name).is_some())
    {
        None => Ok(()),
        Some(name) => {
            let message = format!("{name} header is not supported for this operation.");
            Err(Refusal::new(Code::InvalidArgument, message))
        }
    }
}
