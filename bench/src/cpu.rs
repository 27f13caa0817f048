//! Processor time, as the kernel accounts it: what an operation costs, however long it waited.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Processor time that the threads which a process has now have used so far; none if it is gone.
///
/// From the threads' `schedstat`, in nanoseconds: `stat` counts in ticks of 10 ms.
pub fn of_process(pid: u32) -> Option<Duration> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let of_threads = threads
        .flatten()
        .filter_map(|thread| run_time(&thread.path().join("schedstat")));
    Some(of_threads.sum())
}

/// The same, of several processes together.
pub fn of_processes(pids: &[u32]) -> Duration {
    pids.iter().filter_map(|pid| of_process(*pid)).sum()
}

/// Processor time that the calling process has used so far, by threads that have ended as well: it never falls.
pub fn of_self() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(used).unwrap_or_default()
}

/// Processor time of one thread of this process.
pub fn of_thread(tid: i32) -> Option<Duration> {
    run_time(std::path::Path::new(&format!(
        "/proc/self/task/{tid}/schedstat"
    )))
}

fn run_time(path: &std::path::Path) -> Option<Duration> {
    let text = std::fs::read_to_string(path).ok()?;
    let nanos = text.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}

/// Keeps the calling thread on one processor, so that a server and its client do not trade places.
pub fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    // Where there are fewer processors the figures are only noisier.
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_ended_threads_is_not_forgotten() {
        let worked = || {
            let before = of_self();
            while of_self() - before < Duration::from_millis(5) {}
            of_self()
        };
        let thread = std::thread::spawn(worked);
        let then = thread.join().unwrap_or_default();
        assert!(then > Duration::ZERO && of_self() >= then);
    }

    #[test]
    fn work_costs_time() {
        let before = of_self();
        let mut x = 1u64;
        while of_self() - before < Duration::from_millis(5) {
            for i in 0..100_000u64 {
                x = std::hint::black_box(x.wrapping_mul(31).wrapping_add(i));
            }
        }
        assert!(of_self() > before, "{x}");
        assert!(of_process(std::process::id()) > Some(Duration::ZERO));
        assert_eq!(of_process(u32::MAX), None);
    }
}
