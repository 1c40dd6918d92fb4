//! The hidden command that outlives a killed backup just long enough to thaw the guest.
//!
//! A backup starts it before the freeze, connected by a pipe: see
//! [`virtkeep_capture::Options::thaw_guard`].

use std::ffi::OsString;

use anyhow::Result;

use crate::exit::Exit;
use crate::signals;

/// The word for it on the command line.
pub(super) const WORD: &str = "thaw-guard";

/// Thaw a guest whose backup was killed (started by `backup`)
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    uri: String,
    uuid: String,
}

/// The words that start this command again.
pub(super) fn command_line() -> Vec<OsString> {
    // The program as it runs now, even if its file has been replaced by an update since.
    vec!["/proc/self/exe".into(), WORD.into()]
}

pub(super) fn run(args: &Args) -> Result<Exit> {
    // A service manager signals the whole group of processes: the guard must not go before the backup.
    signals::ignore()?;
    virtkeep_capture::thaw_when_orphaned(&args.uri, &args.uuid)?;
    Ok(Exit::Done)
}
