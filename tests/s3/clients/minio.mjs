// minio-js.
import { createWriteStream } from "node:fs";
import { pipeline } from "node:stream/promises";
import * as minio from "minio";
import { installed, serve } from "./driver.mjs";

const at = new URL(process.env.S3_ENDPOINT);
const client = new minio.Client({
  endPoint: at.hostname, port: Number(at.port), useSSL: at.protocol === "https:",
  region: process.env.AWS_REGION, accessKey: process.env.AWS_ACCESS_KEY_ID,
  secretKey: process.env.AWS_SECRET_ACCESS_KEY, partSize: 5 << 20,
});
const put = async ({ bucket, key, path }) => {
  await client.fPutObject(bucket, key, path);
};
const listed = (stream) => new Promise((done, failed) => {
  const all = [];
  stream.on("data", (o) => all.push(o)).on("end", () => done(all)).on("error", failed);
});

serve({
  version: () => installed("minio"),
  put,
  put_parts: put,
  get: ({ bucket, key, path }) => client.fGetObject(bucket, key, path),
  range: async ({ bucket, key, start, length, path }) =>
    pipeline(await client.getPartialObject(bucket, key, start, length), createWriteStream(path)),
  list: async ({ bucket, prefix }) =>
    (await listed(client.listObjectsV2(bucket, prefix, true))).map((o) => o.name),
  copy: async ({ bucket, source, key }) => {
    // It escapes what is copied itself.
    await client.copyObject(bucket, key, `/${bucket}/${source}`);
  },
  remove: async ({ bucket, keys }) => {
    const said = await client.removeObjects(bucket, keys);
    const failed = (said ?? []).filter((one) => one?.Error);
    if (failed.length) throw new Error(JSON.stringify(failed));
  },
  sign: ({ bucket, key, method }) => client.presignedUrl(method.toUpperCase(), bucket, key, 60),
  form: async ({ bucket, key }) => {
    const policy = client.newPostPolicy();
    policy.setBucket(bucket);
    policy.setKey(key);
    policy.setExpires(new Date(Date.now() + 60_000));
    const { postURL, formData } = await client.presignedPostPolicy(policy);
    return { url: postURL, fields: formData };
  },
  versions: async ({ bucket, key }) =>
    (await listed(client.listObjects(bucket, key, true, { IncludeVersion: true }))).map((o) => o.versionId),
  get_version: async ({ bucket, key, id, path }) =>
    pipeline(await client.getObject(bucket, key, { versionId: id }), createWriteStream(path)),
  tag: async ({ bucket, key, tags }) => {
    await client.setObjectTagging(bucket, key, tags);
  },
  tags: async ({ bucket, key }) =>
    Object.fromEntries((await client.getObjectTagging(bucket, key)).flat().map((t) => [t.Key, t.Value])),
});
