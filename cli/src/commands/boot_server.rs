//! The hidden command that serves a recovery: see [`crate::boot::server`].

use anyhow::Result;

use crate::boot::server;
use crate::context::Context;
use crate::exit::Exit;

/// Serve the disks of a recovery (started by `boot`)
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The pin that holds the recovery's record
    pin: String,

    /// Serve, instead of looking after a process that does
    #[arg(long)]
    serve: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    if args.serve {
        server::serve(context, &args.pin)?;
    } else {
        server::keep(context, &args.pin)?;
    }
    Ok(Exit::Done)
}
