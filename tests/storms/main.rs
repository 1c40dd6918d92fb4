//! Storms: the real program killed, run many times at once, and left without space, on one repository
//! of images. Whatever happens, every point that was committed restores bit for bit.
//!
//! None needs libvirtd. What fails is repeated with the seed it printed; how far a process had come
//! when it was killed is the machine's affair, and whatever it is, the same must hold.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `VIRTKEEP_SEED` | seed of all random choices | a random one |
//! | `VIRTKEEP_KILLS` | how many processes are killed | 25 |
//! | `VIRTKEEP_RACE_SECONDS` | how long processes race | 10 |

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod kills;
mod no_space;
mod races;
mod shelf;

/// A number given in the environment.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// The seed of this run, which is printed.
fn seed() -> u64 {
    let seed = setting("VIRTKEEP_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("VIRTKEEP_SEED={seed}");
    seed
}
