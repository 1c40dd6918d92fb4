//! A limit on memory that ends the program: whoever believes a hostile length is found at once.

use std::alloc::System;

use cap::Cap;

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// Runs `work`, in which no more than `bytes` may be allocated beyond what there is now. The
/// allocation that would exceed them aborts, and libFuzzer shows its stack.
pub fn within<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    MEMORY
        .set_limit(MEMORY.allocated() + bytes)
        .expect("the limit is above what is allocated");
    let result = work();
    MEMORY
        .set_limit(usize::MAX)
        .expect("no limit is above everything");
    result
}
