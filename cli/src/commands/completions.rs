//! `virtkeep completions`: words for the Tab key.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::context::Context;
use crate::exit::Exit;

/// Print completions for a shell
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  virtkeep completions bash > /etc/bash_completion.d/virtkeep
  virtkeep completions zsh > ~/.zfunc/_virtkeep")]
pub(crate) struct Args {
    /// The shell they are for
    shell: Shell,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "virtkeep", &mut text);
    context.output.raw(&text)?;
    Ok(Exit::Done)
}
