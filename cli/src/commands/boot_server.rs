//! The hidden command that serves a recovery: see [`crate::boot::server`].

use anyhow::Result;

use crate::boot::{keeper, server};
use crate::context::Context;
use crate::exit::Exit;

/// Serve the disks of a recovery (started by `boot`)
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The pin that holds the recovery's record
    pin: String,

    /// Serve for the keeper, this process, instead of being it
    #[arg(long, value_name = "PROCESS")]
    serve: Option<i32>,

    /// As said to `boot`
    #[arg(long)]
    same_host: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    match args.serve {
        Some(keeper) => server::serve(context, &args.pin, keeper)?,
        None => keeper::keep(context, &args.pin, args.same_host)?,
    }
    Ok(Exit::Done)
}
