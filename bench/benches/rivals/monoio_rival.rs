//! monoio on io_uring, with the ring flags that suit one thread a ring.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ashlar_bench::disk::{self, Aligned};
use ashlar_bench::echo::MESSAGE;
use monoio::buf::IoBuf;
use monoio::io::{AsyncReadRentExt, AsyncWriteRentExt};

use crate::{Announce, BLOCK, announce, offset};

fn run<T>(future: impl Future<Output = T>) -> T {
    let mut flags = io_uring_06::IoUring::builder();
    flags.setup_single_issuer().setup_defer_taskrun();
    let runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .uring_builder(flags)
        .build();
    runtime
        .unwrap_or_else(|e| panic!("no runtime: {e}"))
        .block_on(future)
}

pub fn echo(to: Announce) {
    run(async {
        let listener =
            monoio::net::TcpListener::bind("127.0.0.1:0").unwrap_or_else(|e| panic!("{e}"));
        announce(&to, listener.local_addr().unwrap_or_else(|e| panic!("{e}")));
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            monoio::spawn(async move {
                let mut buffer = vec![0u8; MESSAGE];
                loop {
                    let (read, filled) = stream.read_exact(buffer).await;
                    if read.is_err() {
                        return;
                    }
                    let (written, emptied) = stream.write_all(filled).await;
                    if written.is_err() {
                        return;
                    }
                    buffer = emptied;
                }
            });
        }
    });
}

pub fn appends(path: &Path, depth: usize, count: u64) -> Duration {
    run(async {
        let file = disk::open_durable(path).unwrap_or_else(|e| panic!("{e}"));
        let file = Rc::new(monoio::fs::File::from_std(file).unwrap_or_else(|e| panic!("{e}")));
        let begun = Instant::now();
        let mut lanes = Vec::new();
        for lane in 0..depth as u64 {
            let file = file.clone();
            lanes.push(monoio::spawn(async move {
                let block = Aligned::filled(BLOCK);
                let start = block.start();
                let mut bytes = block.into_vec();
                for number in (lane..count).step_by(depth) {
                    let slice = bytes.slice(start..start + BLOCK);
                    let (written, slice) = file.write_at(slice, offset(number)).await;
                    let written = written.unwrap_or_else(|e| panic!("a write failed: {e}"));
                    assert_eq!(written, BLOCK, "a short write");
                    bytes = slice.into_inner();
                }
            }));
        }
        for lane in lanes {
            lane.await;
        }
        begun.elapsed()
    })
}
