//! What a gateway is told when it starts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ashlar_cluster_s3::bucket::Ownership;
use ashlar_cluster_s3::users::RootKey;

/// How a gateway behaves.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// The region that clients have to sign for.
    pub region: String,
    /// Host names under which the gateway is reached; `bucket.name` is that bucket. Others are taken for
    /// the gateway itself, with the bucket in the path.
    pub domains: Vec<String>,
    /// Whether signatures of version 2 are taken: boto3 makes them for presigned URLs unless told otherwise.
    pub version_2: bool,
    /// Whose what is put into new buckets is, where nothing else is asked for.
    pub ownership: Ownership,
    /// What the secrets of users are sealed with.
    pub root: RootKey,
    /// What is bounded.
    pub limits: Limits,
    /// Who is told of each request.
    pub log: Log,
}

/// What is bounded.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; one more is told to slow down. Of these, of requests and of memory one peer (an address, or
    /// a network of version 6) has three quarters at the most.
    pub connections: usize,
    /// Requests at once; one more is told to slow down.
    pub requests: usize,
    /// Mebibytes that bodies on their way may take, about.
    pub memory_mib: u32,
    /// How long a request waits for its share of that.
    pub memory_wait: Duration,
    /// How long a request's head may take to come, from when the connection is made or idle.
    pub head_wait: Duration,
    /// How long a body may stand still, on its way in or out. So many seconds' worth of a least rate have to move in
    /// that time: of a higher one while others wait for memory.
    pub body_wait: Duration,
    /// How long an operation of the store's waits for others to end.
    pub admit_wait: Duration,
    /// Bytes of a request's head.
    pub head_max: usize,
    /// Its headers.
    pub headers_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 4096,
            requests: 1024,
            memory_mib: 1024,
            memory_wait: Duration::from_secs(10),
            head_wait: Duration::from_secs(60),
            body_wait: Duration::from_secs(60),
            admit_wait: Duration::from_secs(30),
            head_max: 64 * 1024,
            headers_max: 128,
        }
    }
}

/// A request that was answered.
#[derive(Clone, Debug)]
pub struct LogEntry<'a> {
    /// Its number: the `x-amz-request-id` of the reply.
    pub request_id: &'a str,
    /// Who called: an address.
    pub peer: &'a str,
    /// The user's name, if it was signed.
    pub user: Option<&'a str>,
    /// The method.
    pub method: &'a str,
    /// The path, without the query: that may hold a signature.
    pub path: &'a str,
    /// The operation, if it is one.
    pub operation: Option<&'a str>,
    /// The HTTP status.
    pub status: u16,
    /// Of a refusal: its code and what it says.
    pub refusal: Option<(&'a str, &'a str)>,
    /// How long the reply's head took, in microseconds.
    pub micros: u64,
}

/// Who is told of each request.
#[derive(Clone)]
pub struct Log(pub Arc<dyn Fn(&LogEntry<'_>) + Send + Sync>);

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Log(…)")
    }
}

impl Log {
    /// Nobody.
    pub fn none() -> Log {
        Log(Arc::new(|_| {}))
    }
}
