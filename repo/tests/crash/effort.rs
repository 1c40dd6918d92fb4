//! How much is tried: a part by default, all on request.

/// Which moments of a scenario are tried, and how often each.
pub(crate) struct Effort {
    moments: u64,
    pub(crate) seeds: u64,
}

impl Effort {
    /// What `VIRTKEEP_CRASH_SEEDS` asks for; else `moments` of each scenario.
    pub(crate) fn chosen(moments: u64) -> Self {
        match std::env::var("VIRTKEEP_CRASH_SEEDS") {
            Ok(seeds) => Self {
                moments: u64::MAX,
                seeds: seeds.parse().unwrap(),
            },
            Err(_) => Self { moments, seeds: 2 },
        }
    }

    /// All of `ways`, or one of them in turn where not everything is tried.
    pub(crate) fn some_of<'a, T>(&self, ways: &'a [T], turn: u64) -> &'a [T] {
        if self.moments == u64::MAX {
            return ways;
        }
        let one = turn as usize % ways.len();
        &ways[one..=one]
    }

    /// Moments spread over all there are.
    pub(crate) fn of(&self, all: u64) -> Vec<u64> {
        let count = self.moments.min(all);
        (0..count).map(|number| number * all / count).collect()
    }
}
