//! What is put together of parts, and what stays.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{
    BucketVersioningStatus, ChecksumAlgorithm, ChecksumMode, ChecksumType,
    CompletedMultipartUpload, CompletedPart, ObjectLockMode, VersioningConfiguration,
};

use crate::{MIB, data, is_refused, read};

/// Uploads in parts.
pub(crate) async fn parts(s3: &Client, bucket: &str) {
    let contents = [data(5 * MIB, 1), data(5 * MIB + 1, 2), data(17, 3)];
    for (algorithm, kind) in [
        (ChecksumAlgorithm::Crc64Nvme, ChecksumType::FullObject),
        (ChecksumAlgorithm::Sha256, ChecksumType::Composite),
    ] {
        let begun = s3.create_multipart_upload().bucket(bucket).key("whole");
        let begun = begun
            .checksum_algorithm(algorithm.clone())
            .checksum_type(kind.clone());
        let begun = begun.send().await.expect("it is begun");
        let upload = begun.upload_id().expect("an id").to_owned();
        let mut done = CompletedMultipartUpload::builder();
        for (number, bytes) in (1..).zip(&contents) {
            let part = s3
                .upload_part()
                .bucket(bucket)
                .key("whole")
                .upload_id(&upload);
            let part = part
                .checksum_algorithm(algorithm.clone())
                .part_number(number);
            let part = part
                .body(bytes.clone().into())
                .send()
                .await
                .expect("a part is put");
            let named = CompletedPart::builder()
                .part_number(number)
                .set_e_tag(part.e_tag().map(str::to_owned))
                .set_checksum_sha256(part.checksum_sha256().map(str::to_owned))
                .set_checksum_crc64_nvme(part.checksum_crc64_nvme().map(str::to_owned));
            done = done.parts(named.build());
        }
        let listed = s3
            .list_parts()
            .bucket(bucket)
            .key("whole")
            .upload_id(&upload);
        assert_eq!(
            listed.send().await.expect("parts are listed").parts().len(),
            3
        );
        let end = || {
            let end = s3.complete_multipart_upload().bucket(bucket).key("whole");
            end.upload_id(&upload)
                .multipart_upload(done.clone().build())
                .send()
        };
        let made = end().await.expect("it is put together");
        assert_eq!(
            end()
                .await
                .expect("who asks again is told the same")
                .e_tag(),
            made.e_tag()
        );
        assert!(made.e_tag().is_some_and(|etag| etag.ends_with("-3\"")));
        let got = s3
            .get_object()
            .bucket(bucket)
            .key("whole")
            .checksum_mode(ChecksumMode::Enabled);
        let got = got.send().await.expect("it is there");
        assert_eq!(got.checksum_type(), Some(&kind));
        assert!(read(got.body).await == contents.concat(), "{algorithm:?}");
        let second = s3.get_object().bucket(bucket).key("whole").part_number(2);
        let second = second.send().await.expect("a part of it is there");
        assert_eq!(second.parts_count(), Some(3));
        assert!(read(second.body).await == contents[1]);
    }
    let begun = s3
        .create_multipart_upload()
        .bucket(bucket)
        .key("given-up")
        .send()
        .await;
    let upload = begun
        .expect("it is begun")
        .upload_id()
        .expect("an id")
        .to_owned();
    let ended = s3
        .abort_multipart_upload()
        .bucket(bucket)
        .key("given-up")
        .upload_id(&upload);
    ended.send().await.expect("it is given up");
    let part = s3
        .upload_part()
        .bucket(bucket)
        .key("given-up")
        .upload_id(&upload)
        .part_number(1);
    is_refused(
        part.body(data(9, 1).into()).send().await,
        "NoSuchUpload",
        404,
    );
}

/// Versions, and markers of what was removed.
pub(crate) async fn versions(s3: &Client) {
    let bucket = "versioned";
    s3.create_bucket()
        .bucket(bucket)
        .send()
        .await
        .expect("a bucket is made");
    let enabled = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled);
    let set = s3.put_bucket_versioning().bucket(bucket);
    let set = set.versioning_configuration(enabled.build()).send().await;
    set.expect("versions are kept");
    let mut ids = Vec::new();
    for seed in 0..3 {
        let put = s3
            .put_object()
            .bucket(bucket)
            .key("k")
            .body(data(50, seed).into());
        let put = put.send().await.expect("it is put");
        ids.push(put.version_id().expect("a version's id").to_owned());
    }
    let gone = s3.delete_object().bucket(bucket).key("k").send().await;
    let gone = gone.expect("it is removed");
    assert_eq!(gone.delete_marker(), Some(true));
    is_refused(
        s3.get_object().bucket(bucket).key("k").send().await,
        "NoSuchKey",
        404,
    );
    for (seed, id) in (0..3).zip(&ids) {
        let got = s3
            .get_object()
            .bucket(bucket)
            .key("k")
            .version_id(id)
            .send()
            .await;
        assert!(read(got.expect("each version is there").body).await == data(50, seed));
    }
    let listed = s3
        .list_object_versions()
        .bucket(bucket)
        .send()
        .await
        .expect("they are listed");
    let found: Vec<_> = listed
        .versions()
        .iter()
        .filter_map(|v| v.version_id())
        .collect();
    let newest_first: Vec<_> = ids.iter().rev().map(String::as_str).collect();
    assert_eq!((found, listed.delete_markers().len()), (newest_first, 1));
    let marker = gone.version_id().expect("a marker's id");
    let back = s3
        .delete_object()
        .bucket(bucket)
        .key("k")
        .version_id(marker)
        .send()
        .await;
    back.expect("the marker is removed");
    let got = s3
        .get_object()
        .bucket(bucket)
        .key("k")
        .send()
        .await
        .expect("it is back");
    assert_eq!(got.version_id(), ids.last().map(String::as_str));
}

/// Versions that are locked.
pub(crate) async fn locks(s3: &Client) {
    let bucket = "locked";
    let made = s3
        .create_bucket()
        .bucket(bucket)
        .object_lock_enabled_for_bucket(true);
    made.send().await.expect("a bucket is made");
    let until = DateTime::from(SystemTime::now() + Duration::from_secs(3600));
    let put = s3
        .put_object()
        .bucket(bucket)
        .key("k")
        .object_lock_mode(ObjectLockMode::Compliance);
    let put = put
        .object_lock_retain_until_date(until)
        .body(data(5, 5).into());
    let put = put.send().await.expect("it is put");
    let id = put.version_id().expect("a version's id");
    let removed = s3
        .delete_object()
        .bucket(bucket)
        .key("k")
        .version_id(id)
        .send()
        .await;
    is_refused(removed, "AccessDenied", 403);
    let got = s3
        .get_object()
        .bucket(bucket)
        .key("k")
        .version_id(id)
        .send()
        .await;
    assert!(read(got.expect("it stays").body).await == data(5, 5));
}
