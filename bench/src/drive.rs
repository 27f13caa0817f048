//! What programs that put load on a store share: their lanes, a reading, their end.

use std::fmt::Display;
use std::process::ExitCode;

use ashlar_node_client::{Client, ClientError, GetOptions};
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use crate::baseline;

/// How a program ends: what went wrong is told under its name.
pub fn ended<E: Display>(program: &str, result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The latencies of all lanes, once all have ended; or what went wrong in the first one in which something did.
pub async fn latencies<E: 'static>(
    mut lanes: JoinSet<Result<Histogram<u64>, E>>,
) -> Result<Histogram<u64>, E> {
    let mut all = baseline::histogram();
    while let Some(lane) = lanes.join_next().await {
        match lane {
            Ok(histogram) => all += histogram?,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
    Ok(all)
}

/// Reads an object of `len` bytes whole.
pub async fn get(client: &Client, bucket: &str, key: &str, len: usize) -> Result<(), ClientError> {
    let mut stream = client.get(bucket, key, GetOptions::default()).await?;
    let mut got = 0;
    while let Some(piece) = stream.next().await {
        got += piece?.len();
    }
    assert_eq!(got, len, "{key}");
    Ok(())
}
