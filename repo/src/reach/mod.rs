//! What hangs below roots: walking there, and remembering what was met, within a limit of memory.

mod live;
mod walk;

pub(crate) use live::{LIVE_IDS_MAX, LiveSet, Reach};
pub(crate) use walk::{Absence, Target, Walker};
