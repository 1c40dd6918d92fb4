//! The command line as a whole; each command describes its own part in [`commands`](crate::commands).

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgAction, Args, Parser};

use crate::commands::Command;

/// Back up libvirt/KVM virtual machines, and restore any point of them byte for byte.
#[derive(Parser, Debug)]
#[command(
    name = "virtkeep",
    version,
    disable_help_flag = true,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "\
Examples:
  virtkeep -r /backup/vms init          make a repository
  export VIRTKEEP_REPO=/backup/vms      so that -r can be left out
  virtkeep backup web1                  full at first, then incremental
  virtkeep list                         what there is to restore
  virtkeep restore web1@latest --to /tmp/web1

A POINT is DOMAIN@WHEN or a point id from `virtkeep list`. WHEN is `latest`,
`latest~2` (two before the latest), or a time: web1@2026-11-22T22:11 is the
newest point up to the end of that minute, web1@2026-11-22 up to the end of
that day.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 partly done, 4 damage found,
10 no repository, 11 busy, 130 and 143 interrupted."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    #[command(flatten)]
    pub(crate) global: Global,
}

/// What every command understands.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Global {
    /// Directory of the repository
    #[arg(
        short = 'r',
        long = "repository",
        value_name = "REPO",
        env = "VIRTKEEP_REPO",
        global = true,
        hide_env_values = true,
        // An empty one is taken for none, which has an error of its own.
        value_parser = OsStringValueParser::new().map(PathBuf::from),
        display_order = 100
    )]
    pub(crate) repository: Option<PathBuf>,

    /// Which libvirt to talk to, such as qemu:///system
    #[arg(
        short = 'c',
        long = "connect",
        value_name = "URI",
        global = true,
        display_order = 101
    )]
    pub(crate) connect: Option<String>,

    /// Print JSON Lines for programs instead of text for people
    #[arg(long, global = true, display_order = 102)]
    pub(crate) json: bool,

    /// Accept a repository on a network file system that no other host ever uses
    #[arg(long, global = true, display_order = 103)]
    pub(crate) unsafe_network_fs: bool,

    /// Read a repository where locks are forbidden
    #[arg(long, global = true, display_order = 104)]
    pub(crate) no_lock: bool,

    /// Print this help
    #[arg(short, long, global = true, action = ArgAction::HelpShort, display_order = 105)]
    help: Option<bool>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn what_stands_below_the_options_fits_a_narrow_terminal() {
        let program = Cli::command();
        for command in program.get_subcommands().chain([&program]) {
            let text = command.get_after_help().map(ToString::to_string);
            for line in text.unwrap_or_default().lines() {
                assert!(line.len() <= 80, "{}: {line}", command.get_name());
            }
        }
    }
}
