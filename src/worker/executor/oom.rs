//! Whether the kernel's out-of-memory killer struck: a SIGKILL alone does not say who sent it.

use std::fs;

/// Processes that the kernel killed for want of memory, since boot on this machine and in this server's
/// control group (a container's own limit counts there alone). 0 where the system does not tell.
pub(super) fn kills() -> u64 {
    let of = |path: &str| fs::read_to_string(path).map_or(0, |text| count(&text));
    of("/proc/vmstat") + of("/sys/fs/cgroup/memory.events")
}

/// The value of the line `oom_kill N`.
fn count(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .find_map(|value| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_found_among_its_relatives() {
        let events = "low 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!(count(events), 1);
        assert_eq!(count("nr_free_pages 7\n"), 0);
        assert_eq!(count(""), 0);
    }
}
