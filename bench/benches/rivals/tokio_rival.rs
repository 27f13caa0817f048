//! tokio, one thread; files go through its pool of blocking threads, as its own file type does.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ashlar_bench::disk::{self, Aligned};
use ashlar_bench::echo::MESSAGE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::{Announce, BLOCK, announce, offset};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap_or_else(|e| panic!("no runtime: {e}"))
}

pub fn echo(to: Announce) {
    runtime().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap_or_else(|e| panic!("{e}"));
        announce(&to, listener.local_addr().unwrap_or_else(|e| panic!("{e}")));
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::spawn(async move {
                let mut buffer = [0u8; MESSAGE];
                while stream.read_exact(&mut buffer).await.is_ok() {
                    if stream.write_all(&buffer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
}

pub fn appends(path: &Path, depth: usize, count: u64) -> Duration {
    let file = Arc::new(disk::open_durable(path).unwrap_or_else(|e| panic!("{e}")));
    runtime().block_on(async {
        let begun = Instant::now();
        let mut lanes = tokio::task::JoinSet::new();
        for lane in 0..depth as u64 {
            let file = file.clone();
            lanes.spawn(async move {
                let mut block = Aligned::filled(BLOCK);
                for number in (lane..count).step_by(depth) {
                    let file = file.clone();
                    let write = tokio::task::spawn_blocking(move || {
                        file.write_all_at(&block, offset(number)).map(|()| block)
                    });
                    let written = write.await.unwrap_or_else(|e| panic!("{e}"));
                    block = written.unwrap_or_else(|e| panic!("a write failed: {e}"));
                }
            });
        }
        while let Some(lane) = lanes.join_next().await {
            lane.unwrap_or_else(|e| panic!("{e}"));
        }
        begun.elapsed()
    })
}
