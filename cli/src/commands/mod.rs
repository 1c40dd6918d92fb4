//! The commands, one file each.

mod backup;
mod boot;
mod boot_server;
mod check;
mod completions;
mod diff;
mod findings;
mod forget;
mod init;
mod list;
mod mount;
mod pin;
mod point_line;
mod prune;
mod release;
mod repair;
mod restore;
mod serve;
mod show;
mod stats;
mod tested;
mod thaw_guard;

use anyhow::Result;
use clap::Subcommand;

use crate::context::Context;
use crate::exit::Exit;

/// What to do.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    Init(init::Args),
    Backup(Box<backup::Args>),
    List(list::Args),
    Show(show::Args),
    Diff(diff::Args),
    Restore(Box<restore::Args>),
    Boot(Box<boot::Args>),
    Serve(serve::Args),
    Mount(mount::Args),
    Check(check::Args),
    Prune(prune::Args),
    Repair(repair::Args),
    Forget(Box<forget::Args>),
    Pin(pin::PinArgs),
    Unpin(pin::UnpinArgs),
    Stats(stats::Args),
    Release(release::Args),
    Completions(completions::Args),
    #[command(name = crate::boot::server::WORD, hide = true)]
    BootServer(boot_server::Args),
    #[command(name = thaw_guard::WORD, hide = true)]
    ThawGuard(thaw_guard::Args),
}

/// Does it.
pub(crate) fn run(command: Command, context: &Context) -> Result<Exit> {
    match command {
        Command::Init(args) => init::run(&args, context),
        Command::Backup(args) => backup::run(&args, context),
        Command::List(args) => list::run(&args, context),
        Command::Show(args) => show::run(&args, context),
        Command::Diff(args) => diff::run(&args, context),
        Command::Restore(args) => restore::run(&args, context),
        Command::Boot(args) => boot::run(&args, context),
        Command::BootServer(args) => boot_server::run(&args, context),
        Command::Serve(args) => serve::run(&args, context),
        Command::Mount(args) => mount::run(&args, context),
        Command::Check(args) => check::run(&args, context),
        Command::Prune(args) => prune::run(&args, context),
        Command::Repair(args) => repair::run(&args, context),
        Command::Forget(args) => forget::run(&args, context),
        Command::Pin(args) => pin::pin(&args, context),
        Command::Unpin(args) => pin::unpin(&args, context),
        Command::Stats(args) => stats::run(&args, context),
        Command::Release(args) => release::run(&args, context),
        Command::Completions(args) => completions::run(&args, context),
        Command::ThawGuard(args) => thaw_guard::run(&args),
    }
}
