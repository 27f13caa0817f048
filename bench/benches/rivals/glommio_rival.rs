//! glommio, one executor, with its own buffers and its direct file.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ashlar_bench::disk;
use ashlar_bench::echo::MESSAGE;
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::io::OpenOptions;
use glommio::net::TcpListener;
use glommio::{LocalExecutorBuilder, Placement};

use crate::{Announce, BLOCK, announce, offset};

fn run<T>(future: impl Future<Output = T>) -> T {
    let executor = LocalExecutorBuilder::new(Placement::Unbound).make();
    executor
        .unwrap_or_else(|e| panic!("no executor: {e}"))
        .run(future)
}

pub fn echo(to: Announce) {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap_or_else(|e| panic!("{e}"));
        announce(&to, listener.local_addr().unwrap_or_else(|e| panic!("{e}")));
        while let Ok(mut stream) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            glommio::spawn_local(async move {
                let mut buffer = [0u8; MESSAGE];
                while stream.read_exact(&mut buffer).await.is_ok() {
                    if stream.write_all(&buffer).await.is_err() {
                        return;
                    }
                }
            })
            .detach();
        }
    });
}

pub fn appends(path: &Path, depth: usize, count: u64) -> Duration {
    run(async {
        let mut options = OpenOptions::new();
        // Its own flags have O_DIRECT; the write itself is made durable, as in all the others.
        options
            .read(true)
            .write(true)
            .custom_flags(disk::durable_direct());
        let file = options
            .dma_open(path)
            .await
            .unwrap_or_else(|e| panic!("{e}"));
        let file = Rc::new(file);
        let begun = Instant::now();
        let mut lanes = Vec::new();
        for lane in 0..depth as u64 {
            let file = file.clone();
            lanes.push(glommio::spawn_local(async move {
                for number in (lane..count).step_by(depth) {
                    // It takes the buffer for good: a new one for each write is how it is used.
                    let mut block = file.alloc_dma_buffer(BLOCK);
                    block.as_bytes_mut().fill(0x5a);
                    let written = file.write_at(block, offset(number)).await;
                    assert_eq!(
                        written.unwrap_or_else(|e| panic!("a write failed: {e}")),
                        BLOCK
                    );
                }
            }));
        }
        for lane in lanes {
            lane.await;
        }
        let took = begun.elapsed();
        if let Ok(file) = Rc::try_unwrap(file) {
            let _ = file.close().await;
        }
        took
    })
}
