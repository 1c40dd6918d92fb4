//! `virtkeep`: backs up libvirt domains into a repository, and restores any point of them.
//!
//! `main` reads the command line, lets one of [`commands`] do the work, and is alone in choosing
//! the exit code. Results go to standard output, progress and errors to standard error.

mod args;
mod boot;
mod commands;
mod context;
mod define;
mod exit;
mod mount;
mod output;
mod point_spec;
mod progress;
mod restore;
mod retention;
mod serve;
mod signals;
mod sizes;
mod when;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use serde::Serialize;

use crate::args::Cli;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{Output, complain};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // clap takes a repository named in the environment for something typed.
        Err(error) if error.kind() == ErrorKind::MissingSubcommand => {
            eprint!("{}", Cli::command().render_help());
            return ExitCode::from(Exit::Usage.code());
        }
        Err(error) => {
            // Help and version are no errors, and go to standard output.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() {
                Exit::Usage.code()
            } else {
                0
            });
        }
    };
    let output = Output::new(cli.global.json);
    let exit = match commands::run(cli.command, &Context::new(cli.global)) {
        Ok(exit) => exit,
        Err(error) => report(&Failure::of(&error), output),
    };
    ExitCode::from(exit.code())
}

/// Says what went wrong: to people on standard error, to programs on standard output as well.
fn report(failure: &Failure, output: Output) -> Exit {
    if failure.exit != Exit::Done {
        complain(&format!("virtkeep: {}", failure.message));
        // Standard output may be what failed.
        let _ = output.json(&ErrorLine {
            r#type: "error",
            code: failure.code,
            message: &failure.message,
        });
    }
    failure.exit
}

#[derive(Serialize)]
struct ErrorLine<'a> {
    r#type: &'static str,
    code: &'static str,
    message: &'a str,
}
