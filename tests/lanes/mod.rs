//! Faults injected again and again: `tests/LANES.md` says what each lane proves and how to run its long form.

mod aborted_requests;
mod adoption;
mod cancel_races;
mod disk_full;
mod drain;
mod idempotency;
mod power_cuts;
mod server_kills;
mod throughput;
mod trainer_deaths;
mod upgrade;
mod zombies;
