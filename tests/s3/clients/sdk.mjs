// The SDK for JavaScript: its client, its uploads in parts, what signs URLs and forms.
import { createReadStream, createWriteStream, readFileSync } from "node:fs";
import { pipeline } from "node:stream/promises";
import * as s3 from "@aws-sdk/client-s3";
import { Upload } from "@aws-sdk/lib-storage";
import { createPresignedPost } from "@aws-sdk/s3-presigned-post";
import { getSignedUrl } from "@aws-sdk/s3-request-presigner";
import { installed, serve, won } from "./driver.mjs";

const PART = 5 << 20;
const config = { endpoint: process.env.S3_ENDPOINT, region: process.env.AWS_REGION, forcePathStyle: true };
const client = new s3.S3Client(config);
// Unless it is told this, it signs the checksum of no body at all into URLs for uploads.
const signer = new s3.S3Client({ ...config, requestChecksumCalculation: "WHEN_REQUIRED" });
const send = (Command, args) => client.send(new Command(args));
const write = (bucket, key, path, more) =>
  send(s3.PutObjectCommand, { Bucket: bucket, Key: key, Body: readFileSync(path), ...more });
const read = async (args, path) =>
  pipeline((await send(s3.GetObjectCommand, args)).Body, createWriteStream(path));
const tagged = (tags) => Object.entries(tags).map(([Key, Value]) => ({ Key, Value }));
const put = async ({ bucket, key, path }) => {
  const params = { Bucket: bucket, Key: key, Body: createReadStream(path) };
  await new Upload({ client, params, partSize: PART }).done();
};

serve({
  version: () => installed("@aws-sdk/client-s3"),
  put,
  put_parts: put,
  get: ({ bucket, key, path }) => read({ Bucket: bucket, Key: key }, path),
  range: ({ bucket, key, start, length, path }) =>
    read({ Bucket: bucket, Key: key, Range: `bytes=${start}-${start + length - 1}` }, path),
  list: async ({ bucket, prefix }) => {
    const keys = [];
    for await (const page of s3.paginateListObjectsV2({ client }, { Bucket: bucket, Prefix: prefix })) {
      keys.push(...(page.Contents ?? []).map((o) => o.Key));
    }
    return keys;
  },
  copy: async ({ bucket, source, key }) => {
    const from = encodeURIComponent(`${bucket}/${source}`);
    await send(s3.CopyObjectCommand, { Bucket: bucket, Key: key, CopySource: from });
  },
  remove: async ({ bucket, keys }) => {
    const Delete = { Objects: keys.map((Key) => ({ Key })) };
    const gone = await send(s3.DeleteObjectsCommand, { Bucket: bucket, Delete });
    if (gone.Errors?.length) throw new Error(JSON.stringify(gone.Errors));
  },
  create: ({ bucket, key, path }) => won(() => write(bucket, key, path, { IfNoneMatch: "*" })),
  swap: ({ bucket, key, path, etag }) => won(() => write(bucket, key, path, { IfMatch: etag })),
  sign: ({ bucket, key, method }) => {
    const Command = method === "get" ? s3.GetObjectCommand : s3.PutObjectCommand;
    return getSignedUrl(signer, new Command({ Bucket: bucket, Key: key }), { expiresIn: 60 });
  },
  form: ({ bucket, key }) => createPresignedPost(client, { Bucket: bucket, Key: key, Expires: 60 }),
  put_wrong: async ({ bucket, key, path, sha256 }) => {
    await write(bucket, key, path, { ChecksumSHA256: sha256 });
  },
  versions: async ({ bucket, key }) => {
    const got = await send(s3.ListObjectVersionsCommand, { Bucket: bucket, Prefix: key });
    return got.Versions.map((v) => v.VersionId);
  },
  get_version: ({ bucket, key, id, path }) => read({ Bucket: bucket, Key: key, VersionId: id }, path),
  tag: async ({ bucket, key, tags }) => {
    await send(s3.PutObjectTaggingCommand, { Bucket: bucket, Key: key, Tagging: { TagSet: tagged(tags) } });
  },
  tags: async ({ bucket, key }) => {
    const got = await send(s3.GetObjectTaggingCommand, { Bucket: bucket, Key: key });
    return Object.fromEntries(got.TagSet.map((t) => [t.Key, t.Value]));
  },
});
