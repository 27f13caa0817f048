//! Uploads by forms: what a browser sends, as a policy that somebody signed allows.
//!
//! Invariants:
//! - who sends a form is who signed its policy, or nobody; what it asks for is authorised like any other put;
//! - nothing of the file is put anywhere before the fields are read, checked and authorised; the file streams.

use ashlar_cluster_s3::checksum::Algorithm;
use ashlar_cluster_s3::documents::parse_tagging;
use ashlar_cluster_s3::form::{Fields, FormFile, FormHead, Head, boundary};
use ashlar_cluster_s3::form_policy::{self, FormPolicy};
use ashlar_cluster_s3::refusal::{Code, Refusal};
use ashlar_cluster_s3::signature::{Claim, Payload, check_form};
use ashlar_cluster_s3::signature_v4::stamp_ms;
use ashlar_cluster_s3::tags::OBJECT_TAGS_MAX;
use ashlar_cluster_s3::text::url_encode;
use ashlar_cluster_s3::xml::Xml;
use ashlar_layout::lock::Lock;
use ashlar_layout::manifest::Precondition;
use hyper::StatusCode;

use ashlar_cluster_s3::conditional::WriteIf;

use crate::access::{Access, CREATES};
use crate::body::{BodyReader, FormSource, Promise, Source};
use crate::call::Call;
use crate::digests::Sent;
use crate::encryption::{Cipher, has_default, set_kind};
use crate::faults::refused;
use crate::gateway::{Context, DOCUMENT_WAIT, Gateway, timeout};
use crate::inbound::Inbound;
use crate::puts::{Made, PUT_MAX, Target, attributes_of};
use crate::reply::Reply;

impl Gateway {
    /// PostObject.
    pub(crate) async fn post_object(
        &self,
        context: &Context,
        body: Inbound,
    ) -> Result<Reply, Refusal> {
        let call = &context.call;
        self.check_there(context).await?;
        if !matches!(context.claim, Claim::None) {
            return refused(
                Code::InvalidRequest,
                "A form is signed by its fields, and not by its headers or its URL",
            );
        }
        let boundary = boundary(call.header("content-type").unwrap_or_default())?;
        let promise = self.promise(context)?;
        if promise.payload != Payload::Unsigned {
            return refused(Code::InvalidRequest, "A form does not come in chunks");
        }
        let sent = promise.len;
        let (mut reader, _) = BodyReader::new(Source::Http(body), promise);
        // Whoever comes may send one, and take their time.
        let Some(unknown) = self.forms.take_now(context.call.peer(), 1) else {
            return refused(Code::SlowDown, "Please reduce your request rate.");
        };
        // Who sends them has so long and no longer: nobody is known yet.
        let head = timeout(DOCUMENT_WAIT, read_head(&mut reader, &boundary)).await;
        let Some(head) = head else {
            return refused(
                Code::RequestTimeout,
                "The fields of your form took too long to come.",
            );
        };
        let (fields, file) = head?;
        let asked = self.ask(context, &fields).await?;
        drop(unknown);
        let (call, (least, most)) = (&asked.call, asked.lengths);
        let mut attributes = attributes_of(call)?;
        if let Some(tagging) = fields.get("tagging") {
            attributes.tags = parse_tagging(tagging.as_bytes(), OBJECT_TAGS_MAX)?;
            attributes.encode()?;
        }
        let mut access = asked.access;
        access.say_requested_tags(&attributes.tags);
        access.check("s3:PutObject", &call.arn())?;
        if !attributes.tags.is_empty() {
            access.check("s3:PutObjectTagging", &call.arn())?;
        }
        access.check_acl(call)?;
        self.set_acl(&access, call, &mut attributes).await?;
        let cipher = self.encrypt(call, has_default(access.bucket.as_deref()), &mut attributes)?;
        let kind = cipher.as_ref().map(Cipher::kind);
        let digests = Sent::of(call)?.or_made(Algorithm::Crc64Nvme);
        let promise = Promise {
            // More than came with all of the form it cannot be.
            len: most.min(PUT_MAX).min(sent),
            least: Some(least),
            payload: Payload::Unsigned,
            signer: None,
            algorithms: digests.algorithms(),
            pace: self.pace(sent),
            peer: call.peer(),
            share: None,
        };
        let target = Target {
            bucket: &call.bucket,
            key: &call.key,
            condition: &WriteIf::Always,
            precondition: Precondition::None,
            attributes,
            // What the bucket wants; a form asks for none.
            lock: Lock::NONE,
            known: Some(context.known()),
            cipher,
        };
        let source = Source::Form(Box::new(FormSource::new(reader, file)));
        let made = self.make(target, source, promise, &digests).await?;
        let mut reply = done(call, &fields, &made);
        set_kind(&mut reply, call, kind);
        if let Some(id) = &made.id {
            reply.set("x-amz-version-id", id);
        }
        Ok(reply)
    }

    /// What a form asks for, and who does, if its policy allows it.
    async fn ask(&self, context: &Context, fields: &Fields) -> Result<Asked, Refusal> {
        let key = form_policy::key(fields)?;
        let call = context.call.of_form(key, form_policy::headers(fields)?);
        call.check_names()?;
        if call.header("x-amz-security-token").is_some() {
            return refused(
                Code::InvalidToken,
                "The provided token is malformed or otherwise invalid.",
            );
        }
        let (mut open, mut lengths, mut version) = (None, (0, u64::MAX), None);
        if let Some((id, is_v4)) = form_policy::key_id(fields)? {
            if !is_v4 && !self.options.version_2 {
                return refused(
                    Code::InvalidRequest,
                    "The authorization mechanism you have provided is not supported. Please use \
                     AWS4-HMAC-SHA256.",
                );
            }
            let key = self.directory.key(id).await?;
            let text = fields.get("policy").unwrap_or_default();
            let field = |name: &str| fields.get(name).map(str::to_owned);
            let region = &self.options.region;
            check_form(field, region, context.now_ms, text, key.secret.reveal())?;
            let policy = FormPolicy::parse(text)?;
            policy.check(&call.bucket, &call.key, fields, context.now_ms)?;
            lengths = policy.lengths();
            version = Some(if is_v4 { "AWS4-HMAC-SHA256" } else { "AWS" });
            open = Some(key);
        }
        let bucket = context.access.bucket.clone();
        let mut access = Access::new(&call, &context.claim, open, bucket, context.now_ms);
        access.say(CREATES, "true");
        if let Some(version) = version {
            access.say("s3:signatureversion", version);
            access.say("s3:authtype", "POST");
            let signed = fields.get("x-amz-date").and_then(stamp_ms);
            if let Some(at) = signed {
                let age = context.now_ms.saturating_sub(at);
                access.say("s3:signatureage", &age.to_string());
            }
        }
        if access.looks_at_existing_tags() {
            self.say_tags_of(&mut access, &call.bucket, &call.key, None)
                .await?;
        }
        Ok(Asked {
            call,
            access,
            lengths,
        })
    }
}

/// What a form asks for.
struct Asked {
    call: Call,
    access: Access,
    /// How many bytes its file may have, at the least and at the most.
    lengths: (u64, u64),
}

/// Reads a form up to where its file begins.
async fn read_head(reader: &mut BodyReader, boundary: &str) -> Result<(Fields, FormFile), Refusal> {
    let mut head = FormHead::new(boundary);
    loop {
        let Some(bytes) = reader.piece().await? else {
            return refused(
                Code::MalformedPOSTRequest,
                "The body of your POST request is not well-formed multipart/form-data.",
            );
        };
        match head.push(&bytes)? {
            Head::More(more) => head = more,
            Head::Whole(fields, file) => return Ok((fields, file)),
        }
    }
}

/// How a form is answered that was done.
fn done(call: &Call, fields: &Fields, made: &Made) -> Reply {
    let etag = format!("\"{}\"", made.etag);
    let scheme = if call.secure { "https" } else { "http" };
    let host = call.header("host").unwrap_or_default();
    let path = call.path.trim_end_matches('/');
    let location = format!("{scheme}://{host}{path}/{}", url_encode(&call.key));
    let mut reply = match (
        form_policy::redirect(fields),
        form_policy::success_status(fields),
    ) {
        (Some(to), _) => {
            let join = if to.contains('?') { '&' } else { '?' };
            let to = format!(
                "{to}{join}bucket={}&key={}&etag={}",
                url_encode(&call.bucket),
                url_encode(&call.key),
                url_encode(&etag)
            );
            let mut reply = Reply::ok().with("location", &to);
            reply.status = StatusCode::SEE_OTHER;
            return reply.with("etag", &etag);
        }
        (None, 201) => {
            let mut reply = Reply::xml(Xml::plain_document("PostResponse", |xml| {
                xml.text("Location", &location);
                xml.text("Bucket", &call.bucket);
                xml.text("Key", &call.key);
                xml.text("ETag", &etag);
            }));
            reply.status = StatusCode::CREATED;
            reply
        }
        (None, 200) => Reply::ok(),
        (None, _) => Reply::no_content(),
    };
    reply.set("location", &location);
    reply.set("etag", &etag);
    reply
}
